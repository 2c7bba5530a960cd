"""A training step by step, which may be killed at any time and goes on from what was written last.

Which texts a step has, and its learning rate, follow from its number; so all there is to keep is the weights and the moments of
the optimiser, what was best, and how many steps were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from pdtrim_core.api import PdtrimError, read_module, reason_of, write_tensors

if TYPE_CHECKING:
    from pdtrim_core.api import Item, Layer, RecoveryContext, Stage
    from pdtrim_plugins.recoveries.step_losses import StepLoss
    from pdtrim_plugins.recoveries.trained_weights import TrainedWeights

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of each weight."""


@dataclass
class State:
    """How far a training has come: the losses of its steps, and what was the nearest to the dense model so far.

    `nearest` is a divergence in nats a token, at first that of the pair as it was; `best` are the masters that had it, and None
    where the pair as it was is still the nearest.
    """

    nearest: float
    losses: list[float] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    @property
    def step(self) -> int:
        """The number of steps that were made, which is that of the next one."""
        return len(self.losses)


class Progress:
    """The file of a training; `key` is a hash of all that decides what the training comes to."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key

    def write(self, state: State, masters: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Write all of a training, whole; raises `PdtrimError` where that is refused, and what was written before stays."""
        named = {"masters": masters, "moments": moments, "best": state.best or {}}
        tensors = {f"{of}/{name}": tensor for of, own in named.items() for name, tensor in own.items()}
        record = {"key": self._key, "nearest": state.nearest, "losses": state.losses, "better": state.best is not None}
        write_tensors(self._path, tensors, record)

    def read(self, note: Callable[[str], None]) -> tuple[State, dict[str, Tensor], dict[str, Tensor]] | None:
        """Return a training with its masters and moments; None where there is none of this key. A damaged one is noted."""
        if not self._path.is_file():
            return None
        try:
            tensors, record = read_module(self._path)
            if record["key"] != self._key:
                note("distill: options, texts or weights are not those of the training that was begun here: it starts again")
                return None
            of: dict[str, dict[str, Tensor]] = {"masters": {}, "moments": {}, "best": {}}
            for name, tensor in tensors.items():
                kind, _, own = name.partition("/")
                of[kind][own] = tensor
            state = State(record["nearest"], list(record["losses"]), of["best"] if record["better"] else None)
        except Exception as error:  # noqa: BLE001 - safetensors has errors of its own for a damaged file
            note(f"distill: the training that was begun in {self._path} is damaged ({reason_of(error)}): it starts again")
            return None
        return state, of["masters"], of["moments"]


@dataclass(frozen=True)
class Schedule:
    """So many steps, each with so many texts, in orders that follow from a seed.

    `lr` gives the learning rate of each step, and `clip` is the longest gradient, as the norm of all its numbers.
    """

    steps: int
    batch: int
    lr: Callable[[int], float]
    seed: int
    clip: float = 1.0

    def texts(self, step: int, texts: Sequence[Item]) -> list[Item]:
        """Return the texts of a step: all of them in some order, then all again in another one."""
        chosen = []
        for number in range(step * self.batch, (step + 1) * self.batch):
            epoch, place = divmod(number, len(texts))
            chosen.append(texts[_order(self.seed, epoch, len(texts))[place]])
        return chosen


class Training:
    """Weights with their optimiser, in a trial of the pair."""

    def __init__(
        self,
        weights: TrainedWeights,
        trial: RecoveryContext,
        progress: Progress,
        schedule: Schedule,
        loss: StepLoss,
    ) -> None:
        self._weights = weights
        self._trial = trial
        self._progress = progress
        self._schedule = schedule
        self._loss = loss
        self._masters = weights.masters
        self._optimizer = AdamW(self._masters.values(), weight_decay=0.0)

    def run(
        self, context: RecoveryContext, *, check_every: int, save_every: int
    ) -> Iterator[tuple[Stage, Layer, dict[str, Tensor]]] | None:
        """Make the steps that are left; return the layers' best weights, None where the pair as it was is the nearest.

        `context` is the pair as it was; it is left so. Raises `PdtrimError` for a loss that is not finite, and where progress
        cannot be written.
        """
        state = self._begun(context)
        for loss in state.losses:
            self._tell(context, loss)
        while state.step < self._schedule.steps:
            state.losses.append(self._step(state.step))
            self._tell(context, state.losses[-1])
            last = state.step == self._schedule.steps
            if last or state.step % check_every == 0:
                self._check(context, state)
            if last or state.step % save_every == 0:
                self._progress.write(state, self._masters, self._moments())
        if state.best is None:
            return None
        self._weights.take(state.best)
        return self._weights.merged()

    def _tell(self, context: RecoveryContext, loss: float) -> None:
        if self._loss.of_answers:
            context.lost(loss)

    def _begun(self, context: RecoveryContext) -> State:
        found = self._progress.read(context.note)
        if found is None:
            return State(context.divergence())
        state, masters, moments = found
        self._weights.take(masters)
        self._remember(moments, state.step)
        context.note(f"distill: goes on behind step {state.step} of {self._schedule.steps}")
        return state

    def _check(self, context: RecoveryContext, state: State) -> None:
        """Look how near to the dense model the pair is with the weights as they would be handed over."""
        tried = context.trial()
        for stage, layer, weights in self._weights.merged():
            tried.change(stage, layer, weights)
        found = tried.divergence()
        if found < state.nearest:
            state.nearest, state.best = found, self._weights.values()

    def _step(self, step: int) -> float:
        """Make a step; return its loss, as a mean over its tokens."""
        lr = self._schedule.lr(step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        texts = self._schedule.texts(step, self._trial.texts)
        # Sums over tokens are what goes back, and are divided in float32: half precision has no numbers as small as a mean's.
        total, tokens = self._loss.backward(self._trial, texts, self._weights.collect)
        loss = total / tokens
        self._weights.scale(tokens)
        norm = clip_grad_norm_(self._masters.values(), self._schedule.clip)
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise PdtrimError(
                f"distill: the loss or its gradient is not finite at step {step + 1} of {self._schedule.steps}, with a learning "
                f"rate of {lr:.3g}: say a lower lr, or a longer warm_up"
            )
        self._optimizer.step()
        self._weights.round()
        return loss

    def _moments(self) -> dict[str, Tensor]:
        state = self._optimizer.state
        return {f"{moment}/{name}": state[master][moment] for name, master in self._masters.items() for moment in MOMENTS}

    def _remember(self, moments: Mapping[str, Tensor], step: int) -> None:
        known: dict[int, dict[str, Any]] = {
            number: {"step": torch.tensor(float(step)), **{moment: moments[f"{moment}/{name}"] for moment in MOMENTS}}
            for number, name in enumerate(self._masters)
        }
        self._optimizer.load_state_dict({"state": known, "param_groups": self._optimizer.state_dict()["param_groups"]})


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    return Random(f"{seed} {epoch}").sample(range(count), count)  # noqa: S311 - reproducible draws, nothing secret
