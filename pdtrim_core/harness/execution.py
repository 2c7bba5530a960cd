"""Running a program that a language model wrote, in a process of its own, to see whether it gets to its end.

Used for HumanEval where the harness' own runner cannot be had (it is fetched from the hub). This is a guard against accidents,
endless loops and greedy memory; it is no sandbox against malice, which is why the command line requires consent.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 3.0
"""HumanEval's own limit for one program."""
LAUNCHER = """
import resource, runpy, sys
path, seconds = sys.argv[1], int(sys.argv[2])
for limit, most in (("CPU", seconds), ("AS", 4 * 2**30), ("FSIZE", 2**20), ("CORE", 0)):
    resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (most, most))
runpy.run_path(path, run_name="__main__")
"""
"""Sets the limits in the program's own process: memory, processor time, size of files."""


def passes(program: str, *, seconds: float = SECONDS) -> bool:
    """Tell whether a program runs to its last line within so many seconds, without an error.

    It runs in a process and an empty folder of its own, with no environment, and with limits on memory, processor time and the
    size of files.
    """
    # A program that merely exits early does not know this word.
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="pdtrim-program-") as folder:
        path = Path(folder) / "program.py"
        path.write_text(f"{program}\nprint({word!r})\n", encoding="utf-8")
        output = Path(folder) / "output"
        with output.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603 - running it is the point, and the user has consented
                [sys.executable, "-I", "-c", LAUNCHER, str(path), str(int(seconds) + 1)],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                return False
            finally:
                _end(process)
        return process.returncode == 0 and output.read_bytes().rstrip().endswith(word.encode())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
