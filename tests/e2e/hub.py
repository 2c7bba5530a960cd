"""A stand-in for the Hugging Face hub on this machine: it makes repositories and takes commits."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What a stand-in was told: repositories with their privacy, and the files of each. Only the token is let in."""

    token: str
    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            # Older versions of the hub's package say "private": true.
            self.private[name] = asked.get("visibility") == "private" or asked.get("private") is True
            self.files.setdefault(name, {})
            return {"url": f"{self.address}/{name}", "name": name, "id": name}
        if "/preupload/" in path:
            how = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": file["path"], **how} for file in json.loads(body)["files"]]}
        if "/commit/" in path:
            name = "/".join(path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
        return {}


@contextmanager
def local_hub(token: str) -> Iterator[Hub]:
    """Run a hub that lets in who shows the token."""
    hub = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") == f"Bearer {hub.token}":
                self._answer(200, hub.answer(self.path, body))
            else:
                self._answer(401, {"error": "Invalid credentials"})

        def do_GET(self) -> None:
            self._answer(200, {"id": "x", "siblings": []})

        def _answer(self, code: int, data: dict[str, Any]) -> None:
            text = json.dumps(data).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
