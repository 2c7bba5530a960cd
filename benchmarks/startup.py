"""How long listings take to start, against a bare start of Python and against importing torch.

    python benchmarks/startup.py [--runs 7] [--json FILE]

Each is a process of its own, timed from outside, in turn, so that a machine that slows down slows all of them. The goal
is about half a second for `plugins` and `describe`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = str(Path(sys.executable).with_name("pdtrim-core"))
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "plugins": [PROGRAM, "plugins"],
    "describe": [PROGRAM, "describe", "annealing"],
}


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each command, after one that is not counted")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(options.runs + 1):
        for name, command in COMMANDS.items():
            seconds = seconds_of(command)
            if turn:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        spread = f"{min(times[name]):.2f} to {max(times[name]):.2f}"
        print(f"{name:14} {median:6.2f} s   ({spread})   {median / medians['import torch']:5.2f} x import torch")
    if options.json:
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        figures = {"machine": machine, "seconds": medians, "ratio": medians["plugins"] / medians["import torch"]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
