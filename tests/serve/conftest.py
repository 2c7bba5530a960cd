"""Pairs that really run: models with a plan that has everything, their exports, and vLLM's servers in front of them.

`make test-serve` says in PDTRIM_SERVE_PYTHON which interpreter has vLLM; without it all of this is skipped.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core import Drop, KvOnly, Merge, Plan, Removal, SavedPlan, Shrink
from pdtrim_core.serving.commands import CPU_BLOCK, Connector, Engine, Export, Ports, ProxyOptions, commands_for, open_export
from pdtrim_core.serving.servers import Server, look_at, stop, wait_until_healthy

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel
    from pdtrim_core.execution.two_phase import TwoPhaseModel

LENGTHS = (1, 2, 5, 31, 32, 33, 34, 40, 63, 64, 65, 66, 96, 97, 100, 127, 128, 129, 200, 257, 300, 400)
"""Prompts of one cache block and of several, whole ones, and one token more or less."""
NEW_TOKENS = 16
START_SECONDS = 500.0
TINY: dict[str, Any] = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "max_position_embeddings": 1024,
}
"""vLLM's attention on a processor wants heads of 32 numbers or more."""
WITH_EVERYTHING = Plan(prefill=Removal([Drop(0), KvOnly(2), Drop(3)]), decode=Removal([Drop(0), Drop(3), Merge(4, 5), Drop(7)]))
"""Decode lost its first, a middle and its last block, and merged a pair; prefill lost two, and of a third all but its K/V."""
NARROWED = Plan(
    prefill=Removal([Drop(0), Shrink(2, "mlp", tuple(range(64))), Shrink(5, "mlp", tuple(range(64)))]),
    decode=Removal([Drop(0), *(Shrink(block, "mlp", tuple(range(64))) for block in range(1, 8))]),
)
"""All blocks of decode have as many channels, as stock vLLM wants it; of prefill's, two have fewer than the others."""
SERVER_ARGS = ("--dtype", "float32", "--max-model-len", "640", "--max-num-seqs", "16")


def pytest_report_header() -> str:
    """Name the engine that these tests run."""
    python = os.environ.get("PDTRIM_SERVE_PYTHON")
    found = look_at(python).vllm if python else None
    return f"vLLM: {found or 'none, tests/serve is skipped'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.serve)


@dataclass
class Subject:
    """A model with a plan, in one process, and its export."""

    model: BlockModel
    two_phase: TwoPhaseModel
    plan: Plan
    export: Export
    prompts: tuple[tuple[int, ...], ...]
    ends_at_once: tuple[int, ...] = ()
    """A prompt that decode answers with an end-of-sequence token, where the model has one."""

    def expected(self, prompt: Sequence[int], recompute: int = 1, tokens: int = NEW_TOKENS) -> list[int]:
        return self.two_phase.generate(prompt, tokens, recompute=recompute)

    @property
    def bytes_a_block(self) -> int:
        """The formula: K and V of all decode layers for the tokens of one cache block, in float32."""
        config = self.model.config
        heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        return int(len(self.plan.slots(self.model.block_count)) * 2 * heads * size * 4 * CPU_BLOCK)


@dataclass
class Result:
    status: int
    data: dict[str, Any]

    @property
    def tokens(self) -> list[int]:
        assert self.status == 200, self.data
        tokens: list[int] = self.data["choices"][0]["token_ids"]
        return tokens


