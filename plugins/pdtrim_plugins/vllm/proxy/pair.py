"""The servers of a pair: which of them are well and of the same plan, and which one a request goes to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.proxy.upstream import BrokenError, Limits, Upstream, object_of, shown

KEY = "VLLM_API_KEY"
"""The environment variable that vLLM reads its API key from. The proxy uses it for its own requests only; clients send theirs."""
LOOK_SECONDS = 1.0
"""A server that was not well is looked at again at most so often while others do its work."""

LARGEST_METRICS = 4 * 2**20
"""Bytes of a server's metrics that are looked at; what is more is not of vLLM."""


def own_key() -> dict[str, str]:
    """Return the headers of the proxy's own requests."""
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


class Pair:
    """Prefill and decode servers. Any of the first can hand over to any of the second."""

    def __init__(self, prefill: Sequence[str], decode: Sequence[str], limits: Limits) -> None:
        self.stages = {
            stage: [Upstream(stage, url, limits) for url in urls] for stage, urls in (("prefill", prefill), ("decode", decode))
        }
        self._turns = dict.fromkeys(self.stages, 0)
        self._names: dict[str, str] = {}
        self._looks: dict[Upstream, asyncio.Task[None]] = {}

    @property
    def servers(self) -> Iterator[Upstream]:
        """All of them, prefill first."""
        for servers in self.stages.values():
            yield from servers

    def close(self) -> None:
        """Stop watching and looking."""
        for server in self.servers:
            server.close()
        for look in self._looks.values():
            look.cancel()

    def cut(self, reason: str) -> None:
        """End all requests that are open, and those that come."""
        for server in self.servers:
            server.cut(reason)

    def well(self, stage: str) -> list[Upstream]:
        """Return the servers of a stage that requests go to."""
        return [server for server in self.stages[stage] if server.names]

    def next(self, stage: str) -> Upstream:
        """Return the server whose turn it is. Raises `PdtrimError` where none is well."""
        well = self.well(stage)
        if not well:
            raise PdtrimError(self._told(stage))
        self._turns[stage] += 1
        return well[self._turns[stage] % len(well)]

    def leave(self, server: Upstream, problem: str) -> None:
        """Send a server no more requests until it was looked at again; it may come back as another process."""
        server.names, server.problem, server.tried = (), problem, False
        server.looked = asyncio.get_running_loop().time()
        if not self.well(server.stage):
            self._names = {}

    async def names(self, *, fresh: bool = False) -> Mapping[str, str]:
        """Return each model's name with its name of the form MODEL@PLAN, which all servers that get requests have.

        With `fresh` all are looked at first. Raises `PdtrimError` where no prefill or no decode is well, and where they have
        different plans.
        """
        now = asyncio.get_running_loop().time()
        served = bool(self._names) and all(map(self.well, self.stages))
        away = [server for server in self.servers if not server.names and (not served or now - server.looked > LOOK_SECONDS)]
        looks = [self._look(server) for server in (self.servers if fresh else away)]
        if fresh or not served:
            await asyncio.gather(*looks)
        if not (self._names and all(map(self.well, self.stages))):
            self._agree()
        return self._names

    def _look(self, server: Upstream) -> asyncio.Task[None]:
        look = self._looks.get(server)
        if look is None or look.done():
            look = self._looks[server] = asyncio.create_task(self._looked_at(server))
        return look

    async def _looked_at(self, server: Upstream) -> None:
        try:
            models = await _models_at(server)
            names = tuple(models)
            lacks = [name for name in self._names.values() if name not in names]
            if lacks:
                raise PdtrimError(f"{server.url} serves {', '.join(names)}, and not {', '.join(lacks)}")
        except PdtrimError as error:
            self.leave(server, f"{error}")
        else:
            if server.stage == "decode" and (not server.names or server.room.size is None):
                server.room.learn(await _metrics_at(server), next(iter(models.values())))
            server.names, server.problem = names, ""

    def _agree(self) -> None:
        """Settle what is served: the names with a plan that all well servers have."""
        for stage in self.stages:
            if not self.well(stage):
                raise PdtrimError(self._told(stage))
        both = [name for name in next(self.servers_well()).names if "@" in name]
        both = [name for name in both if all(name in server.names for server in self.servers_well())]
        if not both:
            told = [
                f"{stage} {'serves ' * (stage == 'prefill')}"
                f"{' or '.join(dict.fromkeys(', '.join(server.names) for server in self.well(stage)))}"
                for stage in self.stages
            ]
            for server in self.servers:
                server.names = ()
            raise PdtrimError(
                f"{' and '.join(told)}: they need the same MODEL@PLAN as second --served-model-name, or have different plans"
            )
        self._names = {name.rpartition("@")[0]: name for name in both}

    def servers_well(self) -> Iterator[Upstream]:
        """All that requests go to."""
        return (server for server in self.servers if server.names)

    def _told(self, stage: str) -> str:
        return "; ".join(dict.fromkeys(server.problem for server in self.stages[stage])) or f"no {stage} is well"


async def _models_at(server: Upstream) -> dict[str, object]:
    """Return the models of a server that is well by their names, each with how many tokens its texts may have."""
    async with server.asked("/health") as answer:
        if answer.status != 200:
            raise PdtrimError(f"{server.stage} is not healthy ({answer.status})")
    async with server.asked("/v1/models", headers=own_key()) as answer:
        if answer.status != 200:
            raise PdtrimError(f"{server.stage} does not say which models it has ({answer.status}); has it an API key? Set {KEY}")
        content = await answer.content()
    models = list_in(object_of(content).get("data"))
    if not models or not all(isinstance(model, dict) and isinstance(model.get("id"), str) for model in models):
        raise PdtrimError(f"{server.stage} does not say which models it has, but {shown(content)}")
    return {model["id"]: model.get("max_model_len") for model in models}


async def _metrics_at(server: Upstream) -> bytes:
    """Return the metrics of a server; nothing where it has none."""
    try:
        async with server.asked("/metrics", headers=own_key()) as answer:
            content = await answer.content() if answer.status == 200 else b""
            return content if len(content) <= LARGEST_METRICS else b""
    except BrokenError:
        return b""


def list_in(found: object) -> list[Any]:
    """Return a list, empty for what is none."""
    return found if isinstance(found, list) else []
