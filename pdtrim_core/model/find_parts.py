"""Finds what a block is made of by shape, call order and numbers; what is not certain counts as not there.

One token at position 0 tells the projections apart: the rotary embedding leaves its K as it is, and attention to a single token
is its V. What was found is tried out: a block without some units must compute what it does where these give nothing.

Shape suffixes: B batch, T token, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.model.block_calls import Call, run_block, split_call
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.block_trace import BlockTrace, Ran, plain_cache, traces_of
from pdtrim_core.model.narrowing import Units, head_dim_of, narrowed
from pdtrim_core.model.small_config import quietly
from pdtrim_core.plan.elements import PARTS, Part, Shrink

NEAR = 1e-4
"""How far two tensors may be apart, as a share of their length, and count as the same: more than rounding, and no chance."""


def find_parts(model: Any, path: str) -> BlockLayout:
    """Return the layout of a model's blocks, with the parts that all of them have and that are certain."""
    blocks: Sequence[nn.Module] = tuple(model.get_submodule(path))
    traces = traces_of(model, blocks, plain_cache())
    found = [_parts(trace) for trace in traces]
    kv, attention, mlp = (parts if all(of_block[at] == parts for of_block in found) else () for at, parts in enumerate(found[0]))
    layout = BlockLayout(path, kv, attention, mlp)
    calls = _calls(model, blocks)
    fits = {
        part: all(_tries_out(model, block, layout, part, call) for block, call in zip(blocks, calls, strict=True))
        for part in PARTS
    }
    return BlockLayout(path, kv, attention if fits["attention"] else (), mlp if fits["mlp"] else ())


def _parts(trace: BlockTrace) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return what makes K and V in a block, the projections of its attention, and those of its MLP."""
    kv = _kv(trace)
    attention = _attention(trace, *kv[1:3]) if kv else ()
    of_kv = tuple(ran.name for ran in kv)
    # Some families have no norm in front of attention: their projections may be cut, but K and V are not made apart.
    return (of_kv if kv and kv[0].name else ()), attention, _mlp(trace, attention or of_kv[1:3])


def _kv(trace: BlockTrace) -> tuple[Ran, ...]:
    """Return the norm in front of K and V (of no name where there is none), their projections, and K's own norm."""
    if len(trace.kv) != 1:
        return ()
    keys, values = trace.kv[0]
    linears = trace.linears
    of_v = [ran for ran in linears if _alike(ran.made, values)]
    of_k = [ran for ran in trace.ran if _alike(ran.made, keys, scaled=True) and ran not in of_v]
    if len(of_v) != 1 or not of_k:
        return ()
    v, last = of_v[0], of_k[-1]
    norms: tuple[Ran, ...] = ()
    k = last
    if not isinstance(last.module, nn.Linear):
        makers = [ran for ran in linears if _alike(ran.made, last.given)]
        if len(makers) != 1:
            return ()
        k, norms = makers[0], (last,)
    if k.linear.out_features != v.linear.out_features or not torch.equal(k.given, v.given):
        return ()
    at = trace.ran.index(min(k, v, key=trace.ran.index))
    fronts = [ran for ran in trace.ran[:at] if ran.made.shape == k.given.shape and torch.equal(ran.made, k.given)]
    front = fronts[-1] if fronts else Ran("", nn.Identity(), k.given, k.given)
    return (front, k, v, *norms)


