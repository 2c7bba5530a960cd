"""`pdtrim-core plugins`: who provides what, and what is broken."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pdtrim_core.components import KINDS
from pdtrim_core.plugins import PluginHost, Provided, load_plugins


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all components with where they come from, and plugins that could not be loaded."""
    host = load_plugins()
    print(json.dumps(_data(host), indent=1) if as_json else _text(host))


def _data(host: PluginHost) -> dict[str, object]:
    return {
        "components": [
            {
                "kind": p.component.kind,
                "name": p.component.name,
                "summary": _summary(p),
                "plugin": p.origin.plugin,
                "source": p.origin.source,
                "version": p.origin.version,
            }
            for p in host.provided
        ],
        "failures": [{"plugin": f.origin.plugin, "source": str(f.origin), "problem": f.problem} for f in host.failures],
    }


def _text(host: PluginHost) -> str:
    lines = []
    width = max((len(p.component.name) for p in host.provided), default=0)
    for kind in KINDS:
        lines.append(kind)
        lines += [f"  {p.component.name:{width}}  {_summary(p)}  [{p.origin}]" for p in host.of_kind(kind)]
    if host.failures:
        lines.append("failed")
        lines += [f"  {failure.origin.plugin} ({failure.origin}): {failure.problem}" for failure in host.failures]
    return "\n".join(lines)


def _summary(provided: Provided) -> str:
    return (provided.component.__doc__ or "").strip().split("\n", maxsplit=1)[0]
