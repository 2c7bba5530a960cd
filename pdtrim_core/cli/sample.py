"""`pdtrim-core sample`: what a run's models write, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pdtrim_core.cli.completing import complete_variants
from pdtrim_core.cli.eval import there, variants_in
from pdtrim_core.cli.options import Trust
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.reading import UnreadableError, read_text
from pdtrim_core.wording import shortened

if TYPE_CHECKING:
    from pdtrim_core.pipeline.open_run import LoadedRun
    from pdtrim_core.results.task_results import Variant

LEAVES = ">>"
"""Stands where an answer leaves the dense model's."""
OWN_PROMPTS = 3
UNFINISHED = "\ufffd"
"""What a tokenizer writes for the beginning of a character whose other tokens are still to come."""


def sample(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help=f"What to answer; may be repeated. Without it {OWN_PROMPTS} prompts that the run held out.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="A prompt that is a whole text file.", show_default=False)
    ] = None,
    variants: Annotated[
        str,
        typer.Option(
            autocompletion=complete_variants,
            help="The variants that answer: staged (the pair), unified, dense and all others that eval has; several with commas.",
        ),
    ] = "dense,unified,staged",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 64,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Whether prompts are put into the model's chat template (default: if it has one)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print prompts and answers as JSON, at the end.")] = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Let the models of a run answer prompts: the dense one, its decode in both stages, and the pair, as they are served.

    Answers are greedy, and are printed while they are made. The two characters >> stand where one leaves the dense model's.
    """
    del debug  # main() reads it
    wanted, texts = variants_in(variants), [*(prompts or ()), *_texts_in(file)]
    if not all(text.strip() for text in texts):
        raise PdtrimError("a prompt is empty: say what to answer")
    from pdtrim_core.pipeline.open_run import load_run  # noqa: PLC0415 - imports torch

    loaded = load_run(run, trust=trust)
    wanted = there(run, loaded.outcome, wanted)
    asked = _given(texts, loaded, chat) if texts else _held_out(loaded, chat)
    for text, tokens in asked.items():
        loaded.dense.check_tokens(tokens, f"the prompt '{shortened(text)}'", more=max_new_tokens - 1)
    found = []
    for number, (text, tokens) in enumerate(asked.items(), start=1):
        if not as_json:
            say(f"{'' if number == 1 else chr(10)}prompt {number} of {len(asked)}: {text}", flush=True)
        answers = _answers(loaded, tokens, wanted, max_new_tokens, shown=not as_json)
        found.append({"prompt": text, "answers": {name: _decode(loaded, answer) for name, answer in answers.items()}})
    if as_json:
        say_data(json.dumps(found, indent=1))


def _texts_in(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return [read_text(file)]
    except FileNotFoundError:
        raise PdtrimError(f"--file: there is no file {file}") from None
    except UnreadableError as error:
        raise PdtrimError(f"--file: {file}: {error.reason}") from None


def _given(texts: Sequence[str], run: LoadedRun, chat: bool | None) -> dict[str, tuple[int, ...]]:  # noqa: FBT001 - an option
    """Return the tokens of each prompt that was given."""
    from pdtrim_core.data.tokens import chat_prompt, opening_of, tokens_of  # noqa: PLC0415 - imports torch

    tokenizer = run.dense.tokenizer
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has_template:
        raise PdtrimError(f"{run.outcome.model} has no chat template: leave out --chat")
    if has_template and chat is not False:
        # A template writes the tokens that a text begins with itself.
        return {text: tokens_of(chat_prompt(text, tokenizer), tokenizer) for text in texts}
    return {text: (*opening_of(text, tokenizer), *tokens_of(text, tokenizer)) for text in texts}


def _held_out(run: LoadedRun, chat: bool | None) -> dict[str, tuple[int, ...]]:  # noqa: FBT001 - an option
    """Return prompts that the run held out, evenly spaced, with the tokens with which they were measured."""
    from pdtrim_core.pipeline.run_fidelity import RunFidelity  # noqa: PLC0415 - imports torch

    if chat is not None:
        raise PdtrimError("--chat and --no-chat are of prompts that you give: say --prompt or --file, too")
    items = RunFidelity(run).items
    prompts = [item.prompt_of(item.answer) for item in items[:: max(1, len(items) // OWN_PROMPTS)][:OWN_PROMPTS]]
    return {run.dense.tokenizer.decode(list(prompt)): prompt for prompt in prompts}


def _answers(
    run: LoadedRun, prompt: Sequence[int], variants: Sequence[Variant], most: int, *, shown: bool
) -> Mapping[Variant, list[int]]:
    """Return what each variant answers; with `shown` it is printed on the way, marked where it leaves the dense answer."""
    answers: dict[Variant, list[int]] = {}
    width = max(map(len, variants))
    for variant in variants:
        dense = answers.get("dense")
        pair = run.two_phase(variant)
        if not shown:
            answers[variant] = pair.generate(prompt, most)
            continue
        line = _Line(variant.ljust(width), lambda tokens: _decode(run, tokens), dense)
        answers[variant] = pair.generate(prompt, most, on_token=line.token)
        line.end()
    return answers


def _decode(run: LoadedRun, tokens: Sequence[int]) -> str:
    text: str = run.dense.tokenizer.decode(list(tokens))
    return text


class _Line:
    """An answer that is printed token by token, behind the name of who answers."""

    def __init__(self, name: str, decode: Callable[[Sequence[int]], str], dense: Sequence[int] | None) -> None:
        self._decode = decode
        self._dense = dense
        self._tokens: list[int] = []
        self._printed = 0
        self._indent = " " * (len(name) + 3)
        say(f"{name}   ", end="", flush=True)

    def token(self, token: int) -> None:
        """Print what a token adds to the text."""
        if self._leaves(token):
            self._print(LEAVES)
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if not text.endswith(UNFINISHED):
            self._print(text[self._printed :])
            self._printed = len(text)

    def end(self) -> None:
        """End the line."""
        self._print(self._decode(self._tokens)[self._printed :])
        same = self._dense is not None and self._tokens == list(self._dense)
        say("   (as dense)" if same else "", flush=True)

    def _leaves(self, token: int) -> bool:
        """Tell whether this is the first token that is not the dense answer's."""
        if self._dense is None:
            return False
        place = len(self._tokens)
        return list(self._dense[:place]) == self._tokens and (place >= len(self._dense) or self._dense[place] != token)

    def _print(self, text: str) -> None:
        say(text.replace("\n", f"\n{self._indent}"), end="", flush=True)
