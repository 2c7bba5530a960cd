"""Models in folders with a transformers checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from pdtrim_core.api import LoadedModel, ModelSource, PdtrimError
from pdtrim_plugins.model_sources import adapters
from pdtrim_plugins.model_sources.block_counts import blocks_in_config
from pdtrim_plugins.model_sources.hub import HubModel
from pdtrim_plugins.model_sources.odd_files import are_odd
from pdtrim_plugins.model_sources.reading import check_weights, config_of, load


class FolderModel(ModelSource):
    """A folder with a transformers checkpoint, or with an adapter of PEFT."""

    name = "folder"
    streams: ClassVar[bool] = True

    merge_adapter: bool = Field(
        default=False,
        description="whether an adapter of PEFT in the folder is merged into its weights; without, such a folder is refused",
    )

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept existing folders, and paths that can only mean a folder."""
        # os.path answers for any text, Path raises for one that is too long.
        return not path.endswith(".gguf") and (os.path.isdir(path) or path.startswith((".", "/", "~")))  # noqa: PTH112

    def open(self) -> LoadedModel:
        """Load the checkpoint, and merge its adapter where the options say so."""
        folder = self._folder()
        if not adapters.has_adapter(folder):
            return load(str(folder), self.path, self.dtype, self.placement, self.tell)
        adapters.check_merging(self.path, self.placement)
        base = self._base(folder)
        if base is None:
            with adapters.without_adapter(folder) as plain:
                return adapters.merged(load(plain, self.path, self.dtype, self.placement, self.tell), folder, self.path)
        return adapters.merged(base.open(), folder, self.path)

    def open_config(self) -> Any:
        """Return the checkpoint's config: of an adapter alone, that of the model it belongs to."""
        folder = self._folder()
        base = self._base(folder)
        return config_of(str(folder), self.path) if base is None else base.open_config()

    def files(self) -> list[Path]:
        """Return what is in the folder, and what is known of the model that an adapter belongs to."""
        folder = self._folder()
        base = self._base(folder)
        return sorted(file for file in (*folder.iterdir(), *((base and base.files()) or ())) if file.is_file())

    def block_count(self) -> int | None:
        """Return what config.json says."""
        folder = self._folder()
        base = self._base(folder)
        return blocks_in_config(folder / "config.json") if base is None else base.block_count()

    def is_odd(self) -> bool:
        """Tell whether the weights have fewer blocks than config.json says, or that may be of a model that cannot be pruned."""
        folder = self._folder()
        base = self._base(folder)
        return are_odd(folder) if base is None else base.is_odd()

    def check_weights(self) -> bool | None:
        """Compare the headers of the files of weights with the config; return False where there are none."""
        folder = self._folder()
        base = self._base(folder)
        return check_weights(str(folder), self.path) if base is None else base.check_weights()

    def _folder(self) -> Path:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise PdtrimError(f"model folder {self.path} does not exist")
        if adapters.has_adapter(folder):
            if not self.merge_adapter:
                adapters.refuse_adapter(self.path, adapters.base_of(folder, self.path), folder)
        elif self.merge_adapter:
            raise PdtrimError(f"model folder {self.path} has no adapter of PEFT to merge: leave merge_adapter out")
        elif not (folder / "config.json").is_file():
            raise PdtrimError(f"model folder {self.path} has no config.json: it is not a transformers checkpoint")
        return folder

    def _base(self, folder: Path) -> ModelSource | None:
        """Return the model that an adapter alone belongs to; None where the folder holds a model itself."""
        if not adapters.has_adapter(folder):
            return None
        path = adapters.base_of(folder, self.path)
        if path == str(folder):
            return None
        kind = FolderModel if FolderModel.accepts(path) else HubModel
        return kind(path=path, dtype=self.dtype, placement=self.placement).telling(self.tell)
