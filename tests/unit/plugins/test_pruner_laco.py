"""LaCo: what folding gives, what the authors' code gave, and where the budget and the threshold stop it."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Merge, PdtrimError, Plan
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.testing import FAMILIES, prune_context, tiny_llama, tiny_model
from pdtrim_plugins.pruners import LaCo
from pdtrim_plugins.pruners.laco import Likeness, Run, fold, folded_block, norm_weights
from tests.reference import reference, reference_texts
from tests.unit.execution.test_staged_model import some_items, two_phase_sums

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Pruned

SEQUENCES = [[(7 * i + 3 * j + i * j) % 256 for j in range(8 + i)] for i in range(6)]


def pruned(model: BlockModel, blocks: int, notes: list[str] | None = None, **options: Any) -> Pruned:
    note = (lambda text: None) if notes is None else notes.append
    parameters = blocks * model.sizes.blocks[0].parameters
    context = prune_context(model, SEQUENCES, blocks=blocks, parameters=parameters, rng=Random(0), note=note)
    return LaCo.model_validate(options).prune(context)


def dense_runs(model: BlockModel) -> tuple[Run, ...]:
    return tuple(Run(block, block, module) for block, module in enumerate(model.blocks))


@pytest.mark.numeric
@pytest.mark.model
def test_folding_the_real_model_gives_what_the_authors_code_gave(smollm: BlockModel) -> None:
    expected = reference("laco")
    runs = dense_runs(smollm)
    code, paper = (fold(runs, 10, 4, way) for way in ("laco-code", "laco-paper"))
    assert len(code) == len(paper) == expected["blocks_after"]
    assert (code[10].first, code[10].last) == (10, 13)
    base, last = (dict(smollm.blocks[block].named_parameters()) for block in (10, 13))
    for name, weight in code[10].module.named_parameters():
        assert torch.equal(weight, (base if "norm" in name else last)[name])
    name = "self_attn.q_proj.weight"
    by_formula = sum(smollm.blocks[k].get_parameter(name) for k in (11, 12, 13)) - 2 * base[name]
    torch.testing.assert_close(paper[10].module.get_parameter(name), by_formula)
    # Their cosines are over texts that the oracle does not have; how they lie to each other is the same over ours.
    likeness = Likeness(smollm, [text[:12] for text in reference_texts(smollm.tokenizer)[:5]])
    dropped = (*runs[:11], *runs[14:])
    by_code, by_paper, by_drop = (likeness.of(each) for each in (code, paper, dropped))
    assert by_paper < 0.3 < min(by_code, by_drop)
    assert abs(by_code - by_drop) < 0.1


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_to_fold_are_the_formulas(family: str) -> None:
    model = tiny_model(family)
    first, *_, last = blocks = [dict(block.named_parameters()) for block in model.blocks[1:4]]
    generator = torch.Generator().manual_seed(0)
    for weight in (weight for block in model.blocks for weight in block.parameters() if weight.dim() == 1):
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    norms = norm_weights(model.blocks[1])
    assert norms == {name for name in first if "norm" in name}
    code, paper = (dict(folded_block(model.blocks[1:4], way).named_parameters()) for way in ("laco-code", "laco-paper"))
    for name in first:
        assert torch.equal(code[name], (first if name in norms else last)[name])
        by_formula = blocks[1][name] + blocks[2][name] - first[name]
        torch.testing.assert_close(paper[name], first[name] if name in norms else by_formula)


@pytest.mark.numeric
def test_the_likeness_is_that_of_the_models_own_last_states() -> None:
    model = tiny_model("opt")
    runs = dense_runs(model)
    likeness = Likeness(model, SEQUENCES)
    assert likeness.of(runs) == pytest.approx(1, abs=1e-6)
    swapped = (*runs[:2], Run(2, 2, model.blocks[3]), *runs[3:])
    found = likeness.of(swapped)
    cosines = []
    for sequence in SEQUENCES:
        ids = torch.tensor([sequence])
        with torch.inference_mode():
            dense = model.model.base_model(ids, use_cache=False).last_hidden_state
            with model.patched({2: model.blocks[3].forward}):
                other = model.model.base_model(ids, use_cache=False).last_hidden_state
        cosines.append(float(torch.cosine_similarity(dense.flatten(), other.flatten(), dim=0)))
    # Padding is in another batch than none; what is left is rounding.
    assert found == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


@pytest.mark.numeric
def test_blocks_that_are_alike_become_one_without_a_change() -> None:
    model = tiny_llama(silent={2, 3, 4})
    notes: list[str] = []
    found = pruned(model, 2, notes, layers=3, lowest=2, highest=5, threshold=0.999)
    assert [element.blocks for element in found.removal] == [(2, 3, 4)]
    assert notes == []


def test_a_step_that_is_accepted_moves_on_by_the_interval() -> None:
    # Everything is accepted, so pairs are folded at 3, and then at 1 or once more where the folded block now is.
    far, near = (pruned(tiny_llama(), 2, layers=2, interval=interval, threshold=-1) for interval in (2, 1))
    assert [element.blocks for element in far.removal] == [(1, 2), (3, 4)]
    assert [element.blocks for element in near.removal] == [(2, 3, 4)]


@pytest.mark.numeric
def test_layers_is_how_many_become_one_at_once() -> None:
    model = tiny_llama()
    at_once, by_pairs = (pruned(model, 3, layers=layers, threshold=-1) for layers in (4, 2))
    ((merge, once),), ((other, pairs),) = at_once.modules.items(), by_pairs.modules.items()
    assert merge == other == Merge(1, 4)
    # Either way the projections are those of block 4.
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), pairs.parameters(), strict=True))
    assert torch.equal(once.get_parameter("mlp.up_proj.weight"), model.blocks[4].get_parameter("mlp.up_proj.weight"))


@pytest.mark.numeric
def test_the_ways_differ() -> None:
    code, paper = (pruned(tiny_llama(), 2, merge=way, layers=3, threshold=-1) for way in ("laco-code", "laco-paper"))
    (code_block,), (paper_block,) = code.modules.values(), paper.modules.values()
    name = "mlp.up_proj.weight"
    assert code.removal == paper.removal
    assert not torch.allclose(code_block.get_parameter(name), paper_block.get_parameter(name))


def test_more_sentences_are_another_measure() -> None:
    notes: list[str] = []
    for sentences in (1, 6):
        pruned(tiny_llama(), 1, notes, threshold=1, sentences=sentences)
    assert len(set(notes)) == 2


@pytest.mark.numeric
def test_the_threshold_falls_to_the_best_step_that_a_pass_saw() -> None:
    model = tiny_llama()
    notes: list[str] = []
    found = pruned(model, 1, notes, layers=2, threshold=1)
    likeness = Likeness(model, SEQUENCES[:5])
    cosines = [likeness.of(fold(dense_runs(model), at, 2, "laco-code")) for at in range(4)]
    best = cosines.index(max(cosines))
    assert [element.blocks for element in found.removal] == [(best, best + 1)]
    assert notes == [f"laco lowered its threshold from 1 to {max(cosines):.4f} to reach 1 blocks"]


def test_a_threshold_that_stays_stops_short_and_says_so() -> None:
    notes: list[str] = []
    found = pruned(tiny_llama(), 2, notes, threshold=1, lower=False)
    assert len(found.removal) == 0
    (note,) = notes
    assert note.startswith("laco removed 0 of 2 blocks: no further step has a cosine above 1, the best one has ")


def test_it_stays_between_lowest_and_highest() -> None:
    found = pruned(tiny_llama(), 2, threshold=1, layers=2, lowest=1, highest=4)
    assert {block for element in found.removal for block in element.blocks} == {1, 2, 3}
    with pytest.raises(PdtrimError) as caught:
        pruned(tiny_llama(), 3, lowest=1, highest=4)
    assert str(caught.value) == (
        "pruner 'laco' can remove 2 of the blocks from 1 to 3, not 3: remove fewer, or widen pruner.lowest and pruner.highest"
    )
    with pytest.raises(PdtrimError) as caught:
        pruned(tiny_llama(), 1, highest=6)
    assert str(caught.value) == "pruner.highest = 6: the model's last block is 5"


@pytest.mark.numeric
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("threshold", [-1.0, 0.45, 1.0])
def test_any_budget_in_range_is_met(blocks: int, threshold: float) -> None:
    found = pruned(tiny_llama(), blocks, threshold=threshold, interval=2, layers=3)
    assert found.removal.blocks_removed == blocks
    assert all(a.blocks[-1] < b.blocks[0] for a, b in pairwise(found.removal))


def test_blocks_of_different_shapes_are_refused() -> None:
    small = tiny_llama(intermediate_size=32).blocks[1]
    with pytest.raises(PdtrimError) as caught:
        folded_block([tiny_llama().blocks[0], small], "laco-code")
    assert str(caught.value) == "pruner 'laco': the blocks to fold differ in the shapes of their weights"


def test_states_that_overflow_are_said() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.blocks[0].get_parameter("mlp.down_proj.weight").mul_(1e38)
    with pytest.raises(PdtrimError) as caught:
        pruned(model, 1)
    assert str(caught.value) == (
        'pruner \'laco\': the last hidden states are not finite: say dtype = "float32" or "bfloat16" in [model]'
    )


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("way", ["laco-paper", "laco-code"])
def test_one_pass_agrees_with_two_phases(family: str, way: str) -> None:
    model = tiny_model(family)
    found = pruned(model, 3, merge=way, layers=3)
    items = some_items()[:3]
    for plan in (Plan(decode=found.removal), Plan.unified(found.removal)):
        staged = StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), plan, found.modules)
        for item, sums, expected in zip(items, staged.loglikelihoods(items), two_phase_sums(staged, items), strict=True):
            assert sums == pytest.approx(expected, abs=1e-4 * max(map(len, item.choices)))
