"""A pair generates from text and tokens, one prompt and several, with the options of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pdtrim_core import Drop, PdtrimError, Plan, Removal, apply
from pdtrim_core.pipeline.apply import ModelPair
from pdtrim_core.testing import ByteTokenizer, tiny_transformers

TEXTS = ["A prompt of some length", "Another", "Water freezes at"]
PLAN = Plan(prefill=Removal([Drop(4)]), decode=Removal([Drop(2), Drop(4)]))


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return apply(PLAN, tiny_transformers("llama"), tokenizer=ByteTokenizer())


def test_text_and_tokens_give_the_same_alone_and_together(pair: ModelPair) -> None:
    tokens = [list(text.encode()) for text in TEXTS]
    alone = [pair.generate(one, 6) for one in tokens]
    assert pair.generate(tokens, 6) == alone
    texts = [pair.generate(text, 6) for text in TEXTS]
    assert texts == [ByteTokenizer().decode(one) for one in alone]
    assert pair.generate(TEXTS, 6) == texts
    assert pair.generate(tokens, 6, do_sample=False) == alone  # through transformers' own generate
    assert pair.generate(tokens[0], 6, recompute=1) == alone[0]


def test_a_padded_tensor_gives_the_prompts_with_what_follows(pair: ModelPair) -> None:
    tokens = [list(text.encode()) for text in TEXTS]
    width = max(map(len, tokens))
    given = {
        "input_ids": torch.tensor([[0] * (width - len(one)) + one for one in tokens]),
        "attention_mask": torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in tokens]),
    }
    whole = pair.generate(**given, max_new_tokens=6)
    assert whole[:, :width].equal(given["input_ids"])
    for row, one in zip(whole[:, width:].tolist(), tokens, strict=True):
        expected = pair.generate(one, 6)
        assert row[: len(expected)] == expected


def test_samples_follow_their_options_and_the_seed(pair: ModelPair) -> None:
    def sampled(seed: int, **options: Any) -> str:
        torch.manual_seed(seed)
        return pair.generate(TEXTS[0], 12, do_sample=True, **options)

    assert sampled(1, temperature=3.0) == sampled(1, temperature=3.0)
    assert len({sampled(seed, temperature=3.0) for seed in range(4)}) > 1
    assert sampled(5, top_k=1) == pair.generate(TEXTS[0], 12)


def test_the_dense_plan_samples_as_transformers_does() -> None:
    model = tiny_transformers("llama")
    ids = torch.tensor([list(TEXTS[0].encode())])
    options = {"do_sample": True, "temperature": 2.0, "pad_token_id": 0}
    torch.manual_seed(3)
    expected = model.generate(ids, max_new_tokens=8, **options)
    torch.manual_seed(3)
    assert apply(Plan(), model).generate(ids, max_new_tokens=8, **options).equal(expected)


def test_a_token_that_ends_texts_is_the_last(pair: ModelPair) -> None:
    stop = pair.generate(list(TEXTS[0].encode()), 6)[2]
    found = pair.generate(list(TEXTS[0].encode()), 6, eos_token_id=stop)
    assert found[-1] == stop
    assert stop not in found[:-1]


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        (None, {}, "generate takes a prompt: a text, tokens, or a list of either"),
        ([1, "a"], {}, "or a tensor [batch, token], not list of int, str"),
        (3.5, {}, "or a tensor [batch, token], not float"),
        (torch.zeros(3), {}, "a tensor of tokens is [batch, token] of whole numbers, not [3] of torch.float32"),
        ("a", {"num_beams": 2}, "num_beams: a pair makes one continuation of a prompt"),
        ("a", {"max_length": 9}, "max_length counts the prompt, too: say max_new_tokens"),
        ([], {}, "there is no prompt: the list is empty"),
        ([[65], []], {}, "prompt 1 has no tokens, so that nothing can follow it"),
        ("", {}, "prompt 0 has no tokens, so that nothing can follow it"),
        (["a", ""], {"do_sample": True}, "prompt 1 has no tokens, so that nothing can follow it"),
        (torch.zeros(1, 0, dtype=torch.long), {}, "a tensor of tokens [1, 0] has none, so that nothing can follow them"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens is a number of tokens from 1 on, not 0"),
        ("a", {"tempreture": 0.5}, "transformers refuses these options of generate: "),
        ("a", {"attention_mask": torch.ones(1, 1)}, "attention_mask goes with a tensor of tokens"),
    ],
)
def test_what_a_pair_cannot_follow_is_told(pair: ModelPair, prompt: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PdtrimError) as told:
        pair.generate(prompt, **options)
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_masks_that_do_not_fit_are_told(pair: ModelPair) -> None:
    ids = torch.tensor([[65, 66, 67]])
    with pytest.raises(PdtrimError, match=r"attention_mask is \[1, 2\], and the tokens are \[1, 3\]"):
        pair.generate(ids, 2, attention_mask=torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(PdtrimError, match="prompts are padded on the left"):
        pair.generate(ids, 2, attention_mask=torch.tensor([[1, 1, 0]]))


def test_text_without_a_tokenizer_says_where_one_goes() -> None:
    with pytest.raises(PdtrimError, match=r"text needs a tokenizer: say apply\(..., tokenizer=...\), or give tokens"):
        apply(PLAN, tiny_transformers("llama")).generate("a")
