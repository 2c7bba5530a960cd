"""Keys that a recipe gives and that nothing in it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from pdtrim_core.api.component import Component
from pdtrim_core.api.kinds import options_of
from pdtrim_core.recipe.settings import Settings
from pdtrim_core.recipe.toml_data import DEFAULTS


def unused(settings: Settings, parts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each key that differs from its default and has no effect beside the other keys."""
    return tuple(f"{key} has no effect: {why}" for key, why in _found(settings, parts))


def _found(settings: Settings, parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if parts["pruner"] is not None:
        why = "the pruner finds what decode loses, so nothing is searched"
        yield from ((f"search.{key}", why) for key in _given(settings.search))
    else:
        yield from _of_search(settings)
        yield from _of_merges(settings, parts["distiller"])
    if not parts["recovery"]:
        yield from ((f"recovery_data.{key}", "there is no recovery") for key in _given(settings.recovery_data))
    yield from _of_evaluation(settings)


def _of_search(settings: Settings) -> Iterator[tuple[str, str]]:
    search, given = settings.search, _given(settings.search)
    if "error" in given and search.exact:
        yield "search.error", 'with search.mode = "exact" no candidate is given up by likelihood'
    elif "error" in given and not settings.evaluation.early_stop:
        yield "search.error", "with evaluation.early_stop = false no candidate is given up"
    if "recovered_tokens" in given and not search.recovered:
        yield "search.recovered_tokens", "without search.recovered no recovery is estimated"
    if search.fresh and search.finalists_wanted == 1 and not search.caution_wanted:
        yield "search.fresh", "with one finalist and no caution nothing is measured again on fresh items"


def _of_merges(settings: Settings, distiller: Component) -> Iterator[tuple[str, str]]:
    if settings.prune.merges:
        return
    why = "with prune.merges = false no blocks are merged"
    if "merge_threshold" in _given(settings.prune):
        yield "prune.merge_threshold", why
    if _differs(distiller, DEFAULTS["distiller"]):
        yield "distiller", why


def _of_evaluation(settings: Settings) -> Iterator[tuple[str, str]]:
    evaluation, given = settings.evaluation, _given(settings.evaluation)
    for key in ("answer_tokens", "own_answers"):
        if key in given and not evaluation.fidelity:
            yield f"evaluation.{key}", "with evaluation.fidelity = false no answers are compared"
    if "truncate_prefill" in given and evaluation.first_token == "prefill":
        yield "evaluation.truncate_prefill", "a prefill that makes the first token runs all its layers"
    if "share_tokens" in given and not evaluation.pack_rows:
        yield "evaluation.share_tokens", "with evaluation.pack_rows = false no row has several choices"


def _given(table: BaseModel) -> list[str]:
    """Return the keys of a table that are not what they are by default: a resolved recipe spells out the others too."""
    return [name for name, field in type(table).model_fields.items() if getattr(table, name) != field.get_default()]


def _differs(component: Component, default: str) -> bool:
    return component.name != default or any(
        getattr(component, name) != field.get_default(call_default_factory=True) for name, field in options_of(type(component))
    )
