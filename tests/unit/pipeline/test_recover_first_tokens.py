"""Runs whose prefill knows first tokens from a table: found by all that opens them, and in any order with other recoveries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import Outcome, PdtrimError, PluginHost, apply, load_run
from pdtrim_core.api import RecoveryContext
from pdtrim_core.execution.first_tokens import OTHERS, FirstTokens, first_tokens_of
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.plan.plan import FirstTokensOf
from tests.unit.execution.test_staged_model import some_items, two_phase_sums
from tests.unit.pipeline.test_recover import FOLD, REFIT, doing, host
from tests.unit.pipeline.test_recover import ran as ran_as_given

__all__ = ["host"]
TABLE = {"use": "exact-first-token", "tokens": 400}
MUCH: dict[str, Any] = {"splitter": {"use": "kv-tail", "prefill_at_most": 0.3}}
"""Prefill has only the K/V of most blocks."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ran(host: PluginHost, out: Path, recovery: Any, **changes: Any) -> Outcome:
    return ran_as_given(host, out, recovery, **{**MUCH, **changes})


def table_of(loaded: LoadedRun) -> FirstTokens | None:
    found = loaded.modules.get(FirstTokensOf(loaded.outcome.plan.plan))
    assert found is None or isinstance(found, FirstTokens)
    return found


def sure(outcome: Outcome, host: PluginHost, out: Path) -> LoadedRun:
    assert outcome.plan.plan.prefill
    assert outcome.recovery[0].kept
    return load_run(out, host)


def test_a_run_has_a_table_of_what_the_dense_model_makes_of_first_tokens(host: PluginHost, tmp_path: Path) -> None:
    outcome = ran(host, tmp_path / "run", [TABLE])
    loaded = sure(outcome, host, tmp_path / "run")
    table = table_of(loaded)
    assert table is not None
    anew = first_tokens_of(loaded.dense, table.tokens[-4:].tolist(), table.depths.tolist())
    assert torch.allclose(table.states[:, -4:], anew.states, atol=1e-5)
    numbers = sum(tensor.numel() for tensor in (table.tokens, table.depths, table.states))
    assert outcome.recovery[0].changed == {"prefill": numbers, "decode": 0}
    assert [path.name for path in (tmp_path / "run" / "recovered").glob("*.safetensors")] == ["prefill.safetensors"]
    assert any("prefill knows" in note and "first tokens" in note for note in outcome.notes)


def test_the_variants_without_recovery_and_of_decode_alone_have_no_table(host: PluginHost, tmp_path: Path) -> None:
    loaded = sure(ran(host, tmp_path / "run", [TABLE]), host, tmp_path / "run")
    for variant in ("unrecovered", "unified", "decode"):
        assert FirstTokensOf(loaded.plan_of(variant)) not in loaded.modules_of(variant)
    assert FirstTokensOf(loaded.plan_of("staged")) in loaded.modules_of("staged")
    digests = {loaded.plan_digest(variant) for variant in ("staged", "unrecovered", "unified")}
    assert len(digests) == 3


def test_a_run_that_is_applied_answers_with_its_table_in_both_ways(host: PluginHost, tmp_path: Path) -> None:
    loaded = sure(ran(host, tmp_path / "run", [TABLE, REFIT, FOLD]), host, tmp_path / "run")
    pair = apply(tmp_path / "run", loaded.dense.model, host=host)
    table = table_of(loaded)
    assert table is not None
    known = int(table.tokens[-1])
    items = [type(item)(((known, *item.prompts[0][1:]),), item.choices[:1], 0, (1,)) for item in some_items()[2:4]]
    expected = two_phase_sums(pair.staged, items)
    for found, sums, item in zip(pair.loglikelihoods(items), expected, items, strict=True):
        assert found == pytest.approx(tuple(sums), abs=1e-4 * len(item.choices[0]))
    bare = apply(loaded.plan_of("unrecovered"), loaded.dense.model, host=host)
    assert bare.loglikelihoods(items) != pair.loglikelihoods(items)


@pytest.mark.parametrize("order", [[TABLE, REFIT, FOLD], [REFIT, TABLE, FOLD], [FOLD, REFIT, TABLE], [TABLE, TABLE]])
def test_recoveries_go_on_from_each_other_in_any_order(host: PluginHost, tmp_path: Path, order: list[Any]) -> None:
    outcome = ran(host, tmp_path / "run", order)
    assert any(result.kept for result in outcome.recovery if result.name == "exact-first-token")
    before = outcome.recovery[0].before.value
    for result in outcome.recovery:
        assert result.before.value == pytest.approx(before, abs=1e-6)
        before = result.after.value if result.kept else before
    assert load_run(tmp_path / "run", host).outcome.plan.recovered == outcome.plan.recovered
    assert ran(host, tmp_path / "run", order).recovery == outcome.recovery


@pytest.mark.parametrize(("others", "rows"), [("mean", {4}), ("approximate", {3}), ("auto", {3, 4})])
def test_the_options_say_how_many_first_tokens_there_are_and_what_others_have(
    host: PluginHost, tmp_path: Path, others: str, rows: set[int]
) -> None:
    seen: list[int] = []
    component: Any = host.find("recovery", "exact-first-token").component

    def look(context: RecoveryContext) -> None:
        component(tokens_at_most=3, others=others).recover(context)
        table = context.pair.modules[FirstTokensOf(context.plan)]
        assert isinstance(table, FirstTokens)
        seen.append(len(table.tokens))
        assert (int(table.tokens[0]) == OTHERS) == (len(table.tokens) == 4)
        if others == "auto":
            chosen = context.divergence()
            for given in (True, False):
                context.keep_first_tokens(table.tokens[-3:].tolist(), others=given)
                assert chosen <= context.divergence()

    ran(host, tmp_path / "run", doing(look))
    assert set(seen) <= rows
    assert seen


def test_where_both_stages_are_one_model_there_is_no_table_and_the_run_says_so(host: PluginHost, tmp_path: Path) -> None:
    one = {"splitter": "unified", "evaluation": {"threads": 1, "truncate_prefill": False}}
    outcome = ran(host, tmp_path / "run", [TABLE], **one)
    assert not outcome.recovery[0].kept
    assert not outcome.plan.recovered
    assert any("needs no table" in note for note in outcome.notes)


def test_a_token_that_the_model_does_not_have_is_refused(host: PluginHost, tmp_path: Path) -> None:
    def keep(context: RecoveryContext) -> None:
        context.keep_first_tokens([10**6])

    with pytest.raises(PdtrimError, match="a table of first tokens"):
        ran(host, tmp_path / "run", doing(keep))


def test_openings_are_those_of_the_tokenizer_and_of_the_items(host: PluginHost, tmp_path: Path) -> None:
    seen: list[int] = []
    ran(host, tmp_path / "run", doing(lambda context: seen.extend(context.openings)))
    assert seen
    assert len(seen) == len(set(seen))
