"""Figures of a plan that reads along what the dense model wrote, or along a text: each token is compared, none is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pdtrim_core.execution.staged_model import ComparedToken
from pdtrim_core.fidelity.statistics import accepted, ratio
from pdtrim_core.results.task_results import Metric

DRAFT = 4
"""Tokens of a draft in speculative decoding."""
MOST_NATS = 69.0
"""Loss from which there is no perplexity: a plan that is so wrong is broken, and e to that power is beyond all bounds."""
Compared = Sequence[Sequence[ComparedToken]]
"""For each prompt the tokens of its continuation."""


def along_answers(compared: Compared) -> dict[str, Metric]:
    """Return the figures along the dense model's own answers, by name.

    `kl` is KL(dense || plan) in nats a token; `top1` the share of tokens where both find the same one likeliest; `acceptance` the
    chance that a token which the plan drafts is accepted by the dense model, and `tau` how many of a draft of 4 are. Of answers
    shorter than that no draft is begun; where all are, there is no `tau`.
    """
    counts = [float(len(tokens)) for tokens in compared]
    found = {
        "kl": ratio(_sums(compared, "divergence"), counts, higher_is_better=False),
        "top1": ratio(_sums(compared, "same"), counts, higher_is_better=True),
        "acceptance": ratio(_sums(compared, "overlap"), counts, higher_is_better=True),
    }
    drafts = [accepted([min(1.0, token.overlap) for token in tokens], DRAFT) for tokens in compared]
    if any(drafts):
        found["tau"] = ratio([math.fsum(of_one) for of_one in drafts], [float(len(d)) for d in drafts], higher_is_better=True)
    return found


def along_text(compared: Compared) -> dict[str, Metric]:
    """Return the figures along texts: `text_kl`, KL(dense || plan) in nats a token, and the `perplexity` behind the prompts.

    A plan that is broken has no `perplexity`.
    """
    counts = [float(len(tokens)) for tokens in compared]
    loss = ratio([-total for total in _sums(compared, "logprob")], counts, higher_is_better=False)
    found = {"text_kl": ratio(_sums(compared, "divergence"), counts, higher_is_better=False)}
    if loss.value < MOST_NATS:
        perplexity = math.exp(loss.value)
        error = None if loss.error is None else perplexity * loss.error
        found["perplexity"] = Metric(perplexity, error, higher_is_better=False)
    return found


def _sums(compared: Compared, name: str) -> list[float]:
    return [math.fsum(getattr(token, name) for token in tokens) for tokens in compared]
