"""What is said of a pruned model that seems better than the dense one: by its objective, or by luck."""

from __future__ import annotations

from pdtrim_core.data.readings import Score

ERRORS = 2.0
"""Standard errors that a gain over the dense model may have before it is remarked on."""
LEAST_GAIN = 0.01
"""Points below which a gain is rounding."""
FEWEST_ITEMS = 8
"""Of fewer items the standard error itself is a guess."""


def remark(name: str, found: Score, dense: Score, *, items: str, objective: str) -> str | None:
    """Return what to say of a pruned model whose score is above the dense one's by more than two standard errors, else None.

    The standard error is paired over the items. `name` is what the model is called, `items` and `objective` what it was
    measured on and by.
    """
    gain, error = found - dense, found.error_of_gain_over(dense)
    if len(found.reading.items) < FEWEST_ITEMS or gain <= max(LEAST_GAIN, ERRORS * error):
        return None
    return (
        f"{name} beats the dense model by {gain:.2f} points on the {items} (standard error {error:.2f}): pruning teaches a "
        f"model nothing, so either '{objective}' takes damage for gain here, or what was found is luck; say "
        'objective = "kl", or take more items'
    )
