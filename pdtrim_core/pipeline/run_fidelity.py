"""How far the variants of a finished run are from the dense model, on the items that it held out; kept in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pdtrim_core.data.items import Item, digest_of
from pdtrim_core.errors import PdtrimError
from pdtrim_core.fidelity.inputs import Inputs
from pdtrim_core.fidelity.measure import Subject, measure_all
from pdtrim_core.host.sources import changes
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.pipeline.prepare import draw
from pdtrim_core.pipeline.run_keys import dense_code, keys_of
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.results.fidelity import TASK
from pdtrim_core.results.outcome import versions
from pdtrim_core.results.task_results import CODE, PAIRS, TaskResult, Variant, find_result, write_result


class RunFidelity:
    """Measures the fidelity of one run's variants.

    `inputs` are the items, those that the run held out unless others are given. `length` are the tokens of an answer at most (the
    recipe's unless given), `first_token` is the stage that makes the first one, instead of the run's own. `say` is called with
    what begins, and with what is known, `told` with the share that is done of what has to be measured.
    """

    def __init__(
        self,
        run: LoadedRun,
        *,
        inputs: Inputs | None = None,
        length: int | None = None,
        first_token: FirstToken | None = None,
        say: Callable[[str], None] = lambda text: None,
        told: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._run = run
        self._inputs = inputs
        self._task = TASK if inputs is None else inputs.task
        self._first_token = first_token
        self._length = length or run.recipe.settings.evaluation.answer_tokens
        self._say = say
        self._told = told

    def results(self, variants: Sequence[Variant], *, fresh: bool = False) -> Iterator[TaskResult]:
        """Yield the result of each variant, from the folder of the run where the same code measured it before, unless `fresh`.

        Variants that run the same plan on the same model are measured once. Raises `PdtrimError` for a run that holds no items
        out, and for stages of a model that was replaced as a whole.
        """
        for variant in variants:
            self._run.plan_of(variant)
        settings = {variant: self.settings(variant) for variant in variants}
        found = {variant: None if fresh else self._known(variant, settings[variant]) for variant in settings}
        same: dict[Variant, Variant] = {}
        for variant in (variant for variant, known in found.items() if known is None):
            like = self._run.same_as(variant)
            other = next((other for other in found if other in like and (found[other] or other in same)), variant)
            same[variant] = same.get(other, other)
            alike = same[variant] != variant
            self._say(f"{self._task}, {variant}: {f'the same as {same[variant]}' if alike else 'running'}")
        measured = self._measure({variant: settings[variant] for variant, other in same.items() if variant == other})
        for variant in variants:
            result = found[variant]
            if result is None:
                other = same[variant]
                of_other = measured.get(other) or found[other]
                assert of_other is not None
                result = replace(of_other, variant=variant, settings=settings[variant])
                write_result(self._run.path, result)
            yield result

    def settings(self, variant: Variant) -> dict[str, Any]:
        """Return all that decides the figures of a variant."""
        outcome = self._run.outcome
        first_token = (self._first_token or outcome.plan.first_token) if variant in PAIRS else None
        return {
            "weights": outcome.environment.weights,
            "plan": None if variant == "dense" else self._run.plan_digest(variant),
            "first_token": first_token,
            "items": digest_of(self.items),
            "answer_tokens": self._length,
            **({} if self.own_answers is None else {"own_answers": self.own_answers}),
            **({} if self._inputs is None else {"source": dict(self._inputs.source)}),
            CODE: self._code,
        }

    @cached_property
    def _code(self) -> dict[str, str]:
        return dense_code(self._run.dense)

    @property
    def own_answers(self) -> int | None:
        """The number of items that variants answer on their own; None for all, such as of inputs that were asked for."""
        of_recipe = self._run.recipe.settings.evaluation.own_answers
        return of_recipe if self._inputs is None and of_recipe < len(self.items) else None

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """What is measured on. Raises `PdtrimError` for a run that holds nothing out, and for items too long for the model."""
        run = self._run
        if self._inputs is not None:
            for item in self._inputs.items:
                for choice, tokens in enumerate(item.choices):
                    run.dense.check_tokens(item.prompt_of(choice) + tokens, f"the item '{item.name}' of {self._task}")
            return self._inputs.items
        dense, key = run.dense, keys_of(run.recipe).calibration
        held_out = run.shared.latest("calibration", key, lambda: draw(run.recipe, run.host, dense)).held_out
        if not held_out:
            raise PdtrimError(f"{run.path} holds no items out (calibration.held_out), so all that it has was chosen on")
        for item in held_out:
            dense.check_tokens(item.prompt_of(item.answer), f"the answer to '{item.name}'", more=self._length)
        return held_out

    def _known(self, variant: Variant, settings: Mapping[str, Any]) -> TaskResult | None:
        try:
            found = find_result(self._run.path, self._task, variant, settings)
        except PdtrimError as error:
            self._say(f"{self._task}, {variant}: measured again: {error}")
            return None
        if found is not None and found.settings.get(CODE) != settings[CODE]:
            self._say(
                f"{self._task}, {variant}: measured again: {'; '.join(changes(found.settings.get(CODE) or {}, settings[CODE]))}"
            )
            return None
        if found is not None:
            self._say(f"{self._task}, {variant}: known")
        return found

    def _measure(self, wanted: Mapping[Variant, Mapping[str, Any]]) -> dict[Variant, TaskResult]:
        """Return the results of variants by their settings; the seconds are each one's share."""
        if not wanted:
            return {}
        started, needles = time.perf_counter(), () if self._inputs is None else self._inputs.needles
        subjects = [self._subject(variant, settings) for variant, settings in wanted.items()]
        found = measure_all(
            subjects,
            self.items,
            length=self._length,
            code=self._code,
            needles=needles,
            own_answers=self.own_answers,
            told=self._told,
        )
        seconds = (time.perf_counter() - started) / len(wanted)
        return {
            variant: TaskResult(
                task=self._task,
                variant=variant,
                metrics=of_variant.metrics,
                main="needle" if needles else "kl",
                answers=of_variant.answers,
                settings=wanted[variant],
                versions=versions(),
                seconds=round(seconds, 2),
            )
            for variant, of_variant in zip(wanted, found, strict=True)
        }

    def _subject(self, variant: Variant, settings: Mapping[str, Any]) -> Subject:
        run, model = self._run, self._run.model_of(variant)
        return Subject(
            model,
            run.plan_of(variant),
            run.modules_of(variant),
            first_token=settings["first_token"] or "decode",
            dense=run.dense if model is not run.dense else None,
        )
