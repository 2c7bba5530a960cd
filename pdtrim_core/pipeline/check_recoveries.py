"""Why the recoveries of a recipe could not do their work, as far as that is certain before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pdtrim_core.api.layer_kinds import Recovery
from pdtrim_core.api.recovery_facts import RecoveryFacts
from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.recipe.recipe import Recipe


class Fitting(NamedTuple):
    """The recoveries of a recipe that can do their work on a model, and why each of the optional others cannot."""

    recoveries: tuple[Recovery, ...]
    left_out: tuple[str, ...]


def fitting_recoveries(recipe: Recipe, facts: RecoveryFacts, positions: int | None) -> Fitting:
    """Return those of a recipe's recoveries that can do their work, on such a model and from such texts.

    `positions` are those that the model has learned; None where it computes them. Raises `PdtrimError` with all that is certain
    to fail of what is not optional.
    """
    problems = {recovery: list(_of_model(recovery, recipe, facts)) for recovery in recipe.recoveries}
    able = [recovery for recovery in recipe.recoveries if not problems[recovery]]
    of_texts = list(_of_texts(recipe, able, facts, positions)) if able else []
    certain = dict.fromkeys(
        problem for recovery in recipe.recoveries if not recovery.optional for problem in (problems[recovery] or of_texts)
    )
    if certain:
        raise PdtrimError("; also, ".join(certain))
    left_out = [f"{problem}: it is left out" for recovery in recipe.recoveries for problem in problems[recovery]]
    return Fitting(() if of_texts else tuple(able), (*left_out, *(f"{problem}; no recovery is done" for problem in of_texts)))


def _of_model(recovery: Recovery, recipe: Recipe, facts: RecoveryFacts) -> Iterator[str]:
    with blame(recipe.host.label_of(recovery)):
        yield from (f"recovery '{recovery.name}': {problem}" for problem in recovery.problems(facts))


def _of_texts(recipe: Recipe, recoveries: Sequence[Recovery], facts: RecoveryFacts, positions: int | None) -> Iterator[str]:
    data = recipe.settings.recovery_data
    if positions is not None and positions < data.text_tokens:
        yield (
            f"recovery_data: texts have {data.text_tokens} tokens (prompt_tokens + answer_tokens), and {facts.model} has learned "
            f"{positions} positions: make them shorter"
        )
    texts = max(math.ceil(recovery.tokens / data.text_tokens) for recovery in recoveries)
    of_each = math.ceil(texts / len(data.sources))
    for source in dict.fromkeys(data.files):
        path = Path(source)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            yield f"recovery_data.sources: {source} {what}: name a .jsonl or text file, or say generated, or calibration"
        # Each text has a token that opens it, and no other token is shorter than a byte.
        elif path.stat().st_size < of_each * (data.text_tokens - 1):
            yield (
                f"recovery_data.sources: {source} has {path.stat().st_size:,} bytes, which are not {of_each:,} texts of "
                f"{data.text_tokens} tokens: give it more text, or let recoveries take fewer tokens"
            )
