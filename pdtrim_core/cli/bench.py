"""`pdtrim-core bench`: how much faster the stages of a plan are, measured and by sizes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pdtrim_core.cli import latency_tables
from pdtrim_core.cli.logs import remark
from pdtrim_core.cli.options import Log, Quiet, Trust
from pdtrim_core.cli.progress import progress_display
from pdtrim_core.cli.terminal import say_data
from pdtrim_core.errors import RecipeError, did_you_mean
from pdtrim_core.host.host import load_plugins
from pdtrim_core.wording import shortened

if TYPE_CHECKING:
    from pdtrim_core.timing.subjects import Subjects


def bench(
    run: Annotated[Path | None, typer.Argument(help="The folder of a finished run.", show_default=False)] = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            "--random-weights",
            metavar="CONFIG",
            help="Time a model of this shape with random weights: a name such as llama-3.1-8b, a config.json or its folder.",
        ),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Blocks that decode loses of that shape, instead of as many as of RUN.")
    ] = None,
    prefill_blocks: Annotated[int | None, typer.Option(help="Blocks that prefill loses of that shape (default: half).")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.json for that shape.")] = None,
    forward: Annotated[int, typer.Option(help="Tokens of the forward with logits behind every token; 0 leaves it out.")] = 1024,
    prompt_lengths: Annotated[str, typer.Option(help="Prompt lengths, in tokens.")] = "128,512",
    batches: Annotated[str, typer.Option(help="Sequences that decode together.")] = "1,4",
    contexts: Annotated[str, typer.Option(help="Tokens in the cache in front of what decode makes.")] = "128,1024",
    repeats: Annotated[int, typer.Option(help="Repeats; each times the dense and the pruned models in turn.", min=1)] = 5,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16, instead of the model's own.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads on a processor (default: one or all, whichever is faster now).", min=1, max=1024)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write, instead of bench.json in RUN.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    log: Log = "text",
    quiet: Quiet = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Time the dense, unified, prefill and decode models of a run, beside the ratios that their sizes promise."""
    del debug  # main() reads it
    problems: list[str] = []
    lengths = {"--prompt-lengths": prompt_lengths, "--batches": batches, "--contexts": contexts}
    prompts, together, cached = (_numbers(option, text, problems) for option, text in lengths.items())
    given = {"--blocks": blocks, "--prefill-blocks": prefill_blocks, "--plan": plan}
    problems += [*_conflicts(run, random_weights, given), *_wrong_values(dtype, forward)]
    if problems:
        raise RecipeError("pdtrim-core bench", problems)
    from pdtrim_core.timing.bench import measure  # noqa: PLC0415 - imports torch
    from pdtrim_core.timing.latency import Grid  # noqa: PLC0415 - the same

    subjects = _subjects(run, random_weights, given, dtype, trust=trust)
    grid = Grid(forward=forward, repeats=repeats, prompt_lengths=prompts, batches=together, contexts=cached)
    path = out or (run / "bench.json" if run else None)
    display = progress_display(sys.stderr, log, quiet=quiet)
    with display.working("timing"):
        found = measure(subjects, grid, path, thread_count=threads, say=display.say)
    say_data(found.to_json(), end="") if as_json else latency_tables.print_latencies(found)
    if path:
        remark(f"written: {path}")


def _subjects(run: Path | None, shape: str | None, given: dict[str, Any], dtype: Any, *, trust: bool) -> Subjects:
    from pdtrim_core.results.run_folder import load_outcome  # noqa: PLC0415 - only one way needs it
    from pdtrim_core.timing.subjects import BlocksToRemove, subjects_of_run, subjects_of_shape  # noqa: PLC0415 - imports torch

    if shape is not None:
        like = None if run is None else load_outcome(run)
        budget = BlocksToRemove(given["--blocks"], given["--prefill-blocks"], given["--plan"], like)
        return subjects_of_shape(shape, budget, load_plugins(), dtype)
    from pdtrim_core.pipeline.open_run import load_run  # noqa: PLC0415 - imports torch

    assert run is not None
    return subjects_of_run(load_run(run, trust=trust), dtype)


def _conflicts(run: Path | None, shape: str | None, given: dict[str, Any]) -> list[str]:
    named = [option for option, value in given.items() if value is not None]
    if shape is None:
        missing = [] if run else ["name the folder of a run, or a shape with --random-weights"]
        return missing + [f"{option}: goes with --random-weights alone; a run has a plan" for option in named]
    if given["--plan"] is not None and len(named) > 1:
        return [f"{' and '.join(named)}: a plan says how many blocks go"]
    if run and given["--prefill-blocks"] is not None and given["--blocks"] is None:
        return ["--prefill-blocks: goes with --blocks; else the run says how many blocks go"]
    return []


def _wrong_values(dtype: str | None, forward: int) -> list[str]:
    problems = []
    if dtype is not None and dtype not in _dtypes():
        problems.append(f"--dtype: there is no number format '{dtype}'{did_you_mean(dtype, _dtypes())}")
    if forward < 0:
        problems.append(f"--forward: must be 0 or more (got {forward})")
    return problems


def _numbers(option: str, text: str, problems: list[str]) -> tuple[int, ...]:
    """Return numbers that stand between commas, rising and each once; an empty text gives none."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 0 for word in words):
        problems.append(f"{option}: must be positive whole numbers with commas between them (got '{shortened(text)}')")
        return ()
    return tuple(sorted({int(word) for word in words}))


def _dtypes() -> tuple[str, ...]:
    from pdtrim_core.timing.subjects import Dtype  # noqa: PLC0415 - imports torch

    return get_args(Dtype)
