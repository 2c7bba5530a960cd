"""What a stage costs, from sizes alone: parameters, prefill FLOPs, decode weight traffic, K/V bytes.

No weights and no torch are needed: `ModelSizes` is a value that `model_sizes.sizes_of` reads off a model, on the meta device if
need be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.elements import Part, Shrink, ShrunkPart, Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.routing import Routing

PREFILL_TOKENS = 1024
What = Literal["parameters", "active"]
"""All numbers of a block, or those that one token reads."""


@dataclass(frozen=True)
class BlockSizes:
    """One block: all its parameters, those a token reads (fewer in a mixture of experts), and its attention.

    `kv_parameters` are the K and V projections', `kv_norms` the norms' that K and V take as well, `kv_width` the numbers of K
    and V a token, `attention_width` the query heads times their size. `units` has for each part that can be shrunk how many
    units it has and how many parameters each of them holds; `parts` for each part that is a module of its own how many parameters
    it has, and how many of them a token reads. `routing` says how a token gets to its experts, where there are some.
    """

    parameters: int
    active: int
    kv_parameters: int
    kv_width: int
    attention_width: int
    units: Mapping[ShrunkPart, tuple[int, int]] = field(default_factory=dict)
    kv_norms: int = 0
    parts: Mapping[Part, tuple[int, int]] = field(default_factory=dict)
    routing: Routing | None = None

    def of_part(self, part: Part) -> tuple[int, int]:
        """Return the parameters of a part, and those that a token reads. Raises `PdtrimError` where they are not known."""
        if part not in self.parts:
            raise PdtrimError(f"the cost of a block without its {part} is unknown: this family's {part} is no module of its own")
        return self.parts[part]

    def lost(self, shrinks: Sequence[Shrink], what: What = "parameters") -> int:
        """Return the parameters that go with the units of some shrinks. Raises `PdtrimError` where a part has no units.

        Of experts a token reads as many as before: with those that are gone it only saves their rows of the router.
        """
        for shrink in shrinks:
            if shrink.part not in self.units:
                raise PdtrimError(f"the cost of a shrunk block (block {shrink.block}) is unknown: its {shrink.part} has no units")
        return sum(len(shrink.units) * self._each(shrink.part, what) for shrink in shrinks)

    def experts_read(self, shrinks: Sequence[Shrink], tokens: int) -> float:
        """Return how many experts so many tokens of one step read together, 0 where there are none.

        It is the mean for a router that chooses all experts alike often, and anew for each token. Real ones repeat themselves.
        """
        if self.routing is None:
            return 0.0
        kept = self.units["experts"][0] - sum(len(shrink.units) for shrink in shrinks if shrink.part == "experts")
        return kept * (1 - (1 - self.routing.top_k / kept) ** tokens)

    def _each(self, part: ShrunkPart, what: What) -> int:
        return (
            self.routing.parameters if self.routing is not None and (part, what) == ("experts", "active") else self.units[part][1]
        )

    def heads_kept(self, shrinks: Iterable[Shrink]) -> float:
        """Return the share of the K/V heads that some shrinks leave, as a fraction of 1."""
        lost = sum(len(shrink.units) for shrink in shrinks if shrink.part == "attention")
        return 1 - lost / self.units["attention"][0] if lost else 1.0


@dataclass(frozen=True)
class ModelSizes:
    """A model: its blocks, all parameters (tied weights once), the head's weights, and the bytes of one number.

    `own_head` are those of the head's weights that are not the embedding's too.
    """

    blocks: tuple[BlockSizes, ...]
    parameters: int
    head: int
    bytes_per_number: int
    own_head: int = 0

    def share_of_parameters(self, count: int) -> float:
        """Return the share of all parameters that so many average blocks hold, as a fraction of 1."""
        return count * sum(block.parameters for block in self.blocks) / len(self.blocks) / self.parameters

    def blocks_for(self, fraction: float) -> int:
        """Return the number of blocks whose share of the parameters is nearest to a fraction; ties take fewer."""
        counts = range(len(self.blocks))
        return min(counts, key=lambda count: (abs(self.share_of_parameters(count) - fraction), count))

    def kept_parameters(self, plan: Plan, stage: Stage) -> int:
        """Return the parameters that a stage keeps, tied weights once.

        K/V-only blocks keep their K/V projections and the norms in front of K and V; a truncated prefill has no head.
        """
        outside = self.parameters - sum(block.parameters for block in self.blocks)
        if stage == "prefill" and plan.prefill and plan == plan.truncated_prefill(len(self.blocks)):
            outside -= self.own_head
        return outside + sum(self._kept(layer, "parameters") for layer in plan.layers(stage, len(self.blocks)))

    def prefill_flops(self, plan: Plan, tokens: int = PREFILL_TOKENS) -> int:
        """Return the FLOPs of prefill over a prompt: matrix products, causal attention, and the head once."""
        flops = 2 * self.head
        for layer in plan.layers("prefill", len(self.blocks)):
            flops += 2 * tokens * self._kept(layer, "active")
            if layer.runs and layer.has_kv:
                block = self.blocks[layer.like]
                flops += 2 * tokens * (tokens + 1) * round(block.attention_width * block.heads_kept(layer.shrinks))
        return flops

    def forward_flops(self, plan: Plan, tokens: int = PREFILL_TOKENS) -> int:
        """Return the FLOPs of prefill's blocks over a prompt with logits behind every token, as training frameworks run it."""
        return self.prefill_flops(plan, tokens) + 2 * (tokens - 1) * self.head

    def decode_bytes(self, plan: Plan) -> int:
        """Return the bytes of weights that decode reads a token, the head included."""
        numbers = self.head + sum(self._kept(layer, "active") for layer in plan.layers("decode", len(self.blocks)))
        return numbers * self.bytes_per_number

    def kv_bytes(self, plan: Plan, tokens: int = PREFILL_TOKENS) -> int:
        """Return the bytes of K/V that prefill ships to decode a prompt token, the mean over a prompt of so many tokens.

        It depends on the tokens only where the plan selects K/V.
        """
        layers = plan.layers("decode", len(self.blocks))
        widths = (
            self.blocks[layer.like].kv_width * self.blocks[layer.like].heads_kept(layer.shrinks) * _share_read(layer, tokens)
            for layer in layers
            if layer.has_kv
        )
        return round(sum(widths)) * self.bytes_per_number

    def step_bytes(self, plan: Plan, *, batch: int, context: int) -> int:
        """Return the bytes that decode reads for one token of each sequence in a batch: weights once, K/V of every sequence.

        The context counts as a prompt, of which K/V may be selected. Each sequence has experts of its own: see `experts_read`.
        """
        weights = self.decode_bytes(plan) + round(self._more_experts(plan, batch)) * self.bytes_per_number
        return weights + batch * context * self.kv_bytes(plan, context)

    def cost(self, plan: Plan, stage: Stage) -> float:
        """Return a stage's cost as a share of the dense model's: FLOPs of prefill, bytes a token of decode."""
        if stage == "prefill":
            return self.prefill_flops(plan) / self.prefill_flops(Plan())
        return self.decode_bytes(plan) / self.decode_bytes(Plan())

    def _more_experts(self, plan: Plan, batch: int) -> float:
        """Return the parameters of the experts that decode reads for a batch, beyond those of one token."""
        numbers = 0.0
        for layer in plan.layers("decode", len(self.blocks)):
            block = self.blocks[layer.like]
            if block.routing is not None and layer.lost != "mlp":
                more = block.experts_read(layer.shrinks, batch) - block.routing.top_k
                numbers += more * (block.units["experts"][1] - block.routing.parameters)
        return numbers

    def _kept(self, layer: Layer, what: What) -> int:
        """Return what a stage has of one layer: what its units leave of all parameters, or what makes its K/V."""
        block = self.blocks[layer.like]
        if not layer.runs:
            return round(block.kv_parameters * block.heads_kept(layer.shrinks)) + block.kv_norms
        whole = block.parameters if what == "parameters" else block.active
        parameters, active = block.of_part(layer.lost) if layer.lost else (0, 0)
        return whole - block.lost(layer.shrinks, what) - (parameters if what == "parameters" else active)


def _share_read(layer: Layer, tokens: int) -> float:
    """Return the share of a prompt's tokens whose K/V a layer of decode reads, as a fraction of 1."""
    return sum(layer.selection.read(tokens)) / tokens if layer.selection is not None and tokens else 1.0
