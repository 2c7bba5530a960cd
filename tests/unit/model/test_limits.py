"""What a model can be given is found from its modules, whatever its family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pdtrim_core import PdtrimError, apply
from pdtrim_core.data.items import Item
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.plan import Plan
from pdtrim_core.testing import ByteTokenizer, tiny_model
from pdtrim_core.testing.models import FAMILIES


def tiny_gpt2(**settings: Any) -> BlockModel:
    """A family that is not built in, with positions in a table without spare rows."""
    from transformers import AutoModelForCausalLM, GPT2Config

    shape: dict[str, Any] = {"vocab_size": 260, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 24}
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(GPT2Config(**{**shape, **settings}))
    return BlockModel(model, ByteTokenizer(), BlockLayout("transformer.h"), name="tiny gpt2")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"opt"}))
def test_rotary_positions_have_no_end(family: str) -> None:
    model = tiny_model(family, max_position_embeddings=16)
    assert model.positions is None
    assert model.vocabulary == 260
    model.check_tokens([1] * 100, "a text")


@pytest.mark.parametrize("positions", [16, 33])
def test_learned_positions_end_where_their_table_does(positions: int) -> None:
    for model in (tiny_model("opt", max_position_embeddings=positions), tiny_gpt2(n_positions=positions)):
        assert model.positions == positions
        model.check_tokens([1] * positions, "a text")
        with torch.inference_mode():
            model.model(input_ids=torch.ones((1, positions), dtype=torch.long))
        with pytest.raises(PdtrimError) as caught:
            model.check_tokens([1] * (positions + 1), "a text")
        assert str(caught.value) == (
            f"a text needs {positions + 1} positions, and {model.name} has learned {positions}: take shorter texts"
        )
        with pytest.raises(IndexError), torch.inference_mode():
            model.model(input_ids=torch.ones((1, positions + 1), dtype=torch.long))


def test_a_table_of_tokens_is_none_of_positions() -> None:
    model = tiny_model("llama", vocab_size=260, max_position_embeddings=260)
    assert model.positions is None


@pytest.mark.parametrize("token", [260, 100_000, -1])
def test_a_token_without_a_row_is_named_with_tokenizer_and_model(token: int) -> None:
    with pytest.raises(PdtrimError) as caught:
        tiny_model("llama").check_tokens([1, 2, token], "the item 'x'")
    assert str(caught.value) == (
        f"the item 'x' has the token {token}, and the vocabulary of tiny llama ends at 259: its tokenizer and its weights do not "
        "belong together"
    )


def items_of(prompt: int, choice: int, token: int = 1) -> list[Item]:
    return [Item(((token,) * prompt,), ((2,) * choice,), 0, (choice,), "long")]


def test_a_pair_reads_up_to_the_last_position_and_refuses_more() -> None:
    model = tiny_model("opt", max_position_embeddings=24)
    pair = apply(Plan(), model)
    assert len(pair.loglikelihoods(items_of(20, 5))[0]) == 1
    with pytest.raises(PdtrimError, match="the item 'long' needs 25 positions, and tiny opt has learned 24"):
        pair.loglikelihoods(items_of(20, 6))
    assert 1 <= len(pair.generate([1] * 20, 5)) <= 5
    with pytest.raises(PdtrimError, match="the prompt with what follows it needs 25 positions"):
        pair.generate([1] * 20, 6)
    ids = torch.ones((2, 20), dtype=torch.long)
    options = {"pad_token_id": 258, "do_sample": False}
    assert pair.generate_batch(ids, torch.ones_like(ids), max_length=25, **options).shape[1] <= 25
    with pytest.raises(PdtrimError, match="a prompt with what follows it needs 25 positions"):
        pair.generate_batch(ids, torch.ones_like(ids), max_length=26, **options)


def test_a_pair_refuses_tokens_that_have_no_row() -> None:
    pair = apply(Plan(), tiny_model("llama"))
    with pytest.raises(PdtrimError, match="the item 'long' has the token 300"):
        pair.loglikelihoods(items_of(3, 1, token=300))
    with pytest.raises(PdtrimError, match="has the token 300"):
        pair.generate([1, 300], 2)
    ids = torch.tensor([[300, 1, 2], [1, 2, 3]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(PdtrimError, match="a prompt with its padding has the token 300"):
        pair.generate_batch(ids, mask, max_length=5, pad_token_id=300)