class Pair:
    """A running pair; its parts can be killed and started again."""

    def __init__(self, subject: Subject, engine: Engine, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        ports = _free_ports(4)
        found = commands_for(subject.export, engine, Ports(*ports), folder / "storage", ProxyOptions())
        (folder / "storage").mkdir()
        self.commands = {command.name: command for command in found}
        self.servers: dict[str, Server] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self.servers[name] = Server(self.commands[name], self.folder)
        waiting = [self.servers[name] for name in names if name != "proxy"]
        wait_until_healthy(waiting, START_SECONDS)
        # With those it is in front of, so that one which dies of the first prompt is told at once.
        wait_until_healthy([*waiting, self.servers["proxy"]], START_SECONDS)

    def kill(self, name: str) -> None:
        import signal

        self.servers[name].signal(signal.SIGKILL)
        self.servers[name].wait(time.monotonic() + 20)

    def close(self) -> None:
        stop(list(self.servers.values()))

    def post(self, body: Mapping[str, Any], *, at: str = "proxy", path: str = "/v1/completions") -> Result:
        request = urllib.request.Request(
            self.commands[at].url + path, json.dumps(dict(body)).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return Result(answer.status, json.load(answer))
        except urllib.error.HTTPError as error:
            return Result(error.code, json.loads(error.read() or b"{}"))

    def stream(self, body: Mapping[str, Any], *, path: str = "/v1/completions") -> Iterator[Any]:
        """Yield what comes in each event; the text [DONE] as it is."""
        request = urllib.request.Request(
            self.commands["proxy"].url + path, json.dumps({**body, "stream": True}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    data = line[6:].strip()
                    yield "[DONE]" if data == b"[DONE]" else json.loads(data)

    def question(self, prompt: Sequence[int], tokens: int = NEW_TOKENS) -> dict[str, Any]:
        name = self.subject.export.name
        return {"model": name, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "return_token_ids": True}

    def complete(self, prompt: Sequence[int], tokens: int = NEW_TOKENS) -> Result:
        return self.post(self.question(prompt, tokens))

    def complete_all(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the tokens behind each prompt, eight at a time."""
        with ThreadPoolExecutor(8) as pool:
            return [answer.tokens for answer in pool.map(self.complete, prompts)]

    def metric(self, name: str, at: str = "decode") -> float:
        with urllib.request.urlopen(f"{self.commands[at].url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def _free_ports(count: int) -> list[int]:
    """Return free ports, the last of which has a free one behind it.

    Below those that the system gives to whoever asks for any: one of these could be taken before its server listens.
    """
    from random import Random

    draw = Random()
    while True:
        ports = draw.sample(range(10_000, 30_000, 2), count)
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in (*ports, ports[-1] + 1):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    return _free_ports


def _prompts(vocabulary: int) -> tuple[tuple[int, ...], ...]:
    from random import Random

    draw = Random(0)
    return tuple(tuple(draw.randrange(1, vocabulary) for _ in range(length)) for length in LENGTHS)


def _export(model: BlockModel, plan: Plan, modules: Mapping[Any, Any], folder: Path, name: str) -> Export:
    from pdtrim_core.execution.recovered_weights import RECOVERED, digest_of, save_recovered
    from pdtrim_core.model.weights import MODULES, save_modules
    from pdtrim_core.testing.contracts import small_run
    from pdtrim_plugins.exporters.vllm import Vllm

    (folder / MODULES).mkdir(parents=True)
    save_modules(plan, modules, folder / MODULES)
    save_recovered(plan, model, modules, folder / RECOVERED)
    digest = digest_of(folder / RECOVERED)
    saved = SavedPlan(plan, model.name, model.fingerprint, model.block_count, "decode", digest)
    outcome, _ = small_run()
    list(Vllm(dtype="float32").export(replace(outcome, saved_plan=json.loads(saved.to_json())), model, folder))
    return open_export(folder, name)


def _merged(model: BlockModel, merge: Merge) -> Any:
    """Return a merged block that is near the first of its pair, with K/V of its own."""
    import torch

    draw = torch.Generator().manual_seed(1)
    block = copy.deepcopy(model.blocks[merge.keep])
    for weight in block.parameters():
        weight.data += 0.05 * weight.data.std() * torch.randn(weight.shape, generator=draw)
    return block


def _subject(model: BlockModel, plan: Plan, folder: Path, vocabulary: int, name: str, *, known: bool = False) -> Subject:
    """Make a subject; with `known`, prefill knows the first tokens of every second prompt, and others by their mean."""
    from pdtrim_core.execution.first_tokens import depths_of, first_tokens_of
    from pdtrim_core.execution.two_phase import TwoPhaseModel
    from pdtrim_core.plan.plan import FirstTokensOf

    modules: dict[Any, Any] = {e: _merged(model, e) for e in plan.decode if isinstance(e, Merge)}
    prompts = _prompts(vocabulary)
    if known:
        firsts = [prompt[0] for prompt in prompts[::2]]
        modules[FirstTokensOf(plan)] = first_tokens_of(model, firsts, depths_of(plan, model.block_count), others=True)
    two_phase = TwoPhaseModel(model, plan, modules)
    ends_at_once: tuple[int, ...] = ()
    if name != "smollm":
        # Prefill has no head, so its one token is 0: let that end a sequence, and also what decode says first to a prompt.
        ends_at_once = prompts[4]
        first = two_phase.generate(ends_at_once, 1)[0]
        model.model.generation_config.eos_token_id = [0, first]
    return Subject(model, two_phase, plan, _export(model, plan, modules, folder, name), prompts, ends_at_once)


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Subject]:
    """Make a tiny model of a family, with the plan that has everything, or for Mistral the one with narrowed blocks."""
    made: dict[tuple[str, bool], Subject] = {}

    def make(family: str, *, known: bool = False) -> Subject:
        from pdtrim_core.testing import tiny_model

        if (family, known) not in made:
            more: dict[str, Any] = {"head_dim": 64} if family == "qwen3" else {}
            model = tiny_model(family, **{**TINY, **more})
            plan = NARROWED if family == "mistral" else WITH_EVERYTHING
            folder = tmp_path_factory.mktemp(family)
            made[family, known] = _subject(model, plan, folder, 256, f"tiny-{family}", known=known)
        return made[family, known]

    return make


@pytest.fixture(scope="session")
def make_subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Subject]:
    """Make a subject of a model, a plan with its modules, and prompts."""

    def make(
        model: BlockModel, plan: Plan, modules: Mapping[Any, Any], prompts: tuple[tuple[int, ...], ...], name: str
    ) -> Subject:
        from pdtrim_core.execution.two_phase import TwoPhaseModel

        export = _export(model, plan, modules, tmp_path_factory.mktemp("made"), name)
        return Subject(model, TwoPhaseModel(model, plan, modules), plan, export, prompts)

    return make


@pytest.fixture(scope="session")
def real(smollm: BlockModel, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The 135M model with blocks gone at both ends and in the middle, a merged pair, and K/V alone of one block."""
    decode = Removal([Drop(0), Drop(14), Merge(23, 24), Drop(29)])
    plan = Plan(prefill=Removal([Drop(0), Drop(14), KvOnly(20)]), decode=decode)
    return _subject(smollm, plan, tmp_path_factory.mktemp("smollm"), 40000, "smollm")


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Make a pair that does not run yet."""

    def make(
        subject: Subject,
        *,
        connector: Connector = "nixl",
        kv_only: str = "attention",
        arguments: Sequence[str] = ("--enforce-eager",),
        decode: Sequence[str] = (),
    ) -> Pair:
        ids_alone = () if subject.export.name == "smollm" else ("--skip-tokenizer-init",)
        engine = Engine(
            os.environ["PDTRIM_SERVE_PYTHON"],
            cpu=True,
            arguments={
                "both": (*SERVER_ARGS, *ids_alone, *arguments),
                "prefill": ("--additional-config", json.dumps({"pdtrim_kv_only": kv_only})),
                "decode": decode,
            },
            environment={"both": {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}},
            connector=connector,
        )
        return Pair(subject, engine, tmp_path_factory.mktemp("pair"))

    return make


@pytest.fixture(scope="module")
def run_pair(make_pair: Callable[..., Pair]) -> Iterator[Callable[..., Pair]]:
    """Start a pair; it is stopped behind the last test of the module, or when the module starts another."""
    started: list[Pair] = []

    def run(subject: Subject, **how: Any) -> Pair:
        while started:
            started.pop().close()
        started.append(make_pair(subject, **how))
        started[0].start("prefill", "decode", "proxy")
        return started[0]

    yield run
    for pair in started:
        pair.close()
