"""Shapes of published models: their sizes as facts, and models of such shapes with random weights.

How long a model takes depends on its shape, not on its weights, so that times can be measured without a download.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdtrim_core.errors import PdtrimError, did_you_mean, reason_of
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.plan.elements import MOST_BLOCKS
from pdtrim_core.wording import shortened, shown

if TYPE_CHECKING:
    import torch

    from pdtrim_core.host.host import PluginHost
    from pdtrim_core.model.block_model import BlockModel
    from pdtrim_core.plan.costs import ModelSizes

_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "max_position_embeddings",
)
_SHAPES: Mapping[str, tuple[Any, ...]] = {
    "llama-2-7b": ("llama", 32000, 4096, 11008, 32, 32, 32, 128, False, 4096),
    "llama-2-13b": ("llama", 32000, 5120, 13824, 40, 40, 40, 128, False, 4096),
    "llama-3.1-8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False, 131072),
    "llama-3.1-70b": ("llama", 128256, 8192, 28672, 80, 64, 8, 128, False, 131072),
    "llama-3.2-1b": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True, 131072),
    "llama-3.2-3b": ("llama", 128256, 3072, 8192, 28, 24, 8, 128, True, 131072),
    "mistral-7b-v0.3": ("mistral", 32768, 4096, 14336, 32, 32, 8, 128, False, 32768),
    "qwen2.5-7b": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False, 131072),
    "qwen2.5-14b": ("qwen2", 152064, 5120, 13824, 48, 40, 8, 128, False, 131072),
    "qwen2.5-32b": ("qwen2", 152064, 5120, 27648, 64, 40, 8, 128, False, 131072),
    "qwen3-8b": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False, 40960),
    "smollm2-135m": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True, 8192),
}
SHAPES: Mapping[str, Mapping[str, Any]] = {name: dict(zip(_KEYS, values, strict=True)) for name, values in _SHAPES.items()}
"""Hyperparameters by name, from the published `config.json` files."""


@dataclass(frozen=True)
class ModelShape:
    """A model without weights: its name, its transformers config, and its sizes in the number format it would have."""

    name: str
    config: Any
    sizes: ModelSizes
    dtype: torch.dtype

    @property
    def weight_bytes(self) -> int:
        """The bytes that all weights take."""
        return self.sizes.parameters * self.sizes.bytes_per_number


def read_shape(given: str, host: PluginHost, dtype: torch.dtype) -> ModelShape:
    """Return a shape by its name in `SHAPES`, or from a config.json or the folder of one.

    Raises `PdtrimError` for a name that is unknown and for a config that transformers or the plugins do not know.
    """
    import torch  # noqa: PLC0415 - the names are listed without it

    from pdtrim_core.model.auto_class import auto_class_of, why_no_model  # noqa: PLC0415 - wanted only here
    from pdtrim_core.model.sizes import sizes_of  # noqa: PLC0415 - imports torch

    name, data = _data_of(given)
    config = _config(name, data)
    try:
        with torch.device("meta"):
            model = auto_class_of(config).from_config(config, dtype=dtype, trust_remote_code=False)
        sizes = sizes_of(model, host.find_blocks(model, name))
    except PdtrimError:
        raise
    except Exception as error:
        # Whatever a wrong number in a config trips over.
        raise PdtrimError(f"{name}: no model can be made from this config ({why_no_model(error)})") from error
    if not sizes.blocks:
        raise PdtrimError(f"{name}: no model can be made from this config (it has no layers)")
    return ModelShape(name, config, sizes, dtype)


def random_model(shape: ModelShape, host: PluginHost, device: torch.device) -> BlockModel:
    """Return a model of a shape with random weights, made where it stays and in the number format it runs in.

    Its tokenizer knows only bytes. Raises `PdtrimError` where the weights do not fit in the device's memory.
    """
    import torch  # noqa: PLC0415 - as above

    from pdtrim_core.model.auto_class import auto_class_of  # noqa: PLC0415 - wanted only here
    from pdtrim_core.model.block_model import BlockModel  # noqa: PLC0415 - imports torch
    from pdtrim_core.model.placement import free_memory  # noqa: PLC0415 - wanted only here
    from pdtrim_core.testing import ByteTokenizer  # noqa: PLC0415 - imports torch

    if shape.weight_bytes > free_memory(device):
        raise PdtrimError(
            f"the weights of {shape.name} take {shape.weight_bytes / 1e9:.1f} GB in {str(shape.dtype).removeprefix('torch.')}, "
            f"{free_memory(device) / 1e9:.1f} GB are free on {device}: choose a smaller shape or --dtype bfloat16"
        )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = auto_class_of(shape.config).from_config(shape.config, dtype=shape.dtype, trust_remote_code=False)
    return BlockModel(model, ByteTokenizer(), host.find_blocks(model, shape.name), name=f"{shape.name} (random weights)")


def _data_of(given: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a shape and the data of its config."""
    if given in SHAPES:
        return given, dict(SHAPES[given])
    file = Path(given) / "config.json" if Path(given).is_dir() else Path(given)
    if not file.is_file():
        raise PdtrimError(
            f"there is no shape '{given}', and no such folder or config.json{did_you_mean(given.lower(), SHAPES)} "
            f"(known shapes: {', '.join(SHAPES)})"
        )
    try:
        data = read_json(file)
        data["model_type"]
    except UnreadableError as error:
        raise PdtrimError(f"{file} is not the config.json of a transformers model: {error.reason}") from error
    except (TypeError, KeyError) as error:
        raise PdtrimError(f"{file} is not the config.json of a transformers model: it must be JSON with a model_type") from error
    return file.resolve().parent.name or given, data


def _config(name: str, data: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig  # noqa: PLC0415 - slow to import

    if data.get("quantization_config") is not None:
        raise PdtrimError(f"{name} is the config of a quantised model: take that of the full-precision checkpoint")
    strange = next(_uncountable(data), None)
    if strange is not None:
        raise PdtrimError(f"{name}: no model can be made from this config ({strange})")
    values = {key: value for key, value in data.items() if key not in ("model_type", "dtype", "torch_dtype")}
    try:
        return AutoConfig.for_model(data["model_type"], **values)
    except Exception as error:
        # transformers checks a config with errors of its own and of others.
        raise PdtrimError(f"{name}: transformers cannot read this config ({reason_of(error)})") from error


def _uncountable(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a config has more of than is ever made: transformers lists layers one by one, and makes them one by one."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _uncountable(value)
        elif isinstance(value, int | list) and any(word in key for word in ("layer", "expert", "block")):
            count = len(value) if isinstance(value, list) else value
            if count > MOST_BLOCKS:
                yield f"{shortened(key)}: {shown(count)} is more than {MOST_BLOCKS:,}"
