"""The kinds of component, one abstract class each; those that give layers other numbers are in `layer_kinds`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr

from pdtrim_core.api.component import Component
from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.export_facts import ExportFacts
from pdtrim_core.api.kv_selector import KvSelector
from pdtrim_core.api.layer_kinds import Quantizer, Recovery
from pdtrim_core.api.prune_facts import PruneFacts
from pdtrim_core.api.requests import Requests, Staged
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.api.stage_facts import StageFacts
from pdtrim_core.data.items import Item, Sample
from pdtrim_core.data.scores import Scores
from pdtrim_core.data.texts import python_reference
from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.paths import as_text
from pdtrim_core.model.placement import Placement, checked_placement
from pdtrim_core.plan.elements import Removal, ShrunkPart
from pdtrim_core.plan.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api.distillation import Student, TeacherBatches
    from pdtrim_core.api.prune_context import PruneContext
    from pdtrim_core.api.pruned import Pruned
    from pdtrim_core.api.score_context import ScoreContext
    from pdtrim_core.model.block_model import BlockModel
    from pdtrim_core.model.mapped_weights import MappedWeights
    from pdtrim_core.results.outcome import Outcome
    from pdtrim_core.results.record import RunRecord


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


class Objective(Component):
    """Values a plan, item by item, in a unit of its own; the core averages the values and turns the mean into a score."""

    kind = "objective"

    unit: ClassVar[str] = ""
    best_item: ClassVar[float | None] = None
    """The best value that an item can have, so that the core may stop early; None where there is no bound."""

    @property
    def answer_length(self) -> int:
        """The length, in tokens at most, of the dense model's own answers that items are to have as `Item.dense_answer`.

        They are greedy answers to the right choice's prompt. With 0, none are made.
        """
        return 0

    @abstractmethod
    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        """Return one value an item, each the same whatever other items are beside it."""

    @abstractmethod
    def score(self, mean: float) -> float:
        """Return the score of a mean over items, 0 to 100; higher is better.

        It is also called slightly beyond the means that can occur, for its slope; and, without a `best_item`, as far on the
        better side as the mean of a few items leaves open.
        """

    def weight(self, item: Item) -> float:
        """Return the item's weight in the mean, above 0."""
        del item
        return 1.0

    def problems(self, items: Sequence[Item]) -> list[str]:
        """Return why these items cannot be measured by this objective."""
        del items
        return []


class CalibrationSource(Component):
    """Gives the samples that a run measures on, and held-out ones to evaluate on at the end."""

    kind = "calibration"

    samples: int = Field(256, gt=0, description="number of items to measure on (the paper: 256)")
    held_out: int = Field(64, ge=0, description="number of held-out items to evaluate on at the end")

    @abstractmethod
    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        """Return so many samples drawn with `rng`. Where there are no more, return fewer, or raise `PdtrimError`."""

    def training_texts(self, rng: Random) -> Iterable[str]:
        """Return texts to train merges on, disjoint from what measures; the prose of the Python reference unless overridden."""
        texts = python_reference()
        rng.shuffle(texts)
        return texts

    def training_prompts(self, rng: Random) -> Iterable[str]:
        """Return prompts that the dense model may answer, so that a recovery learns from its answers; none unless overridden.

        Those that also measure may be among them: they are left out.
        """
        del rng
        return ()

    def draw_held_out(self, count: int, rng: Random) -> Iterable[Sample] | None:
        """Return samples of another origin to hold out; None to take them from a larger `draw`."""
        del count, rng
        return None


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model of transformers with its tokenizer, and what is known of its origin.

    `dtypes` has the number formats that exports keep, as torch names them: under "" that of most tensors, and under the names
    of others theirs, with `*` in place of numbers. Without it exports have the format that the model is in. `mapped` are the
    weights that stay in their files, for `placement = "stream"`.
    """

    model: Any
    tokenizer: Any
    name: str
    license: str = ""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    mapped: MappedWeights | None = None


DType = Literal["auto", "float32", "bfloat16", "float16"]


class ModelSource(Component):
    """Opens a model from one sort of place; the first source that accepts a path opens it."""

    kind = "model"

    path: Annotated[str, BeforeValidator(as_text)] = Field(description="hub id, folder, GGUF file, or package:NAME")
    dtype: DType = Field("auto", description="number format of the weights; auto is float32 on CPU, else the checkpoint's")
    placement: Annotated[Placement, BeforeValidator(checked_placement)] = Field(
        "auto",
        description="where the weights are: auto takes one accelerator if there is one and it has room, and else several; "
        "balanced spreads them over all; stream leaves them in their files, and one block at a time is in memory; a device as "
        "torch names it; or a table of the memory that devices may give",
    )

    _told: Callable[[str, float], None] | None = PrivateAttr(default=None)

    @classmethod
    @abstractmethod
    def accepts(cls, path: str) -> bool:
        """Tell whether a path is one of this source. Called without loading anything."""

    @abstractmethod
    def open(self) -> LoadedModel:
        """Load weights and tokenizer. Raises `PdtrimError` that names the path and what is wrong with it."""

    def tell(self, what: str, share: float) -> None:
        """Tell, from within `open`, what takes long and the share of it that is done: `self.tell("download", 0.4)`.

        A run shows it with the time left.
        """
        if self._told is not None:
            self._told(what, share)

    def telling(self, told: Callable[[str, float], None]) -> Self:
        """Return the same source, whose `open` tells `told` what takes long, if it tells at all."""
        source = self.model_copy()
        source._told = told  # noqa: SLF001 - of the same class
        return source

    @abstractmethod
    def open_config(self) -> Any:
        """Return the model's transformers config, without weights."""

    def files(self) -> list[Path] | None:
        """Return the files on this machine that `open` reads; None where there are none yet, or the source cannot tell.

        A finished run is not carried out again while they are as they were. Without them its model is opened to see that.
        """
        return None

    def check_weights(self) -> bool | None:
        """Raise `PdtrimError` where the stored tensors are not those of the config, by their names and shapes alone.

        Return False for a config that stands alone, of a model that is only planned: sizes can be told, and `open` will fail.
        `open` must refuse what this refuses. A source that cannot tell without reading the weights leaves this as it is.
        """

    def block_count(self) -> int | None:
        """Return how many blocks the model has, as its files say within milliseconds; None where that is not known.

        `pdtrim-core check` asks it of every recipe, and opens the config only of one that asks for too many blocks.
        """
        return None

    def is_odd(self) -> bool:
        """Tell within milliseconds whether the model's files contradict each other, or may be of a model that `open` refuses.

        Then `pdtrim-core check` opens the config, to say what is wrong, if anything is.
        """
        return False

    def first_time(self) -> str:
        """Return what `open` is going to do this once, and where it keeps the result; nothing where it just reads.

        A run says it before it opens the model.
        """
        return ""


