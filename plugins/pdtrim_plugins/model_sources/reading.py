"""Reading a model with transformers: without its output, onto the chosen device, with one-line errors."""

from __future__ import annotations

from typing import Any

from pdtrim_core.api import LoadedModel, PdtrimError
from pdtrim_plugins.model_sources.opening import NO_CODE, opening


def load(source: str, name: str, dtype: str, device: str, **options: Any) -> LoadedModel:
    """Return a checkpoint's model, tokenizer and number formats; `source` is a path or hub id, `name` its name in messages.

    Raises `PdtrimError` where it cannot be read, lacks tensors or cannot be pruned.
    """
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - slow to import

    from pdtrim_plugins.model_sources.tensors import check_report, check_stored, dtypes_in  # noqa: PLC0415 - imports torch

    config = config_of(source, name, **options)
    _refuse(config, name)
    check_stored(source, config, name, **options)
    tokenizer = _tokenizer_of(source, name, **options)
    with opening(name):
        # Tensors of another shape are refused below, by name.
        reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=_dtype(dtype, device), **reported, **_placing(device), **NO_CODE, **options
        )
    check_report(report, model, name)
    stored = dtypes_in(source, config, name, **options) if dtype == "auto" else {"": dtype}
    return LoadedModel(model, tokenizer, name, dtypes=stored)


def _dtype(dtype: str, device: str) -> Any:
    import torch  # noqa: PLC0415 - listings must not import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.float32 if device_of(device) == "cpu" else "auto"


def device_of(device: str) -> str:
    """Return the device to use: with "auto" an accelerator if there is one, else the CPU."""
    import torch  # noqa: PLC0415 - listings must not import torch

    if device != "auto":
        return device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"


def _placing(device: str) -> dict[str, Any]:
    """Return how transformers should place the weights; a model too large for one accelerator is spread over several."""
    found = device_of(device)
    return {} if found == "cpu" else {"device_map": "auto" if device == "auto" else found}


def config_of(source: str, name: str, **options: Any) -> Any:
    """Return a checkpoint's config. Raises `PdtrimError` where it cannot be read."""
    from transformers import AutoConfig  # noqa: PLC0415 - slow to import

    with opening(name):
        return AutoConfig.from_pretrained(source, **NO_CODE, **options)


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
