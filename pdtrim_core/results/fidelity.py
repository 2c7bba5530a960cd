"""How near the variants of a run are to the dense model, as its outcome has it: figures, and answers side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdtrim_core.results.task_results import Metric

TASK = "fidelity"
"""The task of the results that these figures are from."""


@dataclass(frozen=True)
class AnswerSample:
    """What the variants answer to one held-out prompt, as text, by their names; `prompt` is the end of the prompt."""

    item: str
    prompt: str
    answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fidelity:
    """The figures of each variant on so many held-out items, by the names that the results of task `fidelity` have.

    Answers have `answer_tokens` tokens at most. `own_answers` is on how many of the items the variants answered on their own,
    None for all of them: `loops`, `length` and the like are of those. `nearer` is how much less the KL divergence of `staged` is
    than that of `unified`, in nats a token, with its standard error paired over prompts; None where there is no pair to compare.
    `recovered` is how much less it is than that of `unrecovered`, None where nothing was recovered; both are taken before the
    pair gets number formats. `quantized` is how much less that of `unquantized` is than with them, None where no stage has a
    format of its own. `selected` is how much less that of `unselected` is than that of `staged`, None where decode reads whole
    prompts.
    """

    items: int
    answer_tokens: int
    variants: dict[str, dict[str, Metric]]
    nearer: Metric | None = None
    samples: tuple[AnswerSample, ...] = ()
    recovered: Metric | None = None
    quantized: Metric | None = None
    selected: Metric | None = None
    own_answers: int | None = None
