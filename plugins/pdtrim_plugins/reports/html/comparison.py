"""One page about several runs, side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pdtrim_core.api import Metric, Outcome, RunRecord, Value
from pdtrim_plugins.reports import nearness
from pdtrim_plugins.reports.html import dots, tasks
from pdtrim_plugins.reports.html.diagram import block_diagram
from pdtrim_plugins.reports.html.fidelity import TITLE
from pdtrim_plugins.reports.html.parts import NOTHING, Cell, Figure, Listing, Page, Part, Section, Table, number, words
from pdtrim_plugins.reports.html.sections import HELD_OUT, RESULTS_LEAD, SEARCHED
from pdtrim_plugins.reports.html.sentences import sentence
from pdtrim_plugins.reports.html.wording import change, counted, duration, joined, plain, with_error

Runs = Mapping[str, RunRecord]
FORMATS = "formats (prefill/decode)"
MOST_SERIES = 5
"""More series than this in one picture cannot be distinguished."""


def comparison(records: Sequence[RunRecord]) -> Page:
    """Return the page of several runs."""
    runs = _named(records)
    done = {name: record.outcome for name, record in runs.items() if record.outcome is not None}
    unfinished = [name for name in runs if name not in done]
    models = sorted({outcome.model for outcome in done.values()})
    warning = f"Not finished, and shown as far as they have got: {joined(unfinished)}." if unfinished else ""
    return Page(
        "Comparison of runs",
        joined(models),
        f"{counted(len(runs), 'run')} side by side: {joined(list(runs))}.",
        warning,
        sections=[
            _diagrams(runs),
            _results(done),
            _fidelity(done),
            _tasks(runs),
            _costs(done),
            _work(done),
            _recipes(runs),
            Section("notes", "Notes of the runs", parts=_notes(done)),
            Section("made", "How these were made", parts=[_environments(done)] if done else []),
        ],
    )


def _named(records: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Return the runs by the names of their folders, by their paths where two are called the same."""
    counts = Counter(record.name for record in records)
    return {record.name if counts[record.name] == 1 else str(record.path): record for record in records}


def _diagrams(runs: Runs) -> Section:
    parts: list[Part] = []
    for number_of_run, (name, record) in enumerate(runs.items()):
        outcome = record.outcome
        if outcome is None or outcome.saved_plan is None:
            parts.append(Listing([f"{name}: {sentence(record)}"]))
            continue
        picture = block_diagram(f"diagram-{number_of_run}", outcome.plan.plan, outcome.block_count, title=name)
        parts.append(Figure(picture, sentence(record), heading=name))
    return Section("diagram", "What each stage runs", parts=parts)


def _results(done: Mapping[str, Outcome]) -> Section:
    if not done:
        return Section("results", "Results")
    held_out = all(row.held_out for outcome in done.values() for row in outcome.rows)
    kinds = dict(zip(("dense", "unified", "staged"), dots.LOOKS, strict=False))
    rows = {
        name: {row.name: dots.Dot(value.score, value.error) for row in outcome.rows if (value := _of(row, held_out=held_out))}
        for name, outcome in done.items()
    }
    objectives = sorted({outcome.objective for outcome in done.values()})
    caption = f"On the {HELD_OUT if held_out else SEARCHED}; bars are one standard error to either side."
    pictures: list[Part] = [
        _scores({name: row for name, row in rows.items() if done[name].objective == one}, kinds, one, caption, objectives)
        for one in objectives
    ]
    body = []
    for name, outcome in done.items():
        found = {row.name: row for row in outcome.rows}
        cells = [
            _value(_of(found[kind], held_out=both)) if kind in found else NOTHING for kind in kinds for both in (False, True)
        ]
        body.append([words(name), *([words(outcome.objective)] if len(objectives) > 1 else []), *cells])
    head = [
        "run",
        *(["objective"] if len(objectives) > 1 else []),
        *(f"{kind}, {short}" for kind in kinds for short in ("searched on", "held out")),
    ]
    warning = "" if len(objectives) == 1 else " The runs have different objectives, whose scores cannot be compared."
    return Section(
        "results",
        "Results",
        f"{RESULTS_LEAD}{warning}",
        [*pictures, Table(head, body, "Scores of all runs")],
    )


def _scores(
    rows: Mapping[str, Mapping[str, dots.Dot]],
    kinds: Mapping[str, Mapping[str, Any]],
    objective: str,
    caption: str,
    objectives: Sequence[str],
) -> Figure:
    """Return the picture of the runs with one objective: scores of several cannot be compared, so they share no axis."""
    alone = len(objectives) == 1
    name = "results" if alone else f"results-{objectives.index(objective)}"
    title = "Results of all runs" if alone else f"Results of the runs with objective {objective}"
    picture = dots.dots(name, rows, kinds, title=title, unit=f"{objective}, score")
    return Figure(picture, caption, heading="" if alone else f"Objective {objective}")


