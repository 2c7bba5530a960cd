"""What transformers makes of a GGUF file: its config, whether its tensors belong to it, its weights and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdtrim_core.api import PdtrimError
from pdtrim_plugins.model_sources.bars import Told, bars_told, nobody
from pdtrim_plugins.model_sources.opening import NO_CODE, opening
from pdtrim_plugins.model_sources.reading import config_of


def existing_gguf(file: Path) -> Path:
    """Return the path of a GGUF file. Raises `PdtrimError` where it does not exist or is no GGUF file."""
    if not file.is_file():
        raise PdtrimError(f"GGUF file {file} does not exist")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise PdtrimError(f"{file} is not a GGUF file: it does not begin with the letters GGUF")
    return file


def gguf_config(file: Path, name: str) -> Any:
    """Return the config stored in a GGUF file."""
    from pdtrim_plugins.model_sources.gguf_reader import quick_gguf  # noqa: PLC0415 - imports numpy

    existing_gguf(file)
    with quick_gguf():
        return config_of(str(file.parent), name, gguf_file=file.name)


def check_gguf(file: Path, name: str) -> None:
    """Raise `PdtrimError` where the tensors of a GGUF file are not those of its config. No weights are read."""
    from pdtrim_plugins.model_sources.gguf_reader import quick_gguf  # noqa: PLC0415 - imports numpy
    from pdtrim_plugins.model_sources.gguf_tensors import check_table  # noqa: PLC0415 - imports torch

    with quick_gguf():
        check_table(file, gguf_config(file, name), name)


def read_gguf(file: Path, name: str, dtype: str = "float32", told: Told = nobody) -> tuple[Any, Any]:
    """Return a plain model of one number format and its tokenizer from a GGUF file.

    `name` is its name in messages, `told` hears how far it is. Tensors are dequantised one at a time, and each is held in
    `dtype` alone. transformers marks a model from GGUF as quantised and refuses to save it, so a plain model takes over its
    weights.
    """
    import torch  # noqa: PLC0415 - listings must not import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - slow to import

    from pdtrim_plugins.model_sources.gguf_reader import quick_gguf  # noqa: PLC0415 - imports numpy
    from pdtrim_plugins.model_sources.gguf_tensors import check_table  # noqa: PLC0415 - imports torch
    from pdtrim_plugins.model_sources.tensors import check_report  # noqa: PLC0415 - imports torch

    with quick_gguf():
        config = gguf_config(file, name)
        check_table(file, config, name)
        folder, options = str(file.parent), {"gguf_file": file.name, **NO_CODE}
        with opening(name), bars_told(told) as bars:
            options |= bars
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name, **NO_CODE)
            options |= {"dtype": getattr(torch, dtype), "output_loading_info": True, "ignore_mismatched_sizes": True}
            read, report = AutoModelForCausalLM.from_pretrained(folder, config=config, **options)
    check_report(report, read, name)
    with opening(name):
        config = read.config
        del config.quantization_config
        # Not from_config, which first fills all weights with random numbers.
        plain, report = type(read).from_pretrained(
            None, config=config, state_dict=read.state_dict(), dtype=getattr(torch, dtype), output_loading_info=True
        )
    check_report(report, plain, name)
    plain.name_or_path = plain.config.name_or_path = folder
    return plain, tokenizer
