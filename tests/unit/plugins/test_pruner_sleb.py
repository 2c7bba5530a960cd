"""SLEB: removal by the loss, against the authors' figures and on models in which the answer was planted."""

from __future__ import annotations

import math
import re
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, PdtrimError, Plan, Removal
from pdtrim_core.data.readings import Reading
from pdtrim_core.pipeline.losses import losses_of
from pdtrim_core.search.driver import Ledger
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_plugins.pruners import Sleb
from tests.reference import reference, reference_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdtrim_core.api import BlockModel
    from pdtrim_core.pipeline.objective_value import Measurement

pytestmark = pytest.mark.numeric

SEQUENCES = [Random(number).choices(range(256), k=11) for number in range(4)]


class Recorded:
    """A context whose losses and notes can be looked at afterwards; losses that are known are not measured."""

    def __init__(
        self,
        model: BlockModel,
        sequences: Sequence[Sequence[int]] = SEQUENCES,
        *,
        blocks: int,
        known: Mapping[Removal, float] | None = None,
    ) -> None:
        self.losses: dict[Removal, float] = {}
        self.notes: list[str] = []
        self._known = {Plan.unified(removal): Reading(-loss, loss) for removal, loss in (known or {}).items()}
        parameters = blocks * model.sizes.blocks[0].parameters
        losses = losses_of(model, note=self.notes.append, ledger=self._ledger)
        self.context = prune_context(
            model, sequences, blocks=blocks, parameters=parameters, note=self.notes.append, losses=losses
        )

    def _ledger(self, part: str, measurement: Measurement) -> Ledger:
        del part

        def record(plan: Plan, reading: Any) -> None:
            self.losses[plan.decode] = reading.mean

        return Ledger(measurement, known=self._known, record=record)


def full_loss(model: BlockModel, removed: Sequence[int], windows: Sequence[Sequence[int]]) -> float:
    """Return the mean loss of the model's own forward, without some blocks."""
    with torch.inference_mode(), model.patched({block: lambda hidden, *_, **__: hidden for block in removed}):
        ids = torch.tensor(windows)
        logits = model.model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()


def own_words(model: BlockModel) -> list[list[int]]:
    """Return what a model itself says, so that its loss grows with every block that does something."""
    sequences = [[start] for start in (3, 141, 59, 26)]
    with torch.inference_mode():
        for _ in range(10):
            for sequence in sequences:
                sequence.append(int(model.model(torch.tensor([sequence]), use_cache=False).logits[0, -1].argmax()))
    return sequences


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_each_step_removes_the_block_without_which_the_loss_is_lowest(family: str) -> None:
    model = tiny_model(family)
    windows = [[token for s in SEQUENCES for token in s][start : start + 10] for start in (0, 10, 20, 30)]
    removed: list[int] = []
    for _ in range(3):
        left = [block for block in range(6) if block not in removed][1:-1]
        removed.append(min(left, key=lambda block: full_loss(model, [*removed, block], windows)))
    recorded = Recorded(model, blocks=3)
    assert Sleb(window=10).prune(recorded.context).removal == Removal(map(Drop, removed))
    (note,) = recorded.notes
    told = re.findall(r"block (\d+) \(loss ([\d.]+)\)", note)
    assert note.startswith("sleb removed block ")
    assert [int(block) for block, _ in told] == removed
    losses = [full_loss(model, removed[: number + 1], windows) for number in range(3)]
    assert [float(loss) for _, loss in told] == pytest.approx(losses, abs=1e-4)


def test_silent_blocks_go_first_the_lower_one_before_the_higher() -> None:
    model = tiny_llama(silent=[2, 4])
    for blocks, gone in ((1, [2]), (2, [2, 4])):
        assert Sleb(window=8).prune(Recorded(model, own_words(model), blocks=blocks).context).removal == Removal(map(Drop, gone))


