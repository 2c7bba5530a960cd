"""Pairs of one model, recovered and measured beside the dense model on the same texts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from subject import begin_peak
from texts import ANSWER, PROMPT, Texts

from pdtrim_core.api import Plan, Recovery, RecoveryContext
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.walked import Walked
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe


def opened(path: str, host: PluginHost, dtype: str = "auto") -> BlockModel:
    """Open a model as a run does."""
    data = {"model": {"path": path, "placement": "cpu", "dtype": dtype}, "prune": {"blocks": 1}}
    return open_model(Recipe.from_data(data, where="model", host=host).model, host)


Divergences = Mapping[str, Sequence[float]]
"""KL(dense || pair) of each measured text, by kind."""


class Bench:
    """Recovers pairs of one model, in batches of so many tokens, and measures them."""

    def __init__(self, model: BlockModel, texts: Texts, host: PluginHost, batch_tokens: int | None = None) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.texts = texts
        self.host = host
        self.cache = PrefixCache(model, ExecutionOptions(budget=2**30))

    def measure(self, plan: Plan, modules: Mapping[Any, Any]) -> Divergences:
        """Return KL(dense || pair) of each measured text, by kind."""
        staged = StagedModel(self.cache, plan, modules)
        return {kind: staged.divergences(items) for kind, items in self.texts.measured.items()}

    def recover(
        self,
        plan: Plan,
        parts: Sequence[Mapping[str, Any]],
        kinds: Sequence[str],
        start: Mapping[Any, Any] | None = None,
    ) -> tuple[dict[Any, Any], float]:
        """Return the modules of a recovered pair, which had those of `start`, and the seconds that it took.

        What was kept of measuring is let go first, so that the peak of the memory is that of recovering.
        """
        self.cache.forget()
        begin_peak()
        together = [item for items in zip(*(self.texts.learned[kind] for kind in kinds), strict=True) for item in items]
        check, rest = together[:16], together[16:]
        modules: dict[Any, Any] = dict(start or {})
        started = time.perf_counter()
        for part in parts:
            recovery = self._made(part)
            learned = rest[: recovery.tokens // (PROMPT + ANSWER)]
            with tempfile.TemporaryDirectory() as folder:
                walked = Walked(self.model, plan, modules, learned, batch_tokens=self.batch_tokens)
                context = RecoveryContext(walked, check, Random(0), Path(folder))
                recovery.recover(context)
        return modules, time.perf_counter() - started

    def _made(self, part: Mapping[str, Any]) -> Recovery:
        options = {key: value for key, value in part.items() if key != "use"}
        found = self.host.find("recovery", part["use"]).component(**options)
        assert isinstance(found, Recovery)
        return found
