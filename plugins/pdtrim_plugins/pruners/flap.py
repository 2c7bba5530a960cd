"""FLAP: removes channels whose inputs hardly fluctuate, and replaces their mean output by a bias.

Shape suffixes: B window, T token, C channel (an input of a part's output projection), U unit, O output of that projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pdtrim_core.api import Pass, PdtrimError, Pruned, Pruner, Removal, Shrink, results_of
from pdtrim_plugins.pruners.units import (
    PARTS,
    Part,
    Place,
    adaptive,
    fused_parts,
    lowest,
    output_of,
    places_of,
    problems_of,
    size_of,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdtrim_core.api import BlockModel, PruneContext, PruneFacts

LEAST_WINDOWS = 2
"""The fluctuation of an input between windows cannot be measured on one."""


class Flap(Pruner):
    """Removes the heads and MLP channels whose inputs fluctuate least, and adds their mean as a bias.

    The scores are computed on the inputs of a part's output projection (`o_proj`, `down_proj`), standardised within each part
    of each block. The unit of attention is a K/V head with the q query heads that read it: its score is the mean over all their
    channels, as the paper's is over those of one head. So it stays on the scale of a channel; but means over more channels
    lie closer to 0, so the larger q is, the fewer heads are among the lowest. The size of a unit counts in the budget only:
    (2 + 2 / q) * head size * hidden size weights a query head, against 3 * hidden size for a channel of a gated MLP (the
    authors' code takes 512 / 3 channels a head, which is right for q = 1 and heads of 128).

    Departs from the paper in that each part keeps its best unit, as no block can run without one. The biases belong to the
    projections of the narrowed parts: where prefill keeps a part, it has no bias there. Costs do not count the biases: `hidden
    size` numbers for each narrowed part.
    """

    name = "flap"
    cites = "FLAP (arXiv:2312.11983)"
    streams: ClassVar[bool] = True

    structure: Literal["AL-AM", "UL-UM"] = Field(
        "AL-AM",
        description="AL-AM: adaptive, one ranking of all heads and channels of all blocks; UL-UM: uniform, the same share of "
        "every block: of its heads, rounded down, with MLP channels making up for the rounding",
    )
    metric: Literal["WIFV", "IFV", "WIFN"] = Field(
        "WIFV",
        description="WIFV: fluctuation of a channel's input times its squared weights; IFV: fluctuation alone; WIFN: the input's "
        "norm times its mean absolute weight",
    )
    compensate: bool = Field(
        default=True, description="add the mean output of the removed units as a bias of the output projection"
    )
    compat: Literal["peer", "paper"] = Field(
        "peer",
        description="peer: as the authors' code computes (each window's squared distance from the mean so far, without the first "
        "window; the metric of attention squared); paper: the variance over all tokens, and nothing squared",
    )
    tokens: int = Field(128, ge=1, description="tokens a window")
    windows: int = Field(1024, ge=LEAST_WINDOWS, description="windows of calibration tokens at most")

    @property
    def narrows(self) -> frozenset[Part]:
        """Both parts may lose units."""
        return frozenset(PARTS)

    @property
    def uniform(self) -> bool:
        """Whether narrowed blocks get no biases, which no config describes; adaptive widths may still come out alike."""
        return not self.compensate

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why this budget is beyond the model's units."""
        return list(problems_of(self.name, facts)) if facts.parameters else []

    def prune(self, context: PruneContext) -> Pruned:
        """Return shrinks of both parts; the biases are in the projections that belong to them."""
        model = context.model
        if not context.parameters:
            return Pruned(Removal())
        self.check(context.facts)
        for part in fused_parts(model.sizes):
            context.note(f"pruner 'flap' keeps the {part} of this family whole, because its projections are fused or experts")
        inputs = self.inputs(model, self._windows(context), context.batch_tokens, reached=context.reached)
        scores = {
            place: unit_scores(self.channel_scores(model, place, seen), size_of(model, place)[0]).tolist()
            for place, seen in inputs.items()
        }
        choose = adaptive if self.structure == "AL-AM" else _uniform
        shrinks = [
            Shrink(*place, tuple(sorted(units))) for place, units in choose(model, scores, context.parameters).items() if units
        ]
        compensated = shrinks if self.compensate else []
        return Pruned(
            Removal(shrinks),
            {shrink: _compensated(model, shrink, inputs[shrink.block, shrink.part].mean_C) for shrink in compensated},
        )

    def inputs(
        self,
        model: BlockModel,
        windows: Sequence[Sequence[int]],
        batch_tokens: int | None = None,
        *,
        reached: Callable[[float], None] = lambda share: None,
    ) -> dict[Place, Inputs]:
        """Return statistics of the inputs of each part's output projection in the dense model, over windows of one length.

        The model runs block by block over a few windows at a time; only sums are kept. `reached` takes the share that is done.
        """
        import torch  # noqa: PLC0415 - listings must not import torch

        found = {place: Inputs(self.compat) for place in places_of(model.sizes)}
        at_once = max(1, (batch_tokens or model.fitting_batch) // len(windows[0]))
        starts = range(0, len(windows), at_once)
        with torch.no_grad(), _watched(model, found, len(windows[0])):
            passes = (_pass(model, windows[start : start + at_once]) for start in starts)
            for done, _ in enumerate(results_of(passes, together=model.streams), start=1):
                reached(done / len(starts))
        for (block, part), seen in found.items():
            seen.check(f"the {part} of block {block}")
        return found

    def channel_scores(self, model: BlockModel, place: Place, seen: Inputs) -> Tensor:
        """Return the metric of each channel `[C]` of a part; higher is more important."""
        weight_OC = output_of(model, place).weight.detach().float()
        match self.metric:
            case "WIFV":
                metric_C = seen.fluctuation().to(weight_OC.device) * weight_OC.square().sum(0)
            case "IFV":
                metric_C = seen.fluctuation()
            case "WIFN":
                metric_C = weight_OC.abs().mean(0) * seen.norm().to(weight_OC.device)
        return metric_C.square() if self.compat == "peer" and place[1] == "attention" else metric_C

    def _windows(self, context: PruneContext) -> list[tuple[int, ...]]:
        windows = context.windows(self.tokens, self.windows)
        if len(windows) < LEAST_WINDOWS:
            given = sum(map(len, context.sequences))
            raise PdtrimError(
                f"pruner 'flap' needs {LEAST_WINDOWS} windows of {self.tokens} tokens, and the items have {given} tokens: raise "
                "calibration.samples, or lower pruner.tokens"
            )
        return windows


def _pass(model: BlockModel, windows: Sequence[Sequence[int]]) -> Pass[None]:
    """Return the pass of some windows through all blocks."""
    import torch  # noqa: PLC0415 - listings must not import torch

    recording = model.record(torch.tensor(windows, device=model.device))
    hidden_BTD = recording.hidden_BTD
    for block in range(model.block_count):
        yield block
        hidden_BTD = model.run(block, hidden_BTD, recording.calls)


class Inputs:
    """Running statistics of the inputs of one projection over windows, channel by channel."""

    def __init__(self, compat: Literal["peer", "paper"]) -> None:
        self._compat = compat
        self._windows = 0
        self._spread_C: Any = 0.0
        self._square_C: Any = 0.0
        self.mean_C: Any = 0.0

    def fluctuation(self) -> Tensor:
        """Return how far the inputs are from their mean `[C]`: squares summed over a window, averaged over windows."""
        spread_C: Tensor = self._spread_C / (self._windows - 1)
        return spread_C

    def norm(self) -> Tensor:
        """Return the root of the mean over windows of the squares summed over a window, `[C]`."""
        square_C: Tensor = self._square_C / self._windows
        return square_C.sqrt()

    def add(self, inputs_BTC: Tensor) -> None:
        """Add some windows, in order.

        The authors mean to add to a window's variance the product of the distances from the mean with it and from the mean
        before it, and both are the mean with it, as their tensor of the mean before is overwritten. Their running sum, with
        its divisors, is the sum over windows n = 2, 3, ... of (n - 1) / n times those squares, divided by the count less 1.
        """
        import torch  # noqa: PLC0415 - listings must not import torch

        inputs_BTC = inputs_BTC.float()
        before_B1 = self._windows + torch.arange(len(inputs_BTC), device=inputs_BTC.device)[:, None].double()
        sums_BC = inputs_BTC.mean(1, dtype=torch.float64).cumsum(0) + self._windows * self.mean_C
        means_BC = sums_BC / (before_B1 + 1)
        if self._compat == "peer":
            difference_BTC = (inputs_BTC - means_BC[:, None].float()).square()
            self._spread_C = self._spread_C + (difference_BTC.sum(1, dtype=torch.float64) * before_B1 / (before_B1 + 1)).sum(0)
        else:
            # The product with the previous mean accounts for the change of the mean, so the sum is exact.
            previous_C = self.mean_C.float() if self._windows else 0.0
            product_BTC = (inputs_BTC - means_BC[-1].float()) * (inputs_BTC - previous_C)
            self._spread_C = self._spread_C + product_BTC.sum((0, 1), dtype=torch.float64)
        self._square_C = self._square_C + inputs_BTC.square().sum((0, 1), dtype=torch.float64)
        self.mean_C = means_BC[-1]
        self._windows += len(inputs_BTC)

    def check(self, what: str) -> None:
        """Raise `PdtrimError` where a sum is not finite."""
        import torch  # noqa: PLC0415 - listings must not import torch

        if not torch.isfinite(self._square_C).all():
            raise PdtrimError(
                f'pruner \'flap\': the activations in {what} are not finite: say model.dtype = "float32" or "bfloat16"'
            )


def unit_scores(metric_C: Tensor, units: int) -> Tensor:
    """Return the mean of the channels' standard scores for each unit `[U]` of a part; 0 where all channels are alike.

    In float64: where one channel is a million times the others, float32 has too few digits to rank the others.
    """
    metric_C = metric_C.double()
    deviation = metric_C.std()
    standard_C = (metric_C - metric_C.mean()) / deviation if deviation > 0 else metric_C * 0
    return standard_C.view(units, -1).mean(1)


def _uniform(model: BlockModel, scores: Mapping[Place, Sequence[float]], budget: int) -> dict[Place, list[int]]:
    """Return the units to remove from each part, the same share of every block.

    The last part of a block makes up for the rounding to whole heads.
    """
    share = budget / sum(count * cost for count, cost in (size_of(model, place) for place in scores))
    chosen: dict[Place, list[int]] = {}
    for block in sorted({block for block, _ in scores}):
        places = [(block, part) for part in PARTS if (block, part) in scores]
        owed = share * sum(count * cost for count, cost in (size_of(model, place) for place in places))
        for place in places:
            count, cost = size_of(model, place)
            number = round(owed / cost) if place == places[-1] else int(share * count)
            chosen[place] = lowest(scores[place], [1] * count, min(number, count - 1))
            owed -= len(chosen[place]) * cost
    return chosen


def _compensated(model: BlockModel, shrink: Shrink, mean_C: Tensor) -> nn.Module:
    """Return the output projection of a narrowed part; its bias has the mean output of the removed channels."""
    import torch  # noqa: PLC0415 - listings must not import torch

    out, units = output_of(model, (shrink.block, shrink.part)), model.units(shrink.block)
    removed = units.numbers(out, shrink.part, shrink.units, out=True)
    kept = sorted(set(range(out.in_features)) - set(removed))
    weight_OC = out.weight.detach()
    bias_O = weight_OC[:, removed].float() @ mean_C[removed].to(weight_OC.device).float()
    if out.bias is not None:
        bias_O += out.bias.detach().float()
    thin = torch.nn.Linear(len(kept), out.out_features, device="meta")
    thin.weight = torch.nn.Parameter(weight_OC[:, kept], requires_grad=False)
    thin.bias = torch.nn.Parameter(bias_O.to(weight_OC.dtype), requires_grad=False)
    return thin.train(out.training)


@contextmanager
def _watched(model: BlockModel, inputs: Mapping[Place, Inputs], length: int) -> Iterator[None]:
    """Inside the context, record the inputs of the parts' output projections, in windows of one length."""
    with ExitStack() as hooks:
        for place, seen in inputs.items():

            def take(_module: nn.Module, args: tuple[Any, ...], seen: Inputs = seen) -> None:
                # Some families flatten windows and tokens before their MLP.
                seen.add(args[0].reshape(-1, length, args[0].shape[-1]))

            hooks.callback(output_of(model, place).register_forward_pre_hook(take).remove)
        yield
