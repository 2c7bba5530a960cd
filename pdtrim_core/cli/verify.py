"""`pdtrim-core verify`: whether a pair that is served is the pair that was measured."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pdtrim_core.cli.options import Trust
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.errors import PdtrimError

if TYPE_CHECKING:
    from pdtrim_core.serving.verification import Check, Expected

MARKS = {True: "ok", False: "WRONG", None: "-"}


def verify(
    url: Annotated[str, typer.Argument(help="What clients talk to: the proxy or a router.", show_default=False)],
    run: Annotated[Path | None, typer.Argument(help="The run that the pair is of.", show_default=False)] = None,
    prefill: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="A prefill server; may be repeated.", show_default=False)
    ] = None,
    decode: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="A decode server; may be repeated.", show_default=False)
    ] = None,
    unified: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Instead of a run: a server that has the whole model; of an unpruned pair the decode server.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Decode's checkpoint, for the bytes that are handed over [default: that of the run].")
    ] = None,
    tie: Annotated[
        float | None,
        typer.Option(min=0, help="How far behind the likeliest a token may be [default: by number format].", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the prompts [default: another each time].", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Verify that a served pair answers as its models do, and that decode computes no prompts itself.

    Sends prompts of several lengths, compares the tokens with a reference, and reads what the servers count. Nobody else should
    use the pair meanwhile. Ends with 1 where something is wrong.
    """
    del debug  # main() reads it
    if (run is None) == (unified is None):
        raise PdtrimError("name what to compare with: the folder of the run, or --unified URL of a server with the whole model")
    if not prefill or not decode:
        raise PdtrimError("name the servers with --prefill URL and --decode URL: what they count tells silent failures")
    for address in (url, *prefill, *decode, *([unified] if unified else [])):
        if not address.startswith(("http://", "https://")):
            raise PdtrimError(f"{address} is no address: give one like http://HOST:PORT")
    expected = _expected(run, unified, checkpoint, trust=trust)
    checks = verified((url, prefill, decode), expected, tie=tie, seed=seed, quiet=as_json)
    if as_json:
        say_data(json.dumps([asdict(check) for check in checks], indent=1))
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def _expected(run: Path | None, unified: str | None, checkpoint: Path | None, *, trust: bool) -> Expected:
    from pdtrim_core.serving.engine import Served  # noqa: PLC0415 - imports what not every command needs
    from pdtrim_core.serving.reference import expected_of_run, expected_of_server  # noqa: PLC0415 - imports torch

    if run is None:
        assert unified is not None
        return expected_of_server(Served(unified.rstrip("/")), None, checkpoint)
    from pdtrim_core.pipeline.open_run import load_run  # noqa: PLC0415 - imports torch

    exported = run / "decode"
    own = exported if (exported / "config.json").is_file() else None
    return expected_of_run(load_run(run, trust=trust), checkpoint or own)


def verified(
    where: tuple[str, Sequence[str], Sequence[str]],
    expected: Expected,
    *,
    tie: float | None = None,
    seed: int | None = None,
    quiet: bool = False,
) -> list[Check]:
    """Verify a pair by the addresses of its front, its prefill and its decode servers; say what was found."""
    from pdtrim_core.serving.engine import Served  # noqa: PLC0415 - the same
    from pdtrim_core.serving.verification import Pair, verify  # noqa: PLC0415 - the same

    front, prefill, decode = where
    pair = Pair(Served(front.rstrip("/")), *([Served(one.rstrip("/")) for one in urls] for urls in (prefill, decode)))
    seed = secrets.randbelow(2**31) if seed is None else seed
    tell = (lambda what: None) if quiet else (lambda what: say(f"verify: {what}", file=sys.stderr, flush=True))
    checks = verify(pair, expected if tie is None else replace(expected, tie=tie), seed=seed, tell=tell)
    if not quiet:
        width = max(len(check.name) for check in checks)
        for check in checks:
            say(f"{MARKS[check.ok]:5}  {check.name:{width}}  {check.found} (expected: {check.wanted})")
        wrong = sum(check.ok is False for check in checks)
        told = f"{wrong} of {len(checks)} checks failed" if wrong else "the pair is what it should be"
        say(f"{told}; prompts of seed {seed}")
    return checks
