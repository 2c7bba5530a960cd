"""LaCo: folds later blocks into an earlier one, as long as the model's last hidden state stays similar.

Shape suffixes: B sentence, T token, D hidden, N real tokens of all sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pdtrim_core.api import Merge, PdtrimError, Pruned, Pruner, Removal, Shrink

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdtrim_core.api import BlockModel, PruneContext, PruneFacts

Way = Literal["laco-paper", "laco-code"]


@dataclass(frozen=True)
class Run:
    """Neighbouring dense blocks `first` to `last`, and the block that replaces them."""

    first: int
    last: int
    module: nn.Module


class LaCo(Pruner):
    """Folds later blocks into an earlier one, from the end down, while the last hidden state stays similar to the dense model's.

    The budget decides when to stop: the last step may fold fewer blocks than the others, and if the lowest block is reached
    before the budget, another pass begins at the top. After a pass that folds nothing, the threshold is lowered to the best
    cosine in that pass. The paper makes one pass, and its threshold alone decides how much is removed. Unlike in the
    authors' code, every step stays below `highest`.
    """

    name = "laco"
    cites = "LaCo, Eq. 1 and Alg. 1 (arXiv:2402.11187)"

    merge: Way = Field(
        "laco-code",
        description="laco-paper: the later blocks' differences are added to the projections; laco-code: the projections become "
        "those of the last folded block, as in the authors' code; norms are unchanged either way",
    )
    layers: int = Field(4, ge=2, description="blocks that one step folds into one (the authors' code: 7 of 40)")
    interval: int = Field(1, ge=1, description="blocks to move down after an accepted step")
    lowest: int = Field(0, ge=0, description="lowest block that others may be folded into")
    highest: int | None = Field(None, ge=1, description="only blocks below this one are folded; the last block unless given")
    threshold: float = Field(0.45, ge=-1, le=1, description="cosine of the last hidden states above which a step is accepted")
    lower: bool = Field(
        default=True, description="lower the threshold until the budget is reached; else stop before it, with a note"
    )
    sentences: int = Field(
        5, gt=0, description="number of calibration texts, from the first on, whose last hidden states are compared"
    )

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why there is no such block, or why the budget is beyond the blocks between `lowest` and `highest`."""
        last, highest = facts.block_count - 1, self._highest(facts.block_count)
        if highest > last:
            return [f"pruner.highest = {highest}: the model's last block is {last}"]
        most = max(0, highest - 1 - self.lowest)
        problem = (
            f"pruner 'laco' can remove {most} of the blocks from {self.lowest} to {highest - 1}, not {facts.blocks}: "
            "remove fewer, or widen pruner.lowest and pruner.highest"
        )
        return [problem] if facts.blocks > most else []

    def prune(self, context: PruneContext) -> Pruned:
        """Return a merge for each run of folded blocks, and the blocks that replace them.

        Raises `PdtrimError` for a budget larger than the blocks between `lowest` and `highest` allow, and for blocks that
        differ in their weights' shapes.
        """
        self.check(context.facts)
        if not context.blocks:
            return Pruned(Removal())
        likeness = Likeness(context.model, context.sequences[: self.sentences])
        runs = self._fold_all(context, likeness, self._highest(context.model.block_count))
        modules: dict[Merge | Shrink, nn.Module] = {
            Merge(run.first, run.last): run.module for run in runs if run.last > run.first
        }
        return Pruned(Removal(modules), modules)

    def _highest(self, blocks: int) -> int:
        """Return the block below which blocks are folded."""
        return blocks - 1 if self.highest is None else self.highest

    def _fold_all(self, context: PruneContext, likeness: Likeness, highest: int) -> tuple[Run, ...]:
        """Make passes over the blocks until the budget is reached, or the threshold accepts no further step."""
        blocks = context.model.blocks
        runs = tuple(Run(block, block, module) for block, module in enumerate(blocks))
        goal = len(runs) - context.blocks
        threshold = self.threshold
        while len(runs) > goal:
            before = len(runs)
            runs, best, folded = self._pass(runs, likeness, threshold, goal=goal, highest=highest)
            if len(runs) < before:
                continue
            if not self.lower:
                context.note(
                    f"laco removed {len(blocks) - len(runs)} of {context.blocks} blocks: no further step has a cosine above "
                    f"{threshold:g}, the best one has {best:.4f}"
                )
                break
            runs, threshold = folded, best
        if threshold < self.threshold:
            context.note(
                f"laco lowered its threshold from {self.threshold:g} to {threshold:.4f} to reach {context.blocks} blocks"
            )
        return runs

    def _pass(
        self, runs: tuple[Run, ...], likeness: Likeness, threshold: float, *, goal: int, highest: int
    ) -> tuple[tuple[Run, ...], float, tuple[Run, ...]]:
        """Make one pass over the blocks, downwards.

        Return the runs, and the best cosine of the rejected steps with its runs, for the case that no step was accepted.
        """
        best, folded = -math.inf, runs
        at = len(runs)
        while len(runs) > goal:
            top = highest - (likeness.model.block_count - len(runs))
            size = min(self.layers, len(runs) - goal + 1)
            at = min(at, top - size)
            if at < self.lowest:
                break
            trial = fold(runs, at, size, self.merge)
            cosine = likeness.of(trial)
            if cosine > threshold:
                runs = trial
                at -= self.interval
            else:
                if cosine > best:
                    best, folded = cosine, trial
                at -= 1
        return runs, best, folded


