"""How far the variants of a finished run are from the dense model, on the items that it held out; kept in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pdtrim_core.data.items import Item, digest_of
from pdtrim_core.errors import PdtrimError
from pdtrim_core.fidelity.measure import Subject, measure
from pdtrim_core.host.sources import changes, engine
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.pipeline.prepare import draw
from pdtrim_core.pipeline.run_keys import keys_of
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.results.fidelity import TASK
from pdtrim_core.results.outcome import versions
from pdtrim_core.results.task_results import CODE, TaskResult, Variant, find_result, write_result


class RunFidelity:
    """Measures the fidelity of one run's variants.

    `length` are the tokens of an answer at most (the recipe's unless given), `first_token` is the stage that makes the first one,
    instead of the run's own.
    `say` is called with what begins, and with what is known.
    """

    def __init__(
        self,
        run: LoadedRun,
        *,
        length: int | None = None,
        first_token: FirstToken | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._run = run
        self._first_token = first_token
        self._length = length or run.recipe.settings.evaluation.answer_tokens
        self._say = say

    def results(self, variants: Sequence[Variant], *, fresh: bool = False) -> Iterator[TaskResult]:
        """Yield the result of each variant, from the folder of the run where the same code measured it before, unless `fresh`.

        Variants that run the same plan on the same model are measured once. Raises `PdtrimError` for a run that holds no items
        out, and for stages of a model that was replaced as a whole.
        """
        for variant in variants:
            self._run.plan_of(variant)
        done: dict[Variant, TaskResult] = {}
        for variant in variants:
            settings = self.settings(variant)
            found = None if fresh else self._known(variant, settings)
            if found is None:
                same = next((done[other] for other in self._run.same_as(variant) if other in done), None)
                self._say(f"{TASK}, {variant}: {'running' if same is None else f'the same as {same.variant}'}")
                found = self._measure(variant, settings) if same is None else replace(same, variant=variant, settings=settings)
                write_result(self._run.path, found)
            done[variant] = found
            yield found

    def settings(self, variant: Variant) -> dict[str, Any]:
        """Return all that decides the figures of a variant."""
        outcome = self._run.outcome
        first_token = (self._first_token or outcome.plan.first_token) if variant == "staged" else None
        return {
            "weights": outcome.environment.weights,
            "plan": None if variant == "dense" else self._run.plan_digest(variant),
            "first_token": first_token,
            "items": digest_of(self._items),
            "answer_tokens": self._length,
            CODE: self._code,
        }

    @cached_property
    def _code(self) -> dict[str, str]:
        dense = self._run.dense
        return {**engine(), "the model": dense.exact_fingerprint[:12], "number format": str(dense.dtype)}

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        run = self._run
        dense, key = run.dense, keys_of(run.recipe).calibration
        held_out = run.shared.latest("calibration", key, lambda: draw(run.recipe, run.host, dense)).held_out
        if not held_out:
            raise PdtrimError(f"{run.path} holds no items out (calibration.held_out), so all that it has was chosen on")
        for item in held_out:
            dense.check_tokens(item.prompt_of(item.answer), f"the answer to '{item.name}'", more=self._length)
        return held_out

    def _known(self, variant: Variant, settings: Mapping[str, Any]) -> TaskResult | None:
        try:
            found = find_result(self._run.path, TASK, variant, settings)
        except PdtrimError as error:
            self._say(f"{TASK}, {variant}: measured again: {error}")
            return None
        if found is not None and found.settings.get(CODE) != settings[CODE]:
            self._say(f"{TASK}, {variant}: measured again: {'; '.join(changes(found.settings.get(CODE) or {}, settings[CODE]))}")
            return None
        if found is not None:
            self._say(f"{TASK}, {variant}: known")
        return found

    def _measure(self, variant: Variant, settings: dict[str, Any]) -> TaskResult:
        run, started = self._run, time.perf_counter()
        model = run.model_of(variant)
        subject = Subject(
            model,
            run.plan_of(variant),
            {} if variant == "dense" else run.modules,
            first_token=settings["first_token"] or "decode",
            dense=run.dense if model is not run.dense else None,
        )
        found = measure(subject, self._items, length=self._length, code=self._code)
        return TaskResult(
            task=TASK,
            variant=variant,
            metrics=found.metrics,
            main="kl",
            answers=found.answers,
            settings=settings,
            versions=versions(),
            seconds=round(time.perf_counter() - started, 2),
        )
