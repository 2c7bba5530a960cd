"""Models whose blocks are no plain sequence are refused with the reason; all others tell what their blocks return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from pdtrim_core import PdtrimError
from pdtrim_core.model.supported import check_config, probe
from pdtrim_core.testing import FAMILIES, tiny_model
from pdtrim_core.testing.models import tiny_config

IDS = torch.zeros((1, 1), dtype=torch.long)


def refusal_of(config: Any) -> str:
    with pytest.raises(PdtrimError) as error:
        check_config(config, "org/model")
    return str(error.value)


def nested(**text: Any) -> Any:
    """A config whose language model has these settings."""
    return SimpleNamespace(get_text_config=lambda: SimpleNamespace(**text))


# Configs


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_of_decoder_only_families_are_taken(family: str) -> None:
    config = tiny_config(family)
    check_config(config, family)


def test_an_encoder_decoder_model_is_refused() -> None:
    # Of MusicGen's two language models transformers says itself that it does not know which is meant.
    for kind in ("t5", "musicgen"):
        assert refusal_of(AutoConfig.for_model(kind)) == (
            "org/model is an encoder-decoder model; prefill and decode are stages of decoder-only models"
        )


def test_quantised_weights_are_refused() -> None:
    config = tiny_config("llama", quantization_config={"quant_method": "gptq", "bits": 4})
    assert refusal_of(config) == ("org/model has quantised weights; prune the full-precision checkpoint and quantise the result")


ROPE = {"rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize("each_type", [False, True], ids=["one for all", "one for each type of block"])
def test_rotary_embeddings_that_change_with_the_batch_are_refused(kind: str, each_type: bool) -> None:
    rope: dict[str, Any] = {"rope_type": kind, **ROPE}
    if each_type:
        rope = {"sliding_attention": {"rope_type": "default", **ROPE}, "full_attention": rope}
    assert refusal_of(nested(rope_parameters=rope)) == (
        f"org/model uses {kind} rotary embeddings, which change with the length of the batch: measurements would depend on what "
        "else is in the batch"
    )


@pytest.mark.parametrize("rope", [None, {}, {"rope_type": "llama3", **ROPE}, {"full_attention": {"rope_type": "yarn", **ROPE}}])
def test_other_rotary_embeddings_are_taken(rope: dict[str, Any] | None) -> None:
    check_config(nested(rope_parameters=rope), "org/model")


def test_blocks_that_share_their_kv_are_refused() -> None:
    shares = "org/model shares K/V between blocks, so a single block cannot be removed"
    assert refusal_of(nested(num_kv_shared_layers=2)) == shares
    check_config(nested(num_kv_shared_layers=0), "org/model")


# Blocks


class Block(nn.Module):
    """Adds a number, and widens the stream where it is told to; returns a tensor, or a tuple of so many."""

    def __init__(self, number: int, *, extras: int | None = None, widen: int = 0) -> None:
        super().__init__()
        self._number = number
        self._extras = extras
        self._widen = widen

    def forward(self, hidden_states: Tensor) -> Tensor | tuple[Tensor, ...]:
        out = nn.functional.pad(hidden_states + self._number, (0, self._widen))
        return out if self._extras is None else (out, *[out] * self._extras)


def first_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class Tower(nn.Module):
    """Runs blocks in some order, and something between two of them, on one or more hidden states a token."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        order: Sequence[int] = (0, 1, 2),
        between: Callable[[Tensor], Tensor] = torch.clone,
        *,
        states: int = 1,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._order = order
        self._between = between
        self._states = states

    def forward(self, input_ids: Tensor, *, use_cache: bool) -> Tensor:
        assert not use_cache
        hidden = torch.ones((len(input_ids), self._states * input_ids.shape[1], 4))
        for block in self._order:
            hidden = first_of(self.blocks[block](hidden_states=self._between(hidden)))
        return hidden


def probed(tower: Tower) -> tuple[tuple[tuple[Any, ...] | None, ...], int]:
    return probe(tower, list(tower.blocks), IDS, name="org/model", layout="tower.blocks")


def test_blocks_that_return_tensors_and_tuples_are_told_apart_and_the_last_width_is_told() -> None:
    tower = Tower([Block(1), Block(2, extras=0, widen=3), Block(3, extras=2, widen=1)])
    assert probed(tower) == ((None, (), (None, None)), 8)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(PdtrimError, match="org/model has no blocks: num_hidden_layers of its config must be 1 or more"):
        probed(Tower([], order=()))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family_are_a_chain_with_the_width_of_the_model(family: str) -> None:
    model = tiny_model(family)
    returns, width = probe(model.model, model.blocks, IDS, name=family, layout=model.layout.blocks)
    assert (len(returns), width) == (model.block_count, 32)


NO_CHAIN = (
    "org/model: the blocks at tower.blocks are not a plain sequence in which each takes the output of the one before; this "
    "architecture cannot be pruned by blocks"
)


@pytest.mark.parametrize(
    ("order", "between"),
    [
        ((0, 2), torch.clone),
        ((0, 1, 1, 2), torch.clone),
        ((), torch.clone),
        ((0, 1, 2), torch.neg),
        ((1, 0, 2), torch.clone),
        ((0, 0, 2), torch.clone),
        ((0, 1, 2), lambda hidden: hidden[..., :-1]),
    ],
    ids=["one left out", "one run twice", "none run", "something between", "another order", "one in place of another", "a view"],
)
def test_blocks_that_are_no_chain_are_refused(order: Sequence[int], between: Callable[[Tensor], Tensor]) -> None:
    tower = Tower([Block(1), Block(2), Block(3)], order, between)
    with pytest.raises(PdtrimError) as error:
        probed(tower)
    assert str(error.value) == NO_CHAIN


def test_blocks_with_several_hidden_states_a_token_are_refused() -> None:
    with pytest.raises(PdtrimError) as error:
        probed(Tower([Block(1), Block(2), Block(3)], states=3))
    assert str(error.value) == (
        "org/model: its blocks have 3 hidden states where one token is read, and only those with one a token can be handed to "
        "other blocks; this architecture cannot be pruned by blocks"
    )


def test_blocks_that_share_a_dictionary_are_refused() -> None:
    class Sharing(Block):
        def forward(self, hidden_states: Tensor, shared: dict[str, Tensor] | None = None) -> Tensor | tuple[Tensor, ...]:
            return super().forward(hidden_states)

    tower = Tower([Sharing(1), Sharing(2), Sharing(3)])
    for block in tower.blocks:
        block.register_forward_pre_hook(lambda module, args, kwargs: (args, {**kwargs, "shared": {}}), with_kwargs=True)
    with pytest.raises(PdtrimError) as error:
        probed(tower)
    assert str(error.value) == "blocks of this model share a cache or a dictionary while they run, so they cannot run one by one"


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1), (0, 1, 7)], ids=["a chain", "no chain", "a model that fails"])
def test_a_model_is_left_as_it_was(order: Sequence[int]) -> None:
    tower = Tower([Block(1), Block(2), Block(3)], order)
    try:
        probed(tower)
    except (PdtrimError, IndexError):
        assert order != (0, 1, 2)
    assert all(not block._forward_hooks for block in tower.blocks)
