"""The room that a decode server has for K/V, of which each request gets as much as it may come to need.

A server of vLLM that runs out of room takes back what a request has, and later computes the K/V of its prompt anew: with the
decode model, so that the answer is another one from there on. Where all that is asked for has room together, that never happens.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

CACHE = re.compile(rb"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
"""The line of vLLM's metrics that tells of its cache, one for each engine of a server."""
BLOCKS, SIZE = (re.compile(rb'(?:^|,)%s="(\d{1,15})"' % name) for name in (b"num_gpu_blocks", b"block_size"))
ANSWER = 16
"""Tokens of a completion that does not say how many it wants."""
ALL_LEFT = 2**40
"""More tokens than any server has room for: those of a chat that does not say how many it wants."""


class Room:
    """The room of one server, in tokens. `size` is None where it is not known; everything has room then."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.longest: int | None = None
        """Tokens of a prompt with its answer at most, where that is known."""
        self.waiting = 0
        """Requests that wait for room."""
        self._block = 1
        self._taken = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    def learn(self, metrics: bytes, longest: object) -> None:
        """Take in what a server tells of its cache, and of its longest texts; where it tells nothing its last size stands."""
        self.longest = longest if isinstance(longest, int) and not isinstance(longest, bool) and longest > 0 else None
        engines = [(BLOCKS.search(labels), SIZE.search(labels)) for labels in CACHE.findall(metrics)]
        told = [(int(blocks[1]), int(size[1])) for blocks, size in engines if blocks and size and int(size[1])]
        if told and len(told) == len(engines):
            # One block of each engine holds nothing.
            self.size = sum((blocks - 1) * size for blocks, size in told)
            self._block = max(size for _, size in told)
            self._freed.set()

    @asynccontextmanager
    async def lent(self, tokens: int | None) -> AsyncIterator[None]:
        """Lend room for so many tokens, to who comes first; None takes no part in it. More than there is waits for all of it."""
        if tokens is None or self.size is None:
            yield
            return
        blocks = -(-min(tokens, self.longest or tokens) // self._block) * self._block
        self.waiting += 1
        try:
            async with self._turn:
                while self._taken and self._taken + blocks > self.size:
                    self._freed.clear()
                    await self._freed.wait()
                self._taken += blocks
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._taken -= blocks
            self._freed.set()


def most_tokens(request: Mapping[str, Any], prefilled: Mapping[str, Any], answer_tokens: int | None) -> int | None:
    """Return how many tokens a request may come to with its answer; None where prefill's answer does not tell of the prompt.

    One that says nothing of the length of its answer has `answer_tokens` for it, or where that is None, whatever vLLM gives it.
    """
    usage = prefilled.get("usage")
    prompt = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    if not isinstance(prompt, int) or isinstance(prompt, bool):
        return None
    asked = request.get("max_tokens", None if "messages" in request else ANSWER)
    if "messages" in request and request.get("max_completion_tokens") is not None:
        asked = request["max_completion_tokens"]
    if not isinstance(asked, int) or isinstance(asked, bool):
        asked = ALL_LEFT if answer_tokens is None else answer_tokens
    # A number that is none is refused by decode.
    return prompt + max(0, asked)
