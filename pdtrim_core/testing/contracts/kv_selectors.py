"""What every selector of K/V must hold to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from torch import Tensor

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.api.kv_selector import KvSelector
from pdtrim_core.api.selection_context import SelectionContext
from pdtrim_core.api.selection_facts import SelectionFacts
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.run_fidelity import RunFidelity
from pdtrim_core.plan.elements import Drop, KvOnly, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.selections import Selection
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contexts import selection_context
from pdtrim_core.testing.contracts.shared import check_component, contract, no_global_randomness
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import tiny_llama

PLANS = {
    "dense": Plan(),
    "decode": Plan(decode=Removal([Drop(1), Drop(4)])),
    "prefill": Plan(Removal([Drop(2), KvOnly(4), KvOnly(5)]), Removal([Drop(2)])),
}
"""Plans in which nothing is lost, decode alone loses something, and prefill too."""
TOKENS = 240
"""Tokens of a text, of which the first half is its prompt."""
CLOSE = 1e-5
"""What the same computation may differ by from one time to the next, relative."""


@contract
class KvSelectorContract:
    """What every selector of K/V must hold to; `options` must be such as go with prompts of 120 tokens."""

    component: ClassVar[type[KvSelector]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, KvSelector, self.options)

    @pytest.mark.parametrize("plan", list(PLANS))
    def test_it_selects_for_blocks_of_decode(self, plan: str) -> None:
        """Each once at most, whatever the pair lost."""
        context = _context(PLANS[plan])
        found = list(self._made.select(context))
        assert all(isinstance(one, Selection) for one in found), "a selection is an Edges or a FirstOnly"
        strange = [one.block for one in found if one.block not in context.blocks]
        assert not strange, f"decode runs no block {strange[0]}: it has {', '.join(map(str, context.blocks))}"
        assert PLANS[plan].selecting(found).selections == tuple(sorted(found, key=lambda one: one.block))

    def test_the_same_pair_gives_the_same(self) -> None:
        """It draws nothing, and remembers nothing of another pair."""
        with no_global_randomness():
            first = list(self._made.select(_context(PLANS["dense"])))
            made = self._made
            made.select(_context(PLANS["decode"]))
            assert list(made.select(_context(PLANS["dense"]))) == first, "the same pair got other selections the second time"

    def test_the_model_is_left_as_it_was(self) -> None:
        """Weights, hooks and settings, and what it computes."""
        context = _context(PLANS["prefill"])
        with left_as_it_was(context.model):
            self._made.select(context)

    def test_it_says_whether_it_asks_for_attention(self) -> None:
        """With `needs_attention` a model that shows none is refused before a run measures anything."""
        asked: list[int] = []
        context = _Watched(**vars(_context(PLANS["dense"])), asked=asked)
        self._made.select(context)
        assert self.component.needs_attention or not asked, "it asks for masses: set needs_attention = True"

    def test_it_says_whether_it_selects(self) -> None:
        """With `selects = False` exporters that have no place for selections are let through."""
        found = list(self._made.select(_context(PLANS["dense"])))
        assert self.component.selects or not found, "it selected something: leave selects = True"

    def test_prompts_that_it_does_not_refuse_it_can_do(self) -> None:
        """Short ones too: what cannot be is said by `problems`, before a run measures anything."""
        for tokens in (TOKENS, 60, 4):
            context = _context(PLANS["dense"], tokens)
            problems = self._made.problems(context.facts)
            assert not (problems and tokens == TOKENS), f"it refuses prompts of {TOKENS // 2} tokens: {problems[0]}"
            if not problems:
                assert PLANS["dense"].selecting(self._made.select(context)) is not None
        none = self._made.problems(SelectionFacts("tiny", "none", ()))
        assert all(isinstance(problem, str) for problem in none), "a problem is a sentence"

    def test_a_run_measures_what_its_plan_says(self, tmp_path: Path) -> None:
        """A whole recipe: search, split, select, measure; opened again, the pair is as far from the dense model."""
        data = {
            "model": {"path": "tiny:llama"},
            "prune": {"blocks": 1, "merges": False},
            "recovery": "none",
            "calibration": {"use": "text", "words": 40, "samples": 3, "held_out": 2},
            "searcher": "greedy",
            "splitter": "dense-prefill",
            "kv_selector": {"use": f"contract/{self.component.name}", **self.options},
            "report": [],
            "evaluation": {"threads": 1, "answer_tokens": 3},
        }
        host = tiny_host()
        # A plain file's selector is not installed.
        host.register(SimpleNamespace(pdtrim_kv_selectors=hookimpl(lambda: [self.component])), Origin("contract", "contract"))
        outcome = pipeline.run(Recipe.from_data(data, where="kv.toml", out=tmp_path / "run", host=host), host)
        assert outcome.fidelity is not None
        (again,) = RunFidelity(load_run(tmp_path / "run", host)).results(("staged",), fresh=True)
        measured = outcome.fidelity.variants["staged"]["kl"].value
        assert again.metrics["kl"].value == pytest.approx(measured, rel=CLOSE, abs=CLOSE)
        assert ("unselected" in outcome.fidelity.variants) == outcome.selected

    @property
    def _made(self) -> KvSelector:
        return self.component(**self.options)


@dataclass(frozen=True)
class _Watched(SelectionContext):
    """A context that remembers how often it was asked for attention."""

    asked: list[int] = field(default_factory=list)

    def masses(self, selections: Sequence[Selection], *, texts: Sequence[int] | None = None) -> list[Tensor]:
        """Return what it is asked for."""
        self.asked.append(len(selections))
        return super().masses(selections, texts=texts)


def _context(plan: Plan, tokens: int = TOKENS) -> SelectionContext:
    rng = Random(0)  # noqa: S311 - reproducible texts, nothing secret
    texts = [[rng.randrange(256) for _ in range(tokens)] for _ in range(3)]
    return replace(selection_context(tiny_llama(), plan, texts), calibration="contract")
