"""Which numeric tests stand for others of their function, with other kernels and threads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from types import SimpleNamespace

from tests.conftest import covering, values_of


def kept_of(*parameters: Sequence[object]) -> list[tuple[object, ...]]:
    tests = list(product(*parameters))
    kept = covering([frozenset(enumerate(test)) for test in tests])
    return [test for number, test in enumerate(tests) if number in kept]


def test_each_value_of_each_parameter_is_met_by_as_few_tests_as_have_them() -> None:
    parameters: list[list[object]] = [["a", "b", "c", "d"], [1, 2], [False, True]]
    kept = kept_of(*parameters)
    assert len(kept) == 4
    for place, values in enumerate(parameters):
        assert {test[place] for test in kept} == set(values)
    assert len({test[1:] for test in kept}) == 4


def test_of_one_parameter_each_value_is_kept() -> None:
    assert kept_of(["a", "b", "c"]) == [("a",), ("b",), ("c",)]


def test_of_families_that_compute_alike_one_is_met() -> None:
    def of(family: str) -> object:
        return values_of(SimpleNamespace(params={"family": family}, indices={"family": 0}))

    assert of("llama") == of("qwen2") != of("opt")


def test_a_value_without_a_hash_counts_by_its_place() -> None:
    assert values_of(SimpleNamespace(params={"one": [], "other": 3}, indices={"one": 4, "other": 0})) == {
        ("one", 4),
        ("other", 3),
    }
