"""Models in folders with a transformers checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from pdtrim_core.api import LoadedModel, ModelSource, PdtrimError
from pdtrim_plugins.model_sources.block_counts import blocks_in_config
from pdtrim_plugins.model_sources.reading import check_weights, config_of, load


class FolderModel(ModelSource):
    """A folder with a transformers checkpoint."""

    name = "folder"
    streams: ClassVar[bool] = True

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept existing folders, and paths that can only mean a folder."""
        # os.path answers for any text, Path raises for one that is too long.
        return not path.endswith(".gguf") and (os.path.isdir(path) or path.startswith((".", "/", "~")))  # noqa: PTH112

    def open(self) -> LoadedModel:
        """Load the checkpoint."""
        return load(str(self._folder()), self.path, self.dtype, self.placement, self.tell)

    def open_config(self) -> Any:
        """Return the checkpoint's config."""
        return config_of(str(self._folder()), self.path)

    def files(self) -> list[Path]:
        """Return what is in the folder."""
        return sorted(file for file in self._folder().iterdir() if file.is_file())

    def block_count(self) -> int | None:
        """Return what config.json says."""
        return blocks_in_config(self._folder() / "config.json")

    def check_weights(self) -> bool:
        """Compare the headers of the files of weights with the config; return False where there are none."""
        return check_weights(str(self._folder()), self.path)

    def _folder(self) -> Path:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise PdtrimError(f"model folder {self.path} does not exist")
        if not (folder / "config.json").is_file():
            raise PdtrimError(f"model folder {self.path} has no config.json: it is not a transformers checkpoint")
        return folder