def _of(row: Any, *, held_out: bool) -> Value | None:
    value: Value | None = row.held_out if held_out else row.calibration
    return value


def _value(value: Value | None) -> Cell:
    return NOTHING if value is None else number(value.score, with_error(value.score, value.error))


def _fidelity(done: Mapping[str, Outcome]) -> Section:
    """Show how near the pairs are to the dense model, before and after recovery where there was some."""
    near = {name: outcome.fidelity for name, outcome in done.items() if outcome.fidelity is not None}
    kl = {
        name: {variant: metrics["kl"] for variant, metrics in found.variants.items() if variant != "dense" and "kl" in metrics}
        for name, found in near.items()
    }
    shown = [variant for variant in dots.VARIANTS if any(variant in row for row in kl.values())]
    if not shown:
        return Section("fidelity", TITLE)
    rows = {
        name: {variant: dots.Dot(row[variant].value, row[variant].error) for variant in shown if variant in row}
        for name, row in kl.items()
    }
    looks = {variant: dots.VARIANTS[variant] for variant in shown}
    picture = dots.dots("fidelity-kl", rows, looks, title="KL divergence from the dense model", unit="nats a token", digits=3)
    recovers = any(done[name].recovery for name in near)
    has_formats = any(done[name].quantized for name in near)
    selects = any(done[name].selected for name in near)
    body = []
    for name, row in kl.items():
        cells = [words(name)]
        cells += [words(", ".join(nearness.kept_of(done[name].recovery)) or "none")] if recovers else []
        cells += [words(_formats(done[name]))] if has_formats else []
        cells += [_nats(row.get(variant)) for variant in shown]
        cells += [_nats(near[name].recovered)] if recovers else []
        cells += [_nats(near[name].quantized)] if has_formats else []
        cells += [_nats(near[name].selected)] if selects else []
        body.append(cells)
    head = ["run", *(["recovery"] if recovers else []), *([FORMATS] if has_formats else []), *shown]
    head += [*(["taken away by recovery"] if recovers else []), *(["added by formats"] if has_formats else [])]
    head += ["added by reading less"] if selects else []
    apart = len({done[name].environment.data for name in near}) > 1
    warning = " The runs held out different items, which cannot be compared to the last digit." if apart else ""
    caption = "Lower is nearer: the dense model itself would be at zero. Bars are one standard error to either side."
    return Section(
        "fidelity",
        TITLE,
        f"KL divergence along the dense model's own answers, on held-out items.{warning}",
        [Figure(picture, caption), Table(head, body, "KL divergence from the dense model, in nats a token")],
    )


def _formats(outcome: Outcome) -> str:
    """Return the number formats of prefill and of decode, once where they are the same."""
    formats = outcome.plan.formats if outcome.quantized else None
    if formats is None:
        return "none"
    prefill, decode = (scheme or "none" for scheme in (formats.prefill, formats.decode))
    return prefill if prefill == decode else f"{prefill}/{decode}"


def _nats(metric: Metric | None) -> Cell:
    return NOTHING if metric is None else number(metric.value, with_error(metric.value, metric.error, 3))


def _tasks(runs: Runs) -> Section:
    by_run = {name: tasks.by_task(record.results) for name, record in runs.items() if record.results}
    named = sorted({task for table in by_run.values() for task in table})
    columns = {
        f"{name}, {variant}": {task: row[variant] for task, row in table.items() if variant in row}
        for name, table in by_run.items()
        for variant in tasks.VARIANTS
        if any(variant in row for row in table.values())
    }
    body = []
    for task in named:
        row = {column: metrics[task] for column, metrics in columns.items() if task in metrics}
        best = tasks.best({f"{column}": metric for column, metric in row.items() if not column.endswith(", dense")})
        cells = [number(row[c].value, tasks.told(row[c]), strong=c in best) if c in row else NOTHING for c in columns]
        body.append([words(task), *cells])
    parts: list[Part] = []
    series = _series(by_run)
    shares = [t for t in named if all(tasks.is_share(metrics[t]) for metrics in columns.values() if t in metrics)]
    if shares and len(series) <= MOST_SERIES:
        rows = {task: {one: tasks.dot(metrics[task]) for one, metrics in series.items() if task in metrics} for task in shares}
        looks = dict(zip(series, dots.LOOKS, strict=False))
        picture = dots.dots("tasks", rows, looks, title="Benchmarks of all runs", unit="percent")
        parts.append(Figure(picture, "Bars are one standard error to either side."))
    if body:
        parts.append(
            Table(["task", *columns], body, "Shares in percent, other metrics in their own unit; the best below dense in bold")
        )
    return Section("tasks", "Benchmarks", parts=parts)


