"""Latency: each model runs what it has, the same settings stand beside each other, and what does not fit is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import BlockModel, Drop, KvOnly, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.plan.plan_file import plan_to_json
from pdtrim_core.testing import FAMILIES, tiny_model
from pdtrim_core.timing import latency as latencies_module
from pdtrim_core.timing.bench import measure
from pdtrim_core.timing.latency import DECODED, Grid, LatencyBench, Subject
from pdtrim_core.timing.results import read_latencies
from pdtrim_core.timing.stopwatch import in_turn, quartiles
from pdtrim_core.timing.subjects import Subjects

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAN = Plan(prefill=Removal([Drop(1), KvOnly(5)]), decode=Removal([Drop(1), Drop(3)]))
SMALL = Grid(forward=16, prompt_lengths=(8,), batches=(1, 2), contexts=(8,), repeats=2)


def subjects(model: BlockModel, plan: Plan = PLAN, first_token: Any = "decode") -> tuple[Subject, ...]:
    return (
        Subject("dense", model, Plan(), {}, first_token),
        Subject("unified", model, Plan.unified(plan.decode), {}, first_token),
        Subject("prefill", model, plan, {}, first_token),
        Subject("decode", model, plan, {}, first_token),
    )


def all_of(model: BlockModel) -> Subjects:
    return Subjects(subjects(model), plan_to_json(PLAN), "decode", random_weights=False)


def blocks_run(model: BlockModel, run: Any) -> list[int]:
    """Return the blocks whose MLP a call runs."""
    seen: list[int] = []
    hooks = [
        block.get_submodule("mlp").register_forward_hook(lambda *_, number=number: seen.append(number))
        for number, block in enumerate(model.blocks)
    ]
    with torch.inference_mode(), run as inside:
        inside()
    for hook in hooks:
        hook.remove()
    return seen


def test_each_model_runs_the_blocks_that_it_has() -> None:
    model = tiny_model()
    ids = torch.ones((1, 8), dtype=torch.long)
    by_name = {subject.name: subject for subject in subjects(model)}
    read = {name: blocks_run(model, subject.reading(ids, "all")) for name, subject in by_name.items() if name != "decode"}
    assert read == {"dense": [0, 1, 2, 3, 4, 5], "unified": [0, 2, 4, 5], "prefill": [0, 2, 3, 4]}
    decoded = blocks_run(model, by_name["decode"].decoding(by_name["decode"].cache(2, 8), 8))
    assert decoded == [0, 2, 4, 5] * DECODED


@pytest.mark.numeric
@pytest.mark.parametrize(("first_token", "of_prefill"), [("decode", "none"), ("prefill", "last")])
def test_logits_are_made_where_a_stage_makes_a_token(first_token: Any, of_prefill: str) -> None:
    dense, _, prefill, _ = subjects(tiny_model(), first_token=first_token)
    assert (dense.logits("prefill"), prefill.logits("prefill"), prefill.logits("forward")) == ("last", of_prefill, "all")
    ids = torch.ones((1, 8), dtype=torch.long)
    with torch.inference_mode(), dense.reading(ids, "last") as last, dense.reading(ids, "all") as everywhere:
        short, whole = last(), everywhere()
    assert isinstance(short, torch.Tensor)
    assert isinstance(whole, torch.Tensor)
    assert torch.allclose(short[:, -1], whole[:, -1], atol=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_cache_with_room_gives_the_logits_of_a_growing_one(family: str) -> None:
    from transformers import DynamicCache

    from pdtrim_core.timing.roomy_cache import set_length

    model = tiny_model(family)
    decode = subjects(model)[3]
    grown, ids, more = DynamicCache(), torch.arange(10)[None], torch.tensor([[7]])
    cache = decode.cache(1, 10)
    with torch.inference_mode(), decode._alone("decode"):
        model.model(input_ids=ids, past_key_values=grown, use_cache=True)
        for layer, there in zip(cache.layers, grown.layers, strict=True):
            layer.keys[:, :, :10], layer.values[:, :, :10] = there.keys, there.values
        set_length(cache, 10)
        own = [model.model(input_ids=more, past_key_values=cache, use_cache=True).logits for _ in range(2)]
        others = [model.model(input_ids=more, past_key_values=grown, use_cache=True).logits for _ in range(2)]
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(own, others, strict=True))


def test_all_settings_are_measured_beside_the_dense_model() -> None:
    bench = LatencyBench(subjects(tiny_model()), SMALL)
    timings = [timing for setting in bench.settings for timing in bench.measure(setting)]
    assert [(t.measure, t.model, t.batch, t.tokens) for t in timings] == [
        ("forward", "unified", 1, 16),
        ("forward", "prefill", 1, 16),
        ("prefill", "unified", 1, 8),
        ("prefill", "prefill", 1, 8),
        ("decode", "decode", 1, 8),
        ("decode", "decode", 2, 8),
    ]
    assert all(
        t.seconds > 0 and t.dense > 0 and t.low <= t.ratio <= t.high and 0 < t.ideal < 1 and t.repeats == 2 for t in timings
    )


def test_the_ideal_ratio_is_that_of_flops_for_prompts_and_of_bytes_for_decode() -> None:
    model = tiny_model()
    dense, unified, prefill, decode = subjects(model)
    sizes = model.sizes
    block = sizes.blocks[0]
    assert dense.work(("decode", 3, 50)) == 4 * (6 * block.parameters + sizes.head + 3 * 50 * 6 * block.kv_width)
    assert decode.work(("decode", 3, 50)) == 4 * (4 * block.parameters + sizes.head + 3 * 50 * 4 * block.kv_width)
    assert unified.work(("forward", 1, 9)) - unified.work(("prefill", 1, 9)) == 2 * 8 * sizes.head
    # Four whole blocks and the K/V of a fifth.
    assert prefill.work(("prefill", 1, 9)) == sizes.prefill_flops(PLAN, 9)
    assert prefill.work(("prefill", 1, 9)) > unified.work(("prefill", 1, 9))


def test_a_shrunk_block_has_a_cache_of_its_own_width() -> None:
    plan = Plan.unified(Removal([Shrink(2, "attention", (0,)), Shrink(2, "mlp", (1, 5))]))
    bench = LatencyBench(subjects(tiny_model(), plan), replace(SMALL, forward=0, batches=(2,)))
    cache = bench._subjects["decode"].cache(2, 8)
    assert [layer.keys.shape[1] for layer in cache.layers] == [2, 2, 1, 2, 2, 2]
    assert len([timing for setting in bench.settings for timing in bench.measure(setting)]) == 3


def test_footprints_are_those_of_sizes_with_the_memory_beside_them() -> None:
    model = tiny_model()
    found = {footprint.model: footprint for footprint in LatencyBench(subjects(model), SMALL).footprints()}
    assert list(found) == ["dense", "unified", "prefill", "decode"]
    assert found["dense"].weights == 4 * model.sizes.parameters
    assert found["prefill"].weights == 4 * model.sizes.kept_parameters(PLAN, "prefill")
    assert found["decode"].read_a_token == model.sizes.decode_bytes(PLAN)
    assert found["decode"].kv_a_token == model.sizes.kv_bytes(PLAN)
    assert {name: set(footprint.beside) for name, footprint in found.items()} == {
        "dense": {"prefill", "decode"},
        "unified": {"prefill"},
        "prefill": {"prefill"},
        "decode": {"decode"},
    }


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_memory_beside_the_weights_is_seen_again_and_again() -> None:
    from pdtrim_core.timing.stopwatch import peak_beside

    def many() -> None:
        # Small parts, which a process keeps when they are freed.
        assert [torch.ones(2**14) for _ in range(1024)]

    for _ in range(2):
        assert 60e6 < (peak_beside(many, torch.device("cpu")) or 0) < 100e6


def test_batches_are_halved_until_they_fit_and_both_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    each = (model.sizes.kv_bytes(Plan()) + model.sizes.kv_bytes(PLAN)) * (100 + DECODED)
    monkeypatch.setattr(latencies_module, "free_memory", lambda device: 3 * each / latencies_module.SHARE_OF_FREE_MEMORY)
    bench = LatencyBench(subjects(model), Grid(0, (), (2, 8), (100, 400), 1))
    assert bench.settings == [("decode", 2, 100)]
    assert bench.notes == [
        "decode with a context of 400: left out, the K/V of one sequence do not fit in memory",
        "decode with a context of 100: batch 8 does not fit in memory, 2 was measured",
        "decode with a context of 400: left out, the K/V of one sequence do not fit in memory",
    ]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("can't allocate memory: you tried")])
def test_where_memory_runs_out_a_setting_is_left_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LatencyBench(subjects(tiny_model()), SMALL)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(latencies_module, "in_turn", fail)
    monkeypatch.setattr(torch, "get_device_module", lambda device: type("M", (), {"empty_cache": staticmethod(lambda: None)}))
    assert bench.measure(("decode", 2, 8)) == []
    assert bench.notes == ["decode, batch 2, 8 tokens: left out, memory ran out"]


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LatencyBench(subjects(tiny_model()), SMALL)

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(latencies_module, "in_turn", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        bench.measure(("decode", 2, 8))


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid(prompt_lengths=(16, 999)), "--prompt-lengths: 999 tokens do not fit in the window of tiny llama, which has 512"),
        (Grid(forward=600, contexts=()), "--forward: 600 tokens"),
        (Grid(forward=0, prompt_lengths=(), contexts=(510,)), "--contexts: 514 tokens"),
    ],
)
def test_what_is_longer_than_the_window_is_refused(grid: Grid, words: str) -> None:
    with pytest.raises(PdtrimError, match=words):
        LatencyBench(subjects(tiny_model()), grid)


def test_runs_take_turns_and_who_begins_rotates() -> None:
    from contextlib import contextmanager

    order: list[str] = []

    def run(name: str) -> Any:
        @contextmanager
        def prepared() -> Any:
            yield lambda: order.append(name)

        return prepared

    seconds = in_turn({name: run(name) for name in "abc"}, torch.device("cpu"), 3)
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize(
    ("values", "wanted"), [([3.0], (3, 3, 3)), ([1.0, 2.0, 3.0, 4.0, 100.0], (2, 3, 4)), ([1.0, 2.0], (1.25, 1.5, 1.75))]
)
def test_quartiles(values: list[float], wanted: Sequence[float]) -> None:
    assert quartiles(values) == pytest.approx(wanted)


def test_the_file_has_all_and_an_interrupted_benchmark_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny_model(), tmp_path / "bench.json"
    original, asked = LatencyBench.measure, []

    def stop(self: LatencyBench, setting: Any) -> Any:
        asked.append(setting)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(self, setting)

    monkeypatch.setattr(LatencyBench, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(all_of(model), SMALL, path)
    assert not path.exists()
    before = read_latencies(tmp_path / "bench.json.part").timings
    assert {timing.measure for timing in before} == {"forward", "prefill"}
    found = measure(all_of(model), SMALL, path)
    assert asked[2:] == [("decode", 1, 8), ("decode", 1, 8), ("decode", 2, 8)]
    assert found.timings[: len(before)] == before
    assert read_latencies(path) == found
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench.json"]
    assert (found.dtype, found.device, found.threads, found.random_weights) == ("float32", "cpu", torch.get_num_threads(), False)
    measure(all_of(model), SMALL, path)
    assert len(asked) == 5 + 4


def test_what_was_measured_of_other_settings_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny_model(), tmp_path / "bench.json"
    found = measure(all_of(model), SMALL, path)
    path.rename(tmp_path / "bench.json.part")
    more = measure(all_of(model), replace(SMALL, repeats=3), path)
    assert all(timing.repeats == 3 for timing in more.timings)
    assert found.subject != more.subject


def test_a_place_that_cannot_be_written_to_says_so_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatencyBench, "measure", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(PdtrimError, match=r"cannot write .*bench.json.part: No such file or directory"):
        measure(all_of(tiny_model()), SMALL, tmp_path / "nowhere" / "bench.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(PdtrimError, match="is no result of a latency benchmark: measure again"):
        read_latencies(path)
    path.write_text(json.dumps({"format": 9}))
    with pytest.raises(PdtrimError, match="has latency format 9, this version reads 1"):
        read_latencies(path)
    with pytest.raises(PdtrimError, match="does not exist"):
        read_latencies(tmp_path / "nothing")