class Exporter(Component):
    """Writes something that another program uses."""

    kind = "exporter"

    carries_selections: ClassVar[bool] = False
    """Whether what it writes says which tokens of a prompt blocks of decode read; with False the core refuses such a pair."""
    carries_parts: ClassVar[bool] = False
    """Whether it can write blocks without their attention or their MLP; with False the core refuses such a plan."""

    def problems(self, facts: ExportFacts) -> list[str]:
        """Return why a run could not be written, a sentence each, as far as that is certain before there is a plan.

        It is called by `pdtrim-core check`, and by a run before it measures anything. `export` says the same through `check`.
        Asking for `facts.config` makes `pdtrim-core check` open the model's config.
        """
        del facts
        return []

    def check(self, facts: ExportFacts) -> None:
        """Raise `PdtrimError` with all problems; an `export` begins so, with `ExportFacts.of_run(outcome, model, out)`."""
        problems = [*self.problems(facts), *self.selection_problems(facts), *self.part_problems(facts)]
        if problems:
            raise PdtrimError("; also, ".join(problems))

    def selection_problems(self, facts: ExportFacts) -> list[str]:
        """Return why a pair that reads only some of a prompt's K/V could not be written; the core asks beside `problems`."""
        if not facts.selects or self.carries_selections:
            return []
        what = "decode may read only some of a prompt's K/V, and checkpoints and engines have no such selection inside a layer"
        return [f"{what}: generate with pdtrim_core.apply, which runs it, or leave out kv_selector"]

    def part_problems(self, facts: ExportFacts) -> list[str]:
        """Return why a plan that drops parts of blocks could not be written; the core asks beside `problems`."""
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


KINDS: dict[str, type[Component]] = {
    cls.kind: cls
    for cls in (
        Scorer,
        Searcher,
        Pruner,
        Distiller,
        StageSplitter,
        Recovery,
        Quantizer,
        KvSelector,
        Objective,
        CalibrationSource,
        ModelSource,
        Exporter,
        Report,
    )
}
"""The kinds of component by the recipe key that names them, but for those in `TABLES`."""
TABLES: Mapping[str, str] = {"quantizer": "formats"}
"""The recipe keys of kinds that have another one than their name."""


def key_of(kind: str) -> str:
    """Return the recipe key that names the components of a kind."""
    return TABLES.get(kind, kind)


def options_of(component: type[Component]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the pydantic field of each option of a component."""
    yield from component.model_fields.items()
