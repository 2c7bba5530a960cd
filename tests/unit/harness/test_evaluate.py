"""Tasks from files on the sides of a run: the harness' own numbers, kept and found again; and what cannot be evaluated."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Drop, LoadedRun, PdtrimError, Plan, Removal
from pdtrim_core.harness import data_files
from pdtrim_core.harness.tasks import NAMES, Source, load_task
from pdtrim_core.results.task_results import Variant, results_in

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
from lm_eval import evaluator, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from pdtrim_core.harness.evaluate import Evaluation, Options
from tests.unit.harness.own_items import write_own_items

SHARED = Path(__file__).parents[4] / "shared" / "data"
ITEM = {"id": "one", "query": "Question: two?\nAnswer:", "choices": ["one", "two"], "gold": 1}
pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.filterwarnings("ignore:F-score is ill-defined")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "piqa").mkdir(parents=True)
    lines = [{**ITEM, "id": f"piqa/{number}", "query": f"Question: {number}?\nAnswer:"} for number in range(5)]
    (folder / "piqa" / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def own_items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_items(tmp_path_factory.mktemp("own_items"))


@pytest.fixture
def real_items(tmp_path: Path) -> Path:
    """The developers' files, with articles of WikiText that are short: a tiny model takes every letter for a token."""
    folder = tmp_path / "shared"
    folder.mkdir()
    for path in SHARED.iterdir():
        if path.is_dir() and path.name != "wikitext2":
            (folder / path.name).symlink_to(path)
    pages = [doc["page"][:700] for doc in data_files.read_docs(SHARED / "wikitext2" / "test.txt", "wikitext")]
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2" / "test.txt").write_text("\n".join(pages), encoding="utf-8")
    return folder


OF_EACH_SORT = ("mmlu", "hellaswag", "wikitext", "humaneval")
"""A task of each way to measure: choices of a letter and of a text, likelihoods of pages, and texts that are generated."""


@pytest.mark.parametrize("task", [pytest.param(name, marks=[pytest.mark.numeric] * (name in OF_EACH_SORT)) for name in NAMES])
def test_dense_numbers_are_those_of_the_harness_own_model(task: str, staged_run: LoadedRun, own_items: Path) -> None:
    _check_dense_numbers(task, staged_run, own_items)


@pytest.mark.shared
def test_dense_numbers_over_real_items_are_those_of_the_harness_own_model(
    staged_run: LoadedRun, real_items: Path, subtests: pytest.Subtests
) -> None:
    for task in NAMES:
        with subtests.test(task):
            _check_dense_numbers(task, staged_run, real_items)


def _check_dense_numbers(task: str, run: LoadedRun, data: Path) -> None:
    if task == "ifeval":
        pytest.importorskip("langdetect", reason="ifeval's packages are not installed")
    source = Source(data, items=20)
    options = Options(source=source, max_new_tokens=8, runs_code=True)
    (result,) = Evaluation(run, options).results([task], ["dense"])
    assert len(result.answers) == 20
    loaded = load_task(task, source, None).task
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    theirs = simple_evaluate(
        model=HFLM(pretrained=run.dense.model, tokenizer=run.dense.tokenizer, batch_size=8),
        tasks=loaded,
        task_manager=TaskManager(include_defaults=False),
        gen_kwargs={"max_gen_toks": 8},
        confirm_run_unsafe_code=True,
    )
    own = theirs["results"][task]
    for name, metric in result.metrics.items():
        if "/" not in name:
            key = next(key for key in own if key.partition(",")[0] == name)
            assert metric.value == pytest.approx(own[key], rel=1e-4), name
            error = own[key.replace(",", "_stderr,")]
            assert error == "N/A" or metric.error == pytest.approx(error, rel=1e-4), name
    _check_answers(result.answers, [sample for of_task in theirs["samples"].values() for sample in of_task])


