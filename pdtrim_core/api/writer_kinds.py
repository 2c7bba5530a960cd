"""The kinds of component that write what a run came to: exporters and reports."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pdtrim_core.api.component import Component
from pdtrim_core.api.export_facts import ExportFacts
from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.placement import SAY_INSTEAD

if TYPE_CHECKING:
    from pdtrim_core.model.block_model import BlockModel
    from pdtrim_core.results.outcome import Outcome
    from pdtrim_core.results.record import RunRecord


class Exporter(Component):
    """Writes something that another program uses."""

    kind = "exporter"

    carries_selections: ClassVar[bool] = False
    """Whether what it writes says which tokens of a prompt blocks of decode read; with False the core refuses such a pair."""
    carries_parts: ClassVar[bool] = False
    """Whether it can write blocks without their attention or their MLP; with False the core refuses such a plan."""

    reads_weights: ClassVar[bool] = True
    """Whether it reads weights; with True the core refuses a model some of whose weights found no room in memory."""

    def problems(self, facts: ExportFacts) -> list[str]:
        """Return why a run could not be written, a sentence each, as far as that is certain before there is a plan.

        It is called by `pdtrim-core check`, and by a run before it measures anything. `export` says the same through `check`.
        Asking for `facts.config` makes `pdtrim-core check` open the model's config.
        """
        del facts
        return []

    def check(self, facts: ExportFacts) -> None:
        """Raise `PdtrimError` with all problems; an `export` begins so, with `ExportFacts.of_run(outcome, model, out)`."""
        problems = [*self.problems(facts), *self.core_problems(facts)]
        if problems:
            raise PdtrimError("; also, ".join(problems))

    def core_problems(self, facts: ExportFacts) -> list[str]:
        """Return why what its class attributes say rules a run out; the core asks beside `problems`."""
        return [*self.selection_problems(facts), *self.part_problems(facts), *self.weight_problems(facts)]

    def weight_problems(self, facts: ExportFacts) -> list[str]:
        """Return why weights could not be read; one of `core_problems`."""
        if not facts.offloaded or not self.reads_weights:
            return []
        return [f"some weights of {facts.model} found no room where they compute, and so cannot be read: {SAY_INSTEAD}"]

    def selection_problems(self, facts: ExportFacts) -> list[str]:
        """Return why a pair that reads only some of a prompt's K/V could not be written; one of `core_problems`."""
        if not facts.selects or self.carries_selections:
            return []
        what = "decode may read only some of a prompt's K/V, and checkpoints and engines have no such selection inside a layer"
        return [f"{what}: generate with pdtrim_core.apply, which runs it, or leave out kv_selector"]

    def part_problems(self, facts: ExportFacts) -> list[str]:
        """Return why a plan that drops parts of blocks could not be written; one of `core_problems`."""
        if not facts.drops_parts or self.carries_parts:
            return []
        what = "decode may run blocks without their attention or their MLP, which this format has no word for"
        return [f"{what}: export it with checkpoints, generate with pdtrim_core.apply, or drop whole blocks alone"]

    @abstractmethod
    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write under `out` and return the paths written."""

    def remark(self, model: BlockModel) -> str:
        """Return one line about what is written that its paths do not tell, such as the number format of weights; or nothing."""
        del model
        return ""


class Report(Component):
    """Reports what a run did."""

    kind = "report"

    file: ClassVar[str] = ""
    """The name of the file that it writes into a run's folder; empty where it gives text."""

    @abstractmethod
    def report(self, outcome: Outcome, out: Path) -> str | Path:
        """Return text to print, or the path of a file written under `out`, the run's folder."""

    def page(self, records: Sequence[RunRecord], file: Path) -> Path:
        """Write one file about runs as their folders have them, finished or not; several are shown side by side. Return its path.

        `pdtrim-core report` calls it for reports that have a `file`.
        """
        raise NotImplementedError("a report that has a file must define page(records, file)")
