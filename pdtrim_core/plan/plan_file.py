"""Plans as JSON: what `plan.json` holds, with the model that a plan was made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

from pdtrim_core.errors import PlanError, reason_of
from pdtrim_core.files.reading import UnreadableError, parse_json
from pdtrim_core.plan.elements import MOST_BLOCKS, Removal, element_from_json, element_to_json
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.notebook import ladder, text_of
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.plan.selections import selection_from_json, selection_to_json
from pdtrim_core.wording import shortened, shown


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the two removals as JSON data, and the selections of K/V, if there are any."""
    selections = {"selections": [selection_to_json(selection) for selection in plan.selections]} if plan.selections else {}
    return {**{stage: [element_to_json(e) for e in plan.removal(stage)] for stage in ("prefill", "decode")}, **selections}


def plan_from_json(data: Mapping[str, Any]) -> Plan:
    """Return the plan that `plan_to_json` wrote; raises `PlanError` on anything else, or if its law is broken."""
    try:
        prefill, decode = (Removal(element_from_json(e) for e in data[stage]) for stage in ("prefill", "decode"))
        selections = tuple(selection_from_json(one) for one in data.get("selections", ()))
    except (KeyError, TypeError) as error:
        raise PlanError("not a plan: it needs lists called 'prefill' and 'decode'") from error
    return Plan(prefill=prefill, decode=decode, selections=selections)


PLAN_FORMAT, RECOVERED_FORMAT, QUANTIZED_FORMAT, SELECTED_FORMAT, PARTS_FORMAT, EXPERTS_FORMAT = 1, 2, 3, 4, 5, 6
"""The format of plans, of those whose layers have recovered weights, of those that have number formats of their own, of those
with selections of K/V, of those that drop the attention or the MLP of a block alone, and of those with fewer experts: earlier
versions would not look for them, or not know them."""


@dataclass(frozen=True)
class SavedPlan:
    """A plan together with the model it was made for and who makes the first token: what `plan.json` holds.

    `recovered` is a hash of the weights that recovery gave its layers, which lie beside it; empty where it has none. `formats`
    are the number formats of its stages, None where these have that of the model.
    """

    plan: Plan
    model: str
    fingerprint: str
    block_count: int
    first_token: FirstToken = "decode"
    recovered: str = ""
    formats: Formats | None = None

    @property
    def digest(self) -> str:
        """A SHA-256 of the text of `plan.json`: what the two stages of one pair have in common."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def _format(self) -> int:
        if self.plan.shrinks_experts:
            return EXPERTS_FORMAT
        if self.plan.drops_parts:
            return PARTS_FORMAT
        if self.plan.selections:
            return SELECTED_FORMAT
        return QUANTIZED_FORMAT if self.formats else RECOVERED_FORMAT if self.recovered else PLAN_FORMAT

    def to_data(self) -> dict[str, Any]:
        """Return what `plan.json` holds: only lists, dictionaries, texts and numbers."""
        return {
            "format": self._format,
            "index_base": 0,
            "model": {"name": self.model, "fingerprint": self.fingerprint, "blocks": self.block_count},
            "first_token": self.first_token,
            **({"recovered": self.recovered} if self.recovered else {}),
            **({"formats": self.formats.to_data()} if self.formats else {}),
            **plan_to_json(self.plan),
            "kv_map": [
                {"slot": s.slot, "block": s.block, "source": s.source, "removed_heads": list(s.removed_heads)}
                for s in self.plan.kv_map(self.block_count)
            ],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any], where: str = "plan.json") -> Self:
        """Return the plan that `to_data` gave. Raises `PlanError` naming `where` when it is something else."""
        try:
            if not isinstance(data, Mapping):
                raise TypeError("it is no table")
            found = data["format"]
            if found not in range(PLAN_FORMAT, EXPERTS_FORMAT + 1):
                raise PlanError(f"it has plan format {shown(found)}, this version reads {EXPERTS_FORMAT}: make the plan again")
            has_formats = found == QUANTIZED_FORMAT or (found > QUANTIZED_FORMAT and "formats" in data)
            model, formats = data["model"], Formats.from_data(data["formats"]) if has_formats else None
            has_recovered = found == RECOVERED_FORMAT or (found > RECOVERED_FORMAT and "recovered" in data)
            recovered = data["recovered"] if has_recovered else ""
            made_for = (model["name"], model["fingerprint"], model["blocks"])
            saved = cls(plan_from_json(data), *made_for, data["first_token"], recovered, formats)
            if found < PARTS_FORMAT and bool(saved.plan.selections) != (found == SELECTED_FORMAT):
                raise PlanError(f"plans of format {SELECTED_FORMAT} have selections of K/V, and no earlier ones have")
            if saved.plan.shrinks_experts != (found == EXPERTS_FORMAT):
                raise PlanError(f"plans of format {EXPERTS_FORMAT} have blocks with fewer experts, and no earlier ones do")
            if found <= PARTS_FORMAT and saved.plan.drops_parts != (found == PARTS_FORMAT):
                raise PlanError(f"plans of format {PARTS_FORMAT} drop parts of blocks, and no earlier ones do")
            saved._check_types()
            saved.plan.check_fits(saved.block_count)
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{where} is not a plan: {_reason(error)}") from error
        except PlanError as error:
            raise PlanError(f"{where}: {error}") from None
        return saved

    def to_json(self) -> str:
        """Return the text of `plan.json`; the same plan gives the same bytes."""
        return json.dumps(self.to_data(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "plan.json") -> Self:
        """Read what `to_json` wrote. Raises `PlanError` naming `where` when it is something else."""
        try:
            data = parse_json(text)
        except UnreadableError as error:
            reason = f"it is no JSON ({error.reason})" if error.syntax else error.reason
            raise PlanError(f"{where} is not a plan: {reason}") from error
        return cls.from_data(data, where)

    def _check_types(self) -> None:
        if type(self.block_count) is not int or not all(
            isinstance(text, str) for text in (self.model, self.fingerprint, self.recovered)
        ):
            raise TypeError("the model needs a name and a fingerprint, which are texts, and a number of blocks")
        if not 0 < self.block_count <= MOST_BLOCKS:
            raise PlanError(f"no model has {shown(self.block_count)} blocks: there are 1 to {MOST_BLOCKS:,}")
        if self.first_token not in get_args(FirstToken):
            raise TypeError(f"first_token is one of {', '.join(get_args(FirstToken))}, not {shown(self.first_token)}")

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return f"<p><b>{text_of(self.model)}</b>, first token by {self.first_token}</p>{ladder(self.plan, self.block_count)}"

    def check_meets(self, name: str, fingerprint: str) -> None:
        """Raise `PlanError` unless the model with this fingerprint is the one the plan was made for."""
        if fingerprint != self.fingerprint:
            raise PlanError(
                f"this plan was made for {self.model} ({self.fingerprint[:12]}), but {name} has other weights "
                f"({fingerprint[:12]}): run the recipe again on this model"
            )


def _reason(error: Exception) -> str:
    """Return why data are no plan: a key that is missing, or a value that cannot be."""
    return f"it has no '{shortened(str(error.args[0]))}'" if isinstance(error, KeyError) and error.args else reason_of(error)
