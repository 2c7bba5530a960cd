"""What every recovery must hold to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.api.layer_kinds import Recovery
from pdtrim_core.api.recovery_context import RecoveryContext
from pdtrim_core.api.recovery_facts import RecoveryFacts
from pdtrim_core.execution.recovered_weights import STAGES, recovered_weights
from pdtrim_core.execution.stage_modules import Modules, with_weights
from pdtrim_core.host.host import Origin
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.recovery_contract import check_change
from pdtrim_core.plan.elements import Drop, KvOnly, Removal
from pdtrim_core.plan.plan import LayerOf, Plan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contexts import recovery_context
from pdtrim_core.testing.contracts.shared import check_component, contract, no_global_randomness, rng_of
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import tiny_llama, tiny_model

PLANS = {
    "decode": Plan(decode=Removal([Drop(2)])),
    "prefill": Plan(Removal([Drop(2), KvOnly(4), KvOnly(5)]), Removal([Drop(2)])),
    "unified": Plan.unified(Removal([Drop(2)])),
}
"""Plans in which decode alone, prefill too, and both stages as one model lose something."""
SLACK = 0.01
"""Share of a divergence: what rounding and a few careful steps may cost where nothing can be gained."""
NO_FURTHER = 1.05
"""Times as far as before: what is fitted to hidden states brings these nearer, and K/V and tokens nearly always."""
TEXTS = 24
TOKENS = 24


@contract
class RecoveryContract:
    """What every recovery must hold to."""

    component: ClassVar[type[Recovery]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Recovery, self.options)

    @pytest.mark.parametrize("plan", PLANS)
    def test_it_changes_only_what_its_contract_lets_it(self, plan: str) -> None:
        """Weights that layers have, in their shapes and finite; those that make K/V only where `contract` says that they may."""
        context = _context(tiny_llama(), PLANS[plan])
        recovery = self._recover(context)
        check_change(context.pair, {}, recovery.contract, f"recovery '{recovery.name}'")

    def test_a_dense_prefill_ships_the_same_kv(self) -> None:
        """With contract "dense-cache", bit for bit."""
        context = _context(tiny_llama(), PLANS["decode"])
        before = _shipped(context)
        if self._recover(context).contract == "dense-cache":
            assert all(torch.equal(now, then) for now, then in zip(_shipped(context), before, strict=True))

    def test_a_pruned_prefill_ships_kv_no_further_from_the_dense_ones(self) -> None:
        """With contract "dense-cache", on the texts that it learns from."""
        context = _context(tiny_llama(), PLANS["prefill"])
        before = _off_dense(context)
        if self._recover(context).contract == "dense-cache":
            assert _off_dense(context) <= NO_FURTHER * before, "K/V of prefill are further from the dense model's than before"

    @pytest.mark.parametrize("plan", PLANS)
    def test_it_learns_from_its_texts_alone(self, plan: str) -> None:
        """With other texts to check with it makes the same; it may only ask for the divergence on these, to stop."""
        made = []
        for seed in (1, 2):
            context = _context(tiny_llama(), PLANS[plan], check=seed)
            blind = _Blind(context.pair, context.check, context.rng, context.folder)
            self._recover(blind)
            made.append(_weights(blind))
        assert _same(*made), "it makes something else where only the texts to check with are others"

    def test_it_takes_the_pair_no_further_from_the_dense_model(self) -> None:
        """On the texts that it learns from, where both stages lack something; what it is for is to bring the pair nearer."""
        context = _context(tiny_llama(), PLANS["prefill"])
        before = _divergence(context)
        self._recover(context)
        assert _divergence(context) <= NO_FURTHER * before, (
            "the pair is further from the dense model than before, on its own texts"
        )

    @pytest.mark.parametrize("plan", ["decode", "unified"])
    def test_where_a_silent_block_is_gone_nothing_gets_worse(self, plan: str) -> None:
        """A block that does nothing is gone: the pair is the dense model, and must stay it."""
        dropped = _divergence(_context(tiny_llama(), PLANS[plan]))
        context = _context(tiny_llama(silent={2}), PLANS[plan])
        self._recover(context)
        found = _divergence(context)
        assert found < SLACK * dropped, f"it ends with {found / dropped:.2g} of what dropping a block that does something costs"

    def test_the_same_pair_texts_and_seed_give_the_same_weights(self) -> None:
        """No randomness but `rng`, no memory of an earlier call."""
        made = []
        with no_global_randomness():
            for _ in range(2):
                context = _context(tiny_llama(), PLANS["prefill"])
                self._recover(context)
                made.append(_weights(context))
        assert _same(*made)

    def test_the_model_is_left_as_it_was(self) -> None:
        """See `left_as_it_was`: weights, gradients, hooks, modes, attributes and settings of the dense model."""
        model = tiny_llama()
        with left_as_it_was(model):
            self._recover(_context(model, PLANS["prefill"]))

    def test_what_earlier_recoveries_made_is_left_as_it_was(self) -> None:
        """A run goes back to it where this one makes the pair no better, so a layer is changed, and never a weight in place."""
        model, plan = tiny_llama(), PLANS["prefill"]
        modules: dict[Any, Any] = {}
        for stage in STAGES:
            for layer in plan.layers(stage, model.block_count):
                own = dict(model.blocks[layer.block].named_parameters())
                modules[LayerOf.at(plan, stage, layer)] = with_weights(
                    model.blocks[layer.block], {name: 0.99 * weight for name, weight in own.items()}
                )
        before = {key: _numbers(module) for key, module in modules.items()}
        self._recover(_context(model, plan, modules=modules))
        assert all(_same(_numbers(module), before[key]) for key, module in modules.items()), "a weight was changed in place"

    def test_a_pair_in_bfloat16_stays_one(self) -> None:
        """What it gives has the number format of the model, and the pair can be run."""
        context = _context(tiny_llama(dtype=torch.bfloat16), PLANS["prefill"])
        self._recover(context)
        assert {weight.dtype for weight in _weights(context).values()} <= {torch.bfloat16}
        assert math.isfinite(_divergence(context))

    @pytest.mark.parametrize("family", ["llama", "gemma3", "opt", "phi3", "qwen3-moe"])
    def test_it_recovers_every_family_that_it_does_not_refuse(self, family: str) -> None:
        """With biases, norms behind the MLP, fused projections and experts: `problems` says before a run what cannot be."""
        model = tiny_model(family)
        recovery = self.component(**self.options)
        if not recovery.problems(RecoveryFacts(model.name, family, model.layout)):
            context = _context(model, PLANS["prefill"] if model.layout.kv else PLANS["decode"])
            recovery.recover(context)
            check_change(context.pair, {}, recovery.contract, f"recovery '{recovery.name}'")
            assert math.isfinite(_divergence(context))

    def test_a_run_keeps_what_it_made_or_says_why_not(self, tmp_path: Path) -> None:
        """A whole recipe: search, split, recover, measure."""
        data = {
            "model": {"path": "tiny:llama"},
            "prune": {"blocks": 2, "merges": False},
            "calibration": {"use": "mini", "samples": 8, "held_out": 4},
            "searcher": "greedy",
            "splitter": "gain",
            "objective": "margin",
            "recovery": {"use": f"contract/{self.component.name}", "tokens": 500, **self.options},
            "recovery_data": {"sources": ["calibration"], "prompt_tokens": 16, "answer_tokens": 16},
            "evaluation": {"threads": 1, "fidelity": False},
        }
        host = tiny_host()
        # A plain file's recovery is not installed.
        host.register(SimpleNamespace(pdtrim_recoveries=hookimpl(lambda: [self.component])), Origin("contract", "contract"))
        outcome = pipeline.run(Recipe.from_data(data, where="recovery.toml", out=tmp_path / "run", host=host), host)
        (result,) = outcome.recovery
        assert result.name == self.component.name
        assert result.kept == (result.after.value < result.before.value)

    def _recover(self, context: RecoveryContext) -> Recovery:
        recovery = self.component(**self.options)
        with torch.enable_grad():
            recovery.recover(context)
        return recovery


class _Blind(RecoveryContext):
    """A context whose divergence falls by the same steps, whatever the texts to check with are."""

    def divergence(self) -> float:
        asked = vars(self).setdefault("asked", [])
        asked.append(None)
        return 1 / len(asked)


def _texts(seed: int, count: int) -> list[list[int]]:
    rng = rng_of(seed)
    return [rng.choices(range(256), k=TOKENS) for _ in range(count)]


def _context(model: BlockModel, plan: Plan, *, check: int = 1, modules: Modules | None = None) -> RecoveryContext:
    return recovery_context(model, plan, _texts(0, TEXTS), check=_texts(check, 4), modules=modules, rng=rng_of(0))


def _divergence(context: RecoveryContext) -> float:
    """Return KL(dense || pair) in nats a token, on the texts to learn from."""
    # What is kept of a pass without gradients is of no use to a training, so a copy of the context is asked.
    found = replace(context).staged.divergences(context.texts)
    return sum(found) / len(found)


def _weights(context: RecoveryContext) -> dict[str, Tensor]:
    """Return what is recovered of both stages, by stage and name."""
    pair = context.pair
    return {
        f"{stage} {name}": weight
        for stage in STAGES
        for name, weight in recovered_weights(pair.plan, pair.model, pair.modules, stage).items()
    }


def _numbers(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def _shipped(context: RecoveryContext, *, dense: bool = False) -> Sequence[Tensor]:
    """Return the K and V that prefill makes of the prompts, in front of the rotary embedding, layer by layer.

    With `dense`, those that the dense model has there. The first tokens are left out, as in every walk.
    """
    norm, *names = context.model.layout.kv[:3]
    found = []
    with torch.inference_mode():
        for layer in context.walk("prefill"):
            block = context.model.blocks[layer.layer.block] if dense else layer.module
            for tokens in layer.tokens():
                normed = block.get_submodule(norm)(tokens.dense_before_ND if dense else tokens.before_ND)
                found += [block.get_submodule(name)(normed) for name in names]
    return found


def _off_dense(context: RecoveryContext) -> float:
    """Return the sum of squares of what prefill's K and V are off the dense model's."""
    pairs = zip(_shipped(context), _shipped(context, dense=True), strict=True)
    return sum(float((one - other).square().sum()) for one, other in pairs)
