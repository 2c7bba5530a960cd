"""A pair that only pretends: three servers with vLLM's protocol and counters, and faults that real ones have silently."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCK = 32
BYTES_A_TOKEN = 2 * 4 * 2 * 16 * 4
"""K and V of 4 layers with 2 heads of 16 numbers of 4 bytes."""
CONFIG = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 500,
    "dtype": "float32",
}


def next_token(tokens: Sequence[int]) -> int:
    """The model: what is likeliest behind tokens."""
    return (7 * sum(tokens) + len(tokens)) % 500


class Pretended:
    """What all three servers share."""

    def __init__(self) -> None:
        self.names = {"prefill": ["m", "m@0123456789ab"], "decode": ["m", "m@0123456789ab"]}
        self.fault = ""
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(("prompt", "computed", "handed", "bytes", "failed", "preempted"), 0)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return what the pair answers, and count it."""
        prompt: list[int] = list(body["prompt"])
        made: list[int] = []
        wrong = self.fault in ("shifted", "partner")
        for _ in range(body["max_tokens"]):
            made.append((next_token([*prompt, *made]) + wrong) % 500)
        with self.lock:
            fell = self.fault == "fallback" and len(prompt) > 100
            handed = 0 if fell else len(prompt) - 1
            self.counts["prompt"] += len(prompt) * (2 if self.fault == "traffic" else 1)
            self.counts["handed"] += handed
            self.counts["computed"] += len(prompt) - handed
            moved = 0 if fell else BYTES_A_TOKEN * BLOCK * -(-len(prompt) // BLOCK)
            self.counts["bytes"] += moved // 2 if self.fault == "dtype" else moved
            self.counts["failed"] += self.fault == "failed"
        return {"choices": [{"token_ids": made}]}

    def logprobs(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Return what a server of the whole model says of each token."""
        found: list[Any] = [None]
        for place in range(1, len(tokens)):
            likeliest = next_token(tokens[:place])
            found.append({str(likeliest): {"logprob": -0.1}})
            if tokens[place] != likeliest:
                found[-1][str(tokens[place])] = {"logprob": -5.1}
        return {"choices": [{"prompt_logprobs": found}]}

    def metrics(self) -> str:
        """Return them as Prometheus reads them."""
        counts = self.counts
        of = 'engine="0",model_name="m"'
        return "\n".join((
            "# HELP vllm:prompt_tokens_total Number of prefill tokens processed.",
            f"vllm:prompt_tokens_total{{{of}}} {counts['prompt']}",
            f'vllm:prompt_tokens_by_source_total{{{of},source="local_compute"}} {counts["computed"]}',
            f'vllm:prompt_tokens_by_source_total{{{of},source="external_kv_transfer"}} {counts["handed"]}',
            f"vllm:nixl_bytes_transferred_sum{{{of}}} {counts['bytes']:e}",
            f"vllm:nixl_num_failed_transfers_total{{{of}}} {counts['failed']}",
            f"vllm:num_preemptions_total{{{of}}} {counts['preempted']}",
            f"vllm:num_requests_running{{{of}}} 0.0",
            f'vllm:cache_config_info{{block_size="{BLOCK}",cache_dtype="auto"}} 1.0',
        ))  # fmt: skip


def _handler(pair: Pretended, stage: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                return self._send(pair.metrics().encode())
            names = pair.names["decode" if stage == "front" else stage]
            return self._send(json.dumps({"data": [{"id": name, "max_model_len": 640} for name in names]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            whole = body.get("prompt_logprobs") is not None
            self._send(json.dumps(pair.logprobs(body["prompt"]) if whole else pair.answer(body)).encode())

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def pretended() -> Iterator[tuple[Pretended, dict[str, str]]]:
    """Lend a pair and the addresses of its front, prefill and decode."""
    pair = Pretended()
    servers = {stage: ThreadingHTTPServer(("127.0.0.1", 0), _handler(pair, stage)) for stage in ("front", "prefill", "decode")}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield pair, {stage: f"http://127.0.0.1:{server.server_port}" for stage, server in servers.items()}
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()
