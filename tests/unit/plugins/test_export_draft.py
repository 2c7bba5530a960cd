"""The exporter of drafts: an ordinary checkpoint of decode, the engine's flags, and an honest table of what to expect."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import Drop, ExportFacts, Fidelity, KvOnly, Metric, PdtrimError, Plan, Removal
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.contracts.small_run import run_with_plan
from pdtrim_plugins.exporters.draft import Draft, best, speed_up, usage
from tests.unit.plugins.exported import decode_logits, export, logits_of, read_back, thin

PAIR = Plan(Removal([KvOnly(4), KvOnly(5)]), Removal([Drop(2)]))


def facts(folder: Path, **more: Any) -> ExportFacts:
    return ExportFacts("tiny", folder, lambda: tiny_llama().model.config, **more)


def test_the_draft_is_decode_in_both_stages_as_an_ordinary_checkpoint(tmp_path: Path) -> None:
    model = tiny_llama()
    (folder,) = export(Draft(), model, PAIR, tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    torch.testing.assert_close(logits_of(read_back(folder)), decode_logits(model, PAIR, tmp_path))


def test_its_card_has_the_flag_of_the_engine(tmp_path: Path) -> None:
    (folder,) = export(Draft(), tiny_llama(), PAIR, tmp_path)
    (config,) = re.findall(r"--speculative-config '(.*)'", (folder / "README.md").read_text())
    assert json.loads(config) == {"method": "draft_model", "model": str(folder), "num_speculative_tokens": 1}


def outcome_of(folder: Path, top1: float, acceptance: float) -> Any:
    """Return the outcome of a run whose decode reads half of the bytes."""
    outcome = run_with_plan(tiny_llama(), PAIR, folder)
    variants = {"unified": {"top1": Metric(top1), "acceptance": Metric(acceptance)}, "staged": {"top1": Metric(1.0)}}
    costs = tuple(replace(cost, dense=2.0, plan=1.0) for cost in outcome.costs if cost.name == "decode weight traffic")
    return replace(outcome, fidelity=Fidelity(4, 8, variants), costs=costs)


def test_what_to_expect_is_told_of_the_unified_model_with_the_best_number_of_tokens(tmp_path: Path) -> None:
    text = usage(outcome_of(tmp_path, 0.8, 0.9), tmp_path / "draft")
    assert "costs 0.50 of one of the dense model" in text
    assert "takes 80% of the draft's tokens where output is greedy (top-1 agreement) and 90% where it is sampled" in text
    assert "| 2 | **1.22** | 1.35 |" in text  # (1 - 0.8 ** 3) / (0.2 * 2), (1 - 0.9 ** 3) / (0.1 * 2)
    assert '"num_speculative_tokens": 2' in text
    assert "pays" not in text


def test_a_draft_that_does_not_pay_is_called_so(tmp_path: Path) -> None:
    assert "No number of tokens pays" in usage(outcome_of(tmp_path, 0.3, 0.4), tmp_path / "draft")


def test_without_fidelity_nothing_is_promised(tmp_path: Path) -> None:
    outcome = replace(run_with_plan(tiny_llama(), PAIR, tmp_path), fidelity=None)
    assert "What to expect of it is not known" in usage(outcome, tmp_path / "draft")


@pytest.mark.parametrize(("taken", "cost"), [(0.6, 0.2), (0.9, 0.1), (0.8, 0.85)])
@pytest.mark.parametrize("ahead", [1, 4])
def test_the_speed_is_that_of_tokens_drafted_and_taken_one_by_one(taken: float, cost: float, ahead: int) -> None:
    """A round writes the taken tokens up to the first that is not, and one of the dense model's own."""
    chances = [taken**n * (1 - taken) for n in range(ahead)] + [taken**ahead]
    written = sum((n + 1) * chance for n, chance in enumerate(chances))
    assert speed_up(taken, cost, ahead) == pytest.approx(written / (ahead * cost + 1))
    assert speed_up(1.0, cost, ahead) == pytest.approx((ahead + 1) / (ahead * cost + 1))
    assert speed_up(taken, cost, best(taken, cost)) >= speed_up(taken, cost, ahead)


def test_what_an_engine_would_not_take_is_known_before_a_run(tmp_path: Path) -> None:
    assert Draft().problems(facts(tmp_path)) == []
    (path,) = Draft().problems(facts(tmp_path / "my-EAGLE3-runs"))
    assert "vLLM takes a draft with 'eagle3' in its path for one of another method" in path
    (widths,) = Draft().problems(facts(tmp_path, uniform=False))
    assert widths.startswith("the blocks of decode differ in width")
    sliding = tiny_llama().model.config
    sliding.layer_types = ["full_attention", "sliding_attention"]
    (kinds,) = Draft().problems(ExportFacts("tiny", tmp_path, lambda: sliding))
    assert kinds == "tiny has full_attention and sliding_attention: vLLM wants all K/V of a draft in one cache group"


@pytest.mark.parametrize("part", ["Eagle-Eye", "eagle3", "DFlash2", "dspark"])
def test_a_path_that_vllm_takes_for_another_method_is_refused_behind_a_link_too(tmp_path: Path, part: str) -> None:
    (tmp_path / part).mkdir()
    (tmp_path / "plain").mkdir()
    (tmp_path / "to-it").symlink_to(tmp_path / part)
    (tmp_path / part / "to-plain").symlink_to(tmp_path / "plain")
    for folder in (tmp_path / part, tmp_path / "to-it", tmp_path / part / "to-plain"):
        (problem,) = Draft().problems(facts(folder))
        assert f"with '{part.lower()[:6]}" in problem
    assert Draft().problems(facts(tmp_path / "plain")) == []


def test_the_command_is_one_for_a_shell_whatever_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "it's a draft"
    text = usage(outcome_of(tmp_path, 0.8, 0.9), folder)
    (command,) = re.findall(r"```sh\n(.*)\n```", text)
    assert json.loads(shlex.split(command)[-1])["model"] == str(folder)


def test_blocks_of_several_widths_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    with pytest.raises(PdtrimError, match=r"^no engine has a class for such a draft: "):
        export(Draft(), model, thin(model, 1, [0, 1, 2]), tmp_path)
