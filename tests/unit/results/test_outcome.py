"""What a run did, as data."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import pytest

from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.elements import Drop, KvOnly, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.fidelity import AnswerSample, Fidelity
from pdtrim_core.results.outcome import Cost, Environment, Gain, Outcome, Row, Sets, Value, machine, peak_memory, versions
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import Metric

SAVED = SavedPlan(Plan(Removal([KvOnly(2)]), Removal([Drop(0)])), "tiny", "abc", 3, "prefill")
VALUE = Value(mean=-0.5, score=60.653, error=1.25, items=64)
OUTCOME = Outcome(
    model="tiny",
    license="Apache-2.0",
    block_count=3,
    objective="margin",
    saved_plan=SAVED.to_data(),
    block_scores=(0.1, 0.2, 1 / 3),
    pair_scores=(0.25, 0.5),
    sets=Sets((0,), ((1, 2),), (0,), 0.95),
    rows=(Row("dense", VALUE, VALUE), Row("plan", VALUE, None)),
    gains=(Gain("0", 4.5, 0.5, kept_in_prefill=True),),
    costs=(Cost("decode weight traffic", "bytes a token", 200.0, 150.0),),
    notes=("gr\u00fc\u00df",),
    seconds={"search": 1.5},
    peak_memory=2**31,
    candidates={"measured": 3, "remembered": 1, "cut_short": 0},
    environment=Environment({"torch": "2"}, "Linux", 2, "cpu", "abc", "def", "ghi"),
    recipe={"seed": 0, "exporter": [{"use": "plan"}], "prune": {"merge_threshold": {"quantile": 0.9}}},
)


def test_an_outcome_survives_json() -> None:
    text = OUTCOME.to_json()
    again = Outcome.from_json(text)
    assert again == OUTCOME
    assert again.to_json() == text
    assert text.endswith("}\n")


def test_looking_at_the_plan_changes_nothing() -> None:
    outcome = replace(OUTCOME)
    before = outcome.to_json()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome.plan == SAVED
        assert outcome.to_json() == before


def test_a_run_without_pair_scores_survives_json() -> None:
    outcome = replace(OUTCOME, pair_scores=(), sets=Sets((0,), (), (0, 1, 2), None))
    assert json.loads(outcome.to_json())["sets"]["threshold"] is None
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_a_cost_tells_the_share_that_went_away() -> None:
    assert OUTCOME.costs[0].saved == 0.25


def changed(**keys: Any) -> str:
    return json.dumps({**json.loads(OUTCOME.to_json()), **keys})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(format=3), "o.json has outcome format 3, this version reads 2: run its recipe again"),
        (changed(format=None), "o.json has outcome format None, this version reads 2: run its recipe again"),
        (
            changed(block_count="many"),
            (
                "o.json is not the outcome of a run: block_count: "
                "Input should be a valid integer, unable to parse string as an integer"
            ),
        ),
        (
            changed(sets={"initial": [0], "pairs": [], "drops": []}),
            "o.json is not the outcome of a run: sets.threshold: Field required",
        ),
        ('{"format": 2}', "o.json is not the outcome of a run: model: Field required"),
    ],
    ids=["format", "no format", "type", "missing", "format alone"],
)
def test_what_is_no_outcome_is_refused(text: str, message: str) -> None:
    with pytest.raises(PdtrimError) as caught:
        Outcome.from_json(text, "o.json")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 1', "\ud800"])
def test_garbage_is_refused_with_its_file(text: str) -> None:
    with pytest.raises(PdtrimError) as caught:
        Outcome.from_json(text, "o.json")
    assert str(caught.value) == "o.json is not the outcome of a run"


def test_a_file_of_a_later_format_is_told_as_that_even_if_its_keys_differ() -> None:
    with pytest.raises(PdtrimError) as caught:
        Outcome.from_json('{"format": 3, "everything": "else"}', "o.json")
    assert str(caught.value) == "o.json has outcome format 3, this version reads 2: run its recipe again"


def test_versions_are_those_of_installed_packages() -> None:
    found = versions(("pytest", "no-such-package-anywhere"))
    assert found["pytest"] == pytest.__version__
    assert {"python", "torch", "pdtrim-core"} <= found.keys()
    assert "no-such-package-anywhere" not in found


def test_the_machine_is_told_in_words() -> None:
    assert machine().endswith(" cores")
    assert peak_memory() > 2**20


FIDELITY = Fidelity(
    items=4,
    answer_tokens=8,
    variants={
        "dense": {"kl": Metric(0.0, 0.0, higher_is_better=False)},
        "staged": {"kl": Metric(0.25), "tau": Metric(1 / 3, 0.1)},
    },
    nearer=Metric(0.125, 0.5),
    samples=(AnswerSample("item", "...the end", {"dense": "gr\u00fc\u00df\n", "staged": ""}),),
)


def test_how_near_the_variants_are_survives_json() -> None:
    outcome = replace(OUTCOME, fidelity=FIDELITY)
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_an_outcome_from_before_there_was_fidelity_has_none() -> None:
    data = json.loads(OUTCOME.to_json())
    del data["fidelity"]
    assert Outcome.from_json(json.dumps(data)).fidelity is None


RECOVERY = RecoveryResult(
    "fold", Metric(0.7, 0.1), Metric(0.4), 8, 512, 1.5, kept=True, changed={"prefill": 0, "decode": 64}, losses=(2.0, 1.5),
    by_position_before=(0.9, 0.5), by_position_after=(0.5, 0.3),
)  # fmt: skip


def test_how_recoveries_came_out_survives_json() -> None:
    outcome = replace(OUTCOME, recovery=(RECOVERY, replace(RECOVERY, kept=False)))
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_an_outcome_from_before_there_was_recovery_has_none() -> None:
    data = json.loads(OUTCOME.to_json())
    del data["recovery"]
    assert Outcome.from_json(json.dumps(data)).recovery == ()


def test_a_recovery_says_how_much_of_the_distance_it_took_away() -> None:
    assert RECOVERY.taken_away == pytest.approx(3 / 7)
    assert replace(RECOVERY, before=Metric(0.0)).taken_away is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"losses": [1e31]}, "a number of 1e+31"),
        ({"after": {"value": 1e300}}, "a number of 1e+300"),
        ({"losses": [1.0] * 20_001}, "recovery.0: a curve of 20001 points, more than 20000"),
        ({"by_position_after": [0.1]}, "recovery.0: other positions before it than after it"),
        ({"by_position_before": [-0.1, 0.1]}, "recovery.0: a KL divergence below zero"),
        ({"before": {"value": -0.7}, "kept": False}, "recovery.0: a KL divergence below zero"),
        ({"changed": {"encoder": 3}}, "recovery.0.changed: 'encoder' is no stage"),
        ({"tokens": -1}, "recovery.0: less than nothing was counted"),
        ({"seconds": -1.0}, "recovery.0: less than nothing was counted"),
        ({"changed": {"decode": -64}}, "recovery.0: less than nothing was counted"),
        ({"after": {"value": 0.7}}, "recovery.0: it was kept, and the pair came no nearer to the dense model"),
        ({"kept": "maybe"}, "recovery.0.kept: "),
    ],
)
def test_a_recovery_that_no_run_wrote_is_refused(change: dict[str, Any], problem: str) -> None:
    data = json.loads(replace(OUTCOME, recovery=(RECOVERY,)).to_json())
    data["recovery"][0] |= change
    with pytest.raises(PdtrimError) as caught:
        Outcome.from_json(json.dumps(data), "r/outcome.json")
    assert str(caught.value).startswith(f"r/outcome.json is not the outcome of a run: {problem}")


def test_thousands_of_recoveries_are_refused() -> None:
    with pytest.raises(PdtrimError, match="recovery: 4000 are more than 100"):
        Outcome.from_json(replace(OUTCOME, recovery=(RECOVERY,) * 4000).to_json())


def test_a_loss_that_is_no_number_is_refused() -> None:
    text = replace(OUTCOME, recovery=(RECOVERY,)).to_json().replace("1.5", "NaN", 1)
    with pytest.raises(PdtrimError, match="NaN"):
        Outcome.from_json(text)


def test_recovered_weights_need_a_recovery_that_was_kept() -> None:
    assert OUTCOME.saved_plan is not None
    saved = replace(OUTCOME.plan, recovered="f" * 64).to_data()
    outcome = replace(OUTCOME, saved_plan=saved, recovery=(RECOVERY,))
    assert Outcome.from_json(outcome.to_json()).plan.recovered == "f" * 64
    with pytest.raises(PdtrimError, match="saved_plan: it has recovered weights, and there is no recovery that was kept"):
        Outcome.from_json(replace(outcome, recovery=(replace(RECOVERY, kept=False),)).to_json())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"variants": {"dense": {"kl": {"value": "near"}}}}, "fidelity.variants.dense.kl.value: "),
        ({"variants": {"dense": {"kl": {"value": 1e31}}}}, "a number of 1e+31"),
        ({"variants": {str(number): {} for number in range(101)}}, "fidelity.variants: 101 are more than 100"),
        ({"samples": [{"item": "a", "prompt": ""}] * 2}, "fidelity.samples: one is there twice"),
    ],
)
def test_figures_of_fidelity_that_no_run_wrote_are_refused(change: dict[str, Any], problem: str) -> None:
    data = json.loads(replace(OUTCOME, fidelity=FIDELITY).to_json())
    data["fidelity"] |= change
    with pytest.raises(PdtrimError) as caught:
        Outcome.from_json(json.dumps(data), "r/outcome.json")
    assert str(caught.value).startswith(f"r/outcome.json is not the outcome of a run: {problem}")
