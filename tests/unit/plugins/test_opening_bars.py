"""What is told while a model is opened: how much is fetched, converted and read; and what is said of one that cannot be had."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, errors

from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources.bars import bar_class
from pdtrim_plugins.model_sources.folder import FolderModel
from pdtrim_plugins.model_sources.gguf_file import GgufModel
from pdtrim_plugins.model_sources.hub_problems import hub_problem
from tests.unit.plugins.gguf_files import write_gguf

pytestmark = pytest.mark.usefixtures("own_cache")

Heard = list[tuple[str, float]]


def test_a_checkpoint_is_told_as_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: Heard = []
    folder = save_tiny_model(tmp_path / "tiny")
    capsys.readouterr()
    FolderModel(path=str(folder), placement="cpu").telling(lambda *what: heard.append(what)).open()
    assert heard[0] == ("weights", 0.0)
    assert heard[-1] == ("weights", 1.0)
    assert capsys.readouterr().err == ""


def test_a_gguf_file_is_told_as_it_is_converted(tmp_path: Path) -> None:
    heard: Heard = []
    file = tmp_path / "m.gguf"
    write_gguf(file)
    GgufModel(path=str(file), placement="cpu").telling(lambda *what: heard.append(what)).open()
    shares = [share for what, share in heard if what == "conversion"]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)


def test_files_that_are_fetched_together_have_one_share() -> None:
    heard: Heard = []
    bar = bar_class(lambda *what: heard.append(what), "weights")
    # As the hub's client makes them; "name" is an option of its own bars.
    one, two = (bar(total=100, unit="B", unit_scale=True, desc="x.safetensors", name="huggingface_hub.http_get") for _ in "ab")
    one.update(50)
    two.update(100)
    for each in (one, two):
        each.refresh()
    assert heard[-1] == ("download", 0.75)
    for each in (one, two):
        each.close()
    # A file whose size is not known says nothing of the whole.
    before = len(heard)
    bar(total=None, unit="B").update(5)
    assert len(heard) == before


def _raised(error: Exception, cause: BaseException | None = None) -> Exception:
    error.__cause__ = cause
    return error


def _of_hub(kind: type[Any]) -> Exception:
    made: Exception = kind("no", response=SimpleNamespace(headers={}, status_code=404, request=None))
    return made


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (_of_hub(errors.GatedRepoError), "its owner lets in whom they choose: ask on https://huggingface.co/me/model, then"),
        (_of_hub(errors.RepositoryNotFoundError), "the hub has no model of this name, or it is private, for which there is"),
        (_of_hub(errors.RevisionNotFoundError), "the hub has the model, but not this revision of it"),
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached, and its cache on this machine does not have it"),
        (ValueError("x"), ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_refuses_is_told_with_what_to_do(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # transformers raises an error of its own from it.
    said = hub_problem(_raised(OSError("a long text with the address of a page"), error), "me/model")
    assert said.startswith(told) if told else said == ""


def test_a_name_without_an_owner_may_be_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_problem(errors.LocalEntryNotFoundError("x"), "gpt3") == (
        "the hub is not asked, since HF_HUB_OFFLINE is set, and its cache on this machine does not have it; if you mean a "
        "folder, say ./gpt3"
    )
