"""Every key that a recipe may have works through `--set`: it is read, and the resolved recipe has what was said."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pdtrim_core import PluginHost, RecipeError, load_plugins
from pdtrim_core.api.kinds import KINDS, key_of
from pdtrim_core.recipe.json_schema import schema
from pdtrim_core.recipe.recipe import REPLACED_BY_PRUNER, Recipe
from pdtrim_core.recipe.toml_data import LISTS, parse_settings
from tests.unit.recipe.recipes import BASE

NUMBERS = (1, 2, 3, 8, 64, 0.5, 0.25, 0.75)
TEXTS = ("right", "W4A16", "W8A8", "decode", "prefill", "float32", "./a.txt", "cpu", "x", "package:other")
ALONE = {
    # Keys that go with others only.
    "prune.fraction": ("model=package:none",),
    "search.recovered": ("recovery=fold",),
}


@pytest.fixture(scope="module")
def loaded() -> PluginHost:
    return load_plugins()


def toml(value: Any) -> str:
    """Return a value in TOML, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def said(key: str, value: Any) -> str:
    """Return a setting as one writes it on a command line."""
    return f"{key}={toml(value)}"


def words_of(part: Any) -> list[Any]:
    """Return all values that a schema names one by one."""
    if isinstance(part, list):
        return [word for inner in part for word in words_of(inner)]
    if not isinstance(part, dict):
        return []
    own = [*part.get("enum", []), *([part["const"]] if "const" in part else [])]
    return [*own, *(word for inner in part.values() for word in words_of(inner))]


def settings_in(part: dict[str, Any], definitions: dict[str, Any], place: str = "") -> Iterator[str]:
    """Yield the dotted keys of what a schema has that is no table itself."""
    for name, inner in part.get("properties", {}).items():
        key = f"{place}{name}"
        named = inner.get("$ref", "").removeprefix("#/$defs/")
        if named and "properties" in definitions[named]:
            yield from settings_in(definitions[named], definitions, f"{key}.")
        else:
            yield key


def value_at(data: Any, key: str) -> Any:
    for name in key.split("."):
        data = data[int(name)] if isinstance(data, list) else data.get(name)
    return data


def takes_another_value(
    host: PluginHost, base: dict[str, Any], key: str, words: list[Any], *, more: tuple[str, ...] = ()
) -> bool:
    """Tell whether a value that the key does not have already is taken, and stands in the resolved recipe."""
    before = Recipe.from_data(base, changes=parse_settings(more), where="r.toml", host=host).to_data()
    try:
        now = value_at(before, key)
    except (KeyError, TypeError, AttributeError, IndexError):
        now = None
    singles = [*NUMBERS, True, False, *words, *TEXTS]
    for value in (*singles, *([one] for one in singles), {"quantile": 0.5}, {"group": "x"}):
        if value in (now, [now]):
            continue
        try:
            found = Recipe.from_data(base, changes=parse_settings([*more, said(key, value)]), where="r.toml", host=host)
        except RecipeError:
            continue
        if value_at(found.to_data(), key) == value:
            return True
    return False


def test_every_key_of_the_schema_that_is_no_component(loaded: PluginHost) -> None:
    whole = schema(loaded)
    components = {key_of(kind) for kind in KINDS}
    keys = [key for key in settings_in(whole, whole["$defs"]) if key.split(".")[0] not in components]
    assert {"seed", "out", "prune.blocks", "search.fresh", "recovery_data.sources", "evaluation.threads"} <= set(keys)
    base = {**BASE, "prune": {"blocks": 1}}
    # The format has one value, and files of plugins are named in a test of the command line.
    wanted = [key for key in keys if key not in ("recipe", "plugins")]
    missed = []
    for key in wanted:
        start = {"model": "package:none", "prune": {}} if key == "prune.fraction" else base
        if key == "prune.fraction":
            found = Recipe.from_data(start, changes=parse_settings(["prune.fraction=0.5"]), where="r.toml", host=loaded)
            missed += [] if found.settings.prune.fraction == 0.5 else [key]
        elif not takes_another_value(loaded, start, key, words_of(whole), more=ALONE.get(key, ())):
            missed.append(key)
    assert missed == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_and_every_option_of_it(loaded: PluginHost, kind: str) -> None:
    key, missed, there = key_of(kind), [], loaded.of_kind(kind)
    assert there
    for provided in there:
        component = provided.component
        place = f"{key}.0" if kind in LISTS else key
        base = {**BASE}
        start = {"use": component.name, **required_of(component)}
        more = (said(key, [start] if kind in LISTS else start),)
        words = words_of(component.model_json_schema())
        options = [f"{place}.{name}" for name in component.model_fields]
        missed += [
            f"{component.name}: {option}" for option in options if not takes_another_value(loaded, base, option, words, more=more)
        ]
        named = Recipe.from_data(base, changes=parse_settings(more), where="r.toml", host=loaded)
        assert value_at(named.to_data(), f"{place}.use") == component.name
    assert missed == []


def required_of(component: Any) -> dict[str, Any]:
    """Return values for the options without which a component cannot be made."""
    found = {name: ["./a.jsonl"] for name, field in component.model_fields.items() if field.is_required()}
    if "path" in found:
        return {"path": "package:none"}
    if component.kind == "quantizer":
        return {"decode": "W4A16"}
    return dict(found)


def test_what_a_pruner_replaces_is_named(loaded: PluginHost) -> None:
    pruner = loaded.of_kind("pruner")[0].component.name
    for kind, word in itertools.product(REPLACED_BY_PRUNER, ("cosine",)):
        with pytest.raises(RecipeError, match="a pruner finds what decode loses"):
            Recipe.from_data(BASE, changes=parse_settings([f"pruner={pruner}", f"{kind}={word}"]), host=loaded)
