"""A tiny model as a GGUF file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pdtrim_core.testing import tiny_transformers


def write_gguf(
    file: Path,
    leave_out: Collection[str] = (),
    more: Mapping[str, tuple[int, ...]] | None = None,
    *,
    without: Collection[str] = (),
    values: Mapping[str, str | float] | None = None,
) -> str:
    """Write a tiny Llama with a tokenizer of bytes (and one merge: transformers reads no file without one) as GGUF.

    Tensors are left out by GGUF's names; `more` has shapes of others that are filled with ones.
    `values` are further ones, by their names; those named in `without` are left out.
    """
    import gguf
    import numpy as np

    model = tiny_transformers("llama")
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*signs_of_bytes(), "ab", "<s>", "</s>", "<pad>"])
    for key, value in (values or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_float32(key, value)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(259)
    for key in without:
        del writer.kv_data[0][key]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        if stored not in leave_out:
            writer.add_tensor(stored, weight.numpy())
    for name, shape in (more or {}).items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def write_gguf_of_experts(file: Path, leave_out: str = "", turn: str = "") -> tuple[str, Any]:
    """Write a tiny Qwen3 with experts as GGUF; return the file and the model. A tensor is left out, another turned round.

    The experts are as wide as transformers takes them to be, which does not read it from the file.
    """
    import gguf

    model = tiny_transformers("qwen3-moe", moe_intermediate_size=768)
    config = model.config
    writer = gguf.GGUFWriter(file, "qwen3moe")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*signs_of_bytes(), "ab", "<s>", "</s>", "<pad>"])
    writer.add_token_merges(["a b"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, config.num_hidden_layers)
    tensors: dict[str, Any] = {}
    for name, weight in model.state_dict().items():
        if name.endswith("gate_up_proj"):
            tensors |= zip((_experts_of(name, "gate"), _experts_of(name, "up")), weight.chunk(2, dim=1), strict=True)
        elif name.endswith("experts.down_proj"):
            tensors[_experts_of(name, "down")] = weight
        else:
            tensors[names.get_name(name, try_suffixes=(".weight",))] = weight
    for name, weight in tensors.items():
        if name != leave_out:
            writer.add_tensor(name, (weight.transpose(1, 2) if name == turn else weight).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file), model


def _experts_of(name: str, part: str) -> str:
    return f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight"


def signs_of_bytes() -> list[str]:
    """Return the printable sign that byte-level tokenizers write for each of the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
