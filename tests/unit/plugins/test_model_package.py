"""The converted copy of a GGUF file, of a package or by itself, is whole, or it is made again."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import ModelSource, PdtrimError, damaged, write_manifest
from pdtrim_plugins.model_sources import GgufModel, PackageModel, gguf_copy
from pdtrim_plugins.model_sources.gguf_model import read_gguf
from pdtrim_plugins.model_sources.package import gguf_behind
from pdtrim_plugins.model_sources.reading import load
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


@pytest.fixture(params=["package", "gguf"])
def source(request: pytest.FixtureRequest, packages: Path) -> ModelSource:
    """A source of the file: the package that ships it, or its path."""
    if request.param == "package":
        return PackageModel(path=NAME, placement="cpu")
    return GgufModel(path=str(packages / "pdtrim_tiny_copy" / "tiny.gguf"), placement="cpu")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder of converted copies."""
    return tmp_path / "cache" / "pdtrim-core" / "models"


@pytest.fixture
def copy(source: ModelSource, models: Path) -> Path:
    """The converted copy."""
    opened_right(source)
    (made,) = models.glob("[!.]*")
    return made


def opened_right(source: ModelSource) -> None:
    loaded = source.open()
    assert (loaded.name, loaded.dtypes) == (source.path, {"": "float32"})
    file = gguf_behind(source.path)
    assert file is not None
    model, tokenizer = read_gguf(file, "as it is")
    found, wanted = loaded.model.state_dict(), model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert loaded.tokenizer("a cab </s>")["input_ids"] == tokenizer("a cab </s>")["input_ids"]


ONE_SOURCE = pytest.mark.parametrize("source", ["package"], indirect=True)
"""For damages of many kinds, which are found by what both sources share."""


def made_again(*_args: Any) -> Any:
    raise AssertionError("it was made again")


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def test_what_is_converted_once_is_said_before_with_where_it_is_kept(source: ModelSource, models: Path) -> None:
    said = source.first_time()
    assert said.startswith(f"{source.path}: converted once (about 1 MB), and kept in {models}/")
    source.open()
    assert source.first_time() == ""
    assert Path(said.rpartition(" ")[2]).is_dir()


def test_a_model_in_another_number_format_has_a_copy_in_that(copy: Path, source: ModelSource) -> None:
    half = source.model_copy(update={"dtype": "bfloat16"})
    said = half.first_time()
    opened, wanted = half.open(), source.open().model.state_dict()
    made = Path(said.rpartition(" ")[2])
    assert made.parent == copy.parent
    assert 2 * (made / "model.safetensors").stat().st_size < 1.2 * (copy / "model.safetensors").stat().st_size
    assert opened.dtypes == {"": "bfloat16"}
    assert all(torch.equal(tensor, wanted[name].bfloat16()) for name, tensor in opened.model.state_dict().items())
    assert half.first_time() == source.first_time() == ""


def test_weights_in_another_number_format_may_stay_in_the_files_of_their_copy(source: ModelSource) -> None:
    streamed = source.model_copy(update={"placement": "stream", "dtype": "bfloat16"}).open()
    wanted = source.open().model.state_dict()
    assert streamed.mapped is not None
    assert all(torch.equal(tensor, wanted[name].bfloat16()) for name, tensor in streamed.model.state_dict().items())


def test_a_sound_copy_is_kept(copy: Path, source: ModelSource) -> None:
    before = (copy / "model.safetensors").stat()
    opened_right(source)
    assert (copy / "model.safetensors").stat().st_ino == before.st_ino
    assert damaged(copy) == []


@ONE_SOURCE
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
def test_a_copy_with_one_wrong_bit_is_made_again_with_a_warning(name: str, where: float, copy: Path, source: ModelSource) -> None:
    flip(copy / name, int(where * 8 * (copy / name).stat().st_size))
    with pytest.warns(UserWarning, match=rf"{source.path}: the converted copy .* was damaged \({name}\) and was made again"):
        opened_right(source)
    assert damaged(copy) == []
    opened_right(source)


def test_a_copy_that_lost_a_file_or_a_part_of_one_is_made_again(copy: Path, source: ModelSource) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"was damaged \(model.safetensors, tokenizer.json\)"):
        opened_right(source)
    opened_right(source)


def test_a_copy_without_checksums_is_made_again(copy: Path, source: ModelSource) -> None:
    (copy / "sha256.json").unlink()
    with pytest.warns(UserWarning, match="had no checksums and was made again"):
        opened_right(source)


@ONE_SOURCE
@pytest.mark.parametrize("content", ["[" * 200_000, "{}", "[]", '{"config.json": ' * 100_000])
def test_a_copy_with_damaged_checksums_is_made_again(content: str, copy: Path, source: ModelSource) -> None:
    (copy / "sha256.json").write_text(content)
    source.check_weights()
    assert source.open_config().num_hidden_layers == 6
    with pytest.warns(UserWarning, match="had no checksums and was made again"):
        opened_right(source)
    opened_right(source)


@ONE_SOURCE
@pytest.mark.parametrize(
    "left", [[], ["tokenizer.json"], ["config.json", "model.safetensors"], ["config.json", "tokenizer.json"]]
)
def test_a_copy_that_is_not_whole_is_made_again_though_its_checksums_are_right(
    left: list[str], copy: Path, source: ModelSource
) -> None:
    for file in copy.iterdir():
        if file.name not in left:
            file.unlink()
    write_manifest(copy)
    source.check_weights()
    assert source.open_config().num_hidden_layers == 6
    with pytest.warns(UserWarning, match="the converted copy .* and was made again"):
        opened_right(source)
    opened_right(source)


