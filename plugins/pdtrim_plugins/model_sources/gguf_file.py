"""Models in GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdtrim_core.api import LoadedModel, ModelSource, PdtrimError
from pdtrim_plugins.model_sources.reading import config_of, device_of, opening, quietly

PACKAGE = "package:"
"""Prefix of a package's name, which may end with .gguf too."""


class GgufModel(ModelSource):
    """A GGUF file; quantised weights are dequantised to floats."""

    name = "gguf"

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept names that end with .gguf."""
        return path.endswith(".gguf") and not path.startswith(PACKAGE)

    def open(self) -> LoadedModel:
        """Load the file through transformers' GGUF reader into a plain float model."""
        import torch  # noqa: PLC0415 - listings must not import torch

        model, tokenizer = read_gguf(Path(self.path))
        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        return LoadedModel(model.to(dtype=dtype, device=device_of(self.device)), tokenizer, self.path)

    def open_config(self) -> Any:
        """Return the config stored in the file."""
        file = existing_gguf(Path(self.path))
        return config_of(str(file.parent), self.path, gguf_file=file.name)


def existing_gguf(file: Path) -> Path:
    """Return the path of a GGUF file. Raises `PdtrimError` where it does not exist or is no GGUF file."""
    if not file.is_file():
        raise PdtrimError(f"GGUF file {file} does not exist")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise PdtrimError(f"{file} is not a GGUF file: it does not begin with the letters GGUF")
    return file


def read_gguf(file: Path) -> tuple[Any, Any]:
    """Return a plain float model and its tokenizer from a GGUF file.

    transformers marks a model from GGUF as quantised and refuses to save it, so its weights are copied into a fresh model.
    """
    import torch  # noqa: PLC0415 - listings must not import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - slow to import

    folder, gguf = str(existing_gguf(file).parent), file.name
    with quietly(), opening(str(file)):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
        config = read.config
        del config.quantization_config
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(read.state_dict())
    return fresh, tokenizer
