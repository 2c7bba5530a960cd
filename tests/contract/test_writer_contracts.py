"""Broken components are caught by the exporter and report contract, each by the test that is meant for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import BlockModel, Exporter, ExportFacts, Outcome, Report
from pdtrim_core.testing import (
    ExporterContract,
    ReportContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Failing = Callable[..., set[str]]
    from collections.abc import Iterable
    from pathlib import Path


class Notice(Exporter):
    """A file that names the model."""

    name = "notice"

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        path = out / "notice.txt"
        path.write_text(f"pruned from {outcome.model}\n")
        yield path


class WritesBeside(Notice):
    """Writes where it was not asked to."""

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        yield from super().export(outcome, model, out.parent)


class PromisesAFile(Notice):
    """Returns a path and writes nothing there."""

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        yield out / "notice.txt"


class KeepsAFileToItself(Notice):
    """Writes a file that it does not tell of."""

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        (out / "secret.txt").write_text("")
        yield from super().export(outcome, model, out)


class OnlyOnce(Notice):
    """Makes a folder that must not be there yet."""

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        (out / "notices").mkdir()
        yield from super().export(outcome, model, out / "notices")


class PrunesForGood(Notice):
    """Takes a block out of the model that it was given."""

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        model.blocks[0].register_forward_hook(lambda module, args, output: output * 2)
        yield from super().export(outcome, model, out)


class LeavesItTrainable(Notice):
    """Hands the model on as one to be trained."""

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        model.model.requires_grad_(requires_grad=True)
        yield from super().export(outcome, model, out)


class RefusesTooLate(Notice):
    """Writes nothing of a run without a plan, and says so only when it writes."""

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        outcome.plan  # noqa: B018
        yield from super().export(outcome, model, out)


class RefusesOnlyBefore(Notice):
    """Refuses a run without a plan, and writes it all the same."""

    def problems(self, facts: ExportFacts) -> list[str]:
        return ["there is no plan"] if facts.replaced else []


class RefusesEverything(Notice):
    """Has a problem with what it writes."""

    def problems(self, facts: ExportFacts) -> list[str]:
        return [f"{facts.model} is not to its taste"]


def test_a_good_exporter_passes_every_test(failing: Failing) -> None:
    assert failing(ExporterContract, Notice) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (WritesBeside, "test_it_returns_what_it_wrote_under_the_folder"),
        (PromisesAFile, "test_it_returns_what_it_wrote_under_the_folder"),
        (KeepsAFileToItself, "test_it_returns_what_it_wrote_under_the_folder"),
        (OnlyOnce, "test_exporting_twice_gives_the_same_files"),
        (PrunesForGood, "test_the_model_is_left_as_it_was"),
        (LeavesItTrainable, "test_the_model_is_left_as_it_was"),
        (RefusesTooLate, "test_what_it_refuses_it_says_before_a_run_too"),
        (RefusesOnlyBefore, "test_what_it_refuses_it_says_before_a_run_too"),
        (RefusesEverything, "test_what_it_refuses_it_says_before_a_run_too"),
    ],
)
def test_a_broken_exporter_is_caught(component: type[Exporter], test: str, failing: Failing) -> None:
    assert failing(ExporterContract, component, test) == {test}


class OneLine(Report):
    """One line about the plan."""

    name = "one-line"

    def report(self, outcome: Outcome, out: Path) -> str | Path:
        return f"{outcome.model}: {outcome.plan.plan}"


class PrettyArrows(OneLine):
    """Draws with signs that not every terminal has."""

    def report(self, outcome: Outcome, out: Path) -> str | Path:
        return f"{outcome.model} \N{RIGHTWARDS ARROW} {outcome.plan.plan}"


class AFileElsewhere(OneLine):
    """Writes beside the folder."""

    def report(self, outcome: Outcome, out: Path) -> str | Path:
        path = out.parent / "report.txt"
        path.write_text("done")
        return path


class SaysNothing(OneLine):
    """Returns nothing."""

    def report(self, outcome: Outcome, out: Path) -> str | Path:
        return None  # type: ignore[return-value]


class LooksAtTheObject(OneLine):
    """Tells which object it was given."""

    def report(self, outcome: Outcome, out: Path) -> str | Path:
        return f"outcome at {id(outcome)}"


def test_a_good_report_passes_every_test(failing: Failing) -> None:
    assert failing(ReportContract, OneLine) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (PrettyArrows, "test_it_gives_text_in_ascii_or_a_file_under_the_folder"),
        (AFileElsewhere, "test_it_gives_text_in_ascii_or_a_file_under_the_folder"),
        (SaysNothing, "test_it_gives_text_in_ascii_or_a_file_under_the_folder"),
        (LooksAtTheObject, "test_it_tells_the_same_of_an_outcome_read_from_its_file"),
    ],
)
def test_a_broken_report_is_caught(component: type[Report], test: str, failing: Failing) -> None:
    assert failing(ReportContract, component, test) == {test}
