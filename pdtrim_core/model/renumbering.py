"""What depends on the numbers of blocks: attributes of theirs, and keys of a config that count them; both are found by trying."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pdtrim_core.model.small_config import config_from, data_of, depth_of, quietly, text_data

NUMBER = "layer_idx"
"""The attribute by which most families' modules know their block's number."""
UNCOMPARED = {"training", "config", "gradient_checkpointing"}
Plain = (bool, int, float, str, type(None))
Off = Callable[[dict[str, Any]], int]


def numbers_in(blocks: Sequence[nn.Module]) -> frozenset[tuple[str, str]]:
    """Return the attributes that hold a block's own number: for each the path of its module within a block, and its name."""
    found: set[tuple[str, str]] | None = None
    for number, block in enumerate(blocks):
        here = {
            (path, name)
            for path, module in block.named_modules()
            for name, value in vars(module).items()
            if type(value) is int and value == number and not name.startswith("_")
        }
        found = here if found is None else found & here
    # Of a single block, anything may be 0.
    return frozenset((path, name) for path, name in found or () if len(blocks) > 1 or name == NUMBER)


def traits_of(block: nn.Module, numbers: frozenset[tuple[str, str]]) -> dict[str, Any]:
    """Return what tells one block from another: the shapes of its tensors, and plain attributes but for its own number."""
    found: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and name not in UNCOMPARED and isinstance(value, Plain) and (path, name) not in numbers:
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def renumbered(text: dict[str, Any], likes: Sequence[int], count: int, off: Off) -> dict[str, Any]:
    """Return a config's data about the language model with the keys changed that count blocks, as far as that helps.

    `text` is cut to the blocks `likes` of `count` already, but for what counts them: numbers, such as that of the dense blocks in
    front, and lists of numbers. `off` tells of such data how many blocks are not what they should be.
    """
    best, wrong = dict(text), off(text)
    for key, value in _counting(text, likes, count):
        if not wrong:
            break
        tried = {**best, key: value}
        left = off(tried)
        if left < wrong:
            best, wrong = tried, left
    return best


def _counting(text: dict[str, Any], likes: Sequence[int], count: int) -> Iterator[tuple[str, Any]]:
    """Yield keys that may count blocks, each with the value that it then has for the blocks that are left."""
    for key, value in text.items():
        if type(value) is int and 0 < value <= count:
            yield key, sum(like < value for like in likes)
        elif isinstance(value, list | tuple) and value and all(type(one) is int and 0 <= one < count for one in value):
            yield key, [number for number, like in enumerate(likes) if like in value]


def uncountable(config: Any, make: Callable[[Any], Any]) -> str:
    """Return what keeps blocks from being renumbered, keys of a config where these are found, "" where all can be.

    Blocks are taken away by trying, one at the front, in the middle and at the end; `make` makes a model of a config. A config of
    which no model can be made says nothing: other checks have the reason.
    """
    count = depth_of(config)
    if count is None or count < 2:
        return ""
    wanted = _all_traits(config, make)
    if wanted is None:
        return ""
    if all(traits == wanted[0] for traits in wanted):
        alike = _describes(config, make, range(count - 1), wanted)
        return "" if alike else "what its blocks compute with how many there are"
    for gone in dict.fromkeys((0, count // 2, count - 1)):
        likes = [number for number in range(count) if number != gone]
        if not _describes(config, make, likes, wanted):
            keys = _deciding(config, make, wanted)
            return f"{', '.join(keys)} in its config" if keys else "what its blocks compute with their own number"
    return ""


def steps_as_lists(text: dict[str, Any], experts: Sequence[bool]) -> None:
    """Let a config's data name the blocks without experts, where it says instead that every so many blocks have some.

    `experts` tells of each block whether it has some. What follows from a block's number could not be said of other numbers.
    """
    if "decoder_sparse_step" in text:
        text["mlp_only_layers"] = [number for number, has in enumerate(experts) if not has]
        text["decoder_sparse_step"] = 1


def _describes(config: Any, make: Callable[[Any], Any], likes: Sequence[int], wanted: Sequence[dict[str, Any]]) -> bool:
    whole = data_of(config)
    text = text_data(config, whole)
    inside = text is not whole

    def off(changed: dict[str, Any]) -> int:
        data = copy.deepcopy(whole)
        part = text_data(config, data) if inside else data
        part.update(copy.deepcopy(changed))
        made = _all_traits(config_from(type(config), data), make)
        if made is None or len(made) != len(likes):
            return len(likes)
        return sum(traits != wanted[like] for traits, like in zip(made, likes, strict=True))

    cut = cut_to(config, text, likes)
    steps_as_lists(cut, [any("experts." in name for name in wanted[like]) for like in likes])
    return off(renumbered(cut, likes, len(wanted), off)) == 0


def cut_to(config: Any, text: dict[str, Any], likes: Sequence[int]) -> dict[str, Any]:
    """Return a config's data about the language model with its lists of one entry a block, and its count, cut to some blocks."""
    count, names = depth_of(config), config.get_text_config().attribute_map
    cut = {
        key: [value[like] for like in likes] if isinstance(value, list | tuple) and len(value) == count else value
        for key, value in text.items()
    }
    return {**cut, names.get("num_hidden_layers", "num_hidden_layers"): len(likes)}


def _deciding(config: Any, make: Callable[[Any], Any], wanted: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys by which blocks come to differ: those that make other blocks where they are changed by one."""
    whole, found = data_of(config), []
    text = text_data(config, whole)
    for key, value in text.items():
        if type(value) is not int or not 1 < value <= len(wanted) or value == depth_of(config):
            continue
        data = copy.deepcopy(whole)
        text_data(config, data)[key] = value - 1
        made = _all_traits(config_from(type(config), data), make)
        if made is not None and len(made) == len(wanted) and _kinds(made) != _kinds(wanted) and _shared(made, wanted):
            found.append(key)
    return found


def _kinds(traits: Sequence[dict[str, Any]]) -> list[int]:
    """Return for each block the first that is like it."""
    return [next(other for other, one in enumerate(traits) if one == of_block) for of_block in traits]


def _shared(made: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> bool:
    """Tell whether blocks are of the kinds that there were, in another order or number."""
    return all(any(one == other for other in wanted) for one in made)


def _all_traits(config: Any, make: Callable[[Any], Any]) -> list[dict[str, Any]] | None:
    """Return what tells the blocks of a config's model apart, block by block; None where it makes no model."""
    if config is None:
        return None
    try:
        with torch.device("meta"), quietly():
            model = make(copy.deepcopy(config))
    except Exception:  # noqa: BLE001 - each family checks its settings in its own way
        return None
    blocks = _blocks_of(model, config)
    if blocks is None:
        return None
    numbers = numbers_in(blocks)
    return [traits_of(block, numbers) for block in blocks]


def _blocks_of(model: nn.Module, config: Any) -> tuple[nn.Module, ...] | None:
    """Return the blocks of a model that is made of a config: of a model that sees not those of its eyes, which may be as many."""
    count, kind = depth_of(config), config.get_text_config().model_type
    parts = [part for part in model.modules() if getattr(getattr(part, "config", None), "model_type", None) == kind]
    for part in (*parts, model):
        for module in part.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return tuple(module)
    return None
