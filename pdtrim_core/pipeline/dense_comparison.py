"""How near the variants of a run are to the dense model, at its end: measured with the models that are open already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.two_phase import stop_tokens
from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.finished import Finished
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_fidelity import RunFidelity
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.results.fidelity import AnswerSample, Fidelity
from pdtrim_core.results.outcome import LARGEST, Outcome
from pdtrim_core.results.task_results import Metric, TaskResult, Variant
from pdtrim_core.wording import visible

SAMPLES = 3
PROMPT_END = 240
"""Characters of a prompt that a sample shows."""
LONGEST_ANSWER = 2000
"""Characters of an answer that a sample shows."""


@dataclass(frozen=True, kw_only=True)
class RunAtItsEnd(LoadedRun):
    """A run that is not written yet, as other commands will open it: with the models and modules that it has in memory."""

    inputs: RunInputs
    done: Finished

    @cached_property
    def dense(self) -> BlockModel:
        """The model that was pruned."""
        return self.inputs.model

    @cached_property
    def modules(self) -> Modules:
        """The modules of the plan by element, its recovered layers and its quantised ones."""
        return self.done.modules

    @cached_property
    def unquantized(self) -> Modules:
        """The same, with layers in the number format of the model."""
        return self.done.unquantized

    @cached_property
    def replaced(self) -> BlockModel | None:
        """The whole other model of a pruner that gave one."""
        return self.done.found.replaced


def variants_at_end(done: Finished) -> tuple[Variant, ...]:
    """Return what is compared with the dense model, and that itself; nothing of a replaced model is staged."""
    if done.found.replaced is not None:
        return "dense", "unified"
    kept = any(result.kept for result in done.recovered.results)
    unrecovered: tuple[Variant, ...] = ("unrecovered",) if kept else ()
    unquantized: tuple[Variant, ...] = ("unquantized",) if done.quantized.formats is not None else ()
    unselected: tuple[Variant, ...] = ("unselected",) if done.plan.selections else ()
    return ("dense", "unified", *unrecovered, *unquantized, *unselected, "staged")


def compare_with_dense(context: RunContext, inputs: RunInputs, done: Finished, outcome: Outcome) -> Fidelity | None:
    """Return how near the variants are to the dense model; None, with a note, where it cannot be measured.

    `outcome` is that of the run as far as it has come, and what its plan needs is in its folder. The results are kept there.
    """
    items = inputs.calibration.held_out
    if not items:
        context.events.note(
            "fidelity to the dense model is not measured: no items are held out (calibration.held_out), and on the others the "
            "plan was chosen"
        )
        return None
    run = RunAtItsEnd(context.folder.path, outcome, context.recipe, context.host, context.cache, inputs=inputs, done=done)
    measured: dict[Variant, TaskResult] = {}

    def told(share: float) -> None:
        context.host.tell("pdtrim_work_advanced", what="comparison", number=0, count=0, share=share)

    fidelity = RunFidelity(run, told=told)
    try:
        for result in fidelity.results(variants_at_end(done), fresh=context.fresh):
            measured[result.variant] = result
            context.host.tell("pdtrim_fidelity_measured", result=result)
    except PdtrimError as error:
        # What the run found is worth more than this figure of it.
        context.events.note(f"fidelity to the dense model is not measured: {error}")
        return None
    with_formats = measured.get("unselected") or measured.get("staged")
    return Fidelity(
        items=len(items),
        answer_tokens=context.recipe.settings.evaluation.answer_tokens,
        variants={variant: _finite(result.metrics) for variant, result in measured.items()},
        nearer=nearer(measured.get("unified"), measured.get("staged")),
        samples=samples(items, measured, inputs.model),
        recovered=nearer(measured.get("unrecovered"), measured.get("unquantized") or with_formats),
        quantized=nearer(with_formats, measured.get("unquantized")),
        selected=nearer(measured.get("staged"), measured.get("unselected")),
        own_answers=fidelity.own_answers,
    )


def nearer(one: TaskResult | None, other: TaskResult | None) -> Metric | None:
    """Return how much nearer the other variant is to the dense model than the one, in nats a token, paired over prompts.

    None where one of them was not measured, or a result does not say how many tokens each prompt's divergence is the mean of.
    """
    if one is None or other is None:
        return None
    pairs = list(zip(one.answers, other.answers, strict=True))
    if not all("tokens" in ours.values for ours, _ in pairs):
        return None
    tokens = [ours.values["tokens"] for ours, _ in pairs]
    gains = [(ours.values["kl"] - theirs.values["kl"]) * count for (ours, theirs), count in zip(pairs, tokens, strict=True)]
    found = ratio(gains, tokens, higher_is_better=True)
    return found if _is_finite(found) else None


def samples(items: Sequence[Item], measured: Mapping[Variant, TaskResult], dense: BlockModel) -> tuple[AnswerSample, ...]:
    """Return the answers to the same few prompts in every run on these items: spread evenly over those that dense answers."""
    nothing = {"", *(visible(dense.tokenizer.decode([token])).strip() for token in stop_tokens(dense))}
    answered = [(number, answer.answer) for number, answer in enumerate(measured["dense"].answers) if answer.answer is not None]
    said = [number for number, answer in answered if str(answer).strip() not in nothing]
    among = said if len(said) >= SAMPLES else [number for number, _ in answered]
    chosen = [among[(2 * number + 1) * len(among) // (2 * SAMPLES)] for number in range(SAMPLES)]
    return tuple(
        AnswerSample(
            items[number].name,
            _end_of(visible(dense.tokenizer.decode(list(items[number].prompt_of(items[number].answer))))),
            {variant: str(result.answers[number].answer)[:LONGEST_ANSWER] for variant, result in measured.items()},
        )
        for number in dict.fromkeys(chosen)
    )


def _end_of(prompt: str) -> str:
    return prompt if len(prompt) <= PROMPT_END else f"...{prompt[3 - PROMPT_END :]}"


def _finite(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the figures that an outcome can hold: of a model that is broken some are beyond all bounds."""
    return {name: metric for name, metric in metrics.items() if _is_finite(metric)}


def _is_finite(metric: Metric) -> bool:
    return all(math.isfinite(number) and abs(number) <= LARGEST for number in (metric.value, metric.error or 0.0))
