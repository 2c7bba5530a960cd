"""How decode looks at prompts: the weights of a stage-true run, summed over what a selection reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pdtrim_core.api import BlockModel, Drop, Item, KvOnly, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution import two_phase
from pdtrim_core.execution.attention_mass import masses, watchable
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.plan.selections import Edges, FirstOnly
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import MERGE, replacements

ALL = range(6)
CLOSE = 1e-5


def item(prompt: int = 60, answer: int = 5, seed: int = 3) -> Item:
    tokens = torch.randint(256, (prompt + answer,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Item((tuple(tokens[:prompt]),), (tuple(tokens[prompt:]), (1,)), 0, (1, 1), f"item {seed}")


def attention_of(model: BlockModel, tokens: list[int]) -> list[Tensor]:
    """Return the weights `[heads, tokens, tokens]` of each block, as transformers itself gives them."""
    model.model.set_attn_implementation("eager")
    with torch.inference_mode():
        return [weights[0] for weights in model.model(torch.tensor([tokens]), output_attentions=True).attentions]


@pytest.mark.numeric
@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_masses_of_the_dense_model_are_those_of_transformers_own_attentions(family: str, first_token: FirstToken) -> None:
    one, model = item(), tiny_model(family)
    selections = [chosen for block in ALL for chosen in (Edges(block, 0.2, 0.3), FirstOnly(block))]
    found = masses(TwoPhaseModel(model, Plan(), first_token=first_token), [one], selections)
    attentions = attention_of(model, [*one.prompts[0], *one.choices[0]])
    handed = 59 if first_token == "decode" else 60
    for selection, mass in zip(selections, found, strict=True):
        head, tail = selection.read(handed)
        of_prompt = attentions[selection.block][:, handed:64, :handed]
        expected = (of_prompt[..., :head].sum(-1) + of_prompt[..., handed - tail :].sum(-1)).mean(-1)
        assert mass.shape == (1, 4)
        assert torch.allclose(mass[0], expected, atol=CLOSE)


@pytest.mark.numeric
def test_models_opened_with_eager_attention_have_the_same_masses() -> None:
    selections = [Edges(block, 0.2, 0.3) for block in ALL]
    for family in ("llama", "gemma3"):
        of_sdpa, of_eager = (tiny_model(family) for _ in range(2))
        of_eager.model.set_attn_implementation("eager")
        assert of_sdpa.attention == "sdpa"
        for one, other in zip(
            *(masses(TwoPhaseModel(model, Plan()), [item()], selections) for model in (of_sdpa, of_eager)), strict=True
        ):
            assert torch.allclose(one, other, atol=CLOSE)


@pytest.mark.numeric
@pytest.mark.parametrize(
    "plan",
    [
        Plan(decode=Removal([Drop(1)])),
        Plan(Removal([KvOnly(4)]), Removal([Drop(2)])),
        Plan(Removal([Drop(1)]), Removal([Drop(1), MERGE])),
        Plan(decode=Removal([Shrink(2, "attention", (1,))])),
    ],
    ids=str,
)
def test_all_of_a_prompt_has_what_decode_does_not_look_at_itself_in_every_sort_of_plan(plan: Plan) -> None:
    model = tiny_llama()
    pair = TwoPhaseModel(model, plan, replacements(model))
    own: dict[int, Tensor] = {}

    def seen(block: int, weights: Tensor) -> None:
        own[block] = weights[..., 59:].sum(-1).mean(-1)

    one = item()
    pair.watch(one.prompts[0], one.choices[0], seen)
    assert tuple(own) == pair.decode_blocks
    everything = masses(pair, [one], [Edges(block, 0.5, 0.5) for block in pair.decode_blocks])
    for block, mass in zip(pair.decode_blocks, everything, strict=True):
        assert torch.allclose(mass[0], 1 - own[block], atol=CLOSE)
        assert len(mass[0]) == (2 if block == 2 and any(isinstance(e, Shrink) for e in plan.decode) else 4)


def test_it_is_decode_that_looks_and_at_the_keys_of_prefill() -> None:
    # With its first block gone, prefill hands over other K/V; a dense decode then looks elsewhere at the second one's.
    model, selections = tiny_llama(), [FirstOnly(block) for block in (2, 5)]
    of_dense, of_pair = (
        masses(TwoPhaseModel(model, plan), [item()], selections)
        for plan in (Plan(), Plan(Removal([KvOnly(1)]), Removal([Drop(4)])))
    )
    assert not torch.allclose(torch.stack(of_dense), torch.stack(of_pair), atol=1e-3)


def test_each_text_counts_for_itself_and_its_own_length_tells_what_is_read() -> None:
    pair, selections = TwoPhaseModel(tiny_llama(), Plan()), [Edges(3, 0.1, 0.1)]
    items = [item(80, seed=1), item(40, seed=2)]
    together = masses(pair, items, selections)[0]
    alone = [masses(pair, [one], selections)[0] for one in items]
    assert together.shape == (2, 4)
    assert torch.equal(together, torch.cat(alone))
    assert all(float(mass.min()) > 0 and float(mass.max()) <= 1 + CLOSE for mass in alone)


def test_tokens_that_are_watched_a_few_at_a_time_have_the_same_masses(monkeypatch: pytest.MonkeyPatch) -> None:
    selections = [Edges(block, 0.2, 0.3) for block in ALL]
    first_tokens: tuple[FirstToken, ...] = ("decode", "prefill")
    for first_token in first_tokens:
        pair = TwoPhaseModel(tiny_llama(), Plan(), first_token=first_token)
        at_once = masses(pair, [item(60, 8)], selections)
        monkeypatch.setattr(two_phase, "WATCHED_AT_ONCE", 3)
        in_parts = masses(pair, [item(60, 8)], selections)
        monkeypatch.undo()
        for one, other in zip(at_once, in_parts, strict=True):
            assert torch.allclose(one, other, atol=CLOSE)


def test_items_in_which_decode_reads_nothing_of_a_prompt_or_runs_nothing_are_left_out() -> None:
    one_token, one_answer, both = item(1, 5), item(60, 1), item(60, 2)
    assert watchable([one_token, one_answer, both], "decode") == [(one_answer, 59), (both, 59)]
    assert watchable([one_token, one_answer, both], "prefill") == [(one_token, 1), (both, 60)]


def test_the_table_of_attention_functions_is_left_as_it_was() -> None:
    before = dict(ALL_ATTENTION_FUNCTIONS)
    pair = TwoPhaseModel(tiny_llama(), Plan())
    masses(pair, [item()], [FirstOnly(0)])
    assert dict(ALL_ATTENTION_FUNCTIONS) == before

    def fails(block: int, weights: Tensor) -> None:
        raise ZeroDivisionError(block, weights)

    with pytest.raises(ZeroDivisionError):
        pair.watch(item().prompts[0], item().choices[0], fails)
    assert dict(ALL_ATTENTION_FUNCTIONS) == before


def test_a_function_that_someone_else_put_there_is_put_back() -> None:
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = wrapped
    try:
        masses(TwoPhaseModel(tiny_llama(), Plan()), [item()], [FirstOnly(0)])
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is wrapped
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_a_block_that_decode_does_not_run_is_named() -> None:
    pair = TwoPhaseModel(tiny_llama(), Plan(decode=Removal([Drop(2)])))
    with pytest.raises(PdtrimError, match="decode runs no block 2: it has 0, 1, 3, 4, 5"):
        masses(pair, [item()], [FirstOnly(2)])


def test_attention_that_gives_no_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    own = modeling_llama.eager_attention_forward

    def gives_none(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)[0], None

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", gives_none)
    with pytest.raises(PdtrimError, match=r"tiny llama \(llama\): its attention gives no weights"):
        masses(TwoPhaseModel(tiny_llama(), Plan()), [item()], [FirstOnly(2)])


def test_attention_without_an_eager_function_beside_it_is_refused() -> None:
    model = tiny_llama()
    attention = model.blocks[3].self_attn
    attention.__class__ = type("Elsewhere", (type(attention),), {"__module__": __name__})
    with pytest.raises(PdtrimError, match="its attention gives no weights"):
        masses(TwoPhaseModel(model, Plan()), [item()], [FirstOnly(2)])


def test_attention_that_never_asks_the_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import AttentionInterface
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", AttentionInterface())
    with pytest.raises(PdtrimError, match="choose first-only, or leave out kv_selector"):
        masses(TwoPhaseModel(tiny_llama(), Plan()), [item()], [FirstOnly(2)])


def test_selections_need_not_be_of_a_block_each() -> None:
    found = masses(TwoPhaseModel(tiny_llama(), Plan()), [item()], [Edges(2, 0.1, 0.1), FirstOnly(2), Edges(2, 0.4, 0.4)])
    assert [bool((found[1] <= other + CLOSE).all()) for other in (found[0], found[2])] == [True, True]
