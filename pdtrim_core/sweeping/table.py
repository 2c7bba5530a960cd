"""The table of a sweep: a row a run, from the data that `pdtrim-core sweep --json` prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def _value(name: str, part: str) -> Callable[[Row], str]:
    """Return the column of a plan's score on some items, with its standard error."""

    def column(row: Row) -> str:
        # A run whose pruner replaced the whole model has nothing staged.
        found = row["values"].get(name, {}).get(part)
        return "" if found is None else f"{found['score']:.1f} +- {found['error']:.1f}"

    return column


def _held_out_or_searched(name: str) -> Callable[[Row], str]:
    """Return the column of a plan's value on the held-out items, or on those searched on where there are none."""

    def column(row: Row) -> str:
        return _value(name, "held_out")(row) or _value(name, "calibration")(row)

    return column


def _loses(stage: str) -> Callable[[Row], str]:
    """Return the column of what a stage loses."""

    def column(row: Row) -> str:
        return "another model" if row[stage] is None else ", ".join(row[stage]) or "-"

    return column


def _kl(row: Row) -> str:
    # Data that were written before there was fidelity have none; a run whose pruner replaced the whole model has nothing staged.
    of_variants = row.get("kl", {})
    found = of_variants.get("staged") or of_variants.get("unified")
    if found is None:
        return ""
    return f"{found['value']:.3f}" + ("" if found["error"] is None else f" +- {found['error']:.3f}")


def _change(cost: str) -> Callable[[Row], str]:
    """Return the column of what becomes of a cost."""

    def column(row: Row) -> str:
        saved = row["saved"].get(cost)
        return "" if saved is None else f"{round(-100 * saved, 1) + 0.0:+.1f} %"

    return column


def _merges(row: Row) -> str:
    return ", ".join("+".join(map(str, merge["pair"])) for merge in row["merges"] if merge["kept"]) or "-"


def _recovery(row: Row) -> str:
    # Data that were written before there was recovery have none.
    return ", ".join(result["name"] for result in row.get("recovery", ()) if result["kept"]) or "-"


COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "searched": ("searched", _value("unified", "calibration")),
    "dense": ("dense", _held_out_or_searched("dense")),
    "unified": ("unified", _held_out_or_searched("unified")),
    "staged": ("staged", _held_out_or_searched("staged")),
    "kl": ("KL, nats", _kl),
    "decode": ("decode loses", _loses("decode")),
    "prefill": ("prefill loses", _loses("prefill")),
    "initial": ("best scores", lambda row: ", ".join(str(block) for block in row["sets"]["initial"]) or "-"),
    "merges": ("merges to choose", _merges),
    "recovery": ("recovery", _recovery),
    "work": ("prefill work", _change("prefill work for 1024 tokens")),
    "kv": ("K/V shipped", _change("K/V shipped to decode")),
    "selected": ("blocks that read less", lambda row: str(len(row.get("selections") or ()) or "-")),
    "measured": ("measured", lambda row: str(row["candidates"]["measured"] + row["candidates"]["cut_short"])),
    "seconds": ("s", lambda row: f"{sum(row['seconds'].values()):.0f}"),
    "scores": ("block scores", lambda row: ", ".join(f"{score:.4g}" for score in row["block_scores"])),
}
"""The columns by name: the heading, and the cell of a run that is done.

`searched` is the found removal, in both stages, on the items that the search used; `dense`, `unified` and `staged` are values
on the held-out items, or on those searched on where there are none. `kl` is the divergence of the pair from the dense model along
its answers to the held-out prompts, in nats a token, as `compare` has it. `initial` is P_initial, the blocks of highest score.
`kv` are the K/V that a prompt of 1024 tokens hands over, and `selected` counts the blocks of decode that read only some of them.
"""
DEFAULT_COLUMNS = ("searched", "dense", "unified", "staged", "kl", "decode", "prefill", "work", "measured", "seconds")


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return a short form of each dotted key: its last part where that is unambiguous."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 and name != "use" else key for key, name in zip(keys, last, strict=True)}


def table_of(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of a sweep's table; a run that failed has its settings and no more."""
    # Fidelity is left out where no run has measured it.
    is_known = any(_kl(row) for row in data["rows"] if row["state"] == "done")
    columns = [COLUMNS[name] for name in data["columns"] if name != "kl" or is_known]
    names = ["run"] if any(row["name"] for row in data["rows"]) else []
    heading = [*names, *short_keys(data["settings"]).values(), *(title for title, _ in columns)]
    rows = []
    for row in data["rows"]:
        name = [row["name"] or "-"] if names else []
        settings = [shown(row["settings"][key]) if key in row["settings"] else "" for key in data["settings"]]
        rows.append([*name, *settings, *(cell(row) if row["state"] == "done" else row["state"] for _, cell in columns)])
    return heading, rows


def shown(value: Any) -> str:
    """Return the value of a setting as a cell."""
    if isinstance(value, dict) and "use" in value:
        rest = ", ".join(f"{key} = {shown(inner)}" for key, inner in value.items() if key != "use")
        return f"{value['use']} ({rest})" if rest else str(value["use"])
    return value if isinstance(value, str) else json.dumps(value)
