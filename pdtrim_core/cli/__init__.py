"""The command line: one file a command, and what all commands share."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from pdtrim_core.cli import check, describe, plugins, run, schema, show
from pdtrim_core.errors import PdtrimError

INTERRUPTED = 130

app = typer.Typer(
    name="pdtrim-core",
    help="Prune a language model twice, once for prefill and once for decode.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run", epilog="Example: pdtrim-core run examples/quickstart.toml --set searcher.t0=5")(run.run)
app.command("check", epilog="Example: pdtrim-core check examples/*.toml --budget")(check.check)
app.command("plugins", epilog="Example: pdtrim-core plugins --json")(plugins.plugins)
app.command("describe", epilog="Example: pdtrim-core describe searcher annealing")(describe.describe)
app.command("show", epilog="Example: pdtrim-core show runs/quickstart")(show.show)
app.command("schema", epilog="Example: pdtrim-core schema > pdtrim.schema.json")(schema.schema)


def main() -> None:
    """Run the command line; turn errors into one line each and the right exit code."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=False)
    except PdtrimError as error:
        if debug:
            traceback.print_exc()
        _fail(f"error: {error}", error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; what was measured is kept: run the same command again to go on", INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) went away. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if debug:
            traceback.print_exc()
        place = f" {error.filename}" if error.filename else ""
        _fail(f"error: the system refused{place}: {error.strerror or error}", 1)
    except Exception as error:
        if not _is_usage_error(error):
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)


def _is_usage_error(error: Exception) -> bool:
    """Tell typer's own errors about the command line, whose class it takes from the click that it carries."""
    return hasattr(error, "show") and hasattr(error, "format_message")


def _fail(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)
