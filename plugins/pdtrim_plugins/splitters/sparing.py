"""Giving elements back to prefill: the trial plan, and what it brought."""

from __future__ import annotations

from pdtrim_core.api import Element, Plan, Score


def keep_in_prefill(plan: Plan, *elements: Element) -> Plan:
    """Return the plan whose prefill keeps what these elements remove."""
    return Plan(prefill=plan.prefill.without(*elements), decode=plan.decode)


def gain_over(before: Score, after: Score) -> float:
    """Return a gain to the digits that points have: 4.1 - 1.1 must reach a threshold of 3."""
    return round(after - before, 4)
