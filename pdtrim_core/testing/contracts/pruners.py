"""What every pruner must hold to."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.api.model_source import LoadedModel
from pdtrim_core.api.plan_kinds import Pruner
from pdtrim_core.api.prune_context import PruneContext
from pdtrim_core.api.pruned import Pruned
from pdtrim_core.data.items import Item, Sample, encode
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.host.host import Origin
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import read_replaced, save_replaced
from pdtrim_core.pipeline import pipeline
from pdtrim_core.plan.elements import Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contexts import prune_context
from pdtrim_core.testing.contracts.shared import check_component, contract, no_global_randomness, rng_of
from pdtrim_core.testing.contracts.small_run import TinyModel, tiny_host
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import ByteTokenizer, tiny_config, tiny_model, tiny_transformers
from pdtrim_core.testing.rounding import ROUNDING, units_apart

SAME_LOGPROB = 1e-3
"""Nats a choice: a model in another basis rounds differently in float32, by about 1e-5 a token."""
HEADS: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
"""Of six blocks with these heads, two can go in heads alone, in MLP channels alone, or as whole blocks."""
OF_CONTRACT = "tiny-model-of-the-contract"
SEQUENCES = [tuple(rng_of(number).choices(range(256), k=24)) for number in range(6)]


@contract
class PrunerContract:
    """What every pruner must hold to.

    A pruner of experts says a `family` that has some, and what there is to change in the config of its tiny model.
    """

    component: ClassVar[type[Pruner]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}
    family: ClassVar[str] = "llama"
    settings: ClassVar[dict[str, Any]] = HEADS

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Pruner, self.options)

    @pytest.mark.parametrize("blocks", [1, 2])
    def test_what_it_removes_is_near_the_budget(self, blocks: int) -> None:
        """So many whole blocks, or within half a block of the parameters that they hold."""
        model = self._model()
        gone = model.sizes.parameters - self._prune(model, blocks).kept_parameters(model.sizes)
        block = model.sizes.blocks[0].parameters
        assert abs(gone - blocks * block) <= block / 2

    def test_nothing_goes_where_nothing_is_asked_for(self) -> None:
        """A budget of zero; a replaced model computes what the dense one does."""
        model = self._model()
        pruned = self._prune(model, 0)
        assert len(pruned.removal) == 0
        if pruned.replaced is not None:
            dense, other = (StagedModel(PrefixCache(of), Plan()).loglikelihoods(_items()) for of in (model, pruned.replaced))
            gaps = [abs(a - b) for one, two in zip(dense, other, strict=True) for a, b in zip(one, two, strict=True)]
            assert max(gaps) < SAME_LOGPROB, "the replaced model is another function though nothing was to go"

    def test_its_plan_can_be_measured_and_refined(self) -> None:
        """Both stages as decode, and a prefill that keeps each single element; a replaced model as a dense one."""
        model = self._model()
        pruned = self._prune(model, 2)
        if pruned.replaced is not None:
            values = StagedModel(PrefixCache(pruned.replaced), Plan()).loglikelihoods(_items())
            assert all(math.isfinite(value) for of_item in values for value in of_item)
        start = Plan.unified(pruned.removal)
        kept_in_prefill = [Plan(pruned.removal.without(element), pruned.removal) for element in pruned.removal]
        prefix_cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
        for plan in (start, *kept_in_prefill):
            StagedModel(prefix_cache, plan, pruned.modules)

    def test_the_same_model_and_tokens_give_the_same_removal(self) -> None:
        """No randomness but `rng`, no memory of an earlier call."""
        with no_global_randomness():
            first, again = (self._prune(self._model(), 2) for _ in range(2))
        assert first.removal == again.removal
        if first.replaced is not None and again.replaced is not None:
            assert first.replaced.fingerprint == again.replaced.fingerprint

    def test_the_shares_that_it_tells_of_its_work_rise_to_one_at_most(self) -> None:
        """What people see as time left comes from them; a pruner need not tell any."""
        model, shares = self._model(), list[float]()
        self.component(**self.options).prune(replace(_context(model, 2), reached=shares.append))
        assert shares == sorted(shares)
        assert all(0 <= share <= 1 for share in shares)

    def test_the_model_is_left_as_it_was(self) -> None:
        """See `left_as_it_was`: weights, gradients, hooks, modes, attributes and settings."""
        model = self._model()
        with left_as_it_was(model):
            self._prune(model, 2)

    @pytest.mark.parametrize("family", ["llama", "phi3"])
    def test_what_it_calls_beyond_it_is_refused(self, family: str) -> None:
        """From nothing to all blocks but one, and with fused projections: what `problems` says before a run, `prune` raises."""
        model = tiny_model(family)
        for blocks in (0, 1, model.block_count - 1):
            context = _context(model, blocks)
            if self.component(**self.options).problems(context.facts):
                with pytest.raises(PdtrimError):
                    self.component(**self.options).prune(context)

    def test_shrinks_name_units_that_the_blocks_have(self) -> None:
        """The narrowed blocks can be cut."""
        model = self._model()
        pruned = self._prune(model, 2)
        for block in {element.block for element in pruned.removal if isinstance(element, Shrink)}:
            model.narrowed(pruned.removal.shrinks_at(block), pruned.modules)

    def test_a_replaced_model_can_be_read_again(self, tmp_path: Path) -> None:
        """Only from its own weights; a pruner that returns a removal has nothing to restore."""
        model = self._model()
        replaced = self._prune(model, 2).replaced
        if replaced is not None:
            save_replaced(replaced, model, tmp_path)
            again = self.component(**self.options).restore(model, read_replaced(tmp_path))
            assert again.fingerprint == replaced.fingerprint
            wanted, found = (
                torch.tensor(sum(StagedModel(PrefixCache(of), Plan()).loglikelihoods(_items()), ())) for of in (replaced, again)
            )
            # Its weights may lie in memory in another way, in which products get other kernels.
            assert units_apart(found, wanted) <= ROUNDING

    def test_a_run_refines_its_removal(self, tmp_path: Path) -> None:
        """A whole recipe: prune, split by gains (but a replaced model), measure."""
        data = {
            "model": {"path": OF_CONTRACT},
            "pruner": {"use": f"contract/{self.component.name}", **self.options},
            "recovery": "none",
            "prune": {"blocks": 2},
            "calibration": {"use": "mini", "samples": 8, "held_out": 4},
            "objective": "margin",
            "evaluation": {"threads": 1, "fidelity": False},
            **({} if self.component.replaces_model else {"splitter": {"use": "gain", "threshold": 0}}),
        }
        host = tiny_host()
        # A plain file's pruner is not installed.
        parts = SimpleNamespace(
            pdtrim_pruners=hookimpl(lambda: [self.component]),
            pdtrim_model_sources=hookimpl(lambda: [_source_of(self.family, self.settings)]),
        )
        host.register(parts, Origin("contract", "contract"))
        outcome = pipeline.run(Recipe.from_data(data, where="pruner.toml", out=tmp_path / "run", host=host), host)
        score = {row.name: row.calibration.score for row in outcome.rows}
        if self.component.replaces_model:
            assert score.keys() == {"dense", "unified"}
            assert outcome.saved_plan is None
        else:
            assert score["staged"] >= score["unified"]

    def _model(self) -> BlockModel:
        return tiny_model(self.family, **self.settings)

    def _prune(self, model: BlockModel, blocks: int) -> Pruned:
        pruned = self.component(**self.options).prune(_context(model, blocks))
        assert (pruned.replaced is not None) == self.component.replaces_model, "`replaces_model` must say what `prune` returns"
        return pruned


def _context(model: BlockModel, blocks: int) -> PruneContext:
    parameters = blocks * model.sizes.blocks[0].parameters
    return prune_context(model, SEQUENCES, blocks=blocks, parameters=parameters, rng=rng_of(0), batch_tokens=128)


def _source_of(family: str, settings: dict[str, Any]) -> type[TinyModel]:
    """Return a source of the model of a contract, for a run."""

    class OfContract(TinyModel):
        """The model of this contract."""

        name = OF_CONTRACT

        @classmethod
        def accepts(cls, path: str) -> bool:
            return path == OF_CONTRACT

        def open(self) -> LoadedModel:
            return LoadedModel(tiny_transformers(family, **settings), ByteTokenizer(), self.path)

        def open_config(self) -> Any:
            return tiny_config(family, **settings)

    return OfContract


def _items() -> list[Item]:
    samples = [Sample("What is", (" this?", " that?")), Sample("A longer prompt than that", (" goes on", " ends"))]
    return [encode(sample, ByteTokenizer()) for sample in samples]
