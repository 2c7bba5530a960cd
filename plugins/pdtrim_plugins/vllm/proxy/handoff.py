"""Splits a client's request into one for prefill and one for decode, and refuses what a pair cannot serve.

Free of torch, vLLM and the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdtrim_core import PdtrimError

Request = dict[str, Any]

FOR_PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}
NEEDED = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
"""Without all of these vLLM's NIXL connector takes the request, warns, and lets decode compute the prompt by itself."""
OF_SAMPLING = (
    "allowed_token_ids", "bad_words", "best_of", "guided_choice", "guided_decoding_backend", "guided_grammar", "guided_json",
    "guided_regex", "include_stop_str_in_output", "logit_bias", "logprob_token_ids", "logprobs", "max_completion_tokens",
    "min_tokens", "n", "prompt_logprobs", "repetition_detection", "response_format", "stop", "stop_token_ids", "stream",
    "stream_options", "structured_outputs", "thinking_token_budget", "top_logprobs", "use_beam_search",
)  # fmt: skip
"""Keys that do not change the prompt, but could end prefill's one token early, or delay it."""


class RefusedError(PdtrimError):
    """A request that a pair cannot serve correctly."""


class HandOverError(PdtrimError):
    """Prefill answered, but gave no K/V that decode could fetch."""


def check(request: Mapping[str, Any]) -> None:
    """Raise `RefusedError` for requests that need prefill's logits, or K/V that a client or beams would share."""
    if request.get("prompt_logprobs") is not None:
        raise RefusedError(
            "prompt_logprobs: prefill is a pruned model without a head, so a pair has no log-probabilities of a prompt"
        )
    if request.get("echo"):
        raise RefusedError("echo: a pair does not return the prompt; put it in front of the answer yourself")
    if (request.get("best_of") or 1) != 1:
        raise RefusedError("best_of: a pair does not choose among answers; ask for several with n")
    if request.get("use_beam_search"):
        raise RefusedError("use_beam_search: the K/V of a prompt are handed over once, beams need them several times")
    if request.get("kv_transfer_params") is not None:
        raise RefusedError("kv_transfer_params: the proxy makes them itself; leave them out")
    if request.get("prompt_embeds") is not None:
        raise RefusedError("prompt_embeds: a pair takes text or token ids")


def for_prefill(request: Mapping[str, Any], model: str, *, storage: bool = False) -> Request:
    """Return the request for prefill: the same prompt, and one token that is not used and must not end early.

    vLLM hands K/V over only for requests that ended by their length, so end-of-sequence tokens are ignored. `storage` is for
    connectors that pass K/V through files and need no parameters for it.
    """
    body = {key: value for key, value in request.items() if key not in OF_SAMPLING}
    body.update(model=model, max_tokens=1, ignore_eos=True, stream=False)
    if "messages" in request:
        body["max_completion_tokens"] = 1
    if not storage:
        body["kv_transfer_params"] = dict(FOR_PREFILL)
    return body


def for_decode(request: Mapping[str, Any], model: str, answer: Mapping[str, Any], *, storage: bool = False) -> Request:
    """Return the request for decode: the client's, with the address of the K/V.

    Raises `HandOverError` where prefill's answer has no address: decode would accept such a request and compute the prompt
    itself, with the decode model.
    """
    body = {**request, "model": model}
    if storage:
        usage = answer.get("usage")
        tokens = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        if not isinstance(tokens, int):
            raise HandOverError("prefill answered without usage.prompt_tokens")
        if tokens < 2:
            # Decode would look for a negative number of tokens, and end (seen in vLLM 0.32).
            raise HandOverError("vLLM's example connector cannot take a prompt of one token: use NIXL")
        return body
    params = answer.get("kv_transfer_params")
    if not isinstance(params, Mapping):
        raise HandOverError("prefill answered without kv_transfer_params: it runs with no connector, or the request was aborted")
    missing = [key for key in NEEDED if params.get(key) is None]
    if missing or not params.get("do_remote_prefill") or not _some(params.get("remote_block_ids")):
        raise HandOverError(f"prefill's kv_transfer_params name no K/V to fetch (without: {', '.join(missing) or 'blocks'})")
    return {**body, "kv_transfer_params": dict(params)}


def _some(blocks: object) -> bool:
    return isinstance(blocks, list) and any(blocks)
