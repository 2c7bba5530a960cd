# ruff: noqa: ISC004 - long sentences are written over several lines
"""The page of benchmarks, from the results that they wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from generator.benchmark_rows import (
    QUICKSTART_OTHERS,
    RECOVERY_KINDS,
    cache_rows,
    eval_row,
    fidelity_row,
    limit_row,
    list_rows,
    merge_row,
    parts_row,
    pruning_row,
    quality_row,
    quickstart_row,
    ray_rows,
    recovered_search_row,
    recovery_row,
    search_row,
    searcher_row,
    serve_rows,
    streaming_rows,
)
from generator.markup import table

PLAIN = (
    "merge_cost",
    "eval_speed",
    "fidelity_speed",
    "serve",
    "cache_budget",
    "streaming",
    "quickstart",
    "searchers",
    "limits",
    "quality",
    "parts",
    "recovery",
    "recovered_search",
    "fold_cost",
    "ray_speedup",
    "plan_lists",
)
"""Benchmarks whose results need no remarks, but for a note of their own."""
BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "results"


def benchmarks_page() -> str:
    """Return the page of results, from what the benchmarks wrote."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(BENCHMARKS.glob("*.json"))]
    sections: dict[str, tuple[str, str, list[str], Callable[[Mapping[str, Any]], list[list[str]]]]] = {
        "search_cost": (
            "Measuring candidates",
            "Plans that annealing visits, each measured by pdtrim-core and in the plain way (a physically pruned copy in "
            "lm-evaluation-harness' `HFLM`), in turn in one process. The ratio says how many candidates are measured while the "
            "plain way measures one. `As searched` stops measuring a candidate once it cannot be accepted any more; `whole` "
            "measures every item of every candidate, and compares the values.",
            ["items", "format", "as searched", "with set-up", "whole", "values that differ"],
            lambda result: [search_row(result)],
        ),
        "plan_lists": (
            "Lists of candidates",
            "Candidates of `sequential`, asked for one after the other and as lists, and in the plain way of the table above: "
            "how many are measured while the plain way measures one, in CPU time. Most of them begin as others do, and "
            "share hidden states. Each one whole is how a search asks that knows no floors; with a floor, each has to reach the "
            "best so far; of a list only the best is wanted. For certain (accuracy) most items must be measured of candidates "
            "that lie within a few points of each other; KL as recipes decide by tells them apart sooner. It is measured along "
            "right answers, of fewer tokens than the plain way runs. By `python benchmarks/plan_lists.py`, the latter with "
            "`--kl --error 0.05`.",
            ["items", "format", "objective", "plans", "asked for", "seconds", "against the plain way"],
            list_rows,
        ),
        "pruning_cost": (
            "A whole pruning",
            "Seconds from opened model to plan, against a loop that removes one block after the other and each time measures "
            "the removal of every block that is left, in the plain way. Neither merges. Both plans are then measured on held-out "
            "items.",
            ["items", "objective", "ours", "the loop", "ratio", "held-out items", "ours on these", "the loop on these"],
            lambda result: [pruning_row(result)],
        ),
        "merge_cost": (
            "One merge",
            "Seconds of wall-clock time to train one merged block with the distiller `mse` in ten epochs, each way in its own "
            "process. The plain way runs every batch from the first block on, in every epoch; ours keeps the hidden states "
            "before and after the pair. "
            "Memory is the peak memory of the process, Python and torch included, less the weights.",
            [
                "tokens",
                "lr",
                "threads",
                "ours",
                "the plain way",
                "ratio",
                "memory beyond the weights",
                "error before",
                "error after",
            ],
            lambda result: [merge_row(result)],
        ),
        "eval_speed": (
            "Evaluating",
            "Sets of tasks on the dense model: the model class of `pdtrim-core eval` and lm-evaluation-harness' own `HFLM`, task "
            "by task and in turn in one process. Seconds of CPU time, from loaded task to metrics.",
            [
                "tasks",
                "items of each",
                "format",
                "ours",
                "`HFLM`",
                "ratio",
                "ratio of wall-clock time",
                "metrics that differ",
                "nats a token",
            ],
            lambda result: [eval_row(result)],
        ),
        "cache_budget": (
            "Memory for hidden states",
            "One search under several values of `evaluation.cache_budget`, each with an empty prefix cache at its start. The "
            "numbers are the same under each, to the last bit. `Kept` is what hidden states take in the end, and seconds are CPU "
            "time. By `python benchmarks/cache_budget.py`.",
            ["items", "search", "cache_budget", "kept", "search takes", "less than with none"],
            cache_rows,
        ),
        "streaming": (
            "Weights that stay on the disk",
            'A model of random weights in bfloat16 with `placement = "stream"`. `Read` counts how often all weights were brought '
            "into memory, block by block, `from the disk` what the system had to read for it, as far as it had no room to keep "
            "the files in its own cache. Memory is the peak of the process, files included, less that of Python with all "
            "libraries loaded. Opening reads all weights to look for damage, and export is not counted as `read`. By "
            "`python benchmarks/streaming.py`.",
            ["model", "weights", "tokens", "step", "read", "from the disk", "memory", "seconds", "CPU seconds"],
            streaming_rows,
        ),
        "fidelity_speed": (
            "Fidelity",
            "Tokens a second at which KL to the dense model is measured along answers, for all plans together: each removes five "
            "blocks, drawn at random, from both stages. Ours lays each batch out once and runs the dense model once for all "
            "plans, which share what they begin with. The plain loop in transformers runs the dense model and a physically "
            "pruned copy on prompt and answer for each plan, with logits at the answer alone, one item at a time and in padded "
            "batches of 8: the faster of the two counts, timed on some of the plans. Rates are of CPU time.",
            [
                "model",
                "plans",
                "timed in the loop",
                "prompts",
                "tokens of answers",
                "ours",
                "the loop",
                "its rows a batch",
                "ratio",
                "KL apart",
            ],
            lambda result: [fidelity_row(of_model) for of_model in result["models"]],
        ),
        "quickstart": (
            "The quickstart",
            "The pair of `examples/quickstart.toml`, each seed with other texts to learn from, beside other plans of the same "
            "decode size: how much less its KL to the dense model is, in nats a token along the dense model's answers to 64 "
            "held-out questions and 64 pieces of prose, and beside its own decode to 128 pieces more, since these two differ "
            "least; paired over prompts. By `python benchmarks/quickstart.py`.",
            ["seed", "KL of the pair", "prefill FLOPs", *QUICKSTART_OTHERS, "more than 3 errors each"],
            lambda result: [quickstart_row(of_seed) for of_seed in result["rows"]],
        ),
        "searchers": (
            "Searchers",
            "Searchers with the same CPU minutes, all with the objective `kl` under the prefill that `kv-tail` makes: the KL of "
            "the pair on held-out items, in nats a token, mean over seeds, and how much more it is than that of `sequential`, "
            "paired over items. By `python benchmarks/searchers.py`.",
            ["model", "weights", "searcher", "seeds", "minutes", "KL", "more than `sequential`", "plans measured"],
            lambda result: [searcher_row(result, row) for row in result["rows"]],
        ),
        "limits": (
            "What searching could reach",
            "The default search, and what it could have found among the same blocks: the best of all single swaps of its plan, "
            "of removals at random, of all combinations of the blocks that cost least alone, each taken on the items that are "
            "searched on. KL of the pair on held-out items, in nats a token, and how much more it is than that of the default "
            "search, paired over items. By `python benchmarks/limits.py`.",
            ["model", "taken from", "decode loses", "KL", "more than the default search", "plans measured"],
            lambda result: [limit_row(result, row) for row in result["rows"]],
        ),
        "recovery": (
            "Recovery",
            "How far a pair is from the dense model before and after its layers get other weights: KL(dense || pair) in nats a "
            "token, on the tokens behind the prompts of texts that nothing was computed from: such as the dense model writes, "
            "and running text. Beside it stand the standard error of what is taken away, paired over texts, and its share, "
            "and the most memory that the process held while it recovered, with the interpreter and the model. By "
            "`python benchmarks/recovery.py`.",
            ["model", "pair", "recovery", "learned from", *RECOVERY_KINDS, "seconds", "GB held"],
            lambda result: [recovery_row(result, row) for row in result["rows"]],
        ),
        "recovered_search": (
            "A search that knows of recovery",
            "Searches of the same minutes, each followed by the same recovery; candidates are measured as they are, or with "
            "an estimate of what recovery would make of them. KL(dense || recovered pair) in nats a token, on texts that nothing "
            "was chosen on, and beyond that of the search that measures candidates as they are, with its standard error, paired "
            "over texts and seeds. By `python benchmarks/recovery.py --search MINUTES`.",
            ["model", "searcher", "candidates are measured", "minutes", "seeds", *RECOVERY_KINDS],
            lambda result: [recovered_search_row(result, row) for row in result["rows"]],
        ),
        "fold_cost": (
            "What a closed form costs",
            "Seconds to sum over tokens in float64, and to solve for the map of `fold` or `kv-refit`, by its width; beside them "
            "the same matrix products in float32, as a forward pass has them. By `python benchmarks/fold_cost.py`.",
            ["width", "tokens", "sums", "solve", "the same products in float32"],
            lambda result: [
                [str(row["width"]), f"{row['tokens']:,}", *(f"{row[key]:.2f} s" for key in ("sums", "solve", "float32"))]
                for row in result["rows"]
            ],
        ),
        "quality": (
            "Pairs of all pruners",
            "Pairs with the same decode bytes, and what decode runs in both stages (`unified`): KL to the dense model along its "
            "answers to so many items of each of eight benchmarks, in nats a token, and beyond that of the best pruner that is "
            "not ours and has the same help, paired over items. `ours` is the preset `default`, `ours, blocks` the default "
            "search over blocks; `recovery` is what all are helped with, `closed` being the closed forms that recipes have by "
            "default. By `python benchmarks/quality.py --data DIR`; `--items 16` is the quick one.",
            [
                "model",
                "items",
                "method",
                "variant",
                "recovery",
                "decode bytes",
                "prefill FLOPs",
                "K/V",
                "KL",
                "beyond the best baseline",
                "KL on a text",
            ],
            lambda result: [quality_row(result, row) for row in result["rows"]],
        ),
        "parts": (
            "Blocks against parts",
            "KL of decode under a dense prefill, in nats a token on held-out items, where a step of it reads as many bytes, or "
            "takes as long, as without so many whole blocks; between two sizes of a plan it is interpolated, and a dash stands "
            "where no plan of a way is so small or so large. By `python benchmarks/parts.py`.",
            ["context", "way", "bytes of a step", "KL at these bytes", "seconds of a step", "KL at this time"],
            lambda result: [parts_row(row) for row in result["rows"]],
        ),
        "ray_speedup": (
            "Workers",
            "Seconds of the same `sequential` search with one Ray worker and with more, of one thread each, on processors of one "
            "machine, in wall-clock time; and the memory of each worker: all of it, and what it does not share with others. By "
            "`python benchmarks/ray_speedup.py`.",
            ["model", "workers", "plans measured", "search", "times as fast as with one", "memory of each", "its own"],
            ray_rows,
        ),
        "serve": (
            "Serving",
            "Tokens a second of decode in vLLM on a CPU, a dense pair and a pruned one in turn, in wall-clock time. A step reads "
            "the weights once and the K/V of each request, so the ratio of bytes is the largest speedup that pruning can give; "
            "the last column is the share of it that was reached.",
            ["vLLM", "blocks removed", "requests at a time", "dense", "pruned", "ratio", "ratio of bytes", "reached"],
            serve_rows,
        ),
    }
    parts = [
        "# Benchmarks",
        "Each ratio compares two things that were timed in one run, as the scripts under `benchmarks/` wrote it to "
        "`benchmarks/results/`. Unless stated otherwise it is a ratio of CPU time, which is less affected by other load on the "
        "machine. To run one of the benchmarks again:",
        "<!-- not run: takes minutes, and needs lm_eval -->\n\n```sh\npython benchmarks/search_cost.py --json "
        "benchmarks/results/search-cost-float32.json\npython docs/generate.py\n```",
    ]
    for name, (title, about, header, rows) in sections.items():
        own = [result for result in results if result["benchmark"] == name]
        if own:
            lines = [line for result in own for line in rows(result)]
            parts += [f"## {title}", about, table(header, lines)]
            parts += [f"- {line}" for result in own for line in remarks(result)]
    for result in (result for result in results if result["benchmark"] == "refinement"):
        parts += ["## Other pruners, refined", refinement_about(result), refinement_table(result)]
    machines = sorted({f"{r['machine']}, {r['threads']} thread{'s' * (r['threads'] > 1)}; {versions_of(r)}" for r in results})
    return "\n\n".join([*parts, "## Machine", *machines])


