"""What the steps of a run share: random numbers by step, and ledgers that know the journal and add to it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pdtrim_core import PdtrimError, Plan
from pdtrim_core.api import hookimpl
from pdtrim_core.data.readings import Candidate, Reading
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.results.run_folder import measured_in
from tests.unit.pipeline.runs import Begin


def measure(plan: Plan, floor: float | None, started: Reading | None) -> Reading:
    del plan, floor, started
    return Reading(50.0, 0.5, (0.5,), slope=1.0)


def measured_by(plan: Plan) -> tuple[str, ...]:
    del plan
    return ("the same",)


def bests_of(context: RunContext) -> list[float | None]:
    """Return the list that gets the best so far of each candidate that listeners hear of."""
    heard: list[float | None] = []

    @hookimpl
    def pdtrim_candidate_measured(candidate: Candidate) -> None:
        heard.append(candidate.best)

    listener = SimpleNamespace(pdtrim_candidate_measured=pdtrim_candidate_measured)
    context.host.register(listener, Origin("listener", "listener"))
    return heard


def test_random_numbers_depend_on_the_seed_and_the_step_alone(begin: Begin) -> None:
    one, same, other = begin("a"), begin("b", searcher="greedy"), begin("c", seed=1)
    assert one.rng("search").random() == one.rng("search").random() == same.rng("search").random()
    assert len({one.rng("search").random(), one.rng("split").random(), other.rng("search").random()}) == 3


def test_what_a_ledger_measures_is_in_the_journal_under_its_part(begin: Begin) -> None:
    context = begin()
    heard = bests_of(context)
    context.ledger("some items", measure, by=measured_by, items=1).reading(Plan())
    context.ledger("losses", measure, by=measured_by, items=1, has_best=False).reading(Plan())
    assert {part: list(found) for part, found in measured_in(context.folder.path).items()} == {
        "some items": [Plan()],
        "losses": [Plan()],
    }
    assert heard == [50.0, None]


def test_a_ledger_knows_what_an_earlier_run_measured_under_its_part(begin: Begin) -> None:
    def never(plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        raise AssertionError

    first = begin("a")
    first.ledger("some items", measure, by=measured_by, items=1).reading(Plan())
    journal = (first.folder.path / "journal.jsonl").read_bytes()
    there = first.folder.path.parent / "b"
    there.mkdir()
    (there / "journal.jsonl").write_bytes(journal)
    again = begin("b")
    assert again.ledger("some items", never, by=measured_by, items=1).reading(Plan()).score == 50.0
    with pytest.raises(AssertionError):
        again.ledger("other items", never, by=measured_by, items=1).reading(Plan())


def test_a_run_holds_its_folder_and_gives_the_threads_back(begin: Begin) -> None:
    before = torch.get_num_threads()
    context = begin(evaluation={"threads": before + 1})
    assert torch.get_num_threads() == before + 1
    with pytest.raises(PdtrimError) as caught:
        begin()
    assert str(caught.value) == (
        f"another run is working in {context.folder.path}: wait for it, or choose another folder with --out"
    )
