"""Run folders of many sorts, made without a run: what a page must be able to show."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from pdtrim_core.api import (
    AnswerSample,
    Drop,
    Fidelity,
    KvOnly,
    Merge,
    Metric,
    Outcome,
    Plan,
    Reading,
    RecoveryResult,
    Removal,
    SavedPlan,
    SearchStep,
    Shrink,
    TaskResult,
)
from pdtrim_core.plan.plan_file import plan_to_json
from pdtrim_core.results.outcome import Cost, Environment, Gain, MergeResult, Row, Sets, Value
from pdtrim_core.results.task_results import ItemAnswer, Variant, write_result

RECIPE: dict[str, Any] = {
    "recipe": 1,
    "seed": 0,
    "out": "runs/example",
    "plugins": [],
    "model": {"use": "hub", "path": "some-maker/Some-Model-70B-Instruct"},
    "prune": {"blocks": 5},
    "scorer": {"use": "cosine"},
    "searcher": {"use": "annealing", "t0": 15.0},
    "splitter": {"use": "gain", "threshold": 3.0, "unit": "score"},
    "objective": {"use": "accuracy"},
    "report": [{"use": "html"}],
}
DENSE, UNIFIED, STAGED = 71.9, 60.2, 66.4


def value(score: float, error: float = 2.8, items: int = 256) -> Value:
    return Value(score / 100, score, error, items)


def outcome(plan: Plan | None, block_count: int, **changes: Any) -> Outcome:
    """Return what a run of that plan could have said."""
    rng = Random(block_count)
    scores = [
        0.01 if b == 0 else min(0.995, 0.93 + 0.06 * math.sin(b / block_count * 3) + rng.gauss(0, 0.01))
        for b in range(block_count)
    ]
    pairs = [min(0.99, (a + b) / 2 - 0.01) for a, b in pairwise(scores)]
    name, weights = "some-maker/Some-Model-70B-Instruct", "0" * 64
    saved = None if plan is None else json.loads(SavedPlan(plan, name, weights, block_count).to_json())
    kinds = {"dense": DENSE, "unified": UNIFIED, **({} if plan is None else {"staged": STAGED})}
    made = Outcome(
        model=name,
        license="Apache-2.0",
        block_count=block_count,
        objective="accuracy",
        saved_plan=saved,
        block_scores=tuple(scores),
        pair_scores=tuple(pairs),
        sets=Sets((), (), (), 0.95),
        rows=tuple(Row(kind, value(score), value(score - 3, items=64)) for kind, score in kinds.items()),
        gains=tuple(Gain(str(e), 5.0 - 0.7 * n, 1.5, kept_in_prefill=n < 3) for n, e in enumerate(plan.decode if plan else ())),
        costs=(
            Cost("parameters of prefill", "weights", 70.6e9, 62.1e9),
            Cost("parameters of decode", "weights", 70.6e9, 61.0e9),
            Cost("prefill work for 1024 tokens", "FLOPs", 1.43e14, 1.21e14),
            Cost("decode weight traffic", "bytes a token", 1.41e11, 1.22e11),
            Cost("K/V shipped to decode", "bytes a prompt token", 327_680, 286_720),
        ),
        notes=("splitter gain: the threshold of 3 points is below the standard error of a gain (3.1 points)",),
        seconds={"open the model": 4.2, "search": 3671.0, "write": 0.1},
        peak_memory=3 * 2**30,
        candidates={"measured": 36, "remembered": 4, "cut_short": 12},
        environment=Environment(
            {"python": "3.11.7", "torch": "2.13.0"}, "Linux x86_64, 2 cores", 2, "cpu", weights, "1" * 64, "2" * 64
        ),
        recipe=RECIPE,
        norms=tuple(10.0 * 1.06**block for block in range(block_count + 1)),
        search=walked(),
    )
    return replace(made, **changes)


def figures(kl: float, top1: float, tau: float, perplexity: float, *, lost: float = 0.0, won: float = 0.0) -> dict[str, Metric]:
    """Return the figures of a variant beside the dense model; there is no p where nothing was lost or won."""
    of_dense = not kl
    return {
        "kl": Metric(kl, kl / 9, higher_is_better=False),
        "top1": Metric(top1, 0.0 if of_dense else 0.0123),
        "acceptance": Metric(1 - kl / 2, 0.0 if of_dense else 0.009),
        "tau": Metric(tau, 0.0 if of_dense else 0.11),
        "perplexity": Metric(perplexity, 1.31, higher_is_better=False),
        "length": Metric(1.0 + kl / 4, 0.04),
        "loops": Metric(kl / 5, 0.03, higher_is_better=False),
        "right_to_wrong": Metric(lost, 0.03, higher_is_better=False),
        "wrong_to_right": Metric(won, 0.02),
        "flips_p": Metric(1.0 if of_dense else 0.0391),
    }


GROUND = " the Earth's gravity, which pulls every apple that drops toward the ground.<|im_end|>"
SAMPLES = (
    AnswerSample(
        "physics-1",
        "...as every child knows.\nQuestion: Which force pulls a dropped apple toward the ground?\nAnswer:",
        {"dense": GROUND, "unified": GROUND.replace("which", "and it"), "staged": GROUND},
    ),
    AnswerSample(
        "code-2",
        "Write a page that says <b>hello</b> & nothing else:",
        {"dense": "<script>alert('x')</script>", "unified": "", "staged": "<script>alert('x') " + "again" * 40},
    ),
    AnswerSample(
        "text-3",
        "Once upon a time",
        {"dense": " there was a king. " * 12, "unified": " there was" + " a king" * 40, "staged": " there was a king."},
    ),
)


def fidelity(*, staged: bool = True, recovered: bool = False) -> Fidelity:
    """Return how near the variants of a run could be to the dense model."""
    if recovered:
        near = fidelity()
        before = figures(0.7161, 0.695, 2.44, 47.1, lost=0.125, won=0.0469)
        variants = {**near.variants, "staged": figures(0.3794, 0.788, 2.91, 32.7, lost=0.0781, won=0.0313)}
        placed = {name: before if name == "unrecovered" else variants[name] for name in ORDER}
        answers = [{**one.answers, "unrecovered": one.answers["unified"][:30]} for one in SAMPLES]
        samples = tuple(
            replace(one, answers={name: of[name] for name in ORDER}) for one, of in zip(SAMPLES, answers, strict=True)
        )
        return replace(near, variants=placed, samples=samples, nearer=Metric(0.4329, 0.0503), recovered=Metric(0.3367, 0.0212))
    variants = {
        "dense": figures(0.0, 1.0, 4.0, 21.4),
        "unified": figures(0.8123, 0.664, 2.31, 57.9, lost=0.1406, won=0.0469),
        "staged": figures(0.4011, 0.781, 2.87, 36.2, lost=0.0781, won=0.0313),
    }
    names = list(variants)[: 3 if staged else 2]
    samples = tuple(replace(one, answers={name: one.answers[name] for name in names}) for one in SAMPLES)
    return Fidelity(64, 64, {name: variants[name] for name in names}, Metric(0.4112, 0.0503) if staged else None, samples)


ORDER = ("dense", "unified", "unrecovered", "staged")


def along(start: float, end: float, count: int = 64) -> tuple[float, ...]:
    """Return a divergence by the place of a token: high at first, and lower from there on."""
    rng = Random(round(1000 * start))
    return tuple(end + (start - end) * math.exp(-place / 9) + rng.random() * end / 6 for place in range(count))


def recovery() -> tuple[RecoveryResult, ...]:
    """Return what recoveries could come to: two in closed form, one that was left out, and a training with its losses."""
    rng = Random(3)
    losses = tuple(0.9 * math.exp(-step / 60) + 0.33 + rng.gauss(0, 0.03) for step in range(200))
    before, fitted, folded, trained = along(1.3, 0.66), along(1.25, 0.6), along(0.8, 0.34), along(0.7, 0.29)

    def one(name: str, start: float, end: float, curves: tuple[tuple[float, ...], tuple[float, ...]]) -> RecoveryResult:
        of_start, of_end = (Metric(value, value / 12, higher_is_better=False) for value in (start, end))
        in_decode = {"prefill": 0, "decode": 995_328}
        return RecoveryResult(name, of_start, of_end, 200, 25_600, 38.2, end < start, in_decode, (), *curves)

    in_prefill = {"prefill": 442_368, "decode": 0}
    return (
        replace(one("kv-refit", 0.7161, 0.6688, (before, fitted)), seconds=9.4, changed=in_prefill),
        one("fold", 0.6688, 0.3794, (fitted, folded)),
        replace(one("rescale", 0.3794, 0.4012, (folded, fitted)), seconds=4.0),
        replace(one("distill", 0.3794, 0.3301, (folded, trained)), texts=3907, tokens=500_096, seconds=2211.0, losses=losses),
    )


def walked(count: int = 37) -> tuple[SearchStep, ...]:
    """Return the steps of a walk that cools down."""
    rng, current = Random(1), 48.0
    steps = [SearchStep("3, 5", "3, 5", current, current)]
    for number in range(count - 1):
        temperature = 15 * 0.85**number
        floor = current + temperature * math.log(1 - rng.random())
        score = round(rng.gauss(52 + number / 4, 6), 4)
        if score >= floor:
            current = score
        told = score if score >= floor or number % 3 else None
        blocks = ", ".join(str(block) for block in sorted(rng.sample(range(30), 5)))
        steps.append(SearchStep(blocks, blocks, told, score if told else score + 4, floor, temperature))
    return tuple(steps)


def big() -> Outcome:
    """80 blocks, of which 17 are removed; prefill keeps three of them."""
    gone = [Drop(block) for block in range(40, 74, 2)]
    return outcome(Plan(Removal(gone[3:]), Removal(gone)).truncated_prefill(80), 80, fidelity=fidelity())


def merged() -> Outcome:
    """Merges of two and of three blocks, one of which prefill keeps as K/V only; a drop."""
    three, two, frozen = Merge(8, 10), Merge(13, 12), Merge(20, 21, "frozen")
    decode = Removal([three, two, frozen, Drop(25)])
    plan = Plan(Removal([three, KvOnly(12), Drop(25)]), decode).truncated_prefill(30)
    results = (
        MergeResult((8, 9, 10), None, 0.748, 0.31, 0.8, kept=True, chosen=True),
        MergeResult((12, 13), 0.9617, 3.73, 1.64, 3.33, kept=True, chosen=True),
        MergeResult((15, 16), 0.9669, 3.73, 3.64, 3.33, kept=False, chosen=False),
        MergeResult((20, 21), 0.9548, 23.3, 5.24, 20.36, kept=True, chosen=True),
    )
    return outcome(plan, 30, merges=results, fidelity=fidelity())


def recovered() -> Outcome:
    """A pair that recovery made good again."""
    gone = [Drop(block) for block in (13, 14, 15, 17, 19)]
    recipe = {**RECIPE, "recovery": [{"use": one.name} for one in recovery()]}
    plan = Plan(Removal([KvOnly(block) for block in range(26, 30)]), Removal(gone))
    return outcome(plan, 30, fidelity=fidelity(recovered=True), recovery=recovery(), recipe=recipe)


def narrowed() -> Outcome:
    """Heads and channels of all blocks, found by a pruner: no scores, no search, many gains."""
    thin = [Shrink(block, part, (0, 1)) for block in range(32) for part in ("attention", "mlp")]
    recipe = {**{key: of for key, of in RECIPE.items() if key not in ("scorer", "searcher")}, "pruner": {"use": "llm-pruner"}}
    return outcome(
        Plan(Removal(thin[3:]), Removal(thin)), 32, block_scores=(), pair_scores=(), norms=(), search=(), recipe=recipe
    )


def joint() -> Outcome:
    """A prefill that passes by many blocks, keeping their K/V."""
    decode = Removal(Drop(block) for block in (5, 6, 7, 8, 9))
    return outcome(Plan(Removal([Drop(5), Drop(6), *(KvOnly(b) for b in range(20, 30))]), decode), 30)


def replaced() -> Outcome:
    """A model that was replaced as a whole: no plan, no block diagram."""
    recipe = {key: of for key, of in RECIPE.items() if key not in ("scorer", "searcher", "splitter")}
    nothing: dict[str, Any] = {"block_scores": (), "pair_scores": (), "norms": (), "search": (), "gains": (), "notes": ()}
    return outcome(
        None,
        30,
        recipe={**recipe, "pruner": {"use": "slicegpt"}},
        sets=Sets((), (), (), None),
        fidelity=fidelity(staged=False),
        **nothing,
    )


def write_run(folder: Path, of: Outcome, *, tasks: bool = False) -> Path:
    """Write a finished run's folder."""
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(of.to_json())
    if tasks:
        write_tasks(folder)
    return folder