class Likeness:
    """Similarity of folded models' last hidden states to the dense model's; the sentences run as one padded batch."""

    def __init__(self, model: BlockModel, sequences: Sequence[Sequence[int]]) -> None:
        import torch  # noqa: PLC0415 - listings must not import torch

        self.model = model
        width = max(map(len, sequences))
        ids_BT = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences], device=model.device)
        self._is_token_BT = torch.tensor([[t < len(s) for t in range(width)] for s in sequences], device=model.device)
        self._lengths = [len(s) for s in sequences]
        with torch.inference_mode():
            self._recording = model.record(ids_BT)
        self._dense = self._last_states([Run(block, block, module) for block, module in enumerate(model.blocks)])

    def of(self, runs: Sequence[Run]) -> float:
        """Return the mean cosine over sentences; all last hidden states of one, after the final norm, form one vector."""
        import torch  # noqa: PLC0415 - listings must not import torch

        pairs = zip(self._dense, self._last_states(runs), strict=True)
        cosines = [float(torch.cosine_similarity(dense.flatten(), ours.flatten(), dim=0)) for dense, ours in pairs]
        mean = math.fsum(cosines) / len(cosines)
        if not math.isfinite(mean):
            raise PdtrimError(
                'pruner \'laco\': the last hidden states are not finite: say dtype = "float32" or "bfloat16" in [model]'
            )
        return mean

    def _last_states(self, runs: Sequence[Run]) -> list[Tensor]:
        import torch  # noqa: PLC0415 - listings must not import torch

        with torch.inference_mode():
            hidden_BTD = self._recording.hidden_BTD
            for run in runs:
                hidden_BTD = self.model.run(run.first, hidden_BTD, self._recording.calls, run.module)
            normed_ND = self.model.normed(hidden_BTD[self._is_token_BT.to(hidden_BTD.device)]).float()
            return list(torch.split(normed_ND, self._lengths))


def fold(runs: tuple[Run, ...], at: int, size: int, way: Way) -> tuple[Run, ...]:
    """Return the runs with `size` of them, from `at` on, folded into the first."""
    folded = runs[at : at + size]
    module = folded_block([run.module for run in folded], way)
    return (*runs[:at], Run(folded[0].first, folded[-1].last, module), *runs[at + size :])


def folded_block(blocks: Sequence[nn.Module], way: Way) -> nn.Module:
    """Return a new block: the first one with the others folded into it.

    Its norms are those of the first block. All other weights are with "laco-paper" theta_0 + sum of (theta_k - theta_0) over
    the others, computed in float32 (Eq. 1), with "laco-code" those of the last one. Raises `PdtrimError` for blocks of
    different shapes.
    """
    import copy  # noqa: PLC0415 - listings must not import torch, which is imported next

    import torch  # noqa: PLC0415 - the same

    module = copy.deepcopy(blocks[0])
    ours, *others = (dict(block.named_parameters()) for block in (module, *blocks[1:]))
    shapes = {name: weight.shape for name, weight in ours.items()}
    if any({name: weight.shape for name, weight in other.items()} != shapes for other in others):
        raise PdtrimError("pruner 'laco': the blocks to fold differ in the shapes of their weights")
    norms = norm_weights(module)
    with torch.no_grad():
        for name, weight in ours.items():
            if name in norms:
                continue
            if way == "laco-paper":
                start = weight.float()
                weight.copy_(start + sum(other[name].to(start) - start for other in others))
            else:
                weight.copy_(others[-1][name])
    return module


def norm_weights(block: nn.Module) -> set[str]:
    """Return the names of a block's norm weights: those of parts that hold vectors and nothing else."""
    found = set()
    for place, part in block.named_modules():
        own = dict(part.named_parameters(recurse=False))
        if all(weight.dim() == 1 for weight in own.values()):
            found |= {f"{place}.{name}" if place else name for name in own}
    return found
