"""A model source: opens the paths of one sort of place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pdtrim_core.api import LoadedModel, ModelSource, PdtrimError, hookimpl


class Example(ModelSource):
    """Opens tiny models with random weights, by their family: example:llama. Put the place of your models here."""

    name = "example"

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Tell whether a path is meant for this source. Every source is tried with every path: read and call nothing."""
        return path.startswith(f"{cls.name}:")

    def open(self) -> LoadedModel:
        """Load weights and tokenizer: a causal language model of transformers, in the number format that was requested."""
        import torch  # noqa: PLC0415 - listings start without torch

        from pdtrim_core.testing import ByteTokenizer, tiny_transformers  # noqa: PLC0415 - the same

        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        return LoadedModel(tiny_transformers(self._family, dtype=dtype), ByteTokenizer(), self.path)

    def open_config(self) -> Any:
        """Return the model's transformers config, without weights."""
        from pdtrim_core.testing import tiny_config  # noqa: PLC0415 - listings start without torch

        return tiny_config(self._family)

    @property
    def _family(self) -> str:
        family = self.path.partition(":")[2]
        if not family:
            raise PdtrimError(f"{self.path} names no model: say {self.name}:FAMILY")
        return family


@hookimpl
def pdtrim_model_sources() -> Iterable[type[ModelSource]]:
    """Yield the model sources of this package."""
    yield Example
