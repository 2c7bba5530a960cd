"""The section on how near the variants are to the dense model: figures, pictures, and answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdtrim_core.api import AnswerSample, Fidelity, Metric, Outcome, TaskResult
from pdtrim_plugins.reports import nearness
from pdtrim_plugins.reports.html import dots
from pdtrim_plugins.reports.html.parts import NOTHING, Answer, Answers, Cell, Figure, Part, Section, Table, number, words
from pdtrim_plugins.reports.html.wording import PLUS_MINUS, counted, plain

TITLE = "How near to the dense model"
SHARES = {"same likeliest token": "top1", "accepted by the dense model": "acceptance"}
"""What is drawn in percent, by its name in the picture."""
ALONG_ANSWERS = (
    "Along the dense model's own answers: KL divergence in nats a token, the share of tokens where both find the same one "
    "likeliest, the chance that the dense model accepts a token, and tau, how many it accepts of a draft of 4"
)
ON_ITEMS = (
    "Perplexity of the items' own texts; items lost (from right to wrong) and won, with McNemar's p; of the variant's own "
    "answers those that loop, and their length as a multiple of the dense model's"
)


def fidelity_section(outcome: Outcome) -> Section:
    """Show how near each variant is to the dense model; a run that did not measure it has no such section."""
    found = outcome.fidelity
    if found is None:
        return Section("fidelity", TITLE)
    said = nearness.verdict(found, PLUS_MINUS)
    measured = (
        f"Measured on {counted(found.items, 'held-out item')}, with answers of at most {counted(found.answer_tokens, 'token')}."
    )
    if found.own_answers is not None:
        measured += f" Loops and lengths are those of the variants' own answers to {found.own_answers} of the items."
    later = (nearness.verdict_on_formats(found, PLUS_MINUS), nearness.verdict_on_selection(found, PLUS_MINUS))
    told = filter(None, (said, *later))
    lead = " ".join([*(f"{one[:1].upper()}{one[1:]}." for one in told), measured])
    return Section("fidelity", TITLE, lead, [*_pictures(found), *_tables(found), *_samples(found.samples)])


def is_shown_there(result: TaskResult, outcome: Outcome | None) -> bool:
    """Tell whether a result is the one that the section has of its variant, and so none of the benchmarks."""
    found = None if outcome is None else outcome.fidelity
    return found is not None and result.task == "fidelity" and dict(result.metrics) == found.variants.get(result.variant)


def _pictures(found: Fidelity) -> list[Part]:
    looks = {variant: dots.VARIANTS[variant] for variant in found.variants if variant in dots.VARIANTS}
    divergence = {"KL divergence": _dots(found, "kl", 1)}
    shares = {title: _dots(found, name, 100) for title, name in SHARES.items()}
    parts: list[Part] = []
    if any(divergence.values()):
        picture = dots.dots(
            "fidelity-kl", divergence, looks, title="KL divergence from the dense model", unit="nats a token", digits=3
        )
        parts.append(
            Figure(picture, "Zero is the dense model itself: lower is nearer. Bars are one standard error to either side.")
        )
    if any(shares.values()):
        picture = dots.dots("fidelity-shares", shares, looks, title="Agreement with the dense model", unit="percent of tokens")
        parts.append(Figure(picture, "Higher is nearer: all tokens of the dense model agree with themselves."))
    return parts


def _dots(found: Fidelity, name: str, scale: float) -> dict[str, dots.Dot]:
    return {
        variant: dots.Dot(scale * metric.value, None if metric.error is None else scale * metric.error)
        for variant, metrics in found.variants.items()
        if (metric := metrics.get(name)) is not None
    }


def _tables(found: Fidelity) -> list[Part]:
    answers = {"KL": ("kl", 3, 1), "top-1, %": ("top1", 1, 100), "accepted, %": ("acceptance", 1, 100), "tau": ("tau", 2, 1)}
    loops = {"loops, %": ("loops", 1, 100), "length": ("length", 2, 1)}
    along, on_items = [], []
    for variant, metrics in found.variants.items():
        name = words(variant, strong=variant == "staged")
        along.append([name, *(_cell(metrics, *how) for how in answers.values())])
        own = [_cell(metrics, *how) for how in loops.values()]
        on_items.append([name, _cell(metrics, "perplexity", 1), *_flips(metrics), *own])
    head = ["", "perplexity", "lost, %", "won, %", "p", *loops]
    return [_filled(["", *answers], along, ALONG_ANSWERS), _filled(head, on_items, ON_ITEMS)]


def _filled(head: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str) -> Table:
    """Return a table without the columns that have nothing."""
    kept = [column for column in range(len(head)) if any(row[column].text for row in rows)]
    return Table([head[column] for column in kept], [[row[column] for column in kept] for row in rows], caption)


def _cell(metrics: Mapping[str, Metric], name: str, digits: int, scale: float = 1) -> Cell:
    metric = metrics.get(name)
    if metric is None:
        return NOTHING
    return number(scale * metric.value, nearness.with_error(metric, digits, PLUS_MINUS, scale=scale))


def _flips(metrics: Mapping[str, Metric]) -> list[Cell]:
    found = nearness.flips(metrics)
    if found is None:
        return [NOTHING] * 3
    return [number(value, plain(value, digits)) for value, digits in zip(found, (1, 1, 2), strict=True)]


def _samples(samples: Sequence[AnswerSample]) -> list[Part]:
    return [
        Answers(
            f"Held-out prompt {place} of {len(samples)}",
            sample.prompt,
            [_answer(variant, text.strip(), dense) for variant, text in sample.answers.items()],
        )
        for place, sample in enumerate(samples, start=1)
        for dense in [sample.answers.get("dense", "").strip()]
    ]


def _answer(variant: str, text: str, dense: str) -> Answer:
    """Return an answer with what of it is the dense model's: up to the first word that differs."""
    if variant == "dense":
        return Answer(variant, text)
    if text == dense:
        return Answer(variant, text, about="the same as dense")
    common = next((at for at, (a, b) in enumerate(zip(text, dense, strict=False)) if a != b), min(len(text), len(dense)))
    begins = max((at + 1 for at, letter in enumerate(text[:common]) if letter.isspace()), default=0)
    if common == len(text):
        return Answer(variant, text, about="ends before dense does")
    place = len(text[:begins].split()) + 1
    return Answer(variant, text[:begins], text[begins:], about=f"differs from word {place} on")