def refinement_about(result: Mapping[str, Any]) -> str:
    """Return what a result of `refinement` compares."""
    return (
        "Each pruner removes as many parameters as five blocks have; the splitter keeps in prefill each element that gains "
        f"{result['threshold']:g} percent of the unified score. Compared on {result['items']} that neither "
        f"saw, by the margin as it was in 0.1, {result['dtype']}. The difference is staged less unified, in nats, "
        "paired over items."
    )


def refinement_table(result: Mapping[str, Any]) -> str:
    """Return the plans of each pruner, the same in both stages and with a prefill of its own."""
    header = ["pruner", "decode loses", "prefill saves", "kept in prefill", "unified", "staged", "difference"]
    rows = [
        [
            f"`{one['pruner']}`",
            f"{one['decode']:.1%} of parameters",
            f"{one['prefill']:.1%} of FLOPs",
            f"{one['given_back']} of {one['elements']}",
            f"{one['unified']:.2f}",
            f"{one['staged']:.2f}",
            f"{one['difference']:+.3f} +- {one['error']:.3f}",
        ]
        for one in result["pruners"]
    ]
    return table(header, rows)


def versions_of(result: Mapping[str, Any]) -> str:
    """Return the versions that a result was made with."""
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return further remarks on a result: where the time goes, or which plans were found."""
    if result["benchmark"] in PLAIN:
        return [result["note"]] if "note" in result else []
    if result["benchmark"] == "search_cost":
        shares = result["shares"]
        floor = sum(share for part, share in shares.items() if part.startswith("matrix"))
        told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        return [
            f"{search_row(result)[1]}: {told}. With its matrix products alone a candidate would take {floor:.0%} of its time, "
            f"so at most a factor of {1 / floor:.1f} is left to gain. {result['cut_short']} of "
            f"{result['compared']} plans were stopped early; set-up took {result['once_seconds']:.1f} s. "
            f"In wall-clock time: {result['ratio']:.1f} x as searched, at a load of {result['load']}."
        ]
    gain, plans = result["held_out"]["gain"], result["plans"]
    return [
        f"{result['objective']}: ours is {plans['ours']}; the loop removes {plans['theirs']} in {result['measurements']} "
        f"measurements. Ours less the loop's, item by item: {gain['mean']:.3f} +- {gain['mean_error']:.3f} {result['unit']}. In "
        f"wall-clock time, measured one after the other: {result['clock']['ratio']:.1f} x."
    ]
