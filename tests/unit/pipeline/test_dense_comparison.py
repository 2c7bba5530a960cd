"""The end of a run: how near its variants are to the dense model, measured once, with the models that are open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch

from pdtrim_core import Outcome, PluginHost, TaskResult, hookimpl, load_run, results_in
from pdtrim_core.api import BlockModel, LoadedModel, Metric, PruneContext, Pruned, Pruner, Recovery, RecoveryContext
from pdtrim_core.data.items import Item
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.dense_comparison import LONGEST_ANSWER, PROMPT_END, nearer, samples
from pdtrim_core.pipeline.run_fidelity import RunFidelity
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import LARGEST
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import ItemAnswer
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.contracts.small_run import TinyModel, tiny_host
from pdtrim_plugins.calibrations import Mini
from tests.unit.pipeline.runs import DATA

TOKENS = 6
SHORT = {"threads": 1, "answer_tokens": TOKENS}
MERGES: dict[str, Any] = {"prune": {"blocks": 2, "merge_threshold": {"quantile": 0.0}}, "searcher": "greedy"}


class Other(Pruner):
    """Gives a model that has nothing to do with the dense one."""

    name = "other"
    replaces_model = True

    def prune(self, context: PruneContext) -> Pruned:
        return Pruned(replaced=tiny_llama(seed=7))

    def restore(self, dense: BlockModel, weights: Any) -> BlockModel:
        found = tiny_llama(seed=7)
        found.model.load_state_dict({**found.model.state_dict(), **weights})
        return found


class Ears:
    """Hears which variants were compared."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.shares: list[float] = []

    @hookimpl
    def pdtrim_fidelity_measured(self, result: TaskResult) -> None:
        self.heard.append(result.variant)

    @hookimpl
    def pdtrim_work_advanced(self, what: str, share: float) -> None:
        if what == "comparison":
            self.shares.append(share)

    @hookimpl
    def pdtrim_step_started(self, step: str, about: int | None) -> None:
        if step == "fidelity":
            self.heard.append(f"about {about}")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginHost:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    host = tiny_host()
    host.register(SimpleNamespace(pdtrim_pruners=hookimpl(lambda: [Other])), Origin("other", "other"))
    return host


def run(host: PluginHost, out: Path, *, fresh: bool = False, **changes: Any) -> Outcome:
    data = {**DATA, "splitter": "dense-prefill", "evaluation": SHORT, **changes}
    given = {key: value for key, value in data.items() if value is not None}
    return pipeline.run(Recipe.from_data(given, where="x.toml", out=out, host=host), host, fresh=fresh)


def files_of(out: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "evaluations").glob("*/*.json")}


def test_a_run_knows_how_near_its_variants_are_to_the_dense_model(host: PluginHost, tmp_path: Path) -> None:
    outcome = run(host, tmp_path / "run")
    found = outcome.fidelity
    assert found is not None
    assert (found.items, found.answer_tokens, list(found.variants)) == (3, TOKENS, ["dense", "unified", "staged"])
    dense, unified, staged = found.variants.values()
    assert (dense["kl"].value, dense["top1"].value, dense["identical"].value) == (0.0, 1.0, 1.0)
    assert unified["kl"].value > 0
    assert unified["kl"].error is not None
    assert found.nearer is not None
    assert found.nearer.value == pytest.approx(unified["kl"].value - staged["kl"].value)
    assert {"acceptance", "tau", "perplexity", "right_to_wrong", "flips_p", "loops", "length"} <= staged.keys()
    assert [sorted(sample.answers) for sample in found.samples] == [["dense", "staged", "unified"]] * 3
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert outcome.seconds["fidelity"] > 0


