"""A program that takes vLLM's arguments and answers as a server of a pair; SIGTERM ends an open answer like a whole one."""

from __future__ import annotations

import argparse
import asyncio
import signal
import time

from aiohttp import web

from tests.unit.plugins.vllm_servers import Fake


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name", nargs="+")
    given, _ = parser.parse_known_args()
    print("Starting to load model x...", flush=True)
    time.sleep(1.2)
    asyncio.run(serve(given.port, given.served_model_name))


async def serve(port: int, names: list[str]) -> None:
    fake, stopped = Fake(), asyncio.Event()
    fake.names = names
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def answer(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        seconds = float(asked["prompt"]) if isinstance(asked.get("prompt"), str) and "kv_transfer_params" in asked else 0.0
        if not asked.get("stream"):
            fake.seconds = 0.0 if asked["max_tokens"] == 1 else seconds
            return await fake._generate(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"text": "one"}]}\n\n')
        await asyncio.wait([asyncio.create_task(stopped.wait())], timeout=seconds)
        await response.write(b'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
        return response

    app = web.Application()
    app.add_routes([web.get("/health", fake._health), web.get("/v1/models", fake._models), web.post("/v1/completions", answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await stopped.wait()
    await asyncio.sleep(0.2)
    await runner.cleanup()


if __name__ == "__main__":
    main()