def _check_answers(ours: Any, theirs: list[dict[str, Any]]) -> None:
    for answer, sample in zip(ours, theirs, strict=True):
        said = sample["resps"][0][0]
        if isinstance(said, tuple):
            sums = [of_choice[0][0] for of_choice in sample["resps"]]
            assert sums[answer.answer] == max(sums)
        elif isinstance(said, float):
            assert answer.answer == pytest.approx(said, rel=1e-4)
        else:
            # A NUL cannot be kept in a file of results.
            assert answer.answer == said.replace("\0", "\ufffd")


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("task", ["mmlu", "cmmlu"])
def test_prompts_of_subjects_are_the_file_s_with_examples_behind_the_description(task: str, shots: int, own_items: Path) -> None:
    _check_prompts(task, shots, own_items)


@pytest.mark.shared
def test_prompts_of_real_subjects_are_the_file_s_with_examples_behind_the_description(subtests: pytest.Subtests) -> None:
    for task, shots in product(["mmlu", "cmmlu"], [0, 2]):
        with subtests.test(task, shots=shots):
            _check_prompts(task, shots, SHARED)


def _check_prompts(task: str, shots: int, data: Path) -> None:
    docs = data_files.spread(data_files.read_docs(data / task / "test.jsonl", task), 3)
    group = load_task(task, Source(data, 3, shots), None).task
    assert len(list(group)) == 3
    for part in group:
        part.set_config(key="num_fewshot", value=part.config.num_fewshot)
        part.set_fewshot_seed(1234)
        part.build_all_requests()
        (query,) = [doc["query"] for doc in docs if f"{task}_{doc['subject']}" == part.task_name]
        prompt, choice = part.instances[0].args
        description, _, question = query.partition("\n\n")
        assert choice == " A"
        assert prompt.count(description) == 1
        assert prompt.startswith(description)
        assert prompt.endswith(question)
        assert (prompt == query) is (shots == 0)
        assert prompt.count("\n\n") == 1 + shots


