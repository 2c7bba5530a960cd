"""The calibration sources: the files that ship, JSONL with its errors, plain text."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from pdtrim_core.api import PdtrimError, Sample, python_reference
from pdtrim_core.data.items import Calibration
from pdtrim_core.pipeline import prepare as first_steps
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts import tiny_host
from pdtrim_plugins.calibrations import Jsonl, Mini, Text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HALVES = ("physics", "knowledge")


def rows_of(name: str) -> list[dict[str, Any]]:
    text = (resources.files("pdtrim_plugins") / "data" / "mini" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def run_draws(options: dict[str, Any], seed: int = 0) -> Calibration:
    """Return what a run on a tiny model draws from a source."""
    host = tiny_host()
    data = {"seed": seed, "model": {"path": "tiny:llama"}, "recovery": "none", "prune": {"blocks": 1}, "calibration": options}
    recipe = Recipe.from_data(data, where="small.toml", host=host)
    return first_steps.draw(recipe, host, first_steps.open_model(recipe.model, host))


def draw(source: Mini | Jsonl | Text, count: int, seed: int = 0) -> list[Sample]:
    return list(source.draw(count, Random(seed)))


# The items that ship


@pytest.mark.parametrize(("file", "count"), [("calibration", 256), ("evaluation", 64)])
def test_mini_holds_as_many_items_of_either_half(file: str, count: int) -> None:
    rows = rows_of(file)
    assert len(rows) == count
    assert Counter(row["id"].partition("-")[0] for row in rows) == dict.fromkeys(HALVES, count // 2)


def test_mini_has_sixteen_subjects_at_least() -> None:
    for file in ("calibration", "evaluation"):
        assert len({row["subject"] for row in rows_of(file)}) >= 16


@pytest.mark.parametrize("file", ["calibration", "evaluation"])
@pytest.mark.parametrize("half", HALVES)
def test_mini_puts_the_right_answer_in_each_position_alike(file: str, half: str) -> None:
    rows = [row for row in rows_of(file) if row["id"].startswith(half)]
    (choices,) = {len(row["choices"]) for row in rows}
    times = Counter(row["gold"] for row in rows)
    for position in range(choices):
        assert times[position] / len(rows) == pytest.approx(1 / choices, abs=0.02)


def test_mini_repeats_no_id_and_no_query() -> None:
    rows = [*rows_of("calibration"), *rows_of("evaluation")]
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({" ".join(row["query"].lower().split()) for row in rows}) == len(rows)
    assert all(len(set(row["choices"])) == len(row["choices"]) for row in rows)


def test_mini_has_no_near_repeats() -> None:
    """No two items, of the same file or not, share half of their words."""
    words = {row["id"]: _words(row) for row in (*rows_of("calibration"), *rows_of("evaluation"))}
    near = [(a, b) for a, b in combinations(words, 2) if len(words[a] & words[b]) / len(words[a] | words[b]) >= 0.5]
    assert near == []


def _words(row: dict[str, Any]) -> set[str]:
    frame = ("Question:", "Answer:")
    text = " ".join(word for word in " ".join([row["query"], *row["choices"]]).split() if word not in frame)
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def test_mini_is_ascii_in_the_form_of_the_harness() -> None:
    for row in (*rows_of("calibration"), *rows_of("evaluation")):
        assert re.fullmatch(r"Question: .+\nAnswer:", row["query"])
        assert all(text == text.strip() and text.isascii() for text in (row["query"], *row["choices"]))


def test_mini_draws_as_many_of_either_half() -> None:
    assert Counter(sample.name.partition("-")[0] for sample in draw(Mini(), 20)) == dict.fromkeys(HALVES, 10)
    assert len(draw(Mini(), 7)) == 7


def test_mini_draws_all_its_items() -> None:
    assert {sample.name for sample in draw(Mini(), 256)} == {row["id"] for row in rows_of("calibration")}


def test_mini_says_how_many_items_it_has() -> None:
    with pytest.raises(PdtrimError) as caught:
        draw(Mini(), 257)
    assert str(caught.value) == "calibration.samples: mini has 256 such items, not 257"


def test_mini_names_the_option_that_asks_for_too_many_items_apart() -> None:
    with pytest.raises(PdtrimError) as caught:
        list(Mini().draw_held_out(65, Random(0)))
    assert str(caught.value) == "calibration.held_out: mini has 64 such items, not 65"


# How many


def test_mini_gives_prose_in_place_of_a_share_of_its_items() -> None:
    mini = Mini(prose=0.25, samples=32)
    drawn, held_out = list(mini.draw(32, Random(0))), list(mini.draw_held_out(16, Random(0)))
    for samples in (drawn, held_out):
        prose = [sample for sample in samples if sample.name.startswith("python-reference")]
        assert len(prose) == len(samples) // 4
        assert {len(sample.choices) for sample in prose} == {1}
        assert len({sample.content for sample in samples}) == len(samples)
    assert not {sample.content for sample in drawn} & {sample.content for sample in held_out}
    # They are mixed, so that a part of the items is like the whole.
    kinds = [sample.name.startswith("python") for sample in drawn]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))


def test_mini_may_give_nothing_but_prose() -> None:
    assert {len(sample.choices) for sample in Mini(prose=1.0).draw(8, Random(0))} == {1}


def test_mini_says_how_much_prose_it_has() -> None:
    with pytest.raises(PdtrimError, match=r"calibration\.samples: mini has \d+ pieces of prose, not 5000"):
        list(Mini(prose=1.0).draw(5000, Random(0)))


@pytest.mark.parametrize("source", [{"use": "mini"}, {"use": "mini", "prose": 0.5}, {"use": "text", "words": 8}])
def test_samples_and_held_out_say_how_many_items_there_are(source: dict[str, Any]) -> None:
    for samples, held_out in ((6, 4), (9, 0)):
        drawn = run_draws({**source, "samples": samples, "held_out": held_out})
        assert (len(drawn.items), len(drawn.held_out)) == (samples, held_out)


def test_a_run_draws_by_its_seed() -> None:
    options = {"use": "mini", "samples": 6, "held_out": 2}
    assert run_draws(options) == run_draws(options)
    assert run_draws(options, seed=1).digest != run_draws(options).digest


# JSONL


def write(path: Path, items: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def numbered(prefix: str, count: int) -> list[dict[str, Any]]:
    return [{"id": f"{prefix}{i}", "query": f"{prefix} {i}?", "choices": ["yes", "no"], "gold": i % 2} for i in range(count)]


def test_jsonl_reads_query_choices_and_gold(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", [{"id": "a", "query": "Is it?", "choices": ["yes", "no"], "gold": 1}])
    assert draw(Jsonl(files=(path,)), 1) == [Sample("Is it?", (" yes", " no"), 1, "a")]


def test_jsonl_reads_contexts_and_a_continuation(tmp_path: Path) -> None:
    item = {"id": "w", "contexts": ["The cup is", "The box is"], "continuation": "too big.", "gold": 0}
    path = write(tmp_path / "two.jsonl", [item])
    expected = Sample("", (" too big.", " too big."), 0, "w", ("The cup is", "The box is"))
    assert draw(Jsonl(files=(path,)), 1) == [expected]
    drawn = run_draws({"use": "jsonl", "files": [str(path)], "samples": 1, "held_out": 0})
    assert not drawn.items[0].one_prompt


def test_jsonl_draws_evenly_from_its_files(tmp_path: Path) -> None:
    files = (write(tmp_path / "a.jsonl", numbered("a", 10)), write(tmp_path / "b.jsonl", numbered("b", 3)))
    names = [sample.name[0] for sample in draw(Jsonl(files=files), 12)]
    assert Counter(names[:6]) == {"a": 3, "b": 3}
    assert Counter(names) == {"a": 9, "b": 3}


def test_jsonl_keeps_apart_items_of_files_named_for_that(tmp_path: Path) -> None:
    drawn_from, apart_from = write(tmp_path / "a.jsonl", numbered("a", 8)), write(tmp_path / "b.jsonl", numbered("b", 8))
    both = {"use": "jsonl", "files": [str(drawn_from)], "samples": 4, "held_out": 3}
    drawn = run_draws({**both, "held_out_files": [str(apart_from)]})
    assert {item.name[0] for item in drawn.items} == {"a"}
    assert {item.name[0] for item in drawn.held_out} == {"b"}
    assert {item.name[0] for item in run_draws(both).held_out} == {"a"}


def test_jsonl_refuses_files_that_measure_and_are_kept_apart(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", numbered("a", 2)))
    with pytest.raises(PdtrimError, match=r"^2 of the held-out items also measure, the first is 'a[01]'"):
        run_draws({"use": "jsonl", "files": [path], "held_out_files": [path], "samples": 2, "held_out": 2})


def test_jsonl_needs_a_file() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        Jsonl(files=())


def test_jsonl_skips_empty_lines_and_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "gaps.jsonl"
    path.write_text('\n{"query": "q", "choices": ["a", "b"], "gold": 0}\n\n[]\n')
    with pytest.raises(PdtrimError) as caught:
        draw(Jsonl(files=(path,)), 1)
    assert str(caught.value) == f"{path}, line 4: an item is an object with query, choices and gold"


def test_a_jsonl_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    with pytest.raises(PdtrimError) as caught:
        draw(Jsonl(files=(path,)), 1)
    assert str(caught.value) == f"calibration file {path} does not exist"


def test_an_empty_jsonl_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(PdtrimError) as caught:
        draw(Jsonl(files=(path,)), 1)
    assert str(caught.value) == f"calibration file {path} is empty: it needs one item a line"


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PdtrimError) as caught:
        draw(Jsonl(files=(path,)), 1)
    assert str(caught.value) == (
        f"calibration file {path} is not text in UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    )


GOOD = {"query": "Is it?", "choices": ["yes", "no"], "gold": 0}


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"choices": ["yes", "no"], "gold": 0}, "the key 'query' is missing"),
        ({"query": "Is it?", "gold": 0}, "the key 'choices' is missing"),
        ({"query": "Is it?", "choices": ["yes", "no"]}, "the key 'gold' is missing"),
        ({"contexts": ["a", "b"], "gold": 0}, "the key 'continuation' is missing"),
        ({**GOOD, "query": " "}, "query must be a text that is not empty"),
        ({**GOOD, "query": 3}, "query must be a text that is not empty"),
        ({**GOOD, "choices": ["yes", ""]}, "choices must be a list of texts that are not empty"),
        ({**GOOD, "choices": []}, "choices must be a list of texts that are not empty"),
        ({**GOOD, "choices": "yes"}, "choices must be a list of texts that are not empty"),
        ({**GOOD, "gold": 2}, "gold must be the number of the right choice, 0 to 1 (got 2)"),
        ({**GOOD, "gold": -1}, "gold must be the number of the right choice, 0 to 1 (got -1)"),
        ({**GOOD, "gold": True}, "gold must be the number of the right choice, 0 to 1 (got True)"),
        ({**GOOD, "gold": "0"}, "gold must be the number of the right choice, 0 to 1 (got '0')"),
        (["yes", "no"], "an item is an object with query, choices and gold"),
    ],
)
def test_a_bad_item_is_named_by_its_line(item: object, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [GOOD, item])
    with pytest.raises(PdtrimError) as caught:
        draw(Jsonl(files=(path,)), 1)
    assert str(caught.value) == f"{path}, line 2: {problem}"


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(GOOD) + "\nquery: Is it?\n")
    with pytest.raises(PdtrimError) as caught:
        draw(Jsonl(files=(path,)), 1)
    assert str(caught.value) == f"{path}, line 2: not JSON (Expecting value: line 1 column 1 (char 0))"


def test_training_items_come_with_their_right_choice_from_each_file_in_turn(tmp_path: Path) -> None:
    files = tuple(tmp_path / name for name in ("one.jsonl", "two.jsonl"))
    for path in files:
        rows = [{"query": f"{path.stem} {n}?", "choices": ["no", "yes"], "gold": 1} for n in range(3)]
        path.write_text("\n".join(map(json.dumps, rows)))
    texts = list(Jsonl(files=files, training_files=files).training_texts(Random(0)))
    assert sorted(texts) == sorted(f"{path.stem} {n}? yes" for path in files for n in range(3))
    assert [text.split()[0] for text in texts] == ["one", "two"] * 3
    assert list(Jsonl(files=files, training_files=files).training_texts(Random(1))) != texts


def test_items_whose_prompts_differ_train_on_the_right_prompt(tmp_path: Path) -> None:
    path = tmp_path / "winogrande.jsonl"
    path.write_text(json.dumps({"contexts": ["Because A", "Because B"], "continuation": "was late.", "gold": 1}))
    assert list(Jsonl(files=(path,), training_files=(path,)).training_texts(Random(0))) == ["Because B was late."]


def test_prompts_to_answer_are_the_questions_without_their_choices(tmp_path: Path) -> None:
    assert sorted(Mini().training_prompts(Random(0))) == sorted(row["query"] for row in rows_of("calibration"))
    path = tmp_path / "items.jsonl"
    rows = [
        {"query": "Why? ", "choices": ["So.", "No."], "gold": 0},
        {"contexts": ["Because A", "Because B"], "continuation": "was late.", "gold": 1},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = Jsonl(files=(path,), training_files=(path,))
    assert sorted(source.training_prompts(Random(0))) == ["Because B", "Why?"]
    assert not list(Jsonl(files=(path,)).training_prompts(Random(0)))
    assert not list(Text().training_prompts(Random(0)))


@pytest.mark.parametrize("source", [Mini(), Text(), Jsonl.model_validate({"files": ["none.jsonl"]})])
def test_without_training_files_merges_train_on_the_python_reference(source: Mini | Jsonl | Text) -> None:
    assert sorted(source.training_texts(Random(0))) == sorted(python_reference())


def test_lines_of_training_files_train_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "prose.txt"
    path.write_text("\n\n".join(f"line {n}" for n in range(20)))
    texts = list(Text(training_files=(path,)).training_texts(Random(0)))
    assert sorted(texts) == sorted(f"line {n}" for n in range(20))
    assert texts != sorted(texts)


def test_a_training_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none"
    for source in (Jsonl(files=(path,), training_files=(path,)), Text(training_files=(path,))):
        with pytest.raises(PdtrimError, match=str(path)):
            list(source.training_texts(Random(0)))


# Plain text


def test_text_pieces_do_not_overlap(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(103)]
    path = tmp_path / "prose.txt"
    path.write_text(" ".join(words))
    pieces = draw(Text(files=(path,), words=10), 50)
    used = [word for piece in pieces for word in (piece.prompt + piece.choices[0]).split()]
    assert len(pieces) == 10
    assert sorted(used) == sorted(words[:100])


def test_words_are_the_length_of_a_piece_half_of_it_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prose.txt"
    path.write_text("a b c d e f g h")
    assert draw(Text(files=(path,), words=8), 9) == [Sample("a b c d", (" e f g h",), name="prose.txt:0")]
    pieces = sorted(draw(Text(files=(path,), words=4), 9), key=lambda piece: piece.prompt)
    assert [(piece.prompt, piece.choices) for piece in pieces] == [("a b", (" c d",)), ("e f", (" g h",))]


def test_text_draws_from_all_its_files(tmp_path: Path) -> None:
    files = tuple(tmp_path / name for name in ("one.txt", "two.txt"))
    for path in files:
        path.write_text(f"{path.stem} and some more")
    assert {piece.prompt for piece in draw(Text(files=files, words=4), 9)} == {"one and", "two and"}


def test_text_without_files_is_prose_of_the_python_reference() -> None:
    pieces = draw(Text(), 400)
    assert len(pieces) == 400
    assert len({piece.content for piece in pieces}) == 400
    assert all(piece.name.startswith("python-reference:") for piece in pieces)
    assert all(len((piece.prompt + piece.choices[0]).split()) == 64 for piece in pieces)


def test_a_text_file_that_is_too_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("four words are few")
    with pytest.raises(PdtrimError) as caught:
        draw(Text(files=(path,), words=5), 1)
    assert str(caught.value) == f"calibration.words: there are no 5 words in {path}: ask for shorter pieces"


def test_pieces_longer_than_the_python_reference_are_refused_by_name() -> None:
    with pytest.raises(PdtrimError, match="reference"):
        draw(Text(words=10_000_000), 1)


def test_a_text_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.txt"
    with pytest.raises(PdtrimError) as caught:
        draw(Text(files=(path,)), 1)
    assert str(caught.value) == f"calibration file {path} cannot be read as text: [Errno 2] No such file or directory: '{path}'"
