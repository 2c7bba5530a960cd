"""A value is not older than the code that made it: what edited code would measure or train is measured and trained again."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pdtrim_core.host import sources
from tests.e2e.conftest import Cli

OBJECTIVE = """
from helper import SCALE
from pdtrim_core.api import Objective, hookimpl

class Own(Objective):
    name = "own"

    def item_values(self, staged, items):
        return [SCALE * len(item.prompts[0]) % 7 for item in items]

    def score(self, mean):
        return min(100.0, 10 * mean)

@hookimpl
def pdtrim_objectives():
    yield Own
"""
DISTILLER = """
from pdtrim_core.api import Distiller, hookimpl

class Own(Distiller):
    name = "{name}"

    def distil(self, student, batches):
        {line}
        for parameter in student.parameters():
            parameter.data *= 0.99
        yield 1.0
        yield 0.5

@hookimpl
def pdtrim_distillers():
    yield Own
"""
MERGING = ("--set", "prune.merge_threshold=-1.0", "--set", 'distiller.use="own"', "--set", "distiller.tokens=128")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def with_objective(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with an objective of its own, which takes a number from a module beside it."""
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    (helpers / "helper.py").write_text("SCALE = 1\n")
    monkeypatch.syspath_prepend(helpers)
    (tmp_path / "own.py").write_text(OBJECTIVE)
    text = recipe.read_text().replace("blocks = 2\n", "blocks = 2\nmerges = false\n")
    recipe.write_text('plugins = ["own.py"]\nobjective = "own"\n' + text)
    return recipe


def outcome(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "outcome.json").read_text())
    return found


def test_an_edited_objective_measures_again_and_the_reason_is_one_line(with_objective: Path, cli: Cli, tmp_path: Path) -> None:
    first = cli("run", with_objective, "--out", "r")
    assert first.code == 0, first.err
    before = outcome(tmp_path / "r")
    # As long as before and in the same second, which is all that Python's own cache of bytecode looks at.
    (tmp_path / "own.py").write_text(OBJECTIVE.replace("10 * mean", "11 * mean"))
    again = cli("run", with_objective, "--out", "r")
    after = outcome(tmp_path / "r")
    reason = "what depends on it is measured again: the code of objective 'own' (own.py) has changed"
    assert again.err.count(reason) == 1
    assert after["notes"].count(reason) == 1
    assert after["candidates"]["measured"] > 0
    assert after["rows"][0]["calibration"]["score"] == pytest.approx(1.1 * before["rows"][0]["calibration"]["score"])
    assert "r is finished" in cli("run", with_objective, "--out", "r").err
    assert outcome(tmp_path / "r") == after


