"""Hooks are called in pluggy's order, wrappers around them, and one that fails stops no other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core import PluginHost, hookimpl
from pdtrim_core.errors import PdtrimError, PluginError
from pdtrim_core.host.host import Origin
from tests.unit.host.third_parties import host_of

EVENT = "pdtrim_note_made"
QUESTION = "pdtrim_find_blocks"
MODEL = SimpleNamespace(config=SimpleNamespace(model_type="odd"))


def listener(name: str, heard: list[str], **options: Any) -> dict[str, Any]:
    def listens(note: str) -> None:
        heard.append(f"{name}: {note}")

    return {EVENT: hookimpl(listens, **options)}


def around(name: str, heard: list[str], **options: Any) -> dict[str, Any]:
    def wraps(note: str) -> Generator[None, object, None]:
        heard.append(f"{name} before: {note}")
        yield
        heard.append(f"{name} after: {note}")

    return {EVENT: hookimpl(wraps, wrapper=True, **options)}


def finder(place: object, **options: Any) -> dict[str, Any]:
    return {QUESTION: hookimpl(lambda model: place, **options)}


def raising(hook: str, error: Exception, **options: Any) -> dict[str, Any]:
    def fails() -> None:
        raise error

    return {hook: hookimpl(fails, **options)}


def wrapper(hook: str, function: Callable[..., Generator[None, Any, Any]]) -> dict[str, Any]:
    return {hook: hookimpl(function, wrapper=True)}


def fails_before_it_yields() -> Generator[None, Any, Any]:
    if True:
        raise ValueError("not today")
    yield


def fails_after_it_yields() -> Generator[None, Any, Any]:
    yield
    raise ValueError("not today")


def never_yields() -> Generator[None, Any, Any]:
    yield from ()


def yields_twice() -> Generator[None, Any, Any]:
    yield
    yield


FAILING = {
    fails_before_it_yields: "ValueError: not today",
    fails_after_it_yields: "ValueError: not today",
    never_yields: "RuntimeError: the wrapper does not yield",
    yields_twice: "RuntimeError: the wrapper yields more than once",
}


# Order


def test_listeners_are_called_in_the_order_of_pluggy() -> None:
    heard: list[str] = []
    host = host_of(
        last=listener("last", heard, trylast=True),
        first=listener("first", heard, tryfirst=True),
        one=listener("one", heard),
        around=around("around", heard),
        two=listener("two", heard),
        outer=around("outer", heard, tryfirst=True),
        inner=around("inner", heard, trylast=True),
    )
    host.tell(EVENT, note="n")
    names = ["outer before", "around before", "inner before", "first", "two", "one", "last"]
    assert heard == [f"{name}: n" for name in [*names, "inner after", "around after", "outer after"]]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (({}, {}), "later"),
        (({"tryfirst": True}, {}), "earlier"),
        (({}, {"trylast": True}), "earlier"),
        (({"tryfirst": True}, {"tryfirst": True}), "later"),
    ],
)
def test_the_question_is_answered_by_the_first_in_the_order_of_pluggy(
    options: tuple[dict[str, bool], dict[str, bool]], answer: str
) -> None:
    host = host_of(earlier=finder("earlier", **options[0]), later=finder("later", **options[1]))
    assert host.find_blocks(MODEL, "tiny") == answer  # type: ignore[comparison-overlap]


def test_a_function_of_another_name_may_be_marked_with_the_name_of_the_hook() -> None:
    heard: list[str] = []
    host = PluginHost()
    functions = {f"{name}_listener": listener(name, heard)[EVENT] for name in ("a", "b")}
    for function in functions.values():
        hookimpl(function, specname=EVENT)
    host.register(SimpleNamespace(**functions), Origin("parts", "named"))
    host.tell(EVENT, note="n")
    assert (host.failures, sorted(heard)) == ([], ["a: n", "b: n"])


def test_a_plugin_that_is_registered_later_is_heard_too() -> None:
    heard: list[str] = []
    host = host_of(one=listener("one", heard))
    host.tell(EVENT, note="n")
    host.register(SimpleNamespace(**around("late", heard)), Origin("parts", "late"))
    host.tell(EVENT, note="m")
    assert heard == ["one: n", "late before: m", "one: m", "late after: m"]


# Wrappers around the question


def test_a_wrapper_may_change_the_answer() -> None:
    def longer(model: object) -> Generator[None, str, str]:
        return f"{yield} of {model}"

    assert host_of(finds=finder("place"), around=wrapper(QUESTION, longer)).find_blocks("m", "tiny") == "place of m"  # type: ignore[comparison-overlap]


def test_a_wrapper_may_answer_where_nobody_else_does() -> None:
    def stands_in() -> Generator[None, str | None, str]:
        assert (yield) is None
        return "mine"

    host = host_of(finds=finder(None), around=wrapper(QUESTION, stands_in))
    assert host.find_blocks(MODEL, "tiny") == "mine"  # type: ignore[comparison-overlap]


def test_a_wrapper_that_returns_nothing_leaves_the_answer_as_it_is() -> None:
    seen: list[object] = []

    def looks() -> Generator[None, object, None]:
        seen.append((yield))

    host = host_of(finds=finder("place"), around=wrapper(QUESTION, looks))
    assert host.find_blocks(MODEL, "tiny") == "place"  # type: ignore[comparison-overlap]
    assert seen == ["place"]


# One that fails


def test_a_listener_that_fails_keeps_the_event_from_nobody() -> None:
    heard: list[str] = []
    host = host_of(
        one=listener("one", heard),
        bad=raising(EVENT, ValueError("too loud")),
        two=listener("two", heard),
        around=around("around", heard),
    )
    with pytest.warns(UserWarning, match="is muted") as caught:
        host.tell(EVENT, note="n")
    assert [str(warning.message) for warning in caught] == [
        "plugin bad:parts failed in pdtrim_note_made and is muted: ValueError: too loud"
    ]
    assert heard == ["around before: n", "two: n", "one: n", "around after: n"]


@pytest.mark.parametrize("failing", FAILING)
def test_a_wrapper_that_fails_at_an_event_is_muted_and_named_once(failing: Callable[..., Any]) -> None:
    heard: list[str] = []
    bad = wrapper(EVENT, failing) | {"pdtrim_run_ended": hookimpl(lambda: heard.append("not muted"))}
    host = host_of(one=listener("one", heard), bad=bad, outer=around("outer", heard))
    with pytest.warns(UserWarning, match="is muted") as caught:
        host.tell(EVENT, note="n")
    assert [str(warning.message) for warning in caught] == [
        f"plugin bad:parts failed in pdtrim_note_made and is muted: {FAILING[failing]}"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.tell(EVENT, note="m")
        host.tell("pdtrim_run_ended")
    calls = ["outer before: {}", "one: {}", "outer after: {}"]
    assert heard == [call.format(note) for note in "nm" for call in calls]


def test_a_plugin_that_fails_twice_in_one_event_is_named_once() -> None:
    bad = wrapper(EVENT, fails_after_it_yields)
    functions = {"wraps": bad[EVENT], "listens": raising(EVENT, ValueError("too loud"))[EVENT]}
    for name, function in functions.items():
        hookimpl(function, specname=EVENT, wrapper=name == "wraps")
    with pytest.warns(UserWarning, match="is muted") as caught:
        host_of(bad=functions).tell(EVENT, note="n")
    assert len(caught) == 1


def test_where_warnings_are_errors_the_others_have_heard_the_event_before_one_is_raised() -> None:
    heard: list[str] = []
    host = host_of(one=listener("one", heard), bad=raising(EVENT, ValueError("too loud")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="is muted"):
            host.tell(EVENT, note="n")
    assert heard == ["one: n"]


@pytest.mark.parametrize("failing", FAILING)
def test_a_wrapper_that_fails_at_the_question_leaves_the_answer_as_it_is(failing: Callable[..., Any]) -> None:
    host = host_of(finds=finder("place"), bad=wrapper(QUESTION, failing))
    assert host.find_blocks(MODEL, "tiny") == "place"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("failing", FAILING)
def test_a_wrapper_that_fails_at_the_question_is_named_where_nobody_answers(failing: Callable[..., Any]) -> None:
    with pytest.raises(PluginError) as caught:
        host_of(finds=finder(None), bad=wrapper(QUESTION, failing)).find_blocks(MODEL, "owner/name")
    assert str(caught.value) == f"the hook pdtrim_find_blocks of bad:parts failed: {FAILING[failing]}"


def test_the_question_goes_on_behind_one_that_fails() -> None:
    host = host_of(finds=finder("place"), bad=raising(QUESTION, ValueError("lost"), tryfirst=True))
    assert host.find_blocks(MODEL, "tiny") == "place"  # type: ignore[comparison-overlap]


def test_who_failed_at_one_question_is_not_named_at_the_next() -> None:
    asked: list[object] = []

    def fails_once(model: object) -> None:
        asked.append(model)
        if len(asked) == 1:
            raise ValueError("not awake")

    host = host_of(bad={QUESTION: hookimpl(fails_once)})
    with pytest.raises(PluginError, match="not awake"):
        host.find_blocks(MODEL, "tiny")
    with pytest.raises(PdtrimError, match="no plugin knows where the architecture 'odd' keeps its blocks"):
        host.find_blocks(MODEL, "tiny")


def test_an_event_of_a_muted_plugin_leaves_its_questions_open() -> None:
    host = host_of(half=raising(EVENT, ValueError("too loud")) | finder("place"))
    with pytest.warns(UserWarning, match="is muted"):
        host.tell(EVENT, note="n")
    assert host.find_blocks(MODEL, "tiny") == "place"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_comes_through_and_ends_wrappers(interrupt: type[BaseException]) -> None:
    ended: list[str] = []

    def puts_away() -> Generator[None, object, None]:
        try:
            yield
        finally:
            ended.append("put away")

    def interrupted() -> None:
        raise interrupt

    host = host_of(stops={EVENT: hookimpl(interrupted)}, around=wrapper(EVENT, puts_away))
    with pytest.raises(interrupt):
        host.tell(EVENT, note="n")
    assert ended == ["put away"]


def test_an_interrupt_comes_through_a_wrapper_that_fails_when_it_is_closed() -> None:
    def cannot_put_away() -> Generator[None, object, None]:
        try:
            yield
        finally:
            raise OSError("disk full")

    def interrupted() -> None:
        raise KeyboardInterrupt

    host = host_of(stops={EVENT: hookimpl(interrupted)}, around=wrapper(EVENT, cannot_put_away))
    with pytest.raises(KeyboardInterrupt):
        host.tell(EVENT, note="n")
