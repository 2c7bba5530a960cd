"""`pdtrim-core serve` without an engine: the commands that it prints, and what it says when something is missing."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
HASH = "0123456789abcdef" * 4


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """What `pdtrim-core export` writes, as far as serving reads it."""
    plan = {"plan_hash": HASH, "first_token": "decode", "model": {"name": "package:tiny"}}
    told = {"pdtrim": {"plan_hash": HASH}}
    files = {"serve/plan.json": plan, "prefill/config.json": told, "decode/config.json": told}
    for stage in ("prefill", "decode"):
        files |= {f"serve/{stage}.json": {"kv_connector": stage}, f"serve/{stage}-example.json": {"kv_connector": stage}}
    for name, content in files.items():
        (tmp_path / "pair" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pair" / name).write_text(json.dumps(content))
    return tmp_path / "pair"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An interpreter that says that it has vLLM for a processor; whatever else it is to run, it says so and ends."""
    path = tmp_path / "python"
    told = json.dumps({"vllm": "0.32.0", "cpu": True, "lacks": []})
    path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo \'{told}\'; else echo "no memory for $2"; exit 7; fi\n')
    path.chmod(0o755)
    return path


def test_the_commands_are_printed(cli: Cli, export: Path, engine: Path) -> None:
    words = ("--python", engine, "--name", "mine", "--port", 1, "--decode-args", "--seed 3", "--prefill-env", "CARD=0")
    done = cli("serve", export, *words, "--dry-run", "--", "--max-model-len", "64")
    prefill, decode, proxy = done.out.splitlines()
    assert prefill.startswith(
        f"VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 VLLM_NIXL_SIDE_CHANNEL_PORT=5600 CARD=0 {engine}"
    )
    assert f"--model {export}/prefill --served-model-name mine mine@0123456789ab" in prefill
    assert prefill.endswith("--block-size 32 --max-model-len 64")
    assert decode.endswith("--block-size 32 --no-enable-prefix-caching --max-model-len 64 --seed 3")
    assert proxy == (
        f"{engine} -m pdtrim_plugins.vllm.proxy --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200 --port 1"
    )
    assert (done.code, done.err) == (0, "")


def test_what_the_user_says_about_the_processor_stands(
    cli: Cli, export: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert "VLLM_CPU_KVCACHE_SPACE=7" in cli("serve", export, "--python", engine, "--dry-run").out
    assert "--block-size" not in cli("serve", export, "--python", engine, "--no-cpu", "--dry-run").out


def test_a_server_that_ends_is_an_error_with_its_words(cli: Cli, export: Path, engine: Path, tmp_path: Path) -> None:
    done = cli("serve", export, "--python", engine, "--logs", tmp_path / "logs")
    assert done.code == 1
    lines = done.err.splitlines()
    assert lines[0] == f"serving tiny@0123456789ab from {export}; logs are in {tmp_path}/logs"
    assert lines[1] == f"error: prefill ended (7); the end of {tmp_path}/logs/prefill.log:"
    assert lines[2] == "no memory for vllm.entrypoints.openai.api_server"


def test_a_port_that_is_taken(cli: Cli, export: Path, engine: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        done = cli("serve", export, "--python", engine, "--decode-port", port)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"error: port {port} is taken (")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prefill-env", "CARD"), "error: 'CARD' is not of the form KEY=VALUE"),
        (("--decode-args", "'"), 'error: cannot read the arguments "\'": No closing quotation'),
        (("--", "--model", "x"), "error: --model is not yours to give: pdtrim-core serve sets it, see its options"),
        (("--name", "a b"), "error: 'a b' cannot be a model's name here: give one without @ and spaces, with --name"),
        (
            ("--port", "8100"),
            "error: port 8100 is named twice: the proxy, prefill, decode and NIXL (two ports in a row) each need one",
        ),
    ],
)
def test_what_users_get_wrong(words: tuple[str, ...], message: str, cli: Cli, export: Path) -> None:
    done = cli("serve", export, "--dry-run", "--cpu", *words)
    assert (done.code, done.err) == (1, message + "\n")


def test_an_interpreter_without_vllm(cli: Cli, export: Path) -> None:
    done = cli("serve", export)
    assert done.code == 1
    assert done.err == f"error: {sys.executable} has no vLLM: name the interpreter of an environment that has it with --python\n"


def test_a_run_that_was_not_exported(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "outcome.json").write_text("{}")
    done = cli("serve", "run")
    assert (done.code, done.err) == (1, "error: run has no serve/plan.json: run: pdtrim-core export run --to vllm\n")


def test_what_cannot_be_verified_is_told_before_anything_starts(cli: Cli, export: Path, engine: Path) -> None:
    done = cli("serve", export, "--python", engine, "--verify")
    assert done.code == 1
    assert done.err.startswith("error: --verify compares with a run, and")
    (export / "outcome.json").write_text("{}")
    done = cli("serve", export, "--python", engine, "--verify", "--connector", "example")
    assert done.code == 1
    assert done.err == (
        "error: --verify with --connector example: it hands over whole cache blocks alone, and decode computes the rest of a "
        "prompt itself, so that answers are others than the run's: leave out one of them\n"
    )
