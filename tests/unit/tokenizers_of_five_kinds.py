"""Tiny tokenizers of five kinds: by what they put around a text, and one that puts a space of its own in front of it."""

from __future__ import annotations

from typing import Any

KINDS = ("none", "bos", "eos", "both", "metaspace")
WITHOUT_END = {"none": "none", "bos": "bos", "eos": "none", "both": "bos", "metaspace": "metaspace"}
"""The kind that differs only in that it puts nothing behind a text."""
TEMPLATES = {"none": "$A", "bos": "<bos> $A", "eos": "$A <eos>", "both": "<bos> $A <eos>", "metaspace": "<bos> $A"}
MERGES = [("a", "b"), ("\u0120", "b"), ("\u0120b", "l"), ("i", "s")]
"""The letter in front of which byte-level tokenizers write a space, and a few pieces that may lie across a choice's beginning."""


def tokenizer_of(kind: str, *, declared: bool = True) -> Any:
    """Return a tokenizer of transformers; its special tokens are 256 (begins a text), 257 (ends it) and 258 (padding).

    Without `declared` it does not say which token begins a text, and puts it there all the same.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    made = _pieces() if kind == "metaspace" else _bytes()
    special: dict[str, Any] = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    made.add_special_tokens(list(special.values()))
    numbers = [(name, made.token_to_id(name)) for name in special.values()]
    made.post_processor = processors.TemplateProcessing(single=TEMPLATES[kind], special_tokens=numbers[:2])
    if not declared:
        special["additional_special_tokens"] = [special.pop("bos_token")]
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def _bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet())][: 256 - len(MERGES)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *("".join(merge) for merge in MERGES)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def _pieces() -> Any:
    """Return a tokenizer like those of sentencepiece: a space is part of the word behind it, and the text gets one in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", *(chr(letter) for letter in range(33, 127)), "\n", "\u2581", "\u2581b", "\u2581is", "ab"]
    pieces += [f"<{number}>" for number in range(256 - len(pieces))]
    made = Tokenizer(models.Unigram([(piece, -float(3 - min(len(piece), 2))) for piece in pieces], unk_id=0, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    return made
