"""Models of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from pdtrim_core.api import LoadedModel, ModelSource, PdtrimError
from pdtrim_plugins.model_sources.block_counts import blocks_in_config
from pdtrim_plugins.model_sources.odd_files import are_odd
from pdtrim_plugins.model_sources.reading import check_weights, config_of, load


class HubModel(ModelSource):
    """A model of the Hugging Face hub, by its id."""

    name = "hub"
    streams: ClassVar[bool] = True

    revision: str | None = Field(None, description="branch, tag or commit on the hub")

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept names of the form NAME or OWNER/NAME."""
        return path.count("/") <= 1 and ":" not in path and not path.startswith((".", "/", "~"))

    def open(self) -> LoadedModel:
        """Load the model, from the hub's cache if it is there already. Raises `PdtrimError` for an adapter of PEFT."""
        self._refuse_adapter()
        return load(self.path, self.path, self.dtype, self.placement, self.tell, revision=self.revision)

    def open_config(self) -> Any:
        """Return the model's config."""
        self._refuse_adapter()
        return config_of(self.path, self.path, revision=self.revision)

    def files(self) -> list[Path] | None:
        """Return what the hub's cache has of the model; None where it has nothing. The hub is not asked."""
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415 - the same

        try:
            folder = snapshot_download(self.path, revision=self.revision, local_files_only=True)
        except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError):
            return None
        return sorted(file for file in Path(folder).rglob("*") if file.is_file())

    def block_count(self) -> int | None:
        """Return what config.json in the hub's cache says; None where it is not there. The hub is not asked."""
        return next((blocks_in_config(file) for file in self.files() or () if file.name == "config.json"), None)

    def is_odd(self) -> bool:
        """Tell whether what the hub's cache has contradicts itself. The hub is not asked."""
        return any(are_odd(file.parent) for file in self.files() or () if file.name == "config.json")

    def check_weights(self) -> None:
        """Compare the headers of the files of weights with the config, where the hub's cache has them."""
        check_weights(self.path, self.path, revision=self.revision)

    def _refuse_adapter(self) -> None:
        """Raise `PdtrimError` where the hub's cache has an adapter of the name: transformers would load it without a word."""
        if any(file.name == "adapter_config.json" for file in self.files() or ()):
            raise PdtrimError(
                f"{self.path} has an adapter of PEFT (adapter_config.json): bring it to a folder with `hf download {self.path} "
                "--local-dir FOLDER`, and say that folder and [model] merge_adapter = true"
            )
