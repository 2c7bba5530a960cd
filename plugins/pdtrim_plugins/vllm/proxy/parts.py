"""One request as parts that each have one prompt and one answer, and their answers as one.

The K/V of a prompt are handed over once, so each answer has a hand-over of its own; prefill computes a prompt once, and finds it
in its prefix cache for the other answers to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdtrim_plugins.vllm.proxy.handoff import RefusedError, Request

MOST_PARTS = 256
"""Answers to one request at most."""
PROMPT = "prompt: give a text or a list of token ids that is not empty, or a list of these"


@dataclass(frozen=True)
class Part:
    """One prompt with one answer: the choice's index, the prompt's number, whether it is the first answer to it."""

    index: int
    prompt: int
    first: bool
    body: Request


def parts_of(request: Mapping[str, Any]) -> list[Part]:
    """Return the parts of a request; one with the request itself where it asks for one answer to one prompt.

    Raises `RefusedError` for prompts that are none, and for more than `MOST_PARTS` answers.
    """
    prompts = _prompts_in(request.get("prompt"))
    copies = _copies_in(request)
    if len(prompts) * copies > MOST_PARTS:
        raise RefusedError(f"{len(prompts) * copies} answers in one request: at most {MOST_PARTS}")
    return [
        Part(number * copies + copy, number, copy == 0, _alone(request, prompt, copy))
        for number, prompt in enumerate(prompts)
        for copy in range(copies)
    ]


def _copies_in(request: Mapping[str, Any]) -> int:
    copies = request.get("n")
    if copies is None:
        return 1
    if not isinstance(copies, int) or isinstance(copies, bool) or copies < 1:
        raise RefusedError("n is a whole number, 1 or more")
    return copies


def _prompts_in(prompt: object) -> list[Any]:
    if prompt is None or isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise RefusedError(PROMPT)
    several = prompt if isinstance(prompt[0], (str, list)) else [prompt]
    for one in several:
        if not isinstance(one, str) and not (isinstance(one, list) and one and all(isinstance(token, int) for token in one)):
            raise RefusedError(PROMPT)
    return several


def _alone(request: Mapping[str, Any], prompt: object, copy: int) -> Request:
    body = {key: value for key, value in request.items() if key != "n"}
    if prompt is not None:
        body["prompt"] = prompt
    if copy and isinstance(body.get("seed"), int):
        # As vLLM does it: with one seed all answers would be the same.
        body["seed"] += copy
    return body


def with_usage(part: Part) -> Part:
    """Return a part of a stream that says at its end how many tokens it had."""
    options = part.body.get("stream_options")
    options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return Part(part.index, part.prompt, part.first, {**part.body, "stream_options": options})


def placed(event: Mapping[str, Any], part: Part) -> list[dict[str, Any]]:
    """Return the choices of a part's answer with the index that they have in the whole."""
    return [{**choice, "index": part.index} for choice in event.get("choices", ()) if isinstance(choice, dict)]


def whole_of(parts: Sequence[Part], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the answers as one."""
    choices = [choice for part, answer in zip(parts, answers, strict=True) for choice in placed(answer, part)]
    usages = [answer.get("usage") for answer in answers]
    return {**answers[0], "choices": choices, "usage": usage_of(zip(parts, usages, strict=True))}


def usage_of(usages: Iterable[tuple[Part, object]]) -> dict[str, Any]:
    """Return the tokens of all parts; a prompt counts once, however many answers it has."""
    found: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0}
    for part, usage in usages:
        if isinstance(usage, dict):
            for key, value in usage.items():
                if key != "total_tokens" and (part.first or not key.startswith("prompt")):
                    found[key] = _sum(found.get(key), value)
    return {**found, "total_tokens": found["prompt_tokens"] + found["completion_tokens"]}


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _sum(one.get(key), other.get(key)) for key in (*one, *(key for key in other if key not in one))}
    if isinstance(one, int) and isinstance(other, int):
        return one + other
    return one if other is None else other
