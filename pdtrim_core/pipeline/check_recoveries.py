"""Why the recoveries of a recipe could not do their work, as far as that is certain before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pdtrim_core.api.recovery_facts import RecoveryFacts
from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.recipe.recipe import Recipe


def check_recoveries(recipe: Recipe, facts: RecoveryFacts, positions: int | None) -> None:
    """Raise `PdtrimError` with all that is certain to fail: a recovery on such a model, and the texts that it is to learn from.

    `positions` are those that the model has learned; None where it computes them.
    """
    if not recipe.recoveries:
        return
    problems = [*_of_recoveries(recipe, facts), *_of_texts(recipe, facts, positions)]
    if problems:
        raise PdtrimError("; also, ".join(problems))


def _of_recoveries(recipe: Recipe, facts: RecoveryFacts) -> Iterator[str]:
    found: dict[str, None] = {}
    for recovery in recipe.recoveries:
        with blame(recipe.host.label_of(recovery)):
            found |= dict.fromkeys(f"recovery '{recovery.name}': {problem}" for problem in recovery.problems(facts))
    yield from found


def _of_texts(recipe: Recipe, facts: RecoveryFacts, positions: int | None) -> Iterator[str]:
    data = recipe.settings.recovery_data
    if positions is not None and positions < data.text_tokens:
        yield (
            f"recovery_data: texts have {data.text_tokens} tokens (prompt_tokens + answer_tokens), and {facts.model} has learned "
            f"{positions} positions: make them shorter"
        )
    texts = max(math.ceil(recovery.tokens / data.text_tokens) for recovery in recipe.recoveries)
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
