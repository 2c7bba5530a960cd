"""A transformers model seen as blocks, without re-implementing any family's forward.

The model's own forward makes masks, position embeddings and whatever else a block is given: it is run with patched blocks
that record their arguments. The final norm and the head run the same way, with blocks patched to pass hidden states through.

Shape suffixes: L block outputs, B batch, T token, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.model.block_calls import Call, Moved, run_block, split_call
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.block_parts import FoundParts, found_parts, without_part
from pdtrim_core.model.dtypes import stored_as
from pdtrim_core.model.fingerprints import exact_fingerprint_of, fingerprint_of
from pdtrim_core.model.limits import check_ids, check_length, learned_positions
from pdtrim_core.model.logits_head import HEAD_NUMBERS, KeptLogits, apart
from pdtrim_core.model.mapped_weights import BlocksOnDisk, MappedWeights
from pdtrim_core.model.narrowing import Units, head_dim_of, narrowed
from pdtrim_core.model.renumbering import numbers_in
from pdtrim_core.model.several_devices import device_of, weights_of
from pdtrim_core.model.sizes import sizes_of
from pdtrim_core.model.supported import check_config, check_own_weights, probe
from pdtrim_core.model.waiting_states import WaitingStates
from pdtrim_core.plan.costs import ModelSizes
from pdtrim_core.plan.elements import Part, Shrink
from pdtrim_core.plan.layers import Layer


class _RecordedError(BaseException):
    """Ends a forward behind its last block; no handler of errors in a model is meant to see it."""


COMPILERS = ("torch._dynamo", "torch._inductor")


@dataclass(frozen=True)
class Recording:
    """The input of block 0 and each block's call, for one batch of tokens."""

    hidden_BTD: Tensor
    calls: tuple[Call, ...]


