"""Calibration items: samples as text, items as tokens, the set that measures and the held-out one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pdtrim_core.data.tokens import opening_of, tokens_of
from pdtrim_core.errors import PdtrimError

Along = Literal["both", "answers", "right"]
"""Along which continuations of an item two models are compared: the dense model's own answer, the right choice, or both."""


@dataclass(frozen=True)
class Sample:
    """A prompt, what may follow it, and which of those is right.

    A model is given `prompt + choice`, and the choice is scored (its leading space belongs to it). Plain text has one
    choice: what follows its prompt. Where the choice lies in the prompt (a pronoun resolved in two ways), `prompts` has
    one prompt a choice, and `prompt` is not used.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int = 0
    name: str = ""
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.choices or not 0 <= self.answer < len(self.choices):
            raise PdtrimError(f"sample {self.name or self.prompt[:40]!r}: answer {self.answer} of {len(self.choices)} choices")

    @property
    def content(self) -> str:
        """The text by which two samples are the same, spacing and case aside."""
        return " | ".join(" ".join(text.lower().split()) for text in (self.prompt, *self.prompts, *sorted(self.choices)))


@dataclass(frozen=True)
class Item:
    """A sample as tokens: one prompt that all choices share, or one a choice.

    `choice_bytes` are the lengths of the choices in UTF-8 bytes. `dense_answer` is the beginning of what the dense model itself
    answers to the right choice's prompt, greedily; it is empty unless a run's objective wants it.
    """

    prompts: tuple[tuple[int, ...], ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int
    choice_bytes: tuple[int, ...]
    name: str = ""
    dense_answer: tuple[int, ...] = ()

    @property
    def one_prompt(self) -> bool:
        """Whether all choices follow the same prompt."""
        return len(self.prompts) == 1

    @property
    def one_token(self) -> bool:
        """Whether the logits behind the prompt are enough to score it: one prompt, and choices of one token each."""
        return self.one_prompt and all(len(choice) == 1 for choice in self.choices)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt with its right continuation: what block scores are taken over."""
        return self.prompt_of(self.answer) + self.choices[self.answer]

    def prompt_of(self, choice: int) -> tuple[int, ...]:
        """Return the prompt that a choice follows."""
        return self.prompts[0] if self.one_prompt else self.prompts[choice]

    def continuations(self, along: Along) -> tuple[tuple[int, ...], ...]:
        """Return the texts behind the right choice's prompt along which models are compared.

        Along both, an item without an answer of the dense model has its right choice alone. Raises `PdtrimError` along the
        answers.
        """
        right, answer = (self.choices[self.answer],), (self.dense_answer,) if self.dense_answer else ()
        if along == "answers" and not answer:
            raise PdtrimError(
                f"the item '{self.name}' has no answer of the dense model: let the objective say by `answer_length` how "
                "long a one it wants"
            )
        return {"both": right + answer, "answers": answer, "right": right}[along]

    def continued(self, along: Along) -> Item:
        """Return an item whose choices are the continuations of this one."""
        texts = self.continuations(along)
        return Item((self.prompt_of(self.answer),), texts, 0, (1,) * len(texts), self.name)


def encode(sample: Sample, tokenizer: Any) -> Item:
    """Return a sample as tokens, split between prompt and choice as lm-evaluation-harness splits them.

    Prompt and choice are tokenised together, and what comes behind the prompt's own tokens is the choice; white space at
    the prompt's end goes to the choice. In front of the prompt are the special tokens that the harness has there too. In one
    thing this departs from it: what a tokenizer puts behind a text, such as an end-of-text token, is left out, since it would
    part the prompt from its choice, and the harness loses the choice's first token to it. Raises `PdtrimError` for a prompt
    or a choice without tokens.
    """
    pairs = [_encode_pair(prompt, choice, sample, tokenizer) for prompt, choice in _pairs(sample)]
    prompts = tuple(prompt for prompt, _ in pairs) if sample.prompts else (pairs[0][0],)
    sizes = tuple(max(1, len(choice.strip().encode())) for choice in sample.choices)
    return Item(prompts, tuple(choice for _, choice in pairs), sample.answer, sizes, sample.name)


