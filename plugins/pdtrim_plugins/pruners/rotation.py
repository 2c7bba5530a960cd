"""A model whose residual stream has its own basis at each point: rotated, sliced, and run as its family runs.

An orthogonal matrix Q between two RMS norms changes nothing if the weights that read the residual stream are multiplied by Q,
and those that write to it by the transpose of Q; the norms' own weights are first fused into the projections that follow them
(SliceGPT, section 3.1 and 3.2).

Shape suffixes: H hidden size of the dense model, D principal components that are kept, B batch, T token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdtrim_core.api import BlockModel, PdtrimError

DAMPING = 0.01
"""Share of the mean second moment that is added to the diagonal: with few tokens the moments do not have full rank."""


class PlainNorm(nn.Module):
    """An RMS norm without weights over hidden states whose last components are cut off.

    The mean is taken over the dense model's hidden size, so that the kept components keep their scale.
    """

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the hidden states divided by their root mean square."""
        wide = hidden_states.float()
        mean_square = wide.pow(2).sum(-1, keepdim=True) / self.hidden
        return (wide * torch.rsqrt(mean_square + self.eps)).to(hidden_states.dtype)


class RotatedBlock(nn.Module):
    """A block with three bases: that of its input, that between attention and MLP, and that of its output.

    Attention and MLP are the family's own, with rotated projections. The shortcuts around them rotate the hidden states from
    one basis to the next.
    """

    def __init__(self, dense: Any, hidden: int) -> None:
        super().__init__()
        self.self_attn = dense.self_attn
        self.mlp = dense.mlp
        self.input_layernorm = PlainNorm(hidden, dense.input_layernorm.variance_epsilon)
        self.post_attention_layernorm = PlainNorm(hidden, dense.post_attention_layernorm.variance_epsilon)
        self.attention_shortcut: nn.Parameter
        self.mlp_shortcut: nn.Parameter

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Run the block with the arguments that the family gives its blocks."""
        # The block in front may be on another device.
        hidden_states = hidden_states.to(self.attention_shortcut.device)
        hidden_states = hidden_states @ self.attention_shortcut + self.attended(hidden_states, **kwargs)
        return hidden_states @ self.mlp_shortcut + self.fed(hidden_states)

    def attended(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Return what attention adds to the hidden states."""
        found: Tensor = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return found

    def fed(self, hidden_states: Tensor) -> Tensor:
        """Return what the MLP adds to the hidden states."""
        found: Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return found


class Batch(NamedTuple):
    """Windows of calibration tokens: their hidden states in the sliced model so far, and the arguments of each block."""

    hidden_BTD: Tensor
    calls: Sequence[Any]

    def on(self, device: torch.device) -> Batch:
        """Return the batch with its hidden states on a device."""
        return Batch(self.hidden_BTD.to(device), self.calls)