def test_a_config_with_one_wrong_bit_is_not_read(copy: Path, source: ModelSource) -> None:
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"num_hidden_layers": 6', '"num_hidden_layers": 4'))
    assert source.open_config().num_hidden_layers == 6


def test_what_killed_conversions_left_is_removed(copy: Path, source: ModelSource) -> None:
    for left in (copy.parent / ".part-x1y2", copy.with_name(f".{copy.name}.part")):
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"half")
    (copy / "config.json").unlink()
    with pytest.warns(UserWarning, match="was damaged"):
        opened_right(source)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_second_opening_reads_the_copy(copy: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    assert copy.is_dir()
    monkeypatch.setattr(gguf_copy, "read_gguf", made_again)
    source.open()


def test_a_file_has_one_copy_wherever_it_lies(
    copy: Path, source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copy(str(gguf_behind(source.path)), tmp_path / "moved.gguf")
    monkeypatch.setattr(gguf_copy, "read_gguf", made_again)
    GgufModel(path=str(moved), placement="cpu").open()
    assert list(copy.parent.glob("[!.]*")) == [copy]


def test_a_file_that_changed_has_another_copy(copy: Path, source: ModelSource) -> None:
    file = gguf_behind(source.path)
    assert file is not None
    before = file.stat()
    flip(file, 8 * (before.st_size - 64))  # in the last tensor
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened_right(source)
    assert len(list(copy.parent.glob("[!.]*"))) == 2


@pytest.mark.parametrize("of", ["conversion", "transformers"])
def test_another_version_makes_a_copy_of_its_own(
    of: str, copy: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    if of == "conversion":
        monkeypatch.setattr(gguf_copy, "CONVERSION", gguf_copy.CONVERSION + 1)
    else:
        monkeypatch.setattr("importlib.metadata.version", lambda _name: "99.0")
    assert source.first_time()
    opened_right(source)
    assert len(list(copy.parent.glob("[!.]*"))) == 2


def test_weights_may_stay_in_the_files_of_the_copy(copy: Path, source: ModelSource) -> None:
    assert copy.is_dir()
    streamed = source.model_copy(update={"placement": "stream"}).open()
    assert streamed.mapped is not None
    wanted = source.open().model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in streamed.model.state_dict().items())


def test_what_was_converted_is_forgotten_before_its_copy_is_read(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def reading(*args: Any) -> Any:
        model, tokenizer = read_gguf(*args)
        made.append(weakref.ref(model))
        return model, tokenizer

    def loading(*args: Any) -> Any:
        assert [left() for left in made] == [None]
        return load(*args)

    monkeypatch.setattr(gguf_copy, "read_gguf", reading)
    monkeypatch.setattr(gguf_copy, "load", loading)
    source.open()
    assert made


OPEN = """
import sys, warnings; warnings.simplefilter("error")
from pdtrim_plugins.model_sources import GgufModel, PackageModel
(source,) = (kind(path=sys.argv[1], placement="cpu") for kind in (PackageModel, GgufModel) if kind.accepts(sys.argv[1]))
print(float(sum(p.detach().double().sum() for p in source.open().model.parameters())))
"""


def test_processes_that_convert_at_once_are_all_right(packages: Path, models: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for path in (NAME, str(packages / "pdtrim_tiny_copy" / "tiny.gguf"), NAME)
    ]
    told = [process.communicate(timeout=120) for process in started]
    assert {process.returncode for process in started} == {0}, told
    assert len({out for out, _ in told}) == 1
    (made,) = models.glob("[!.]*")
    assert damaged(made) == []


def test_a_copy_that_another_process_is_making_is_waited_for(
    copy: Path, source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = shutil.copytree(copy, tmp_path / "sound")
    (copy / "config.json").write_text("half")
    lock = (copy.parent / f".{copy.name}.lock").open("a")
    really = fcntl.flock
    really(lock, fcntl.LOCK_EX)

    def waiting(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not lock.closed:
            assert (copy / "config.json").read_text() == "half"
            # The other process comes to its end.
            shutil.rmtree(copy)
            sound.rename(copy)
            lock.close()
        really(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", waiting)
    monkeypatch.setattr(gguf_copy, "read_gguf", made_again)
    source.open()
    assert lock.closed


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    source: ModelSource, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(gguf_copy, "write_manifest", full)
        with pytest.raises(PdtrimError) as caught:
            source.open()
    told = str(caught.value)
    assert told.startswith(f"cannot write the converted model to {models}/")
    assert told.endswith(": No space left on device; set XDG_CACHE_HOME to another place")
    assert list(models.iterdir()) == []
    opened_right(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_cache_that_cannot_be_written_is_named(source: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(PdtrimError, match=r"cannot write the converted model to .*Permission denied; set XDG_CACHE_HOME"):
        source.open()


def test_a_file_in_the_place_of_the_cache_is_named(source: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(PdtrimError, match=r"cannot write the converted model to .*; set XDG_CACHE_HOME to another place"):
        source.open()


def test_a_sound_copy_needs_no_lock(copy: Path, source: ModelSource) -> None:
    with (copy.parent / f".{copy.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        opened_right(source)