@pytest.mark.parametrize(("barriers", "blocks"), [((1, 1), {1, 2, 3, 4}), ((0, 3), {0, 1, 2}), ((2, 0), {2, 3, 4, 5})])
def test_barriers_keep_blocks_at_both_ends(barriers: tuple[int, int], blocks: set[int]) -> None:
    recorded = Recorded(tiny_llama(), blocks=1)
    Sleb(window=8, early_barrier=barriers[0], latter_barrier=barriers[1]).prune(recorded.context)
    assert {block for removal in recorded.losses for element in removal for block in element.blocks} == blocks


def test_every_candidate_is_measured_once_a_step() -> None:
    recorded = Recorded(tiny_llama(), blocks=3)
    Sleb(window=8).prune(recorded.context)
    assert len(recorded.losses) == 4 + 3 + 2


@pytest.mark.parametrize(("options", "windows"), [({"window": 8}, 5), ({"window": 8, "windows": 3}, 3), ({"window": 44}, 1)])
def test_losses_are_of_so_many_windows_of_the_joined_items(options: dict[str, int], windows: int) -> None:
    model = tiny_llama()
    recorded = Recorded(model, blocks=1)
    Sleb.model_validate(options).prune(recorded.context)
    tokens = [token for s in SEQUENCES for token in s]
    length = options["window"]
    cut = [tokens[number * length : (number + 1) * length] for number in range(windows)]
    for removal, loss in recorded.losses.items():
        assert loss == pytest.approx(full_loss(model, [e.blocks[0] for e in removal], cut), rel=1e-5)


@pytest.mark.parametrize(("blocks", "late", "most"), [(5, 1, 4), (1, 9, 0)])
def test_a_budget_that_the_barriers_forbid_is_refused(blocks: int, late: int, most: int) -> None:
    recorded = Recorded(tiny_llama(), blocks=blocks)
    with pytest.raises(PdtrimError) as error:
        Sleb(window=8, latter_barrier=late).prune(recorded.context)
    assert str(error.value) == (
        f"sleb: asked to remove {blocks} of the 6 blocks, but the barriers keep {1 + late}: remove at most {most}, or lower "
        "early_barrier or latter_barrier"
    )
    assert not recorded.losses


def test_a_loss_that_is_not_finite_is_named() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.blocks[3].get_parameter("mlp.down_proj.weight").fill_(math.inf)
    with pytest.raises(PdtrimError) as error:
        Sleb(window=8).prune(Recorded(model, blocks=1).context)
    assert str(error.value) == (
        "the loss without {1} is not finite; if the weights are in float16, which overflows early, say "
        'model.dtype = "bfloat16" or "float32"'
    )


@pytest.mark.model
@pytest.mark.parametrize("step", [0, 1])
def test_losses_and_order_are_those_of_the_authors(smollm: BlockModel, step: int) -> None:
    """The first two removals, each measured here; what the first one's candidates give is known where the second is measured."""
    phases = reference("sleb")["phases"][: step + 1]
    *earlier, expected = [
        {Removal(map(Drop, [*phase["already_removed"], int(block)])): loss for block, loss in phase["candidate_loss"].items()}
        for phase in phases
    ]
    # Theirs are sums over four windows of 128 tokens, of the mean over the 127 that are scored.
    known = {removal: loss / (4 * 128) for losses in earlier for removal, loss in losses.items()}
    recorded = Recorded(smollm, [reference_text(smollm.tokenizer)], blocks=step + 1, known=known)
    removal = Sleb(window=128).prune(recorded.context).removal
    assert len(expected) == (28, 27)[step]
    assert recorded.losses.keys() == expected.keys()
    assert [4 * 128 * recorded.losses[key] for key in expected] == pytest.approx(list(expected.values()), rel=1e-5)
    order = re.findall(r"block (\d+) \(loss", recorded.notes[0])
    assert [int(block) for block in order] == [phase["selected"] for phase in phases] == [26, 16][: step + 1]
    assert removal == Removal(map(Drop, [26, 16][: step + 1]))