class Slicer:
    """Rotates and slices a model block by block, each on the hidden states that the sliced blocks before it give.

    The dense model is unchanged; tensors that are not sliced are shared with it. With `normed`, all tokens have the same weight
    in the principal components, whatever their norm.
    """

    def __init__(self, dense: BlockModel, width: int, *, normed: bool) -> None:
        self._dense = dense
        self._width = width
        self._normed = normed
        self._hidden = int(dense.config.hidden_size)

    def slice(
        self,
        windows: Sequence[Sequence[int]],
        *,
        batch_tokens: int | None = None,
        reached: Callable[[float], None] = lambda share: None,
    ) -> BlockModel:
        """Return the sliced model, made from windows of one length; `reached` takes the share of the blocks that are done.

        Raises `PdtrimError` where hidden states are not finite.
        """
        with torch.no_grad():
            batches = list(self._batches(windows, batch_tokens or self._dense.fitting_batch))
            model = _shared_copy(self._dense.model)
            basis_HD, batches = self._embed(model, batches)
            blocks = model.get_submodule(self._dense.layout.blocks)
            for index in range(self._dense.block_count):
                blocks[index] = RotatedBlock(blocks[index], self._hidden)
                device = next(self._dense.blocks[index].parameters()).device
                basis_HD, batches = basis_HD.to(device), [batch.on(device) for batch in batches]
                basis_HD, batches = self._attention(blocks[index], index, basis_HD, batches)
                basis_HD, batches = self._mlp(blocks[index], index, basis_HD, batches)
                reached((index + 1) / self._dense.block_count)
        dense = self._dense
        name = f"{dense.name}, its hidden size cut to {self._width}"
        return BlockModel(model, dense.tokenizer, dense.layout, name=name, license_id=dense.license)

    def _batches(self, windows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[Batch]:
        """Yield the embedded windows with the calls of the dense model's blocks."""
        rows = max(1, batch_tokens // len(windows[0]))
        for start in range(0, len(windows), rows):
            ids_BT = torch.tensor([list(window) for window in windows[start : start + rows]], device=self._dense.device)
            recording = self._dense.record(ids_BT)
            yield Batch(recording.hidden_BTD, recording.calls)

    def _embed(self, model: Any, batches: list[Batch]) -> tuple[Tensor, list[Batch]]:
        """Slice the embeddings; embeddings tied to the head stay whole, as the head does."""
        dense = self._dense.model.get_input_embeddings()
        if dense.weight is self._dense.model.get_output_embeddings().weight:
            return torch.eye(self._hidden, dtype=torch.float64, device=dense.weight.device), batches
        basis_HD = self._axes([batch.hidden_BTD for batch in batches], "before block 0")
        # The copy's own module, which is given its tokens wherever its weights are.
        sliced = model.get_input_embeddings()
        sliced.weight, sliced.embedding_dim = _parameter(dense.weight.double() @ basis_HD, dense.weight), self._width
        return basis_HD, [Batch(_rotated(batch.hidden_BTD, basis_HD), batch.calls) for batch in batches]

    def _attention(self, block: RotatedBlock, index: int, basis_HD: Tensor, batches: list[Batch]) -> tuple[Tensor, list[Batch]]:
        """Rotate attention; return the basis after it, and the hidden states in that basis."""
        attention, norm = block.self_attn, self._dense.blocks[index].get_parameter("input_layernorm.weight")
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, _reading(getattr(attention, name), norm, basis_HD))

        def summed(batch: Batch) -> Tensor:
            attended_BTH = block.attended(batch.hidden_BTD, **batch.calls[index].kwargs)
            return _rotated(batch.hidden_BTD, basis_HD.T) + attended_BTH

        signals = [summed(batch) for batch in batches]
        next_HD = self._axes(signals, f"after the attention of block {index}")
        attention.o_proj = _writing(attention.o_proj, next_HD)
        block.attention_shortcut = _parameter(basis_HD.T @ next_HD, norm)
        return next_HD, _moved(batches, signals, next_HD)

    def _mlp(self, block: RotatedBlock, index: int, basis_HD: Tensor, batches: list[Batch]) -> tuple[Tensor, list[Batch]]:
        """Rotate the MLP; return the basis after it (after the last block the dense model's), and the hidden states in it."""
        mlp, norm = block.mlp, self._dense.blocks[index].get_parameter("post_attention_layernorm.weight")
        for name in ("gate_proj", "up_proj"):
            setattr(mlp, name, _reading(getattr(mlp, name), norm, basis_HD))
        if index == self._dense.block_count - 1:
            block.mlp_shortcut = _parameter(basis_HD.T, norm)
            return torch.eye(self._hidden, dtype=torch.float64, device=basis_HD.device), batches
        signals = [_rotated(batch.hidden_BTD, basis_HD.T) + block.fed(batch.hidden_BTD) for batch in batches]
        next_HD = self._axes(signals, f"after block {index}")
        mlp.down_proj = _writing(mlp.down_proj, next_HD)
        block.mlp_shortcut = _parameter(basis_HD.T @ next_HD, norm)
        return next_HD, _moved(batches, signals, next_HD)

    def _axes(self, signals: Sequence[Tensor], place: str) -> Tensor:
        """Return the principal axes `[H, D]` of hidden states, those of the largest variance first, in float64."""
        moment_HH = torch.zeros(self._hidden, self._hidden, dtype=torch.float64, device=signals[0].device)
        for signal_BTH in signals:
            tokens_NH = signal_BTH.flatten(0, 1).double()
            if self._normed:
                tokens_NH = tokens_NH / tokens_NH.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
            moment_HH += tokens_NH.T @ tokens_NH
        if not torch.isfinite(moment_HH).all():
            raise PdtrimError(
                f"slicegpt: the hidden states {place} of {self._dense.name} are not finite: open the model with dtype float32 or "
                "bfloat16"
            )
        axes_HH = principal_axes(moment_HH)
        return axes_HH[:, : self._width]


def sliced_again(dense: BlockModel, weights: Mapping[str, Tensor]) -> BlockModel:
    """Rebuild a model that a `Slicer` made from its weights by name; all other weights are the dense model's."""
    model = _shared_copy(dense.model)
    blocks = model.get_submodule(dense.layout.blocks)
    for index in range(dense.block_count):
        blocks[index] = RotatedBlock(blocks[index], int(dense.config.hidden_size))
    for name, weight in weights.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, leaf, _parameter(weight, next(module.parameters())))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    width = blocks[0].mlp_shortcut.shape[0]
    name = f"{dense.name}, its hidden size cut to {width}"
    return BlockModel(model, dense.tokenizer, dense.layout, name=name, license_id=dense.license)


def principal_axes(moment_HH: Tensor) -> Tensor:
    """Return the eigenvectors of a matrix of second moments as columns, those of the largest eigenvalues first."""
    damped_HH = moment_HH + DAMPING * moment_HH.diagonal().mean() * torch.eye(len(moment_HH)).to(moment_HH)
    axes_HH: Tensor = torch.linalg.eigh(damped_HH).eigenvectors.flip(-1)
    return axes_HH


def _shared_copy(model: Any) -> Any:
    """Return a copy of a model with new modules and the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _moved(batches: Sequence[Batch], signals: Sequence[Tensor], basis_HD: Tensor) -> list[Batch]:
    """Return batches with new hidden states, given in the dense model's basis."""
    return [Batch(_rotated(signal, basis_HD), batch.calls) for batch, signal in zip(batches, signals, strict=True)]


def _rotated(hidden: Tensor, basis: Tensor) -> Tensor:
    return hidden @ basis.to(hidden)


def _reading(linear: nn.Linear, norm_H: Tensor, basis_HD: Tensor) -> nn.Linear:
    """Return a projection that reads hidden states in a basis, with the weights of the norm before it fused in."""
    return _linear(linear, (linear.weight.double() * norm_H.double()) @ basis_HD.to(linear.weight.device), linear.bias)


def _writing(linear: nn.Linear, basis_HD: Tensor) -> nn.Linear:
    """Return a projection that writes hidden states in a basis."""
    basis_HD = basis_HD.to(linear.weight.device)
    bias = None if linear.bias is None else linear.bias.double() @ basis_HD
    return _linear(linear, basis_HD.T @ linear.weight.double(), bias)


def _linear(like: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = _parameter(weight, like.weight)
    if bias is not None:
        made.bias = _parameter(bias, like.weight)
    return made


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """Return values as a parameter in the number format and on the device of another one."""
    return nn.Parameter(values.to(like).contiguous(), requires_grad=False)
