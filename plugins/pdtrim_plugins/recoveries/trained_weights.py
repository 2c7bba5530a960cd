"""Weights of a pair while they are trained: all of them, or adapters of low rank; in float32 whatever the model's format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pdtrim_core.api import PdtrimError

if TYPE_CHECKING:
    from pdtrim_core.api import Layer, RecoveryContext, Stage

    Trained = Mapping[tuple[Stage, Layer], tuple[str, ...]]
    """The names of the weights that are trained in layers of each stage."""

HALF = (torch.bfloat16, torch.float16)
SCALE = 2
"""What the product of the two matrices of an adapter is multiplied by."""


class TrainedWeights(ABC):
    """What an optimiser changes, `masters`, by names of their own, and the pair that runs with it.

    A weight that the pair has in half precision has a master in float32, from which it is rounded again behind each step: small
    steps would be lost in it. All others are their own masters.
    """

    def __init__(self) -> None:
        self._live: dict[str, nn.Parameter] = {}
        self.masters: dict[str, Tensor] = {}

    def _train(self, name: str, weight: nn.Parameter) -> None:
        self._live[name] = weight
        self.masters[name] = weight.detach().float() if weight.dtype in HALF else weight

    def collect(self) -> None:
        """Add the gradients of the pair's weights to those of the masters."""
        for name, weight in self._live.items():
            master = self.masters[name]
            if master is not weight and weight.grad is not None:
                master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
                weight.grad = None

    def scale(self, tokens: int) -> None:
        """Divide the gradients of the masters by a number; what no gradient reached gets one of 0."""
        for master in self.masters.values():
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad.div_(tokens)

    def round(self) -> None:
        """Give the pair the weights that the masters have now."""
        with torch.no_grad():
            for name, weight in self._live.items():
                if self.masters[name] is not weight:
                    weight.copy_(self.masters[name])

    def values(self) -> dict[str, Tensor]:
        """Return copies of what the masters are now."""
        return {name: master.detach().clone() for name, master in self.masters.items()}

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Let the masters, and the pair, have other values."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(values[name])
        self.round()

    @abstractmethod
    def merged(self) -> Iterator[tuple[Stage, Layer, dict[str, Tensor]]]:
        """Yield each layer of a stage with the weights that it has now, by their names in it, in the model's format.

        They are the training's own until it ends.
        """


class AllWeights(TrainedWeights):
    """All weights that are named, as they are."""

    def __init__(self, trial: RecoveryContext, trained: Trained) -> None:
        super().__init__()
        self._trained = trained
        for (stage, layer), names in trained.items():
            before = dict(trial.module(stage, layer).named_parameters())
            trial.change(stage, layer, {name: before[name].detach().clone().requires_grad_() for name in names})
            module = trial.module(stage, layer)
            for name in names:
                self._train(_named(stage, layer, name), module.get_parameter(name))

    def merged(self) -> Iterator[tuple[Stage, Layer, dict[str, Tensor]]]:
        """Yield each layer with its weights."""
        for (stage, layer), names in self._trained.items():
            yield stage, layer, {name: self._live[_named(stage, layer, name)].detach() for name in names}


class LowRankWeights(TrainedWeights):
    """Adapters of low rank beside those weights that belong to linear projections (LoRA, by peft)."""

    def __init__(self, trial: RecoveryContext, trained: Trained, *, rank: int, seed: int) -> None:
        super().__init__()
        self._adapted: dict[tuple[Stage, Layer], nn.Module] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for (stage, layer), names in trained.items():
                # A module of the trial's own: its parts are about to be replaced.
                trial.change(stage, layer, {})
                self._adapt(stage, layer, trial.module(stage, layer), names, rank)
        if not self.masters:
            raise PdtrimError("distill: no weight that may be trained belongs to a linear projection: say train = 'full'")

    def _adapt(self, stage: Stage, layer: Layer, module: nn.Module, names: tuple[str, ...], rank: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - an optional extra

        owners = dict.fromkeys(name.rpartition(".")[0] for name in names if name.endswith(".weight"))
        linear = [name for name in owners if isinstance(module.get_submodule(name), nn.Linear)]
        if not linear:
            return
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=linear), module)
        self._adapted[stage, layer] = module
        for name, weight in module.named_parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
                self._train(_named(stage, layer, name), weight)

    def merged(self) -> Iterator[tuple[Stage, Layer, dict[str, Tensor]]]:
        """Yield each layer with the weights of its projections, the adapters added to them."""
        for (stage, layer), module in self._adapted.items():
            with torch.no_grad():
                yield stage, layer, {f"{name}.weight": _merged(part) for name, part in _adapters(module)}


def _named(stage: Stage, layer: Layer, name: str) -> str:
    # Beside a merged block of decode's prefill may have two layers at one block.
    return f"{stage} {layer.block} {layer.state} {name}"


def _adapters(module: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415 - an optional extra

    for name, part in module.named_modules():
        if isinstance(part, LoraLayer):
            yield name, part


def _merged(part: Any) -> Tensor:
    weight: Tensor = part.get_base_layer().weight
    added: Tensor = part.get_delta_weight(part.active_adapters[0])
    return (weight.float() + added.float()).to(weight.dtype)
