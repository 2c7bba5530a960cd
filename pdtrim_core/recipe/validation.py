"""Data checked against a pydantic model, each problem reported as one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pdtrim_core.errors import MOST_PROBLEMS, did_you_mean
from pdtrim_core.files.reading import problem_in
from pdtrim_core.results.old_formats import NOW_CALLED
from pdtrim_core.wording import shortened, shown

M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], data: Mapping[str, Any], place: str, problems: list[str], *, also: Iterable[str] = ()) -> M | None:
    """Return the model made from data, or None with what is wrong appended to `problems`; `place` names the data."""
    beyond = problem_in(data, finite=False)
    if beyond:
        problems.append(f"{place}: {beyond}" if place else beyond)
        return None
    try:
        # JSON in strict mode bends nothing: true is no number and "5" is none, but a list may become a tuple.
        return model.model_validate_json(json.dumps(dict(data), default=_no_json), strict=True)
    except ValidationError as error:
        # A file may have a hundred thousand wrong keys, and each sentence looks for the key that was meant.
        found = error.errors(include_url=False)
        problems += [_sentence(model, detail, place, also) for detail in found[:MOST_PROBLEMS]]
        if len(found) > MOST_PROBLEMS:
            problems.append(f"{place or 'besides'}: {len(found) - MOST_PROBLEMS} more of the kind")
    return None


def _no_json(value: object) -> dict[str, str]:
    """Return something that no option takes for a TOML value that JSON does not know: a date or a time."""
    return {type(value).__name__: str(value)}


def _sentence(model: type[BaseModel], detail: Mapping[str, Any], place: str, also: Iterable[str]) -> str:
    location = [shortened(str(part)) for part in detail["loc"] if not str(part).startswith("tag:")]
    key = ".".join([place, *location] if place else location)
    if detail["type"] == "extra_forbidden":
        now = NOW_CALLED.get(".".join(part for part in key.split(".") if not part.isdecimal()))
        if now is not None:
            return f"{key}: this is {now} since 0.2, which is given as well: leave {key} out"
        return f"{key}: unknown key{did_you_mean(location[-1], _keys_at(model, location[:-1], also))}"
    if detail["type"] == "missing":
        return f"{key}: required key is missing"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] in ("model_type", "model_attributes_type"):
        message = "must be a table"
    return f"{key}: {message} (got {shown(detail['input'])})"


def _keys_at(model: type[BaseModel], path: Sequence[str], also: Iterable[str]) -> list[str]:
    fields = model.model_fields
    for part in path:
        inner = _table_in(fields[part].annotation) if part in fields else None
        if inner is None:
            return []
        fields, also = inner.model_fields, ()
    return [*fields, *also]


def _table_in(annotation: Any) -> type[BaseModel] | None:
    """Return the table that a field holds, or may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((table for part in get_args(annotation) if (table := _table_in(part)) is not None), None)
