"""Batches on their way through the blocks: one after the other, or all of them block by block."""

from __future__ import annotations

from pdtrim_core.model.passes import Pass, result_of, results_of


def passing(name: str, blocks: list[int], seen: list[str]) -> Pass[str]:
    for block in blocks:
        yield block
        seen.append(f"{name}{block}")
    return name.upper()


def passes(seen: list[str]) -> list[Pass[str]]:
    return [passing("a", [0, 1, 3], seen), passing("b", [1, 2], seen), passing("c", [], seen), passing("d", [0, 1], seen)]


def test_one_after_the_other_each_is_run_to_its_end_before_the_next_begins() -> None:
    seen: list[str] = []
    found = results_of(passes(seen), together=False)
    assert next(found) == "A"
    assert seen == ["a0", "a1", "a3"]
    assert [*found] == ["B", "C", "D"]
    assert seen == ["a0", "a1", "a3", "b1", "b2", "d0", "d1"]


def test_together_each_block_is_run_for_all_before_the_next_one_is() -> None:
    seen: list[str] = []
    assert [*results_of(passes(seen), together=True)] == ["A", "B", "C", "D"]
    assert seen == ["a0", "d0", "a1", "b1", "d1", "b2", "a3"]


def test_a_pass_alone_gives_its_result() -> None:
    assert result_of(passing("a", [2, 5], [])) == "A"


def test_no_passes_give_nothing() -> None:
    assert [*results_of([], together=True)] == [*results_of([], together=False)] == []


def test_a_pass_that_goes_back_waits_for_those_that_do_not() -> None:
    seen: list[str] = []
    back = [passing("a", [1, 0, 2], seen), passing("b", [1, 2], seen), passing("c", [1, 1, 0], seen)]
    assert [*results_of(back, together=True)] == ["A", "B", "C"]
    assert seen == ["a1", "b1", "c1", "c1", "b2", "a0", "c0", "a2"]