def _series(by_run: Mapping[str, tasks.Cells]) -> dict[str, dict[str, Metric]]:
    """Return what the picture of benchmarks shows: the pair of each run, and the dense model where all runs share it."""

    def of(table: tasks.Cells, variant: str) -> dict[str, Metric]:
        return {task: row[variant] for task, row in table.items() if variant in row}

    dense = [of(table, "dense") for table in by_run.values()]
    same = {task for metrics in dense for task in metrics if len({one[task].value for one in dense if task in one}) == 1}
    series = {"dense": {task: metric for metrics in dense for task, metric in metrics.items() if task in same}}
    series |= {name: of(table, "staged") or of(table, "unified") for name, table in by_run.items()}
    return {name: metrics for name, metrics in series.items() if metrics}


def _costs(done: Mapping[str, Outcome]) -> Section:
    if not done:
        return Section("costs", "What it saves")
    named = list(dict.fromkeys(cost.name for outcome in done.values() for cost in outcome.costs))
    found = {name: {cost.name: cost for cost in outcome.costs} for name, outcome in done.items()}
    rows = {
        name: {cost: dots.Dot(100 * (1 - costs[cost].saved)) for cost in named if cost in costs} for name, costs in found.items()
    }
    picture = dots.dots(
        "costs", rows, dict(zip(named, dots.LOOKS, strict=False)), title="Costs of all runs", unit="percent of the dense model's"
    )
    body = [
        [words(name), *(number(-costs[cost].saved, change(costs[cost].saved)) if cost in costs else NOTHING for cost in named)]
        for name, costs in found.items()
    ]
    caption = "What is left of each cost, computed from the sizes of the models; nothing was timed."
    head = ["run", *named]
    if any(outcome.quantized for outcome in done.values()):
        head.insert(1, FORMATS)
        for cells, outcome in zip(body, done.values(), strict=True):
            cells.insert(1, words(_formats(outcome)))
    table = Table(head, body, "Change of each cost from the dense model")
    return Section("costs", "What it saves", parts=[Figure(picture, caption), table])


def _work(done: Mapping[str, Outcome]) -> Section:
    body = []
    for name, outcome in done.items():
        finder = outcome.recipe.get("pruner") or outcome.recipe.get("searcher") or {}
        best = max((s.score for s in outcome.search if s.score is not None and s.may_win), default=None)
        counts = outcome.candidates
        seconds = sum(outcome.seconds.values())
        body.append(
            [
                words(name),
                words(str(finder.get("use", ""))),
                number(counts["measured"]),
                number(counts["cut_short"]),
                NOTHING if best is None else number(best, plain(best)),
                number(seconds, duration(seconds)),
            ]
        )
    head = ["run", "found by", "candidates measured", "cut short", "best score", "time"]
    return Section("search", "The search", parts=[Table(head, body, "What the search took")] if body else [])


def _recipes(runs: Runs) -> Section:
    """Show the keys in which the recipes differ."""
    flat = {name: dict(_leaves(record.recipe)) for name, record in runs.items()}
    keys = sorted({key for recipe in flat.values() for key in recipe if key != "out"})
    varying = [key for key in keys if len({recipe.get(key, "") for recipe in flat.values()}) > 1]
    body = [[words(key), *(words(recipe.get(key, "")) for recipe in flat.values())] for key in varying]
    parts = [Table(["key", *flat], body, "Keys of the recipes that differ")] if body else []
    return Section("recipes", "How the recipes differ", parts=parts)


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _notes(done: Mapping[str, Outcome]) -> list[Part]:
    told = [f"{name}: {note}" for name, outcome in done.items() for note in outcome.notes]
    return [Listing(told)] if told else []


def _environments(done: Mapping[str, Outcome]) -> Table:
    environments = [outcome.environment for outcome in done.values()]
    facts = [{**one.versions, "machine": one.machine, "device": one.device} for one in environments]
    keys = dict.fromkeys(key for of_run in facts for key in of_run)
    body = [[words(key), *(words(str(of_run.get(key, ""))) for of_run in facts)] for key in keys]
    return Table(["", *done], body, "Versions and machines", "Versions and machines")
