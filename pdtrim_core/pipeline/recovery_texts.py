"""The texts that recoveries are computed from: written by the dense model, or from files; never such as measure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.reading import UnreadableError, read_lines, read_text
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.pipeline.training_tokens import TrainingTokens
from pdtrim_core.pipeline.written_texts import WrittenTexts
from pdtrim_core.recipe.settings import GENERATED, OF_CALIBRATION
from pdtrim_core.wording import counted

CHECKED = 16
"""Texts, the first ones, on which a recovery must have made the pair better, and from which none is computed."""
LEAST_PROMPT = 2


class RecoveryTexts:
    """The texts of one run: the same ones whenever it asks, and those of a smaller number begin those of a larger one."""

    def __init__(self, context: RunContext, inputs: RunInputs) -> None:
        self._inputs = inputs
        self._settings = context.recipe.settings.recovery_data
        self._rng = context.rng
        self._training = TrainingTokens(context, inputs)
        self._written = WrittenTexts(self._training, self._settings)

    @property
    def text_tokens(self) -> int:
        """Tokens of a text: of its prompt and of what follows."""
        return self._settings.text_tokens

    def items(self, count: int) -> list[Item]:
        """Return so many texts, in equal parts from all sources; each has a prompt of another length, and what follows.

        Raises `PdtrimError` where a source has not so many.
        """
        self._check_length()
        sources = self._settings.sources
        parts = [self._texts(source, -(-count // len(sources))) for source in sources]
        together = [text for texts in zip(*parts, strict=True) for text in texts][:count]
        rng = self._rng("recovery prompts")
        return [self._parted(number, text, rng) for number, text in enumerate(together)]

    def check(self, count: int) -> None:
        """Raise `PdtrimError` for what `items` would refuse, as far as that is known before the dense model has written texts.

        Texts are needed at the end of a search, and what is wrong with them should not be told then.
        """
        self._check_length()
        self._training.opening()
        sources = self._settings.sources
        for source in sources:
            each = -(-count // len(sources))
            if source == GENERATED:
                self._written.begun(each)
            else:
                self._texts(source, each)

    def _parted(self, number: int, text: tuple[int, ...], rng: Random) -> Item:
        prompt = rng.randint(LEAST_PROMPT, self._settings.prompt_tokens)
        return Item((text[:prompt],), (text[prompt:],), 0, (1,), f"recovery {number}")

    def _texts(self, source: str, count: int) -> list[tuple[int, ...]]:
        found = list(islice(self._written.texts(count) if source == GENERATED else self._read(source), count))
        if len(found) < count:
            raise PdtrimError(
                f"recovery_data.sources: {source} gives {counted(len(found), 'text')} of {self.text_tokens} tokens, and {count} "
                "are needed: give it more text, or let recoveries take fewer tokens"
            )
        return found

    def _read(self, source: str) -> Iterator[tuple[int, ...]]:
        """Yield texts of one length from what a source has; none of those that also measure."""
        opening = self._training.opening()
        step, tokens = self.text_tokens - len(opening), list[int]()
        for number, text in enumerate(self._raw(source)):
            if self._inputs.calibration.holds(text):
                continue
            tokens += self._training.of(text, number, source)
            while len(tokens) >= step:
                yield (*opening, *tokens[:step])
                del tokens[:step]

    def _raw(self, source: str) -> Iterable[str]:
        return self._training.texts() if source == OF_CALIBRATION else list(_of_file(Path(source)))

    def _check_length(self) -> None:
        positions = self._inputs.model.positions
        if positions is not None and positions < self.text_tokens:
            raise PdtrimError(
                f"recovery_data: texts have {self.text_tokens} tokens (prompt_tokens + answer_tokens), and "
                f"{self._inputs.model.name} has learned {positions} positions"
            )


def _of_file(path: Path) -> Iterator[str]:
    """Yield the texts of a file: its paragraphs, or of a .jsonl file `text`, or `prompt` with `answer`, of each line."""
    try:
        if path.suffix == ".jsonl":
            for number, line in read_lines(path):
                data = json.loads(line)
                if not isinstance(data, dict) or not ("text" in data or {"prompt", "answer"} <= data.keys()):
                    raise PdtrimError(
                        f"recovery_data.sources: line {number} of {path} has neither 'text' nor 'prompt' and 'answer'"
                    )
                keys = ("text",) if "text" in data else ("prompt", "answer")
                for key in keys:
                    if not isinstance(data[key], str):
                        raise PdtrimError(
                            f"recovery_data.sources: '{key}' of line {number} of {path} is no text: give text, not its tokens or "
                            "the messages of a conversation"
                        )
                yield "".join(data[key] for key in keys)
        else:
            yield from (paragraph for paragraph in read_text(path).split("\n\n") if paragraph.strip())
    except FileNotFoundError:
        raise PdtrimError(f"recovery_data.sources: there is no file {path} (or say generated, or calibration)") from None
    except (UnreadableError, ValueError) as error:
        raise PdtrimError(f"recovery_data.sources: {path} cannot be read: {error}") from error
