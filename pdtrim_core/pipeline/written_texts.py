"""The texts that the dense model writes for recoveries: half of them answer prompts, half go on from beginnings of texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path

from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.sampling import sampled
from pdtrim_core.fidelity.dense_answers import beginnings as answers_to
from pdtrim_core.files.atomic_files import alone, cache_folder, write_whole
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.pipeline.run_keys import dense_code
from pdtrim_core.pipeline.training_tokens import TrainingTokens
from pdtrim_core.recipe.settings import GENERATED, RecoveryData

BEGINNING = 8
"""Tokens of a training text that the dense model goes on from."""
WRITTEN_TOGETHER = 64
Tokens = tuple[int, ...]


class WrittenTexts:
    """The texts that a run's dense model writes; they are kept in the user's cache."""

    def __init__(self, training: TrainingTokens, settings: RecoveryData) -> None:
        self._training = training
        self._settings = settings
        self._context = training.context
        self._model = training.inputs.model

    def texts(self, count: int) -> Iterator[Tokens]:
        """Yield so many texts and more, none of which measures; they are written in groups, when they are wanted."""
        # Some may have to be left out, and a run must not end for that.
        most = 2 * count + WRITTEN_TOGETHER
        begun = self.begun(most)
        for start in range(0, most, WRITTEN_TOGETHER):
            self._tell(start / count)
            group = begun[start : start + WRITTEN_TOGETHER]
            # What is wanted of a group is what takes its time: the last one is seldom wanted whole.
            wanted = min(len(group), max(0, count - start))
            for written in self._sampled(group, seed=start, told=partial(self._tell_of_group, start / count, wanted / count)):
                if not self._training.inputs.calibration.holds(self._model.tokenizer.decode(list(written))):
                    yield written

    def answered(self, count: int) -> Iterator[Tokens]:
        """Yield so many prompts of the training part with the dense model's greedy answers, or as many as there are."""
        prompts = self._whole_prompts()[:count]
        done, wanted = 0.0, len(set(prompts))

        def tell(more: float) -> None:
            nonlocal done
            done += more
            self._tell(done / wanted)

        answer_of = answers_to(
            self._model,
            prompts,
            self._settings.answer_tokens,
            code=dense_code(self._model),
            fresh=self._context.fresh,
            answered=tell,
        )
        for prompt in prompts:
            text = (*prompt, *answer_of[prompt])
            if not self._training.inputs.calibration.holds(self._model.tokenizer.decode(list(text))):
                yield text

    def _tell_of_group(self, before: float, each: float, share: float) -> None:
        """Tell how far the texts are: what was `before` a group, and a `share` of what the group is of them all."""
        self._tell(before + each * share)

    def _tell(self, share: float) -> None:
        of = len(self._training.inputs.recoveries)
        self._context.host.tell("pdtrim_recovery_advanced", name="texts", number=0, count=of, share=min(1.0, share))

    def begun(self, count: int) -> list[Tokens]:
        """Return what the dense model goes on from in so many texts, in whole groups of those that are written together.

        In turns a whole prompt of the calibration's training part and the beginning of a training text, so that the pair is made
        good on what it is for, and on other text. Those of a kind that has fewer are used again, with other random numbers.
        Raises `PdtrimError` where there are neither.
        """
        count = -(-count // WRITTEN_TOGETHER) * WRITTEN_TOGETHER
        prompts = self._prompts(-(-count // 2))
        beginnings = self._beginnings(count - len(prompts))
        kinds = [kind for kind in (prompts, beginnings) if kind]
        if not kinds:
            raise PdtrimError(
                f"recovery_data.sources: {GENERATED} goes on from prompts and texts of the calibration's training part, which "
                f"has none with the {BEGINNING} tokens that are needed: name a file of text"
            )
        turns = islice(chain.from_iterable(zip(*map(cycle, kinds), strict=True)), count)
        opening = self._training.opening()
        return [(*opening, *tokens) for tokens in turns]

    def _prompts(self, count: int) -> list[Tokens]:
        """Return so many prompts, or as many as there are; of a long one its end, which the answer follows."""
        most = max(1, self._settings.prompt_tokens - len(self._training.opening()))
        texts = self._training.prompts()[:count]
        found = [self._training.of(text, number, GENERATED)[-most:] for number, text in enumerate(texts)]
        return [tokens for tokens in found if tokens]

    def _whole_prompts(self) -> list[Tokens]:
        """Return the prompts that leave room for an answer; what they open with is in front of them."""
        opening, positions = self._training.opening(), self._model.positions
        texts = self._training.prompts()
        found = [(*opening, *self._training.of(text, number, GENERATED)) for number, text in enumerate(texts)]
        return [tokens for tokens in found if tokens and (positions is None or len(tokens) < positions)]

    def _beginnings(self, count: int) -> list[Tokens]:
        tokens: list[int] = []
        for number, text in enumerate(self._training.texts()):
            tokens += self._training.of(text, number, GENERATED)
            if len(tokens) >= count * BEGINNING:
                break
        starts = range(0, len(tokens) - BEGINNING + 1, BEGINNING)[:count]
        return [tuple(tokens[start : start + BEGINNING]) for start in starts]

    def _sampled(self, openings: Sequence[Tokens], *, seed: int, told: Callable[[float], None]) -> list[Tokens]:
        model, length = self._model, self._settings.text_tokens
        what = [model.exact_fingerprint, repr(model.layout), openings, length, seed, dense_code(model)]
        path = cache_folder() / "texts" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()}.json"
        with alone(path):
            known = None if self._context.fresh else _known(path, len(openings), length, model.vocabulary)
            if known is None:
                known = sampled(model, openings, length, seed=seed, written=told)
                write_whole(path, json.dumps(known) + "\n")
        return known


def _known(path: Path, count: int, length: int, vocabulary: int) -> list[Tokens] | None:
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
