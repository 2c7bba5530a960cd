"""What runs and the cache take up, and deleting them: nothing else ever goes."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from pdtrim_core.errors import PdtrimError
from pdtrim_core.results.cleanup import chosen, find_cached, find_runs, remove_cached, remove_run, why_not


def a_run(path: Path, *, finished: bool = True, model: str = "me/model") -> Path:
    path.mkdir(parents=True)
    (path / "recipe.toml").write_text(f'[model]\npath = "{model}"\n')
    (path / "journal.jsonl").write_text("x" * 100)
    (path / "merges").mkdir()
    (path / "merges" / "1-2.safetensors").write_bytes(b"y" * 1000)
    if finished:
        (path / "outcome.json").write_text("{}")
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "runs"


def test_runs_are_found_at_a_place_and_below_it_each_once(runs: Path) -> None:
    first, second = a_run(runs / "b"), a_run(runs / "sweep" / "t0=5", finished=False)
    (runs / "no-run").mkdir()
    (runs / "no-run" / "recipe.toml").write_text("")
    found = find_runs([runs, runs / "b"])
    assert [(run.path, run.state, run.model) for run in found] == [
        (first, "finished", "me/model"),
        (second, "unfinished", "me/model"),
    ]
    assert found[0].size == sum(file.stat().st_size for file in first.rglob("*") if file.is_file())


def test_what_recovery_keeps_in_a_run_is_the_runs_own_and_goes_with_it(runs: Path) -> None:
    path = a_run(runs / "a")
    (path / "recovered").mkdir()
    (path / "recovered" / "decode.safetensors").write_bytes(b"z" * 500)
    # A long training may have stopped in the middle.
    work = path / "recovery-work" / "0-distill"
    work.mkdir(parents=True)
    (work / "state.pt").write_bytes(b"z" * 700)
    a_run(work / "not-looked-at")
    (run,) = find_runs([runs])
    assert run.besides == ()
    assert run.size > 1200
    remove_run(run)
    assert not path.exists()


def test_hidden_folders_and_links_are_not_followed(runs: Path, tmp_path: Path) -> None:
    a_run(runs / ".hidden" / "a")
    a_run(tmp_path / "elsewhere" / "b")
    (runs / "link").symlink_to(tmp_path / "elsewhere")
    assert find_runs([runs]) == []


def test_a_place_that_is_no_folder_is_named(runs: Path) -> None:
    with pytest.raises(PdtrimError, match="gone is not a folder: name a run, or a folder with runs below it"):
        find_runs([runs / "gone"])


def test_a_damaged_recipe_hides_no_run(runs: Path) -> None:
    (a_run(runs / "a") / "recipe.toml").write_text("not toml [")
    assert [run.model for run in find_runs([runs])] == ["?"]


def test_a_run_goes_whole_and_nothing_beside_it(runs: Path) -> None:
    a_run(runs / "a")
    a_run(runs / "b")
    (runs / "notes.txt").write_text("keep")
    (runs / "a" / "notes.md").write_text("goes with the run")
    (run,) = [run for run in find_runs([runs]) if run.path.name == "a"]
    assert run.besides == ("notes.md",)
    remove_run(run)
    assert sorted(path.name for path in runs.iterdir()) == ["b", "notes.txt"]


def test_a_link_in_a_run_goes_and_what_it_leads_to_stays(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_text("keep")
    (a_run(runs / "a") / "data").symlink_to(tmp_path / "precious")
    remove_run(find_runs([runs])[0])
    assert (tmp_path / "precious" / "data").read_text() == "keep"
    assert not (runs / "a").exists()


def test_a_run_that_is_worked_in_stays(runs: Path) -> None:
    path = a_run(runs / "a", finished=False)
    with (path / "journal.jsonl").open("ab") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        (run,) = find_runs([runs])
        assert run.state == "working"
        with pytest.raises(PdtrimError, match="a stays: a run is working in it"):
            remove_run(run)
    assert (path / "journal.jsonl").exists()


def test_the_folder_one_is_in_stays(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_run(runs / "a")
    (path / "below").mkdir()
    monkeypatch.chdir(path / "below")
    assert why_not(find_runs([path])[0]) == "it holds the folder that you are in, or your home"


def test_the_home_folder_stays(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_run(runs / "a")
    monkeypatch.setenv("HOME", str(path))
    assert why_not(find_runs([path])[0]) == "it holds the folder that you are in, or your home"


def test_a_checkout_stays(runs: Path) -> None:
    path = a_run(runs / "a")
    (path / ".git").mkdir()
    assert why_not(find_runs([path])[0]) == "it is a checkout"


def test_a_run_with_others_below_it_stays(runs: Path) -> None:
    a_run(runs)
    a_run(runs / "inner")
    outer, inner = find_runs([runs])
    assert (why_not(outer), why_not(inner)) == ("other runs lie below it", None)


def test_a_run_named_by_a_link_stays(runs: Path, tmp_path: Path) -> None:
    a_run(runs / "a")
    (tmp_path / "link").symlink_to(runs / "a")
    (run,) = find_runs([tmp_path / "link"])
    assert why_not(run) == "it is a link"


# The cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "theirs").write_text("keep")
    folder = tmp_path / "pdtrim-core"
    (folder / "merges").mkdir(parents=True)
    (folder / "merges" / "a.safetensors").write_bytes(b"x" * 10)
    (folder / "merges" / "b.safetensors").write_bytes(b"x" * 20)
    (folder / "models").mkdir()
    (folder / "models" / "c.json").write_bytes(b"x" * 5)
    return folder


@pytest.mark.usefixtures("cache")
def test_the_cache_is_told_by_parts() -> None:
    assert [(part.name, part.files, part.size) for part in find_cached()] == [("merges", 2, 30), ("models", 1, 5)]


def test_a_part_of_the_cache_goes_and_nothing_else(cache: Path) -> None:
    for part in chosen(find_cached(), ["merges"]):
        remove_cached(part)
    assert [path.name for path in cache.iterdir()] == ["models"]
    assert (cache.parent / "others" / "theirs").read_text() == "keep"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["merge", "../others", "/"])
def test_a_part_that_is_none_is_named(name: str) -> None:
    with pytest.raises(PdtrimError, match=f"the cache has no part '{name}'"):
        chosen(find_cached(), [name])


def test_no_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert find_cached() == []


def test_a_finished_run_of_a_recipe_is_one(runs: Path) -> None:
    """What a run really leaves behind is found, with nothing besides."""
    from pdtrim_core.pipeline.pipeline import run
    from pdtrim_core.recipe.recipe import Recipe
    from pdtrim_core.testing.contracts.small_run import TINY, tiny_host

    host = tiny_host()
    data = {
        "model": {"path": TINY},
        "recovery": "none",
        "prune": {"blocks": 1},
        "calibration": {"samples": 4, "held_out": 0},
        "searcher": "greedy",
        "objective": "margin",
        "evaluation": {"threads": 1, "fidelity": False},
    }
    run(Recipe.from_data(data, where="r.toml", out=runs / "r", host=host), host)
    (found,) = find_runs([runs])
    assert (found.state, found.model, found.besides) == ("finished", TINY, ())
    assert json.loads((runs / "r" / "outcome.json").read_text())["block_count"] == 6


def lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder read-only, for those too who may write everywhere."""
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != folder)


