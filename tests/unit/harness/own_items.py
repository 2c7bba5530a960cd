"""Items of our own in the form of every benchmark that can be read from files: what ships as `mini`, dressed as each of them.

They have what real ones have and code may trip over: items longer than a tiny model's window, other scripts, blanks at the end of
a text, an option that another begins with, options of one letter, subjects with a single item.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count, cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from pdtrim_plugins.calibrations import Mini

Doc = dict[str, Any]
COUNT = 25
"""Items a benchmark."""


def write_own_items(folder: Path) -> Path:
    """Write `test.jsonl` of every benchmark, `dev.jsonl` of those with subjects, and WikiText's file; return the folder."""
    for task, docs in {**_of_choices(), "humaneval": _programs(), "ifeval": _instructions()}.items():
        _write(folder / task / "test.jsonl", islice(docs, COUNT))
    for task in ("mmlu", "cmmlu"):
        _write(folder / task / "dev.jsonl", islice(_subjects(task, "example"), COUNT))
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2" / "test.txt").write_text("".join(islice(_articles(), COUNT)), encoding="utf-8")
    return folder


def _write(path: Path, docs: Iterator[Doc]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"id": f"{path.parent.name}/{number}", **doc}) + "\n" for number, doc in enumerate(docs)]
    path.write_text("".join(lines), encoding="utf-8")


def _mini(half: str) -> list[tuple[str, tuple[str, ...], int]]:
    """Return question, options and the number of the right one, of one half of `mini`, in a fixed order."""
    samples = [sample for sample in Mini().draw(256, Random(0)) if sample.name.startswith(half)]
    return [
        (sample.prompt.removeprefix("Question: ").removesuffix("\nAnswer:"), sample.choices, sample.answer)
        for sample in sorted(samples, key=lambda sample: sample.name)
    ]


def _sentences(words: int) -> Iterator[str]:
    """Yield texts of at least so many words, cut from the questions and their right answers."""
    text: list[str] = []
    for question, options, gold in cycle(_mini("knowledge")):
        text += [question, options[gold].strip()]
        if sum(len(part.split()) for part in text) >= words:
            yield " ".join(text)
            text = []


def _of_choices() -> dict[str, Iterator[Doc]]:
    return {
        "mmlu": _subjects("mmlu", "test"),
        "cmmlu": _subjects("cmmlu", "test"),
        "arc_easy": _questions("knowledge"),
        "arc_challenge": ({**doc, "choices": doc["choices"][:3], "gold": doc["gold"] % 3} for doc in _questions("knowledge")),
        "piqa": _questions("physics"),
        "winogrande": (
            {"contexts": [f"{question} {one.strip()}" for one in options], "continuation": "was the better way.", "gold": gold}
            for question, options, gold in _mini("physics")
        ),
        "hellaswag": (
            {"query": f"Once more: {'. '.join(goal for goal, *_ in four)} Then he", "choices": _endings(four), "gold": number % 4}
            for number, four in enumerate(zip(*[iter(_mini("physics"))] * 4, strict=False))
        ),
        # Their passages are longer than the window of a tiny model, which has a token a letter, from the fifth item on.
        "boolq": _statements("no", "yes", words=lambda number: 20 * number),
        "mathqa": (
            {"query": f"Question: {n} apples and {n + 7} pears .\nAnswer:", "choices": _numbers(n), "gold": n % 5}
            for n in count(3)
        ),
        "wnli": _statements("False", "True", words=lambda number: 10),
        # Sentences of SST-2 keep a blank at their end.
        "sst2": _statements("negative", "positive", words=lambda number: 5 + number, end=" "),
        "rte": _statements("True", "False", words=lambda number: 15 + 5 * number),
        "cb": _statements("True", "False", "Neither", words=lambda number: 30),
    }


def _questions(half: str) -> Iterator[Doc]:
    for question, options, gold in _mini(half):
        yield {"query": f"Question: {question}\nAnswer:", "choices": options, "gold": gold}


def _statements(*answers: str, words: Callable[[int], int], end: str = "") -> Iterator[Doc]:
    for number in count():
        passage = next(_sentences(words(number)))
        yield {
            "query": f"``{passage}''{end}\nQuestion: is number {number} so?\nAnswer:",
            "choices": answers,
            "gold": number % len(answers),
        }


