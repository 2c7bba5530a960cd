"""What a plugin implements is read off the functions that it marks, and all that is wrong with them is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pdtrim_core
from pdtrim_core import hookimpl
from pdtrim_core.host.compatibility import hook_names
from pdtrim_core.host.discovery import Origin
from pdtrim_core.host.implementations import Implementation, Sort, implementations_of

ORIGIN = Origin("parts", "mine", "1.0")
REGISTRY, QUESTION, EVENT = "pdtrim_scorers", "pdtrim_find_blocks", "pdtrim_note_made"


def read(**members: Any) -> tuple[dict[str, Implementation], list[str]]:
    return implementations_of(SimpleNamespace(**members), ORIGIN)


def problems_of(**members: Any) -> list[str]:
    return read(**members)[1]


def only(hook: str, function: Callable[..., Any], **options: Any) -> Implementation:
    """Return what a function is read as that is marked for a hook; nothing is wrong with it."""
    found, problems = read(**{hook: hookimpl(function, **options)})
    assert problems == []
    return found[hook]


def offering() -> Callable[[], list[Any]]:
    """Return a new function, since a mark stays on one."""
    return lambda: []  # noqa: PIE807 - a mark cannot stand on `list`


def yielding() -> Callable[[], Generator[None, Any, Any]]:
    """Return a new function that can be a wrapper."""

    def yields() -> Generator[None, Any, Any]:
        yield

    return yields


# Reading


def test_a_marked_function_is_read_with_its_arguments_and_options() -> None:
    def started(out: Path, recipe: object) -> None:
        pass

    marked = hookimpl(started)
    assert read(pdtrim_run_started=marked) == (
        {
            "pdtrim_run_started": Implementation(
                "pdtrim_run_started", ORIGIN, marked, ("out", "recipe"), tryfirst=False, trylast=False, wrapper=False
            )
        },
        [],
    )


@pytest.mark.parametrize(
    "options", [{"tryfirst": True}, {"trylast": True}, {"wrapper": True}, {"wrapper": True, "trylast": True}]
)
def test_options_of_a_mark_are_kept_and_say_where_it_stands(options: dict[str, bool]) -> None:
    found = only(EVENT, yielding(), **options)
    for option in ("tryfirst", "trylast", "wrapper"):
        assert getattr(found, option) == options.get(option, False)
    assert found.rank == {"tryfirst": -1, "trylast": 1}.get(list(options)[-1], 0)


def test_a_function_of_another_name_may_be_marked_with_the_name_of_the_hook() -> None:
    found, problems = read(ears=hookimpl(lambda note: None, specname=EVENT), pdtrim_scorers=hookimpl(offering()))
    assert problems == []
    assert {name: implementation.hook for name, implementation in found.items()} == {"ears": EVENT, REGISTRY: REGISTRY}


def test_methods_are_read_without_self_and_arguments_with_a_default_are_done_without() -> None:
    class Plugin:
        @hookimpl
        def pdtrim_note_made(self, note: str, loud: bool = True) -> None:
            pass

    found, problems = implementations_of(Plugin(), ORIGIN)
    assert (found[EVENT].takes, problems) == (("note",), [])


def test_a_function_without_a_signature_takes_nothing() -> None:
    class Unreadable:
        __signature__ = "none"

        def __call__(self) -> list[int]:
            return [3]

    found, problems = read(pdtrim_scorers=hookimpl(Unreadable()))
    assert (found[REGISTRY].takes, problems) == ((), [])
    assert found[REGISTRY].answer(found[REGISTRY].call({})) == [3]


def test_helpers_and_the_package_itself_may_begin_like_hooks() -> None:
    assert read(pdtrim_core=pdtrim_core, pdtrim_helper=lambda: 1, other=math) == ({}, [])


def test_a_plugin_is_known_by_its_distribution_and_its_own_name() -> None:
    assert only(REGISTRY, offering()).plugin == "mine:parts"


def test_what_looking_at_a_plugin_raises_comes_through() -> None:
    class Hostile:
        @property
        def pdtrim_scorers(self) -> Any:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        implementations_of(Hostile(), ORIGIN)


# Calling


def test_every_hook_has_its_sort() -> None:
    sorts = {name: only(name, lambda: None).sort for name in hook_names()}
    assert {name for name, sort in sorts.items() if sort is Sort.QUESTION} == {QUESTION}
    events = {name for name, sort in sorts.items() if sort is Sort.EVENT}
    past = {"started", "advanced", "finished", "ended", "made", "measured", "trained"}
    assert {name.rpartition("_")[2] for name in events} == past
    # The names of registries are plural nouns.
    assert all(name.endswith("s") for name in set(sorts) - events - {QUESTION})


def test_a_function_is_called_with_the_facts_that_it_takes_in_its_own_order() -> None:
    found = only("pdtrim_merge_trained", lambda untrained, merge: (untrained, merge))
    facts = found.facts(["2+3", 0.5, 0.25])
    assert facts == {"merge": "2+3", "trained": 0.5, "untrained": 0.25}
    assert found.call(facts) == (0.25, "2+3")


@pytest.mark.parametrize("told", [[], ["2+3", 0.5], ["2+3", 0.5, 0.25, 0.1]])
def test_facts_are_those_of_the_hook(told: list[object]) -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        only("pdtrim_merge_trained", lambda: None).facts(told)


def test_what_counts_of_an_answer_goes_by_the_sort_of_the_hook() -> None:
    def offers() -> Iterator[int]:
        yield from (1, 2)

    assert only(EVENT, lambda: None).answer("something") is None
    assert only(QUESTION, lambda: None).answer("place") == "place"
    assert only(REGISTRY, offers).answer(offers()) == [1, 2]
    assert only(REGISTRY, yielding(), wrapper=True).answer([offers(), (3,)]) == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("hook", "facts", "line"),
    [
        (REGISTRY, {}, "trace: mine pdtrim_scorers() -> [1]"),
        (QUESTION, {"model": "a large one"}, "trace: mine:parts pdtrim_find_blocks() -> [1]"),
        (EVENT, {"note": "n"}, "trace: mine:parts pdtrim_note_made(note='n') -> [1]"),
    ],
)
def test_a_trace_tells_the_facts_of_events_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hook: str, facts: dict[str, object], line: str
) -> None:
    monkeypatch.setenv("PDTRIM_TRACE", "1")
    with only(hook, lambda: None).traced(facts) as call:
        call.answer = [1]
    assert capsys.readouterr().err == f"{line}\n"


# What is wrong


@pytest.mark.parametrize("name", ["pdtrimscorers", "scorers", "pdtrim_scorer"])
def test_whatever_is_marked_must_be_a_hook(name: str) -> None:
    assert problems_of(**{name: hookimpl(offering())}) == [f"there is no hook {name}; did you mean 'pdtrim_scorers'?"]


def test_a_name_that_a_mark_gives_must_be_a_hook_too() -> None:
    marked = hookimpl(offering(), specname="pdtrim_scorer")
    assert problems_of(pdtrim_scorers=marked) == ["there is no hook pdtrim_scorer; did you mean 'pdtrim_scorers'?"]


@pytest.mark.parametrize("name", hook_names())
def test_a_hook_that_is_not_marked_is_told(name: str) -> None:
    assert read(**{name: lambda: None}) == ({}, [f"{name} is not marked with @hookimpl"])


@pytest.mark.parametrize(
    ("hook", "function", "problem"),
    [
        (EVENT, lambda noot: None, "the hook pdtrim_note_made has no argument 'noot'; did you mean 'note'?"),
        (REGISTRY, lambda model: None, "the hook pdtrim_scorers has no argument 'model'; it takes no arguments"),
    ],
)
def test_an_argument_must_be_one_of_the_hook(hook: str, function: Callable[..., Any], problem: str) -> None:
    assert problems_of(**{hook: hookimpl(function)}) == [problem]


def test_the_old_form_of_a_wrapper_is_refused_with_the_new_one() -> None:
    def old(note: str) -> Generator[None, Any, None]:
        yield

    assert problems_of(pdtrim_note_made=hookimpl(old, hookwrapper=True)) == [
        "pdtrim_note_made is marked with hookwrapper=True, pluggy's old form: mark it with wrapper=True"
    ]


def test_a_wrapper_that_cannot_yield_is_refused() -> None:
    assert problems_of(pdtrim_note_made=hookimpl(lambda note: None, wrapper=True)) == [
        "pdtrim_note_made is marked with wrapper=True, but does not yield"
    ]


def test_a_wrapper_must_be_of_a_hook_and_its_arguments() -> None:
    def wraps(noot: str) -> Generator[None, Any, None]:
        yield

    assert problems_of(a=hookimpl(wraps, specname=EVENT, wrapper=True), pdtrim_scorer=hookimpl(yielding(), wrapper=True)) == [
        "the hook pdtrim_note_made has no argument 'noot'; did you mean 'note'?",
        "there is no hook pdtrim_scorer; did you mean 'pdtrim_scorers'?",
    ]


def test_all_that_is_wrong_is_told_what_is_marked_first() -> None:
    found, problems = read(
        pdtrim_scorer=hookimpl(offering()),
        pdtrim_searchers=offering(),
        pdtrim_find_blocks=lambda model: None,
        pdtrim_note_made=hookimpl(lambda noot: None),
        pdtrim_reports=hookimpl(offering()),
        pdtrim_helper=lambda: None,
    )
    assert problems == [
        "the hook pdtrim_note_made has no argument 'noot'; did you mean 'note'?",
        "there is no hook pdtrim_scorer; did you mean 'pdtrim_scorers'?",
        "pdtrim_find_blocks is not marked with @hookimpl",
        "pdtrim_searchers is not marked with @hookimpl",
    ]
    assert sorted(found) == ["pdtrim_note_made", "pdtrim_reports", "pdtrim_scorer"]
