"""What works of each family of transformers, tried on tiny random models: `make families`.

Every type that `AutoModelForCausalLM` knows is tried in a process of its own, with limits of time and of memory. What comes of
it becomes docs/reference/families.md with `make docs`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from pdtrim_core import PdtrimError, PluginHost, load_plugins
from pdtrim_core.api import (
    BlockModel,
    Drop,
    DropPart,
    Exporter,
    ExportFacts,
    Item,
    KvOnly,
    Plan,
    Removal,
    Shrink,
    reason_of,
    shortened,
)
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.stage_modules import as_stage, steps_of
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.small_config import depth_of, small_model
from pdtrim_core.model.supported import check_config
from pdtrim_core.testing.contexts import recovery_context
from pdtrim_core.testing.contracts.small_run import run_with_plan, small_run
from pdtrim_core.testing.models import ByteTokenizer

TRIED = Path(__file__).parents[1] / "docs/results/families/tried.json"
BLOCKS, SECONDS, BYTES, NEAR, DRAWS = 6, 60, 8 << 30, 1e-3, 3
"""Blocks of a tiny model, limits of a try (seconds of a processor), how far two logits of float32 may be apart, and
how many draws of items a model with routers has."""
PLANS = (
    Plan(decode=Removal([Drop(2)])),
    Plan(decode=Removal([Drop(0), Drop(4)])),
    Plan.unified(Removal([Drop(1), Drop(5)])),
    Plan(prefill=Removal([KvOnly(4)])),
)
SETTINGS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
"""What the config of a type is given, without which it makes no tiny model."""


def config_of(kind: str) -> tuple[Any, Any]:
    """Return a type's config with the sizes that it has by itself, and its class; of a nested one that of its text part.

    Raises `PdtrimError` for one that is refused for what it says.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    settings = SETTINGS.get(kind, {})
    config = CONFIG_MAPPING[kind](**settings)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if model_class.config_class is type(config) and config.is_encoder_decoder:
        # Its decoder can stand alone, and the config of such a checkpoint says so.
        settings = {**settings, "is_encoder_decoder": False}
        config = CONFIG_MAPPING[kind](**settings)
    check_config(config, kind)
    count = depth_of(config)
    if count is not None and count < BLOCKS:
        config = CONFIG_MAPPING[kind](**{"num_hidden_layers": BLOCKS, **settings})
    if config.sub_configs.get("text_config") is model_class.config_class:
        config = config.get_text_config()
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return config, model_class


def tried(kind: str, host: PluginHost) -> dict[str, str]:
    """Return what works of a type, "yes" or the reason why not by column; or why it is refused, or could not be tried."""
    try:
        config, model_class = config_of(kind)
    except PdtrimError as error:
        return {"refused": str(error).removeprefix(f"{kind}: ")}
    except Exception as error:  # noqa: BLE001 - each config checks itself in its own way
        return {"not tried": reason_of(error)}
    try:
        made = small_model(model_class, config, blocks=BLOCKS)
    except Exception as error:  # noqa: BLE001 - each architecture trips over its config in its own way
        return {"not tried": reason_of(error).removeprefix("no tiny model of its architecture can be made and run: ")}
    try:
        layout = host.find_blocks(made, kind)
        model = BlockModel(made, ByteTokenizer(), layout, name=kind)
    except PdtrimError as error:
        return {"refused": str(error).removeprefix(f"{kind}: ")}
    found = {"blocks": layout.blocks}
    for column, check in CHECKS.items():
        try:
            found[column] = check(model, host) or "yes"
        except Exception as error:  # noqa: BLE001 - what is not refused in words is found here
            found[column] = f"no: {reason_of(error, kind=not isinstance(error, PdtrimError))}"
    return found


def some_items(count: int = 3, seed: int = 0) -> list[Item]:
    """Return items of random tokens, one with choices of several tokens."""
    rng = Random(seed)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, 250) for _ in range(length))

    shapes = [(5, (3, 2)), (9, (2, 2)), (12, (4,))][:count]
    return [
        Item((tokens(prompt),), tuple(tokens(length) for length in choices), 0, (1,) * len(choices), f"item {number}")
        for number, (prompt, choices) in enumerate(shapes)
    ]


def on_some_items(model: BlockModel, count: int, apart: Callable[[list[Item]], float]) -> float:
    """Return how far apart two ways to run a model are on random items; where tokens are routed, on those that are nearest.

    A router to which two experts are as good as equal takes the one or the other by the last digits, which are a processor's own.
    With other items that does not come again, and a fault does.
    """
    routed = any("expert" in name for name, _ in model.model.named_parameters())
    worst = math.inf
    for seed in range(DRAWS if routed else 1):
        worst = min(worst, apart(some_items(count, seed)))
        if worst <= NEAR:
            break
    return worst


