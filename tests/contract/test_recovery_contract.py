"""Broken components are caught by the recovery contract, each by the test that is meant for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest
import torch

from pdtrim_core.api import Recovery
from pdtrim_core.testing import RecoveryContract

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pdtrim_core.api import RecoveryContext, RecoveryFacts, WalkedLayer

    Failing = Callable[..., set[str]]


class Rescaled(Recovery):
    """Scales what the MLP in front of blocks that are gone gives, channel by channel."""

    name = "rescaled"

    def problems(self, facts: RecoveryFacts) -> list[str]:
        return [] if facts.layout.mlp else [f"{facts.model}: its MLP has no projection of its own"]

    def recover(self, context: RecoveryContext) -> None:
        for layer in context.walk("decode"):
            if layer.gone and layer.adds_what_it_makes():
                layer.change(self.scaled(context, layer))

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        products, squares = [], []
        for tokens in layer.tokens():
            missing_ND = tokens.wanted_ND - tokens.after_ND + tokens.made_ND
            products.append((tokens.made_ND * missing_ND).sum(dim=0))
            squares.append(tokens.made_ND.square().sum(dim=0))
        scale_D = torch.stack(products).sum(dim=0) / torch.stack(squares).sum(dim=0).clamp(min=1e-9)
        name = context.model.layout.mlp[-1]
        parts = layer.module.get_submodule(name).named_parameters()
        return {f"{name}.{part}": scale_D.diag() @ weight.detach() for part, weight in parts}


class DoesNothing(Recovery):
    """Leaves the pair as it is."""

    name = "nothing"

    def recover(self, context: RecoveryContext) -> None:
        del context


class ByGradients(Rescaled):
    """Takes two plain steps down the distance from the dense model's hidden states, and asks whether it helped."""

    name = "by-gradients"

    def recover(self, context: RecoveryContext) -> None:
        self.step(context, context.texts)

    def step(self, context: RecoveryContext, texts: Sequence[object]) -> None:
        layer = context.layers("decode")[-1]
        name = f"{context.model.layout.mlp[-1]}.weight"
        for _ in range(2):
            before = context.divergence()
            start = context.module("decode", layer).get_parameter(name).detach().clone()
            context.change("decode", layer, {name: start.requires_grad_()})
            weight = context.module("decode", layer).get_parameter(name)
            batches = context.batches(texts)  # type: ignore[arg-type]
            loss = torch.stack([(batch.pair() - batch.dense()).float().square().mean() for batch in batches]).sum()
            (gradient,) = torch.autograd.grad(loss, weight)
            context.change("decode", layer, {name: (start - 1e-4 * gradient).detach()})
            if context.divergence() > before:
                context.change("decode", layer, {name: start.detach()})


class LearnsFromTheCheck(ByGradients):
    """Takes all texts that it can get."""

    def recover(self, context: RecoveryContext) -> None:
        self.step(context, [*context.texts, *context.check])


class LooksUpTheCheck(Rescaled):
    """Scales by a number that it has from texts that measure."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        factor = 1 + 1e-6 * context.check[0].choices[0][0]
        return {name: factor * weight for name, weight in super().scaled(context, layer).items()}


class ChangesTheKeysOfDecode(Rescaled):
    """Scales a projection that makes K."""

    def recover(self, context: RecoveryContext) -> None:
        layer = context.layers("decode")[-1]
        name = "self_attn.k_proj.weight"
        context.change("decode", layer, {name: 1.01 * context.module("decode", layer).get_parameter(name)})


class ChangesTheNormOfAPassedBlock(DoesNothing):
    """Scales what prefill does not even run."""

    def recover(self, context: RecoveryContext) -> None:
        for layer in context.layers("prefill"):
            if layer.state == "kv-only":
                weight = context.module("prefill", layer).get_parameter("mlp.down_proj.weight")
                context.change("prefill", layer, {"mlp.down_proj.weight": 2 * weight})


class ChangesPrefillToo(Rescaled):
    """Scales the first block of a prefill that was dense."""

    def recover(self, context: RecoveryContext) -> None:
        super().recover(context)
        layer = context.layers("prefill")[0]
        name = f"{context.model.layout.mlp[-1]}.weight" if context.model.layout.mlp else ""
        if name and not context.unified:
            context.change("prefill", layer, {name: 1.001 * context.module("prefill", layer).get_parameter(name)})


class SaysItMay(ChangesPrefillToo):
    """Says what it does: the two checkpoints belong together."""

    @property
    def contract(self) -> Literal["pair"]:
        return "pair"


class DoublesTheKvOfPassedBlocks(DoesNothing):
    """Takes the K/V of blocks that prefill passes by further away from the dense ones."""

    def recover(self, context: RecoveryContext) -> None:
        for layer in context.layers("prefill"):
            if layer.state == "kv-only":
                name = "self_attn.v_proj.weight"
                context.change("prefill", layer, {name: 2 * context.module("prefill", layer).get_parameter(name)})


class Halves(Rescaled):
    """Scales in the wrong direction."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        return {name: -weight for name, weight in super().scaled(context, layer).items()}


