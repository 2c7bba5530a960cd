"""`pdtrim-core eval`: the benchmarks of lm-evaluation-harness on a run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from pdtrim_core.cli.completing import complete_variants
from pdtrim_core.cli.executing import Executed, check_executor, executed_by
from pdtrim_core.cli.fidelity_inputs import LEAST_TOKENS, FidelityInputs
from pdtrim_core.cli.logs import remark
from pdtrim_core.cli.options import Address, ExecutedBy, Log, Quiet, Trust, Workers
from pdtrim_core.cli.progress import progress_display
from pdtrim_core.cli.terminal import print_table, say, say_data
from pdtrim_core.errors import PdtrimError, did_you_mean
from pdtrim_core.harness import check_installed
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.task_results import Metric, TaskResult, Variant, path_of


class FirstToken(StrEnum):
    """The stage that makes the first token."""

    decode = "decode"
    prefill = "prefill"


def eval(  # noqa: A001 - a command is named as its function is
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    tasks: Annotated[str, typer.Option(help="Tasks by the harness' names, with commas between them.", show_default=False)] = "",
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity",
            help="Compare with the dense model: on the items that the run held out, or of --data, --text, --prompt-tokens.",
        ),
    ] = False,
    answer_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=4096, help="With --fidelity: tokens of an answer at most (default: the run's, of a needle test 24)."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --fidelity: compare along this text, UTF-8, in windows of 128 tokens."),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=LEAST_TOKENS,
            help="With --fidelity: a needle test on prompts of so many tokens; with --text they are made of that.",
        ),
    ] = None,
    variants: Annotated[
        str,
        typer.Option(
            "--variants",
            "--stage",
            autocompletion=complete_variants,
            help="The variants to evaluate: staged (the pair), unrecovered (the pair before its recovery), "
            "unquantized (before it got its number formats), unselected (before its K/V were selected), unified, prefill, "
            "decode or dense; several with commas.",
        ),
    ] = "staged",
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Read the items from files in this folder, not from the hub.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Use only the first items of each task: so many, or below 1 that share.")
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(min=1, help="With --data, --text or --prompt-tokens: use so many items of each, evenly spaced."),
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in front of each item (default: the task's).")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Put prompts into the tokenizer's chat template.")
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Generate so many tokens at most (default: the task's).")
    ] = None,
    first_token: Annotated[
        FirstToken | None, typer.Option(help="The stage that makes the first token (default: the run's).")
    ] = None,
    prompt_share: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of each window of running text that is prompt and is not scored.")
    ] = 0.0,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens a batch that is scored.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that generate together.")] = 16,
    unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Allow tasks that run programs which the model wrote.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is known.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    executor: ExecutedBy = "local",
    workers: Workers = None,
    address: Address = None,
    log: Log = "text",
    quiet: Quiet = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Evaluate a run on benchmarks of lm-evaluation-harness, or beside the dense model; print one table."""
    del debug  # main() reads it
    names, wanted = _names(tasks, fidelity=fidelity), variants_in(variants)
    if limit is not None and not 0 < limit < math.inf:
        raise PdtrimError(f"--limit: give a number of items, or a share below 1 (got {limit})")
    asked = FidelityInputs(data if fidelity else None, names, text, prompt_tokens, items, prompt_share, answer_tokens)
    if fidelity:
        asked.check()
        if data is not None:
            names = []
            _check_unused({"--limit": limit, "--num-fewshot": num_fewshot, "--apply-chat-template": apply_chat_template or None})
    else:
        _check_needed({"--text": text, "--prompt-tokens": prompt_tokens, "--answer-tokens": answer_tokens})
        if items is not None and data is None:
            raise PdtrimError("--items chooses among the items of files: name their folder with --data, or use --limit")
    by = Executed(executor, workers, address)
    check_executor(by)
    if names:
        check_installed()
    elif executor != "local":
        raise PdtrimError("--executor ray: workers evaluate tasks, and none is named: leave it out, or say --tasks")
    from pdtrim_core.pipeline.open_run import load_run  # noqa: PLC0415 - imports torch
    from pdtrim_core.pipeline.run_fidelity import RunFidelity  # noqa: PLC0415 - the same

    display = progress_display(sys.stderr, log, quiet=quiet)
    made_by: Literal["decode", "prefill"] | None = None if first_token is None else first_token.value
    loaded, results = load_run(run, trust=trust), list[TaskResult]()
    wanted = there(run, loaded.outcome, wanted)

    def compare() -> None:
        for inputs in asked.opened(loaded) if fidelity else ():
            with display.comparing() as told:
                of_inputs = RunFidelity(
                    loaded, inputs=inputs, length=asked.length, first_token=made_by, say=display.say, told=told
                )
                results.extend(of_inputs.results(wanted, fresh=fresh))

    if not names:
        with display.working("evaluating"):
            compare()
        _show(run, results, wanted, as_json=as_json)
        return
    from pdtrim_core.harness.evaluate import Evaluation, Options  # noqa: PLC0415 - imports torch and the harness
    from pdtrim_core.harness.tasks import Source  # noqa: PLC0415 - the same

    options = Options(
        source=Source(data, items, num_fewshot),
        limit=limit,
        chat_template=apply_chat_template,
        first_token=made_by,
        prompt_share=prompt_share,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        runs_code=unsafe_code,
    )
    Evaluation(loaded, options).check(names)
    with executed_by(by, display) as found, display.working("evaluating"):
        compare()
        results += Evaluation(loaded, options, display.say, executor=found).results(names, wanted, fresh=fresh)
    _show(run, results, wanted, as_json=as_json)