def _endings(four: tuple[tuple[str, tuple[str, ...], int], ...]) -> list[str]:
    """Return four endings; the second has a blank of its own in front, and the third goes on where the first ends."""
    first, second, _, fourth = (options[gold] for _, options, gold in four)
    return [first, f" [step] {second}", f"{first} And so on.", fourth]


def _numbers(number: int) -> list[str]:
    return [str(number), f"{number}.5", f"0.{number}", str(10 * number), "none of these"]


def _subjects(task: str, sort: str) -> Iterator[Doc]:
    """Yield items under the description of a subject; the last has two. Those of CMMLU are in letters of three bytes."""
    for number, (question, options, gold) in enumerate(_mini("knowledge")):
        subject = "tools" if number < 8 else "words" if number < 16 else "stars" if number < 23 else "skies"
        lettered = "\n".join(f"{letter}. {option.strip()}" for letter, option in zip("ABCD", options, strict=True))
        text = f"Now come {sort} questions about {subject}.\n\n{number}: {question}\n{lettered}\nAnswer:"
        if task == "cmmlu":
            text = text.translate({letter: 0x4E00 + letter for letter in range(ord("a"), ord("z") + 1)})
        yield {"query": text, "choices": list("ABCD"), "gold": gold, "subject": subject}


def _programs() -> Iterator[Doc]:
    """Yield functions to complete. Every other one is whole, and its prompt ends in a comment: what a model adds does no harm."""
    for number in count(1):
        body = f"    return x + {number}\n    #" if number % 2 else ""
        yield {
            "task_id": f"own/{number}",
            "prompt": f'def plus(x: int) -> int:\n    """Return x and {number} more."""\n{body}',
            "entry_point": "plus",
            "test": f"def check(candidate):\n    assert candidate(4) == {4 + number}\n",
        }


def _instructions() -> Iterator[Doc]:
    """Yield prompts with two instructions each, so that a file has every sort of instruction twice."""
    names = list(_KWARGS)
    for number, name in enumerate(names):
        both = [name, names[(number + 7) % len(names)]]
        prompt = f"Tell me about number {number}."
        kwargs = [{key: prompt if key == "prompt_to_repeat" else value for key, value in _KWARGS[one].items()} for one in both]
        yield {"key": number, "prompt": prompt, "instruction_id_list": both, "kwargs": kwargs}


_KWARGS: dict[str, dict[str, Any]] = {
    "punctuation:no_comma": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "length_constraints:number_words": {"num_words": 3, "relation": "at least"},
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "combination:repeat_prompt": {"prompt_to_repeat": ""},
    "detectable_format:title": {},
    "change_case:english_lowercase": {},
    "detectable_format:number_bullet_lists": {"num_bullets": 3},
    "change_case:english_capital": {},
    "detectable_format:multiple_sections": {"num_sections": 2, "section_spliter": "Part"},
    "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "less than"},
    "startend:quotation": {},
    "keywords:existence": {"keywords": ["number", "two"]},
    "detectable_format:json_format": {},
    "length_constraints:number_paragraphs": {"num_paragraphs": 1},
    "combination:two_responses": {},
    "language:response_language": {"language": "de"},
    "keywords:letter_frequency": {"letter": "e", "let_frequency": 1, "let_relation": "at least"},
    "startend:end_checker": {"end_phrase": "That is all."},
    "keywords:forbidden_words": {"forbidden_words": ["never"]},
    "keywords:frequency": {"keyword": "number", "frequency": 2, "relation": "less than"},
    "length_constraints:number_sentences": {"num_sentences": 3, "relation": "less than"},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "so"},
    "detectable_format:constrained_response": {},
}
"""Every sort of instruction of IFEval, with what it asks for."""


def _articles() -> Iterator[str]:
    """Yield articles in the form of WikiText, with its marks for dashes, points and commas inside words; some are long."""
    for number, text in enumerate(_sentences(60), start=1):
        begin = f" = Number {number} = \n \n A well @-@ known text of {number} @,@ 000 words , {number} @.@ 5 % of them here . \n"
        yield begin + f" {text} \n" + f" = = Part {number} = = \n \n The rest isn 't here . \n" * (number % 3)
