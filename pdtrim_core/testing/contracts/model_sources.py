"""What every model source must hold to."""

from __future__ import annotations

import builtins
import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pdtrim_core.api.model_source import LoadedModel, ModelSource
from pdtrim_core.errors import PdtrimError
from pdtrim_core.testing.contracts.shared import check_component, contract


@contract
class ModelSourceContract:
    """What every model source must hold to.

    `path` is one that can be opened and `missing` one of the same sort where nothing is. A source that reads files makes
    one in `example`.
    """

    component: ClassVar[type[ModelSource]]
    path: ClassVar[str] = ""
    missing: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def example(self, folder: Path) -> str:
        """Return a path that can be opened; `folder` is an empty one to write to."""
        del folder
        return self.path

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, ModelSource, {"path": self.missing, **self.options})

    def test_accepting_a_path_loads_nothing(self, tmp_path: Path) -> None:
        """Every source is tried with every path, also by `check`: no file is read and no network is used."""
        path = self.example(tmp_path)
        with _no_reading():
            assert self.component.accepts(path) is True
            assert self.component.accepts(self.missing) is True
            assert self.component.accepts("no-such-scheme://nowhere") is False

    def test_it_opens_a_model_with_its_tokenizer_and_config(self, tmp_path: Path) -> None:
        """In the number format that was requested."""
        made = self.component(**{"path": self.example(tmp_path), "placement": "cpu", "dtype": "bfloat16", **self.options})
        loaded = made.open()
        assert isinstance(loaded, LoadedModel)
        assert loaded.name
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
        assert all(isinstance(token, int) for token in loaded.tokenizer("Some text", add_special_tokens=False)["input_ids"])
        assert made.open_config().model_type == loaded.model.config.model_type

    def test_it_finds_nothing_wrong_with_the_weights_it_opens(self, tmp_path: Path) -> None:
        """By their headers alone, where it can tell, and at a first look, by which `check` decides whether to open them."""
        made = self.component(**{"path": self.example(tmp_path), "placement": "cpu", **self.options})
        made.check_weights()
        assert made.is_odd() is False

    def test_the_files_that_it_names_are_there(self, tmp_path: Path) -> None:
        """By them a finished run sees whether the model is as it was: they are files, and always the same ones."""
        made = self.component(**{"path": self.example(tmp_path), "placement": "cpu", **self.options})
        files = made.files()
        assert files is None or (files and all(file.is_file() for file in files))
        assert made.files() == files

    def test_it_has_as_many_blocks_as_it_says_before_it_is_opened(self, tmp_path: Path) -> None:
        """Where it says so: `check` refuses recipes by it."""
        made = self.component(**{"path": self.example(tmp_path), "placement": "cpu", **self.options})
        count = made.block_count()
        assert count is None or count == made.open_config().get_text_config().num_hidden_layers

    def test_a_path_with_nothing_there_is_named(self) -> None:
        """As an error for the user, also when only the config is wanted."""
        made = self.component(**{"path": self.missing, **self.options})
        for opened in (made.open, made.open_config):
            with pytest.raises(PdtrimError) as caught:
                opened()
            assert self.missing.rpartition(":")[2] in str(caught.value)


@contextmanager
def _no_reading() -> Iterator[None]:
    def refuse(*args: Any, **_kwargs: Any) -> Any:
        raise AssertionError(f"accepts() opened {args[0] if args else 'something'}: it must load nothing")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        patch.setattr(io, "open", refuse)
        patch.setattr(socket, "socket", refuse)
        yield
