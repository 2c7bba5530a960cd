"""The texts of recoveries: from all sources in equal parts, the same whenever asked, and none of them measures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PdtrimError
from pdtrim_core.data.items import Calibration
from pdtrim_core.pipeline.recovery_texts import RecoveryTexts
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_plugins.calibrations import Mini
from tests.unit.pipeline.runs import Begin, inputs_of

SHORT = {"prompt_tokens": 8, "answer_tokens": 6}


def texts_of(begin: Begin, *, calibration: Calibration | None = None, model: Any = None, **data: Any) -> RecoveryTexts:
    context = begin(recovery_data={**SHORT, **data})
    return RecoveryTexts(context, inputs_of(model or tiny_llama(), calibration=calibration))


def whole(texts: Iterable[Any]) -> list[tuple[int, ...]]:
    return [item.prompts[0] + item.choices[0] for item in texts]


def decoded(texts: Iterable[Any]) -> str:
    return "".join(bytes(token for token in text if token < 256).decode(errors="replace") for text in whole(texts))


def test_each_text_has_a_prompt_of_another_length_and_what_follows(begin: Begin) -> None:
    texts = texts_of(begin, sources=["calibration"]).items(40)
    assert {len(item.prompts[0]) + len(item.choices[0]) for item in texts} == {14}
    assert {len(item.prompts[0]) for item in texts} == set(range(2, 9))
    assert len({item.name for item in texts}) == len(texts)


@pytest.mark.parametrize("source", ["calibration", "generated"])
def test_the_same_texts_come_whenever_they_are_asked_for_and_fewer_are_the_first_ones(begin: Begin, source: str) -> None:
    texts = texts_of(begin, sources=[source])
    assert texts.items(70) == texts.items(70)
    assert texts.items(9) == texts.items(70)[:9]


def test_what_the_dense_model_wrote_is_kept_and_damaged_texts_are_written_again(begin: Begin, tmp_path: Path) -> None:
    texts = texts_of(begin, sources=["generated"])
    first = texts.items(5)
    (kept,) = (tmp_path / "cache").rglob("texts/*.json")
    data = json.loads(kept.read_text())
    data[0] = [1] * 14
    kept.write_text(json.dumps(data))
    assert whole(texts.items(5))[0] == (1,) * 14
    kept.write_text("{")
    assert texts.items(5) == first


def test_other_weights_write_other_texts(begin: Begin) -> None:
    context = begin(recovery_data=SHORT)
    of_models = [RecoveryTexts(context, inputs_of(tiny_llama(seed=seed))).items(5) for seed in (0, 1)]
    assert of_models[0] != of_models[1]


def test_sources_give_equal_parts(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 200)
    (tmp_path / "b.jsonl").write_text('{"text": "' + "b" * 200 + '"}\n{"prompt": "bb", "answer": "bb"}\n')
    texts = texts_of(begin, sources=[str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]).items(10)
    assert [set(text) for text in whole(texts)] == [{97}, {98}] * 5


def test_texts_that_measure_are_left_out(begin: Begin, tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(20))
    (tmp_path / "a.txt").write_text(f"{words}\n\nsomething else that is long enough to be read here")
    calibration = replace(Calibration((), (), ""), texts=(f"What is it? {words}",))
    context = begin(recovery_data={**SHORT, "sources": [str(tmp_path / "a.txt")]})
    with_it, without = (RecoveryTexts(context, inputs_of(tiny_llama(), calibration=used)) for used in (None, calibration))
    assert "word3" in decoded(with_it.items(4))
    assert "word" not in decoded(without.items(3))


def test_too_little_text_is_named_with_how_much_there_is(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 30)
    with pytest.raises(PdtrimError, match=r"a\.txt gives 2 texts of 14 tokens, and 3 are needed: give it more text"):
        texts_of(begin, sources=[str(tmp_path / "a.txt")]).items(3)


class Added:
    """A tokenizer that has learned a token which the model has no row for: in front of texts, or in those with a letter."""

    bos_token_id = eos_token_id = None

    def __init__(self, model: Any, *, front: bool) -> None:
        self._inner = model.tokenizer
        self._front = front

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any:
        ids = list(self._inner(text, add_special_tokens=False)["input_ids"])
        if self._front:
            return {"input_ids": [700, *ids] if add_special_tokens else ids}
        return {"input_ids": [700 if token == ord("e") else token for token in ids]}


@pytest.mark.parametrize("source", ["generated", "calibration", "file"])
@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_tokens_that_the_model_does_not_have_are_told_with_where_they_are(
    begin: Begin, tmp_path: Path, source: str, front: bool, early: bool
) -> None:
    (tmp_path / "a.txt").write_text("no more than a text. " * 40)
    source = str(tmp_path / "a.txt") if source == "file" else source
    model = tiny_llama()
    model.tokenizer = Added(model, front=front)
    texts = texts_of(begin, model=model, sources=[source])
    what = "what its tokenizer puts in front of a text" if front else rf"the text \d+ of recovery_data.sources '{source}'"
    with pytest.raises(PdtrimError, match=rf"^{what} has the token 700, and the vocabulary of .* ends at \d+: its tokenizer and"):
        (texts.check if early else texts.items)(3)


@pytest.mark.parametrize("damage", [[1] * 13, [10**6] * 14, ["a"] * 14, "text", [-1] * 14])
def test_texts_that_are_kept_and_are_none_are_written_again(begin: Begin, tmp_path: Path, damage: Any) -> None:
    texts = texts_of(begin, sources=["generated"])
    first = texts.items(5)
    (kept,) = (tmp_path / "cache").rglob("texts/*.json")
    data = json.loads(kept.read_text())
    kept.write_text(json.dumps([damage, *data[1:]]))
    assert texts.items(5) == first


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.txt", None, "there is no file"),
        ("a.jsonl", '{"question": "?"}', "line 1 of .* has neither 'text' nor 'prompt' and 'answer'"),
        ("b.jsonl", "[1, 2", "cannot be read"),
        ("c.jsonl", "[1]", "line 1 of"),
        ("f.jsonl", '{"text": "a"}\n{"text": [5, 6, 7]}', "'text' of line 2 of .*f.jsonl is no text: give text, not its tokens"),
        ("g.jsonl", '{"prompt": [{"role": "user"}], "answer": "a"}', "'prompt' of line 1 of .* is no text: give text"),
        ("h.jsonl", '{"prompt": "a", "answer": null}', "'answer' of line 1 of .* is no text: give text"),
        ("d.txt", b"\xff\xfe\x00\xff", "cannot be read"),
        ("e", "", "gives 0 texts"),
    ],
)
def test_a_source_that_gives_no_text_is_refused_with_its_name(
    begin: Begin, tmp_path: Path, name: str, content: str | bytes | None, problem: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    texts = texts_of(begin, sources=[str(path)])
    for asked in (texts.items, texts.check):
        with pytest.raises(PdtrimError, match=problem):
            asked(1)


def test_texts_longer_than_the_model_has_positions_are_refused(begin: Begin) -> None:
    problem = r"texts have 1000 tokens \(prompt_tokens \+ answer_tokens\), and .* has learned \d+ positions"
    with pytest.raises(PdtrimError, match=problem):
        texts_of(begin, model=tiny_model("opt"), prompt_tokens=500, answer_tokens=500).items(1)


def test_prompts_do_not_depend_on_how_many_texts_are_drawn(begin: Begin) -> None:
    texts = texts_of(begin, sources=["calibration"])
    assert [item.prompts for item in texts.items(3)] == [item.prompts for item in texts.items(30)][:3]


def prompted(monkeypatch: pytest.MonkeyPatch, *prompts: str) -> None:
    monkeypatch.setattr(Mini, "training_prompts", lambda _self, _rng: prompts)
    monkeypatch.setattr(Mini, "training_texts", lambda _self, _rng: ["texttexttexttext"])


def beginnings(texts: RecoveryTexts, count: int) -> list[str]:
    """Return the first eight characters of so many texts."""
    return ["".join(chr(token) for token in text[:8]) for text in whole(texts.items(count))]


def test_half_of_what_is_written_answers_whole_prompts(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    prompted(monkeypatch, "Why?", "What is the end of it?")
    begun = beginnings(texts_of(begin, sources=["generated"]), 6)
    # A prompt that is longer than prompts are is read from where as much of it is left; both are used again.
    assert [text[:4] for text in begun[::2]] == ["Why?", "d of", "Why?"]
    assert set(begun[1::2]) == {"texttext"}
    assert begun[0] != begun[4]


def test_no_prompt_that_measures_is_answered(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    prompted(monkeypatch, "Why?", "Who?")
    calibration = replace(Calibration((), (), ""), texts=("Why?",))
    begun = beginnings(texts_of(begin, calibration=calibration, sources=["generated"]), 4)
    assert [text[:4] for text in begun] == ["Who?", "text", "Who?", "text"]


def test_texts_that_came_to_measure_are_made_up_for(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of(begin, sources=["generated"])
    first = whole(texts.items(64))
    decode = texts._inputs.model.tokenizer.decode
    left_out = {decode(list(text)) for text in first[:3]}
    monkeypatch.setattr(Calibration, "holds", lambda _self, text: text in left_out)
    assert whole(texts.items(64))[:61] == first[3:]


def test_where_all_prompts_measure_texts_are_gone_on_from(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    prompted(monkeypatch, "Why?")
    calibration = replace(Calibration((), (), ""), texts=("Why?",))
    begun = beginnings(texts_of(begin, calibration=calibration, sources=["generated"]), 4)
    assert set(begun) == {"texttext"}


def test_nothing_to_go_on_from_is_told(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mini, "training_prompts", lambda _self, _rng: ())
    monkeypatch.setattr(Mini, "training_texts", lambda _self, _rng: ["a"])
    texts = texts_of(begin, sources=["generated"])
    for asked in (texts.check, texts.items):
        with pytest.raises(PdtrimError, match="generated goes on from prompts and texts"):
            asked(1)
