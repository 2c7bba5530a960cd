"""Tiny models of many families, made in milliseconds, with a tokenizer that knows every byte.

Weights are random and large enough that blocks matter: logits are around 10, so that a mistake shows as a whole number and
rounding does not.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pdtrim_core.errors import PdtrimError, did_you_mean
from pdtrim_core.files.paths import PathLike
from pdtrim_core.host.host import PluginHost, load_plugins
from pdtrim_core.model.block_model import BlockModel

VOCABULARY = 260
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 48}
_EXPERTS: dict[str, Any] = {**_GROUPED, "num_experts_per_tok": 2}
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "gemma3_text",
        {**_GROUPED, "head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    ),
    "gpt-neox": ("gpt_neox", {**_SHAPE, "intermediate_size": 48}),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": None}),
    "mixtral": ("mixtral", {**_EXPERTS, "num_local_experts": 4}),
    "opt": ("opt", {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi3": ("phi3", _GROUPED),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 8}),
    "qwen3-moe": ("qwen3_moe", {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}),
}
"""The families by name: their `model_type` and the settings of a tiny config."""


class ByteTokenizer:
    """A tokenizer whose tokens are the bytes of UTF-8; it adds no special tokens."""

    bos_token_id = 256
    eos_token_id = 257
    pad_token_id = 258

    def __call__(self, text: str, **_options: object) -> dict[str, list[int]]:
        """Return the token ids of a text."""
        return {"input_ids": list(text.encode())}

    def decode(self, tokens: Collection[int]) -> str:
        """Return the text of token ids, special ones left out."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


def tiny_config(family: str, **settings: Any) -> Any:
    """Return a tiny transformers config of a family; `settings` change it."""
    from transformers import AutoConfig  # noqa: PLC0415 - slow to import

    if family not in FAMILIES:
        raise PdtrimError(f"there is no tiny model of '{family}'{did_you_mean(family, FAMILIES)}")
    model_type, shape = FAMILIES[family]
    return AutoConfig.for_model(model_type, **{**shape, **settings})


def tiny_transformers(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Return a tiny transformers model of a family with random weights; `settings` change its config."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - slow to import

    config = tiny_config(family, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(dtype).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # transformers starts from weights so small that every block is nearly the identity.
                nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    return model


def tiny_model(
    family: str = "llama", *, seed: int = 0, silent: Collection[int] = (), host: PluginHost | None = None, **settings: Any
) -> BlockModel:
    """Return a tiny model as blocks.

    The blocks in `silent` are exactly the identity: their output projections are zero. A scorer must rank them first,
    dropping them must change no logit. `settings` change the config (and `dtype` the number format).
    """
    model = tiny_transformers(family, seed=seed, **settings)
    layout = (host or _installed()).find_blocks(model, f"tiny {family}")
    for index in silent:
        _silence(model.get_submodule(layout.blocks)[index])
    return BlockModel(model, ByteTokenizer(), layout, name=f"tiny {family}")


@functools.cache
def _installed() -> PluginHost:
    """Return a host of the installed plugins: tests make thousands of tiny models, and loading takes as long as making one."""
    return load_plugins()


def tiny_llama(*, seed: int = 0, silent: Collection[int] = (), **settings: Any) -> BlockModel:
    """Return a tiny Llama as blocks; see `tiny_model`."""
    return tiny_model("llama", seed=seed, silent=silent, **settings)


def save_tiny_model(folder: PathLike, family: str = "llama", **settings: Any) -> Path:
    """Write a tiny model as a transformers checkpoint with a byte-level tokenizer; return the folder.

    A recipe can name it: `[model] path = "..."`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - comes with transformers
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - slow to import

    folder = Path(folder)
    tiny_transformers(family, **settings).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Added in this order they get the numbers behind the bytes that the config of tiny models has for them.
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


_OUTPUTS = ("o_proj", "down_proj", "out_proj", "fc2", "dense", "dense_4h_to_h")


def _silence(block: nn.Module) -> None:
    """Make a block add nothing to the hidden states: zero the projections that write to them."""
    for name, parameter in block.named_parameters():
        owner = name.split(".")[-2] if "." in name else name
        if owner in _OUTPUTS or "down_proj" in name or name.endswith(".w2"):
            with torch.no_grad():
                parameter.zero_()
