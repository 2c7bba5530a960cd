"""The converted copy of a package's model is whole, or it is made again."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pdtrim_core.api import PdtrimError, damaged, write_manifest
from pdtrim_plugins.model_sources import GgufModel, PackageModel
from pdtrim_plugins.model_sources.package import gguf_behind
from tests.unit.plugins.gguf_files import write_gguf

NAME = "package:pdtrim_tiny_copy"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package that ships a model, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    package = tmp_path / "packages" / "pdtrim_tiny_copy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is never imported')\n")
    write_gguf(package / "tiny.gguf")
    return tmp_path / "packages"


@pytest.fixture
def copy(packages: Path, tmp_path: Path) -> Path:
    """The converted copy."""
    opened_right()
    (made,) = (tmp_path / "cache" / "pdtrim-core" / "models").glob("[!.]*")
    return made


def opened_right() -> None:
    model = PackageModel(path=NAME, placement="cpu").open().model
    wanted = GgufModel(path=str(gguf_behind(NAME)), placement="cpu").open().model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


@pytest.mark.usefixtures("packages")
def test_what_is_converted_once_is_said_before_with_where_it_is_kept(tmp_path: Path) -> None:
    source = PackageModel(path=NAME, placement="cpu")
    said = source.first_time()
    assert said.startswith(f"{NAME}: converted once, a few seconds, and kept in {tmp_path / 'cache' / 'pdtrim-core' / 'models'}/")
    source.open()
    assert source.first_time() == ""
    assert Path(said.rpartition(" ")[2]).is_dir()


def test_a_sound_copy_is_kept(copy: Path) -> None:
    before = (copy / "model.safetensors").stat()
    opened_right()
    assert (copy / "model.safetensors").stat().st_ino == before.st_ino
    assert damaged(copy) == []


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("config.json", 0.3),
        ("tokenizer.json", 0.0),
        ("tokenizer_config.json", 0.999),
        ("model.safetensors", 0.0),
        ("model.safetensors", 0.5),
        ("model.safetensors", 0.999),
    ],
)
def test_a_copy_with_one_wrong_bit_is_made_again_with_a_warning(name: str, where: float, copy: Path) -> None:
    flip(copy / name, int(where * 8 * (copy / name).stat().st_size))
    with pytest.warns(UserWarning, match=rf"{NAME}: the converted copy .* was damaged \({name}\) and was made again"):
        opened_right()
    assert damaged(copy) == []
    opened_right()


def test_a_copy_that_lost_a_file_or_a_part_of_one_is_made_again(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"was damaged \(model.safetensors, tokenizer.json\)"):
        opened_right()
    opened_right()


def test_a_copy_without_checksums_is_made_again(copy: Path) -> None:
    (copy / "sha256.json").unlink()
    with pytest.warns(UserWarning, match="had no checksums and was made again"):
        opened_right()


@pytest.mark.parametrize("content", ["[" * 200_000, "{}", "[]", '{"config.json": ' * 100_000])
def test_a_copy_with_damaged_checksums_is_made_again(content: str, copy: Path) -> None:
    (copy / "sha256.json").write_text(content)
    PackageModel(path=NAME).check_weights()
    assert PackageModel(path=NAME).open_config().num_hidden_layers == 6
    with pytest.warns(UserWarning, match="had no checksums and was made again"):
        opened_right()
    opened_right()


@pytest.mark.parametrize(
    "left", [[], ["tokenizer.json"], ["config.json", "model.safetensors"], ["config.json", "tokenizer.json"]]
)
def test_a_copy_that_is_not_whole_is_made_again_though_its_checksums_are_right(left: list[str], copy: Path) -> None:
    for file in copy.iterdir():
        if file.name not in left:
            file.unlink()
    write_manifest(copy)
    PackageModel(path=NAME).check_weights()
    assert PackageModel(path=NAME).open_config().num_hidden_layers == 6
    with pytest.warns(UserWarning, match="the converted copy .* and was made again"):
        opened_right()
    opened_right()


def test_a_config_with_one_wrong_bit_is_not_read(copy: Path) -> None:
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"num_hidden_layers": 6', '"num_hidden_layers": 4'))
    assert PackageModel(path=NAME).open_config().num_hidden_layers == 6


def test_what_killed_conversions_left_is_removed(copy: Path) -> None:
    for left in (copy.parent / ".part-x1y2", copy.with_name(f".{copy.name}.part")):
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"half")
    (copy / "config.json").unlink()
    with pytest.warns(UserWarning, match="was damaged"):
        opened_right()
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


OPEN = f"""
import warnings; warnings.simplefilter("error")
from pdtrim_plugins.model_sources import PackageModel
print(float(sum(p.detach().double().sum() for p in PackageModel(path={NAME!r}, placement="cpu").open().model.parameters())))
"""


def test_processes_that_convert_at_once_are_all_right(packages: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])}
    started = [
        subprocess.Popen([sys.executable, "-c", OPEN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    told = [process.communicate(timeout=120) for process in started]
    assert {process.returncode for process in started} == {0}, told
    assert len({out for out, _ in told}) == 1
    (made,) = (tmp_path / "cache" / "pdtrim-core" / "models").glob("[!.]*")
    assert damaged(made) == []


def test_a_copy_that_another_process_is_making_is_waited_for(copy: Path, packages: Path) -> None:
    (copy / "config.json").write_text("half")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])}
    with (copy.parent / f".{copy.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-W", "ignore", "-c", OPEN.replace("error", "ignore")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        time.sleep(5)
        assert process.poll() is None
        assert (copy / "config.json").read_text() == "half"
    assert process.communicate(timeout=120)[0]
    assert damaged(copy) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_cache_that_cannot_be_written_is_named(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(PdtrimError, match=r"cannot write the converted model to .*Permission denied; set XDG_CACHE_HOME"):
        PackageModel(path=NAME).open()


def test_a_file_in_the_place_of_the_cache_is_named(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(PdtrimError, match=r"cannot write the converted model to .*; set XDG_CACHE_HOME to another place"):
        PackageModel(path=NAME).open()


def test_a_sound_copy_needs_no_lock(copy: Path) -> None:
    with (copy.parent / f".{copy.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        opened_right()
