"""`pdtrim-core eval --fidelity`: how far a run's variants are from the dense model, measured once, in one table."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core import load_run, results_in
from pdtrim_core.pipeline.run_fidelity import RunFidelity

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli, Result

pytestmark = pytest.mark.e2e
VARIANTS = "dense,unified,staged"


@pytest.fixture
def run(cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = ("--set", "searcher.t_min=9", "--set", "prune.merges=false", "--set", "splitter=dense-prefill")
    assert cli("run", recipe, *settings).code == 0
    return tmp_path / "runs" / "recipe"


def test_the_variants_stand_beside_each_other_and_are_found_again(cli: Cli, run: Path) -> None:
    words = ("eval", run, "--fidelity", "--variants", VARIANTS, "--answer-tokens", 8)
    first = cli(*words)
    assert first.code == 0, first.err
    lines = first.out.splitlines()
    assert re.fullmatch(r"task +metric +items +dense +unified +staged", lines[0])
    assert re.fullmatch(r"fidelity +kl +4 +0\.0000 \+- 0\.0000 +\d\.\d{4} \+- \d\.\d{4} +\d\.\d{4} \+- \d\.\d{4}", lines[1])
    assert [line.split()[1] for line in lines if line.startswith("fidelity")][:4] == ["kl", "top1", "acceptance", "tau"]
    assert first.err.splitlines()[-3:] == [f"fidelity, {variant}: running" for variant in VARIANTS.split(",")]
    again = cli(*words)
    assert again.out == first.out
    assert again.err.splitlines()[-3:] == [f"fidelity, {variant}: known" for variant in VARIANTS.split(",")]
    by_variant = {result.variant: result for result in results_in(run)}
    assert 0 < by_variant["staged"].metrics["kl"].value <= by_variant["unified"].metrics["kl"].value
    assert by_variant["staged"].answers[0].answer


NONE = 'recovery = "none"\n'
EVERY = "staged,unified,prefill,decode,unrecovered,dense"


@pytest.fixture
def recovered(cli: Cli, recipe: Path, tmp_path: Path, run: Path) -> Path:
    """Return the same run with recoveries."""
    text = 'recovery = [{use = "kv-refit", tokens = 200}, {use = "fold", tokens = 4800}]\n' + recipe.read_text().replace(NONE, "")
    path = tmp_path / "mended.toml"
    path.write_text(
        text.replace("fidelity = false", "answer_tokens = 8") + "[recovery_data]\nprompt_tokens = 8\nanswer_tokens = 8\n"
    )
    done = cli("run", path, *("--set", "searcher.t_min=9", "--set", "prune.merges=false", "--set", "splitter=dense-prefill"))
    assert done.code == 0, done.err
    assert re.search(
        r"^recovery fold: KL 0\.\d{3} -> 0\.\d{3}, \d+ % taken away; 4,800 tokens, \d\.\d s$", done.err, re.MULTILINE
    )
    assert "recovery, KL to dense in nats a token on other texts:\n" in done.out
    assert run.is_dir()
    return tmp_path / "runs" / "mended"


def test_the_pair_before_its_recovery_is_shown_evaluated_and_compared(cli: Cli, run: Path, recovered: Path) -> None:
    assert re.search(r"^unrecovered +0\.\d{3}", cli("show", recovered).out, re.MULTILINE)
    done = cli("eval", recovered, "--fidelity", "--variants", EVERY)
    assert done.code == 0, done.err
    assert re.match("task +metric +items +staged +unified +prefill +decode +unrecovered +dense\n", done.out)
    assert "unrecovered: the first token is decode's" in done.out
    found = json.loads(cli("eval", recovered, "--fidelity", "--variants", EVERY, "--json").out)
    values = {one["stage"]: one["metrics"]["kl"]["value"] for one in found}
    assert list(values) == EVERY.split(",")
    assert values["staged"] < values["unrecovered"]
    table = cli("compare", recovered, run, "--variants", "unrecovered,staged").out
    assert re.match(r"method .* recovery +prefill removed", table)
    assert re.search(r"^mended \(unrecovered\) .* - ", table, re.MULTILINE)
    assert re.search(r"^mended \(staged\) .* fold ", table, re.MULTILINE)
    assert "note: recipe has no variant 'unrecovered': its recipe names no recovery" in table
    rows = json.loads(cli("compare", recovered, run, "--json").out)["rows"]
    assert [row["recovery"][-1:] for row in rows] == [["fold"], []]


def test_of_a_run_without_recovery_all_other_variants_are_evaluated(cli: Cli, run: Path) -> None:
    done = cli("eval", run, "--fidelity", "--variants", EVERY)
    assert done.code == 0, done.err
    assert re.match("task +metric +items +staged +unified +prefill +decode +dense\n", done.out)
    said = f"{run} has no variant 'unrecovered': its recipe names no recovery, so that 'staged' is the same"
    assert said in done.err.splitlines()
    alone = cli("eval", run, "--fidelity", "--variants", "unrecovered")
    assert (alone.code, alone.out) == (1, "")
    assert alone.err.splitlines()[-1] == f"error: {said}"
    assert "error: there is nothing to compare: " in cli("compare", run, "--variants", "unrecovered").err


def test_other_lengths_and_first_tokens_are_other_results(cli: Cli, run: Path) -> None:
    for more in ((), ("--answer-tokens", 4), ("--first-token", "prefill")):
        done = cli("eval", run, "--fidelity", *more)
        assert "fidelity, staged: running" in done.err, done
    assert len(results_in(run)) == 3


def test_figures_of_other_code_are_measured_again_with_the_reason(cli: Cli, run: Path) -> None:
    assert cli("eval", run, "--fidelity").code == 0
    (file,) = (run / "evaluations" / "staged").iterdir()
    data = json.loads(file.read_text())
    data["settings"]["code"]["torch"] = "1.0"
    file.write_text(json.dumps(data))
    again = cli("eval", run, "--fidelity")
    assert re.search(r"fidelity, staged: measured again: torch is \S+, was 1\.0", again.err)
    file.write_text("{")
    assert "fidelity, staged: measured again: " in cli("eval", run, "--fidelity").err


def test_compare_shows_it_beside_tasks(cli: Cli, run: Path) -> None:
    assert cli("eval", run, "--fidelity", "--variants", "staged,dense").code == 0
    done = cli("compare", run, "--variants", "staged,dense")
    assert done.code == 0, done.err
    assert "fidelity" in done.out


def test_a_run_without_held_out_items_says_what_it_lacks(cli: Cli, recipe: Path) -> None:
    words = ("--set", "searcher.t_min=9", "--set", "prune.merges=false", "--set", "calibration.held_out=0")
    assert cli("run", recipe, "--out", "r", *words).code == 0
    done = cli("eval", "r", "--fidelity")
    assert (done.code, "holds no items out (calibration.held_out)" in done.err) == (1, True)


def test_in_python_a_run_gives_its_results(run: Path) -> None:
    (found,) = RunFidelity(load_run(run), length=8).results(["staged"])
    assert (found.task, found.main, found.variant) == ("fidelity", "kl", "staged")


def test_variants_that_run_the_same_plan_are_measured_once(cli: Cli, run: Path) -> None:
    done = cli("eval", run, "--fidelity", "--variants", "unified,decode")
    assert done.err.splitlines()[-2:] == ["fidelity, unified: running", "fidelity, decode: the same as unified"]
    one, other = results_in(run)
    assert (one.metrics, one.answers) == (other.metrics, other.answers)


# Other prompts and texts


TEXT = "The quick brown fox jumps over the lazy dog near a river. " * 12
PIQA = {"id": "p", "query": "Goal: dry a plate\nAnswer:", "choices": ["use a towel", "use a hammer", "use the rain"], "gold": 0}
WINOGRANDE = {
    "id": "w",
    "contexts": ["The cup fell because the cup", "The cup fell because the shelf"],
    "continuation": "broke.",
    "gold": 1,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, item in (("piqa", PIQA), ("winogrande", WINOGRANDE)):
        (tmp_path / "data" / name).mkdir(parents=True)
        lines = [json.dumps({**item, "id": f"{item['id']}{number}"}) for number in range(6)]
        (tmp_path / "data" / name / "test.jsonl").write_text("\n".join(lines))
    (tmp_path / "data" / "humaneval").mkdir()
    return tmp_path / "data"


def by_task(done: Any) -> dict[str, dict[str, Any]]:
    assert done.code == 0, done.err
    return {result["task"]: result for result in json.loads(done.out)}


def test_items_of_benchmarks_are_measured_without_the_harness(
    cli: Cli, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    words = ("eval", run, "--fidelity", "--data", data, "--answer-tokens", 4, "--json")
    found = by_task(cli(*words, "--items", 3))
    assert list(found) == ["fidelity:piqa", "fidelity:winogrande"]
    assert {result["items"] for result in found.values()} == {3}
    assert all({"kl", "perplexity", "flips_p"} <= result["metrics"].keys() for result in found.values())
    assert list(by_task(cli(*words, "--tasks", "winogrande"))) == ["fidelity:winogrande"]
    assert len(results_in(run)) == 3  # three items of one, all six of the other, are other results


def test_a_text_is_compared_along_windows_and_kept_apart_from_the_held_out_items(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    words = ("eval", run, "--fidelity", "--answer-tokens", 4, "--variants", "dense,staged")
    text = (*words, "--text", "fox.txt")
    found = by_task(cli(*text, "--json"))
    (result,) = found.values()
    assert (result["task"], result["items"], result["settings"]["source"]["text"]) == ("fidelity:fox.txt", 5, "fox.txt")
    assert "fidelity:fox.txt, staged: known" in cli(*text).err
    assert "fidelity:fox.txt, staged: running" in cli(*text, "--prompt-share", 0.25).err
    (tmp_path / "fox.txt").write_text(TEXT.replace("lazy", "idle"))
    assert "fidelity:fox.txt, staged: running" in cli(*text).err
    assert cli(*words).code == 0
    done = cli("compare", run, "--variants", "dense,staged")
    assert done.code == 0, done.err
    assert {"fidelity", "fidelity:fox.txt"} <= set(done.out.split())


def test_a_needle_test_has_its_own_figures_beside_those_along_answers(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    words = ("eval", run, "--fidelity", "--prompt-tokens", 300, "--items", 5, "--answer-tokens", 4, "--variants", "dense,staged")
    done = cli(*words)
    assert done.code == 0, done.err
    names = [line.split()[1] for line in done.out.splitlines() if line.startswith("fidelity:needle-300")]
    depths = [f"needle_at_{depth}" for depth in (0, 25, 50, 75, 100)]
    assert names[:8] == ["needle", "needle_p", *depths, "kl"]
    result = next(result for result in results_in(run) if result.variant == "staged")
    assert (result.main, len(result.answers)) == ("needle", 5)
    assert all(answer.values["needle"] in (0.0, 1.0) for answer in result.answers)
    assert "fidelity:needle-300-fox.txt, staged: running" in cli(*words, "--text", "fox.txt").err
    assert "fidelity:needle-310, staged: running" in cli(*words, "--prompt-tokens", 310).err


def test_the_benchmark_of_a_folder_that_is_running_text_is_cut_into_windows(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "wikitext2").mkdir(parents=True)
    (tmp_path / "data" / "wikitext2" / "test.txt").write_text(TEXT)
    done = cli("eval", run, "--fidelity", "--data", "data", "--items", 2, "--answer-tokens", 2, "--json")
    assert by_task(done)["fidelity:wikitext"]["items"] == 2


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tasks", "piqa", "--text", "fox.txt"), "--text belongs to --fidelity"),
        (("--tasks", "piqa", "--prompt-tokens", 64), "--prompt-tokens belongs to --fidelity"),
        (("--tasks", "piqa", "--answer-tokens", 64), "--answer-tokens belongs to --fidelity"),
        (("--fidelity", "--text", "none.txt"), "--text: none.txt does not exist"),
        (("--fidelity", "--text", "empty.txt"), "--text: empty.txt is empty"),
        (("--fidelity", "--text", "binary.txt"), "it takes a text file in UTF-8"),
        (("--fidelity", "--text", "short.txt"), "short.txt has 9 tokens, and one window of it takes 128"),
        (("--fidelity", "--text", "short.txt", "--prompt-tokens", 400), "short.txt is too short for a prompt of 400 tokens"),
        (("--fidelity", "--prompt-tokens", 513), "reads at most 512 tokens"),
        (("--fidelity", "--items", 3), "--items chooses among the items of --data, --text or --prompt-tokens"),
        (("--fidelity", "--data", "data", "--text", "fox.txt"), "--data has items of its own"),
        (("--fidelity", "--data", "data", "--prompt-tokens", 64), "--data has items of its own"),
        (("--fidelity", "--data", "data", "--tasks", "humaneval"), "--fidelity takes no items from 'humaneval'"),
        (("--fidelity", "--data", "data", "--tasks", "boolq"), "boolq/test.jsonl does not exist"),
        (("--fidelity", "--data", "data", "--tasks", "piqq"), "did you mean 'piqa'"),
        (("--fidelity", "--data", "data", "--limit", 3), "--limit is for tasks in the harness"),
        (("--fidelity", "--data", "data", "--num-fewshot", 3), "--num-fewshot is for tasks in the harness"),
        (("--fidelity", "--data", "nowhere"), "nowhere is not a folder"),
        (("--fidelity", "--data", "nothing"), "nothing has no benchmark for --fidelity"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused_in_one_line(
    words: tuple[object, ...], told: str, cli: Cli, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "fox.txt").write_text(TEXT)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("Too short")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    done = cli("eval", run, *words)
    assert done.code == 1
    assert told in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error")]) == 1


# At the end of a run


AT_THE_END = ("--set", "evaluation.fidelity=true", "--set", "evaluation.answer_tokens=6", "--set", "splitter=dense-prefill")


@pytest.fixture
def compared(cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Return what a run says that compares its variants with the dense model at its end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cli("run", recipe, "--set", "report=['table', 'html']", "--set", "searcher.t_min=9", *AT_THE_END)


def test_a_run_ends_with_how_near_its_variants_are_to_the_dense_model(cli: Cli, compared: Result, tmp_path: Path) -> None:
    assert compared.code == 0, compared.err
    lines = compared.out.splitlines()
    start = lines.index("how near to the dense model, on 4 held-out items:")
    assert lines[start + 2].split() == ["dense", "0.000", "100.0", "100.0", "(4.0)"]
    assert [line.split()[0] for line in lines[start + 3 : start + 5]] == ["unified", "staged"]
    assert re.search(r"^fidelity: \d+\.\d s$", compared.err, re.MULTILINE)
    found = json.loads((tmp_path / "runs" / "recipe" / "outcome.json").read_text())["fidelity"]
    assert (found["items"], found["answer_tokens"], list(found["variants"])) == (4, 6, ["dense", "unified", "staged"])
    assert found["variants"]["dense"]["kl"]["value"] == 0
    assert found["variants"]["dense"]["top1"]["value"] == 1
    assert [sorted(sample["answers"]) for sample in found["samples"]] == [["dense", "staged", "unified"]] * 3
    page = (tmp_path / "runs" / "recipe" / "report.html").read_text(encoding="utf-8")
    assert "How near to the dense model" in page
    assert "Held-out prompt 3 of 3" in page
    assert cli("show", "runs/recipe").out.splitlines()[start : start + 9] == lines[start : start + 9]


def test_what_a_run_measured_is_known_to_eval_and_to_compare(cli: Cli, compared: Result) -> None:
    assert compared.code == 0, compared.err
    done = cli("eval", "runs/recipe", "--fidelity", "--variants", VARIANTS)
    assert done.err.splitlines() == [f"fidelity, {variant}: known" for variant in VARIANTS.split(",")]
    table = cli("compare", "runs/recipe", "--variants", "dense,staged")
    assert table.code == 0, table.err
    assert "fidelity" in table.out.splitlines()[0]
    assert "held out" in table.out.splitlines()[0]
    assert "not paired" not in table.out


def test_runs_of_a_sweep_are_compared_by_it_too(cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = 'set = {"evaluation.fidelity" = true, "evaluation.answer_tokens" = 4, "prune.merges" = false}\n'
    recipe.with_name("s.toml").write_text(
        f'sweep = 1\nrecipe = "{recipe.name}"\n{settings}grid = {{"searcher" = ["greedy", "random"]}}\n'
    )
    swept = cli("sweep", "s.toml", "--out", "s")
    assert swept.code == 0, swept.err
    done = cli("compare", *sorted(path.parent for path in (tmp_path / "s").glob("*/outcome.json")))
    assert done.code == 0, done.err
    assert "fidelity" in done.out.splitlines()[0]
