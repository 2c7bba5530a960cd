"""The files by which a finished run sees whether its model is as it was; nothing is opened and no network is asked."""

from __future__ import annotations

import importlib
import socket
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.api import PdtrimError
from pdtrim_plugins.model_sources import FolderModel, GgufModel, HubModel, PackageModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError(f"the network was asked: {args} {options}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_folder_has_what_lies_in_it(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "below").mkdir()
    assert FolderModel(path=str(tmp_path)).files() == [tmp_path / "config.json", tmp_path / "model.safetensors"]
    (tmp_path / "config.json").unlink()
    with pytest.raises(PdtrimError, match=r"has no config\.json"):
        FolderModel(path=str(tmp_path)).files()


def test_a_gguf_file_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with pytest.raises(PdtrimError, match="does not exist"):
        GgufModel(path=str(file)).files()
    file.write_bytes(b"GGUF")
    assert GgufModel(path=str(file)).files() == [file]


def test_a_package_has_its_gguf_file_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = PackageModel(path="package:some_weights_of_a_test")
    assert source.files() is None
    package = tmp_path / "some_weights_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(PdtrimError, match="the package holds 0 GGUF files"):
        source.files()
    (package / "m.gguf").write_bytes(b"GGUF")
    assert source.files() == [package / "m.gguf"]


def test_a_model_of_the_hub_has_what_its_cache_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert HubModel(path="owner/name").files() is None
    folder = tmp_path / "models--owner--name"
    snapshot = folder / "snapshots" / COMMIT
    for file, text in ((folder / "refs" / "main", COMMIT), (snapshot / "config.json", "{}"), (snapshot / "part" / "a.bin", "x")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert HubModel(path="owner/name").files() == [snapshot / "config.json", snapshot / "part" / "a.bin"]
    assert HubModel(path="owner/name", revision="other").files() is None
    assert HubModel(path="owner/name", revision=COMMIT).files() == [snapshot / "config.json", snapshot / "part" / "a.bin"]
