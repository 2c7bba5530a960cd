"""What a closed form costs beside the forward passes that it is computed from: sums over tokens, and a solve, by width.

    python benchmarks/fold_cost.py [--width 576 4096 ...] [--tokens 4096] [--threads 2] [--json FILE]

`fold` fits a map of hidden size (`fit = "map"`), or of as many rows as the MLP has channels (`fit = "projection"`); `kv-refit`
fits one of hidden size. The sums are in float64 and grow with the tokens; the solve does not. Beside the seconds stand those of
a matrix product of as many operations in float32, which is what a forward pass is made of: their ratio says how many times as
long an operation takes here as there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from subject import environment, write

from pdtrim_core import load_plugins

DEFAULT_WIDTHS = (576, 1536, 4096)
"""Hidden size and channels of SmolLM2-135M, and the hidden size of models of 8B."""


def seconds(function: Callable[[], object]) -> float:
    """Return how long a function takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def row_of(width: int, tokens: int) -> dict[str, float]:
    """Return how long the sums and the solve of a map of one width take."""
    from pdtrim_plugins.recoveries.least_squares import RidgeSums

    rng = torch.Generator().manual_seed(0)
    given_ND, wanted_ND = (torch.randn(tokens, width, generator=rng) for _ in range(2))
    sums = RidgeSums()
    sums.add(given_ND[:1], wanted_ND[:1])
    summed = seconds(lambda: sums.add(given_ND, wanted_ND))
    solved = seconds(lambda: sums.solved(0.1, "it"))
    plain = seconds(lambda: (given_ND.T @ given_ND, given_ND.T @ wanted_ND))
    return {"width": width, "tokens": tokens, "sums": summed, "solve": solved, "float32": plain}


def main() -> None:
    """Time each width and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=DEFAULT_WIDTHS, help="widths of maps (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens that are summed over (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load_plugins()
    rows = [row_of(width, options.tokens) for width in options.width]
    for row in rows:
        print(
            f"width {row['width']:6}  sums over {row['tokens']} tokens {row['sums']:.2f} s  solve {row['solve']:.2f} s  "
            f"the same products in float32 {row['float32']:.2f} s"
        )
    write(options.json, {"benchmark": "fold_cost", "threads": options.threads, **environment()}, {"rows": rows})


if __name__ == "__main__":
    main()