def test_a_module_beside_the_plugin_counts_as_its_code(
    with_objective: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run", with_objective, "--out", "r").code == 0
    before = outcome(tmp_path / "r")["rows"]
    (tmp_path / "helpers" / "helper.py").write_text("SCALE = 2.5\n")
    monkeypatch.delitem(sys.modules, "helper")
    again = cli("run", with_objective, "--out", "r")
    assert "the code of objective 'own'" in again.err
    assert outcome(tmp_path / "r")["rows"] != before


def test_another_version_of_an_engine_measures_again(
    recipe: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ("--set", "prune.merges=false")
    assert cli("run", recipe, "--out", "r", *quick).code == 0
    measured = outcome(tmp_path / "r")["candidates"]["measured"]
    known = sources._version
    monkeypatch.setattr(sources, "_version", lambda name: "99.0" if name == "transformers" else known(name))
    again = cli("run", recipe, "--out", "r", *quick)
    assert f"measured again: transformers is 99.0, was {known('transformers')}" in again.err
    assert outcome(tmp_path / "r")["candidates"]["measured"] == measured


def test_an_edited_searcher_measures_nothing_again(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    searcher = (
        "from pdtrim_core.api import Drop, Plan, Removal, Searcher, hookimpl\n\nclass Own(Searcher):\n    name = 'own'\n\n"
        "    def search(self, space, rng):\n        yield Plan.unified(Removal([Drop(1), Drop(2)]))\n\n"
        "@hookimpl\ndef pdtrim_searchers():\n    yield Own\n"
    )
    (tmp_path / "own.py").write_text(searcher)
    words = ("run", recipe, "--out", "r", "--set", 'plugins=["own.py"]', "--set", "searcher={use='own'}")
    first = cli(*words, "--set", "prune.merges=false")
    assert first.code == 0, first.err
    before = outcome(tmp_path / "r")
    (tmp_path / "own.py").write_text(searcher.replace("Drop(2)]", "Drop(3)]"))
    again = cli(*words, "--set", "prune.merges=false")
    assert "measured again" not in again.err
    after = outcome(tmp_path / "r")
    assert after["search"][0]["decode"] != before["search"][0]["decode"]
    assert after["rows"][0] == before["rows"][0]  # dense, from the journal
    assert after["candidates"]["measured"] < before["candidates"]["measured"]


def distiller(tmp_path: Path, line: str, name: str = "own", file: str = "own.py") -> None:
    (tmp_path / file).write_text(DISTILLER.format(line=line, name=name))


@pytest.mark.parametrize("extra", [(), ("--fresh",)])
def test_an_edited_distiller_is_run_in_any_folder(recipe: Path, cli: Cli, tmp_path: Path, extra: tuple[str, ...]) -> None:
    words = ("--set", 'plugins=["own.py"]', *MERGING)
    distiller(tmp_path, "pass")
    first = cli("run", recipe, "--out", "a", *words)
    assert first.code == 0, first.err
    distiller(tmp_path, "raise ValueError('edited')")
    for out in ("a", "b"):
        again = cli("run", recipe, "--out", out, *words, *extra)
        assert again.code == 1
        assert "distiller 'own' (" in again.err
        assert "failed: ValueError: edited" in again.err


def test_two_plugins_with_one_distiller_name_share_nothing(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    distiller(tmp_path, "print('one trains', file=__import__('sys').stderr)", file="one.py")
    distiller(tmp_path, "print('two trains', file=__import__('sys').stderr)", file="two.py")
    for file, out, trains in (("one", "a", 1), ("one", "b", 0), ("two", "c", 1), ("two", "d", 0)):
        done = cli("run", recipe, "--out", out, "--set", f'plugins=["{file}.py"]', *MERGING)
        assert done.code == 0, done.err
        assert bool(done.err.count(f"{file} trains")) is bool(trains)


def test_fresh_trains_again_what_the_store_has(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    distiller(tmp_path, "print('trains', file=__import__('sys').stderr)")
    words = ("--set", 'plugins=["own.py"]', *MERGING)
    runs = (("a",), ("b",), ("b", "--fresh"))
    counts = [cli("run", recipe, "--out", *run, *words).err.count("trains\n") for run in runs]
    assert counts[0] > 0
    assert counts == [counts[0], 0, counts[0]]


def test_a_finished_run_of_a_sweep_is_carried_out_again_when_its_code_changed(
    with_objective: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(f'sweep = 1\nrecipe = "{with_objective.name}"\n[grid]\nseed = [0, 1]\n')
    first = cli("sweep", "sweep.toml")
    assert first.code == 0, first.err
    again = cli("sweep", "sweep.toml")
    assert (again.out, "carried out again" in again.err) == (first.out, False)
    (tmp_path / "own.py").write_text(OBJECTIVE.replace("10 * mean", "11 * mean"))
    other = cli("sweep", "sweep.toml")
    assert other.err.count("is carried out again: the code of objective 'own'") == 2
    assert other.out != first.out


def test_another_config_or_other_last_digits_of_the_weights_measure_again(
    recipe: Path, cli: Cli, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    words = ("run", recipe, "--out", "r", "--set", f"model.path={model}", "--set", "prune.merges=false")
    assert cli(*words).code == 0
    first = outcome(tmp_path / "r")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    again = cli(*words)
    assert "what depends on it is measured again: the model is " in again.err
    assert outcome(tmp_path / "r")["candidates"]["remembered"] < first["candidates"]["measured"]
    assert outcome(tmp_path / "r")["rows"][1] != first["rows"][1]
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    save_file(
        {name: tensor.bfloat16().float() for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"}
    )
    third = cli(*words)
    assert "what depends on it is measured again: the model is " in third.err
    assert outcome(tmp_path / "r")["environment"]["weights"] == first["environment"]["weights"]


def test_a_merge_is_not_taken_for_another_one(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    distiller(tmp_path, "pass")
    words = ("--set", 'plugins=["own.py"]', *MERGING)
    first = cli("run", recipe, "--out", "a", *words)
    one, other, *_ = sorted((tmp_path / "cache" / "pdtrim-core" / "merges").glob("*.safetensors"))
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.unlink()
    other.mkdir()
    again = cli("run", recipe, "--out", "b", *words)
    assert again.err.count("is trained again") == 2
    assert f"the stored merge {one} is damaged (it is another merge's)" in again.err
    assert again.out.split("note: ")[0] == first.out.split("note: ")[0]
    assert (one.read_bytes(), other.read_bytes()) == contents


def test_the_spelling_of_a_path_measures_nothing_again(
    with_objective: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run", with_objective, "--out", "r").code == 0
    for words in (("own.toml", "r"), ("../" + tmp_path.name + "/own.toml", "r"), ("r/recipe.toml", "r")):
        shutil.copy(with_objective, tmp_path / "own.toml")
        again = cli("run", words[0], "--out", words[1])
        assert (again.code, "r is finished" in again.err) == (0, True), again.err
