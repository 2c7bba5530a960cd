"""Quantises a checkpoint with llm-compressor: run by an environment that has it, alone, without pdtrim-core.

    python compress.py FOLDER OUT --method gptq --scheme W4A16 --texts texts.jsonl

The exporter `llm-compressor` copies this file beside the checkpoint, and runs it where it is told which interpreter has
llm-compressor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def recipe_of(method: str, scheme: str, group_size: int) -> list[Any]:
    """Return the modifiers of a method: all linear layers but the head, in groups of so many weights."""
    from compressed_tensors.quantization import preset_name_to_scheme  # noqa: PLC0415 - the other environment's
    from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: PLC0415

    made = preset_name_to_scheme(scheme, ["Linear"])
    if made.weights is not None and made.weights.group_size:
        made.weights.group_size = group_size
    options: dict[str, Any] = {"config_groups": {"group_0": made}, "ignore": ["lm_head"]}
    if method == "awq":
        from llmcompressor.modifiers.transform.awq import AWQModifier  # noqa: PLC0415

        return [AWQModifier(), QuantizationModifier(**options)]
    return [_without_first_tokens()(**options)]


def _without_first_tokens() -> Any:
    """Return GPTQ that counts all tokens of a text but the first, whose states are thousands of times longer in many models.

    With it, a few layers would be rounded so that this one token comes out right, at the expense of all others.
    """
    from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: PLC0415 - the other environment's

    class WithoutFirstTokens(GPTQModifier):  # type: ignore[misc]  # llm-compressor has no types here
        def calibrate_module(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
            given = args[0]
            # Experts are given tokens of their own, [tokens, inputs], of which no one knows the first.
            super().calibrate_module(module, (given[:, 1:] if given.dim() == 3 else given,), output)

    return WithoutFirstTokens


def main() -> None:
    """Quantise a checkpoint and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("out", type=Path, help="where the quantised one goes")
    parser.add_argument("--method", choices=("gptq", "awq"), default="gptq")
    parser.add_argument("--scheme", default="W4A16", help="weights and activations, as compressed-tensors names them")
    parser.add_argument("--group-size", type=int, default=64, help="weights that share a scale")
    parser.add_argument("--texts", type=Path, required=True, help="what it calibrates on: JSON lines with a text each")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a text at most")
    options = parser.parse_args()

    from datasets import Dataset  # noqa: PLC0415
    from llmcompressor import oneshot  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    texts = [json.loads(line)["text"] for line in options.texts.read_text(encoding="utf-8").splitlines()]
    rows = [dict(tokenizer(text, truncation=True, max_length=options.tokens)) for text in texts]
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list(rows),
        recipe=recipe_of(options.method, options.scheme, options.group_size),
        max_seq_length=options.tokens,
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(options.out, save_compressed=True)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
