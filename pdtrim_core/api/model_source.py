"""The kind of component that opens a model, and what it gives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr

from pdtrim_core.api.component import Component
from pdtrim_core.files.paths import as_text
from pdtrim_core.model.placement import Placement, checked_placement

if TYPE_CHECKING:
    from pdtrim_core.model.mapped_weights import MappedWeights


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model of transformers with its tokenizer, and what is known of its origin.

    `dtypes` has the number formats that exports keep, as torch names them: under "" that of most tensors, and under the names
    of others theirs, with `*` in place of numbers. Without it exports have the format that the model is in. `mapped` are the
    weights that stay in their files, for `placement = "stream"`.
    """

    model: Any
    tokenizer: Any
    name: str
    license: str = ""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    mapped: MappedWeights | None = None


DType = Literal["auto", "float32", "bfloat16", "float16"]


class ModelSource(Component):
    """Opens a model from one sort of place; the first source that accepts a path opens it."""

    kind = "model"

    path: Annotated[str, BeforeValidator(as_text)] = Field(description="hub id, folder, GGUF file, or package:NAME")
    dtype: DType = Field("auto", description="number format of the weights; auto is float32 on CPU, else the checkpoint's")
    placement: Annotated[Placement, BeforeValidator(checked_placement)] = Field(
        "auto",
        description="where the weights are: auto takes one accelerator if there is one and it has room, and else several; "
        "balanced spreads them over all; stream leaves them in their files, and one block at a time is in memory (stream:cpu "
        "and such say of which device); a device as torch names it; or a table of the memory that devices may give",
    )

    _told: Callable[[str, float], None] | None = PrivateAttr(default=None)

    @classmethod
    @abstractmethod
    def accepts(cls, path: str) -> bool:
        """Tell whether a path is one of this source. Called without loading anything."""

    @abstractmethod
    def open(self) -> LoadedModel:
        """Load weights and tokenizer. Raises `PdtrimError` that names the path and what is wrong with it."""

    def tell(self, what: str, share: float) -> None:
        """Tell, from within `open`, what takes long and the share of it that is done: `self.tell("download", 0.4)`.

        A run shows it with the time left.
        """
        if self._told is not None:
            self._told(what, share)

    def telling(self, told: Callable[[str, float], None]) -> Self:
        """Return the same source, whose `open` tells `told` what takes long, if it tells at all."""
        source = self.model_copy()
        source._told = told  # noqa: SLF001 - of the same class
        return source

    @abstractmethod
    def open_config(self) -> Any:
        """Return the model's transformers config, without weights."""

    def files(self) -> list[Path] | None:
        """Return the files on this machine that `open` reads; None where there are none yet, or the source cannot tell.

        A finished run is not carried out again while they are as they were. Without them its model is opened to see that.
        """
        return None

    def check_weights(self) -> bool | None:
        """Raise `PdtrimError` where the stored tensors are not those of the config, by their names and shapes alone.

        Return False for a config that stands alone, of a model that is only planned: sizes can be told, and `open` will fail.
        `open` must refuse what this refuses. A source that cannot tell without reading the weights leaves this as it is.
        """

    def block_count(self) -> int | None:
        """Return how many blocks the model has, as its files say within milliseconds; None where that is not known.

        `pdtrim-core check` asks it of every recipe, and opens the config only of one that asks for too many blocks.
        """
        return None

    def is_odd(self) -> bool:
        """Tell within milliseconds whether the model's files contradict each other, or may be of a model that `open` refuses.

        Then `pdtrim-core check` opens the config, to say what is wrong, if anything is.
        """
        return False

    def first_time(self) -> str:
        """Return what `open` is going to do this once, and where it keeps the result; nothing where it just reads.

        A run says it before it opens the model.
        """
        return ""
