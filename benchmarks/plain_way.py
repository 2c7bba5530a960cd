"""The plain way to measure a plan: a physically pruned copy of the model, scored by lm-evaluation-harness' own `HFLM`.

The harness runs a prompt again for each of its choices and makes logits for every token; it sorts requests by length and
runs choices of one token behind the same prompt as one.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pdtrim_core.api import Along, BlockModel, Item, Objective, Sample

MISSING = "this benchmark compares with lm-evaluation-harness, which is not installed: pip install 'pdtrim-core[eval]'"


class Timed(NamedTuple):
    """Seconds on the clock, and seconds of this process on a processor: a busy machine changes the first more."""

    wall: float
    cpu: float

    @classmethod
    def since(cls, start: Timed) -> Timed:
        now = cls.now()
        return cls(now.wall - start.wall, now.cpu - start.cpu)

    @classmethod
    def now(cls) -> Timed:
        return cls(time.perf_counter(), time.process_time())


class Sums:
    """Log-probabilities of choices that somebody else has computed, in the place of a model under a plan."""

    def __init__(self, sums: Sequence[tuple[float, ...]]) -> None:
        self._sums = sums

    def loglikelihoods(self, items: Sequence[Item]) -> list[tuple[float, ...]]:
        assert len(items) == len(self._sums)
        return list(self._sums)

    def divergences(self, items: Sequence[Item], along: Along = "both") -> list[float]:
        del items, along
        raise AssertionError("the harness gives no distributions; no objective that compares them is offered")

    overlaps = divergences


def without_blocks(model: BlockModel, removed: Sequence[int]) -> Any:
    """Return a transformers model that has lost blocks; it shares the weights of the others."""
    pruned = copy.deepcopy(model.model, {id(tensor): tensor for tensor in (*model.model.parameters(), *model.model.buffers())})
    path, _, name = model.layout.blocks.rpartition(".")
    kept = [block for number, block in enumerate(pruned.get_submodule(model.layout.blocks)) if number not in set(removed)]
    for number, block in enumerate(kept):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    setattr(pruned.get_submodule(path), name, nn.ModuleList(kept))
    config = pruned.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = [kind for number, kind in enumerate(config.layer_types) if number not in set(removed)]
    config.num_hidden_layers = len(kept)
    return pruned


class PlainWay:
    """Measures removals with `HFLM.loglikelihood`. Its copies are made before the clock starts."""

    def __init__(self, model: BlockModel, samples: Sequence[Sample], items: Sequence[Item], *, batch_size: int) -> None:
        try:
            from lm_eval.api.instance import Instance
        except ModuleNotFoundError:
            sys.exit(MISSING)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._model = model
        self._items = tuple(items)
        self._batch_size = batch_size
        texts = [(prompt, choice) for sample in samples for prompt, choice in _pairs(sample)]
        self._requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(texts)]

    def measure(self, removed: Sequence[int]) -> tuple[list[tuple[float, ...]], Timed]:
        """Return for each item the sums of its choices, as `StagedModel.loglikelihoods` does, and the time it took."""
        from lm_eval.models.huggingface import HFLM

        pruned = without_blocks(self._model, removed)
        harness = HFLM(pretrained=pruned, tokenizer=self._model.tokenizer, batch_size=self._batch_size)
        start = Timed.now()
        with torch.inference_mode():
            found = iter(harness.loglikelihood(self._requests, disable_tqdm=True))
        taken = Timed.since(start)
        return [tuple(next(found)[0] for _ in item.choices) for item in self._items], taken

    def values(self, objective: Objective, sums: Sequence[tuple[float, ...]]) -> list[float]:
        """Return the objective's value of each item."""
        return [float(value) for value in objective.item_values(Sums(sums), self._items)]


def _pairs(sample: Sample) -> list[tuple[str, str]]:
    prompts = sample.prompts or (sample.prompt,) * len(sample.choices)
    return list(zip(prompts, sample.choices, strict=True))
