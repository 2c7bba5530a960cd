"""All figures of a variant on a tiny model, against the two phases, token by token."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pdtrim_core.api import Drop, Item, KvOnly, Plan, Removal
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import ComparedToken, StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity import dense_answers as kept
from pdtrim_core.fidelity import free
from pdtrim_core.fidelity.forced import along_text
from pdtrim_core.fidelity.measure import Subject, measure, measure_all
from pdtrim_core.results.task_results import TaskResult, read_result, write_result
from pdtrim_core.testing import tiny_llama
from tests.unit.execution.test_staged_model import some_items

PLAN = Plan(Removal([KvOnly(4), Drop(2)]), Removal([Drop(2), Drop(3)]))
CODE = {"torch": "1"}
LENGTH = 12
ITEMS = some_items()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prompt_of(item: Item) -> tuple[int, ...]:
    return item.prompt_of(item.answer)


@pytest.mark.numeric
def test_the_dense_plan_is_the_dense_model_in_every_figure() -> None:
    found = measure(Subject(tiny_llama(), Plan()), ITEMS, length=LENGTH, code=CODE).metrics
    assert "until_difference" not in found  # there is none: it is infinite
    exact = {"kl": 0.0, "top1": 1.0, "text_kl": 0.0, "identical": 1.0, "length": 1.0}
    assert {name: found[name].value for name in exact} == exact
    assert (found["right_to_wrong"].value, found["wrong_to_right"].value, found["flips_p"].value) == (0.0, 0.0, 1.0)
    assert found["acceptance"].value == pytest.approx(1.0, abs=1e-5)
    assert found["tau"].value == pytest.approx(4.0, abs=1e-4)


@pytest.mark.numeric
def test_figures_along_answers_are_those_of_the_two_phases() -> None:
    model = tiny_llama()
    found = measure(Subject(model, PLAN), ITEMS, length=LENGTH, code=CODE).metrics
    dense, pair = TwoPhaseModel(model, Plan()), TwoPhaseModel(model, PLAN)
    kl = same = overlap = tokens = drafts = taken = 0.0
    for item in ITEMS:
        answer = dense.generate(prompt_of(item), LENGTH)
        theirs, ours = (one.continuation_logits(prompt_of(item), answer).double().log_softmax(-1) for one in (dense, pair))
        of_tokens = torch.minimum(theirs.exp(), ours.exp()).sum(-1).tolist()
        kl += float((theirs.exp() * (theirs - ours)).sum())
        same += float((theirs.argmax(-1) == ours.argmax(-1)).sum())
        overlap += math.fsum(of_tokens)
        tokens += len(answer)
        for start in range(len(answer) - 3):
            drafts += 1
            taken += sum(math.prod(of_tokens[start : start + count]) for count in range(1, 5))
    assert found["kl"].value == pytest.approx(kl / tokens, abs=1e-4)
    assert found["top1"].value == pytest.approx(same / tokens)
    assert found["acceptance"].value == pytest.approx(overlap / tokens, abs=1e-4)
    assert found["tau"].value == pytest.approx(taken / drafts, abs=1e-3)


@pytest.mark.numeric
def test_figures_along_text_are_those_of_the_two_phases() -> None:
    model = tiny_llama()
    found = measure(Subject(model, PLAN), ITEMS, length=LENGTH, code=CODE).metrics
    pair, loss, tokens = TwoPhaseModel(model, PLAN), 0.0, 0
    for item in ITEMS:
        right = item.choices[item.answer]
        logprobs = pair.continuation_logits(prompt_of(item), right).double().log_softmax(-1)
        loss -= float(logprobs[range(len(right)), list(right)].sum())
        tokens += len(right)
    assert found["perplexity"].value == pytest.approx(math.exp(loss / tokens), rel=1e-4)


@pytest.mark.numeric
@pytest.mark.parametrize("plan", [Plan(), PLAN], ids=["dense", "pair"])
def test_answers_in_batches_are_those_of_one_prompt_at_a_time(plan: Plan) -> None:
    model = tiny_llama()
    pair = TwoPhaseModel(model, plan)
    prompts = [prompt_of(item) for item in ITEMS]
    assert kept.answers(pair, prompts, LENGTH) == [pair.generate(prompt, LENGTH) for prompt in prompts]


def test_dense_answers_are_kept_for_the_same_weights_prompts_length_and_code(tmp_path: Path) -> None:
    model, prompts = tiny_llama(), [prompt_of(item) for item in ITEMS]
    folder = tmp_path / "cache" / "pdtrim-core" / "answers"
    first = kept.dense_answers(model, prompts, LENGTH, code=CODE)
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    assert kept.dense_answers(model, prompts, LENGTH, code=CODE) == first
    assert file.stat().st_mtime_ns == written
    others = [
        (tiny_llama(seed=1), prompts, LENGTH, CODE),
        (model, prompts[1:], LENGTH, CODE),
        (model, prompts, LENGTH + 1, CODE),
        (model, prompts, LENGTH, {"torch": "2"}),
    ]
    for number, (other, of_prompts, length, code) in enumerate(others, start=2):
        kept.dense_answers(other, of_prompts, length, code=code)
        assert len(list(folder.iterdir())) == number


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"answers": [[1]], "sha256": "x"}', None])
def test_damaged_answers_are_made_again(damage: bytes | None, tmp_path: Path) -> None:
    model, prompts = tiny_llama(), [prompt_of(item) for item in ITEMS]
    first = kept.dense_answers(model, prompts, LENGTH, code=CODE)
    (file,) = (tmp_path / "cache" / "pdtrim-core" / "answers").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"[[", b"[[1", 1) if damage is None else damage)
    assert kept.dense_answers(model, prompts, LENGTH, code=CODE) == first
    assert file.read_bytes() == whole


@pytest.mark.numeric
def test_every_prompt_has_its_own_figures_and_answer() -> None:
    model = tiny_llama()
    found = measure(Subject(model, PLAN), ITEMS, length=LENGTH, code=CODE)
    assert [answer.item for answer in found.answers] == [item.name for item in ITEMS]
    weights = [len(TwoPhaseModel(model, Plan()).generate(prompt_of(item), LENGTH)) for item in ITEMS]
    mean = sum(weight * answer.values["kl"] for weight, answer in zip(weights, found.answers, strict=True)) / sum(weights)
    assert mean == pytest.approx(found.metrics["kl"].value)
    assert [answer.values["tokens"] for answer in found.answers] == weights


@pytest.mark.numeric
def test_several_variants_at_once_have_the_figures_of_each_alone() -> None:
    model, other = tiny_llama(), tiny_llama(seed=1)
    subjects = [
        Subject(model, Plan()),
        Subject(model, PLAN),
        Subject(model, PLAN, first_token="prefill"),
        Subject(model, Plan.unified(PLAN.decode)),
        Subject(other, Plan(), dense=model),
    ]
    together = measure_all(subjects, ITEMS, length=LENGTH, code=CODE)
    for subject, found in zip(subjects, together, strict=True):
        alone = measure(subject, ITEMS, length=LENGTH, code=CODE)
        assert found.metrics.keys() == alone.metrics.keys()
        for name, metric in found.metrics.items():
            assert metric.value == pytest.approx(alone.metrics[name].value, abs=1e-4), name
        assert [one.answer for one in found.answers] == [one.answer for one in alone.answers]
    assert together[1].metrics["kl"] != together[2].metrics["kl"]


def test_the_share_of_the_work_that_is_done_is_told_on_the_way() -> None:
    model = tiny_llama(seed=5)
    told: list[float] = []
    measure_all([Subject(model, Plan()), Subject(model, PLAN)], ITEMS, length=LENGTH, code=CODE, told=told.append)
    assert told == sorted(told)
    assert len(set(told)) > 5, "one a part"
    assert told[-1] == 1.0


def test_variants_answer_as_many_prompts_on_their_own_as_are_asked_for_and_are_compared_on_all() -> None:
    model = tiny_llama()
    subjects = [Subject(model, Plan()), Subject(model, PLAN)]
    some = measure_all(subjects, ITEMS, length=LENGTH, code=CODE, own_answers=2)
    for whole, found in zip(measure_all(subjects, ITEMS, length=LENGTH, code=CODE), some, strict=True):
        chosen = [0, len(ITEMS) // 2]
        answers = [one.answer for one in found.answers]
        assert [number for number, answer in enumerate(answers) if answer is not None] == chosen
        assert all(answers[number] == whole.answers[number].answer for number in chosen)
        own = {"identical", "length", "loops", "until_difference"}
        assert {name: found.metrics[name] for name in found.metrics.keys() - own} == {
            name: whole.metrics[name] for name in whole.metrics.keys() - own
        }
    pair = TwoPhaseModel(model, PLAN)
    prompts = [prompt_of(ITEMS[number]) for number in chosen]
    theirs, ours = ([one.generate(prompt, LENGTH) for prompt in prompts] for one in (TwoPhaseModel(model, Plan()), pair))
    assert {name: some[1].metrics[name] for name in own & some[1].metrics.keys()} == free.beside(theirs, ours)


@pytest.mark.numeric
@pytest.mark.parametrize("subject", [0, 1])
def test_flips_are_those_of_the_choices_that_each_model_scores_highest(subject: int) -> None:
    model = tiny_llama()
    plan = (PLAN, Plan.unified(PLAN.decode))[subject]
    found = measure(Subject(model, plan), ITEMS, length=LENGTH, code=CODE).metrics
    sums = [StagedModel(PrefixCache(model), own).loglikelihoods(ITEMS) for own in (Plan(), plan)]
    several = [number for number, item in enumerate(ITEMS) if len(item.choices) > 1]
    right = [[of[n].index(max(of[n])) == ITEMS[n].answer for n in several] for of in sums]
    changed = list(zip(*right, strict=True))
    assert found["right_to_wrong"].value == pytest.approx(changed.count((True, False)) / len(several))
    assert found["wrong_to_right"].value == pytest.approx(changed.count((False, True)) / len(several))


def test_prompts_and_answers_beyond_what_generates_together_make_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, prompts = TwoPhaseModel(tiny_llama(), PLAN), [prompt_of(item) for item in ITEMS]
    whole = kept.answers(pair, prompts, LENGTH)
    for name, value in (("BATCH_PROMPTS", 2), ("BATCH_TOKENS", 40), ("BATCH_TOKENS", 1)):
        monkeypatch.setattr(kept, name, value)
        assert kept.answers(pair, prompts, LENGTH) == whole
    shortest = prompts[:2]
    monkeypatch.setattr(kept, "BATCH_TOKENS", 2 * (max(map(len, shortest)) + LENGTH))
    assert [len(kept._groups(shortest, LENGTH, pairs)) for pairs in (1, 2)] == [1, 2]
    monkeypatch.setattr(kept, "BATCH_TOKENS", 1)
    assert kept._groups(prompts, LENGTH, 1) == [[number] for number in sorted(range(len(prompts)), key=lambda n: len(prompts[n]))]


def test_an_answer_can_be_kept_in_a_file_whatever_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(type(model.tokenizer), "decode", lambda _self, _tokens: "a\0b\tc\n\x1b[2J")
    found = measure(Subject(model, PLAN), ITEMS, length=LENGTH, code=CODE)
    assert {answer.answer for answer in found.answers} == {"a\ufffdb\tc\n\x1b[2J"}
    result = TaskResult("fidelity", "staged", found.metrics, "kl", found.answers, {}, {}, 1.0)
    assert read_result(write_result(tmp_path, result)).answers == found.answers


@pytest.mark.numeric
@pytest.mark.parametrize("loss", [69.0, 800.0])
def test_a_plan_that_is_broken_has_no_perplexity(loss: float) -> None:
    token = ComparedToken(0.5, same=False, overlap=0.1, logprob=-loss, dense_logprob=-1.0)
    assert set(along_text([[token], [token]])) == {"text_kl"}
