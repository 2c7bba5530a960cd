"""Finds where a model keeps its blocks by structure: the list whose elements are called once each, in order.

It is seen on a tiny copy of the model, so that neither weights nor time are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.find_parts import find_parts
from pdtrim_core.model.small_config import depth_of, quietly, run_three, small_copy
from pdtrim_core.model.supported import check_config, check_own_weights, check_text_model

CHOOSE = "a plugin can say which with the hook pdtrim_find_blocks"


def find_layout(model: Any, name: str) -> BlockLayout:
    """Return where a model keeps its blocks, and what these are made of as far as that is unambiguous.

    The model itself is not run, unless no tiny copy of it can be made and it has weights. Raises `PdtrimError` where there is no
    such list, or where there are several, and for blocks that no plan can be carried out on, with the reason.
    """
    check_config(model.config, name)
    for path in _lists_of(model, depth_of(model.config)):
        check_own_weights(tuple(model.get_submodule(path)), name)
    try:
        small = _tried(model)
    except Exception as error:
        # Each architecture has its own way of not running.
        family = model.config.model_type
        raise PdtrimError(
            f"{name}: no plugin knows where the architecture '{family}' keeps its blocks, and they cannot be found by trying "
            f"({reason_of(error)}); a plugin can say so with the hook pdtrim_find_blocks"
        ) from error
    found = sequences(small)
    if len(found) > 1:
        told = " and ".join(f"{path} ({len(small.get_submodule(path))} of them)" for path in found)
        raise PdtrimError(f"{name}: blocks may be those at {told}, which each run in order: {CHOOSE}")
    if not found:
        lists = _lists_of(small, depth_of(small.config))
        beside = f" ({lists[0]} does not)" if lists else ""
        raise PdtrimError(
            f"{name}: its architecture has no list of blocks that run once each, in order{beside}; it cannot be pruned by blocks"
        )
    check_text_model(small, found[0], name)
    return _in_all_blocks(find_parts(small, found[0]), model)


def sequences(model: Any) -> list[str]:
    """Return the paths of the lists of a model whose elements are called once each, in order; none inside another."""
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    called: dict[str, list[int]] = {path: [] for path in lists}
    with ExitStack() as hooks:
        for path, blocks in lists.items():
            for number, block in enumerate(blocks):
                note = _noting(called[path], number)
                hooks.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        run_three(model)
    whole = [path for path, numbers in called.items() if numbers == list(range(len(lists[path])))]
    outer = [path for path in whole if not any(path.startswith(f"{other}.") for other in whole)]
    depth = depth_of(model.config)
    return [path for path in outer if len(lists[path]) == depth] or outer


def _lists_of(model: Any, count: int | None) -> list[str]:
    """Return the paths of lists of so many modules."""
    return [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count]


def _noting(numbers: list[int], number: int) -> Any:
    def note(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
        numbers.append(number)

    return note


def _tried(model: Any) -> Any:
    """Return what is run to learn of a model: a tiny copy, or else the model itself where that can run."""
    try:
        return small_copy(model)
    except PdtrimError:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise
        with torch.inference_mode(), quietly():
            run_three(model)
        return model


def _in_all_blocks(layout: BlockLayout, model: Any) -> BlockLayout:
    """Return a layout less the parts that not all blocks of the whole model have."""
    blocks: Sequence[nn.Module] = tuple(model.get_submodule(layout.blocks))
    names = [{name for name, _ in block.named_modules()} for block in blocks]

    def everywhere(parts: tuple[str, ...]) -> tuple[str, ...]:
        return parts if all(part in of_block for part in parts for of_block in names) else ()

    return BlockLayout(layout.blocks, everywhere(layout.kv), everywhere(layout.attention), everywhere(layout.mlp))
