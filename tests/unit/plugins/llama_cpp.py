"""What llama.cpp itself computes with a GGUF file, by the package xllamacpp: run as a program, `llama_cpp.py FILE ASKED TOLD`.

ASKED is JSON with `prompts` (numbers of tokens), how many `tokens` follow each, the size of the `vocabulary`, and `among` which
tokens each of them is the likeliest: some that are letters, since the server leaves out a token that ends within one. TOLD is
the file for the answers: for each prompt its tokens, and with each the log-probabilities of all tokens in its place.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main(file: str, asked: str, told: str) -> None:
    """Write what a server in this process answers, with K/V in float32 and without kernels that round on the way."""
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_batch, params.n_parallel = 256, 64, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.fit_params = False
    server = xllamacpp.Server(params)
    given = json.loads(asked)
    Path(told).write_text(json.dumps([answered(server, prompt, given) for prompt in given["prompts"]]), encoding="utf-8")


def answered(server: Any, prompt: list[int], given: dict[str, Any]) -> list[tuple[int, list[float]]]:
    """Return the likeliest token again and again, each with the log-probabilities of all tokens by their numbers."""
    options = {"temperature": 0, "cache_prompt": False, "logprobs": given["vocabulary"], "max_tokens": given["tokens"]}
    answer = server.handle_completions({"prompt": prompt, "logit_bias": [[token, 100] for token in given["among"]], **options})
    places = answer["choices"][0]["logprobs"]["content"]
    found = [{one["id"]: one["logprob"] for one in place["top_logprobs"]} for place in places]
    return [(place["id"], [by_id[token] for token in sorted(by_id)]) for place, by_id in zip(places, found, strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
