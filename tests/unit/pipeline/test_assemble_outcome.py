"""The outcome of a run: the costs of a plan with its modules, and what each step found."""

from __future__ import annotations

import json

import pytest
from torch import nn

from pdtrim_core import Drop, Merge, Outcome, Plan, Removal, Shrink
from pdtrim_core.execution.staged_model import Replacements
from pdtrim_core.model.weights import added_biases
from pdtrim_core.pipeline.assemble_outcome import assemble_outcome, costs_of
from pdtrim_core.pipeline.finished import Finished
from pdtrim_core.pipeline.recover import Recovered
from pdtrim_core.pipeline.run_inputs import prepare
from pdtrim_core.pipeline.search_removal import search_removal
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.testing import tiny_llama
from tests.unit.pipeline.runs import Begin

CHANNELS = Shrink(2, "mlp", (0, 5, 7))
PLANS = [
    Plan(),
    Plan.unified(Removal([Drop(1), Drop(4)])),
    Plan(Removal([Drop(4)]), Removal([Drop(1), Drop(4)])),
    Plan(decode=Removal([Merge(1, 2)])),
    Plan.unified(Removal([CHANNELS])),
]


@pytest.mark.parametrize("plan", PLANS)
def test_costs_are_those_of_the_plan_beside_the_dense_models(plan: Plan) -> None:
    model = tiny_llama()
    sizes = model.sizes
    costs = {cost.name: (cost.dense, cost.plan) for cost in costs_of(model, plan, {})}
    assert costs == {
        "parameters of prefill": (sizes.parameters, sizes.kept_parameters(plan, "prefill")),
        "parameters of decode": (sizes.parameters, sizes.kept_parameters(plan, "decode")),
        "prefill work for 1024 tokens": (sizes.prefill_flops(Plan()), sizes.prefill_flops(plan)),
        "decode weight traffic": (sizes.decode_bytes(Plan()), sizes.decode_bytes(plan)),
        "K/V shipped to decode": (sizes.kv_bytes(Plan()), sizes.kv_bytes(plan)),
    }
    if not plan.decode:
        assert all(dense == kept for dense, kept in costs.values())


def test_a_bias_that_the_dense_model_has_not_is_a_cost_of_the_stage_that_runs_it() -> None:
    model, plan = tiny_llama(), Plan(decode=Removal([CHANNELS]))
    module = nn.Linear(45, 32)
    modules: Replacements = {CHANNELS: module}
    bias = added_biases(plan.decode, model, modules)
    assert bias == 32
    plain, biased = ({cost.name: cost.plan for cost in costs_of(model, plan, given)} for given in ({}, modules))
    assert {name: biased[name] - plain[name] for name in plain if biased[name] != plain[name]} == {
        "parameters of decode": bias,
        "decode weight traffic": bias * model.sizes.bytes_per_number,
    }


def test_a_replaced_models_costs_are_its_own() -> None:
    model, other = tiny_llama(), tiny_llama(num_hidden_layers=3)
    costs = costs_of(model, Plan(), {}, other)
    assert [cost.plan for cost in costs] == [cost.dense for cost in costs_of(other, Plan(), {})]
    assert [cost.dense for cost in costs] == [cost.dense for cost in costs_of(model, Plan(), {})]


def test_an_outcome_has_what_each_step_found_and_reads_back(begin: Begin) -> None:
    context = begin(prune={"blocks": 2, "merges": False})
    inputs = prepare(context)
    found = search_removal(context, inputs)
    plan = Plan(Removal(list(found.plan.decode)[:1]), found.plan.decode)
    rows = found.bench.rows({"dense": Plan(), "staged": plan})
    outcome = assemble_outcome(context, inputs, Finished(found, plan, Recovered(), rows))
    model = inputs.model
    assert outcome.plan == SavedPlan(plan, model.name, model.fingerprint, model.block_count, "decode")
    assert (outcome.rows, outcome.sets, outcome.block_scores) == (rows, found.sets, found.scores.block)
    assert outcome.candidates == vars(found.bench.ledger.tally)
    assert outcome.costs == costs_of(model, plan, {})
    assert list(outcome.seconds) == list(context.events.seconds)
    assert outcome.recipe == context.recipe.to_data()
    assert len(outcome.search) == 3
    read = Outcome.from_json(outcome.to_json())
    assert json.loads(read.to_json()) == json.loads(outcome.to_json())