def there(run: Path, outcome: Outcome, wanted: list[Variant]) -> list[Variant]:
    """Return those variants that a run has, and say why not of the others. Raises `PdtrimError` where it has none of them."""
    absent = {variant: outcome.why_absent(variant) for variant in wanted}
    there = [variant for variant in wanted if not absent[variant]]
    if not there:
        raise PdtrimError(f"{run} {absent[wanted[0]]}")
    for why in filter(None, absent.values()):
        remark(f"{run} {why}")
    return there


def _check_needed(given: Mapping[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            raise PdtrimError(f"{option} belongs to --fidelity: say that, too, or leave it out")


def _check_unused(given: Mapping[str, object]) -> None:
    for option, value in given.items():
        if value is not None:
            raise PdtrimError(
                f"{option} is for tasks in the harness, and --fidelity --data runs none there: leave it out, or use --items"
            )


def _show(run: Path, results: Sequence[TaskResult], wanted: Sequence[Variant], *, as_json: bool) -> None:
    say_data(json.dumps([_data(run, result) for result in results], indent=1)) if as_json else _print(results, wanted)


def _names(tasks: str, *, fidelity: bool) -> list[str]:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names and not fidelity:
        raise PdtrimError("--tasks is empty: name tasks such as arc_easy,piqa, or say --fidelity")
    return names


def variants_in(given: str) -> list[Variant]:
    """Return the variants that an option names, with commas between them. Raises `PdtrimError` for one that there is not."""
    variants: list[Variant] = []
    for name in dict.fromkeys(part.strip() for part in given.split(",")):
        if name not in get_args(Variant):
            raise PdtrimError(f"unknown variant '{name}'{did_you_mean(name, get_args(Variant))}")
        variants += [variant for variant in get_args(Variant) if variant == name]
    return variants


def _data(run: Path, result: TaskResult) -> dict[str, object]:
    return {
        "task": result.task,
        "stage": result.variant,
        "main": result.main,
        "metrics": {name: vars(metric) for name, metric in result.metrics.items()},
        "items": len(result.answers),
        "settings": result.settings,
        "versions": result.versions,
        "seconds": result.seconds,
        "notes": result.notes,
        "file": str(path_of(run, result.task, result.variant, result.settings)),
    }


def _print(results: Sequence[TaskResult], variants: Sequence[Variant]) -> None:
    from rich.table import Table  # noqa: PLC0415 - the same

    table = Table(box=None, pad_edge=False)
    for title in ("task", "metric", "items", *variants):
        table.add_column(title, no_wrap=True, justify="left" if title in ("task", "metric") else "right")
    by_task = {result.task: [other for other in results if other.task == result.task] for result in results}
    for task, of_task in by_task.items():
        for metric in dict.fromkeys(name for one in of_task for name in one.metrics):
            if "/" not in metric:  # the parts of a group are in the files
                table.add_row(task, metric, str(len(of_task[0].answers)), *(_shown(one.metrics.get(metric)) for one in of_task))
    print_table(table)
    pairs = {result.variant: result.settings["first_token"] for result in results if result.settings["first_token"]}
    if pairs:
        say(f"\n{' and '.join(pairs)}: the first token is {' and '.join(sorted(set(pairs.values())))}'s")
    for note in dict.fromkeys(f"{result.task}, {result.variant}: {note}" for result in results for note in result.notes):
        say(note)


def _shown(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{metric.value:.4f}" + ("" if metric.error is None else f" +- {metric.error:.4f}")
