"""Plans drawn by hypothesis, for the tests of plans and of their JSON."""

from __future__ import annotations

from hypothesis import strategies as st

from pdtrim_core.plan.elements import PARTS, Drop, DropPart, Element, KvOnly, Merge, Removal, Shrink
from pdtrim_core.plan.plan import Plan

BLOCKS = st.integers(min_value=2, max_value=9)


def plan(prefill: list[Element], decode: list[Element]) -> Plan:
    return Plan(Removal(prefill), Removal(decode))


@st.composite
def decodes(draw: st.DrawFn, block_count: int) -> list[Element]:
    """Draw a decode that keeps at least one block: drops, merges, shrinks and parts."""
    elements: list[Element] = []
    block = 0
    while block < block_count:
        state = draw(st.sampled_from(["run", "run", "drop", "shrink", "merge", "part"]))
        if state == "merge" and block + 1 < block_count:
            kv, turned = draw(st.sampled_from([("shadow", False), ("shadow", True), ("frozen", False)]))
            last = draw(st.integers(block + 1, min(block + 3, block_count - 1)))
            ends = (last, block) if turned else (block, last)
            elements.append(Merge(*ends, "frozen" if kv == "frozen" else "shadow"))
            block = last
        elif state == "drop":
            elements.append(Drop(block))
        elif state == "shrink":
            part = draw(st.sampled_from(["attention", "mlp", "both", "experts"]))
            elements += [Shrink(block, "attention", (0, 2))] if part in ("attention", "both") else []
            elements += [Shrink(block, "mlp", (1, 5))] if part in ("mlp", "both") else []
            elements += [Shrink(block, "experts", (1, 5))] if part == "experts" else []
        elif state == "part":
            elements += [DropPart(block, part) for part in draw(st.sampled_from([PARTS, PARTS[:1], PARTS[1:]]))]
        block += 1
    if not Plan(decode=Removal(elements)).slots(block_count):
        elements = [element for element in elements if block_count - 1 not in element.blocks]
    return elements


@st.composite
def lawful(draw: st.DrawFn) -> tuple[Plan, int]:
    """Draw a plan in which each block of decode is, in prefill, as in decode, whole, K/V only, less MLP, or (dropped) merged."""
    block_count = draw(BLOCKS)
    decode = Removal(draw(decodes(block_count)))
    prefill: list[Element] = []
    free: list[int] = []
    for slot in Plan(decode=decode).slots(block_count):
        state = draw(st.sampled_from(["run", "kv-only", "same", "mlp", "no-mlp"]))
        if state == "kv-only":
            prefill.append(KvOnly(slot.block))
        elif state == "same":
            prefill += decode.at(slot.block)
        elif state == "mlp":
            prefill.append(Shrink(slot.blocks[-1], "mlp", (3,)))
        elif state == "no-mlp":
            prefill.append(DropPart(slot.blocks[-1], "mlp"))
    for block in sorted({part.block for part in decode.dropped_parts if "attention" in decode.lost_at(part.block)}):
        prefill += draw(st.sampled_from([(), (Drop(block),), decode.at(block), (DropPart(block, "attention"),)]))
    for block in sorted(e.block for e in decode if isinstance(e, Drop)):
        state = draw(st.sampled_from(["run", "drop", "merge"]))
        if state == "merge" and free[-1:] == [block - 1]:
            free.pop()
            prefill.append(Merge(block, block - 1))
        elif state == "drop":
            prefill.append(Drop(block))
        else:
            free.append(block)
    return Plan(Removal(prefill), decode), block_count
