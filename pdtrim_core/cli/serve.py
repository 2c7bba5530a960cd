"""`pdtrim-core serve`: an exported pair on vLLM, on one machine."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from pdtrim_core.cli.terminal import say
from pdtrim_core.errors import PdtrimError
from pdtrim_core.serving import servers
from pdtrim_core.serving.commands import (
    CPU_ENVIRONMENT,
    HASH_SHOWN,
    KEY,
    Command,
    Connector,
    Engine,
    Export,
    Ports,
    ProxyOptions,
    commands_for,
    example_request,
    open_export,
)

PROXY = ProxyOptions()
PROXY_SECONDS = 300.0
"""How long the proxy may take, which hands a first prompt over before it says that it is well."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_EXPORT", help="A run folder or an export.", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="For vLLM, behind --.")] = None,
    python: Annotated[str | None, typer.Option(help="The interpreter that has vLLM, if not this one.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model, instead of its own name.")] = None,
    port: Annotated[int, typer.Option(help="The port for clients.")] = 8000,
    prefill_port: Annotated[int, typer.Option(help="The port of prefill.")] = 8100,
    decode_port: Annotated[int, typer.Option(help="The port of decode.")] = 8200,
    nixl_port: Annotated[int, typer.Option(help="The port of NIXL's side channel; the next one is used too.")] = 5600,
    connector: Annotated[Connector, typer.Option(help="What K/V go through; example: files, to try things out.")] = "nixl",
    prefill_args: Annotated[str, typer.Option(help="Arguments only for prefill.")] = "",
    decode_args: Annotated[str, typer.Option(help="Arguments only for decode.")] = "",
    prefill_env: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="For prefill; may be repeated.")] = None,
    decode_env: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="For decode; may be repeated.")] = None,
    cpu: Annotated[bool | None, typer.Option("--cpu/--no-cpu", help="vLLM computes on the processor [default: look].")] = None,
    host: Annotated[str, typer.Option(help="The address that the proxy listens at.")] = PROXY.host,
    more_prefill: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Prefill elsewhere, too; may be repeated.")
    ] = None,
    more_decode: Annotated[list[str] | None, typer.Option(metavar="URL", help="Decode elsewhere; may be repeated.")] = None,
    health_seconds: Annotated[float, typer.Option(help="Silence about its health ends a server.")] = PROXY.health_seconds,
    token_seconds: Annotated[float, typer.Option(help="Between two pieces of a stream.")] = PROXY.token_seconds,
    request_seconds: Annotated[float, typer.Option(help="Of a server for a request.")] = PROXY.request_seconds,
    body_seconds: Annotated[float, typer.Option(help="For a request to arrive.")] = PROXY.body_seconds,
    drain_seconds: Annotated[float, typer.Option(help="For open requests after SIGTERM.")] = PROXY.drain_seconds,
    at_once: Annotated[int, typer.Option(help="Prompts with the servers; others wait.")] = PROXY.at_once,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Room at decode for an answer of unsaid length [default: all].")
    ] = PROXY.answer_tokens,
    timeout: Annotated[float, typer.Option(help="Seconds until all must be up.")] = 900.0,
    logs: Annotated[Path | None, typer.Option(help="Folder for logs, instead of a temporary one.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare the pair with its run before it is used.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Serve a pair: prefill, decode and a proxy that speaks OpenAI's protocol, until Ctrl-C."""
    del debug  # main() reads it
    export, python = open_export(path, name), python or sys.executable
    found = None if dry_run and cpu is not None else servers.look_at(python)
    engine = Engine(
        python,
        cpu if cpu is not None else bool(found and found.cpu),
        {"both": arguments or (), "prefill": _words(prefill_args), "decode": _words(decode_args)},
        {"both": _told(), "prefill": _settings(prefill_env or ()), "decode": _settings(decode_env or ())},
        connector,
    )
    ports = Ports(port, prefill_port, decode_port, nixl_port)
    options = ProxyOptions(
        *(host, health_seconds, token_seconds, request_seconds, body_seconds, drain_seconds, at_once, answer_tokens),
        *(tuple(more_prefill or ()), tuple(more_decode or ())),
    )
    if dry_run:
        storage = Path(tempfile.gettempdir()) / "pdtrim-serve" / "storage"
        for command in commands_for(export, engine, ports, storage, options):
            say(command)
        return
    assert found is not None
    if verify and not (path / "outcome.json").is_file():
        raise PdtrimError(
            f"--verify compares with a run, and {path} is an export alone: use pdtrim-core verify, and name its run"
        )
    if verify and connector != "nixl":
        raise PdtrimError(
            f"--verify with --connector {connector}: it hands over whole cache blocks alone, and decode computes the rest of a "
            "prompt itself, so that answers are others than the run's: leave out one of them"
        )
    servers.check_engine(python, found, wants_nixl=connector == "nixl")
    with _temporary_storage() as storage:
        commands = commands_for(export, engine, ports, storage, options)
        servers.check_free(commands)
        with _log_folder(logs) as folder:
            _serve(export, commands, folder, timeout, options, path if verify else None)


def _serve(
    export: Export, commands: Sequence[Command], logs: Path, timeout: float, options: ProxyOptions, verified: Path | None
) -> None:
    _say(f"serving {export.checked_name} from {export.folder}; logs are in {logs}")
    proxy = commands[-1]
    try:
        with _stopped_by_signals(), servers.running(commands, logs) as started:
            servers.wait_until_healthy(started[:-1], timeout, _say)
            # The proxy is well when both servers are, when both serve the same plan, and when a prompt was handed over.
            servers.wait_until_healthy(started[-1:], PROXY_SECONDS, _say)
            if verified is not None:
                _verify(verified, commands, options)
            _say(f"prefill and decode are both of plan {export.plan_hash[:HASH_SHOWN]}; stop with Ctrl-C")
            say(example_request(export, proxy.url, key=bool(os.environ.get(KEY))), flush=True)
            try:
                servers.watch(started)
            except _TerminatedError:
                _say(f"open requests have up to {options.drain_seconds:g} s to end, Ctrl-C ends them at once")
                servers.drain(started[-1], options.drain_seconds)
    except KeyboardInterrupt:
        _say("stopped")
    else:
        _say("stopped")


def _verify(run: Path, commands: Sequence[Command], options: ProxyOptions) -> None:
    """Raise `PdtrimError` where the pair is not that of the run."""
    from pdtrim_core.cli.verify import verified  # noqa: PLC0415 - as below
    from pdtrim_core.pipeline.open_run import load_run  # noqa: PLC0415 - imports torch
    from pdtrim_core.serving.reference import expected_of_run  # noqa: PLC0415 - the same

    prefill, decode, proxy = commands
    where = proxy.url, [prefill.url, *options.prefill], [decode.url, *options.decode]
    checks = verified(where, expected_of_run(load_run(run), run / "decode"))
    if any(check.ok is False for check in checks):
        raise PdtrimError("the pair that is served is not the one of the run; see above")


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM: what is open may end, other than with Ctrl-C."""


@contextmanager
def _log_folder(logs: Path | None) -> Iterator[Path]:
    """Lend the folder for logs; a temporary one is gone afterwards where there are none in it."""
    if logs is not None:
        yield logs
        return
    folder = Path(tempfile.mkdtemp(prefix="pdtrim-serve-"))
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextmanager
def _temporary_storage() -> Iterator[Path]:
    """Lend a folder that K/V may go through, gone afterwards with whatever the servers still hold in it."""
    storage = Path(tempfile.mkdtemp(prefix="pdtrim-storage-"))
    try:
        yield storage
    finally:
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let the signals that end a program do what Ctrl-C does, so that no server is left behind."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise _TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told() -> dict[str, str]:
    """Return what the user's own environment says already of what we would set."""
    return {key: os.environ[key] for key in CPU_ENVIRONMENT if key in os.environ}


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise PdtrimError(f"cannot read the arguments {text!r}: {error}") from None


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise PdtrimError(f"'{pair}' is not of the form KEY=VALUE")
        found[key] = value
    return found


def _say(text: str) -> None:
    say(text, file=sys.stderr, flush=True)
