"""The tables of the page about number formats, from what `benchmarks/formats.py` wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from generator.benchmarks import versions_of
from generator.markup import table

KINDS = ("generated", "answers", "text", "long text")
"""Kinds of text, of which a result may lack the last two."""


def formats_table(data: Mapping[str, Any], part: str) -> str:
    """Return one table of a result; the part "where" is a sentence on how it was made."""
    return PARTS[part](data)


def _kinds(row: Mapping[str, Any]) -> list[str]:
    return [kind for kind in KINDS if kind in row]


def _kl(found: Mapping[str, float]) -> str:
    return f"{found['kl']:.4f} +- {found['error']:.4f}"


def _at_bytes(data: Mapping[str, Any]) -> str:
    rows = data["at_bytes"]
    kinds = _kinds(rows[0])
    read = [f"{row['decode_bytes'] / 1e6:.1f} MB" for row in rows]
    figures = [[_kl(row[kind]) for kind in kinds] for row in rows]
    lines = [[row["format"], str(row["gone"]), *cells] for row, *cells in zip(rows, read, strict=True)]
    header = ["decode's format", "blocks gone", "decode reads a token", *kinds]
    return table(header, [[*line, *own] for line, own in zip(lines, figures, strict=True)])


def _damage(data: Mapping[str, Any]) -> str:
    lines = [
        [
            row["change"],
            kind,
            *(_kl(row[stage][kind]) for stage in ("decode", "prefill")),
            f"{row['ratio'][kind]['ratio']:.2f} +- {row['ratio'][kind]['error']:.2f}",
        ]
        for row in data["damage"]
        for kind in _kinds(row["ratio"])
    ]
    return table(["change", "texts", "in decode alone", "in prefill alone", "ratio"], lines)


def _orders(data: Mapping[str, Any]) -> str:
    rows = data["orders"]
    kinds = _kinds(rows[0])
    cells = [[f"{_kl(row[kind])} ({row[kind]['beyond']:+.4f})" for kind in kinds] for row in rows]
    return table(["order", *kinds], [[row["way"], *own] for row, own in zip(rows, cells, strict=True)])


def _where(data: Mapping[str, Any]) -> str:
    kinds = ", ".join(_kinds(data["at_bytes"][0]))
    gone = ", ".join(str(block) for block in data["ranking"][: max(row["gone"] for row in data["at_bytes"])])
    return (
        f"Measured on {data['texts']} texts of each kind ({kinds}); `fold` learned from {data['tokens']:,} tokens; groups of "
        f"{data['group_size']} weights. Blocks go in the order {gone}. {data['machine']}, {data['threads']} thread; "
        f"{versions_of(data)}."
    )


PARTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "at-bytes": _at_bytes,
    "damage": _damage,
    "orders": _orders,
    "where": _where,
}
