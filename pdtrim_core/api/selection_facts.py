"""What a selector of K/V can know before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SelectionFacts:
    """The model's name in messages, the name of the calibration source, and how long its prompts are.

    `prompt_tokens` has the tokens of each prompt whose K/V prefill hands over, of the calibration items that can be looked at:
    those that leave decode at least one token to run.
    """

    model: str
    calibration: str
    prompt_tokens: tuple[int, ...]
