"""A pair with a quantised decode on the real engine: tokens of the checkpoint as transformers runs it, and as many K/V bytes.

vLLM's kernel for 4 bits on a processor computes in 16 bits alone. Where the two likeliest tokens are nearer to each other than
float16 rounds, either is right, so what is asked are prompts without such a place: the lead of each token of their answers over
the next likeliest is more than twice what float16 was seen to move one. Transformers tells which they are; the engine has no say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

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
    from transformers import PreTrainedModel

    from pdtrim_core.api import BlockModel
    from tests.serve.conftest import Pair, Subject

pytest.importorskip("compressed_tensors", reason="the quantizer rtn takes compressed-tensors, which is not installed")

PLAN = Plan(Removal(map(KvOnly, range(24, 30))), Removal(map(Drop, (13, 14, 15, 17, 19))))
PROMPTS = 20
TOKENS = 8
CLEAR = 0.15
"""Logits by which each token of an answer is ahead; float16 moves a lead by up to 0.07 in transformers."""
HALF = ("--enforce-eager", "--dtype", "float16")


@dataclass
class Quantized:
    """The pair that is served, its clear answers, and those of its decode model as transformers runs the checkpoint."""

    subject: Subject
    of_pair: dict[tuple[int, ...], list[int]]
    of_decode: dict[tuple[int, ...], list[int]]


def _lead(logits_TV: Tensor) -> float:
    values = logits_TV.topk(2, dim=-1).values
    return float((values[:, 0] - values[:, 1]).min())


def _by_transformers(model: PreTrainedModel, prompt: Sequence[int]) -> tuple[list[int], Tensor]:
    """Return the greedy tokens behind a prompt, and the logits `[token, V]` that they were chosen by."""
    found = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return found.sequences[0, len(prompt) :].tolist(), torch.cat(found.logits)


def _opened(subject: Subject, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(subject.export.folder / "decode", dtype=dtype)
    return model.eval()


def _candidates(model: BlockModel) -> Iterator[tuple[int, ...]]:
    """Yield prompts of 4 to 250 tokens of prose."""
    ids = model.tokenizer.encode(" ".join(python_reference()), add_special_tokens=False)
    for number, start in enumerate(range(0, len(ids) - 300, 100)):
        yield (model.tokenizer.bos_token_id, *ids[start : start + 4 + 13 * number % 247])


@pytest.fixture(scope="module")
def quantized(smollm: BlockModel, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """The 135M model without five blocks in decode, which has 4 bits, and prefill ending six blocks early as it is."""
    from pdtrim_plugins.exporters.vllm import Vllm
    from pdtrim_plugins.quantizers.rtn import RoundToNearest
    from tests.serve.conftest import Subject

    run = tmp_path_factory.mktemp("formats")
    outcome = run_with_plan(smollm, PLAN, run, quantizer=RoundToNearest(decode="W4A16", group_size=64))
    list(Vllm().export(outcome, smollm, run))
    modules = layers_in(run, outcome.plan, smollm, {}, load_plugins())
    assert {key.stage for key in modules} == {"decode"}
    subject = Subject(smollm, TwoPhaseModel(smollm, PLAN, modules), PLAN, open_export(run, "smollm"), ())
    decode = _opened(subject, torch.float32)

    def of_pair() -> Iterator[tuple[tuple[int, ...], list[int]]]:
        for prompt in _candidates(smollm):
            # What decode alone is sure of is a hint, and far quicker to find out.
            if _lead(_by_transformers(decode, prompt)[1]) > CLEAR:
                made = subject.two_phase.generate(prompt, TOKENS)
                if _lead(subject.two_phase.continuation_logits(prompt, made)) > CLEAR:
                    yield prompt, made

    found = dict(islice(of_pair(), PROMPTS))
    assert len(found) == PROMPTS
    alone = {prompt: _by_transformers(decode, prompt)[0] for prompt in found}
    return Quantized(replace(subject, prompts=tuple(found)), found, alone)


@pytest.fixture(scope="module")
def pair(quantized: Quantized, run_pair: Callable[..., Pair]) -> Pair:
    return run_pair(quantized.subject, arguments=HALF)


def test_the_answers_are_those_of_the_format(quantized: Quantized) -> None:
    bare = TwoPhaseModel(quantized.subject.model, PLAN, {})
    assert {prompt: bare.generate(prompt, TOKENS) for prompt in quantized.of_pair} != quantized.of_pair
    half = _opened(quantized.subject, torch.float16)
    assert {prompt: _by_transformers(half, prompt)[0] for prompt in quantized.of_decode} == quantized.of_decode


def test_a_pair_writes_what_the_reference_writes_and_hands_as_many_bytes_over(quantized: Quantized, pair: Pair) -> None:
    counter = "vllm:nixl_bytes_transferred_sum"
    before = pair.metric(counter)
    made = [pair.complete(prompt, TOKENS).tokens for prompt in quantized.of_pair]
    moved = pair.metric(counter) - before
    assert made == list(quantized.of_pair.values())
    blocks = sum(math.ceil(len(prompt) / CPU_BLOCK) for prompt in quantized.of_pair)
    assert moved == blocks * quantized.subject.bytes_a_block / 2  # 16 bits a number instead of float32's 32


def test_decode_alone_writes_what_transformers_writes(quantized: Quantized, pair: Pair) -> None:
    # Asked past the proxy, decode reads a prompt itself: the checkpoint alone.
    made = [pair.post(pair.question(prompt, TOKENS), at="decode").tokens for prompt in quantized.of_decode]
    assert made == list(quantized.of_decode.values())
