"""Broken components are caught by the model source contract, each by the test that is meant for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import LoadedModel, ModelSource, PdtrimError
from pdtrim_core.testing import (
    ByteTokenizer,
    ModelSourceContract,
    tiny_config,
    tiny_transformers,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Failing = Callable[..., set[str]]


class Memory(ModelSource):
    """A model out of thin air: memory:FAMILY."""

    name = "memory"

    @classmethod
    def accepts(cls, path: str) -> bool:
        return path.startswith("memory:")

    def open(self) -> LoadedModel:
        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        return LoadedModel(tiny_transformers(self._family, dtype=dtype), ByteTokenizer(), self.path)

    def open_config(self) -> Any:
        return tiny_config(self._family)

    @property
    def _family(self) -> str:
        return self.path.removeprefix("memory:")


class ReadsToAccept(Memory):
    """Looks into a file to tell whether it is meant."""

    @classmethod
    def accepts(cls, path: str) -> bool:
        with open(__file__) as file:  # noqa: PTH123 - as careless plugins do
            return path.startswith("memory:") and bool(file.read())


class TakesAnything(Memory):
    """Feels meant by every path."""

    @classmethod
    def accepts(cls, path: str) -> bool:
        return True


class IgnoresTheNumberFormat(Memory):
    """Opens everything in float32."""

    def open(self) -> LoadedModel:
        return LoadedModel(tiny_transformers(self._family), ByteTokenizer(), self.path)


class AnotherConfig(Memory):
    """Gives the config of another family."""

    def open_config(self) -> Any:
        return tiny_config("opt")


class LeaksItsErrors(Memory):
    """Lets the errors of others through."""

    def open(self) -> LoadedModel:
        try:
            return super().open()
        except PdtrimError as error:
            raise KeyError(str(error)) from None


class DoubtsItsWeights(Memory):
    """Refuses by their headers the weights that it opens."""

    def check_weights(self) -> None:
        raise PdtrimError(f"{self.path}: model.norm.weight is missing")


class FindsThemOdd(Memory):
    """Takes its files for damaged."""

    def is_odd(self) -> bool:
        return True


class NamesFilesThatAreNot(Memory):
    """Names a file that it does not read, for there is none."""

    def files(self) -> list[Path]:
        return [Path("no/such/file")]


class NamesOtherFilesEachTime(Memory):
    """Names files in an order that changes."""

    _turn: bool = False

    def files(self) -> list[Path]:
        there = sorted(Path(__file__).parent.glob("*.py"))
        object.__setattr__(self, "_turn", not self._turn)
        return there if self._turn else there[::-1]


class CountsOneMore(Memory):
    """Says that there is a block more than there is."""

    def block_count(self) -> int:
        return int(self.open_config().num_hidden_layers) + 1


def test_a_good_model_source_passes_every_test(failing: Failing) -> None:
    assert failing(ModelSourceContract, Memory, path="memory:llama", missing="memory:lama") == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (ReadsToAccept, "test_accepting_a_path_loads_nothing"),
        (TakesAnything, "test_accepting_a_path_loads_nothing"),
        (IgnoresTheNumberFormat, "test_it_opens_a_model_with_its_tokenizer_and_config"),
        (AnotherConfig, "test_it_opens_a_model_with_its_tokenizer_and_config"),
        (DoubtsItsWeights, "test_it_finds_nothing_wrong_with_the_weights_it_opens"),
        (FindsThemOdd, "test_it_finds_nothing_wrong_with_the_weights_it_opens"),
        (NamesFilesThatAreNot, "test_the_files_that_it_names_are_there"),
        (NamesOtherFilesEachTime, "test_the_files_that_it_names_are_there"),
        (CountsOneMore, "test_it_has_as_many_blocks_as_it_says_before_it_is_opened"),
        (LeaksItsErrors, "test_a_path_with_nothing_there_is_named"),
    ],
)
def test_a_broken_model_source_is_caught(component: type[ModelSource], test: str, failing: Failing) -> None:
    assert failing(ModelSourceContract, component, test, path="memory:llama", missing="memory:lama") == {test}