def scores(model: BlockModel, host: PluginHost) -> str:
    """Compare the dense model's log-probabilities with those of the model's own forward."""
    del host

    def apart(items: list[Item]) -> float:
        worst = 0.0
        staged = StagedModel(PrefixCache(model, ExecutionOptions()), Plan()).loglikelihoods(items)
        for item, sums in zip(items, staged, strict=True):
            for number, (choice, found) in enumerate(zip(item.choices, sums, strict=True)):
                prompt = item.prompt_of(number)
                with torch.inference_mode():
                    logits = model.model(input_ids=torch.tensor([[*prompt, *choice]]), use_cache=False).logits[0].float()
                logprobs = logits.log_softmax(-1)
                own = sum(float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(choice))
                worst = max(worst, abs(own - found))
        return worst

    return _near(on_some_items(model, 3, apart))


def phases(model: BlockModel, host: PluginHost, plans: Sequence[Plan] = PLANS) -> str:
    """Compare scoring in one pass with two phases."""
    del host
    cache = PrefixCache(model, ExecutionOptions())

    def apart(plan: Plan, items: list[Item]) -> float:
        worst, two_phase = 0.0, TwoPhaseModel(model, plan)
        for item, sums in zip(items, StagedModel(cache, plan).loglikelihoods(items), strict=True):
            for number, (choice, found) in enumerate(zip(item.choices, sums, strict=True)):
                logprobs = two_phase.continuation_logits(item.prompt_of(number), choice).log_softmax(-1)
                worst = max(worst, abs(sum(float(logprobs[at, token]) for at, token in enumerate(choice)) - found))
        return worst

    return _near(max(on_some_items(model, 2, partial(apart, plan)) for plan in plans))


def generation(model: BlockModel, host: PluginHost) -> str:
    """Compare greedy generation of the dense model in two phases with the model's own forward, run again for each token."""
    del host
    prompt = list(some_items(1)[0].prompt_of(0))
    made, text = TwoPhaseModel(model, Plan()).generate(prompt, 5), list(prompt)
    for token in made:
        with torch.inference_mode():
            logits = model.model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        if logits.max() - logits[token] > NEAR:
            return f"no: token {len(text) - len(prompt)} is another one"
        text.append(token)
    return ""


def pruners(model: BlockModel, host: PluginHost) -> str:
    """Score a plan that removes heads and channels, in one pass and in two phases."""
    parts: dict[str, Shrink] = {}
    for part in ("attention", "mlp"):
        if model.units(0).has(part) and model.units(0).count(part) > 1:
            parts[part] = Shrink(1, part, (0,))
    if not parts:
        return "no: its projections are fused or those of experts"
    problem = phases(model, host, [Plan.unified(Removal(list(parts.values())))])
    return problem or " and ".join({"attention": "heads", "mlp": "channels"}[part] for part in parts)


def parts(model: BlockModel, host: PluginHost) -> str:
    """Score plans that drop the attention or the MLP of blocks alone, in one pass and in two phases."""
    found = model.parts
    if not found.modules:
        return f"no: {next(iter(found.refused.values()))}"
    plans = [
        plan
        for part in found.modules
        for plan in (Plan.unified(Removal([DropPart(1, part)])), Plan(decode=Removal([DropPart(0, part), DropPart(3, part)])))
    ]
    return phases(model, host, plans) or " and ".join({"attention": "attention", "mlp": "MLP"}[part] for part in found.modules)


def experts(model: BlockModel, host: PluginHost) -> str:
    """Score plans that remove experts: as many from both stages, and more from decode, in one pass and in two phases."""
    named = [number for number, block in enumerate(model.blocks) if any("expert" in name for name, _ in block.named_parameters())]
    if not named:
        return "none"
    gone: list[tuple[Shrink, Shrink]] = []
    for block in named:
        known = model.units(block).experts
        if known is None:
            return "no: it is not certain which module holds them, and which is their router"
        groups = known.routing.groups_of(known.count)
        some, more = (
            tuple(expert for group in groups for expert in group[: min(count, len(group) - known.routing.least)])
            for count in (1, 2)
        )
        if some:
            gone.append((Shrink(block, "experts", some), Shrink(block, "experts", more)))
    if not gone:
        return "no: each token goes to all of them"
    few, many = (Removal(of_stage) for of_stage in zip(*gone, strict=True))
    return phases(model, host, [Plan.unified(few), Plan(decode=few), Plan(prefill=few, decode=many)])


