"""The number formats of a pair's stages, as a plan has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from pdtrim_core.plan.elements import Stage


@dataclass(frozen=True)
class Formats:
    """What formats the linear layers of each stage have, and who gave them; None where a stage has that of the model.

    `weights` is a hash of the quantised weights, which lie beside the plan.
    """

    quantizer: str
    prefill: str | None
    decode: str | None
    weights: str

    def of(self, stage: Stage) -> str | None:
        """Return the format of a stage."""
        return self.prefill if stage == "prefill" else self.decode

    def __str__(self) -> str:
        named = [f"{stage} {scheme}" for stage, scheme in (("prefill", self.prefill), ("decode", self.decode)) if scheme]
        return f"{', '.join(named)} by {self.quantizer}"

    def to_data(self) -> dict[str, Any]:
        """Return this as JSON data."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Return what `to_data` gave. Raises `TypeError` or `KeyError` for anything else."""
        found = cls(data["quantizer"], data["prefill"], data["decode"], data["weights"])
        if not isinstance(found.quantizer, str) or not isinstance(found.weights, str):
            raise TypeError("formats have the name of a quantizer and a hash of weights, which are texts")
        if not all(scheme is None or isinstance(scheme, str) for scheme in (found.prefill, found.decode)):
            raise TypeError("the format of a stage is a text, or null")
        if found.prefill is None and found.decode is None:
            raise TypeError("formats are of one stage at least")
        return found