def test_a_result_is_measured_once(staged_run: LoadedRun, data: Path, tmp_path: Path) -> None:
    run = replace(staged_run, path=tmp_path / "run")
    said: list[str] = []
    evaluation = Evaluation(run, Options(source=Source(data)), said.append)
    first = list(evaluation.results(["piqa"], ["staged", "dense"]))
    again = list(evaluation.results(["piqa"], ["staged", "dense"]))
    assert first == again == sorted(results_in(run.path), key=lambda result: result.variant, reverse=True)
    assert said == ["piqa, staged: running, 1 of 2", "piqa, dense: running, 2 of 2", "piqa, staged: known", "piqa, dense: known"]
    list(evaluation.results(["piqa"], ["staged"], fresh=True))
    assert said[-1] == "piqa, staged: running, 1 of 1"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sides that were really measured, one entry a time that the harness ran."""
    variants = []

    def counted(*arguments: Any, model: Any, **options: Any) -> Any:
        variants.append(model.variant)
        return simple_evaluate(*arguments, model=model, **options)

    monkeypatch.setattr("lm_eval.simple_evaluate", counted)
    return variants


def with_plan(run: LoadedRun, path: Path, plan: Plan) -> LoadedRun:
    """Return a run as if it had come to another plan."""
    saved = replace(run.outcome.plan, plan=plan)
    return replace(run, path=path, outcome=replace(run.outcome, saved_plan=saved.to_data()))


LOST = Removal([Drop(1), Drop(3)])
STAGED = Plan(prefill=Removal([Drop(3)]), decode=LOST)
SAME: list[tuple[Plan, Variant, Variant]] = [
    (STAGED, "unified", "decode"),
    (Plan.unified(LOST), "staged", "unified"),
    (Plan.unified(LOST), "decode", "staged"),
    (Plan.unified(LOST), "prefill", "staged"),
    (Plan(decode=LOST), "prefill", "dense"),
    (Plan(decode=LOST), "dense", "prefill"),
    (Plan(), "staged", "dense"),
]


@pytest.mark.parametrize("case", SAME)
def test_sides_that_run_the_same_are_measured_once(
    case: tuple[Plan, Variant, Variant], staged_run: LoadedRun, data: Path, tmp_path: Path, measured: list[str]
) -> None:
    plan, first, second = case
    run = with_plan(staged_run, tmp_path / "run", plan)
    said: list[str] = []
    evaluation = Evaluation(run, Options(source=Source(data)), said.append)
    for fresh in (False, True):
        one, other = evaluation.results(["piqa"], [first, second], fresh=fresh)
        assert measured == [first] * (1 + fresh)
        assert said[-2:] == [f"piqa, {first}: running, 1 of 2", f"piqa, {second}: known, the same as {first}"]
        assert other == replace(one, variant=second, settings=evaluation.settings("piqa", second))
        assert {result.variant: result for result in results_in(run.path)} == {first: one, second: other}


@pytest.mark.parametrize("case", SAME)
def test_a_result_in_the_folder_serves_a_side_that_runs_the_same(
    case: tuple[Plan, Variant, Variant], staged_run: LoadedRun, data: Path, tmp_path: Path, measured: list[str]
) -> None:
    plan, first, second = case
    run = with_plan(staged_run, tmp_path / "run", plan)
    (one,) = Evaluation(run, Options(source=Source(data))).results(["piqa"], [first])
    (other,) = Evaluation(run, Options(source=Source(data))).results(["piqa"], [second])
    assert measured == [first]
    assert (other.variant, other.answers, other.metrics) == (second, one.answers, one.metrics)
    list(Evaluation(run, Options(source=Source(data), limit=2)).results(["piqa"], [second]))
    assert measured == [first, second]


@pytest.mark.parametrize("second", ["staged", "prefill", "dense"])
def test_sides_that_run_something_else_are_measured_each(
    second: Variant, staged_run: LoadedRun, data: Path, tmp_path: Path, measured: list[str]
) -> None:
    run = with_plan(staged_run, tmp_path / "run", STAGED)
    list(Evaluation(run, Options(source=Source(data))).results(["piqa"], ["unified", second]))
    assert measured == ["unified", second]


def test_unified_and_decode_have_equal_settings(staged_run: LoadedRun, data: Path, tmp_path: Path) -> None:
    run = replace(staged_run, path=tmp_path / "run")
    unified, decode = Evaluation(run, Options(source=Source(data))).results(["piqa"], ["unified", "decode"])
    assert decode == replace(unified, variant="decode")


def test_what_the_harness_would_do_besides_is_off_while_it_runs(
    staged_run: LoadedRun, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("get_git_commit_hash", "add_env_info"):
        monkeypatch.setattr(f"lm_eval.evaluator.{name}", lambda *_, name=name: asked.append(name))
    before = [getattr(evaluator, name) for name in ("get_git_commit_hash", "add_env_info")]
    list(Evaluation(replace(staged_run, path=tmp_path / "run"), Options(source=Source(data))).results(["piqa"], ["staged"]))
    assert asked == []
    assert [getattr(evaluator, name) for name in ("get_git_commit_hash", "add_env_info")] == before


def test_a_terminal_sees_the_bar_of_the_items_alone(
    staged_run: LoadedRun, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run = replace(staged_run, path=tmp_path / "run")
    list(Evaluation(run, Options(source=Source(data))).results(["piqa"], ["staged"]))
    drawn = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "%|" in line]
    assert drawn
    assert [line for line in drawn if not line.startswith("staged: ")] == []


def test_what_changes_numbers_is_measured_again_and_what_does_not_is_not(
    staged_run: LoadedRun, data: Path, tmp_path: Path
) -> None:
    run = replace(staged_run, path=tmp_path / "run")
    options = Options(source=Source(data))

    def known(options: Options, task: str = "piqa") -> bool:
        said: list[str] = []
        list(Evaluation(run, options, said.append).results([task], ["staged"]))
        return said == [f"{task}, staged: known"]

    assert not known(options)
    assert known(replace(options, batch_tokens=64, batch_size=3))
    for changed in (
        replace(options, limit=2),
        replace(options, source=Source(data, items=3)),
        replace(options, prompt_share=0.5),
        replace(options, max_new_tokens=3),
    ):
        assert not known(changed)
    (data / "piqa" / "test.jsonl").write_text(json.dumps(ITEM) + "\n")
    assert not known(options)


def test_results_of_the_dense_model_are_found_by_other_runs(staged_run: LoadedRun, data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for name in ("one", "other"):
        run = replace(staged_run, path=tmp_path / name)
        list(Evaluation(run, Options(source=Source(data)), said.append).results(["piqa"], ["dense", "staged"]))
        assert {result.variant for result in results_in(run.path)} == {"dense", "staged"}
    assert said == [
        "piqa, dense: running, 1 of 2",
        "piqa, staged: running, 2 of 2",
        "piqa, dense: known",
        "piqa, staged: running, 2 of 2",
    ]


def test_a_result_has_items_answers_errors_and_versions(staged_run: LoadedRun, data: Path, tmp_path: Path) -> None:
    run = replace(staged_run, path=tmp_path / "run")
    (result,) = Evaluation(run, Options(source=Source(data))).results(["piqa"], ["staged"])
    assert [answer.item for answer in result.answers] == [f"piqa/{number}" for number in range(5)]
    assert all(answer.values.keys() == {"acc", "acc_norm"} and answer.answer in (0, 1) for answer in result.answers)
    assert result.main == "acc"
    assert result.metrics["acc"].value == sum(answer.values["acc"] for answer in result.answers) / 5
    assert result.metrics["acc"].error is not None
    assert {"lm_eval", "datasets", "torch", "transformers", "pdtrim-core"} <= result.versions.keys()
    assert result.settings["first_token"] == "decode"
    assert result.settings["weights"] == run.outcome.environment.weights


def test_the_harness_limit_is_kept(staged_run: LoadedRun, data: Path, tmp_path: Path) -> None:
    run = replace(staged_run, path=tmp_path / "run")
    for limit, count in ((2, 2), (0.4, 2), (99, 5)):
        (result,) = Evaluation(run, Options(source=Source(data), limit=limit)).results(["piqa"], ["staged"])
        assert [answer.item for answer in result.answers] == [f"piqa/{number}" for number in range(count)]


def test_few_shot_examples_come_from_another_file(staged_run: LoadedRun, data: Path, tmp_path: Path) -> None:
    run = replace(staged_run, path=tmp_path / "run")
    shots = Options(source=Source(data, shots=2))
    with pytest.raises(PdtrimError, match="there are no few-shot examples for piqa: leave out --num-fewshot"):
        list(Evaluation(run, shots).results(["piqa"], ["staged"]))
    (data / "piqa" / "dev.jsonl").write_text(json.dumps({**ITEM, "query": "Question: an example?\nAnswer:"}) + "\n")
    with pytest.raises(PdtrimError, match="there are 1 few-shot examples for piqa, not 2: lower --num-fewshot"):
        list(Evaluation(run, shots).results(["piqa"], ["staged"]))
    loaded = load_task("piqa", Source(data, shots=1), None).task[0]
    loaded.set_fewshot_seed(1234)
    loaded.build_all_requests()
    assert loaded.instances[0].args[0] == "Question: an example?\nAnswer: two\n\nQuestion: 0?\nAnswer:"


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("pica", r"unknown task 'pica'; did you mean 'piqa'\? From files there are mmlu, cmmlu, arc_easy"),
        ("humaneval", "humaneval runs programs that the model writes, on this machine: allow it with --confirm-run-unsafe-code"),
        ("rte", r"rte.test.jsonl does not exist: rte is read from there"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused(staged_run: LoadedRun, data: Path, task: str, problem: str) -> None:
    with pytest.raises(PdtrimError, match=problem):
        list(Evaluation(staged_run, Options(source=Source(data))).results([task], ["staged"]))


def test_a_chat_template_is_the_tokenizer_s(
    staged_run: LoadedRun, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(staged_run, path=tmp_path / "run")
    vars(run)["dense"] = staged_run.dense
    options = Options(source=Source(data), chat_template=True)
    with pytest.raises(PdtrimError, match="has no chat template: leave out --apply-chat-template"):
        list(Evaluation(run, options).results(["piqa"], ["staged"]))
    template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
    monkeypatch.setattr(staged_run.dense.tokenizer, "chat_template", template)
    (chatted,) = Evaluation(run, options).results(["piqa"], ["staged"])
    (plain,) = Evaluation(run, replace(options, chat_template=False)).results(["piqa"], ["staged"])
    assert chatted.settings["chat_template"] != plain.settings["chat_template"]
    assert len(results_in(run.path)) == 2
