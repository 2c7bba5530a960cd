"""The loss of a removal: that of the model's own forward, measured once, in batches that fit."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, Merge, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline import losses
from pdtrim_core.pipeline.losses import losses_of
from pdtrim_core.search.driver import Ledger
from pdtrim_core.testing import tiny_llama, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pdtrim_core import Element
    from pdtrim_core.api import BlockModel
    from pdtrim_core.pipeline.objective_value import Measurement

SEQUENCES = [Random(number).choices(range(256), k=length) for number, length in enumerate((5, 9, 1, 14, 9))]
CLOSE = 1e-5
"""Relative: float32 logits of around 10, summed in another order."""


def loss_on(
    sequences: Sequence[Sequence[int]],
    *,
    model: BlockModel | None = None,
    note: Callable[[str], None] = print,
    **options: Any,
) -> Callable[[Removal], float]:
    return losses_of(model or tiny_llama(), ExecutionOptions(**options), note=note)(sequences)


def own_loss(model: BlockModel, removal: Removal) -> float:
    """Return the mean loss of the model's own forward with patched blocks, each sequence by itself."""
    forwards: dict[int, Any] = {}
    for element in removal:
        if isinstance(element, Shrink):
            forwards[element.block] = model.narrowed([element], {}).forward
        else:
            forwards[element.blocks[0]] = lambda hidden, *_, **__: hidden
    total = count = 0.0
    with torch.inference_mode(), model.patched(forwards):
        for sequence in SEQUENCES:
            ids = torch.tensor([sequence])
            logits = model.model(ids, use_cache=False).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += len(sequence) - 1
    return total / count


@pytest.mark.parametrize("batch_tokens", [1, 20, 512])
@pytest.mark.parametrize(
    "elements", [[], [Drop(1)], [Drop(0), Drop(5)], [Drop(4), Shrink(2, "mlp", (0, 7))], [Shrink(3, "attention", (1,))]]
)
def test_the_loss_is_that_of_the_models_own_forward(elements: list[Element], batch_tokens: int) -> None:
    removal = Removal(elements)
    loss = loss_on(SEQUENCES, batch_tokens=batch_tokens)
    assert loss(removal) == pytest.approx(own_loss(tiny_llama(), removal), rel=CLOSE)


def test_sequences_of_one_token_have_no_loss() -> None:
    with pytest.raises(PdtrimError) as error:
        loss_on([[1], [], [2]])
    assert str(error.value) == "there are no sequences of two tokens or more to measure a loss on: give longer samples"


def test_a_merge_has_no_loss_for_want_of_its_block() -> None:
    loss = loss_on(SEQUENCES)
    with pytest.raises(PdtrimError, match=r"the plan has 1\+2, but no merged block was given for it"):
        loss(Removal([Merge(1, 2)]))


class Ledgers:
    """Makes ledgers as a run does, and keeps what is measured by part."""

    def __init__(self) -> None:
        self.measured: dict[str, list[Plan]] = {}

    def __call__(self, part: str, measurement: Measurement) -> Ledger:
        plans = self.measured.setdefault(part, [])
        return Ledger(measurement, record=lambda plan, reading: plans.append(plan))


def test_a_loss_is_measured_once_and_each_set_of_sequences_has_a_part_of_its_own() -> None:
    ledgers = Ledgers()
    loss_of = losses_of(tiny_llama(), note=print, ledger=ledgers)
    short, long = loss_of(SEQUENCES[:2]), loss_of(SEQUENCES)
    found = [loss(Removal([Drop(block)])) for loss in (short, long) for block in (1, 1, 2)]
    loss_of(SEQUENCES[:2])
    assert found[0] == found[1] != found[3] == found[4]
    plans = [Plan.unified(Removal([Drop(block)])) for block in (1, 2)]
    assert list(ledgers.measured.values()) == [plans, plans]
    assert all(part.startswith("losses ") for part in ledgers.measured)


def test_a_batch_that_does_not_fit_is_halved_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    measure = StagedModel.loglikelihoods
    failures = [torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError("still none")]

    def loglikelihoods(self: StagedModel, items: Any) -> Any:
        if failures:
            raise failures.pop()
        return measure(self, items)

    monkeypatch.setattr(StagedModel, "loglikelihoods", loglikelihoods)
    loss = loss_on(SEQUENCES, note=notes.append, batch_tokens=80)
    assert loss(Removal()) == pytest.approx(own_loss(tiny_llama(), Removal()), rel=CLOSE)
    assert notes == [f"out of memory on the device: going on with batches of {size} tokens" for size in (40, 20)]


def test_kept_streams_take_no_more_than_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int | None] = []

    class Spied(PrefixCache):
        def __init__(self, model: BlockModel, options: ExecutionOptions) -> None:
            budgets.append(options.budget)
            super().__init__(model, options)

    monkeypatch.setattr(losses, "PrefixCache", Spied)
    loss_on(SEQUENCES, budget=0)(Removal())
    loss_on(SEQUENCES)
    assert budgets == [0, None]


@pytest.mark.parametrize("family", ["gpt-neox", "qwen3"])
def test_another_family_has_its_own_forwards_loss_too(family: str) -> None:
    removal = Removal([Drop(2)])
    loss = loss_on(SEQUENCES, model=tiny_model(family))
    assert loss(Removal()) == pytest.approx(own_loss(tiny_model(family), Removal()), rel=CLOSE)
    assert loss(removal) == pytest.approx(own_loss(tiny_model(family), removal), rel=CLOSE)


def test_a_loss_that_is_not_finite_says_what_was_removed_and_what_may_help() -> None:
    model = tiny_llama()
    model.blocks[2].get_parameter("mlp.up_proj.weight").data[0, 0] = torch.inf
    loss = loss_on(SEQUENCES, model=model)
    with pytest.raises(PdtrimError) as error:
        loss(Removal([Drop(1)]))
    assert str(error.value) == (
        "the loss without {1} is not finite; if the weights are in float16, which overflows early, say model.dtype = "
        '"bfloat16" or "float32"'
    )
