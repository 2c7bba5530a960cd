"""The words of a placement, what they come to on this machine, and recipes that still say `device`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pdtrim_core import load_plugins
from pdtrim_core.errors import PdtrimError, RecipeError
from pdtrim_core.model import placement as placements
from pdtrim_core.model.placement import (
    bytes_of,
    check_devices,
    checked_placement,
    first_device,
    is_streaming,
    loading_options,
    place,
)
from pdtrim_core.recipe.missing import check_there
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.old_formats import recipe_of_1
from pdtrim_core.testing import tiny_transformers
from pdtrim_core.testing.models import save_tiny_model

GIB = 2**30
Lend = Callable[..., None]


@pytest.fixture
def lend(monkeypatch: pytest.MonkeyPatch) -> Lend:
    """Give the machine accelerators of a kind that this torch can name; their tensors are held by the processor."""
    zeros: Callable[..., torch.Tensor] = torch.zeros

    def there(count: int, *, free: int = GIB, lacks: str = "") -> None:
        def made(*size: Any, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
            number = torch.device(device).index or 0
            if number >= count or str(dtype) == f"torch.{lacks}":
                raise RuntimeError("invalid device ordinal")
            return zeros(*size, dtype=dtype)

        memory = SimpleNamespace(mem_get_info=lambda _: (free, free))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("maia"))
        monkeypatch.setattr(torch, "get_device_module", lambda _: memory)
        monkeypatch.setattr(torch, "zeros", made)

    return there


@pytest.mark.parametrize("wrong", [{}, {"0": 20}, {"0": "much"}, 3, "", True, ["cpu"]])
def test_what_is_no_placement_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"placement gives each device a size|must be auto, balanced, stream \(or"):
        checked_placement(wrong)


def test_a_recipe_says_in_one_line_what_is_no_placement(tmp_path: Path) -> None:
    data = {"model": {"path": "package:none", "placement": {"0": 20}}, "prune": {"blocks": 1}}
    with pytest.raises(RecipeError) as caught:
        Recipe.from_data(data, out=tmp_path)
    (problem,) = caught.value.problems
    assert problem.startswith("model.placement: a table of placement gives each device a size such as 20GiB, and 0 has 20 (got ")


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        ("cuda", "placement = 'cuda': the device cuda is not here (Torch not compiled with CUDA enabled)"),
        ("gpu", "placement = 'gpu': there is no device gpu: say auto, balanced, stream (or such as"),
        ("stream:gpu", "placement = 'stream:gpu': there is no device gpu: say auto, balanced, stream (or such as"),
        ("stream:", "placement = 'stream:': there is no device : say auto, balanced, stream (or such as"),
        ("stream:cuda:1", "placement = 'stream:cuda:1': the device cuda:1 is not here (Torch not compiled with CUDA enabled)"),
        ("meta", "placement = 'meta': the device meta holds no numbers"),
        ("balanced", "placement = balanced spreads a model over accelerators, and there is none here: say auto"),
        ({"0": "20GiB"}, "0 is the number of an accelerator, and there is none here"),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_devices_that_are_not_here_are_refused_before_a_model_is_opened(placement: Any, problem: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    data = {"model": {"path": str(folder), "placement": placement}, "prune": {"blocks": 1}, "recovery": "none"}
    recipe = Recipe.from_data({**data, "objective": "margin"}, out=tmp_path)
    with pytest.raises(RecipeError) as caught:
        check_there(recipe)
    (told,) = caught.value.problems
    assert told.startswith("model.placement = ")
    assert problem in told
    assert "\n" not in told


def test_without_an_accelerator_everything_is_on_the_processor() -> None:
    for placement in ("auto", "cpu", "stream", "stream:cpu"):
        check_devices(placement)
        if not torch.accelerator.is_available():
            assert (first_device(placement), loading_options(placement, 1)) == ("cpu", {})


def test_a_model_that_one_device_holds_goes_on_one_device(lend: Lend) -> None:
    lend(2)
    assert first_device("auto") == "maia"
    assert loading_options("auto", GIB // 2) == {"device_map": "maia"}
    assert loading_options("auto", 2 * GIB) == {"device_map": "auto"}
    assert loading_options("balanced", 1) == {"device_map": "balanced"}
    assert loading_options("maia:1", 2 * GIB) == {"device_map": "maia:1"}
    table = {"0": "1GiB", "1": "20 GB", "cpu": "9GiB"}
    assert loading_options(table, 1) == {"device_map": "auto", "max_memory": {0: GIB, 1: 20 * 10**9, "cpu": 9 * GIB}}
    assert loading_options("cpu", 1) == {}


def test_what_streams_runs_on_an_accelerator_unless_another_device_is_named(lend: Lend) -> None:
    lend(2)
    for placement, device in (("stream", "maia"), ("stream:cpu", "cpu"), ("stream:maia:1", "maia:1")):
        check_devices(placement)
        assert is_streaming(placement)
        assert first_device(placement) == device
    assert not is_streaming("streams")
    assert not is_streaming({"stream": "1GiB"})
    with pytest.raises(PdtrimError, match=r"the device maia:2 is not here"):
        check_devices("stream:maia:2")


def test_what_streams_runs_on_the_processor_where_the_accelerator_cannot_do_the_sums(lend: Lend) -> None:
    lend(1, lacks="float64")
    assert first_device("stream") == "cpu"


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("7B", 7),
        ("1KB", 1000),
        ("1 kib", 1024),
        ("60gb", 60 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        ("2TB", 2 * 10**12),
        ("1tib", 2**40),
    ],
)
def test_sizes_are_bytes_in_whatever_case_and_however_large(size: str, count: int) -> None:
    assert bytes_of(size) == count
    assert checked_placement({"cpu": size}) == {"cpu": size}
    assert loading_options({"cpu": size}, 1) == {"device_map": "auto", "max_memory": {"cpu": count}}


@pytest.mark.parametrize("size", ["99999999999999999999TB", "GB", "-1GB", "1e3GB", "1.GB", "1PB", "20", "20GiB\n"])
def test_what_is_no_size_is_refused_with_the_recipe(size: str) -> None:
    with pytest.raises(ValueError, match="a table of placement gives each device a size such as 20GiB, and cpu has"):
        checked_placement({"cpu": size})
    with pytest.raises(ValueError, match="is no size such as 20GiB"):
        bytes_of(size)


def test_a_number_beyond_the_last_device_is_refused(lend: Lend) -> None:
    lend(1)
    for placement in ("maia:1", {"1": "1GiB"}):
        with pytest.raises(PdtrimError, match=r"the device maia:1 is not here \(invalid device ordinal\)"):
            check_devices(placement)


def test_a_device_without_float64_is_refused_by_name_and_never_taken_by_itself(lend: Lend) -> None:
    lend(1, lacks="float64")
    with pytest.raises(PdtrimError, match=r"^placement = .maia.: the device maia has no float64, in which sums are made"):
        check_devices("maia")
    assert first_device("auto") == "cpu"
    assert loading_options("auto", 1) == {}


def test_a_model_in_memory_is_placed() -> None:
    model = tiny_transformers("llama")
    assert place(model, "cpu") is model


def test_device_of_older_recipes_is_placement() -> None:
    changed, notes = recipe_of_1({"model": {"path": "x", "device": "cuda:0"}})
    assert changed == {"model": {"path": "x", "placement": "cuda:0"}}
    assert notes == ['model.device = "cuda:0" is model.placement = "cuda:0" since 0.2']
    both = {"model": {"path": "x", "device": "cpu", "placement": "auto"}}
    assert recipe_of_1(both) == (both, [])


def test_device_given_beside_placement_is_one_too_many(tmp_path: Path) -> None:
    data = {"model": {"path": "package:none", "device": "cpu", "placement": "auto"}, "prune": {"blocks": 1}}
    with pytest.raises(RecipeError, match=r"this is model\.placement since 0\.2, which is given as well"):
        Recipe.from_data(data, out=tmp_path, host=load_plugins())


@pytest.mark.parametrize(
    ("name", "expected"), [("0", 0), ("cpu", "cpu"), ("cpu:0", "cpu"), ("disk", "disk"), ("lazy:1", 1), ("lazy", 0)]
)
def test_devices_of_a_table_are_named_as_accelerate_names_them(
    name: str, expected: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placements, "_accelerator_kind", lambda: "lazy")
    monkeypatch.setattr(placements, "check_devices", lambda _: None)
    options = placements.loading_options({name: "1GB"}, 0)
    assert options["max_memory"] == {expected: 10**9}
