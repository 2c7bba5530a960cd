"""The page of one run."""

from __future__ import annotations

import json

import tomli_w

from pdtrim_core import Outcome, RunRecord
from pdtrim_plugins.reports.html import choice, fidelity, reading, recovery, sections
from pdtrim_plugins.reports.html.parts import Page, Part, Section, Table, Text, Tile, number, words
from pdtrim_plugins.reports.html.sentences import sentence
from pdtrim_plugins.reports.html.wording import amount, change, counted, duration, with_error

TILES = {
    "decode weight traffic": "weights decode reads",
    "prefill work for 1024 tokens": "prefill work",
    "K/V shipped to decode": "K/V shipped",
}
"""The costs shown at the top, by their names in an outcome."""


def single(record: RunRecord) -> Page:
    """Return the page of a run, finished or not."""
    outcome = record.outcome
    if outcome is None:
        found = [
            choice.best_section(record),
            choice.similarity_section(record),
            choice.search_section(record),
            sections.tasks_section(record),
        ]
        return Page(
            record.name,
            _model_of(record),
            sentence(record),
            "Not finished: run its recipe again to continue where it stopped.",
            sections=[*found, sections.serve_section(record), made_section(record)],
        )
    return Page(
        record.name,
        outcome.model,
        sentence(record),
        tiles=tiles(outcome),
        sections=[
            sections.diagram_section(outcome),
            reading.reading_section(outcome),
            sections.results_section(outcome),
            fidelity.fidelity_section(outcome),
            recovery.recovery_section(outcome),
            sections.tasks_section(record),
            sections.costs_section(outcome),
            choice.similarity_section(record),
            choice.search_section(record),
            sections.gains_section(outcome),
            sections.merges_section(outcome),
            sections.notes_section(outcome),
            sections.serve_section(record),
            made_section(record),
        ],
    )


def _model_of(record: RunRecord) -> str:
    model = record.recipe.get("model", "")
    return str(model.get("path", "") if isinstance(model, dict) else model)


def tiles(outcome: Outcome) -> list[Tile]:
    """Return the figures at the top: the objective of the pair, and what it saves."""
    rows = {row.name: row.held_out or row.calibration for row in outcome.rows}
    last, dense = list(rows.values())[-1], rows["dense"]
    items = "held-out items" if outcome.rows[0].held_out else "items searched on"
    beside = f"dense {with_error(dense.score, dense.error)}, on {items}"
    found = [Tile(outcome.objective, with_error(last.score, last.error), beside)]
    costs = {cost.name: cost for cost in outcome.costs}
    return found + [
        Tile(label, change(cost.saved), f"{amount(cost.plan)} of {amount(cost.dense)} {cost.unit}")
        for name, label in TILES.items()
        if (cost := costs.get(name))
    ]


def made_section(record: RunRecord) -> Section:
    """Return how the run was made, collapsed at first: recipe, versions, machine, times."""
    parts: list[Part] = []
    environment = vars(record.outcome.environment) if record.outcome else record.environment
    if environment:
        body = [[words(name), words(str(version))] for name, version in environment.get("versions", {}).items()]
        others = [(key, value) for key, value in environment.items() if key != "versions" and value]
        body += [[words(key), words(value if isinstance(value, str) else json.dumps(value))] for key, value in others]
        parts.append(Table(["", ""], body, "Versions, machine, and hashes of the inputs", "Versions and machine"))
    if record.outcome:
        outcome = record.outcome
        times = [[words(step), number(seconds, f"{seconds:.1f}")] for step, seconds in outcome.seconds.items()]
        counts = outcome.candidates
        told = (
            f"{counted(counts['measured'], 'candidate')} measured, {counts['cut_short']} cut short, {counts['remembered']} "
            f"remembered; {duration(sum(outcome.seconds.values()))} in all, {outcome.peak_memory / 2**30:.1f} GiB at most"
        )
        parts.append(Table(["step", "seconds"], times, told, "Time and memory"))
    if record.recipe:
        parts.append(Text(tomli_w.dumps(dict(record.recipe)).strip(), "The recipe with all options"))
    licence = f"The model's licence: {record.outcome.license}." if record.outcome and record.outcome.license else ""
    return Section("made", "How this was made", licence, parts)