def write_unfinished(folder: Path) -> Path:
    """Write the folder of a run that stopped in its search."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(
        'out = "runs/x"\n[model]\nuse = "hub"\npath = "some/model"\n[searcher]\nuse = "annealing"\n'
    )
    whole = outcome(Plan(), 30)
    scores = {"index_base": 0, "block": whole.block_scores, "pair": whole.pair_scores, "similarity": True}
    (folder / "scores.json").write_text(json.dumps(scores))
    plans = [Plan(), *(Plan.unified(Removal([Drop(block), Drop(block + 1)])) for block in range(1, 12))]
    lines = []
    for number, plan in enumerate(plans):
        cut = number % 4 == 3
        reading = Reading(None if cut else 60.0 - number, None if cut else 0.6, (1.0, 0.0), 100.0, 62.0 - number)
        lines.append(json.dumps({"part": "calibration", "plan": plan_to_json(plan), **vars(reading)}))
    (folder / "journal.jsonl").write_text("\n".join(lines) + '\n{"part": "calib')
    return folder


SIDES: tuple[Variant, ...] = ("dense", "unified", "staged")


def write_tasks(folder: Path) -> None:
    """Write results of benchmarks: shares, a perplexity, one without an error, one task with two numbers of shots."""
    rng = Random(7)
    for task in ("mmlu", "arc_challenge", "hellaswag", "piqa", "winogrande", "humaneval"):
        for variant, loss in zip(SIDES, (0.0, 0.11, 0.06), strict=True):
            error = None if task == "humaneval" else 0.021
            metric = Metric(round(0.4 + 0.3 * rng.random() - loss, 4), error)
            write_result(folder, result(task, variant, metric, "acc", limit=50))
    for variant, loss in zip(SIDES, (13.2, 19.9, 15.125), strict=True):
        write_result(folder, result("wikitext", variant, Metric(loss, 0.2, higher_is_better=False), "word_perplexity"))
    for shots in (0, 5):
        write_result(folder, result("boolq", "staged", Metric(0.6 + shots / 50, 0.03), "acc", num_fewshot=shots))


def result(task: str, variant: Variant, metric: Metric, main: str, **settings: Any) -> TaskResult:
    answers = (ItemAnswer("0", {main: metric.value}, 1),)
    return TaskResult(task, variant, {main: metric}, main, answers, {"variant": variant, **settings}, {"lm_eval": "0.4"}, 1.0)
