"""Reading a model with transformers: without its output, onto the chosen devices, with one-line errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdtrim_core.api import LoadedModel, PdtrimError, Placement, check_devices, first_device, is_streaming, loading_options
from pdtrim_plugins.model_sources.bars import Told, bars_told, nobody
from pdtrim_plugins.model_sources.odd_files import too_small
from pdtrim_plugins.model_sources.opening import (
    NO_CODE,
    OURS,
    OURS_DAMAGED,
    OURS_PREFILL,
    OURS_UNEVEN,
    OURS_WITHOUT_PARTS,
    UNEVEN,
    opening,
)


def load(source: str, name: str, dtype: str, placement: Placement, told: Told = nobody, **options: Any) -> LoadedModel:
    """Return a checkpoint's model, tokenizer and number formats; `source` is a path or hub id, `name` its name in messages.

    `told` hears how much is fetched and read.

    Raises `PdtrimError` where it cannot be read, lacks tensors or cannot be pruned.
    """
    from pdtrim_core.api import auto_class_of  # noqa: PLC0415 - imports torch
    from pdtrim_plugins.model_sources.tensors import check_report, check_stored, dtypes_in  # noqa: PLC0415 - the same

    config = config_of(source, name, **options)
    _refuse(config, name)
    check_stored(source, config, name, **options)
    tokenizer = _tokenizer_of(source, name, **options)
    if is_streaming(placement):
        return _mapped(source, config, name, dtype, placement, tokenizer=tokenizer, **options)
    placed = loading_options(placement, _weight_bytes(config, name, dtype) if placement == "auto" else 0)
    with opening(name), bars_told(told) as bars:
        # Tensors of another shape are refused below, by name.
        reported = {"output_loading_info": True, "ignore_mismatched_sizes": True, **bars}
        model, report = auto_class_of(config).from_pretrained(
            source, config=config, dtype=format_of(dtype, placement), **reported, **placed, **NO_CODE, **options
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise PdtrimError(
            f"cannot open the model {name}: transformers loaded an adapter of PEFT with it: bring it to a folder, and say that "
            "folder and [model] merge_adapter = true"
        )
    check_report(report, model, name)
    stored = dtypes_in(source, config, name, **options) if dtype == "auto" else {"": dtype}
    return LoadedModel(model, tokenizer, name, dtypes=stored)


def _mapped(
    source: str, config: Any, name: str, dtype: str, placement: Placement, *, tokenizer: Any, **options: Any
) -> LoadedModel:
    """Return a model whose weights stay in the files of its checkpoint, in the number format that they have there."""
    import torch  # noqa: PLC0415 - listings must not import torch

    from pdtrim_core.api import MappedWeights  # noqa: PLC0415 - imports torch
    from pdtrim_plugins.model_sources.tensors import (  # noqa: PLC0415 - imports torch
        check_report,
        dtypes_in,
        files_of,
        without_weights,
    )

    with opening(name):
        files = files_of(source, config, name, **options)
    stored = dtypes_in(source, config, name, **options)
    most = stored.get("", "")
    if dtype not in ("auto", most):
        raise PdtrimError(
            f"{name}: with placement = stream weights stay as they are in their files, in {most}: say dtype = auto, or convert "
            f"the checkpoint to {dtype}"
        )
    check_devices(placement)
    mapped = MappedWeights(files, first_device(placement))
    with opening(name):
        model, report = type(without_weights(config, name)).from_pretrained(
            None,
            config=config,
            state_dict=dict(mapped.tensors),
            dtype=getattr(torch, most),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check_report(report, model, name)
    copied = [key for key, weight in model.named_parameters() if weight.dim() > 1 and not mapped.has(weight)]
    if copied:
        raise PdtrimError(
            f"{name}: {copied[0]} is put together from several tensors of its files or is in another number format there, so it "
            f"cannot stay in them: choose another placement than stream"
        )
    return LoadedModel(model, tokenizer, name, dtypes=stored, mapped=mapped)


def format_of(dtype: str, placement: Placement) -> Any:
    """Return the number format to load weights in, as transformers takes it."""
    import torch  # noqa: PLC0415 - listings must not import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.float32 if first_device(placement) == "cpu" else "auto"


def _weight_bytes(config: Any, name: str, dtype: str) -> int:
    """Return how many bytes a model's weights take on a device."""
    import torch  # noqa: PLC0415 - listings must not import torch

    from pdtrim_plugins.model_sources.tensors import without_weights  # noqa: PLC0415 - imports torch

    found = getattr(torch, dtype) if dtype != "auto" else getattr(config.get_text_config(), "dtype", None)
    each = (found if isinstance(found, torch.dtype) else torch.float32).itemsize
    numbers: int = sum(parameter.numel() for parameter in without_weights(config, name).parameters())
    return each * numbers