@pytest.mark.parametrize("locked", ["..", ".", "merges"])
def test_a_run_that_lies_in_a_read_only_folder_or_has_one_stays_whole(
    runs: Path, locked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_run(runs / "a")
    folder = {"..": runs, ".": path, "merges": path / "merges"}[locked]
    before = sorted(path.rglob("*"))
    lock(folder, monkeypatch)
    (run,) = find_runs([runs])
    assert why_not(run) == f"{folder} is read-only for you, so that nothing in it can go"
    with pytest.raises(PdtrimError, match=r"^.*/runs/a stays: .* is read-only for you"):
        remove_run(run)
    assert sorted(path.rglob("*")) == before


def test_a_part_of_the_cache_in_a_read_only_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    part = tmp_path / "pdtrim-core" / "merges"
    part.mkdir(parents=True)
    (part / "1").write_text("x")
    lock(part.parent, monkeypatch)
    with pytest.raises(PdtrimError, match=r"merges stays: .*/pdtrim-core is read-only for you"):
        remove_cached(find_cached()[0])
    assert (part / "1").is_file()


def test_what_stands_in_the_way_all_the_same_is_named_with_what_is_gone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_run(runs / "a")

    def refuse(folder: Path) -> None:
        raise OSError(16, "Device or resource busy", str(folder))

    monkeypatch.setattr("shutil.rmtree", refuse)
    (run,) = find_runs([runs])
    with pytest.raises(PdtrimError) as caught:
        remove_run(run)
    assert str(caught.value) == (
        f"cannot delete {path / 'merges'}: Device or resource busy; some of {path} is gone already: mend this and run the same "
        "command again"
    )
    # It is still known as a run, so that the same command goes on.
    assert len(find_runs([runs])) == 1
