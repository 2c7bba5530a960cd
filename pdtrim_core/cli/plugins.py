"""`pdtrim-core plugins`: who provides what, what is broken, and what is slow to import."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pdtrim_core.api.kinds import KINDS
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.host.discovery import ONLY
from pdtrim_core.host.host import Origin, PluginHost, Provided, load_plugins
from pdtrim_core.recipe.parts import OWN_DISTRIBUTION

SLOW = 1.0
"""Seconds of importing a plugin from which on every command is noticeably late."""


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all components with where they come from, and what is wrong with plugins: what cannot be used, what is slow.

    PDTRIM_PLUGINS=a,b loads only those plugins, by the name of their distribution or their own; PDTRIM_TRACE=1 prints the calls
    of hooks to stderr.
    """
    host = load_plugins()
    say_data(json.dumps(_data(host), indent=1)) if as_json else say(_text(host))


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
        "clashes": [{"kind": kind, "name": name, "choices": choices} for kind, name, choices in _clashes(host)],
        "slow": [{"plugin": o.plugin, "source": str(o), "seconds": round(seconds, 2)} for o, seconds in _slow(host)],
        "left_out": list(host.left_out),
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
    if clashes := _clashes(host):
        lines.append("clashes")
        lines += [
            f"  {kind} '{name}' has {len(choices)} origins: say use = {' or '.join(map(repr, choices))}"
            for kind, name, choices in clashes
        ]
    if slow := _slow(host):
        lines.append("slow")
        advice = "every command waits for it; it should import what is heavy inside its functions"
        lines += [f"  {origin.plugin} ({origin}): took {seconds:.1f} s to import: {advice}" for origin, seconds in slow]
    if host.left_out:
        lines += ["left out", f"  {', '.join(host.left_out)}: not in {ONLY}"]
    return "\n".join(lines)


def _clashes(host: PluginHost) -> list[tuple[str, str, list[str]]]:
    """Return the names that two plugins offer for one kind, with what a recipe may say instead."""
    offered: dict[tuple[str, str], list[str]] = {}
    for p in host.provided:
        offered.setdefault((p.component.kind, p.component.name), []).append(f"{p.origin.source}/{p.component.name}")
    return [(kind, name, choices) for (kind, name), choices in offered.items() if len(choices) > 1]


def _slow(host: PluginHost) -> list[tuple[Origin, float]]:
    """Return other people's plugins that take long to import; ours a reader of this list could not mend."""
    own = OWN_DISTRIBUTION
    return [(origin, seconds) for origin, seconds in host.import_seconds.items() if seconds >= SLOW and origin.source != own]


def _summary(provided: Provided) -> str:
    return (provided.component.__doc__ or "").strip().split("\n", maxsplit=1)[0]