def test_samples_are_of_the_prompts_that_the_variants_answered_on_their_own(host: PluginHost, tmp_path: Path) -> None:
    found = run(host, tmp_path / "run", evaluation={**SHORT, "own_answers": 1}).fidelity
    assert found is not None
    assert (found.items, found.own_answers) == (3, 1)
    (sample,) = found.samples
    whole = run(host, tmp_path / "whole").fidelity
    assert whole is not None
    assert sample == whole.samples[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        MERGES,
        {"pruner": "flap", "searcher": None},
        {"pruner": "other", "searcher": None, "splitter": None},
        {"evaluation": {**SHORT, "first_token": "prefill"}},
    ],
    ids=["drops", "merges", "computed projections", "another model", "first token by prefill"],
)
def test_what_the_run_measured_is_known_to_who_opens_it_again(host: PluginHost, tmp_path: Path, changes: dict[str, Any]) -> None:
    outcome = run(host, tmp_path / "run", **changes)
    assert outcome.fidelity is not None
    said: list[str] = []
    for result in RunFidelity(load_run(tmp_path / "run", host), say=said.append).results(list(outcome.fidelity.variants)):  # type: ignore[arg-type]
        assert dict(result.metrics) == outcome.fidelity.variants[result.variant]
    assert said == [f"fidelity, {variant}: known" for variant in outcome.fidelity.variants]
    assert said


def test_a_second_run_measures_nothing_again(host: PluginHost, tmp_path: Path) -> None:
    first = run(host, tmp_path / "run", **MERGES)
    before = files_of(tmp_path / "run")
    assert len(before) == 3
    again = run(host, tmp_path / "run", **MERGES)
    assert files_of(tmp_path / "run") == before
    assert again.fidelity == first.fidelity
    run(host, tmp_path / "run", fresh=True, **MERGES)
    assert all(files_of(tmp_path / "run")[name][0] > time for name, (time, _) in before.items())


