"""The beginnings of the dense model's own answers to items, for objectives that compare plans with the dense model along them.

Each set of items gets its answers when it is first measured: those of held-out items are not needed until the end.
"""

from __future__ import annotations

from dataclasses import replace

from pdtrim_core.api.item_kinds import Objective
from pdtrim_core.data.items import Item
from pdtrim_core.errors import PluginError, blame
from pdtrim_core.fidelity.dense_answers import beginnings
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_keys import dense_code, keys_of
from pdtrim_core.wording import shortened

Items = tuple[Item, ...]


def answer_length(objective: Objective, host: PluginHost) -> int:
    """Return how long the answers are that an objective wants, in tokens; 0 for none. Raises `PluginError` for no number."""
    label = host.label_of(objective)
    with blame(label):
        length = objective.answer_length
    if not isinstance(length, int) or isinstance(length, bool) or length < 0:
        raise PluginError(
            f"{label} has an answer_length of {shortened(repr(length))}: it must be a number of tokens, 0 for no answers"
        )
    return length


def with_beginnings(context: RunContext, model: BlockModel, name: str, items: Items) -> Items:
    """Return a set of items with the dense model's answers, if the recipe's objective wants them.

    Runs that follow each other share those of a set, by its name.
    """
    length = answer_length(context.recipe.objective, context.host)
    if not length or not items:
        return items
    # Fidelity wants answers to the held-out items, too, and a greedy answer begins as a shorter one does: it is made once.
    evaluation = context.recipe.settings.evaluation
    made_of = max(length, evaluation.answer_tokens) if name == "held-out" and evaluation.fidelity else length

    def make() -> Items:
        prompts = [item.prompt_of(item.answer) for item in items]
        done, count = 0.0, len(set(prompts))

        def answered_more(more: float) -> None:
            nonlocal done
            done += more
            context.host.tell("pdtrim_work_advanced", what="answers", number=0, count=0, share=min(1.0, done / count))

        made = beginnings(model, prompts, made_of, code=dense_code(model), fresh=context.fresh, answered=answered_more)
        return tuple(replace(item, dense_answer=made[prompt][:length]) for item, prompt in zip(items, prompts, strict=True))

    return context.cache.latest(f"answers {name}", (*keys_of(context.recipe).calibration, f"answers {length} of {made_of}"), make)
