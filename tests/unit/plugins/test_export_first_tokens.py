"""Prefill's checkpoint with a table of first tokens: what it hands over is what our own two phases do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import BlockModel, Drop, KvOnly, Merge, PdtrimError, Plan, Removal, Shrink, load_modules
from pdtrim_core.execution.first_tokens import depths_of, first_tokens_of
from pdtrim_core.execution.recovered_weights import RECOVERED, save_recovered
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstTokensOf
from pdtrim_core.testing import tiny_model
from pdtrim_core.testing.contracts.small_run import run_with_plan
from pdtrim_core.testing.rounding import ROUNDING, units_apart
from pdtrim_plugins.exporters.vllm import Vllm
from tests.unit.plugins.exported import TOKENS, export, read_back
from tests.unit.plugins.test_export_recovered import made

pytestmark = pytest.mark.numeric

PROMPT = TOKENS[0].tolist()
PLANS = {
    "K/V-only tail": Plan(Removal([KvOnly(3), KvOnly(4), KvOnly(5)]), Removal([Drop(1)])),
    "early drop": Plan(Removal([Drop(1)]), Removal([Drop(1), Drop(3)])),
    "shadow of a merge": Plan(Removal([Drop(0)]), Removal([Drop(0), Merge(3, 2)])),
    "K/V of a merge alone": Plan(Removal([Drop(1), KvOnly(2)]), Removal([Drop(1), Merge(3, 2)])),
    "fewer heads": Plan(*(Removal([Drop(1), *(Shrink(b, "attention", (1,)) for b in (0, 2, 3, 4, 5))]) for _ in range(2))),
}


def exported(model: BlockModel, plan: Plan, out: Path, tokens: list[int], *, others: bool = False) -> dict[Any, Any]:
    """Write a pair whose prefill knows these first tokens; return the modules of the plan."""
    outcome = run_with_plan(model, plan, out)
    modules = load_modules(plan, model, out / "merges")
    table = first_tokens_of(model, tokens, depths_of(plan, model.block_count), others=others)
    found: dict[Any, Any] = {**modules, FirstTokensOf(plan): table}
    save_recovered(plan, model, found, out / RECOVERED)
    list(Vllm().export(outcome, model, out))
    return found


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("name", "family"),
    # vLLM's qwen2 has no fewer heads.
    [(name, family) for name in PLANS for family in ("llama", "qwen2", "qwen3") if (name, family) != ("fewer heads", "qwen2")],
)
def test_prefill_s_checkpoint_hands_over_what_two_phases_do(name: str, family: str, known: bool, tmp_path: Path) -> None:
    model, plan = tiny_model(family), PLANS[name]
    modules = exported(model, plan, tmp_path, [7, PROMPT[0] if known else PROMPT[0] + 1, 9])
    prefill, decode = read_back(tmp_path / "prefill"), read_back(tmp_path / "decode")
    with torch.inference_mode():
        cache = prefill(input_ids=torch.tensor([PROMPT[:-1]])).past_key_values
        row = decode(input_ids=torch.tensor([PROMPT[-1:]]), past_key_values=cache, use_cache=True).logits[0, -1]
    wanted = TwoPhaseModel(model, plan, modules).continuation_logits(PROMPT, [0])[0]
    assert units_apart(row, wanted) <= ROUNDING
    plain = TwoPhaseModel(model, plan, {key: module for key, module in modules.items() if key != FirstTokensOf(plan)})
    assert torch.allclose(row, plain.continuation_logits(PROMPT, [0])[0], atol=1e-4) != known


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", PLANS)
def test_tables_of_k_and_v_are_of_the_weights_that_two_phases_use(name: str, known: bool, tmp_path: Path) -> None:
    # All layers of both stages have K/V weights of their own; that of prefill's last one is only there for its K/V.
    model, plan = tiny_model("qwen3"), PLANS[name]
    depths = depths_of(plan, model.block_count)
    table = first_tokens_of(model, [PROMPT[0] if known else PROMPT[0] + 1, 9], depths)
    modules = {**made(model, plan), FirstTokensOf(plan): table}
    export(Vllm(), model, plan, tmp_path, modules=modules)
    prefill, decode = read_back(tmp_path / "prefill"), read_back(tmp_path / "decode")
    with torch.inference_mode():
        cache = prefill(input_ids=torch.tensor([PROMPT[:-1]])).past_key_values
        row = decode(input_ids=torch.tensor([PROMPT[-1:]]), past_key_values=cache, use_cache=True).logits[0, -1]
    assert units_apart(row, TwoPhaseModel(model, plan, modules).continuation_logits(PROMPT, [0])[0]) <= ROUNDING


def test_prefill_s_checkpoint_has_what_stands_for_all_other_first_tokens(tmp_path: Path) -> None:
    model, plan = tiny_model("llama"), PLANS["shadow of a merge"]
    modules = exported(model, plan, tmp_path, [PROMPT[0] + 1, 9], others=True)
    prefill, decode = read_back(tmp_path / "prefill"), read_back(tmp_path / "decode")
    with torch.inference_mode():
        cache = prefill(input_ids=torch.tensor([PROMPT[:-1]])).past_key_values
        row = decode(input_ids=torch.tensor([PROMPT[-1:]]), past_key_values=cache, use_cache=True).logits[0, -1]
    assert units_apart(row, TwoPhaseModel(model, plan, modules).continuation_logits(PROMPT, [0])[0]) <= ROUNDING


def test_texts_with_padding_and_texts_that_go_on_know_their_own_first_token(tmp_path: Path) -> None:
    model, plan = tiny_model("llama"), PLANS["K/V-only tail"]
    exported(model, plan, tmp_path, PROMPT[:1])
    prefill = read_back(tmp_path / "prefill")

    def keys_of(ids: list[list[int]], mask: list[list[int]] | None = None, cache: Any = None) -> Any:
        given = {} if mask is None else {"attention_mask": torch.tensor(mask)}
        if mask is not None:
            given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            return prefill(input_ids=torch.tensor(ids), past_key_values=cache, **given).past_key_values

    whole = keys_of([PROMPT[:8]]).layers[-1].keys
    padded = keys_of([[0] * 3 + PROMPT[:8]], [[0] * 3 + [1] * 8]).layers[-1].keys[:, :, 3:]
    assert torch.allclose(whole, padded, atol=1e-5)
    # The first token of the second part is in the table, too, but it begins no text.
    twice = PROMPT[:4] + PROMPT[:4]
    parts = keys_of([twice[4:]], cache=keys_of([twice[:4]]))
    assert torch.allclose(parts.layers[-1].keys, keys_of([twice]).layers[-1].keys, atol=1e-5)


def test_the_config_tells_the_tokens_and_where_tables_are(tmp_path: Path) -> None:
    exported(tiny_model("llama"), PLANS["shadow of a merge"], tmp_path, [9, 4])
    told = json.loads((tmp_path / "prefill" / "config.json").read_text())["pdtrim"]
    # Prefill is truncated: of its last block it has only the K/V.
    assert told["first_tokens"] == {"tokens": [4, 9], "states": [1, 2, 3, 4], "kv": [2, 5]}
    assert "first_tokens" not in json.loads((tmp_path / "decode" / "config.json").read_text())["pdtrim"]


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    model, plan = tiny_model("llama"), PLANS["early drop"]
    outcome = run_with_plan(model, plan, tmp_path)
    (tmp_path / RECOVERED).mkdir()
    (tmp_path / RECOVERED / "prefill.safetensors").write_bytes(b"nothing")
    with pytest.raises(PdtrimError, match="are damaged or of another plan"):
        list(Vllm().export(outcome, model, tmp_path))
