from pdtrim_core.api import Edges, KvSelector, hookimpl

class WorstHead(KvSelector):
    """Selects the blocks of which every head has half its attention on the ends of prompts."""
    name = "worst-head"
    needs_attention = True

    def select(self, context):
        ends = [Edges(block, 0.15, 0.15) for block in context.blocks]
        masses = context.masses(ends)
        return [one for one, mass in zip(ends, masses, strict=True) if mass.mean(dim=0).min() >= 0.5]

@hookimpl
def pdtrim_kv_selectors():
    yield WorstHead
