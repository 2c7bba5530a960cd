"""What a recovery may change of a pair: its K/V contract, and numbers alone."""

from __future__ import annotations

from torch import Tensor

from pdtrim_core.api.layer_kinds import Contract
from pdtrim_core.errors import PluginError
from pdtrim_core.execution.recovered_weights import (
    STAGES,
    finite,
    recovered_tables,
    recovered_weights,
)
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.walked import Walked
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.plan.elements import Stage


def recovered_tensors(pair: Walked, modules: Modules, stage: Stage) -> dict[str, Tensor]:
    """Return all that recovery changed of a stage: weights, and the numbers of a table of first tokens."""
    return {**recovered_weights(pair.plan, pair.model, modules, stage), **recovered_tables(pair.plan, modules, stage)}


def check_change(pair: Walked, start: Modules, contract: Contract, label: str) -> None:
    """Raise `PluginError` where a recovery changed what its contract forbids, or made a weight that is no number."""
    layout = pair.model.layout
    for stage in STAGES:
        weights = recovered_weights(pair.plan, pair.model, pair.modules, stage)
        before = recovered_weights(pair.plan, pair.model, start, stage)
        broken = finite(recovered_tensors(pair, pair.modules, stage))
        if broken is not None:
            raise PluginError(f"{label} made the weight {broken} of {stage} NaN or infinite")
        passed = {str(layer.block) for layer in pair.layers(stage) if layer.state == "kv-only"}
        exact = _exact(pair, stage) if contract == "dense-cache" else set()
        for name, weight in weights.items():
            if before.get(name) is weight:
                continue
            problem = _problem(name, layout, contract, only_kv=name.partition(".")[0] in passed or ".shadow." in name)
            if not problem and name.partition(".")[0] in exact:
                problem = 'behind which it has the dense K/V: with contract = "dense-cache" these must stay'
            if problem:
                raise PluginError(f"{label} changed the weight {name} of {stage}, {problem}")


def _exact(pair: Walked, stage: Stage) -> set[str]:
    """Return the blocks of a prefill of its own behind which the next one still has the dense hidden states, and so the K/V."""
    if stage == "decode" or pair.unified:
        return set()
    first = min((element.blocks[0] for element in pair.plan.prefill), default=pair.model.block_count + 1)
    return {str(layer.block) for layer in pair.layers(stage) if layer.state == "run" and layer.block + 1 < first}


def _problem(name: str, layout: BlockLayout, contract: Contract, *, only_kv: bool) -> str | None:
    """Return what is wrong with a change of a weight; None where it may change."""
    own = name.partition(".")[2].removeprefix("shadow.")
    of_kv, of_mlp = (own.startswith(tuple(f"{part}." for part in parts)) for parts in (layout.kv, layout.mlp))
    if own.startswith(tuple(f"{part}." for part in layout.kv[3:])):
        return "a norm of K, which is given heads and not tokens: change the projection in front of it"
    if not layout.kv and not of_mlp:
        return "and this family computes K and V together with Q: of it only projections of the MLP may change"
    if of_kv and contract == "dense-cache" and not only_kv:
        return 'which makes K/V: with contract = "dense-cache" only blocks that prefill skips may get others'
    if only_kv and not of_kv:
        return "a layer of which only K and V are computed"
    return None