class BlockModel:
    """A causal language model as a list of blocks that can be run one by one.

    Raises `PdtrimError` for models whose blocks are no plain sequence, or whose rotary embedding depends on the length of the
    batch.
    """

    def __init__(  # noqa: PLR0913 - one for each thing that is known of a model's origin
        self,
        model: Any,
        tokenizer: Any,
        layout: BlockLayout,
        *,
        name: str = "",
        license_id: str = "",
        dtypes: Mapping[str, str] | None = None,
        mapped: MappedWeights | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = tokenizer
        self.layout = layout
        self.name = name
        self.license = license_id
        self.dtypes: Mapping[str, str] = dict(dtypes or {})
        """The number formats of the checkpoint; see `LoadedModel`."""
        self.files: tuple[Path, ...] = ()
        """The files that the weights come from, set by who opened them; hashes of the weights are remembered for these."""
        self.blocks: tuple[nn.Module, ...] = tuple(model.get_submodule(layout.blocks))
        check_config(model.config, name)
        self.config = model.config.get_text_config()
        check_own_weights(self.blocks, name)
        self.on_disk = None if mapped is None else BlocksOnDisk(model, self.blocks, mapped)
        """The blocks of a model whose weights stay in their files; None where all are in memory."""
        self._waiting = None if mapped is None else WaitingStates(mapped.device)
        one_token = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        with nullcontext() if self.on_disk is None else self.on_disk.as_they_run():
            self._returns, self._last_width = probe(model, self.blocks, one_token, name=name, layout=layout.blocks)
        self.compiles = False
        """Whether blocks are compiled before they run: faster, after half a minute or so, and other last digits."""
        self._kept_logits = KeptLogits()
        # Weak: a sweep over one model would hold the narrowed blocks of all its runs.
        self._narrowed: WeakValueDictionary[tuple[Any, ...], nn.Module] = WeakValueDictionary()

    @property
    def block_count(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def head(self) -> nn.Module | None:
        """The layer that makes logits."""
        found: nn.Module | None = self.model.get_output_embeddings()
        return found

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return device_of(self.model.get_input_embeddings())

    @cached_property
    def _places(self) -> tuple[torch.device, ...] | None:
        """The device of each block; None where all are on one, or brought to one when they run."""
        if self.on_disk is not None:
            return None
        places = tuple(device_of(block) for block in self.blocks)
        return None if set(places) == {self.device} else places

    @property
    def streams(self) -> bool:
        """Whether its weights stay on the disk, so that all that is to be run should be run block by block (see `passes`)."""
        return self.on_disk is not None

    @property
    def offloaded(self) -> bool:
        """Whether some weights found no room where they compute, so that accelerate brings them there for each pass.

        Such a model runs as ever; its weights can be neither changed nor copied.
        """
        return not self.streams and any(weight.is_meta for weight in self.model.parameters())

    @property
    def attention(self) -> str:
        """How attention is computed, as transformers names it, such as sdpa."""
        found: str = self.model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
        return found

    @property
    def fitting_batch(self) -> int:
        """Padded tokens a batch that suit the device: few enough for a processor's cache, many enough for an accelerator."""
        if self.device.type != "cpu":
            return 8192
        return 1024 if next(self.model.parameters()).element_size() < 4 else 512

    @property
    def dtype(self) -> torch.dtype:
        """The number format that is computed with."""
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    def stored_dtype(self, name: str = "") -> torch.dtype:
        """Return the number format in which the checkpoint has a tensor, or most of them: the one computed with where unknown."""
        found = stored_as(name, self.dtypes)
        return self.dtype if found is None else getattr(torch, found)

    @cached_property
    def vocabulary(self) -> int:
        """The number of token ids that have a row in the embedding."""
        rows: int = self.model.get_input_embeddings().weight.shape[0]
        return rows

    @cached_property
    def positions(self) -> int | None:
        """The number of learned positions, which no text may exceed; None where positions are computed."""
        return learned_positions(self.model, self.layout.blocks, getattr(self.config, "max_position_embeddings", None))

    @cached_property
    def numbers(self) -> frozenset[tuple[str, str]]:
        """The attributes in which a block knows its own number: for each the path of its module within a block, and its name."""
        return numbers_in(self.blocks)

    def check_tokens(self, tokens: Sequence[int], what: str, *, more: int = 0) -> None:
        """Raise `PdtrimError` where a text and so many `more` tokens are not what the model can be given; `what` names it."""
        self.check_ids(tokens, what)
        check_length(len(tokens) + more, self.positions, what=what, name=self._said)

    def check_ids(self, tokens: Sequence[int], what: str) -> None:
        """Raise `PdtrimError` for a token that has no row in the embedding."""
        check_ids(tokens, self.vocabulary, what=what, name=self._said)

    @property
    def _said(self) -> str:
        return self.name or type(self.model).__name__

    @cached_property
    def sizes(self) -> ModelSizes:
        """The sizes that costs are computed from."""
        return sizes_of(self.model, self.layout)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of names, shapes and weights; the same whatever number format the weights are loaded in."""
        return fingerprint_of(self.model, self.files, self.let_go)

    @cached_property
    def exact_fingerprint(self) -> str:
        """A SHA-256 of all that decides the model's numbers: its config, and its weights and buffers to the bit."""
        return exact_fingerprint_of(self.model, self.files, self.let_go)

    def let_go(self) -> None:
        """Free the memory of weights that stay in their files, of a model that has such."""
        if self.on_disk is not None:
            self.on_disk.let_go()

    def check_finite(self) -> None:
        """Raise `PdtrimError` naming the first weight that holds a NaN or an infinity."""
        for name, weights in weights_of(self.model, behind=self.let_go):
            # A sum is quick, and finite only where all weights are; one that is not may be of large weights.
            if not torch.isfinite(weights.sum()) and not torch.isfinite(weights).all():
                raise PdtrimError(f"{self.name}: the weight {name} holds a NaN or an infinity; the checkpoint is damaged")

    def record(self, ids_BT: Tensor, mask_BTT: Tensor | None = None, positions_BT: Tensor | None = None) -> Recording:
        """Run what comes before block 0 and note what each block would be given. The blocks themselves do not run.

        `mask_BTT` (`[B, 1, T, T]`, True where a token may look) and `positions_BT` replace the plain causal mask and the
        running positions.
        """
        inputs: list[Tensor] = []
        calls: list[Call] = []
        moved: Moved = {}

        def note(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, call = split_call(args, kwargs)
                inputs.append(hidden)
                # Blocks may be on several devices: what a block is given beside the hidden states waits at its own.
                calls.append(call if self._places is None else call.on(self._places[index], moved))
                if index == self.block_count - 1:
                    # Nobody reads what is made behind it, which is the most expensive part of it all.
                    raise _RecordedError
                return self.wrap(index, hidden)

            return forward

        with self.patched({index: note(index) for index in range(self.block_count)}), suppress(_RecordedError):
            self.model(input_ids=ids_BT, use_cache=False, **self._looks(mask_BTT, positions_BT))
        return Recording(self.waiting(inputs[0]), tuple(calls))

    def run(self, index: int, hidden_BTD: Tensor, calls: Sequence[Call], module: nn.Module | None = None) -> Tensor:
        """Run one block (or a replacement module) as the model would, on the hidden states given."""
        block = self.blocks[index] if module is None else module
        call = calls[index]
        if self.on_disk is not None:
            self.on_disk.go_to(index)
            hidden_BTD = hidden_BTD.to(self.on_disk.device)
        if self._places is not None:
            hidden_BTD = hidden_BTD.to(self._places[index])
        # Training goes on as it is: it changes weights, and keeps what a compiled block would fuse away.
        run = self._compiled_run if self.compiles and torch.is_inference_mode_enabled() else run_block
        try:
            with self.bringing():
                after_BTD = run(block, hidden_BTD, call.args, call.kwargs, by_keyword=call.by_keyword)
        except RuntimeError as error:
            if not type(error).__module__.startswith(COMPILERS):
                raise
            raise PdtrimError(
                f"the blocks cannot be compiled here ({reason_of(error)}): leave out evaluation.compile, or install "
                "what torch.compile needs, such as a C++ compiler"
            ) from error
        return self.waiting(after_BTD)

    def waiting(self, hidden_BTD: Tensor) -> Tensor:
        """Return hidden states that wait for their next block, from where there is room for them.

        Where weights are in memory they stay where they are; see `waiting_states`.
        """
        return hidden_BTD if self._waiting is None else self._waiting.put(hidden_BTD)

    def bringing(self) -> AbstractContextManager[object]:
        """Return the context in which a module of weights that are in main memory runs where the model does.

        Elsewhere than in a model whose weights stay on the disk they are there already.
        """
        return nullcontext() if self.on_disk is None else self.on_disk.bringing()

    @cached_property
    def _compiled_run(self) -> Callable[..., Tensor]:
        # One compilation for all blocks that are alike, and for batches of all shapes.
        compiled: Callable[..., Tensor] = torch.compile(run_block, dynamic=True)
        return compiled

    def units(self, block: int) -> Units:
        """Return the heads, channels and experts of a block."""
        return Units(self.blocks[block], self.layout, head_dim_of(self.config))

    def narrowed(self, shrinks: Sequence[Shrink], outputs: Mapping[Any, nn.Module]) -> nn.Module:
        """Return a block less the units that shrinks of it remove, the same module as long as someone holds it.

        See `narrowing.narrowed`.
        """
        key = (*shrinks, *(id(outputs.get(shrink)) for shrink in shrinks))
        thin = self._narrowed.get(key)
        if thin is None:
            block = self.blocks[shrinks[0].block]
            thin = self._narrowed[key] = narrowed(block, self.layout, head_dim_of(self.config), shrinks, outputs)
        return thin

    @cached_property
    def parts(self) -> FoundParts:
        """The parts that blocks can run without, found by trying when they are first asked for."""
        tokens = min(3, self.positions or 3)
        with torch.inference_mode():
            recording = self.record(torch.arange(tokens, device=self.device)[None] % self.vocabulary)
        with self.bringing():
            return found_parts(self._one_by_one(), self.layout, recording.hidden_BTD, recording.calls)

    def _one_by_one(self) -> Iterator[nn.Module]:
        """Yield the blocks, each in memory only until the next one where their weights stay on the disk."""
        for index, block in enumerate(self.blocks):
            if self.on_disk is not None:
                self.on_disk.go_to(index)
            yield block
        if self.on_disk is not None:
            self.on_disk.let_go()

    def check_parts(self, parts: Collection[Part]) -> None:
        """Raise `PdtrimError` where blocks cannot run without one of these parts, with the reason."""
        for part in sorted(parts):
            if part in self.parts.refused:
                raise PdtrimError(f"{self._said}: its blocks cannot run without their {part}: {self.parts.refused[part]}")

    def left_of(self, layer: Layer, outputs: Mapping[Any, nn.Module]) -> nn.Module:
        """Return what a plan left of a layer's block: the block itself, or what it is less some units or a part.

        It is the same module as long as someone holds it; see `narrowing.narrowed` and `block_parts.without_part`. Raises
        `PdtrimError` for a part that the block cannot run without.
        """
        block = self.narrowed(layer.shrinks, outputs) if layer.shrinks else self.blocks[layer.block]
        return block if layer.lost is None else self._less(block, layer.lost)

    def without_part(self, index: int, part: Part) -> nn.Module:
        """Return a block that runs without a part; raises `PdtrimError` where it cannot."""
        return self._less(self.blocks[index], part)

    def _less(self, block: nn.Module, part: Part) -> nn.Module:
        self.check_parts((part,))
        left = self._narrowed.get(key := (id(block), part))
        if left is None:
            left = self._narrowed[key] = without_part(block, self.parts.modules[part])
            # An id is that of another module once this one is gone.
            vars(left)["_made_of"] = block
        return left

    def logits(self, hidden_ND: Tensor) -> Iterator[Tensor]:
        """Yield the logits `[N, V]` of hidden states behind the last block, in float32, some positions at a time."""
        for part_ND in self._at_once(hidden_ND):
            yield self._behind_blocks(self.model, part_ND).logits[:, 0].float()

    def map_logits(self, hidden_ND: Tensor, function: Callable[[Tensor, int], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """Return what a function makes of the logits of hidden states behind the last block, some positions at a time.

        The function is given logits `[N, V]` in the model's number format, and the number of the first of their positions. They
        are its own while it runs: their memory is then used again, and what it returns is copied where it is part of them.
        """
        found, start = [], 0
        for part_ND in self._at_once(hidden_ND):
            with self._kept_logits.written_by(self.head):
                logits_NV = self._behind_blocks(self.model, part_ND).logits[:, 0]
            with self._kept_logits.lent():
                found.append(tuple(apart(result, logits_NV) for result in function(logits_NV, start)))
            start += len(part_ND)
        return found

    def _at_once(self, hidden_ND: Tensor) -> tuple[Tensor, ...]:
        if self.on_disk is not None:
            self.on_disk.go_to(self.block_count)
            hidden_ND = hidden_ND.to(self.on_disk.device)
        return torch.split(hidden_ND, max(1, HEAD_NUMBERS // self.config.vocab_size))

    def normed(self, hidden_ND: Tensor) -> Tensor:
        """Return hidden states behind the last block as the head gets them, `[N, D]`: behind the final norm."""
        normed_ND: Tensor = self._behind_blocks(self.model.base_model, hidden_ND).last_hidden_state[:, 0]
        return normed_ND

    def _behind_blocks(self, model: Any, hidden_ND: Tensor) -> Any:
        """Return the output of the model, or of its part without the head, as if its blocks had made these hidden states."""

        def hand_over(*_args: Any, **_kwargs: Any) -> Any:
            return self.wrap(self.block_count - 1, hidden_ND[:, None])

        def hand_through(*args: Any, **kwargs: Any) -> Any:
            return self.wrap(0, split_call(args, kwargs)[0])

        patches = dict.fromkeys(range(self.block_count - 1), hand_through)
        with self.patched({**patches, self.block_count - 1: hand_over}):
            # One token a row, so that no mask and no position beyond the first is ever made.
            ids = torch.zeros((len(hidden_ND), 1), dtype=torch.long, device=self.device)
            # Without a mask the model would look at the positions to make one, which the host would have to wait for.
            mask = ids.new_ones((len(ids), 1, 1, 1), dtype=torch.bool) if self._takes_masks else None
            return model(input_ids=ids, use_cache=False, **self._looks(mask, ids))

    @cached_property
    def _takes_masks(self) -> bool:
        """Whether the model takes a mask of ours with positions; those that make their own of a plain one, for ALiBi, do not."""
        ids = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        try:
            with torch.inference_mode():
                self.record(ids, ids.new_ones((1, 1, 1, 1), dtype=torch.bool), ids)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        return True

    @contextmanager
    def patched(self, forwards: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
        """Replace the forward of some blocks inside the context; what was there comes back in any case."""
        kept = {index: self.blocks[index].__dict__.get("forward") for index in forwards}
        try:
            for index, forward in forwards.items():
                self.blocks[index].__dict__["forward"] = forward
            yield
        finally:
            for index, before in kept.items():
                if before is None:
                    self.blocks[index].__dict__.pop("forward", None)
                else:
                    self.blocks[index].__dict__["forward"] = before

    def passing_by(self, module: nn.Module) -> Callable[..., Any]:
        """Return a forward that runs a block for its K/V and hands its input on in the form of its output."""
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden

        return forward

    def _looks(self, mask_BTT: Tensor | None, positions_BT: Tensor | None) -> dict[str, Tensor]:
        if mask_BTT is None or positions_BT is None:
            return {}
        if self.attention != "sdpa":
            weight = self.model.get_input_embeddings().weight
            blocked = torch.zeros_like(mask_BTT, dtype=weight.dtype)
            mask_BTT = blocked.masked_fill(~mask_BTT, torch.finfo(weight.dtype).min)
        return {"attention_mask": mask_BTT, "position_ids": positions_BT}

    def wrap(self, index: int, hidden_BTD: Tensor) -> Any:
        """Return hidden states in the form of a block's output."""
        rest = self._returns[index]
        return hidden_BTD if rest is None else (hidden_BTD, *rest)
