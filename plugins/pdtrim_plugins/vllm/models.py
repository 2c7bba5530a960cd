"""What the models of all families have in common: the blocks of a stage's checkpoint instead of vLLM's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.utils import maybe_prefix

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.blocks import KvOnlyAttention, give_rows
from pdtrim_plugins.vllm.first_tokens import FirstTokens
from pdtrim_plugins.vllm.layout import Layout, missing_tensors

STACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class StageModel(nn.Module):
    """What all families have in common: no head where nothing reads the logits, and strict loading."""

    inner: Callable[..., nn.Module]
    """Makes the family's model without its head."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        if get_pp_group().world_size > 1:
            raise PdtrimError("checkpoints of pdtrim-core run on one pipeline stage: leave out --pipeline-parallel-size")
        config = vllm_config.model_config.hf_config
        self.config = config
        self.quant_config = vllm_config.quant_config
        self.has_head = Layout.of(config).head
        self.model = type(self).inner(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        layout = Layout.of(config)
        self.first_tokens: FirstTokens | None = None
        if layout.first_tokens:
            self.first_tokens = FirstTokens(layout.first_tokens, vllm_config.scheduler_config.max_num_batched_tokens)
            give_rows(self.model, self.first_tokens)
        self.lm_head = self._head(maybe_prefix(prefix, "lm_head")) if self.has_head else nn.Identity()
        self.logits_processor = LogitsProcessor(config.vocab_size, scale=getattr(config, "logit_scale", 1.0))
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def _head(self, prefix: str) -> nn.Module:
        config = self.config
        head = ParallelLMHead(config.vocab_size, config.hidden_size, quant_config=self.quant_config, prefix=prefix)
        tied: nn.Module = head.tie_weights(self.model.embed_tokens) if config.tie_word_embeddings else head
        return tied

    def forward(self, input_ids: Tensor | None, positions: Tensor, *args: Any, **given: Any) -> Any:
        """Run the model as its family does, with what is known of first tokens."""
        if self.first_tokens is not None:
            self.first_tokens.look_up(input_ids, positions)
        return super().forward(input_ids, positions, *args, **given)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return logits, or zeros where the checkpoint has no head: decode makes the first token, and prefill's is dropped."""
        if not self.has_head:
            return hidden_states.new_zeros(len(hidden_states), self.config.vocab_size)
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint. Raises `PdtrimError` where a tensor is missing; vLLM raises for one too many."""
        found: set[str] = set()
        loaded: set[str] = super().load_weights(_noting(weights, found))  # type: ignore[misc]  # the family's
        # With quantised weights the engine's parameters differ from the checkpoint's, and it checks them itself.
        missing = (
            []
            if self.quant_config is not None
            else missing_tensors((name for name, _ in self.named_parameters()), self._stacked(), found)
        )
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise PdtrimError(f"the checkpoint lacks {', '.join(missing[:3])}{more}: it is damaged, export it again")
        return loaded

    def _stacked(self) -> dict[str, tuple[str, ...]]:
        """Return the checkpoint modules that each of the engine's stacked modules is made of, by full name."""
        found = {}
        for name, _ in self.named_modules():
            parent, _, last = name.rpartition(".")
            if last in STACKED:
                kv_only = isinstance(self.get_submodule(parent), KvOnlyAttention)
                found[name] = tuple(f"{parent}.{source}" for source in STACKED[last][1 if kv_only else 0 :])
        return found


def _noting(weights: Iterable[tuple[str, Tensor]], found: set[str]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        found.add(name)
        yield name, tensor


def with_blocks(model: Any, **hook: Any) -> Any:
    """Return vLLM's model of a family with another class of blocks, as a static method."""
    return staticmethod(functools.partial(model, **hook))
