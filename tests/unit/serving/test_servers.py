"""Processes: waited for, watched, and stopped with everything that they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pdtrim_core.errors import PdtrimError
from pdtrim_core.serving.commands import Command
from pdtrim_core.serving.servers import Interpreter, check_engine, check_free, look_at, running, wait_until_healthy, watch

ANSWERS = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(os.environ["STATUS"]))
        self.end_headers()
        self.wfile.write(b"the plans differ")
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def server(name: str = "decode", status: int = 200) -> Command:
    port = free_port()
    return Command(name, (sys.executable, "-c", ANSWERS, str(port)), {"STATUS": str(status)}, f"http://127.0.0.1:{port}")


def program(text: str) -> Command:
    return Command("prefill", (sys.executable, "-c", text), {}, f"http://127.0.0.1:{free_port()}")


def child_in(log: Path) -> int:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        words = log.read_text().split() if log.exists() else []
        if len(words) >= 2:
            return int(words[1])
        time.sleep(0.05)
    raise AssertionError(f"no child in {log}")


def gone(pid: int) -> bool:
    """Tell whether a process ends, or is a dead one that nobody has asked about yet."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_servers_are_waited_for_and_leave_nothing_behind(tmp_path: Path) -> None:
    said: list[str] = []
    with running([server("prefill"), server("decode")], tmp_path) as started:
        wait_until_healthy(started, 30, said.append)
        children = [child_in(one.log) for one in started]
    assert sorted(text.partition(" after")[0] for text in said) == ["decode is up", "prefill is up"]
    # A child of a server that ignores the request to end is killed with its group.
    assert all(gone(child) for child in children)
    assert all(one.ended for one in started)


def test_an_error_stops_them_too(tmp_path: Path) -> None:
    children: list[int] = []

    def fail() -> None:
        with running([server()], tmp_path) as started:
            children.append(child_in(started[0].log))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert gone(children[0])


def test_a_server_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = program("import sys; print('first'); print('no memory'); sys.exit(3)")
    with (
        pytest.raises(PdtrimError, match=r"^prefill ended \(3\); the end of .*prefill.log:\nfirst\nno memory$"),
        running([command], tmp_path) as started,
    ):
        wait_until_healthy(started, 30)


def test_a_server_that_ends_later_is_told_too(tmp_path: Path) -> None:
    with running([server()], tmp_path) as started:
        wait_until_healthy(started, 30)
        started[0].signal(signal.SIGKILL)
        with pytest.raises(PdtrimError, match=r"^decode ended \(-9\)"):
            watch(started)


def test_a_server_that_is_not_well_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(PdtrimError, match=r"^decode is not well after 2 s: see .*; its end:\nthe plans differ$"),
        running([server(status=503)], tmp_path) as started,
    ):
        wait_until_healthy(started, 2)


def test_servers_end_with_the_program_that_is_killed(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a child of its parent's death")
    text = (
        "import sys, time; from pathlib import Path\n"
        "from pdtrim_core.serving.servers import running; from pdtrim_core.serving.commands import Command\n"
        "with running([Command('decode', (sys.executable, '-c', 'import os, time; print(1, os.getpid(), flush=True); "
        f"time.sleep(600)'), {{}}, 'http://x')], Path({str(tmp_path)!r})): time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", text]) as parent:
        child = child_in(tmp_path / "decode.log")
        assert not Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].startswith(" Z")
        parent.kill()
    assert gone(child)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        with pytest.raises(PdtrimError, match=rf"^port {port} is taken \(.*\): choose another, see serve --help$"):
            check_free([Command("decode", (), {}, f"http://127.0.0.1:{port}")])
        with pytest.raises(PdtrimError, match=rf"^port {port} is taken"):
            check_free([Command("decode", (), {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}, f"http://127.0.0.1:{free_port()}")])
    check_free([Command("decode", (), {}, f"http://127.0.0.1:{free_port()}")])


def test_an_interpreter_is_asked_what_it_has() -> None:
    found = look_at(sys.executable)
    assert "pdtrim-core" not in found.lacks


def test_an_interpreter_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError, match=r"nothing does not run as a Python interpreter .*: name one with --python$"):
        look_at(str(tmp_path / "nothing"))
    (tmp_path / "other").write_text("#!/bin/sh\necho hello\n")
    os.chmod(tmp_path / "other", 0o755)  # noqa: PTH101
    with pytest.raises(PdtrimError, match="other does not run as a Python interpreter"):
        look_at(str(tmp_path / "other"))


def test_what_an_interpreter_lacks_is_said() -> None:
    with pytest.raises(PdtrimError, match=r"^py has no vLLM: name the interpreter of an environment that has it with --python$"):
        check_engine("py", Interpreter(None, cpu=False, lacks=("nixl",)), wants_nixl=True)
    clone = "CLONE, where CLONE is your clone of pdtrim-core's repository"
    with pytest.raises(PdtrimError, match=rf"^py has vLLM 1\.0, but lacks nixl, pdtrim-core: py -m pip install nixl {clone}$"):
        check_engine("py", Interpreter("1.0", cpu=False, lacks=("nixl", "pdtrim-core")), wants_nixl=True)
    with pytest.raises(PdtrimError, match=r"^py has vLLM 1\.0, but lacks aiohttp: py -m pip install aiohttp$"):
        check_engine("py", Interpreter("1.0", cpu=False, lacks=("aiohttp",)), wants_nixl=True)
    check_engine("py", Interpreter("1.0", cpu=False, lacks=("nixl",)), wants_nixl=False)


def test_what_an_interpreter_says_when_it_fails_is_shown_whole(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nprintf '\\033[31mlibpython.so:\\033[0m\\n  no such file\\n' >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(PdtrimError) as caught:
        look_at(str(broken))
    assert str(caught.value) == (
        f"{broken} does not run as a Python interpreter (libpython.so: no such file): name one with --python"
    )


def test_the_end_of_a_log_has_no_colours(tmp_path: Path) -> None:
    with running([program("print('\\033[1;31mout of memory\\033[0m'); raise SystemExit(3)")], tmp_path) as servers:
        with pytest.raises(PdtrimError) as caught:
            watch(servers)
        assert str(caught.value).endswith("\nout of memory")