def _pairs(sample: Sample) -> Iterator[tuple[str, str]]:
    prompts = sample.prompts or (sample.prompt,) * len(sample.choices)
    if len(prompts) != len(sample.choices):
        raise PdtrimError(f"sample {sample.name!r}: {len(prompts)} prompts for {len(sample.choices)} choices")
    yield from zip(prompts, sample.choices, strict=True)


def _encode_pair(prompt: str, choice: str, sample: Sample, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    stripped = prompt.rstrip()
    prompt_tokens = tokens_of(stripped, tokenizer) if stripped else ()
    if not prompt_tokens:
        raise PdtrimError(f"sample {sample.name or '?'}: its prompt has no tokens, so prefill would have nothing to read")
    tokens = tokens_of(prompt + choice, tokenizer)[len(prompt_tokens) :]
    if not tokens:
        raise PdtrimError(f"sample {sample.name or stripped[:40]!r}: the choice {choice!r} has no tokens")
    return opening_of(stripped, tokenizer) + prompt_tokens, tokens


SHARED_WORDS = 13
"""So many words in a row are the same text, as studies of test items in training data count; shorter texts are compared whole."""


@dataclass(frozen=True)
class Calibration:
    """The items that measure, the held-out ones, and fresh ones that decide between finalists.

    `digest` names the content of the first two. `texts` has all that is read or scored of each sample.
    """

    items: tuple[Item, ...]
    held_out: tuple[Item, ...]
    digest: str
    texts: tuple[str, ...] = field(default=(), repr=False)
    fresh: tuple[Item, ...] = ()

    def holds(self, text: str) -> bool:
        """Tell whether a text has a run of words in common with one of the samples, so that it must not train.

        Runs that several samples have, such as the words in front of every question, do not count.
        """
        words = _words(text)
        if len(words) < SHARED_WORDS:
            return f" {' '.join(words)} " in self._joined
        return any(self._runs.get(run) == 1 for run in _runs(words))

    @cached_property
    def _runs(self) -> Counter[tuple[str, ...]]:
        """In how many samples each run of words occurs."""
        return Counter(run for text in self.texts for run in set(_runs(_words(text))))

    @cached_property
    def _joined(self) -> str:
        return " | ".join(["", *(" ".join(_words(text)) for text in self.texts), ""])


def _words(text: str) -> list[str]:
    return text.lower().split()


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + SHARED_WORDS]) for start in range(len(words) - SHARED_WORDS + 1))


def calibrate(
    samples: Sequence[Sample], held_out: Sequence[Sample], tokenizer: Any, *, fresh: Sequence[Sample] = ()
) -> Calibration:
    """Tokenise all sets. Raises `PdtrimError` when there is nothing to measure on or when the two overlap in content."""
    if not samples:
        raise PdtrimError("the calibration source gave no samples: there is nothing to measure on")
    measured = {sample.content: sample for sample in samples}
    both = [sample for sample in held_out if sample.content in measured]
    if both:
        raise PdtrimError(
            f"{len(both)} of the held-out items also measure, the first is {both[0].name or both[0].prompt[:60]!r}: "
            "the figures on them would flatter; take them out of one of the two"
        )
    items = tuple(encode(sample, tokenizer) for sample in _named(samples))
    held_out_items = tuple(encode(sample, tokenizer) for sample in _named(held_out))
    fresh_items = tuple(encode(sample, tokenizer) for sample in _named(fresh))
    texts = tuple(" | ".join(map("".join, _pairs(sample))) for sample in (*samples, *held_out, *fresh))
    return Calibration(items, held_out_items, digest_of((*items, *held_out_items)), texts, fresh_items)


def _named(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Yield the samples with names of their own, so that one that is given twice counts twice."""
    seen: set[str] = set()
    for number, sample in enumerate(samples):
        name = sample.name or f"sample {number}"
        while name in seen:
            name = f"{name} again"
        seen.add(name)
        yield replace(sample, name=name)


def answers_digest(items: Iterable[Item]) -> str:
    """Return a SHA-256 over the dense model's answers to items, in order; empty where they have none."""
    answers = [item.dense_answer for item in items]
    return hashlib.sha256(repr(answers).encode()).hexdigest() if any(answers) else ""


def digest_of(items: Iterable[Item]) -> str:
    """Return a SHA-256 over the tokens and answers of items, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr((item.prompts, item.choices, item.answer)).encode())
    return digest.hexdigest()
