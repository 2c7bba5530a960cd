"""The texts that recoveries are computed from: written by the dense model, or from files; never such as measure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

from pdtrim_core.data.items import Item
from pdtrim_core.data.tokens import opening_of, tokens_of
from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.execution.sampling import sampled
from pdtrim_core.files.atomic_files import alone, cache_folder, write_whole
from pdtrim_core.files.reading import UnreadableError, read_json, read_lines, read_text
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.pipeline.run_keys import dense_code
from pdtrim_core.recipe.settings import GENERATED, OF_CALIBRATION

CHECKED = 16
"""Texts, the first ones, on which a recovery must have made the pair better, and from which none is computed."""
OPENING = 8
"""Tokens of a training text that the dense model goes on from where it writes one."""
WRITTEN_TOGETHER = 64
LEAST_PROMPT = 2


class RecoveryTexts:
    """The texts of one run: the same ones whenever it asks, and those of a smaller number begin those of a larger one."""

    def __init__(self, context: RunContext, inputs: RunInputs) -> None:
        self._context = context
        self._inputs = inputs
        self._settings = context.recipe.settings.recovery_data
        self._rng = context.rng

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
        self._opening()
        sources = self._settings.sources
        for source in sources:
            each = -(-count // len(sources))
            if source == GENERATED:
                self._begun(each)
            else:
                self._texts(source, each)

    def _parted(self, number: int, text: tuple[int, ...], rng: Random) -> Item:
        prompt = rng.randint(LEAST_PROMPT, self._settings.prompt_tokens)
        return Item((text[:prompt],), (text[prompt:],), 0, (1,), f"recovery {number}")

    def _texts(self, source: str, count: int) -> list[tuple[int, ...]]:
        found = list(islice(self._written(count) if source == GENERATED else self._read(source), count))
        if len(found) < count:
            raise PdtrimError(
                f"recovery_data.sources: {source} gives {len(found)} texts of {self.text_tokens} tokens, and {count} are needed: "
                "give it more text, or let recoveries take fewer tokens"
            )
        return found

    def _read(self, source: str) -> Iterator[tuple[int, ...]]:
        """Yield texts of one length from what a source has; none of those that also measure."""
        opening = self._opening()
        step, tokens = self.text_tokens - len(opening), list[int]()
        for number, text in enumerate(self._raw(source)):
            if self._inputs.calibration.holds(text):
                continue
            tokens += self._tokens_of(text, number, source)
            while len(tokens) >= step:
                yield (*opening, *tokens[:step])
                del tokens[:step]

    def _opening(self) -> tuple[int, ...]:
        found = opening_of("text", self._inputs.model.tokenizer)
        self._inputs.model.check_ids(found, "what its tokenizer puts in front of a text")
        return found

    def _tokens_of(self, text: str, number: int, source: str) -> tuple[int, ...]:
        found = tokens_of(text, self._inputs.model.tokenizer)
        self._inputs.model.check_ids(found, f"the text {number} of recovery_data.sources '{source}'")
        return found

    def _raw(self, source: str) -> Iterable[str]:
        if source in (OF_CALIBRATION, GENERATED):
            calibration = self._context.recipe.calibration
            with blame(self._context.host.label_of(calibration)):
                return list(calibration.training_texts(self._rng("recovery texts")))
        return list(_of_file(Path(source)))

    def _written(self, count: int) -> Iterator[tuple[int, ...]]:
        """Yield texts that the dense model writes, so many together; they are kept in the user's cache."""
        tokenizer, opening, begun = self._inputs.model.tokenizer, self._opening(), self._begun(count)
        of = len(self._inputs.recoveries)
        for number in range(0, count, WRITTEN_TOGETHER):
            self._context.host.tell("pdtrim_recovery_advanced", name="texts", number=0, count=of, share=number / count)
            # Openings are used again, with other random numbers, where there are fewer of them.
            chosen = [begun[(number + place) % len(begun)] for place in range(WRITTEN_TOGETHER)]
            openings = [(*opening, *start) for start in chosen]
            for written in self._sampled(openings, seed=number):
                if not self._inputs.calibration.holds(tokenizer.decode(list(written))):
                    yield written

    def _begun(self, count: int) -> list[tuple[int, ...]]:
        """Return the beginnings of so many texts, which the dense model goes on from; fewer where the training texts end."""
        most = -(-count // WRITTEN_TOGETHER) * WRITTEN_TOGETHER
        tokens: list[int] = []
        for number, text in enumerate(self._raw(GENERATED)):
            tokens += self._tokens_of(text, number, GENERATED)
            if len(tokens) >= most * OPENING:
                break
        starts = range(0, len(tokens) - OPENING + 1, OPENING)[:most]
        if not starts:
            raise PdtrimError(
                f"recovery_data.sources: {GENERATED} goes on from training texts of the calibration, which have {len(tokens)} "
                f"tokens where {OPENING} are needed: name a file of text"
            )
        return [tuple(tokens[start : start + OPENING]) for start in starts]

    def _sampled(self, openings: Sequence[tuple[int, ...]], *, seed: int) -> list[tuple[int, ...]]:
        model = self._inputs.model
        what = [model.exact_fingerprint, repr(model.layout), openings, self.text_tokens, seed, dense_code(model)]
        path = cache_folder() / "texts" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()}.json"
        with alone(path):
            known = None if self._context.fresh else _known(path, len(openings), self.text_tokens, model.vocabulary)
            if known is None:
                known = sampled(model, openings, self.text_tokens, seed=seed)
                write_whole(path, json.dumps(known) + "\n")
        return known

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


def _known(path: Path, count: int, length: int, vocabulary: int) -> list[tuple[int, ...]] | None:
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except UnreadableError:
        return None
    whole = isinstance(found, list) and len(found) == count and all(_is_text(text, length, vocabulary) for text in found)
    return [tuple(text) for text in found] if whole else None


def _is_text(found: object, length: int, vocabulary: int) -> bool:
    """Tell whether this is a text of so many tokens, as it was written."""
    if not isinstance(found, list) or len(found) != length:
        return False
    return all(isinstance(token, int) and 0 <= token < vocabulary for token in found)
