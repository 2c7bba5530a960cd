"""What a notebook shows of an outcome: the blocks of both stages, the results, how near to the dense model, what it saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pdtrim_core.plan.notebook import bars, ladder, table, text_of


def outcome_html(outcome: Any) -> str:
    """Return an outcome as HTML. Its class imports this module, which therefore does not name it."""
    return "".join(_parts(outcome))


def _parts(outcome: Any) -> Iterator[str]:
    yield f"<p><b>{text_of(outcome.model)}</b></p>"
    if outcome.saved_plan is not None:
        yield ladder(outcome.plan.plan, outcome.block_count)
    heading = (outcome.objective, "items searched on", "held-out items")
    yield table(heading, [(row.name, _value(row.calibration), _value(row.held_out)) for row in outcome.rows])
    found = outcome.fidelity.variants if outcome.fidelity is not None else {}
    near = {variant: metrics["kl"] for variant, metrics in found.items() if variant != "dense" and "kl" in metrics}
    if near:
        values = [(variant, metric.value, metric.error or 0.0) for variant, metric in near.items()]
        yield bars(values, "KL divergence from the dense model, nats a token (lower is nearer)")
    costs = [(cost.name, f"{cost.dense:,.0f}", f"{cost.plan:,.0f}", f"{-100 * cost.saved:+.1f} %") for cost in outcome.costs]
    yield table(("cost", "dense", "plan", "change"), costs)
    if outcome.notes:
        yield "<ul>" + "".join(f"<li>{text_of(note)}</li>" for note in outcome.notes) + "</ul>"


def _value(value: Any) -> str:
    return "" if value is None else f"{value.score:.1f} +- {value.error:.1f}"
