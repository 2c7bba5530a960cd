"""Groups of torch-pruning's dependency graph, for the K/V heads and MLP channels of single blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from pdtrim_core.api import PdtrimError, reason_of

if TYPE_CHECKING:
    from torch import nn

    from pdtrim_core.api import BlockModel
    from pdtrim_plugins.pruners.channels import Place

_TOKENS = 3
"""Number of tokens that a block is traced on; the graph does not depend on it."""


def package() -> Any:
    """Return the package torch-pruning; raises `PdtrimError` where it is not installed."""
    try:
        import torch_pruning  # noqa: PLC0415 - an optional dependency
    except ModuleNotFoundError as error:
        if error.name != "torch_pruning":
            raise  # it is there, and lacks something itself
        raise PdtrimError("the pruner torch-pruning needs the package of that name: pip install torch-pruning") from None
    return torch_pruning


class TracedBlocks:
    """Blocks of a model, each traced by itself on a copy that shares its weights, so that hooks and records stay on the copy.

    Traced inside the model, a block's groups would reach the embedding and the other blocks through the residual stream, and
    caches, tied weights and output classes would get in the way. Raises `PdtrimError` for a block that cannot be traced.
    """

    def __init__(self, model: BlockModel, blocks: Iterable[int]) -> None:
        self._model = model
        self.modules = {block: _thin_copy(model.blocks[block]) for block in blocks}
        self._graphs = dict(self._traced())

    def group(self, place: Place) -> Any:
        """Return the group of all units of a place; its root is K, or the first projection into an MLP.

        Raises `PdtrimError` where the graph couples other layers than the family's forward does.
        """
        return self._of_channels(place[0]) if place[1] == "mlp" else self._of_heads(place[0])

    def _traced(self) -> Iterator[tuple[int, Any]]:
        import torch  # noqa: PLC0415 - listings must not import torch

        package()
        ids = torch.zeros((1, _TOKENS), dtype=torch.long, device=self._model.device)
        with torch.no_grad():
            recording = self._model.record(ids)
        # The graph is read from autograd, so the input must require a gradient.
        hidden = recording.hidden_BTD.detach().clone()
        hidden.requires_grad = True
        for block, module in self.modules.items():

            def forward(traced: nn.Module, hidden_BTD: Any, block: int = block) -> Any:
                return self._model.run(block, hidden_BTD, recording.calls, traced)

            try:
                with torch.enable_grad():
                    graph = package().DependencyGraph().build_dependency(module, hidden, forward_fn=forward, verbose=False)
            except Exception as error:
                # The package raises errors of any class for modules that it does not know.
                raise PdtrimError(
                    f"{self._model.name}: torch-pruning cannot trace block {block} ({reason_of(error, kind=True)}): choose "
                    "another method, such as llm-pruner"
                ) from error
            yield block, graph

    def _of_channels(self, block: int) -> Any:
        prune, graph = package(), self._graphs[block]
        *into, out = self._projections(block, "mlp")
        found = graph.get_pruning_group(into[0], prune.prune_linear_out_channels, list(range(into[0].out_features)))
        expected = {*((linear, True) for linear in into), (out, False)}
        if {(dep.layer, graph.is_out_channel_pruning_fn(dep.handler)) for dep, _ in found if _is_linear(dep.layer)} != expected:
            raise PdtrimError(
                f"{self._model.name}: torch-pruning does not couple exactly the projections of block {block}'s MLP that this "
                'family has: choose another method, such as llm-pruner, or say parts = "attention"'
            )
        return found

    def _of_heads(self, block: int) -> Any:
        prune, graph = package(), self._graphs[block]
        units = self._model.units(block).count("attention")
        q, k, v, out = self._projections(block, "attention")
        rows, columns = prune.prune_linear_out_channels, prune.prune_linear_in_channels
        each, readers = k.out_features // units, q.out_features // k.out_features
        group = prune.dependency.Group()
        # One entry for each query head of a K/V head: every entry is then as long as K, and any reduction works.
        sliced = [(q, rows, reader) for reader in range(readers)] + [(out, columns, reader) for reader in range(readers)]
        for linear, handler, reader in [(k, rows, None), (v, rows, None), *sliced]:
            heads = range(units) if reader is None else range(reader, units * readers, readers)
            numbers = list(chain.from_iterable(range(head * each, (head + 1) * each) for head in heads))
            node = graph.module2node[linear]
            group.add_dep(prune.dependency.Dependency(handler, handler, source=node, target=node), numbers)
            group[len(group) - 1].root_idxs = list(range(units * each))
        return group

    def _projections(self, block: int, part: str) -> list[Any]:
        names = self._model.layout.attention if part == "attention" else self._model.layout.mlp
        projections = [self.modules[block].get_submodule(name) for name in names]
        for name, projection in zip(names, projections, strict=True):
            if projection not in self._graphs[block].module2node:
                raise PdtrimError(
                    f"{self._model.name}: torch-pruning does not find {name} in block {block}: choose another method"
                )
        return projections


def _is_linear(module: Any) -> bool:
    return hasattr(module, "in_features")


def _thin_copy(block: nn.Module) -> nn.Module:
    return copy.deepcopy(block, {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())})
