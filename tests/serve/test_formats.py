"""A pair with a quantised decode on the real engine: tokens of the checkpoint as transformers runs it, and as many K/V bytes.

vLLM's kernel for 4 bits on a processor computes in 16 bits alone. Where the two likeliest tokens are nearer to each other than
float16 rounds, either is right; how far that is, is measured with transformers, which runs the checkpoint in float16 and float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from pdtrim_core import Drop, KvOnly, Plan, Removal
from pdtrim_core.api import python_reference
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.host.host import load_plugins
from pdtrim_core.pipeline.quantize import layers_in
from pdtrim_core.serving.commands import CPU_BLOCK, open_export
from pdtrim_core.testing.contracts.small_run import run_with_plan

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel
    from tests.serve.conftest import Pair, Subject

pytest.importorskip("compressed_tensors", reason="the quantizer rtn takes compressed-tensors, which is not installed")

PLAN = Plan(Removal(map(KvOnly, range(24, 30))), Removal(map(Drop, (13, 14, 15, 17, 19))))
PROMPTS = 32
LEAST_IDENTICAL = 20
MOST_TIED = 0.25
"""The share of tokens that either of two may be: with more of them, little would be compared."""
MOST_ROUNDING = 0.1
"""Logits: were float16 to move them further than this, tokens would say little."""
HALF = ("--enforce-eager", "--dtype", "float16")


@dataclass
class Answered:
    """What a running pair answered: the pair, the decode server asked past the proxy, and the K/V bytes of the pair's answers."""

    pair: list[list[int]]
    alone: list[list[int]]
    moved: float


@pytest.fixture(scope="module")
def quantized(smollm: BlockModel, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The 135M model without five blocks in decode, which has 4 bits, and prefill ending six blocks early as it is."""
    from pdtrim_plugins.exporters.vllm import Vllm
    from pdtrim_plugins.quantizers.rtn import RoundToNearest
    from tests.serve.conftest import Subject

    run = tmp_path_factory.mktemp("formats")
    outcome = run_with_plan(smollm, PLAN, run, quantizer=RoundToNearest(decode="W4A16", group_size=64))
    list(Vllm().export(outcome, smollm, run))
    modules = layers_in(run, outcome.plan, smollm, {}, load_plugins())
    assert {key.stage for key in modules} == {"decode"}
    opening = smollm.tokenizer.bos_token_id
    ids = smollm.tokenizer.encode(" ".join(python_reference()[:400]), add_special_tokens=False)
    starts = range(5000, 5000 + 100 * PROMPTS, 100)
    prompts = tuple((opening, *ids[start : start + 4 + 8 * number]) for number, start in enumerate(starts))
    return Subject(smollm, TwoPhaseModel(smollm, PLAN, modules), PLAN, open_export(run, "smollm"), prompts)


@pytest.fixture(scope="module")
def answered(quantized: Subject, run_pair: Callable[..., Pair]) -> Answered:
    pair = run_pair(quantized, arguments=HALF)
    counter = "vllm:nixl_bytes_transferred_sum"
    before = pair.metric(counter)
    made = pair.complete_all(quantized.prompts)
    moved = pair.metric(counter) - before
    # Asked past the proxy, decode reads a prompt itself: the checkpoint alone.
    return Answered(made, [pair.post(pair.question(prompt), at="decode").tokens for prompt in quantized.prompts], moved)


def _by_transformers(checkpoint: Path, prompts: Sequence[Any], made: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    """Return the logits `[token, V]` of a checkpoint behind each prompt and along what follows it, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
    with torch.inference_mode():
        whole = [model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0] for prompt, tokens in zip(prompts, made, strict=True)]
    return [logits[-len(tokens) :].float() for logits, tokens in zip(whole, made, strict=True)]


def _lead(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return by how much the first of two tokens `[token, 2]` leads, at each place."""
    pair = logits.gather(1, tokens)
    return pair[:, 0] - pair[:, 1]


@pytest.fixture(scope="module")
def exact(quantized: Subject, answered: Answered) -> list[Tensor]:
    return _by_transformers(quantized.export.folder / "decode", quantized.prompts, answered.alone, torch.float32)


@pytest.fixture(scope="module")
def rounding(quantized: Subject, answered: Answered, exact: list[Tensor]) -> float:
    """How far float16 moves the lead of the likeliest token over the next, at most: in transformers, of the same checkpoint."""
    half = _by_transformers(quantized.export.folder / "decode", quantized.prompts, answered.alone, torch.float16)
    moved = 0.0
    for in_full, in_half in zip(exact, half, strict=True):
        first_two = in_full.topk(2).indices
        moved = max(moved, float((_lead(in_full, first_two) - _lead(in_half, first_two)).abs().max()))
    assert 0 < moved < MOST_ROUNDING
    return moved


def _check(made: Sequence[Sequence[int]], logits: Sequence[Tensor], rounding: float) -> None:
    """Check that tokens are the likeliest wherever there is no tie, that few have one, and that enough answers are identical."""
    identical, ties = 0, []
    for tokens, logits_TV in zip(made, logits, strict=True):
        values, likeliest = logits_TV.topk(2)
        tied = values[:, 0] - values[:, 1] <= rounding
        same = torch.tensor(tokens) == likeliest[:, 0]
        assert bool((same | tied).all())
        behind = values[:, 0] - logits_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert float(behind.max()) <= rounding  # of three tokens at a tie, too
        identical += bool(same.all())
        ties += tied.tolist()
    assert sum(ties) < MOST_TIED * len(ties)
    assert identical >= LEAST_IDENTICAL


def test_decode_alone_writes_what_transformers_writes(answered: Answered, exact: list[Tensor], rounding: float) -> None:
    _check(answered.alone, exact, rounding)


def test_the_pair_writes_what_the_reference_writes(quantized: Subject, answered: Answered, rounding: float) -> None:
    along = list(zip(quantized.prompts, answered.pair, strict=True))
    _check(answered.pair, [quantized.two_phase.continuation_logits(*texts) for texts in along], rounding)


def test_without_the_format_other_tokens_are_the_likeliest(quantized: Subject, answered: Answered, rounding: float) -> None:
    bare = TwoPhaseModel(quantized.model, PLAN, {})
    logits = bare.continuation_logits(quantized.prompts[-1], answered.pair[-1])
    behind = logits.max(dim=1).values - logits.gather(1, torch.tensor(answered.pair[-1])[:, None])[:, 0]
    assert float(behind.max()) > rounding


def test_as_many_bytes_are_handed_over_as_without_a_format(quantized: Subject, answered: Answered) -> None:
    blocks = sum(math.ceil(len(prompt) / CPU_BLOCK) for prompt in quantized.prompts)
    assert answered.moved == blocks * quantized.bytes_a_block / 2  # 16 bits a number instead of float32's 32
