"""`pdtrim-core verify` on the real engine: a right pair passes, and faults that answer like a right pair do not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Drop, Plan, Removal
from pdtrim_core.serving.engine import Served
from pdtrim_core.serving.reference import behind_of, config_of, shape_of
from pdtrim_core.serving.verification import Check, Expected, Pair, verify

LENGTHS = (2, 31, 33, 64, 129)
PLANS = [Plan(prefill=Removal([Drop(block)]), decode=Removal([Drop(block)])) for block in (2, 5)]


@pytest.fixture(scope="module")
def subjects(make_subject: Callable[..., Any]) -> list[Any]:
    """Two plans of one model, whose decode models have as many layers."""
    from pdtrim_core.testing import tiny_model
    from tests.serve.conftest import TINY, _prompts

    model = tiny_model("qwen2", **TINY)
    return [make_subject(model, plan, {}, _prompts(256), "tiny") for plan in PLANS]


@pytest.fixture(scope="module")
def pair(subjects: list[Any], run_pair: Callable[..., Any]) -> Any:
    return run_pair(subjects[0])


def expected_of(subject: Any) -> Expected:
    shape = shape_of(config_of(subject.export.folder / "decode"))
    assert shape is not None
    return Expected(behind_of(subject.two_phase), 0.01, 256, subject.export.plan_hash, shape)


def found(pair: Any, expected: Expected, front: str = "proxy") -> dict[str, Check]:
    urls = {name: command.url for name, command in pair.commands.items()}
    where = Pair(Served(urls[front]), [Served(urls["prefill"])], [Served(urls["decode"])])
    return {check.name: check for check in verify(where, expected, seed=time.time_ns(), lengths=LENGTHS)}


def wrong(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.ok is False}


@pytest.fixture
def restarted(pair: Any) -> Iterator[Callable[..., None]]:
    """Start servers with other words for once."""
    before = dict(pair.commands)

    def restart(**words: dict[str, str]) -> None:
        for name, changes in words.items():
            pair.kill(name)
            command = pair.commands[name]
            told = list(command.words)
            for flag, value in changes.items():
                told[told.index(flag) + 1] = value
            here = {"PYTHONPATH": str(Path(__file__).parent)}
            pair.commands[name] = replace(command, words=tuple(told), environment={**command.environment, **here})
        pair.kill("proxy")
        pair.start(*words, "proxy")

    yield restart
    for name, command in before.items():
        if pair.commands[name] is not command:
            pair.commands[name] = command
            pair.kill(name)
            pair.start(name)


def test_a_pair_that_is_right_passes(pair: Any, subjects: list[Any]) -> None:
    checks = found(pair, expected_of(subjects[0]))
    assert all(check.ok for check in checks.values()), checks


def test_another_plan_than_the_runs_fails(pair: Any, subjects: list[Any]) -> None:
    assert wrong(found(pair, expected_of(subjects[1]))) == {"plan of all servers"}


def test_a_decode_that_computes_prompts_itself_fails(pair: Any, subjects: list[Any]) -> None:
    # What a router does that knows of no hand-over; both stages lost the same block, so that the tokens are right.
    checks = found(pair, expected_of(subjects[0]), front="decode")
    assert wrong(checks) == {"prompt tokens handed over", "prompts that decode computed itself", "bytes handed over"}


def test_layers_that_are_paired_wrongly_fail(pair: Any, subjects: list[Any], restarted: Callable[..., None]) -> None:
    words = pair.commands["prefill"].words
    config = json.loads(words[words.index("--kv-transfer-config") + 1])
    config.update(kv_connector="ShiftedConnector", kv_connector_module_path="shifted_connector")
    restarted(prefill={"--kv-transfer-config": json.dumps(config)})
    assert wrong(found(pair, expected_of(subjects[0]))) == {"tokens as the reference's"}


def test_a_partner_of_another_plan_under_a_false_name_fails(
    pair: Any, subjects: list[Any], restarted: Callable[..., None]
) -> None:
    restarted(decode={"--model": str(subjects[1].export.folder / "decode")})
    assert wrong(found(pair, expected_of(subjects[0]))) == {"tokens as the reference's"}


def test_another_number_format_fails(pair: Any, subjects: list[Any], restarted: Callable[..., None]) -> None:
    # Not bfloat16, in which vLLM's workers end with an illegal instruction on some virtual machines.
    restarted(prefill={"--dtype": "float16"}, decode={"--dtype": "float16"})
    assert "bytes handed over" in wrong(found(pair, expected_of(subjects[0])))


def test_a_stock_pair_is_compared_with_its_own_decode(
    pair: Any, subjects: list[Any], restarted: Callable[..., None], tmp_path: Path
) -> None:
    dense = tmp_path / "dense"
    subjects[0].model.model.save_pretrained(dense)
    config = {"kv_connector": "NixlConnector", "kv_load_failure_policy": "fail", "kv_buffer_device": "cpu"}
    stock = {
        stage: {"--model": str(dense), "--kv-transfer-config": json.dumps({**config, "kv_role": role})}
        for stage, role in (("prefill", "kv_producer"), ("decode", "kv_consumer"))
    }
    restarted(**stock)
    served = Served(pair.commands["decode"].url)
    name = served.models()[0]
    expected = Expected(lambda prompt, answer: served.behind(name, prompt, answer), 0.01, 256, None, shape_of(config_of(dense)))
    checks = found(pair, expected)
    assert all(check.ok for check in checks.values()), checks
