"""The sections about why these blocks: how alike blocks are, and what the search tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdtrim_core.api import Outcome, Plan, Reading, RunRecord, SearchStep
from pdtrim_plugins.reports.html import depth
from pdtrim_plugins.reports.html.ladder import ladder
from pdtrim_plugins.reports.html.parts import NOTHING, Figure, Part, Section, Table, number, words
from pdtrim_plugins.reports.html.sections import blocks_table, lost_blocks
from pdtrim_plugins.reports.html.walk import best_of, paths, walk
from pdtrim_plugins.reports.html.wording import plain

SEARCHED_PARTS = ("calibration", "untrained")
"""The parts of a journal that a search measured; other parts were measured once it was over."""
HEAT = "Below, the same scores as a heat map: the fuller a cell, the higher the score."


def similarity_section(record: RunRecord) -> Section:
    """Show the scores of blocks and pairs, and the norms, by depth."""
    outcome = record.outcome
    blocks, pairs = _scores(record)
    norms = outcome.norms if outcome else record.scores.get("norms", ())
    parts: list[Part] = []
    if len(blocks) > 1:
        threshold = outcome.sets.threshold if outcome else None
        removed, merged = lost_blocks(outcome) if outcome else (set(), set())
        picture = depth.similarity(blocks, pairs, removed=removed, merged=merged, threshold=threshold)
        told = _caption(pairs, threshold, merged) if outcome else HEAT
        parts.append(Figure(picture, told))
    if norms:
        told = "The mean length of the hidden state of a token in front of each block, and behind the last one."
        parts.append(Figure(depth.norms(norms), told))
    if outcome and parts:
        parts.append(blocks_table(outcome))
    unknown = "" if norms else " Norms by depth are not known: no scorer of this run noted them."
    lead = (
        f"The higher its score, the less a block changes the stream, and the safer it looks to remove.{unknown}" if parts else ""
    )
    return Section("similarity", "Similarity by depth", lead, parts)


def _scores(record: RunRecord) -> tuple[Sequence[float], Sequence[float]]:
    if record.outcome:
        return record.outcome.block_scores, record.outcome.pair_scores
    return record.scores.get("block", ()), record.scores.get("pair", ())


def _caption(pairs: Sequence[float], threshold: float | None, merged: set[tuple[int, ...]]) -> str:
    if not pairs:
        return HEAT
    if threshold is None:
        return f"{HEAT} No threshold d_T: nothing was to be merged."
    above = sum(score >= threshold for score in pairs)
    reach = f"{above} of {len(pairs)} pairs reach" if above else "No pair reaches"
    framed = " Framed: pairs that decode merges." if merged else ""
    return f"{HEAT} {reach} the threshold d_T = {threshold:.4g}.{framed}"


def search_section(record: RunRecord) -> Section:
    """Show what the search tried; of a run without a record of it, what its journal has."""
    outcome = record.outcome
    if outcome and outcome.search:
        return _search(list(outcome.search), _dense(outcome), "candidate", "Every removal that the search measured, in order.")
    if "pruner" in record.recipe:
        return Section("search", "The search")
    steps, dense = journal_steps(record.readings)
    when = "has not noted which of them it went on from" if outcome else "is not over"
    return _search(steps, dense, "measurement", f"The plans in the journal, in order; the search {when}.")


def _search(steps: Sequence[SearchStep], dense: float | None, what: str, lead: str) -> Section:
    if not steps:
        return Section("search", "The search")
    taken = {place for way in paths(steps) for place in way}
    path = (
        " The line is the path taken: a worse candidate is taken now and then, the less often the colder it is." if taken else ""
    )
    short = any(step.score is None for step in steps)
    stopped = " Cut short: measuring stopped once a candidate could not reach what it had to." if short else ""
    caption = f"Up is better.{stopped}{path}"
    parts: list[Part] = [Figure(walk(steps, dense, what=what), caption), steps_table(steps, taken, best_of(steps))]
    return Section("search", "The search", lead, parts)


def _dense(outcome: Outcome) -> float | None:
    return next((row.calibration.score for row in outcome.rows if row.name == "dense"), None)


def best_section(record: RunRecord) -> Section:
    """Show the best plan in the journal of a run that has not finished."""
    count = len(record.scores.get("block", ()))
    known = [
        (reading.score, plan)
        for part in SEARCHED_PARTS
        for plan, reading in record.readings.get(part, {}).items()
        if reading.score is not None and plan != Plan()
    ]
    if not known or not count:
        return Section("ladder", "The best so far")
    score, plan = max(known, key=lambda entry: entry[0])
    caption = f"It has {plain(score)} points; the search was not over, and nothing has been given back to prefill."
    return Section("ladder", "The best so far", parts=[Figure(ladder("ladder", plan, count), caption)])


def journal_steps(readings: Mapping[str, Mapping[Plan, Reading]]) -> tuple[list[SearchStep], float | None]:
    """Return the plans of a journal as steps of a search, and the dense model's points."""
    steps, dense = [], None
    for part in SEARCHED_PARTS:
        for plan, reading in readings.get(part, {}).items():
            if plan == Plan():
                dense = reading.score
                continue
            prefill, decode = (", ".join(map(str, plan.removal(stage))) for stage in ("prefill", "decode"))
            steps.append(SearchStep(prefill, decode, reading.score, reading.ceiling))
    return steps, dense


def steps_table(steps: Sequence[SearchStep], taken: set[int], best: int | None) -> Table:
    """Return every candidate of a search, folded away."""
    body, floors = [], any(step.floor is not None for step in steps)
    for place, step in enumerate(steps):
        cut_short = step.score is None
        verdict = "best" if place == best else "taken" if place in taken else "cut short" if cut_short else "left"
        score = f"at most {plain(step.ceiling)}" if step.score is None else plain(step.score)
        cells = [number(place + 1), words(step.decode), number(step.ceiling if step.score is None else step.score, score)]
        if floors:
            cells += [NOTHING if value is None else number(value, plain(value, 2)) for value in (step.floor, step.temperature)]
        body.append([*cells, words(verdict, strong=place == best)])
    head = ["", "decode loses", "score", *(["floor", "temperature"] if floors else []), ""]
    return Table(head, body, "Every candidate", "All candidates as a table")
