"""Measures latency: the dense model against the prefill, the decode and the unified model of a plan, each as it is served.

Each runs the model's own forward over the blocks that it has, with a real cache; see `stage_alone.stage_alone`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.one_stage import stage_alone
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.placement import free_memory
from pdtrim_core.plan.elements import Merge, Shrink, Stage
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.timing.results import Footprint, Measure, ModelName, Timing
from pdtrim_core.timing.stopwatch import Prepared, in_turn, peak_beside, quartiles

DECODED = 4
"""Tokens of each sequence that one timing of decode makes."""
SHARE_OF_FREE_MEMORY = 0.8
Logits = Literal["all", "last", "none"]
Setting = tuple[Measure, int, int]
"""What is measured, the batch, and the tokens of the prompt or the context."""


@dataclass(frozen=True)
class Grid:
    """What to measure: forwards and prefills of so many tokens, decode of so many sequences behind so many tokens."""

    forward: int = 1024
    prompt_lengths: tuple[int, ...] = (128, 512)
    batches: tuple[int, ...] = (1, 4)
    contexts: tuple[int, ...] = (128, 1024)
    repeats: int = 5

    def settings(self) -> list[Setting]:
        """Return all settings, in the order of the table."""
        forward: list[Setting] = [("forward", 1, self.forward)] if self.forward else []
        prefill: list[Setting] = [("prefill", 1, length) for length in self.prompt_lengths]
        decode: list[Setting] = [("decode", batch, context) for batch in self.batches for context in self.contexts]
        return forward + prefill + decode

    def check_fits(self, model: BlockModel) -> None:
        """Raise `PdtrimError` for prompts and contexts beyond the model's window."""
        window = getattr(model.config, "max_position_embeddings", None)
        longest = {"--prompt-lengths": max(self.prompt_lengths, default=0), "--forward": self.forward}
        longest["--contexts"] = max(self.contexts, default=0) + DECODED
        for option, tokens in longest.items():
            if window is not None and tokens > window:
                raise PdtrimError(f"{option}: {tokens} tokens do not fit in the window of {model.name}, which has {window}")


@dataclass(frozen=True)
class Subject:
    """One model that is timed: its name, the model whose blocks it runs, its plan, and the modules of that plan."""

    name: ModelName
    model: BlockModel
    plan: Plan
    replacements: Mapping[Merge | Shrink, nn.Module]
    first_token: FirstToken = "decode"

    @property
    def stage(self) -> Stage:
        """The stage whose weights count; where both stages are the same model, decode's."""
        return "prefill" if self.name == "prefill" else "decode"

    @contextmanager
    def reading(self, ids_BT: Tensor, logits: Logits) -> Iterator[Callable[[], object]]:
        """Give a call that reads a prompt into an empty cache."""
        from transformers import DynamicCache  # noqa: PLC0415 - slow to import

        transformer = self.model.model

        def run() -> object:
            given = {"input_ids": ids_BT, "past_key_values": DynamicCache(), "use_cache": True}
            if logits == "all":
                return transformer(**given).logits
            hidden_BTD = transformer.base_model(**given).last_hidden_state
            # A slice of several rows would be multiplied row by row.
            return hidden_BTD if logits == "none" else transformer.get_output_embeddings()(hidden_BTD[:, -1:].contiguous())

        with self._alone("prefill"):
            yield run

    @contextmanager
    def decoding(self, cache: Any, context: int) -> Iterator[Callable[[], object]]:
        """Give a call that makes a few tokens of each sequence behind a context in the cache."""
        from pdtrim_core.timing.roomy_cache import set_length  # noqa: PLC0415 - imports transformers

        ids_B1 = torch.ones((len(cache.layers[0].keys), 1), dtype=torch.long, device=self.model.device)

        def run() -> None:
            for _ in range(DECODED):
                self.model.model(input_ids=ids_B1, past_key_values=cache, use_cache=True)

        set_length(cache, context)
        with self._alone("decode"):
            yield run

    def cache(self, batch: int, context: int) -> Any:
        """Return a cache of this model's decode blocks."""
        from transformers import DynamicCache  # noqa: PLC0415 - slow to import

        from pdtrim_core.timing.roomy_cache import roomy_cache  # noqa: PLC0415 - imports transformers

        small = DynamicCache()
        with self._alone("decode"), torch.inference_mode():
            self.model.model(input_ids=torch.ones((1, 1), dtype=torch.long, device=self.model.device), past_key_values=small)
            return roomy_cache([(layer.keys, layer.values) for layer in small.layers], batch=batch, room=context + DECODED)

    def logits(self, measure: Measure) -> Logits:
        """Return where a prompt needs logits: nowhere in a prefill model whose decode makes the first token."""
        if measure == "forward":
            return "all"
        return "none" if self.name == "prefill" and self.first_token == "decode" else "last"

    def work(self, setting: Setting) -> float:
        """Return what time should go with: the FLOPs of a prompt, or the bytes that a token of decode reads."""
        measure, batch, tokens = setting
        sizes = self.model.sizes
        if measure == "decode":
            return sizes.step_bytes(self.plan, batch=batch, context=tokens)
        return (sizes.forward_flops if measure == "forward" else sizes.prefill_flops)(self.plan, tokens)

    @property
    def footprint(self) -> Footprint:
        """What follows from the sizes of this model."""
        sizes = self.model.sizes
        weights = sizes.kept_parameters(self.plan, self.stage) * sizes.bytes_per_number
        return Footprint(self.name, weights, sizes.decode_bytes(self.plan), sizes.kv_bytes(self.plan))

    def _alone(self, stage: Stage) -> Any:
        return stage_alone(self.model, self.plan, stage, self.replacements)