def recovery(model: BlockModel, host: PluginHost) -> str:
    """Let `fold` make up for a block; where it has no place for it that is no fault."""
    if not model.layout.mlp:
        return "no: its MLP has no projection of its own"
    rng = Random(0)
    texts = [[rng.randrange(10, 250) for _ in range(20)] for _ in range(max(24, model.config.hidden_size // 4))]
    notes: list[str] = []
    context = recovery_context(model, PLANS[0], texts, note=notes.append)
    fold = host.find("recovery", "fold").component.model_validate({"fit": "map"})
    fold.recover(context)  # type: ignore[attr-defined]
    return f"no: {notes[0].partition(': ')[2]}" if notes else ""


def export(model: BlockModel, host: PluginHost) -> str:
    """Write the decode model, read it again, and compare its logits."""
    import transformers

    plan, ids = Plan.unified(Removal([Drop(1), Drop(3)])), torch.tensor([list(some_items(3)[2].prompt_of(0))])
    with as_stage(model, steps_of(model, plan, "decode", {})), torch.inference_mode():
        expected = model.model(input_ids=ids, use_cache=False).logits
    exporter = host.find("exporter", "checkpoints").component()
    assert isinstance(exporter, Exporter)
    with tempfile.TemporaryDirectory() as folder:
        list(exporter.export(run_with_plan(model, plan, Path(folder)), model, Path(folder)))
        # By its class, as the text part of a model that sees has no type of its own.
        (name,) = json.loads((Path(folder) / "decode/config.json").read_text(encoding="utf-8"))["architectures"]
        read = getattr(transformers, name).from_pretrained(Path(folder) / "decode", dtype=torch.float32).eval()
    with torch.inference_mode():
        return _near(float((read(input_ids=ids, use_cache=False).logits - expected).abs().max()))


def could(name: str) -> Callable[[BlockModel, PluginHost], str]:
    """Return a check that asks an exporter whether it takes the model."""

    def ask(model: BlockModel, host: PluginHost) -> str:
        exporter = host.find("exporter", name).component()
        assert isinstance(exporter, Exporter)
        facts = ExportFacts(model.name, Path("nowhere"), lambda: model.model.config)
        problems = exporter.problems(facts)
        return f"no: {problems[0].removeprefix(f'{model.name}: ')}" if problems else ""

    return ask


CHECKS: dict[str, Callable[[BlockModel, PluginHost], str]] = {
    "scores": scores,
    "one pass = two phases": phases,
    "generation = its own": generation,
    "channel pruners": pruners,
    "parts": parts,
    "experts": experts,
    "recovery": recovery,
    "export + reload": export,
    "GGUF": could("gguf"),
    "vLLM classes": could("vllm"),
}


def _near(worst: float) -> str:
    return "" if worst <= NEAR else f"no: off by {worst:.2g}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what other libraries say of tiny models from the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def all_kinds() -> list[str]:
    """Return every type that `AutoModelForCausalLM` knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not kind.startswith("pdtrim_")]


def in_processes(kinds: Sequence[str], host: PluginHost, at_once: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Try types, each in a fork that is ended after a time; the libraries are imported once. Yield each as it comes."""
    small_run()
    running: dict[int, tuple[str, int]] = {}
    waiting = list(kinds)
    while waiting or running:
        while waiting and len(running) < at_once:
            kind = waiting.pop(0)
            out, into = os.pipe()
            pid = os.fork()
            if pid == 0:
                _in_fork(kind, host, into)
            os.close(into)
            running[pid] = kind, out
        pid, _ = os.wait()
        kind, out = running.pop(pid)
        with os.fdopen(out) as pipe:
            told = pipe.read()
        yield kind, json.loads(told) if told else {"not tried": f"it takes more than {SECONDS} s or {BYTES >> 30} GB"}


def _in_fork(kind: str, host: PluginHost, into: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(10 * SECONDS)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with quiet():
        found = tried(kind, host)
    os.write(into, json.dumps({column: shortened(text, 300) for column, text in found.items()}).encode())
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="types to try; all of them if none is named")
    parser.add_argument("--json", type=Path, default=TRIED, help="where to write what was found")
    parser.add_argument("--more", action="store_true", help="keep what is there already; try the others, or those named")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(options.json.read_text(encoding="utf-8"))["families"] if options.json.is_file() and options.more else {}
    kinds = options.kinds or [kind for kind in all_kinds() if kind not in found]
    with quiet():
        for kind, told in in_processes(kinds, load_plugins(), options.processes):
            found[kind] = told
            print(f"{kind}: {told.get('refused') or told.get('not tried') or 'opened'}", file=sys.stderr, flush=True)
            data = {"transformers": importlib.metadata.version("transformers"), "families": dict(sorted(found.items()))}
            options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    refused, untried = (sum(why in one for one in found.values()) for why in ("refused", "not tried"))
    opened = len(found) - refused - untried
    print(f"{len(found)} types in {time.monotonic() - start:.0f} s: {opened} opened, {refused} refused, {untried} not tried")


if __name__ == "__main__":
    main()
