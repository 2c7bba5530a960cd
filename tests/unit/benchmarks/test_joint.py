"""The benchmark of one search against two steps: what is compared with what, and the error of a difference."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Plan
from pdtrim_core.data.readings import Reading

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def joint() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("joint_benchmark", FOLDER / "joint.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["joint_benchmark"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def found(joint: Any, *values: float) -> Any:
    return joint.Found(Plan(), Reading(0.0, 0.0, values), 1.0, 1)


def test_every_ceiling_has_what_two_steps_can_reach_there(joint: Any) -> None:
    ways = list(joint.ways(2, variants=False))
    assert len(ways) == 2 * 2 * (2 + 3 + 2)
    assert {(way.ceiling, way.name) for way in ways if way.name != "joint"} == {
        (1.0, "gain"),
        (0.85, "budget"),
        (0.85, "pop"),
        (0.65, "pop"),
    }
    assert len({way.folder for way in joint.ways(2, variants=True)}) == len(list(joint.ways(2, variants=True)))


def test_a_difference_is_paired_over_items_and_averaged_over_seeds(joint: Any) -> None:
    results = {
        joint.Way(0, "margin", 1.0, "joint"): found(joint, 1.0, 3.0),
        joint.Way(0, "margin", 1.0, "gain"): found(joint, 0.0, 0.0),
        joint.Way(1, "margin", 1.0, "joint"): found(joint, 5.0, 7.0),
        joint.Way(1, "margin", 1.0, "gain"): found(joint, 1.0, 1.0),
    }
    (one,) = joint.differences(results)
    assert (one.against, one.ceiling, one.objective) == ("gain", 1.0, "margin")
    assert one.seeds == (2.0, 5.0)
    assert one.mean == 3.5
    # One over items for each seed, 1.5 over seeds.
    assert one.error == pytest.approx(math.hypot(1.0, 1.5))


@pytest.mark.parametrize("dev", [True, False])
def test_items_that_compare_are_the_same_each_time_and_none_is_searched_on(joint: Any, tmp_path: Path, dev: bool) -> None:
    (tmp_path / "piqa").mkdir()
    for name in ("calib", "test"):
        lines = [json.dumps({"query": f"{name} {n}", "choices": ["a", "b"], "gold": 0}) for n in range(600)]
        (tmp_path / "piqa" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    texts = []
    for _ in range(2):
        searched, compared = joint.split_items(tmp_path, tmp_path / "out", dev=dev)
        texts.append((searched.read_text().splitlines(), compared.read_text().splitlines()))
    assert texts[0] == texts[1]
    searched_on, compared_on = texts[0]
    assert len(compared_on) == 512
    assert not set(searched_on) & set(compared_on)
    assert len(searched_on) == (88 if dev else 600)
    assert all(("calib" in line) == dev for line in compared_on)
