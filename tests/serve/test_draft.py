"""A draft on the real engine, as its README says: the dense model's own tokens, and as many of the draft's taken as predicted."""

from __future__ import annotations

import json
import os
import re
import shlex
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core import Drop, Plan, Removal
from pdtrim_core.api import python_reference
from pdtrim_core.serving.commands import CPU_ENVIRONMENT, Command
from pdtrim_core.serving.servers import Server, stop, wait_until_healthy
from pdtrim_core.testing.contracts.small_run import run_with_plan
from tests.serve.conftest import SERVER_ARGS, START_SECONDS

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel

PLAN = Plan.unified(Removal(map(Drop, (13, 14, 15, 17, 19))))
PROMPTS = 20
NEW_TOKENS = 32
AHEAD = 4
COUNTERS = ("drafts", "draft_tokens", "accepted_tokens")


@dataclass
class Written:
    """What the dense model wrote alone, with some tokens more; what it wrote with the draft, and vLLM's counts of that."""

    alone: list[list[int]]
    drafted: list[list[int]]
    counts: dict[str, float]


@dataclass
class Drafting:
    """The folders of the dense model and its draft, the command in the draft's README, and prompts."""

    dense: Path
    draft: Path
    words: list[str]
    prompts: list[list[int]]


@pytest.fixture(scope="module")
def drafting(smollm: BlockModel, tmp_path_factory: pytest.TempPathFactory) -> Drafting:
    from pdtrim_plugins.exporters.checkpoints import Checkpoints
    from pdtrim_plugins.exporters.draft import Draft

    whole, run = tmp_path_factory.mktemp("dense"), tmp_path_factory.mktemp("run")
    list(Checkpoints(dtype="float32").export(run_with_plan(smollm, Plan(), whole), smollm, whole))
    (draft,) = Draft(dtype="float32").export(run_with_plan(smollm, PLAN, run), smollm, run)
    (command,) = re.findall(r"```sh\n(.*)\n```", (draft / "README.md").read_text(encoding="utf-8"))
    opening = smollm.tokenizer.bos_token_id
    ids = smollm.tokenizer.encode(" ".join(python_reference()[:400]), add_special_tokens=False)
    prompts = [[opening, *ids[start : start + 4 + 13 * number]] for number, start in enumerate(range(5000, 5000 + PROMPTS))]
    return Drafting(whole / "decode", draft, shlex.split(command), prompts)


@contextmanager
def _served(words: Sequence[str], port: int, logs: Path) -> Iterator[str]:
    """Run vLLM's server with more words; give its address."""
    more = [*SERVER_ARGS, "--enforce-eager", "--served-model-name", "smollm", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**CPU_ENVIRONMENT, "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    url = f"http://127.0.0.1:{port}"
    server = Server(Command("vllm", (*words, *more), environment, url), logs)
    try:
        wait_until_healthy([server], START_SECONDS)
        yield url
    finally:
        stop([server])


def _ask(url: str, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Return as many greedy tokens behind each prompt, eight prompts at a time."""

    def ask(prompt: Sequence[int]) -> list[int]:
        body: dict[str, Any] = {"model": "smollm", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        data = json.dumps({**body, "ignore_eos": True, "return_token_ids": True}).encode()
        request = urllib.request.Request(url + "/v1/completions", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            found: list[int] = json.load(answer)["choices"][0]["token_ids"]
        return found

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, prompts))


@pytest.fixture(scope="module")
def written(drafting: Drafting, free_ports: Callable[[int], list[int]], tmp_path_factory: pytest.TempPathFactory) -> Written:
    """What two servers wrote, one after the other: the dense model alone, and the README's command with `AHEAD` tokens."""
    dense = {"python": os.environ["PDTRIM_SERVE_PYTHON"], "DENSE": str(drafting.dense)}
    words = [dense.get(word, word) for word in drafting.words]
    place = words.index("--speculative-config")
    config = json.loads(words[place + 1])
    assert config["model"] == str(drafting.draft)
    ahead = json.dumps({**config, "num_speculative_tokens": AHEAD})
    logs = tmp_path_factory.mktemp("logs")
    with _served(words[:place], free_ports(1)[0], logs) as url:
        alone = _ask(url, drafting.prompts, NEW_TOKENS + AHEAD)
    with _served([*words[:place], "--speculative-config", ahead], free_ports(1)[0], logs) as url:
        drafted = _ask(url, drafting.prompts, NEW_TOKENS)
        with urllib.request.urlopen(url + "/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
    counts = {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:spec_decode_num_{name}_total{{"))
        for name in COUNTERS
    }
    return Written(alone, drafted, counts)


@pytest.fixture(scope="module")
def agreed(drafting: Drafting, written: Written) -> list[list[bool]]:
    """Whether the draft finds each token of the dense model the likeliest, along the dense model's text and in transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(drafting.draft).eval()
    found = []
    with torch.inference_mode():
        for prompt, text in zip(drafting.prompts, written.alone, strict=True):
            likeliest = model(torch.tensor([[*prompt, *text[:-1]]])).logits[0, len(prompt) - 1 :].argmax(dim=-1)
            found.append((likeliest == torch.tensor(text)).tolist())
    return found


def _rounds(same: Sequence[bool]) -> list[int]:
    """Return how many tokens of each draft are taken: the dense model makes the first token alone, and one with each draft."""
    taken, at = [], 1
    while at < NEW_TOKENS:
        taken.append(next((count for count in range(AHEAD) if not same[at + count]), AHEAD))
        at += taken[-1] + 1
    return taken


def test_the_output_is_that_of_the_dense_model_alone(written: Written) -> None:
    assert written.drafted == [tokens[:NEW_TOKENS] for tokens in written.alone]


def test_as_many_tokens_of_a_draft_are_taken_as_agree(written: Written, agreed: list[list[bool]]) -> None:
    rounds = [taken for same in agreed for taken in _rounds(same)]
    assert written.counts["draft_tokens"] == AHEAD * written.counts["drafts"]
    assert written.counts["drafts"] == pytest.approx(len(rounds), rel=0.03)
    assert written.counts["accepted_tokens"] == pytest.approx(sum(rounds), rel=0.03)
    assert 0 < sum(rounds) < AHEAD * len(rounds)


def test_the_length_is_near_the_one_that_the_table_takes(written: Written, agreed: list[list[bool]]) -> None:
    """The table takes agreement for equally likely everywhere; it comes in runs, so that a little more is taken in truth."""
    from pdtrim_plugins.exporters.draft import speed_up

    places = [same for text in agreed for same in text[1:NEW_TOKENS]]
    length = 1 + written.counts["accepted_tokens"] / written.counts["drafts"]
    assert length == pytest.approx(speed_up(sum(places) / len(places), 0.0, AHEAD), rel=0.2)
