"""The config of a pruned checkpoint, and a check that it makes exactly the blocks that are stored."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pdtrim_core.api import PdtrimError, reason_of
from pdtrim_plugins.exporters.stages import StoredBlock, layout_data, lost_in, widths_of

if TYPE_CHECKING:
    from torch import nn

    from pdtrim_core.api import BlockModel

NOT_BY_BLOCK = {"architectures", "eos_token_id", "bos_token_id", "pad_token_id", "mlp_only_layers"}
"""Lists of a config that do not have one entry per block, whatever their length."""
CHANNELS = ("intermediate_size", "ffn_dim")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
BY_NUMBER = ("scale_attn_by_inverse_layer_idx",)
"""Settings that make a block compute with its own number, so that it cannot be renumbered."""
OURS, OUR_CLASS = "pdtrim_", "PDTrim"
"""How the model types and the classes of our own begin, which take the place of a family's where blocks differ."""
ENTRY = "pdtrim"
"""The entry of a config that tells how blocks differ."""
UNCOMPARED = {"training", "layer_idx", "config", "gradient_checkpointing"}
Plain = (bool, int, float, str, type(None))


def ordinary(model: BlockModel, stored: Sequence[StoredBlock]) -> Any:
    """Return the family's own config, renumbered, for a checkpoint that stock classes load.

    Raises `PdtrimError` with the reason where the family's config cannot describe the blocks.
    """
    data = _renumbered(model, [block.like for block in stored])
    common = _common(model, stored)
    if common is None:
        raise PdtrimError(f"{model.name}: blocks have widths or biases of their own, which no config of this family can describe")
    if lost_in(stored):
        raise PdtrimError(f"{model.name}: blocks lack their attention or their MLP, which no config of this family can describe")
    _set_widths(model, common, data)
    config_class, model_class = stock_of(model)
    config = _read(config_class, data, model)
    check(model, stored, model_class, config)
    return config


def family_of(config: Any) -> str:
    """Return the family of a config: for an export of ours that is pruned again, the one that it was of."""
    return str(config.model_type).removeprefix(OURS)


def stock_of(model: BlockModel) -> tuple[type[Any], type[Any]]:
    """Return the family's own classes of a model: of an export of ours, those that its classes are made of."""
    classes = type(model.model.config), type(model.model)
    if not str(model.model.config.model_type).startswith(OURS):
        return classes
    config_class, model_class = (found.__bases__[0] for found in classes)
    return config_class, model_class


def without_shared(stored: Sequence[StoredBlock]) -> tuple[dict[str, int], list[StoredBlock]]:
    """Return the heads and channels that all blocks have left, which a family's own keys tell, and the blocks without those."""
    heads: set[Any] = {block.widths.get("attention") for block in stored}
    channels: set[Any] = {block.widths.get("mlp") for block in stored if block.parts is None}
    shared = {"attention": heads, "mlp": channels}
    common = {part: next(iter(found)) for part, found in shared.items() if len(found) == 1 and None not in found}
    thin = [replace(block, widths={part: told for part, told in block.widths.items() if part not in common}) for block in stored]
    return common, thin


def formed(
    model: BlockModel, stored: Sequence[StoredBlock], told: Mapping[str, Any], *, common: Mapping[str, int] | None = None
) -> Any:
    """Return a config of our own class of the family, for blocks that differ from one another.

    Blocks are renumbered, unless `told` names the removed ones. `common` has the widths that all blocks share, which are set
    in the family's own config keys.
    """
    from pdtrim_plugins.checkpoints import (  # noqa: PLC0415 - listings must not import torch
        CONFIG_KEY,
        EXPERTS_FORMAT,
        PARTS_FORMAT,
        classes_of,
    )

    config_class, model_class = classes_of(family_of(model.model.config))
    kept = range(model.block_count) if "removed" in told else [block.like for block in stored]
    data = _renumbered(model, kept)
    _set_widths(model, common or {}, data)
    data |= {"model_type": config_class.model_type, "architectures": [model_class.__name__]}
    data[CONFIG_KEY] = {**told, "widths": widths_of(stored), "place": layout_data(model.layout)}
    if lost := lost_in(stored):
        modules = {part: list(vars(module).values()) for part, module in model.parts.modules.items() if part in lost.values()}
        data[CONFIG_KEY] |= {"format": PARTS_FORMAT, "without": lost, "parts": modules}
    if any("experts" in block.widths for block in stored):
        data[CONFIG_KEY] |= {"format": EXPERTS_FORMAT}
    config = _read(config_class, data, model)
    check(model, stored, model_class, config)
    return config


