"""How transformers reads a model: quietly, onto the device that is meant, with one line for what goes wrong."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from logging import ERROR, getLogger
from typing import Any

from pdtrim_core import PdtrimError


def load(place: str, name: str, dtype: str, device: str, **options: Any) -> tuple[Any, Any]:
    """Return a checkpoint's model and tokenizer; `place` is where it is found, `name` what messages call it.

    Raises `PdtrimError` where it cannot be read, or not be pruned.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - slow to import

    config = config_of(place, name, **options)
    _refuse(config, name)
    with quietly(), opening(name):
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(
            place, config=config, dtype=_dtype(dtype, device), **_placing(device), **options
        )
    return model, tokenizer


def _dtype(dtype: str, device: str) -> Any:
    import torch  # noqa: PLC0415 - listings must not import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.float32 if device_of(device) == "cpu" else "auto"


def device_of(device: str) -> str:
    """Return the device that is meant: an accelerator if there is one, where the recipe leaves it open."""
    import torch  # noqa: PLC0415 - listings must not import torch

    if device != "auto":
        return device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"


def _placing(device: str) -> dict[str, Any]:
    """Return how transformers should place the weights; several accelerators share a model that one cannot hold."""
    found = device_of(device)
    return {} if found == "cpu" else {"device_map": "auto" if device == "auto" else found}


def config_of(place: str, name: str, **options: Any) -> Any:
    """Return a checkpoint's config. Raises `PdtrimError` where it cannot be read."""
    from transformers import AutoConfig  # noqa: PLC0415 - slow to import

    with quietly(), opening(name):
        return AutoConfig.from_pretrained(place, **options)


def _refuse(config: Any, name: str) -> None:
    """Raise for what would load slowly or not at all and cannot be pruned anyway."""
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
    """Turn the many ways in which a checkpoint cannot be read into one line that names it."""
    try:
        yield
    except PdtrimError:
        raise
    except MemoryError:
        raise PdtrimError(f"{name} does not fit in memory") from None
    except Exception as error:
        # transformers, safetensors, gguf and the hub client each have errors of their own for a bad file.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        advice = "" if os.path.exists(name) else " (a hub id needs the network once, and `hf auth login` if it is gated)"  # noqa: PTH110
        raise PdtrimError(f"cannot open the model {name}: {lines[0]}{advice}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keep other libraries' bars and warnings off the screen while a checkpoint is read."""
    from transformers.utils import logging  # noqa: PLC0415 - slow to import

    before = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # A machine without a network would see the hub client's retries here.
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(ERROR)
    try:
        # The GGUF reader draws a bar of its own that no setting switches off.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
        hub.setLevel(hub_level)
        if shown:
            logging.enable_progress_bar()
