"""Models of the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pdtrim_core.api import LoadedModel, ModelSource
from pdtrim_plugins.model_sources.reading import check_weights, config_of, load


class HubModel(ModelSource):
    """A model of the Hugging Face hub, by its id."""

    name = "hub"

    revision: str | None = Field(None, description="branch, tag or commit on the hub")

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Accept names of the form NAME or OWNER/NAME."""
        return path.count("/") <= 1 and ":" not in path and not path.startswith((".", "/", "~"))

    def open(self) -> LoadedModel:
        """Load the model, from the hub's cache if it is there already."""
        return load(self.path, self.path, self.dtype, self.device, revision=self.revision)

    def open_config(self) -> Any:
        """Return the model's config."""
        return config_of(self.path, self.path, revision=self.revision)

    def check_weights(self) -> None:
        """Compare the headers of the files of weights with the config, where the hub's cache has them."""
        check_weights(self.path, self.path, revision=self.revision)
