"""The page of families: which of transformers' types work, from what tries of tiny models found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from generator.markup import table

TRIED = Path(__file__).parents[1] / "results" / "families" / "tried.json"
COLUMNS = (
    "scores",
    "one pass = two phases",
    "generation = its own",
    "channel pruners",
    "parts",
    "experts",
    "recovery",
    "export + reload",
    "GGUF",
    "vLLM classes",
)
MARKED = ("GGUF", "vLLM classes", "recovery", "channel pruners", "parts", "experts")
"""Columns whose reasons repeat from row to row and are said once in the text."""

STRUCTURE = """Where a family keeps its list of blocks, and what a block is made of, is found by structure, on a tiny copy of
the model: the list whose elements run once each, in order, and the projections that make K, V and channels of the MLP. What is
not certain counts as not there: whole blocks of such a family can go, and pruners of heads or channels refuse it. A plugin that
answers the hook `pdtrim_find_blocks` comes first; the built-in one, `architectures`, does for {known}."""
TRIES = """`make families` tried {count} types of `AutoModelForCausalLM` of transformers {version} as tiny random models, with the
defaults of their configs but for what `benchmarks/families.toml` says: {opened} open, and {refused} are refused for the reasons
below."""
WORKS = """- scores: log-probabilities are those of the model's own forward
- one pass = two phases: for several plans, scoring agrees with prefill, hand-over and decode
- generation: the two phases choose the tokens that the model itself holds likeliest
- channel pruners: what a plan can remove of a block: K/V heads, MLP channels, or nothing but whole blocks
- parts: what plans can drop of a block alone, attention or MLP
- experts: yes where plans can remove experts, prefill fewer than decode; none where the type has no experts
- recovery: `fold` finds a projection that it can change
- export + reload: blocks are renumbered, written, read by transformers, and give the same logits
- GGUF, vLLM classes: those exporters take the family"""


def families_page() -> str:
    """Return the page of families whose blocks are found."""
    from pdtrim_plugins.architectures import LAYOUTS  # noqa: PLC0415 - one page is about this one plugin

    data = json.loads(TRIED.read_text(encoding="utf-8"))
    opened = {kind: found for kind, found in data["families"].items() if "blocks" in found}
    refused, untried = (
        {kind: found[why] for kind, found in data["families"].items() if why in found} for why in ("refused", "not tried")
    )
    rows, notes = [], []
    for kind, found in opened.items():
        rows.append([f"`{kind}`", f"`{found['blocks']}`", *(_cell(found[column]) for column in COLUMNS)])
        notes += [
            f"- `{kind}`, {column}: {found[column].removeprefix('no: ')}"
            for column in COLUMNS
            if found[column].startswith("no") and column not in MARKED
        ]
    known = ", ".join(f"`{family}`" for family in sorted(LAYOUTS))
    counts = {"count": len(opened) + len(refused), "opened": len(opened), "refused": len(refused)}
    parts = [
        "# Families of models",
        STRUCTURE.format(known=known),
        TRIES.format(version=data["transformers"], **counts),
        WORKS,
        table(["model_type", "blocks", *COLUMNS], rows),
    ]
    if notes:
        parts += ["## What does not work of those that open", "\n".join(notes)]
    parts += [
        "## Refused",
        "`check` says the reason of a model in a folder, `check --budget` and `run` that of all, before anything is measured.",
        _reasons(refused),
    ]
    if untried:
        parts += ["## Not tried", "Of the defaults of these types' configs no tiny model can be made:", _reasons(untried)]
    return "\n\n".join(parts)


def _reasons(found: Mapping[str, str]) -> str:
    return table(["model_type", "reason"], [[f"`{kind}`", reason] for kind, reason in found.items()])


def _cell(text: str) -> str:
    return "no" if text.startswith("no") else text
