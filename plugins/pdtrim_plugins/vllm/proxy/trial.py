"""A first prompt that tests the hand-over: healthy servers say nothing about the connection between them."""

from __future__ import annotations

import asyncio

from pdtrim_plugins.vllm.proxy.handoff import HandOverError, for_decode, for_prefill
from pdtrim_plugins.vllm.proxy.pair import Pair, own_key
from pdtrim_plugins.vllm.proxy.upstream import BrokenError, Upstream, shown

PATH = "/v1/completions"
PROMPT = {"prompt": [1, 2, 3, 4], "max_tokens": 1, "temperature": 0}
SECONDS = 2.0
"""How long a health check of the proxy waits for it."""


class Trial:
    """Hands a prompt from each prefill to a decode, and to each decode, once."""

    def __init__(self, pair: Pair, *, storage: bool) -> None:
        self._pair = pair
        self._storage = storage
        self._task: asyncio.Task[str] | None = None

    def close(self) -> None:
        """Stop trying."""
        if self._task is not None:
            self._task.cancel()

    async def problem(self, model: str) -> str:
        """Return why prompts cannot be handed over, empty once one was; a failed trial is repeated at the next question."""
        if self._task is None and all(server.tried for server in self._pair.servers_well()):
            return ""
        # A task of its own: the client of a health check may disconnect before the trial ends.
        trial = self._task = self._task or asyncio.create_task(self._all(model))
        done, _ = await asyncio.wait({trial}, timeout=SECONDS)
        if not done:
            return "a first prompt is being handed over"
        # Another health check may have started the next trial.
        if self._task is trial:
            self._task = None
        return trial.result()

    async def _all(self, model: str) -> str:
        prefill, decode = self._pair.well("prefill"), self._pair.well("decode")
        for turn in range(max(len(prefill), len(decode))):
            servers = prefill[turn % len(prefill)], decode[turn % len(decode)]
            if all(server.tried for server in servers):
                continue
            problem = await self._one(*servers, model)
            if problem:
                several = len(prefill) + len(decode) > len(servers)
                return f"{servers[0].url} and {servers[1].url}: {problem}" if several else problem
            for server in servers:
                server.tried = True
        return ""

    async def _one(self, prefill: Upstream, decode: Upstream, model: str) -> str:
        try:
            async with prefill.asked(PATH, for_prefill(PROMPT, model, storage=self._storage), own_key()) as answer:
                if answer.status != 200:
                    return f"prefill took no first prompt: {shown(await answer.content())}"
                body = for_decode(PROMPT, model, await answer.object(), storage=self._storage)
            async with decode.asked(PATH, body, own_key()) as last:
                return "" if last.status == 200 else f"decode took no first prompt: {shown(await last.content())}"
        except (BrokenError, HandOverError) as error:
            return f"no first prompt came to decode: {error}"
