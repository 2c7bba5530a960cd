"""Torch-Pruning: any importance of that package, over the groups of its dependency graph.

Shape suffixes: U units, N channels of the narrowest projection of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pdtrim_core.api import PdtrimError, Pruner
from pdtrim_plugins.pruners import channels as ch
from pdtrim_plugins.pruners.dependency_graph import TracedBlocks, package

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import BlockModel, PruneContext, Pruned, PruneFacts


class TorchPruning(Pruner):
    """Removes K/V heads and MLP channels of lowest importance, by any importance of the package torch-pruning.

    Each block is traced by itself. Its MLP group is the one in the graph. The group of attention is built from its four
    projections by the family's mapping of query heads to K/V heads, because with fewer K/V heads than query heads the graph
    stops between them or pairs the wrong ones. The importance of a head is the mean over its channels. The hidden size,
    which the package's own pruner reduces too, is not part of a stage plan and stays.
    """

    name = "torch-pruning"
    cites = "DepGraph, Sec. 3 (arXiv:2301.12900); the package torch-pruning, 1.6"

    importance: Literal["magnitude", "lamp", "fpgm", "taylor", "hessian", "activation", "random"] = Field(
        "magnitude", description="the package's importance; hessian takes as much memory again as the weights"
    )
    p: int = Field(2, gt=0, description="power of the norm that magnitude, lamp and fpgm take")
    reduce: Literal["mean", "sum", "max", "first"] = Field(
        "mean",
        description="how the importances of a group's projections are reduced; first: the K or the first MLP projection only",
    )
    normalizer: Literal["mean", "sum", "max", "gaussian", "standarization", "none"] = Field(
        "mean", description="how importances are made comparable between groups, in the package's spelling; lamp has its own"
    )
    parts: ch.Parts = "both"
    first_block: ch.FirstBlock = None
    last_block: ch.LastBlock = None
    scope: ch.Scope = "local"
    width: ch.Width = "uniform"
    samples: int = Field(10, gt=0, description="calibration windows that gradients and activations are taken over, at most")
    tokens: int = Field(64, gt=1, description="tokens of a calibration window")

    @property
    def narrows(self) -> frozenset[ch.Part]:
        """The parts that may lose units."""
        return ch.narrows(self)

    @property
    def uniform(self) -> bool:
        """Whether all blocks may have one shape in the end."""
        return ch.uniform(self)

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why units cannot be removed: fused projections, blocks that are not there, a budget beyond the units."""
        return ch.problems(facts, self)

    def prune(self, context: PruneContext) -> Pruned:
        """Return the shrinks of the units of lowest importance.

        Raises `PdtrimError` where the package is missing or cannot trace a block, the family's projections are fused, the
        budget cannot be met, or there are too few tokens.
        """
        from pdtrim_core.api import Pruned  # noqa: PLC0415 - listings must not import torch

        model = context.model
        self.check(context.facts)
        places = ch.places(context.facts, self)
        ch.check_rows(model, places)
        rated = [ch.rated(model, place, ratings) for place, ratings in sorted(self._ratings(context, places).items())]
        return Pruned(ch.lowest(rated, context.parameters, self))

    def _ratings(self, context: PruneContext, places: Sequence[ch.Place]) -> Mapping[ch.Place, Tensor]:
        """Return the importance `[U]` of each place's units."""
        traced = TracedBlocks(context.model, sorted({block for block, _ in places}))
        rate = self._made()
        ratings: dict[ch.Place, Tensor] = {}

        def note(place: ch.Place) -> None:
            ratings[place] = _of_units(rate(traced.group(place)), context.model, place)

        match self.importance:
            case "taylor":
                from pdtrim_plugins.pruners.gradients import with_gradients  # noqa: PLC0415 - listings must not import torch

                weights = ch.weights(context.model, places)
                windows = context.windows(self.tokens, self.samples)
                with_gradients(context.model, weights, windows, note, batch_tokens=context.batch_tokens)
            case "hessian":
                for place in self._with_mean_squares(context, places):
                    note(place)
            case "activation":
                for place in self._with_activations(context, places, traced, rate):
                    note(place)
            case "random":
                with _seeded(context.rng.getrandbits(63)):
                    for place in places:
                        note(place)
            case _:
                for place in places:
                    note(place)
        return ratings

    def _made(self) -> Any:
        """Return the package's importance with these options."""
        importance = package().importance
        shared = {"group_reduction": self.reduce, "normalizer": None if self.normalizer == "none" else self.normalizer}
        made: dict[str, Callable[[], Any]] = {
            "magnitude": lambda: importance.GroupMagnitudeImportance(p=self.p, **shared),
            "lamp": lambda: importance.LAMPImportance(p=self.p, group_reduction=self.reduce),
            "fpgm": lambda: importance.FPGMImportance(p=self.p, **shared),
            "taylor": lambda: importance.GroupTaylorImportance(**shared),
            "hessian": lambda: importance.GroupHessianImportance(**shared),
            "activation": lambda: importance.ActivationImportance(**shared),
            "random": importance.RandomImportance,
        }
        return made[self.importance]()

    def _with_mean_squares(self, context: PruneContext, places: Sequence[ch.Place]) -> Iterator[ch.Place]:
        """Yield each place while its weights have the mean squared gradient in `.grad`, where the package looks for it.

        The package's own `accumulate_grad` keeps the last sample only.
        """
        from pdtrim_plugins.pruners.gradients import mean_squares  # noqa: PLC0415 - listings must not import torch

        if str(next(context.model.model.parameters()).dtype) == "torch.float16":
            raise PdtrimError(
                f"{context.model.name}: hessian squares gradients, and the package keeps them in the model's number format: "
                'float16 is too small for that: say model.dtype = "float32" or "bfloat16"'
            )
        weights = ch.weights(context.model, places)
        windows = context.windows(self.tokens, self.samples)
        squares = mean_squares(context.model, [weight for of_place in weights.values() for weight in of_place], windows)
        for place in places:
            for weight in weights[place]:
                weight.grad = squares.pop(weight).to(weight.dtype)
            try:
                yield place
            finally:
                for weight in weights[place]:
                    weight.grad = None

    def _with_activations(
        self, context: PruneContext, places: Sequence[ch.Place], traced: TracedBlocks, rate: Any
    ) -> Iterator[ch.Place]:
        """Yield each place while the modules of its block hold the package's records of their inputs over the windows."""
        import torch  # noqa: PLC0415 - listings must not import torch

        model = context.model
        ids_BT = torch.tensor(context.windows(self.tokens, self.samples), device=model.device)
        with torch.no_grad():
            recording = model.record(ids_BT)
            hidden_BTD = recording.hidden_BTD
            for block in range(places[-1][0] + 1):
                module = traced.modules.get(block)
                with nullcontext() if module is None else rate.compute_importance(module):
                    hidden_BTD = model.run(block, hidden_BTD, recording.calls, module)
                yield from (place for place in places if place[0] == block)


def _of_units(importance_N: Tensor | None, model: BlockModel, place: ch.Place) -> Tensor:
    """Return the mean importance `[U]` over each unit's channels."""
    assert importance_N is not None, "a group of linears has an importance of every kind"
    return importance_N.detach().float().cpu().view(model.units(place[0]).count(place[1]), -1).mean(1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let the package draw from a seed; torch's generator is restored after the context."""
    import torch  # noqa: PLC0415 - listings must not import torch

    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)