def config_of(source: str, name: str, **options: Any) -> Any:
    """Return a checkpoint's config. Raises `PdtrimError` where it cannot be read."""
    from transformers import AutoConfig, PretrainedConfig  # noqa: PLC0415 - slow to import

    with opening(name):
        data, _ = PretrainedConfig.get_config_dict(source, **NO_CODE, **options)
        _refuse_sizes(data, name)
        kind = str(data.get("model_type"))
        if kind == UNEVEN and "gguf_file" in options:
            raise PdtrimError(f"cannot open the model {name}: {OURS_UNEVEN}")
        if kind.startswith(OURS):
            _know_ours(kind, data, name)
        return AutoConfig.from_pretrained(source, **NO_CODE, **options)


def _refuse_sizes(data: Mapping[str, Any], name: str) -> None:
    for key, size in too_small(data):
        raise PdtrimError(f"cannot open the model {name}: its config.json has {key} = {size}, and one is the least")


def _know_ours(kind: str, data: dict[str, Any], name: str) -> None:
    """Let transformers know the class of an export of ours. Raises `PdtrimError` for one that cannot be pruned again."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: PLC0415 - slow to import

    from pdtrim_plugins.checkpoints import CONFIG_KEY, classes_of  # noqa: PLC0415 - imports torch

    family, entry = kind.removeprefix(OURS), data.get(CONFIG_KEY)
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not isinstance(entry, dict) or "place" not in entry:
        raise PdtrimError(f"cannot open the model {name}: {OURS_DAMAGED}")
    if "decode_index" in entry:
        raise PdtrimError(f"cannot open the model {name}: {OURS_PREFILL}")
    if "without" in entry:
        raise PdtrimError(f"cannot open the model {name}: {OURS_WITHOUT_PARTS}")
    classes_of(family)


def check_weights(source: str, name: str, **options: Any) -> bool:
    """Return whether a checkpoint has weights on this machine.

    Raises `PdtrimError` where it cannot be opened, as far as it can be told without reading weights.
    Of a config that has no weights yet, only the config is checked.
    """
    from pdtrim_plugins.model_sources.tensors import check_stored  # noqa: PLC0415 - imports torch

    config = config_of(source, name, **options)
    _refuse(config, name)
    has_weights = check_stored(source, config, name, **options)
    if has_weights:
        _tokenizer_of(source, name, **options)
    return has_weights


def _tokenizer_of(source: str, name: str, **options: Any) -> Any:
    """Return a checkpoint's tokenizer. Raises `PdtrimError` where it cannot be read."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - slow to import

    with opening(name):
        return AutoTokenizer.from_pretrained(source, **NO_CODE, **options)


def _refuse(config: Any, name: str) -> None:
    """Raise for models that cannot be pruned, before they are loaded."""
    if getattr(config, "is_encoder_decoder", False):
        raise PdtrimError(f"{name} is an encoder-decoder model; prefill and decode are stages of decoder-only models")
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else getattr(quantised, "quant_method", "")
        raise PdtrimError(
            f"{name} has quantised weights ({getattr(method, 'value', method)}): prune the full-precision checkpoint it was made "
            "from, and quantise the result"
        )
