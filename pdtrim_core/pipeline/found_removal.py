"""What decode loses, as a search or a pruner found it: the one interface that later steps of a run use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.data.scores import Scores
from pdtrim_core.execution.staged_model import Replacements
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.measurements import Bench
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import Environment, MergeResult, Sets


@dataclass(frozen=True, kw_only=True)
class FoundRemoval(ABC):
    """A removal from decode, with what measures it and what is known of how it was found.

    `plan` is what the splitter starts from, `costs` tells it what plans cost, `bench` measures from here on, `modules` are the
    replacement modules. `environment` tells what was trained on, too. `replaced` is the whole other model of a pruner that gave
    one: there is then no plan but the dense one.
    """

    plan: Plan
    costs: CostModel
    bench: Bench
    modules: Replacements
    environment: Environment
    scores: Scores
    sets: Sets
    replaced: BlockModel | None = None

    @abstractmethod
    def merge_results(self, plan: Plan) -> tuple[MergeResult, ...]:
        """Return how each trained merge came out, by its blocks, and whether the final plan has it."""

    @abstractmethod
    def save(self, plan: Plan, out: Path) -> None:
        """Write what a plan needs beside it, such as its modules, into the folder of the run."""
