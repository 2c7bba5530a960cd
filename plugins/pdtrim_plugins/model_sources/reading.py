"""Reading a model with transformers: without its output, onto the chosen device, with one-line errors."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from logging import ERROR, getLogger
from typing import Any

from pdtrim_core import PdtrimError


def load(source: str, name: str, dtype: str, device: str, **options: Any) -> tuple[Any, Any]:
    """Return a checkpoint's model and tokenizer; `source` is a path or hub id, `name` its name in messages.

    Raises `PdtrimError` where it cannot be read or cannot be pruned.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - slow to import

    config = config_of(source, name, **options)
    _refuse(config, name)
    with quietly(), opening(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=_dtype(dtype, device), **_placing(device), **options
        )
    return model, tokenizer


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

    with quietly(), opening(name):
        return AutoConfig.from_pretrained(source, **options)


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


@contextmanager
def opening(name: str) -> Iterator[None]:
    """Turn any error in reading a checkpoint into one line that names it."""
    try:
        yield
    except PdtrimError:
        raise
    except MemoryError:
        raise PdtrimError(f"{name} does not fit in memory") from None
    except Exception as error:
        # transformers, safetensors, gguf and the hub client each raise their own errors for a bad file.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        advice = "" if os.path.exists(name) else " (a hub id needs the network once, and `hf auth login` if it is gated)"  # noqa: PTH110
        raise PdtrimError(f"cannot open the model {name}: {lines[0]}{advice}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress other libraries' progress bars and warnings while a checkpoint is read."""
    from transformers.utils import logging  # noqa: PLC0415 - slow to import

    before = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Without a network the hub client would print its retries.
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(ERROR)
    try:
        # The GGUF reader draws a progress bar that no setting switches off.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
        hub.setLevel(hub_level)
        if shown:
            logging.enable_progress_bar()
