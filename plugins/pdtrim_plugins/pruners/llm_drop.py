"""LLM-Drop: removes the attention or the MLP of the blocks whose part changes the hidden states least, in one shot.

Shape suffixes: B batch, T token, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field

from pdtrim_core.api import DropPart, PdtrimError, Plan, Pruned, Pruner, Removal

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import PruneContext, PruneFacts

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = get_args(Part)


class LlmDrop(Pruner):
    """Drops the parts whose output, with the hidden states that it is added to, is most like these: by the cosine.

    The attention of a block is measured from what the block is given to what it makes without its MLP, and the MLP from there to
    what the block makes. All parts are measured once, on the dense model.
    """

    name = "llm-drop"
    cites = "He et al., What Matters in Transformers? Not All Attention is Needed, 2024 (arXiv:2406.15786)"

    drop: Literal["attention", "mlp", "both"] = Field(
        "attention", description="parts that may go; both: whichever changes the hidden states least (the paper's joint drop)"
    )
    counts: Literal["parameters", "parts"] = Field(
        "parameters",
        description="what prune.blocks counts; parameters: as many go as so many blocks have; parts: so many parts go, as in the "
        "paper, whose Attn-8 is 8 of attention",
    )

    @property
    def drops_parts(self) -> bool:
        """Always."""
        return True

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why the parts that may go are too few or too small, or are no modules of their own."""
        sizes, wanted = facts.sizes, self._parts
        fused = [part for part in PARTS if any(part not in block.parts for block in sizes.blocks)]
        if fused:
            return [f"{self.name}: the {fused[0]} of {facts.model} ({facts.family}) is no module of its own in each block"]
        # One block keeps its attention.
        places = [(block, part) for block in range(facts.block_count) for part in wanted]
        most = _removal([place for place in places if place != (0, "attention")])
        if self.counts == "parts":
            told = f"{facts.blocks} parts are to go, but only {len(most)} of {self.drop} may: decode needs attention in a block"
            return [f"{self.name}: {told}"] if facts.blocks > len(most) else []
        holds = sizes.parameters - sizes.kept_parameters(Plan.unified(most), "decode")
        smallest = min(block.parts[part][0] for block in sizes.blocks for part in wanted)
        if facts.parameters <= holds + smallest / 2:
            return []
        other = "" if self.drop == "both" else ', or say drop = "both"'
        shares = [f"{100 * parameters / sizes.parameters:.2f} %" for parameters in (facts.parameters, holds)]
        told = f"{shares[0]} of the parameters are to go, but all of {self.drop} that may go has only {shares[1]}"
        return [f"{self.name}: {told}: ask for less{other}"]

    def prune(self, context: PruneContext) -> Pruned:
        """Return the dropped parts; ties go to the lower block, and there to attention."""
        self.check(context.facts)
        if context.blocks == 0 and context.parameters == 0:
            return Pruned(Removal())
        alike = self.similarities(context)
        order = sorted(alike, key=lambda place: (-alike[place], place))
        chosen = self._so_many(order, context) if self.counts == "parts" else self._as_large(order, context)
        told = ", ".join(f"{block}.{part} ({alike[block, part]:.4f})" for block, part in chosen)
        context.note(f"{self.name} removed {told or 'nothing'}; in brackets: cosine of what a part is given and makes")
        return Pruned(_removal(chosen))

    def similarities(self, context: PruneContext) -> dict[tuple[int, Part], float]:
        """Return the mean cosine over all tokens for each part that may go, by its block.

        Raises `PdtrimError` for a model whose blocks cannot run without a part, and for a mean that is not finite.
        """
        import torch  # noqa: PLC0415 - listings must not import torch

        model = context.model
        model.check_parts(PARTS)
        sums = torch.zeros(model.block_count, len(PARTS), dtype=torch.float64, device=model.device)
        tokens, wanted = 0, sum(map(len, context.sequences))
        for batch in context.states.token_batches():
            context.reached(tokens / wanted)
            tokens += int(batch.is_token_BT.sum())
            with torch.inference_mode():
                recording = model.record(batch.ids_BT)
                before_BTD = recording.hidden_BTD
                for block in range(model.block_count):
                    between_BTD = model.run(block, before_BTD, recording.calls, model.without_part(block, "mlp"))
                    behind_BTD = model.run(block, before_BTD, recording.calls)
                    pairs = ((before_BTD, between_BTD), (between_BTD, behind_BTD))
                    sums[block] += torch.stack([_sum(*pair, batch.is_token_BT).to(sums.device) for pair in pairs])
                    before_BTD = behind_BTD
        found = {
            (block, part): mean
            for block, means in enumerate((sums / max(1, tokens)).tolist())
            for part, mean in zip(PARTS, means, strict=True)
            if part in self._parts
        }
        for (block, part), mean in found.items():
            if not math.isfinite(mean):
                raise PdtrimError(
                    f"{self.name}: the hidden states at the {part} of block {block} are not finite; if the weights are in "
                    'float16, which overflows early, say model.dtype = "bfloat16" or "float32"'
                )
        return found

    @property
    def _parts(self) -> tuple[Part, ...]:
        return PARTS if self.drop == "both" else (self.drop,)

    def _so_many(self, order: Sequence[tuple[int, Part]], context: PruneContext) -> list[tuple[int, Part]]:
        """Return the first parts of an order, but for the attention of the last block that has some."""
        chosen: list[tuple[int, Part]] = []
        for place in order:
            if len(chosen) < context.blocks and _leaves_attention([*chosen, place], context.model.block_count):
                chosen.append(place)
        return chosen

    def _as_large(self, order: Sequence[tuple[int, Part]], context: PruneContext) -> list[tuple[int, Part]]:
        """Return those parts, in order, that each bring what is removed nearer to the budget."""
        sizes, chosen, off = context.model.sizes, list[tuple[int, Part]](), context.parameters
        for place in order:
            more = [*chosen, place]
            gone = sizes.parameters - sizes.kept_parameters(Plan.unified(_removal(more)), "decode")
            if _leaves_attention(more, context.model.block_count) and abs(context.parameters - gone) < off:
                chosen, off = more, abs(context.parameters - gone)
        return chosen


def _removal(places: Sequence[tuple[int, Part]]) -> Removal:
    return Removal(DropPart(*place) for place in places)


def _leaves_attention(places: Sequence[tuple[int, Part]], block_count: int) -> bool:
    return sum(part == "attention" for _, part in places) < block_count


def _sum(before_BTD: Tensor, after_BTD: Tensor, is_token_BT: Tensor) -> Tensor:
    """Return the sum of the cosines between hidden states, over real tokens, in float64."""
    import torch  # noqa: PLC0415 - listings must not import torch

    alike_BT = torch.cosine_similarity(before_BTD.float(), after_BTD.to(before_BTD.device).float(), dim=-1)
    return alike_BT.double().masked_fill(~is_token_BT.to(alike_BT.device), 0).sum()
