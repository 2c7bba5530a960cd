"""LLM-Pruner: removes groups of coupled weights whose removal changes the loss least, by a Taylor expansion.

Shape suffixes: U units, C channels of a unit, R query heads of a K/V head, N channels of a projection, M members of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pdtrim_core.api import Pruner
from pdtrim_plugins.pruners import channels as ch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdtrim_core.api import BlockModel, PruneContext, Pruned, PruneFacts


class LlmPruner(Pruner):
    """Removes K/V heads and MLP channels of lowest Taylor importance, a group of coupled weights at a time.

    A group is an MLP channel (a row of each input projection, a column of the output projection) or a K/V head with
    its query heads; the coupling is known from the family, not traced. The same on torch-pruning's dependency graph is
    `torch-pruning` with importance = "taylor", reduce = "sum" and normalizer = "none".
    """

    name = "llm-pruner"
    cites = "LLM-Pruner, Eq. 3 to 6 (arXiv:2305.11627)"

    taylor: Literal["param_first", "param_second", "param_mix", "vectorize"] = Field(
        "param_first",
        description="param_first: |w g| weight by weight; param_second: w^2 F, with F the mean squared gradient of the windows; "
        "param_mix: |w g - w^2 F / 2|; vectorize: the absolute sum of w g; F takes as much memory again as the weights",
    )
    reduce: Literal["sum", "mean", "max", "prod"] = Field(
        "sum", description="how the importances of a group's projections are reduced, channel by channel"
    )
    parts: ch.Parts = "both"
    first_block: ch.FirstBlock = None
    last_block: ch.LastBlock = None
    gqa: Literal["repeat_kv", "peer"] = Field(
        "repeat_kv",
        description="which query heads count for K/V head j of K: repeat_kv: those that read it; peer: j, j + K, j + 2K, as in "
        "the authors' code",
    )
    scope: ch.Scope = "local"
    width: ch.Width = "uniform"
    samples: int = Field(10, gt=0, description="calibration windows that the gradient is taken over, at most")
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
        """Return the shrinks of the least important groups.

        Raises `PdtrimError` where the family's projections are fused, the budget cannot be met, there are too few tokens, or a
        gradient is not finite.
        """
        from pdtrim_core.api import Pruned  # noqa: PLC0415 - listings must not import torch

        model = context.model
        self.check(context.facts)
        places = ch.places(context.facts, self)
        ch.check_rows(model, places)
        windows = context.windows(self.tokens, self.samples)
        importance = self._importance(model, places, windows, context.batch_tokens)
        rated = [ch.rated(model, place, importance[place]) for place in places]
        return Pruned(ch.lowest(rated, context.parameters, self))

    def _importance(
        self, model: BlockModel, places: Sequence[ch.Place], windows: Sequence[Sequence[int]], batch_tokens: int | None
    ) -> Mapping[ch.Place, Tensor]:
        from pdtrim_plugins.pruners.gradients import mean_squares, with_gradients  # noqa: PLC0415 - listings must not import torch

        weights = ch.weights(model, places)
        importance: dict[ch.Place, Tensor] = {}
        squares: dict[nn.Parameter, Tensor] = {}
        if self.taylor in ("param_second", "param_mix"):
            squares = mean_squares(model, [weight for of_place in weights.values() for weight in of_place], windows)

        def rate(place: ch.Place) -> None:
            saliences = [self._salience(weight, squares.pop(weight, None)) for weight in weights[place]]
            importance[place] = self._of_units(saliences, model.units(place[0]).count(place[1]))

        if self.taylor == "param_second":
            for place in places:
                rate(place)
        else:
            with_gradients(model, weights, windows, rate, batch_tokens=batch_tokens)
        return importance

    def _salience(self, weight: Tensor, square: Tensor | None) -> Tensor:
        """Return the salience of each weight of a projection, in float32 and in the weight's shape."""
        values = weight.detach().float()
        first = 0 if weight.grad is None else values * weight.grad.float()
        match self.taylor:
            case "param_second":
                assert square is not None
                return values.square() * square
            case "param_mix":
                assert square is not None
                return first - 0.5 * values.square() * square
            case _:
                assert not isinstance(first, int)
                return first

    def _of_units(self, saliences: Sequence[Tensor], units: int) -> Tensor:
        """Return the importance `[U]` of a part's units from the saliences of its projections, the output projection last."""
        import torch  # noqa: PLC0415 - listings must not import torch

        members_N = [self._of_channels(salience, 0 if salience is saliences[-1] else 1) for salience in saliences]
        channels = min(len(member) for member in members_N) // units
        folded_MUC = torch.stack([self._folded(member, units, channels) for member in members_N]).cpu().double()
        reduced: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": lambda stacked: stacked.sum(0),
            "mean": lambda stacked: stacked.mean(0),
            "max": lambda stacked: stacked.amax(0),
            "prod": lambda stacked: stacked.prod(0),
        }
        return reduced[self.reduce](folded_MUC).sum(-1)

    def _of_channels(self, salience: Tensor, along: int) -> Tensor:
        return salience.sum(along).abs() if self.taylor == "vectorize" else salience.abs().sum(along)

    def _folded(self, member_N: Tensor, units: int, channels: int) -> Tensor:
        """Return a projection's channels as `[U, C]`: those of several query heads are summed to their K/V head."""
        if self.gqa == "peer":
            return member_N.view(-1, units, channels).sum(0)
        return member_N.view(units, -1, channels).sum(1)
