"""The kinds of component that find what the stages lose: scorers, searchers, pruners, distillers and splitters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pdtrim_core.api.component import Component
from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.prune_facts import PruneFacts
from pdtrim_core.api.requests import Requests
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.api.stage_facts import StageFacts
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.elements import Removal, ShrunkPart
from pdtrim_core.plan.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api.distillation import Student, TeacherBatches
    from pdtrim_core.api.prune_context import PruneContext
    from pdtrim_core.api.pruned import Pruned
    from pdtrim_core.api.score_context import ScoreContext
    from pdtrim_core.model.block_model import BlockModel


class Scorer(Component):
    """Says how safe it is to remove each block and to merge each pair, before anything is measured."""

    kind = "scorer"

    needs_gradients: ClassVar[bool] = False
    """Whether it takes gradients: `context.loss` is then there, and hidden states may be differentiated."""

    @abstractmethod
    def score(self, context: ScoreContext) -> Scores:
        """Return one score a block and one a pair (or no pair scores); higher is safer to remove.

        Called once a run, on the dense model. The model must be left as it is.
        """


class MakesPlans(Component):
    """A searcher or a splitter: its plans may have a ceiling on what prefill costs."""

    @property
    def prefill_ceiling(self) -> float | None:
        """What prefill costs at most in the plans of this component, as a share of the dense model's; None without a ceiling.

        `pdtrim-core check --budget` says as much prefill as which unified plan that is.
        """
        return None

    def problems(self, facts: StageFacts) -> list[str]:
        """Return why its options are beyond the model and the budget, a sentence each, as far as that is certain without weights.

        It is called by `pdtrim-core check --budget`, and by a run before it measures anything. It must be quick.
        """
        del facts
        return []


class Searcher(MakesPlans):
    """Finds what decode loses: requests the scores of plans (0 to 100, higher is better)."""

    kind = "searcher"

    staged: ClassVar[bool] = False
    """Whether it finds what prefill loses, too: a recipe without a `splitter` then gets `keep-search-result`, not the default."""
    parts: ClassVar[bool] = False
    """Whether it also searches spaces of parts (`space.parts`), whose elements have unlike sizes: see `SearchSpace.fits`."""

    @abstractmethod
    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Measure plans whose decode is of full size (`space.is_full`), `space.count` blocks; the best one measured is taken.

        All randomness comes from `rng`. Measuring, remembering and the best so far are the core's work.
        """

    def steps(self, space: SearchSpace) -> int | None:
        """Return about how many measurements a search takes, for the preview; None where that is unknown."""
        del space
        return None


class Pruner(Component):
    """Another method that finds what decode loses; it replaces scorer, searcher and merges."""

    kind = "pruner"

    replaces_model: ClassVar[bool] = False
    """Whether it returns a whole other model, `Pruned(replaced=...)`, and no removal: a recipe then has nothing to split."""

    @property
    def narrows(self) -> frozenset[ShrunkPart]:
        """The parts of blocks that may lose K/V heads ("attention"), channels ("mlp") or experts; empty where whole blocks go.

        It is for exporters, which say before a run what they could not write after it. They are told of a part that is the only
        one: of two, the plan found may narrow either.
        """
        return frozenset()

    @property
    def uniform(self) -> bool:
        """Whether blocks that are narrowed may all have one shape in the end, which a config of their family can describe.

        False where that is certain not to be; blocks that may differ may also come out alike.
        """
        return True

    @property
    def drops_parts(self) -> bool:
        """Whether it may drop the attention or the MLP of a block alone; for exporters, as `narrows` is."""
        return False

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why a budget or a model is beyond the method, a sentence each, as far as that is certain without the weights.

        It is called by `pdtrim-core check --budget`, and by a run before it measures anything. It must be quick.
        """
        del facts
        return []

    def check(self, facts: PruneFacts) -> None:
        """Raise `PdtrimError` with all problems; a `prune` that has some begins so, with `context.facts`."""
        problems = self.problems(facts)
        if problems:
            raise PdtrimError("; also, ".join(problems))

    @abstractmethod
    def prune(self, context: PruneContext) -> Pruned:
        """Return what decode loses, or what replaces the model, as near to the budget as the method's steps allow.

        The dense model must be left as it is. Raises `PdtrimError` for a budget or a model that the method cannot do.
        """

    def restore(self, model: BlockModel, weights: Mapping[str, Tensor]) -> BlockModel:
        """Return the replaced model again: `weights` are its own parameters by name, those shared with the dense one left out.

        Only called for pruners with `replaces_model`. The dense model must be left as it is.
        """
        raise NotImplementedError("a pruner with replaces_model must define restore(model, weights)")


class Distiller(Component):
    """Trains one block to replace two neighbours."""

    kind = "distiller"

    kv: Literal["shadow", "frozen"] = Field(
        "shadow",
        description="shadow: prefill also computes the merged block's K/V; frozen: they stay those of the pair's first block",
    )
    tokens: int = Field(20_000, gt=0, description="training tokens")
    train: Literal["before-search", "after-search"] = Field(
        "before-search",
        description="before-search: the search measures trained merges; after-search: only those it chose are trained, and the "
        "search measures a pair with the block that training starts from",
    )

    @abstractmethod
    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        """Train `student.parameters()` in place and yield the mean loss of each epoch.

        `batches` may be gone through again and again. The dense model must be left as it is.
        """


class StageSplitter(MakesPlans):
    """Decides what of a removal prefill keeps: measures trial plans with the same decode."""

    kind = "splitter"

    needs_model: ClassVar[bool] = False
    """Whether it needs the model itself, to time it: `costs.model` is then the dense one."""
    sees_routers: ClassVar[bool] = False
    """Whether it looks at what the routers of a mixture of experts choose in prefill: `costs.look_at_prompts` is then there."""

    def plan_for(self, decode: Removal, costs: CostModel) -> Plan | None:
        """Return the plan that a split of this removal would end with, where that is told without measuring; else None.

        A search then looks for the decode that is best under this prefill (`search.prefill`). On its way it asks for removals of
        fewer blocks, too.
        """
        del decode, costs
        return None

    @abstractmethod
    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure trial plans and return the final one. Its decode is that of `plan`, which loses the same in both stages.

        The final plan is `plan` itself or one that was measured.
        """

    def steps(self, plan: Plan) -> int | None:
        """Return about how many measurements a split of `plan` takes, for the preview; None where that is unknown."""
        del plan
        return None
