"""The harness' model class: its numbers are the reference's, request by request, on every side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pdtrim_core import LoadedRun, PdtrimError, Plan
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.results.task_results import Variant
from pdtrim_core.testing import ByteTokenizer

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from pdtrim_core.harness.model import ModelOptions, PdtrimLM

TEXTS = [
    ("Question: which is heavier?\nAnswer:", " a stone"),
    ("Question: which is heavier?\nAnswer:", " a feather"),
    ("Question: which is heavier?\nAnswer:", " a"),
    ("Another context ", "and what follows"),
    ("", "no context at all"),
    ("x" * 600, " behind more than the model sees"),
]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def harness(run: LoadedRun) -> HFLM:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=run.dense.model, tokenizer=run.dense.tokenizer, batch_size=4)


def close(ours: Sequence[tuple[float, bool]], theirs: Sequence[tuple[float, bool]], tokens: Sequence[int]) -> bool:
    """Whether sums agree to 1e-4 a token: float32 sums of many tokens differ by more in both."""
    return all(abs(a - b) <= 1e-4 * count for (a, _), (b, _), count in zip(ours, theirs, tokens, strict=True))


@pytest.mark.numeric
def test_the_dense_side_is_the_harness_own_model(staged_run: LoadedRun) -> None:
    asked = requests("loglikelihood", *TEXTS)
    model = PdtrimLM(staged_run, ModelOptions(stage="dense"))
    ours, theirs = model.loglikelihood(asked), harness(staged_run).loglikelihood(asked, disable_tqdm=True)
    assert close(ours, theirs, [len(text) for _, text in TEXTS])
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert model.notes == ["prompts longer than the model's 512 tokens were cut from the left: 1"]


@pytest.mark.numeric
@pytest.mark.parametrize("stage", ["staged", "dense"])
def test_prompts_to_generate_behind_that_were_cut_are_told(stage: Variant, staged_run: LoadedRun) -> None:
    model = PdtrimLM(staged_run, ModelOptions(stage=stage))
    options = {"until": ["\n\n"], "max_gen_toks": 12}
    asked = [("x" * 600, options), ("y" * 501, options), ("y" * 500, options), ("short", options)]
    model.generate_until(requests("generate_until", *asked))
    assert model.notes == [
        "prompts that left no room in the model's 512 tokens for what is generated behind them were cut from the left: 2"
    ]
    model.start_notes()
    model.generate_until(requests("generate_until", asked[-1]))
    assert model.notes == []


@pytest.mark.numeric
def test_what_greedy_decoding_makes_is_told(staged_run: LoadedRun) -> None:
    for variant in ("staged", "dense"):
        model = PdtrimLM(staged_run, ModelOptions(stage=variant))
        context = "Question: which is heavier?\nAnswer:"
        made = TwoPhaseModel(staged_run.dense, model.plan).generate(model.tok_encode(context), 3)
        other = [*made[:2], (made[2] + 1) % 256]
        found = model._loglikelihood_tokens([(("", ""), model.tok_encode(context), tokens) for tokens in (made, other)])
        assert [greedy for _, greedy in found] == [True, False], variant


@pytest.mark.numeric
def test_running_text_is_scored_as_the_harness_scores_it(staged_run: LoadedRun) -> None:
    asked = requests("loglikelihood_rolling", ("some words " * 100,), ("few words",), ("other words " * 3,))
    ours = PdtrimLM(staged_run, ModelOptions(stage="dense")).loglikelihood_rolling(asked)
    theirs = harness(staged_run).loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours == pytest.approx(theirs, abs=1e-4 * 1100)
    assert ours[1] == pytest.approx(theirs[1], abs=1e-3)


@pytest.mark.numeric
def test_the_staged_side_is_the_two_phase_run(staged_run: LoadedRun) -> None:
    model = PdtrimLM(staged_run)
    assert model.plan.prefill != model.plan.decode
    asked = TEXTS[:4]
    found = model.loglikelihood(requests("loglikelihood", *asked))
    reference_model = TwoPhaseModel(staged_run.dense, model.plan)
    for (context, continuation), (logprob, _) in zip(asked, found, strict=True):
        prompt, tokens = model._encode_pair(context, continuation)
        logits_TV = reference_model.continuation_logits(prompt, tokens).double().log_softmax(-1)
        reference = logits_TV[range(len(tokens)), tokens].sum().item()
        assert logprob == pytest.approx(reference, abs=1e-4 * len(tokens))
    dense = PdtrimLM(staged_run, ModelOptions(stage="dense")).loglikelihood(requests("loglikelihood", *asked))
    assert not close(found, dense, [1000] * 4)


@pytest.mark.numeric
def test_running_text_is_decode_alone_unless_a_share_is_prompt(staged_run: LoadedRun) -> None:
    asked = requests("loglikelihood_rolling", ("some words of text " * 10,))
    values: dict[tuple[Variant, float], float] = {}
    for variant in ("staged", "decode", "dense"):
        for share in (0.0, 0.5):
            model = PdtrimLM(staged_run, ModelOptions(stage=variant, prompt_share=share))
            (values[variant, share],) = model.loglikelihood_rolling(asked)
            (note,) = model.notes
            assert ("prefill has no part" if share == 0 else "the first 50% of each window of text is prompt") in note
    assert values["staged", 0.0] == pytest.approx(values["decode", 0.0], rel=1e-5)
    assert values["staged", 0.5] != pytest.approx(values["decode", 0.5], rel=1e-3)
    assert values["dense", 0.5] != pytest.approx(values["dense", 0.0], rel=1e-6)


@pytest.mark.numeric
def test_a_share_of_prompt_leaves_the_scale_of_a_text(staged_run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    # With every token equally likely, a text counts the same whatever share of it is scored.
    from pdtrim_core.execution.staged_model import Scored

    monkeypatch.setattr(
        StagedModel, "scores", lambda self, items: [tuple(Scored(-1.0 * len(c), False) for c in i.choices) for i in items]
    )
    asked = requests("loglikelihood_rolling", ("word " * 20,))
    found = [PdtrimLM(staged_run, ModelOptions(prompt_share=share)).loglikelihood_rolling(asked)[0] for share in (0.0, 0.3, 0.9)]
    assert found == pytest.approx([-100.0] * 3)


@pytest.mark.numeric
def test_prompts_generate_together_what_they_generate_alone(staged_run: LoadedRun) -> None:
    prompts = ["Once upon a time", "A", "Question: which is heavier?\nAnswer:"]
    limits = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    made = PdtrimLM(staged_run, ModelOptions(batch_size=3)).generate_until(
        requests("generate_until", *((p, limits) for p in prompts))
    )
    two_phase = TwoPhaseModel(staged_run.dense, staged_run.plan_of("staged"))
    tokenizer = staged_run.dense.tokenizer
    for prompt, text in zip(prompts, made, strict=True):
        alone = tokenizer.decode(two_phase.generate(tokenizer.encode(prompt), 12), skip_special_tokens=True)
        assert text == alone.split("\n\n")[0]


@pytest.mark.numeric
def test_the_dense_side_generates_what_the_harness_generates(staged_run: LoadedRun) -> None:
    letter = staged_run.dense.tokenizer.decode([101])
    asked = requests(
        "generate_until",
        *((prompt, {"until": [letter], "max_gen_toks": 10}) for prompt in ("Once upon a time", "A", "x" * 600)),
    )
    ours = PdtrimLM(staged_run, ModelOptions(stage="dense", batch_size=4)).generate_until(asked)
    assert ours == harness(staged_run).generate_until(asked, disable_tqdm=True)


@pytest.mark.numeric
def test_items_that_share_no_rows_give_the_same_numbers(staged_run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests("loglikelihood", *TEXTS)
    together = PdtrimLM(staged_run).loglikelihood(asked)
    monkeypatch.setattr("pdtrim_core.harness.model.packing_agrees", lambda *_, **__: False)
    assert close(
        together, PdtrimLM(staged_run, ModelOptions(batch_tokens=32)).loglikelihood(asked), [len(text) for _, text in TEXTS]
    )


@pytest.mark.numeric
def test_out_of_memory_halves_the_batch_and_goes_on(staged_run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests("loglikelihood", *TEXTS)
    expected = PdtrimLM(staged_run).loglikelihood(asked)
    scores = StagedModel.scores

    def full(self: StagedModel, items: Sequence[Any]) -> Any:
        if len(items) > 1:
            raise torch.OutOfMemoryError
        return scores(self, items)

    monkeypatch.setattr(StagedModel, "scores", full)
    found = PdtrimLM(staged_run).loglikelihood(asked)
    assert close(found, expected, [len(text) for _, text in TEXTS])
    monkeypatch.setattr(StagedModel, "scores", lambda self, items: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(PdtrimError, match="the device has no memory left, even for the smallest batch"):
        PdtrimLM(staged_run).loglikelihood(asked)


@pytest.mark.numeric
def test_the_model_is_left_as_it_was(staged_run: LoadedRun) -> None:
    before = staged_run.dense.model.config.to_dict(), {**vars(staged_run.dense.tokenizer)}.keys()
    limits = {"until": [], "max_gen_toks": 3}
    PdtrimLM(staged_run).generate_until(requests("generate_until", ("A", limits)))
    assert (staged_run.dense.model.config.to_dict(), {**vars(staged_run.dense.tokenizer)}.keys()) == before


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"stage": "both"}, "'both' is none of staged, unified, prefill, decode, unrecovered, unquantized, unselected, dense"),
        ({"first_token": "prefill"}, "computes nothing behind the last K/V that decode reads, so it makes no token"),
        ({"first_token": "both"}, "first_token is decode or prefill, not 'both'"),
        ({"prompt_share": 1.0}, "prompt_share is a share from 0 up to, but not, 1; it is 1.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(staged_run: LoadedRun, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(PdtrimError, match=problem):
        PdtrimLM(staged_run, ModelOptions(**options))


@pytest.mark.numeric
@pytest.mark.parametrize("variant", ["staged", "unrecovered"])
@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_who_makes_the_first_token_matters_to_tasks_of_one_token(
    staged_run: LoadedRun, first_token: FirstToken, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Plan(staged_run.outcome.plan.plan.prefill.__class__(), staged_run.outcome.plan.plan.decode)
    monkeypatch.setattr(LoadedRun, "plan_of", lambda self, of: whole if of == variant else Plan())
    monkeypatch.setattr("pdtrim_core.harness.model._freed", lambda *_: False)
    asked = requests("loglikelihood", ("Question: which?\nAnswer:", "A"))
    (staged,) = PdtrimLM(staged_run, ModelOptions(stage=variant, first_token=first_token)).loglikelihood(asked)
    (dense,) = PdtrimLM(staged_run, ModelOptions(stage="dense")).loglikelihood(asked)
    assert (abs(staged[0] - dense[0]) < 1e-4) is (first_token == "prefill")


def test_a_tokenizer_without_an_end_is_refused(staged_run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_run.dense, "tokenizer", ByteTokenizer())
    with pytest.raises(PdtrimError, match="needs a tokenizer of transformers with an end-of-text token"):
        PdtrimLM(staged_run)


def test_the_harness_words_name_a_run_and_options(staged_run: LoadedRun) -> None:
    more = {"batch_size": 3, "max_batch_size": None, "device": "cpu"}
    made = PdtrimLM.create_from_arg_string(f"run={staged_run.path},stage=unified,prompt_share=0.5", more)
    assert (made.variant, made.prompt_share, made.batch_size) == ("unified", 0.5, 3)
    made = PdtrimLM.create_from_arg_obj({"run": staged_run, "stage": "dense", "max_length": 16})
    assert (made.variant, made.max_length) == ("dense", 16)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("stage=dense", "model_args: name the folder of a finished run, as run=FOLDER"),
        ("run=r,stge=dense", r"model_args: there is no 'stge'; did you mean 'stage'\?"),
    ],
)
def test_words_that_the_model_does_not_know_are_refused(words: str, problem: str) -> None:
    with pytest.raises(PdtrimError, match=problem):
        PdtrimLM.create_from_arg_string(words)


@pytest.mark.numeric
def test_requests_that_the_model_cannot_read_are_named(staged_run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PdtrimLM(staged_run, ModelOptions(stage="dense"))
    asked = requests("loglikelihood", ("A context", " and more"))
    monkeypatch.setitem(vars(model.blocks), "vocabulary", 80)
    with pytest.raises(PdtrimError, match=r"the request 'A context' has the token \d+, and the vocabulary of .* ends at 79"):
        model.loglikelihood(asked)
    monkeypatch.setitem(vars(model.blocks), "vocabulary", 260)
    monkeypatch.setitem(vars(model.blocks), "positions", 16)
    with pytest.raises(PdtrimError, match=r"the request 'A context' needs 17 positions, and .* has learned 16"):
        model.loglikelihood(asked)
