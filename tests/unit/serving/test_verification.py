"""A pair that is right passes, and each silent fault fails by its own name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pdtrim_core.errors import PdtrimError
from pdtrim_core.serving.engine import SETTLE_SECONDS, Served
from pdtrim_core.serving.reference import shape_of
from pdtrim_core.serving.verification import Check, Expected, Pair, verify
from tests.unit.serving.served_pair import CONFIG, next_token, pretended

PLAN = "0123456789ab" + "c" * 52


def behind(prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    return [0.0 if token == next_token([*prompt, *answer[:place]]) else 5.0 for place, token in enumerate(answer)]


EXPECTED = Expected(behind, 0.01, 500, PLAN, shape_of(CONFIG))


def found(fault: str = "", expected: Expected = EXPECTED, names: Sequence[str] = ()) -> dict[str, Check]:
    with pretended() as (pair, urls):
        pair.fault = fault
        if names:
            pair.names["decode"] = list(names)
        where = Pair(Served(urls["front"]), [Served(urls["prefill"])], [Served(urls["decode"])])
        return {check.name: check for check in verify(where, expected, seed=0)}


def wrong(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.ok is False]


def test_a_pair_that_is_right_passes_everything() -> None:
    checks = found()
    assert [check.ok for check in checks.values()] == [True] * 8
    assert checks["bytes handed over"].found == checks["bytes handed over"].wanted
    assert checks["tokens as the reference's"].found == "18 of 18 answers; a token is at most 0 behind the likeliest"


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ("shifted", ["tokens as the reference's"]),
        ("partner", ["tokens as the reference's"]),
        ("dtype", ["bytes handed over"]),
        ("traffic", ["prompt tokens at decode"]),
        ("failed", ["transfers that failed"]),
        ("fallback", ["prompt tokens handed over", "prompts that decode computed itself", "bytes handed over"]),
    ],
)
def test_each_fault_fails_by_its_name(fault: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_core.serving.engine.SETTLE_SECONDS", 0.5)
    checks = found(fault)
    assert wrong(checks) == names
    if fault == "fallback":
        assert checks["prompts that decode computed itself"].found == "3 of 129, 200, 257 tokens"


@pytest.mark.parametrize("names", [["m", "m@ffffffffffff"], ["m"]])
def test_a_partner_of_another_plan_fails(names: list[str]) -> None:
    assert wrong(found(names=names)) == ["plan of all servers"]
    without = replace(EXPECTED, plan=None)
    assert wrong(found(expected=without, names=names)) == ["plan of all servers"]


def test_a_pair_without_plans_is_not_asked_for_one() -> None:
    with pretended() as (pair, urls):
        pair.names = {"prefill": ["stock"], "decode": ["stock"]}
        served = Served(urls["decode"])
        where = Pair(Served(urls["front"]), [Served(urls["prefill"])], [served])
        expected = replace(EXPECTED, plan=None, behind=lambda prompt, answer: served.behind("stock", prompt, answer))
        checks = verify(where, expected, seed=1)
        assert all(check.ok for check in checks)
        pair.fault = "shifted"
        assert [check.name for check in verify(where, expected, seed=1) if not check.ok] == ["tokens as the reference's"]


def test_bytes_are_neither_compared_nor_waited_for_where_nothing_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    sleep = time.sleep

    def nap(seconds: float) -> None:
        naps.append(seconds)
        sleep(seconds)

    monkeypatch.setattr("pdtrim_core.serving.engine.time.sleep", nap)
    check = found(expected=replace(EXPECTED, shape=None))["bytes handed over"]
    assert (check.ok, check.wanted) == (None, "not known: name decode's checkpoint with --checkpoint")
    assert 0 < sum(naps) < SETTLE_SECONDS / 2


def test_what_does_not_answer_is_told_in_one_line() -> None:
    with pytest.raises(PdtrimError, match=r"^http://127.0.0.1:9/v1/models does not answer: "):
        Served("http://127.0.0.1:9").models()
    with pretended() as (_, urls), pytest.raises(PdtrimError, match="answers no JSON: it is no vLLM"):
        Served(urls["front"])._asked("/metrics")


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (CONFIG, (4, 2, 16, "float32")),
        ({**CONFIG, "head_dim": None, "hidden_size": 128, "torch_dtype": "bfloat16", "dtype": None}, (4, 2, 32, "bfloat16")),
        ({**CONFIG, "dtype": "float64"}, None),
        ({}, None),
    ],
)
def test_a_config_says_how_many_bytes_a_token_is(config: dict[str, object], numbers: tuple[object, ...] | None) -> None:
    shape = shape_of(dict(config))
    assert (shape and (shape.layers, shape.heads, shape.size, shape.dtype)) == numbers
