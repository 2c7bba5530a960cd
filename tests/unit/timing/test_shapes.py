"""Published shapes: their sizes are those of the published checkpoints, and models of them can be made; bad ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core import Drop, KvOnly, Merge, PdtrimError, Plan, Removal
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.testing import tiny_config
from pdtrim_core.testing.contracts.small_run import small_run
from pdtrim_core.timing.shapes import SHAPES, ModelShape, random_model, read_shape
from pdtrim_core.timing.subjects import BlocksToRemove, plan_for, subjects_of_shape

if TYPE_CHECKING:
    from pdtrim_core import PluginHost

PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
}
"""The parameters of the published checkpoints."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config("llama").to_dict()))
    return folder


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_parameters_of_the_published_checkpoint(name: str, host: PluginHost) -> None:
    shape = read_shape(name, host, torch.bfloat16)
    assert shape.sizes.parameters == PARAMETERS[name]
    assert shape.weight_bytes == 2 * PARAMETERS[name]


def test_the_default_is_the_ratio_of_the_papers_first_row(host: PluginHost) -> None:
    shape = read_shape("llama-3.1-8b", host, torch.float32)
    plan, first_token = plan_for(shape, BlocksToRemove())
    assert [element.blocks[0] for element in plan.decode] == [13, 14, 15, 16, 17]
    assert plan.prefill == Removal([Drop(13), Drop(14), KvOnly(31)])
    assert first_token == "decode"
    assert shape.sizes.share_of_parameters(5) == pytest.approx(0.1358, abs=1e-4)


def test_counts_may_be_said(tiny: Path, host: PluginHost) -> None:
    shape = read_shape(str(tiny), host, torch.float32)
    plan, _ = plan_for(shape, BlocksToRemove(decode=3, prefill=0))
    assert (len(plan.decode), plan.prefill) == (3, Removal([KvOnly(5)]))


def test_a_run_lends_its_counts(tiny: Path, host: PluginHost) -> None:
    outcome = small_run()[0]
    shape = read_shape(str(tiny), host, torch.float32)
    plan, _ = plan_for(shape, BlocksToRemove(like=outcome))
    assert len(plan.decode) == len(outcome.plan.plan.decode) == 2
    shared = [element for element in outcome.plan.plan.prefill if element in outcome.plan.plan.decode]
    assert len([element for element in plan.prefill if isinstance(element, Drop)]) == len(shared)


def test_a_plan_file_is_taken_as_it_is(tiny: Path, host: PluginHost, tmp_path: Path) -> None:
    shape = read_shape(str(tiny), host, torch.float32)
    plan = Plan.unified(Removal([Drop(4)]))
    file = tmp_path / "plan.json"
    file.write_text(SavedPlan(plan, "m", "f", 6, "prefill").to_json())
    assert plan_for(shape, BlocksToRemove(plan=file)) == (plan, "prefill")


@pytest.mark.parametrize("counts", [(0, None), (6, None), (2, 3), (-1, None)])
def test_counts_that_do_not_fit_are_refused(counts: Any, tiny: Path, host: PluginHost) -> None:
    shape = read_shape(str(tiny), host, torch.float32)
    with pytest.raises(PdtrimError, match="has 6 blocks: decode can lose 1 to 5 of them and prefill at most as many, not"):
        plan_for(shape, BlocksToRemove(*counts))


def test_a_plan_for_another_number_of_blocks_is_refused(tiny: Path, host: PluginHost, tmp_path: Path) -> None:
    shape = read_shape(str(tiny), host, torch.float32)
    file = tmp_path / "plan.json"
    file.write_text(SavedPlan(Plan(), "big", "f", 32).to_json())
    with pytest.raises(PdtrimError, match=r"is a plan for 32 blocks \(big\), but tiny has 6: give --blocks N instead"):
        plan_for(shape, BlocksToRemove(plan=file))
    file.write_text(SavedPlan(Plan(decode=Removal([Merge(1, 2)])), "m", "f", 6).to_json())
    with pytest.raises(PdtrimError, match=r"has 1\+2, whose module a random model does not have: give --blocks N instead"):
        plan_for(shape, BlocksToRemove(plan=file))


def test_a_model_of_a_shape_is_made_where_and_as_it_runs(tiny: Path, host: PluginHost) -> None:
    model = random_model(read_shape(str(tiny), host, torch.bfloat16), host, torch.device("cpu"))
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    assert model.name == "tiny (random weights)"
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.model.parameters())
    found = subjects_of_shape(str(tiny), BlocksToRemove(decode=2), host, "bfloat16")
    assert [subject.name for subject in found.all] == ["dense", "unified", "prefill", "decode"]
    assert found.random_weights


def test_random_weights_do_not_touch_the_random_numbers_of_others(tiny: Path, host: PluginHost) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    random_model(read_shape(str(tiny), host, torch.float32), host, torch.device("cpu"))
    assert torch.equal(torch.rand(1), wanted)


def test_weights_that_do_not_fit_are_refused_before_they_are_made(host: PluginHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_core.model.placement.free_memory", lambda device: 8e9)
    shape: ModelShape = read_shape("llama-3.1-8b", host, torch.float32)
    words = (
        "the weights of llama-3.1-8b take 32.1 GB in float32, 8.0 GB are free on cpu: choose a smaller shape or --dtype bfloat16"
    )
    with pytest.raises(PdtrimError, match=words):
        random_model(shape, host, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lama-3.1-8b", r"there is no shape 'lama-3.1-8b', and no such folder or config.json; did you mean 'llama-3.1-8b'\?"),
        ("Llama-3.1-8B", r"did you mean 'llama-3.1-8b'\?"),
        ("nothing/like/it", r"known shapes: llama-2-7b, llama-2-13b"),
    ],
)
def test_unknown_shapes_are_refused(name: str, words: str, host: PluginHost) -> None:
    with pytest.raises(PdtrimError, match=words):
        read_shape(name, host, torch.float32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not the config.json of a transformers model"),
        ("[]", "is not the config.json of a transformers model"),
        ('{"hidden_size": 8}', "it must be JSON with a model_type"),
        ('{"model_type": "nonesuch"}', "transformers cannot read this config"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "is the config of a quantised model"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "this config"),
        ('{"model_type": "bert"}', "is no decoder"),
    ],
)
def test_configs_that_no_model_can_be_made_of_are_refused(text: str, words: str, tmp_path: Path, host: PluginHost) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PdtrimError, match=words):
        read_shape(str(tmp_path / "config.json"), host, torch.float32)
