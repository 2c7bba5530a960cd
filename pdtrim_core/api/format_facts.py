"""What a quantizer can know of the layers that it is to give a number format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FormatFacts:
    """The model's name in messages, its `model_type`, the formats that are asked for, and the layers that they are for.

    `inputs` has how many numbers each linear layer takes, by its name, which says the block and the stage too where these matter.
    """

    model: str
    family: str
    schemes: tuple[str, ...]
    inputs: Mapping[str, int]