def numbered(name: str, config: Any) -> list[str]:
    """Return why blocks of a family cannot be renumbered; `config` is that of the language model."""
    return [
        f"{name}: its blocks compute with their own number ({key}), so they cannot get another one"
        for key in BY_NUMBER
        if getattr(config, key, False)
    ]


def check(model: BlockModel, stored: Sequence[StoredBlock], model_class: type[Any], config: Any) -> None:
    """Raise `PdtrimError` unless a model made from a config has, block by block, what is stored."""
    for problem in numbered(model.name, model.config):
        raise PdtrimError(problem)
    blocks = _made(model, model_class, config).get_submodule(model.layout.blocks)
    for block in stored:
        if block.parts is not None:
            continue
        for difference in _differences(block.make(), blocks[block.index], model.numbers):
            raise PdtrimError(
                f"{model.name}: the config of this family cannot describe block {block.like} as block {block.index} of the "
                f"checkpoint: {difference}"
            )


def _made(model: BlockModel, model_class: type[Any], config: Any) -> Any:
    """Return a model without weights."""
    import torch  # noqa: PLC0415 - listings must not import torch

    try:
        with torch.device("meta"):
            return model_class(copy.deepcopy(config))
    except Exception as error:
        # Some families check their settings only here.
        raise PdtrimError(f"{model.name}: the config of this family cannot be cut to this plan: {reason_of(error)}") from error


def _renumbered(model: BlockModel, likes: Sequence[int]) -> dict[str, Any]:
    """Return the config as data; its lists of one entry per block are cut to the blocks that are kept."""
    from pdtrim_core.api import steps_as_lists  # noqa: PLC0415 - listings must not import torch

    data: dict[str, Any] = _stock_data(model.model.config)
    text = data if model.config is model.model.config else data["text_config"]
    for key, value in text.items():
        if isinstance(value, list | tuple) and len(value) == model.block_count and key not in NOT_BY_BLOCK:
            text[key] = [value[like] for like in likes]
    text[_key(model, "num_hidden_layers")] = len(likes)
    steps_as_lists(text, [_has_experts(model, like) for like in likes])
    return _counted(model, data, likes)


def _counted(model: BlockModel, data: dict[str, Any], likes: Sequence[int]) -> dict[str, Any]:
    """Return the config as data with the keys changed that count blocks, where the blocks would be others without."""
    import torch  # noqa: PLC0415 - listings must not import torch

    from pdtrim_core.api import renumbered, traits_of  # noqa: PLC0415 - the same

    nested = model.config is not model.model.config
    config_class, stock = stock_of(model)
    wanted = {like: traits_of(model.blocks[like], model.numbers) for like in likes}

    def off(text: dict[str, Any]) -> int:
        whole = {**data, "text_config": text} if nested else text
        try:
            with torch.device("meta"):
                made = stock(_read(config_class, copy.deepcopy(whole), model))
        except Exception:  # noqa: BLE001 - each family checks its settings in its own way, and they are only tried
            return len(likes)
        blocks = made.get_submodule(model.layout.blocks)
        if len(blocks) != len(likes):
            return len(likes)
        return sum(traits_of(block, model.numbers) != wanted[like] for block, like in zip(blocks, likes, strict=True))

    found = renumbered(data["text_config"] if nested else data, likes, model.block_count, off)
    return {**data, "text_config": found} if nested else found


def uncounted(name: str, config: Any) -> list[str]:
    """Return why blocks of a config cannot be renumbered, by trying."""
    from pdtrim_core.api import auto_class_of, uncountable  # noqa: PLC0415 - listings must not import torch

    if str(config.model_type).startswith(OURS):
        stock: Any = type(config).__bases__[0]
        config = stock.from_dict(_stock_data(config))
    keys = uncountable(config, lambda tried: auto_class_of(tried).from_config(tried, trust_remote_code=False))
    return (
        [f"{name}: blocks cannot be renumbered, because of {keys}, and exports need that: leave out the exporter"] if keys else []
    )