def _attention(trace: BlockTrace, k: Ran, v: Ran) -> tuple[str, ...]:
    """Return the projections of Q, K and V and the one behind attention."""
    values = trace.kv[0][1]
    parent, behind = k.name.rpartition(".")[0], trace.ran.index(max(k, v, key=trace.ran.index))
    beside = [ran for ran in trace.linears if ran.name.rpartition(".")[0] == parent and ran not in (k, v)]
    queries = [ran for ran in beside if torch.equal(ran.given, k.given) and ran.linear.out_features % k.linear.out_features == 0]
    outs = [ran for ran in beside if ran not in queries and trace.ran.index(ran) > behind]
    if len(queries) != 1 or len(outs) != 1 or len(beside) != 2:
        return ()
    q, out = queries[0], outs[0]
    repeated = values.repeat_interleave(q.linear.out_features // k.linear.out_features, dim=1)
    shaped = out.linear.in_features == q.linear.out_features and out.linear.out_features == k.linear.in_features
    return (q.name, k.name, v.name, out.name) if shaped and _alike(out.given, repeated, scaled=True) else ()


def _mlp(trace: BlockTrace, others: Sequence[str]) -> tuple[str, ...]:
    """Return the projections into an MLP's channels and the one out of them."""
    linears = [ran for ran in trace.linears if ran.name not in others]
    found = []
    for number, out in enumerate(linears):
        width, hidden = out.linear.in_features, out.linear.out_features
        into = [ran for ran in linears[:number] if (ran.linear.in_features, ran.linear.out_features) == (hidden, width)]
        if into and width != hidden:
            found.append((*(ran.name for ran in into), out.name))
    return found[0] if len(found) == 1 and len(found[0]) <= 3 else ()


def _alike(one: Tensor, other: Tensor, *, scaled: bool = False) -> bool:
    """Tell whether two tensors hold the same numbers in the same order, whatever their shapes; `scaled`: but for a factor."""
    if one.numel() != other.numel():
        return False
    left, right = one.flatten().float(), other.flatten().float()
    if scaled:
        left, right = left / left.norm().clamp(min=1e-12), right / right.norm().clamp(min=1e-12)
    return float((left - right).norm()) <= NEAR * float(right.norm())


def _calls(model: Any, blocks: Sequence[nn.Module]) -> list[tuple[Tensor, Call]]:
    """Return the hidden states that each block is given for three tokens, and the rest of its call."""
    found: list[tuple[Tensor, Call]] = []
    with ExitStack() as hooks:
        for block in blocks:
            hook = block.register_forward_pre_hook(
                lambda _module, args, kwargs: found.append(split_call(args, kwargs)), with_kwargs=True
            )
            hooks.callback(hook.remove)
        with torch.inference_mode(), quietly():
            model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    return found


def _tries_out(model: Any, block: nn.Module, layout: BlockLayout, part: Part, given: tuple[Tensor, Call]) -> bool:
    """Tell whether a block less a unit of a part is what the block is where that unit gives nothing."""
    names = layout.attention if part == "attention" else layout.mlp
    if not names or _has_more(block, layout, part):
        return False
    head_dim = head_dim_of(model.config.get_text_config())
    units = Units(block, layout, head_dim)
    if not units.has(part) or units.count(part) < 2:
        return units.has(part) and units.count(part) == 1
    out = block.get_submodule(names[-1])
    assert isinstance(out, nn.Linear)
    hidden, call = given
    before = out.weight.data
    try:
        thin = narrowed(block, layout, head_dim, [Shrink(0, part, (1,))], {})
        silenced = before.clone()
        silenced[:, units.numbers(out, part, [1], out=True)] = 0
        out.weight.data = silenced
        with torch.inference_mode(), quietly():
            found, wanted = (
                run_block(one, hidden.clone(), call.args, call.kwargs, by_keyword=call.by_keyword) for one in (thin, block)
            )
    except Exception:  # noqa: BLE001 - a wrong guess at a part fails in as many ways as there are families
        return False
    finally:
        out.weight.data = before
    return _alike(found, wanted)


def _has_more(block: nn.Module, layout: BlockLayout, part: Part) -> bool:
    """Tell whether an MLP is only part of what a block computes with: beside experts, among which a router chooses."""
    if part == "attention":
        return False
    inside = layout.mlp[-1].partition(".")[0]
    weights = [(name, weight.dim()) for name, weight in block.named_parameters() if name.rpartition(".")[0] not in layout.mlp]
    return any(dim > 2 or (dim > 1 and name.partition(".")[0] == inside) for name, dim in weights)
