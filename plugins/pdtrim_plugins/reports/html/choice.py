"""The sections on why these blocks were chosen: the similarity of blocks, and what the search tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdtrim_core.api import Outcome, Plan, Reading, RunRecord, SearchStep
from pdtrim_plugins.reports.html import depth
from pdtrim_plugins.reports.html.diagram import block_diagram
from pdtrim_plugins.reports.html.parts import NOTHING, Figure, Part, Section, Table, number, words
from pdtrim_plugins.reports.html.sections import blocks_table, removed_blocks
from pdtrim_plugins.reports.html.walk import best_of, paths, walk
from pdtrim_plugins.reports.html.wording import plain

SEARCHED_PARTS = ("calibration", "untrained")
"""The parts of a journal that a search measured; other parts were measured after it."""
HEAT = "Below, the same scores as a heat map: the stronger its colour, the higher the score."


def similarity_section(record: RunRecord) -> Section:
    """Show the scores of blocks and pairs, and the norms, by depth."""
    outcome = record.outcome
    blocks, pairs = _scores(record)
    norms = outcome.norms if outcome else record.scores.get("norms", ())
    parts: list[Part] = []
    if len(blocks) > 1:
        threshold = outcome.sets.threshold if outcome else None
        removed, merged = removed_blocks(outcome) if outcome else (set(), set())
        picture = depth.similarity(blocks, pairs, removed=removed, merged=merged, threshold=threshold)
        caption = _caption(pairs, threshold, merged) if outcome else HEAT
        parts.append(Figure(picture, caption))
    if norms:
        caption = "The mean norm of a token's hidden state before each block, and after the last one."
        parts.append(Figure(depth.norms(norms), caption))
    if outcome and parts:
        parts.append(blocks_table(outcome))
    unknown = "" if norms else " Norms by depth are missing: no scorer of this run recorded them."
    lead = (
        f"The higher its score, the less a block changes the hidden states, and the safer its removal.{unknown}" if parts else ""
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
        return f"{HEAT} No threshold d_T: this run merges no blocks."
    above = sum(score >= threshold for score in pairs)
    reach = f"{above} of {len(pairs)} pairs reach" if above else "No pair reaches"
    outlined = " Outlined: pairs that decode merges." if merged else ""
    return f"{HEAT} {reach} the threshold d_T = {threshold:.4g}.{outlined}"


def search_section(record: RunRecord) -> Section:
    """Show what the search tried; for a run that did not record it, the contents of its journal."""
    outcome = record.outcome
    if outcome and outcome.search:
        return _search(list(outcome.search), _dense(outcome), "candidate", "Every removal that the search measured, in order.")
    if "pruner" in record.recipe:
        return Section("search", "The search")
    steps, dense = journal_steps(record.readings)
    when = "did not record which of them it continued from" if outcome else "has not finished"
    return _search(steps, dense, "measurement", f"The plans in the journal, in order; the search {when}.")


def _search(steps: Sequence[SearchStep], dense: float | None, what: str, lead: str) -> Section:
    if not steps:
        return Section("search", "The search")
    taken = {position for path in paths(steps) for position in path}
    path = " The line is the path taken: worse candidates are accepted too, less often as the temperature falls." if taken else ""
    short = any(step.score is None for step in steps)
    stopped = " Cut short: measuring stopped once a candidate could no longer reach the score it needed." if short else ""
    caption = f"Higher is better.{stopped}{path}"
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
        return Section("diagram", "The best plan so far")
    score, plan = max(known, key=lambda entry: entry[0])
    caption = f"Its score is {plain(score)}. The search has not finished, and the splitter has not chosen what prefill keeps."
    return Section("diagram", "The best plan so far", parts=[Figure(block_diagram("diagram", plan, count), caption)])


def journal_steps(readings: Mapping[str, Mapping[Plan, Reading]]) -> tuple[list[SearchStep], float | None]:
    """Return the plans of a journal as steps of a search, and the dense model's score."""
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
    """Return every candidate of a search, as a table that is collapsed at first."""
    body, floors = [], any(step.floor is not None for step in steps)
    for position, step in enumerate(steps):
        cut_short = step.score is None
        verdict = "best" if position == best else "taken" if position in taken else "cut short" if cut_short else "not taken"
        score = f"at most {plain(step.ceiling)}" if step.score is None else plain(step.score)
        cells = [number(position + 1), words(step.decode), number(step.ceiling if step.score is None else step.score, score)]
        if floors:
            cells += [NOTHING if value is None else number(value, plain(value, 2)) for value in (step.floor, step.temperature)]
        body.append([*cells, words(verdict, strong=position == best)])
    head = ["", "removed from decode", "score", *(["floor", "temperature"] if floors else []), ""]
    return Table(head, body, "Every candidate", "All candidates as a table")
