"""The tables of the page about number formats, from what `benchmarks/formats.py` wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from generator.benchmarks import versions_of
from generator.markup import table

PRODUCT = "fold, quantise"
"""The order of a run."""
ERRORS = 2
"""Standard errors that a difference must have to be told."""
NEARLY_THE_SAME = 0.05
"""Bytes that count as the same are no further apart, as a share."""
KINDS = ("generated", "answers", "text", "long text")
"""Kinds of text, of which a result may lack the last two."""


def formats_table(data: Mapping[str, Any], part: str) -> str:
    """Return one table of a result, with what it says in words; the part "where" is a sentence on how it was made."""
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
    made = table(header, [[*line, *own] for line, own in zip(lines, figures, strict=True)])
    told = [f"- {_told_of_bytes(*two, kinds)}" for two in _same_bytes(rows)]
    return "\n".join([made, "", *told])


def _same_bytes(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield two pairs that have decodes of different formats and nearly the same bytes, the one with more blocks first."""
    for more in rows:
        for fewer in rows:
            near = abs(more["decode_bytes"] / fewer["decode_bytes"] - 1) < NEARLY_THE_SAME
            if more["gone"] < fewer["gone"] and more["format"] != fewer["format"] and near:
                yield more, fewer


def _told_of_bytes(more: Mapping[str, Any], fewer: Mapping[str, Any], kinds: Sequence[str]) -> str:
    shares = [fewer[kind]["kl"] / more[kind]["kl"] for kind in kinds]
    sizes = " and ".join(f"{row['decode_bytes'] / 1e6:.0f}" for row in (more, fewer))
    names = [f"{row['format']} with {row['gone']} blocks gone" for row in (fewer, more)]
    times = f"{min(shares):.1f} to {max(shares):.1f} times"
    return f"{sizes} MB: {names[0]} is {times} as far from the dense model as {names[1]}."


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
    cells = [
        [f"{_kl(row[kind])} ({row[kind]['beyond']:+.4f} +- {row[kind]['beyond_error']:.4f})" for kind in kinds] for row in rows
    ]
    made = table(["order", *kinds], [[row["way"], *own] for row, own in zip(rows, cells, strict=True)])
    return "\n".join([made, "", *(f"- {_told_of_order(row, kinds)}" for row in rows if row["way"] != PRODUCT)])


def _paired(found: Mapping[str, float]) -> str:
    return f"{_kl(found)} ({found['beyond']:+.4f} +- {found['beyond_error']:.4f})"


def _told_of_order(row: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """Return in words where a way is nearer to the dense model than the product's order, and where it is farther."""
    apart = {kind: row[kind]["beyond"] / row[kind]["beyond_error"] for kind in kinds if row[kind]["beyond_error"]}
    sides = {
        "nearer": [kind for kind, errors in apart.items() if errors < -ERRORS],
        "farther": [kind for kind, errors in apart.items() if errors > ERRORS],
    }
    told = [f"{side} on {', '.join(found)}" for side, found in sides.items() if found]
    return f"`{row['way']}` against `{PRODUCT}`: {' and '.join(told) or 'no difference that is larger than twice its error'}."


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