class Decays(Rescaled):
    """Always shrinks what it found a little."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        return {name: 0.7 * weight for name, weight in super().scaled(context, layer).items()}


class DividesByNothing(Rescaled):
    """Makes weights that are no numbers."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        return {name: weight / 0 for name, weight in super().scaled(context, layer).items()}


class MakesItWider(Rescaled):
    """Gives a projection more rows."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        return {name: torch.cat([weight, weight]) for name, weight in super().scaled(context, layer).items()}


class MakesUpAName(Rescaled):
    """Gives a weight that no block has."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        return {f"folded.{name}": weight for name, weight in super().scaled(context, layer).items()}


class DrawsGlobally(Rescaled):
    """Draws from torch's generator."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        return {name: weight + 1e-6 * torch.randn_like(weight) for name, weight in super().scaled(context, layer).items()}


class Counts(Rescaled):
    """Does it better every time."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        calls.append(None)
        return {name: (1 + 1e-6 * len(calls)) * weight for name, weight in super().scaled(context, layer).items()}


calls: list[None] = []


class ScalesInPlace(Rescaled):
    """Changes the weights that it is given, which are the dense model's or an earlier recovery's."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        found = super().scaled(context, layer)
        with torch.no_grad():
            for name, weight in found.items():
                layer.module.get_parameter(name).copy_(weight)
        return found


class TrainsEarlierOnesInPlace(DoesNothing):
    """Spares the dense model, and changes what another recovery made."""

    def recover(self, context: RecoveryContext) -> None:
        layer = context.layers("decode")[0]
        module = context.module("decode", layer)
        if module is not context.model.blocks[layer.block]:
            with torch.no_grad():
                module.get_parameter("mlp.down_proj.weight").mul_(0.5)


class LeavesAHook(Rescaled):
    """Watches a block for ever."""

    def recover(self, context: RecoveryContext) -> None:
        super().recover(context)
        context.model.blocks[0].register_forward_hook(lambda module, given, made: None)


class StaysInFloat32(Rescaled):
    """Gives weights in the number format in which it computed."""

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        return {name: weight.float() for name, weight in super().scaled(context, layer).items()}


class KnowsOneFamily(Rescaled):
    """Takes one family's names for granted."""

    def problems(self, facts: RecoveryFacts) -> list[str]:
        del facts
        return []

    def scaled(self, context: RecoveryContext, layer: WalkedLayer) -> dict[str, Tensor]:
        layer.module.get_submodule("mlp.down_proj")
        return super().scaled(context, layer)


class FailsInARun(Rescaled):
    """Works on the texts of tests alone."""

    def recover(self, context: RecoveryContext) -> None:
        if not context.texts[0].name.startswith("text"):
            raise ValueError("another sort of text")
        super().recover(context)


@pytest.mark.parametrize("component", [Rescaled, DoesNothing, ByGradients, SaysItMay])
def test_a_good_recovery_passes_every_test(component: type[Recovery], failing: Failing) -> None:
    assert failing(RecoveryContract, component) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (ChangesTheKeysOfDecode, "test_it_changes_only_what_its_contract_lets_it"),
        (ChangesTheNormOfAPassedBlock, "test_it_changes_only_what_its_contract_lets_it"),
        (DividesByNothing, "test_it_changes_only_what_its_contract_lets_it"),
        (MakesItWider, "test_it_changes_only_what_its_contract_lets_it"),
        (MakesUpAName, "test_it_changes_only_what_its_contract_lets_it"),
        (ChangesPrefillToo, "test_a_dense_prefill_ships_the_same_kv"),
        (DoublesTheKvOfPassedBlocks, "test_a_pruned_prefill_ships_kv_no_further_from_the_dense_ones"),
        (LearnsFromTheCheck, "test_it_learns_from_its_texts_alone"),
        (LooksUpTheCheck, "test_it_learns_from_its_texts_alone"),
        (Halves, "test_it_takes_the_pair_no_further_from_the_dense_model"),
        (Decays, "test_where_a_silent_block_is_gone_nothing_gets_worse"),
        (DrawsGlobally, "test_the_same_pair_texts_and_seed_give_the_same_weights"),
        (Counts, "test_the_same_pair_texts_and_seed_give_the_same_weights"),
        (ScalesInPlace, "test_the_model_is_left_as_it_was"),
        (LeavesAHook, "test_the_model_is_left_as_it_was"),
        (TrainsEarlierOnesInPlace, "test_what_earlier_recoveries_made_is_left_as_it_was"),
        (StaysInFloat32, "test_a_pair_in_bfloat16_stays_one"),
        (KnowsOneFamily, "test_it_recovers_every_family_that_it_does_not_refuse"),
        (FailsInARun, "test_a_run_keeps_what_it_made_or_says_why_not"),
    ],
)
def test_a_broken_recovery_is_caught(component: type[Recovery], test: str, failing: Failing) -> None:
    assert failing(RecoveryContract, component, test) == {test}