def test_a_run_whose_comparison_was_interrupted_goes_on_with_that(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> None:
        del given
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFidelity, "_measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(host, tmp_path / "run")
    assert not (tmp_path / "run" / "outcome.json").exists()
    before = files_of(tmp_path / "run")
    assert before == {}
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    outcome = run(host, tmp_path / "run")
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    assert outcome.fidelity is not None
    after = files_of(tmp_path / "run")
    assert len(after) == 3
    assert {name: after[name] for name in before} == before


def test_the_model_and_the_items_are_those_that_are_open(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = TinyModel.open
    draw = Mini.draw

    def opening(source: TinyModel) -> LoadedModel:
        opened.append(source.path)
        return original(source)

    def drawing(source: Mini, *given: Any) -> Any:
        opened.append("items")
        return draw(source, *given)

    monkeypatch.setattr(TinyModel, "open", opening)
    monkeypatch.setattr(Mini, "draw", drawing)
    run(host, tmp_path / "run", search={"fresh": 0})
    assert opened == ["tiny:llama", "items"]


def test_without_held_out_items_one_note_says_so(host: PluginHost, tmp_path: Path) -> None:
    outcome = run(host, tmp_path / "run", calibration={"samples": 6, "held_out": 0})
    assert outcome.fidelity is None
    (note,) = (note for note in outcome.notes if "fidelity" in note)
    assert note.startswith("fidelity to the dense model is not measured: no items are held out (calibration.held_out)")
    assert results_in(tmp_path / "run") == []


def test_a_model_that_cannot_answer_so_long_costs_the_run_nothing_but_the_figures(host: PluginHost, tmp_path: Path) -> None:
    outcome = run(host, tmp_path / "run", model="tiny:opt", evaluation={"threads": 1, "answer_tokens": 4096})
    assert outcome.fidelity is None
    (note,) = (note for note in outcome.notes if "fidelity" in note)
    assert note.startswith("fidelity to the dense model is not measured: the answer to '")
    assert "positions" in note


def test_it_can_be_left_out_and_made_up_for(host: PluginHost, tmp_path: Path) -> None:
    off = run(host, tmp_path / "run", evaluation={"threads": 1, "fidelity": False})
    assert (off.fidelity, "fidelity" in off.seconds, results_in(tmp_path / "run")) == (None, False, [])
    assert not any("fidelity" in note for note in off.notes)
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    on = run(host, tmp_path / "run")
    assert on.fidelity is not None
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal


def test_a_replaced_model_is_unified_and_nothing_is_staged(host: PluginHost, tmp_path: Path) -> None:
    outcome = run(host, tmp_path / "run", pruner="other", searcher=None, splitter=None)
    assert outcome.fidelity is not None
    assert list(outcome.fidelity.variants) == ["dense", "unified"]
    assert outcome.fidelity.nearer is None
    assert outcome.fidelity.variants["unified"]["kl"].value > 0
    assert [sorted(sample.answers) for sample in outcome.fidelity.samples] == [["dense", "unified"]] * 3


RECOVERED: dict[str, Any] = {
    "recovery": [{"use": "kv-refit", "tokens": 200}, {"use": "fold", "tokens": 600}],
    "recovery_data": {"prompt_tokens": 8, "answer_tokens": 8},
}


def test_of_a_recovered_run_the_pair_before_is_compared_too(host: PluginHost, tmp_path: Path) -> None:
    ears = Ears()
    host.register(ears, Origin("ears", "ears"))
    outcome = run(host, tmp_path / "run", **RECOVERED)
    assert [result.name for result in outcome.recovery] == ["kv-refit", "fold"]
    assert outcome.recovery[1].kept
    found = outcome.fidelity
    assert found is not None
    assert ears.heard == ["about 4", *found.variants] == ["about 4", "dense", "unified", "unrecovered", "staged"]
    before, after = (found.variants[name]["kl"].value for name in ("unrecovered", "staged"))
    assert found.recovered is not None
    assert found.recovered.value == pytest.approx(before - after)
    assert found.recovered.error is not None
    assert [sorted(sample.answers) for sample in found.samples] == [["dense", "staged", "unified", "unrecovered"]] * 3
    assert Outcome.from_json(outcome.to_json()) == outcome
    for result in RunFidelity(load_run(tmp_path / "run", host)).results(["unrecovered", "staged"]):
        assert dict(result.metrics) == found.variants[result.variant]


class Bursts(Recovery):
    """Makes weights so large that what the pair says is no number any more."""

    name = "bursts"

    def recover(self, context: RecoveryContext) -> None:
        for layer in context.walk("decode"):
            if layer.layer.runs:
                name = f"{context.model.layout.mlp[-1]}.weight"
                layer.change({name: layer.module.get_parameter(name) * 1e30})
        context.reached(float("nan"))


def test_a_recovery_that_breaks_the_pair_leaves_an_outcome_that_can_be_read(host: PluginHost, tmp_path: Path) -> None:
    works = Works()
    host.register(works, Origin("works", "works"))
    host.register(SimpleNamespace(pdtrim_recoveries=hookimpl(lambda: [Bursts])), Origin("bursts", "bursts"))
    outcome = run(host, tmp_path / "run", **{**RECOVERED, "recovery": [{"use": "bursts", "tokens": 64}]})
    (result,) = outcome.recovery
    assert not result.kept
    assert result.after.value > result.before.value
    assert max(result.after.value, *result.by_position_after) <= LARGEST
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert outcome.fidelity is not None
    assert "unrecovered" not in outcome.fidelity.variants
    assert outcome.fidelity.recovered is None
    assert works.advanced[-1] == ("bursts", 1, 1, 0.0)
    assert load_run(tmp_path / "run", host).outcome == outcome


class Works:
    """Hears how recoveries go on."""

    def __init__(self) -> None:
        self.advanced: list[tuple[str, int, int, float]] = []
        self.finished: list[RecoveryResult] = []

    @hookimpl
    def pdtrim_recovery_advanced(self, name: str, number: int, count: int, share: float) -> None:
        self.advanced.append((name, number, count, share))

    @hookimpl
    def pdtrim_recovery_finished(self, result: RecoveryResult) -> None:
        self.finished.append(result)


def test_listeners_hear_how_far_each_recovery_is_and_how_it_came_out(host: PluginHost, tmp_path: Path) -> None:
    works = Works()
    host.register(works, Origin("works", "works"))
    outcome = run(host, tmp_path / "run", **RECOVERED)
    assert works.finished == list(outcome.recovery)
    assert works.advanced[0] == ("texts", 0, 2, 0.0)
    assert len({share for name, *_, share in works.advanced if name == "texts"}) > 4, "a bar needs more than groups of 64"
    for number, name in enumerate(("kv-refit", "fold"), start=1):
        shares = [share for *what, share in works.advanced if what == [name, number, 2]]
        assert shares == sorted(shares)
        assert shares[0] == 0.0
        assert shares[-1] == pytest.approx(1.0)
        assert len(shares) > 4
    run(host, tmp_path / "run", **RECOVERED)
    assert works.finished == [*outcome.recovery] * 2, "what is found in the folder is told, too"


def test_listeners_hear_each_variant(host: PluginHost, tmp_path: Path) -> None:
    ears = Ears()
    host.register(ears, Origin("ears", "ears"))
    run(host, tmp_path / "run")
    assert ears.heard == ["about 3", "dense", "unified", "staged"]
    assert ears.shares == sorted(ears.shares)
    assert ears.shares[-1] == 1.0


def result(variant: Any, kl: list[float], tokens: list[int], metrics: Mapping[str, Metric] = MappingProxyType({})) -> TaskResult:
    answers = tuple(
        ItemAnswer(str(number), {"kl": value, "tokens": float(count)}, "x")
        for number, (value, count) in enumerate(zip(kl, tokens, strict=True))
    )
    return TaskResult("fidelity", variant, metrics, "kl", answers, {}, {}, 1.0)


def test_the_difference_is_over_tokens_and_its_error_over_prompts() -> None:
    unified, staged = result("unified", [0.5, 0.7, 0.6], [10, 30, 20]), result("staged", [0.4, 0.4, 0.5], [10, 30, 20])
    found = nearer(unified, staged)
    assert found is not None
    assert found.value == pytest.approx((10 * 0.1 + 30 * 0.3 + 20 * 0.1) / 60)
    residuals = torch.tensor([10 * (0.1 - 0.2), 30 * (0.3 - 0.2), 20 * (0.1 - 0.2)])
    assert found.error == pytest.approx(float((3 / 2 * residuals.square().sum()).sqrt() / 60))
    same = nearer(unified, unified)
    assert same is not None
    assert (same.value, same.error) == (0.0, 0.0)


def test_results_that_do_not_say_their_tokens_have_no_difference() -> None:
    old = TaskResult("fidelity", "unified", {}, "kl", (ItemAnswer("0", {"kl": 0.5}),), {}, {}, 1.0)
    assert nearer(old, result("staged", [0.5], [4])) is None
    assert nearer(result("unified", [float("nan")], [4]), result("staged", [0.5], [4])) is None


def items(count: int) -> list[Item]:
    return [Item(((65 + number,) * 400,), ((1,),), 0, (1,), str(number)) for number in range(count)]


def said(*answers: str) -> TaskResult:
    found = tuple(ItemAnswer(str(number), {}, answer) for number, answer in enumerate(answers))
    return TaskResult("fidelity", "dense", {}, "kl", found, {}, {}, 1.0)


def test_samples_are_spread_evenly_over_prompts_that_are_answered() -> None:
    model = tiny_llama()
    assert [one.item for one in samples(items(9), {"dense": said(*"abcdefghi")}, model)] == ["1", "4", "7"]
    answers = said("", "a", " ", "b", "", "c", "", "", "d")
    assert [one.item for one in samples(items(9), {"dense": answers}, model)] == ["1", "5", "8"]
    assert [one.item for one in samples(items(9), {"dense": said(*["\n"] * 9)}, model)] == ["1", "4", "7"]
    assert [one.item for one in samples(items(2), {"dense": said("a", "b")}, model)] == ["0", "1"]


def test_samples_show_the_end_of_a_prompt_and_no_more_of_an_answer_than_can_be_read() -> None:
    (one,) = samples(items(1), {"dense": said("x" * 9999)}, tiny_llama())
    assert len(one.prompt) == PROMPT_END
    assert one.prompt == "..." + "A" * (PROMPT_END - 3)
    assert one.answers == {"dense": "x" * LONGEST_ANSWER}


def test_figures_beyond_all_bounds_are_left_out_of_the_outcome(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"kl": Metric(0.5, 0.1), "perplexity": Metric(10 * LARGEST, 1.0), "length": Metric(1.0, float("inf"))}
    made = {variant: result(variant, [0.5] * 3, [4] * 3, wrong) for variant in ("dense", "unified", "staged")}
    monkeypatch.setattr(RunFidelity, "results", lambda _self, variants, **_rest: (made[variant] for variant in variants))
    outcome = run(host, tmp_path / "run")
    assert outcome.fidelity is not None
    assert set(outcome.fidelity.variants["staged"]) == {"kl"}
    assert Outcome.from_json(outcome.to_json()) == outcome