class LatencyBench:
    """Times models of a plan beside the dense one, one setting at a time. `notes` says what was not measured as requested."""

    def __init__(self, subjects: Sequence[Subject], grid: Grid) -> None:
        assert subjects[0].name == "dense"
        grid.check_fits(subjects[0].model)
        self.grid = grid
        self.notes: list[str] = []
        self._subjects = {subject.name: subject for subject in subjects}

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._subjects["dense"].model.device

    @cached_property
    def settings(self) -> list[Setting]:
        """What is measured: the settings of the grid, with batches halved until they fit in memory."""
        return list(dict.fromkeys(fitting for wanted in self.grid.settings() if (fitting := self._fitting(wanted)) is not None))

    def measure(self, setting: Setting) -> list[Timing]:
        """Time all models that do something; they ran in turn. Returns nothing where memory runs out."""
        measure = setting[0]
        subjects = self._running(measure)
        try:
            with torch.inference_mode():
                seconds = in_turn(self._runs(subjects, setting), self.device, self.grid.repeats)
        except (MemoryError, RuntimeError) as error:
            self._skip(setting, error)
            return []
        per = DECODED if measure == "decode" else 1
        return [self._timing(subject, setting, seconds, per) for subject in subjects[1:]]

    def footprints(self) -> list[Footprint]:
        """Return what each model needs, with the memory that the largest prompt and the largest decode took beside weights."""
        found = []
        for subject in self._subjects.values():
            beside: dict[str, int | None] = {}
            for measure in ("prefill", "decode"):
                fitting = [setting for setting in self.settings if setting[0] == measure]
                if fitting and subject in self._running(measure):
                    beside[measure] = self._peak(subject, max(fitting, key=lambda setting: setting[1] * setting[2]))
            known = subject.footprint
            found.append(Footprint(known.model, known.weights, known.read_a_token, known.kv_a_token, beside))
        return found

    def _running(self, measure: Measure) -> list[Subject]:
        """Return the models that a measure is about; the unified model's decode is the decode model."""
        left_out = {"forward": "decode", "prefill": "decode", "decode": "prefill"}[measure]
        if measure == "decode" and "decode" in self._subjects:
            return [subject for name, subject in self._subjects.items() if name in ("dense", "decode")]
        return [subject for name, subject in self._subjects.items() if name != left_out]

    def _runs(self, subjects: Sequence[Subject], setting: Setting) -> dict[str, Callable[[], Prepared]]:
        measure, batch, tokens = setting
        if measure == "decode":
            caches = {subject.name: subject.cache(batch, tokens) for subject in subjects}
            return {s.name: lambda s=s: s.decoding(caches[s.name], tokens) for s in subjects}  # type: ignore[misc]
        ids_BT = self._prompt(batch, tokens)
        return {s.name: lambda s=s: s.reading(ids_BT, s.logits(measure)) for s in subjects}  # type: ignore[misc]

    def _prompt(self, batch: int, tokens: int) -> Tensor:
        vocabulary = self._subjects["dense"].model.config.vocab_size
        return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0)).to(self.device)

    def _timing(self, subject: Subject, setting: Setting, seconds: Mapping[str, list[float]], per: int) -> Timing:
        own, dense = seconds[subject.name], seconds["dense"]
        low, ratio, high = quartiles([mine / its for mine, its in zip(own, dense, strict=True)])
        measure, batch, tokens = setting
        return Timing(
            measure=measure,
            model=subject.name,
            batch=batch,
            tokens=tokens,
            seconds=quartiles(own)[1] / per,
            dense=quartiles(dense)[1] / per,
            ratio=ratio,
            low=low,
            high=high,
            ideal=subject.work(setting) / self._subjects["dense"].work(setting),
            repeats=len(own),
        )

    def _peak(self, subject: Subject, setting: Setting) -> int | None:
        def run() -> None:
            with self._runs([subject], setting)[subject.name]() as inside:
                inside()

        with torch.inference_mode():
            return peak_beside(run, self.device)

    def _fitting(self, setting: Setting) -> Setting | None:
        """Return a setting with a batch that fits beside the weights; None where not even one sequence does."""
        measure, batch, tokens = setting
        if measure != "decode":
            return setting
        each = sum(s.model.sizes.kv_bytes(s.plan) for s in self._running("decode")) * (tokens + DECODED)
        room = SHARE_OF_FREE_MEMORY * free_memory(self.device)
        fits = batch
        while fits > 1 and fits * each > room:
            fits //= 2
        if fits * each > room:
            self.notes.append(f"decode with a context of {tokens}: left out, the K/V of one sequence do not fit in memory")
            return None
        if fits < batch:
            self.notes.append(f"decode with a context of {tokens}: batch {batch} does not fit in memory, {fits} was measured")
        return measure, fits, tokens

    def _skip(self, setting: Setting, error: Exception) -> None:
        """Note that memory ran out; raise what is anything else."""
        accelerator = isinstance(error, torch.OutOfMemoryError)
        if not (accelerator or isinstance(error, MemoryError) or "allocate memory" in str(error)):
            raise error
        measure, batch, tokens = setting
        self.notes.append(f"{measure}, batch {batch}, {tokens} tokens: left out, memory ran out")
        if accelerator:
            torch.get_device_module(self.device).empty_cache()
