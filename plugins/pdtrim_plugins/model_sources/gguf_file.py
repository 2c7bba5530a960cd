"""Models in GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pdtrim_core.api import LoadedModel, ModelSource, sha256_of
from pdtrim_plugins.model_sources.block_counts import blocks_in_gguf
from pdtrim_plugins.model_sources.gguf_copy import copy_of, open_copy, told_before
from pdtrim_plugins.model_sources.gguf_model import check_gguf, existing_gguf, gguf_config

PACKAGE = "package:"
"""Prefix of a package's name, which may end with .gguf too."""


class GgufModel(ModelSource):
    """A GGUF file; quantised weights are dequantised to floats once, and kept in the user's cache."""

    name = "gguf"
    streams: ClassVar[bool] = True

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept names that end with .gguf."""
        return path.endswith(".gguf") and not path.startswith(PACKAGE)

    def open(self) -> LoadedModel:
        """Load the converted copy in the user's cache, which is made the first time, or where it is damaged."""
        file = existing_gguf(Path(self.path))
        return open_copy(file, copy_of(sha256_of(file), self.dtype), self)

    def open_config(self) -> Any:
        """Return the config stored in the file, which is read sooner than the checksum that tells its copy."""
        return gguf_config(Path(self.path), self.path)

    def files(self) -> list[Path]:
        """Return the file."""
        return [existing_gguf(Path(self.path))]

    def block_count(self) -> int | None:
        """Return what the file's first values say."""
        return blocks_in_gguf(Path(self.path))

    def first_time(self) -> str:
        """Tell of the copy that transformers can read, which is made once."""
        file = existing_gguf(Path(self.path))
        return told_before(file, copy_of(sha256_of(file), self.dtype), self)

    def check_weights(self) -> None:
        """Compare the file's table of tensors with its config."""
        check_gguf(Path(self.path), self.path)
