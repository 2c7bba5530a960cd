"""`pdtrim-core serve` with stand-ins for vLLM: what it says while they start, and how it ends while requests are open."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.e2e import standin_vllm
from tests.e2e.test_serve import export

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
pytestmark = pytest.mark.e2e
__all__ = ["export"]
ROOT = Path(__file__).parents[2]
MAIN = "import sys; from pdtrim_core.cli import main; main()"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An interpreter that says that it has vLLM; instead of that it runs the stand-in, and the proxy as it is."""
    path = tmp_path / "python"
    told = json.dumps({"vllm": "0.32.0", "cpu": True, "lacks": []})
    path.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -c ]; then echo '{told}'; exit; fi\n"
        f'[ "$2" = pdtrim_plugins.vllm.proxy ] && exec {sys.executable} "$@"\n'
        f'shift 2; exec {sys.executable} {standin_vllm.__file__} "$@"\n'
    )
    path.chmod(0o755)
    return path


@dataclass
class Serving:
    process: subprocess.Popen[bytes]
    url: str
    said: Path

    def ask(self, seconds: float, *, stream: bool = False) -> Any:
        body = {"model": "tiny", "prompt": str(seconds), "max_tokens": 3, "stream": stream}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=60)


def ports() -> list[int]:
    with socket.socket() as one, socket.socket() as two, socket.socket() as three, socket.socket() as four:
        for each in (one, two, three, four):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, two, three, four)]


@contextmanager
def serving(export: Path, engine: Path, tmp_path: Path) -> Iterator[Serving]:
    found = ports()
    words = [sys.executable, "-c", MAIN, "serve", export, "--python", engine, "--logs", tmp_path / "logs"]
    for option, port in zip(("--port", "--prefill-port", "--decode-port", "--nixl-port"), found, strict=True):
        words += [option, port]
    told = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(list(map(str, words)), stderr=said, stdout=subprocess.PIPE, env=told) as one,
    ):
        assert one.stdout is not None
        try:
            assert one.stdout.readline().startswith(b"curl"), (tmp_path / "said").read_text()
            yield Serving(one, f"http://127.0.0.1:{found[0]}", tmp_path / "said")
        finally:
            if one.poll() is None:
                one.kill()


def ended(program: Serving, within: float) -> None:
    started = psutil.Process(program.process.pid).children(recursive=True)
    begun = time.monotonic()
    assert program.process.wait(60) == 0
    assert time.monotonic() - begun < within
    assert program.said.read_text().endswith("stopped\n")
    assert not psutil.wait_procs(started, timeout=20)[1]


def test_ctrl_c_ends_a_stream_unlike_a_finished_one(export: Path, engine: Path, tmp_path: Path) -> None:
    with serving(export, engine, tmp_path) as program:
        with program.ask(60, stream=True) as answer:
            assert answer.readline() == b'data: {"choices": [{"text": "one"}]}\n'
            program.process.send_signal(signal.SIGINT)
            rest = answer.read().decode()
        assert "the proxy was stopped" in rest
        assert "[DONE]" not in rest
        ended(program, 20)
        said = program.said.read_text()
        assert "prefill: loads the model, " in said
        assert "decode is up after " in said


@pytest.mark.parametrize("again", [False, True])
def test_sigterm_lets_open_requests_end_unless_it_comes_again(again: bool, export: Path, engine: Path, tmp_path: Path) -> None:
    with serving(export, engine, tmp_path) as program:
        statuses: list[int] = []

        def ask() -> None:
            try:
                with program.ask(60 if again else 3) as answer:
                    statuses.append(answer.status)
            except urllib.error.HTTPError as error:
                statuses.append(error.code)

        asking = threading.Thread(target=ask)
        asking.start()
        while b"requests_open 1" not in urllib.request.urlopen(f"{program.url}/metrics").read():
            time.sleep(0.05)
        program.process.send_signal(signal.SIGTERM)
        if again:
            time.sleep(0.5)
            program.process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert statuses == [502 if again else 200]
        ended(program, 25)
        assert "open requests have up to 30 s to end, Ctrl-C ends them at once" in program.said.read_text()


def test_a_start_that_fails_leaves_no_empty_folder(
    cli: Cli, export: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        assert cli("serve", export, "--python", engine, "--decode-port", one.getsockname()[1]).code == 1
    assert cli("serve", export, "--python", engine, "--name", "a b").code == 1
    assert cli("serve", export, "--python", engine, "--drain-seconds", "0").code == 1
    assert not list((tmp_path / "temporary").iterdir())
