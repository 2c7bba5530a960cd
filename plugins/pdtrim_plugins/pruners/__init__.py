"""Other pruners, whose removals the splitters refine into prefill subsets."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core import Pruner, hookimpl
from pdtrim_plugins.pruners.llm_pruner import LlmPruner
from pdtrim_plugins.pruners.shortgpt import ShortGpt
from pdtrim_plugins.pruners.torch_pruning_importance import TorchPruning

__all__ = ["LlmPruner", "ShortGpt", "TorchPruning"]


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruners."""
    yield LlmPruner
    yield ShortGpt
    yield TorchPruning
