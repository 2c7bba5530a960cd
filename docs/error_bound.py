# ruff: noqa: INP001 - a script beside the pages
"""Measure the bound of PDTrim's appendices A and B on a tiny model: `python docs/error_bound.py` writes the figures to the page.

A block is removed from decode alone, or from both stages, and an answer is continued in two phases with a real hand-over of K/V.
Each attention head behind the removed block then has an error beside the dense model, and a bound from what changed of its q, K
and V. The page is explanation/why-stages-differ.md. `--check` compares it instead.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from pdtrim_core import Drop, Plan, Removal, apply
from pdtrim_core.api import BlockModel
from pdtrim_core.testing import tiny_llama

PAGE = Path(__file__).parent / "explanation" / "why-stages-differ.md"
REGION = re.compile(r"(?<=<!-- error bound: written by docs/error_bound.py -->\n).*?(?=<!-- end of error bound -->)", re.DOTALL)
LENGTHS = (8, 32, 128)
ANSWER = 4
PROMPTS = 3
RECORDING = "pdtrim_recording"


@dataclass(frozen=True)
class Seen:
    """What one head works with for the last token: q `[d]`, K and V `[rows, d]`."""

    q: Tensor
    K: Tensor
    V: Tensor

    @property
    def output(self) -> Tensor:
        """What the head gives, `[d]` (Eq. 12)."""
        return torch.softmax(self.K @ self.q / math.sqrt(len(self.q)), dim=0) @ self.V


@dataclass(frozen=True)
class Case:
    """The error of one head, its bound of first order (Eq. 17), and the bound with the product of the changes."""

    error: float
    first_order: float
    bound: float


@dataclass(frozen=True)
class Row:
    """Means over all heads, blocks and prompts of one length, in one way of pruning; `largest` is the largest error a bound."""

    prompt: int
    pruned: str
    cases: int
    error: float
    first_order: float
    bound: float
    largest: float


def case_of(dense: Seen, pruned: Seen) -> Case:
    """Return the error of a head and its bounds. The softmax is Lipschitz with constant 1 in the Euclidean norm."""
    dq, dK, dV = ((getattr(pruned, name) - getattr(dense, name)).norm() for name in ("q", "K", "V"))
    error = (pruned.output - dense.output).norm()
    inside, scale = dq * dense.K.norm() + dense.q.norm() * dK, dense.V.norm() / math.sqrt(len(dense.q))
    return Case(float(error), float(inside * scale + dV), float((inside + dq * dK) * scale + dV))


def heads(model: BlockModel, plan: Plan, prompt: Sequence[int], answer: Sequence[int]) -> dict[tuple[int, int], Seen]:
    """Return what each head of each block that runs works with at the last token, by block and head."""
    seen: dict[tuple[int, int], Seen] = {}
    with recording(model, seen):
        apply(plan, model).two_phase.continuation_logits(prompt, answer)
    return seen


@contextmanager
def recording(model: BlockModel, seen: dict[tuple[int, int], Seen]) -> Iterator[None]:
    """Let the model's attention note what it works with."""
    from transformers import AttentionInterface  # noqa: PLC0415 - slow to import

    plain = AttentionInterface()["sdpa"]
    blocks = {id(module): index for index, block in enumerate(model.blocks) for module in block.modules()}

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        each = query.shape[1] // key.shape[1]
        for head in range(query.shape[1]):
            q, K, V = query[0, head, -1], key[0, head // each], value[0, head // each]
            seen[blocks[id(module)], head] = Seen(q.double(), K.double(), V.double())
        return plain(module, query, key, value, *args, **kwargs)

    before = model.model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    AttentionInterface.register(RECORDING, attention)
    model.model.config._attn_implementation = RECORDING  # noqa: SLF001 - the same
    try:
        yield
    finally:
        model.model.config._attn_implementation = before  # noqa: SLF001 - the same


def cases(length: int) -> Iterator[tuple[str, Case]]:
    """Yield the cases of all heads behind each removed block, for prompts of one length, by the way of pruning."""
    model, rng = tiny_llama(), Random(length)  # noqa: S311 - reproducible draws, nothing secret
    for _ in range(PROMPTS):
        tokens = [rng.randrange(256) for _ in range(length + ANSWER)]
        prompt, answer = tokens[:length], tokens[length:]
        dense = heads(model, Plan(), prompt, answer)
        for removed in range(model.block_count - 1):
            lost = Removal([Drop(removed)])
            for name, plan in (("decode alone", Plan(decode=lost)), ("both stages", Plan.unified(lost))):
                pruned = heads(model, plan, prompt, answer)
                behind = [place for place in pruned if place[0] > removed]
                yield from ((name, case_of(dense[place], pruned[place])) for place in behind)


def measure() -> list[Row]:
    """Return the rows of the table."""
    rows = []
    for length in LENGTHS:
        found = list(cases(length))
        for name in ("decode alone", "both stages"):
            own = [case for way, case in found if way == name]
            error, first_order, bound = (
                math.fsum(getattr(case, key) for case in own) / len(own) for key in ("error", "first_order", "bound")
            )
            largest = max(case.error / case.bound for case in own)
            rows.append(Row(length, name, len(own), error, first_order, bound, largest))
    return rows


def text_of(rows: Sequence[Row]) -> str:
    """Return the rows as a table for the page."""
    head = "| prompt tokens | pruned | cases | error | bound of first order | bound | largest error / bound |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        figures = " | ".join(_short(value) for value in (row.error, row.first_order, row.bound, row.largest))
        lines.append(f"| {row.prompt} | {row.pruned} | {row.cases} | {figures} |")
    return "\n" + "\n".join(lines) + "\n\n"


def _short(value: float) -> str:
    """Return a number with two significant digits, and no exponent."""
    return f"{round(value, 1 - math.floor(math.log10(value))):.{max(0, 1 - math.floor(math.log10(value)))}f}"


def main(arguments: Sequence[str]) -> int:
    """Write the figures to the page, or compare them; return the exit code."""
    torch.set_num_threads(1)
    old = PAGE.read_text(encoding="utf-8")
    new = REGION.sub(lambda _: text_of(measure()), old)
    if list(arguments) == ["--check"]:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