def _stock_data(config: Any) -> dict[str, Any]:
    """Return a config as data of the family's own."""
    data: dict[str, Any] = copy.deepcopy(config.to_dict())
    data.pop(ENTRY, None)
    return {**data, "model_type": family_of(config)}


def _has_experts(model: BlockModel, block: int) -> bool:
    return any(".experts." in f".{name}." for name, _ in model.blocks[block].named_parameters())


def _set_widths(model: BlockModel, widths: Mapping[str, int], data: dict[str, Any]) -> None:
    """Set the widths that all blocks share in a config."""
    from pdtrim_core.api import head_dim_of  # noqa: PLC0415 - listings must not import torch

    text = data if model.config is model.model.config else data["text_config"]
    if "attention" in widths:
        text["head_dim"] = head_dim_of(model.config)
        heads, kv_heads = _key(model, "num_attention_heads"), _key(model, "num_key_value_heads")
        text[heads] = text[heads] * widths["attention"] // (text.get(kv_heads) or text[heads])
        if kv_heads in text:
            text[kv_heads] = widths["attention"]
    if "mlp" in widths:
        (key,) = [key for key in CHANNELS if key in text]
        text[key] = widths["mlp"]
    if "experts" in widths:
        text |= dict.fromkeys((key for key in EXPERTS if key in text), widths["experts"])


def _common(model: BlockModel, stored: Sequence[StoredBlock]) -> dict[str, Any] | None:
    """Return the widths that all blocks have; None where they have none in common. Blocks without experts may have any number."""
    first, *others = ({part: width for part, width in block.widths.items() if part != "experts"} for block in stored)
    if "bias" in first or any(widths != first for widths in others):
        return None
    dense = {block.index: model.units(block.like).count("experts") for block in stored if model.units(block.like).has("experts")}
    experts = {block.widths.get("experts", dense[block.index]) for block in stored if block.index in dense}
    if len(experts) > 1:
        return None
    # Of a model that was pruned before, the config may tell of more than any block has.
    changed = experts - set(dense.values()) or len(set(dense.values())) > 1 or any("experts" in block.widths for block in stored)
    return {**first, "experts": experts.pop()} if changed else first


def _key(model: BlockModel, name: str) -> str:
    """Return a family's name for one of the common settings."""
    return str(getattr(model.config, "attribute_map", {}).get(name, name))


def _read(config_class: type[Any], data: dict[str, Any], model: BlockModel) -> Any:
    for key in ("_name_or_path", "transformers_version"):
        data.pop(key, None)
    try:
        return config_class.from_dict(data)
    except Exception as error:
        # Each family validates its config in its own way.
        raise PdtrimError(f"{model.name}: the config of this family cannot be cut to this plan: {reason_of(error)}") from error


def _differences(ours: nn.Module, theirs: nn.Module, numbers: Collection[tuple[str, str]]) -> Iterator[str]:
    """Yield the differences between two blocks: in tensors and in plain attributes of modules, but for those with a number."""
    wanted, made = (
        {name: tuple(t.shape) for name, t in block.state_dict().items() if not _in_shadow(name)} for block in (ours, theirs)
    )
    for name in sorted({*wanted, *made}):
        if wanted.get(name) != made.get(name):
            yield f"{name} is {_shape(wanted.get(name))}, and would be {_shape(made.get(name))}"
    modules = dict(theirs.named_modules())
    for name, module in ours.named_modules():
        other = modules[name]
        for key, value in vars(module).items():
            if key.startswith("_") or key in UNCOMPARED or (name, key) in numbers or not isinstance(value, Plain):
                continue
            if vars(other).get(key, value) != value:
                yield f"{name}.{key} is {value!r}, and would be {vars(other)[key]!r}".lstrip(".")


def _in_shadow(name: str) -> bool:
    """Whether a tensor belongs to the shadow, which computes another block's K/V."""
    return name.startswith("shadow.")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"
