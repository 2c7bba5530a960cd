from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core.api import (
    Edges,
    FirstOnly,
    Item,
    KvSelector,
    PdtrimError,
    PluginError,
    SelectionContext,
    SelectionFacts,
    hookimpl,
)
from pdtrim_core.data.items import Calibration
from pdtrim_core.host.host import Origin, PluginHost
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.apply import apply
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.run_fidelity import RunFidelity
from pdtrim_core.pipeline.select_kv import check_selector
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_core.testing.models import tiny_llama


class Chosen(KvSelector):
    """Selects by what a test says."""

    name = "chosen"

    what: Any = ()

    def select(self, context: SelectionContext) -> Sequence[Any]:
        """Return selections for blocks of decode by their place."""
        ways: dict[str, Callable[[], Sequence[Any]]] = {
            "edges": lambda: [Edges(block, 0.1, 0.1) for block in context.blocks[:2]],
            "gone": lambda: [FirstOnly(block) for block in range(context.model.block_count)],
            "twice": lambda: [FirstOnly(context.blocks[0])] * 2,
            "beyond": lambda: [FirstOnly(999)],
            "words": lambda: ["all"],
            "nothing": list,
            "fails": lambda: [1 // 0],
        }
        return ways[self.what]()


def host() -> PluginHost:
    found = tiny_host()
    found.register(SimpleNamespace(pdtrim_kv_selectors=hookimpl(lambda: [Chosen])), Origin("chosen", "tests"))
    return found


def data(selector: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "model": {"path": "tiny:llama"},
        "prune": {"blocks": 1, "merges": False},
        "recovery": "none",
        "calibration": {"use": "text", "words": 16, "samples": 4, "held_out": 3},
        "searcher": "greedy",
        "splitter": "unified",
        "report": [],
        "evaluation": {"threads": 1, "answer_tokens": 4},
        **({} if selector is None else {"kv_selector": selector}),
        **more,
    }


def run(out: Path, selector: Any = None, **more: Any) -> Outcome:
    found = host()
    return pipeline.run(Recipe.from_data(data(selector, **more), where="kv.toml", out=out, host=found), found)


def test_the_plan_of_a_run_has_what_its_selector_returned_and_what_it_was_before_is_measured_too(tmp_path: Path) -> None:
    outcome = run(tmp_path / "run", {"use": "chosen", "what": "edges"})
    plan = outcome.plan.plan
    assert [str(one) for one in plan.selections] == [f"{block} edges 0.1+0.1" for block in _blocks(outcome)[:2]]
    assert outcome.selected
    assert outcome.fidelity is not None
    figures = {variant: metrics["kl"].value for variant, metrics in outcome.fidelity.variants.items()}
    assert list(figures) == ["dense", "unified", "unselected", "staged"]
    assert figures["staged"] != figures["unselected"]
    # Both stages lose the same, so that before its selection the pair is the unified model.
    assert figures["unselected"] == pytest.approx(figures["unified"], abs=1e-4)
    assert outcome.fidelity.selected is not None
    assert outcome.fidelity.selected.value == pytest.approx(figures["staged"] - figures["unselected"])
    assert outcome.row("staged").calibration.mean != outcome.row("unified").calibration.mean
    assert any("2 of decode's 5 blocks read only some of a prompt" in note for note in outcome.notes)
    assert "select K/V" in outcome.seconds


def test_what_is_shipped_is_told_by_the_length_of_a_prompt(tmp_path: Path) -> None:
    plain, selected = run(tmp_path / "plain"), run(tmp_path / "run", {"use": "first-only", "upper": 0.4})
    assert not any("tokens" in cost.name and "K/V" in cost.name for cost in plain.costs)
    for tokens in ("128", "1,024", "8,192"):
        cost, count = selected.cost(f"K/V shipped for {tokens} tokens"), int(tokens.replace(",", ""))
        a_token = plain.cost("K/V shipped to decode").plan / 5
        assert cost.plan == pytest.approx(a_token * (3 * count + 2), rel=0.01)
        assert cost.dense == a_token * 6 * count


def test_a_run_that_is_opened_again_gives_the_same(tmp_path: Path) -> None:
    outcome = run(tmp_path / "run", {"use": "chosen", "what": "edges"})
    loaded = load_run(tmp_path / "run", host())
    assert loaded.plan_of("staged") == outcome.plan.plan
    assert loaded.plan_of("unselected") == outcome.plan.plan.unselected
    assert len({loaded.plan_digest(variant) for variant in ("staged", "unselected")}) == 2
    again = {result.variant: result for result in RunFidelity(loaded).results(("unselected", "staged"), fresh=True)}
    assert outcome.fidelity is not None
    for variant, result in again.items():
        assert result.metrics["kl"].value == pytest.approx(outcome.fidelity.variants[variant]["kl"].value, abs=1e-6)
    pair = apply(loaded, loaded.dense)
    assert pair.plan == outcome.plan.plan
    prompt = list(range(60))
    assert len(pair.generate(prompt, 4)) == 4


def test_the_pair_before_its_recovery_and_its_formats_reads_whole_prompts(tmp_path: Path) -> None:
    recovery = [{"use": "fold", "tokens": 512}]
    outcome = run(
        tmp_path / "run",
        {"use": "chosen", "what": "edges"},
        recovery=recovery,
        recovery_data={"prompt_tokens": 16, "answer_tokens": 16},
        formats={"decode": "W8A8"},
    )
    assert outcome.fidelity is not None
    assert any(result.kept for result in outcome.recovery)
    assert list(outcome.fidelity.variants) == ["dense", "unified", "unrecovered", "unquantized", "unselected", "staged"]
    loaded = load_run(tmp_path / "run", host())
    for variant in ("unrecovered", "unquantized", "unselected"):
        assert not loaded.plan_of(variant).selections
    assert set(loaded.modules_of("unselected")) == set(loaded.modules_of("staged"))
    kl = {variant: metrics["kl"].value for variant, metrics in outcome.fidelity.variants.items()}
    assert outcome.fidelity.quantized is not None
    assert outcome.fidelity.recovered is not None
    assert outcome.fidelity.quantized.value == pytest.approx(kl["unselected"] - kl["unquantized"])
    assert outcome.fidelity.recovered.value == pytest.approx(kl["unrecovered"] - kl["unquantized"])
    plain = run(
        tmp_path / "plain",
        recovery=recovery,
        recovery_data={"prompt_tokens": 16, "answer_tokens": 16},
        formats={"decode": "W8A8"},
    )
    assert plain.fidelity is not None
    assert plain.fidelity.variants["staged"] == outcome.fidelity.variants["unselected"]
    assert plain.fidelity.variants["unquantized"] == outcome.fidelity.variants["unquantized"]


def test_a_selector_that_selects_nothing_leaves_a_run_as_it_is(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    for number, selector in enumerate(("all", {"use": "chosen", "what": "nothing"}, "none")):
        outcome = run(tmp_path / f"run{number}", selector)
        assert outcome.plan == plain.plan
        assert outcome.rows == plain.rows
        assert outcome.fidelity is not None
        assert "unselected" not in outcome.fidelity.variants
    with pytest.raises(PdtrimError, match="has no variant 'unselected': its decode reads all of every prompt"):
        load_run(tmp_path / "run0", host()).plan_of("unselected")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gone", "selector 'chosen' .*: this plan breaks the K/V law: K/V are selected for block .*, but decode does not run it"),
        ("twice", "K/V are selected for block 0 twice"),
        ("beyond", "this plan changes block 999, but the model has blocks 0 to 5"),
        ("words", "selector 'chosen' .* returned str where Edges or FirstOnly are expected"),
        ("fails", "selector 'chosen' .* failed: ZeroDivisionError"),
    ],
)
def test_what_a_selector_does_wrong_is_its_own_fault(what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=message):
        run(tmp_path / "run", {"use": "chosen", "what": what})


