"""The vocabulary of a tokenizer as the fields of a GGUF file: from the model's own GGUF file, or from a byte-level tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFWriter

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {
    f"{ENDINGS}|{LETTERS}|\\p{{N}}{{1,3}}{REST}": "llama-bpe",
    f"{ENDINGS}|{LETTERS}|\\p{{N}}{REST}": "qwen2",
}
"""llama.cpp's names for the patterns by which tokenizers split text before they merge bytes."""
NO_PRE = (
    "llama.cpp's name for the way this tokenizer splits text is not known, and with another one it would read other "
    "tokens: say --set pre=NAME, one of llama.cpp's names such as gpt-2, llama-bpe, qwen2 or smollm"
)
SPECIAL = ("bos", "eos", "unk", "pad")


def copy_fields(source: Path, writer: GGUFWriter) -> None:
    """Copy the tokenizer of a GGUF file into another one."""
    from gguf import GGUFReader, GGUFValueType  # noqa: PLC0415 - listings do without

    for name, found in GGUFReader(source).fields.items():
        if name.startswith("tokenizer."):
            sub = found.types[-1] if found.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, found.contents(), found.types[0], sub)


def tokenizer_problems(tokenizer: Any, vocabulary: int, pre: str | None) -> list[str]:
    """Return why a tokenizer cannot be written; `vocabulary` is the model's number of tokens, `pre` as for `write_fields`."""
    data = _data_of(tokenizer)
    if data.get("model", {}).get("type") != "BPE" or not _is_of_bytes(data):
        kind = type(tokenizer).__name__
        problem = f"{kind} is not a byte-level BPE tokenizer, the only kind that can be written to a GGUF file: "
        return [problem + "prune the GGUF file of this model, whose tokenizer is copied"]
    most = max(_known(data))
    return [
        *([f"the tokenizer has {most + 1} tokens, and the model {vocabulary}"] if most >= vocabulary else []),
        *([NO_PRE] if pre is None and _pre(data) is None else []),
    ]


def write_fields(tokenizer: Any, vocabulary: int, pre: str | None, writer: GGUFWriter) -> None:
    """Write a byte-level tokenizer that has no `tokenizer_problems`.

    `vocabulary` is the model's number of tokens, `pre` llama.cpp's name for the splitting, by default the one that is known.
    """
    data = _data_of(tokenizer)
    tokens, types = _tokens(data, vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre or _pre(data) or "")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]])
    writer.add_add_bos_token(_adds_bos(tokenizer))
    _write_special(tokenizer, writer)
    if isinstance(getattr(tokenizer, "chat_template", None), str):
        writer.add_chat_template(tokenizer.chat_template)


def _is_of_bytes(data: Mapping[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _splits(data)) and not data["model"].get("byte_fallback")


def _splits(data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the steps in which text is split, in order."""
    cut = data.get("pre_tokenizer") or {}
    steps: Sequence[Mapping[str, Any]] = cut.get("pretokenizers", [cut] if cut else [])
    return steps


def _pre(data: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for the way a tokenizer splits text; None where it is not known."""
    steps = _splits(data)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if len(patterns) == 1 and patterns[0] in SPLITS:
        return SPLITS[patterns[0]]
    return None


def _tokens(data: Mapping[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """Return all tokens by number and their types; numbers that the tokenizer does not use are marked as unused."""
    from gguf import TokenType  # noqa: PLC0415 - listings do without

    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    types = [int(TokenType.UNUSED)] * vocabulary
    for number, (text, special) in _known(data).items():
        kind = {None: TokenType.NORMAL, True: TokenType.CONTROL, False: TokenType.USER_DEFINED}[special]
        tokens[number], types[number] = text, int(kind)
    return tokens, types


def _known(data: Mapping[str, Any]) -> dict[int, tuple[str, bool | None]]:
    """Return the text of each token by number, and whether it is special; None for those that are no added ones."""
    known: dict[int, tuple[str, bool | None]] = {number: (text, None) for text, number in data["model"]["vocab"].items()}
    return known | {added["id"]: (added["content"], bool(added["special"])) for added in data.get("added_tokens", ())}


def _data_of(tokenizer: Any) -> Mapping[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {} if backend is None else json.loads(backend.to_str())


def _adds_bos(tokenizer: Any) -> bool:
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and bos in tokenizer("a")["input_ids"][:1]


def _write_special(tokenizer: Any, writer: GGUFWriter) -> None:
    writers = (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id)
    for name, write in zip(SPECIAL, writers, strict=True):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            write(number)
