"""`pdtrim-core describe`: one component and its options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pdtrim_core.api.kinds import KINDS, key_of, options_of
from pdtrim_core.cli.completing import PRESET, complete_described
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.errors import RecipeError, did_you_mean
from pdtrim_core.host.host import PluginHost, Provided, load_plugins
from pdtrim_core.recipe import presets


def describe(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] NAME",
            autocompletion=complete_described,
            help="A component, with its kind where two share a name; a kind alone; preset NAME, or preset alone.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a component does, where it comes from, and every option; or what a preset of prune says.

    A kind alone, or preset alone, shows what there is of it.
    """
    if words[0] == PRESET and len(words) == 2:
        say_data(json.dumps(presets.preset(words[1]), indent=1)) if as_json else say_data(presets.text_of(words[1]), end="")
        return
    host = load_plugins()
    kind = _kind_of(words[0]) if words[0] != PRESET else PRESET
    if len(words) == 1 and kind is not None:
        there_are = _all_of(kind, host)
        say_data(json.dumps(there_are, indent=1)) if as_json else say(_listed(there_are))
        return
    provided = _find(words, host)
    say_data(json.dumps(_data(provided), indent=1)) if as_json else say(_text(provided))


def _kind_of(word: str) -> str | None:
    """Return the kind that has a name, or whose key in a recipe it is; None where there is none."""
    return next((kind for kind in KINDS if word in (kind, key_of(kind))), None)


def _all_of(kind: str, host: PluginHost) -> dict[str, str]:
    """Return what there is of a kind, or the presets, by name, each with a line that says what it does."""
    if kind == PRESET:
        return {name: presets.about(name) for name in presets.NAMES}
    docs = {provided.component.name: inspect.getdoc(provided.component) or "" for provided in host.of_kind(kind)}
    return {name: text.partition("\n")[0] for name, text in docs.items()}


def _listed(there_are: Mapping[str, str]) -> str:
    width = max(map(len, there_are), default=0)
    return "\n".join(f"{name:{width}}  {about}".rstrip() for name, about in there_are.items()) or "there is none"


def _find(words: list[str], host: PluginHost) -> Provided:
    if len(words) > 2:
        raise RecipeError("describe", [f"say NAME or KIND NAME, not {' '.join(words)}"])
    if len(words) == 2:
        word, name = words
        kind = _kind_of(word)
        if kind is None:
            raise RecipeError("describe", [f"there is no kind '{word}'{did_you_mean(word, KINDS)}"])
        return host.find(kind, name)
    kinds = sorted({p.component.kind for p in host.provided if p.component.name == words[0].rpartition("/")[2]})
    if len(kinds) > 1:
        choices = " or ".join(f"'describe {kind} {words[0]}'" for kind in kinds)
        raise RecipeError("describe", [f"'{words[0]}' is a name in {len(kinds)} kinds: say {choices}"])
    if not kinds:
        known = {*(p.component.name for p in host.provided), *KINDS, PRESET}
        raise RecipeError("describe", [f"there is no component '{words[0]}'{did_you_mean(words[0], known)}"])
    return host.find(kinds[0], words[0])


def _data(provided: Provided) -> dict[str, Any]:
    component = provided.component
    return {
        "kind": component.kind,
        "name": component.name,
        "source": str(provided.origin),
        "cites": component.cites,
        "about": inspect.getdoc(component) or "",
        "options": {
            name: {
                "description": field.description or "",
                "type": _type(field.annotation),
                "required": field.is_required(),
                "default": None if field.is_required() else _plain(field.get_default(call_default_factory=True)),
            }
            for name, field in options_of(component)
        },
    }


def _text(provided: Provided) -> str:
    data = _data(provided)
    lines = [f"{data['kind']} {data['name']}  [{data['source']}]", "", data["about"]]
    if data["cites"]:
        lines += ["", f"source: {data['cites']}"]
    if data["options"]:
        lines += ["", "options:"]
    for name, option in data["options"].items():
        default = "required" if option["required"] else json.dumps(option["default"])
        lines.append(f"  {name} = {default}    {option['type']}")
        lines.append(f"      {option['description']}")
    return "\n".join(lines)


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    return text.replace("typing.", "").replace("pathlib.", "")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