class Never(KvSelector):
    """Has a problem with everything."""

    name = "never"

    def problems(self, facts: SelectionFacts) -> list[str]:
        """Return what it was told."""
        return [f"{facts.model}, {facts.calibration}, {len(facts.prompt_tokens)} prompts"]

    def select(self, context: SelectionContext) -> Sequence[Any]:
        """Return nothing."""
        raise AssertionError(context)


def refused(out: Path, selector: Any, **more: Any) -> str:
    """Return why a run was refused, which must be before anything was measured."""
    found = host()
    found.register(SimpleNamespace(pdtrim_kv_selectors=hookimpl(lambda: [Never])), Origin("never", "tests"))
    recipe = Recipe.from_data(data(selector, **more), where="kv.toml", out=out, host=found)
    with pytest.raises(PdtrimError) as caught:
        pipeline.run(recipe, found)
    journal = out / "journal.jsonl"
    assert not journal.exists() or not journal.read_text()
    return str(caught.value)


def test_a_problem_of_a_selector_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    assert refused(tmp_path / "run", "never") == "kv_selector: tiny:llama, text, 4 prompts"


def test_prompts_that_are_too_short_are_refused_with_what_gives_longer_ones(tmp_path: Path) -> None:
    short = {"use": "text", "words": 4, "samples": 4, "held_out": 3}
    told = refused(tmp_path / "run", "paper", calibration=short)
    assert "the prompts of calibration 'text' have" in told
    assert "with a larger calibration.words" in told


def test_items_in_which_decode_runs_no_token_behind_a_prompt_are_refused() -> None:
    recipe = Recipe.from_data(
        data("paper", evaluation={"threads": 1, "first_token": "prefill"}), where="kv.toml", out="run", host=host()
    )
    one_token = Item((tuple(range(99)),), ((7,),), 0, (1,), "one token")
    with pytest.raises(PdtrimError, match="in no item of calibration 'text' decode runs a token behind a prompt"):
        check_selector(recipe, tiny_llama(), Calibration((one_token,), (), ""))


def test_attention_without_weights_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.modeling_utils import AttentionInterface
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", AttentionInterface())
    assert "its attention gives no weights" in refused(tmp_path / "run", {"use": "paper", "gamma": 0.0})
    # It looks at no attention, so that it can do its work.
    assert run(tmp_path / "other", "first-only").selected


def _blocks(outcome: Outcome) -> list[int]:
    return [layer.block for layer in outcome.plan.plan.layers("decode", outcome.block_count)]
