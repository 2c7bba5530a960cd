"""A recovered run on tasks: each variant answers with its own weights, and what recovery did not touch answers as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdtrim_core import LoadedRun, PdtrimError
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.results.task_results import Variant
from tests.unit.recovered_runs import recovered_run

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
from pdtrim_core.harness.evaluate import Evaluation, Options
from pdtrim_core.harness.model import ModelOptions, PdtrimLM
from tests.unit.harness.test_model import TEXTS, requests

pytestmark = pytest.mark.numeric

VARIANTS: tuple[Variant, ...] = ("staged", "unified", "prefill", "unrecovered", "dense")


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A run whose K/V-only blocks were fitted, and whose decode was folded."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        found = recovered_run(tmp_path_factory.mktemp("runs") / "recovered", str(checkpoint))
    assert found.outcome.plan.recovered
    return found


def sums_of(run: LoadedRun, variant: Variant) -> list[float]:
    model = PdtrimLM(run, ModelOptions(stage=variant))
    return [logprob for logprob, _ in model.loglikelihood(requests("loglikelihood", *TEXTS[:4]))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_the_two_phase_run_of_its_own_weights(variant: Variant, run: LoadedRun) -> None:
    model = PdtrimLM(run, ModelOptions(stage=variant))
    reference = TwoPhaseModel(run.dense, run.plan_of(variant), run.modules_of(variant), first_token=model.first_token)
    for (context, continuation), found in zip(TEXTS[:4], sums_of(run, variant), strict=True):
        prompt, tokens = model._encode_pair(context, continuation)
        logits_TV = reference.continuation_logits(prompt, tokens).double().log_softmax(-1)
        assert found == pytest.approx(logits_TV[range(len(tokens)), tokens].sum().item(), abs=1e-4 * len(tokens))
    limits = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    (made,) = model.generate_until(requests("generate_until", ("Once upon a time", limits)))
    tokenizer = run.dense.tokenizer
    wanted = tokenizer.decode(reference.generate(model.tok_encode("Once upon a time"), 6), skip_special_tokens=True)
    assert made == wanted.split("\n\n")[0]


def test_no_two_variants_answer_alike(run: LoadedRun) -> None:
    found = {variant: tuple(round(value, 3) for value in sums_of(run, variant)) for variant in VARIANTS}
    assert len(set(found.values())) == len(VARIANTS)


def test_who_makes_the_first_token_is_said_and_checked_without_recovery_too(run: LoadedRun) -> None:
    evaluation = Evaluation(run, Options())
    settings = {variant: evaluation._model(variant).first_token for variant in VARIANTS}
    assert settings == dict.fromkeys(VARIANTS, "decode")
    for variant in ("staged", "unrecovered"):
        with pytest.raises(PdtrimError, match="computes nothing behind the last K/V that decode reads, so it makes no token"):
            PdtrimLM(run, ModelOptions(stage=variant, first_token="prefill"))


def test_a_run_without_recovery_has_no_such_variant(staged_run: LoadedRun) -> None:
    with pytest.raises(PdtrimError, match="has no variant 'unrecovered': its recipe names no recovery"):
        PdtrimLM(staged_run, ModelOptions(stage="unrecovered"))
