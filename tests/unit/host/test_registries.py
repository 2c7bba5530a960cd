"""Registries: whose a component is, in which order components stand, and what wrappers make of them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core import PluginHost, Recipe, hookimpl, load_plugins
from pdtrim_core.api import Scorer, Scores
from pdtrim_core.host.host import Origin
from tests.unit.host.third_parties import GOOD_FILE, Load, host_of, told

Offered = list[list[Any]]


def scorer(called: str) -> type[Scorer]:
    class Made(Scorer):
        """A scorer."""

        name = called

        def score(self, context: Any) -> Scores:
            return Scores(())

    return Made


A, B, C = scorer("a"), scorer("b"), scorer("c")


def offers(*components: object, **options: Any) -> dict[str, Any]:
    return {"pdtrim_scorers": hookimpl(lambda: iter(components), **options)}


def around(function: Callable[[], Generator[None, Offered, Any]], **options: Any) -> dict[str, Any]:
    return {"pdtrim_scorers": hookimpl(function, wrapper=True, **options)}


def without_a() -> Generator[None, Offered, Offered]:
    return [[component for component in offered if component.name != "a"] for offered in (yield)]


def with_c() -> Generator[None, Offered, Offered]:
    return [*(yield), [C]]


def names(host: PluginHost) -> list[str]:
    return [f"{p.component.name} of {p.origin.source}" for p in host.of_kind("scorer")]


def test_components_stand_in_the_order_of_loading_and_of_their_options() -> None:
    host = host_of(
        last=offers(scorer("z"), trylast=True), one=offers(A, B), two=offers(C), first=offers(scorer("y"), tryfirst=True)
    )
    assert names(host) == ["y of first", "a of one", "b of one", "c of two", "z of last"]


def test_the_functions_are_called_in_the_order_of_pluggy_and_wrappers_see_it() -> None:
    seen: list[Offered] = []

    def looks() -> Generator[None, Offered, None]:
        seen.append((yield))

    host = host_of(last=offers(A, trylast=True), first=offers(B, tryfirst=True), plain=offers(C), looks=around(looks))
    assert names(host) == ["b of first", "c of plain", "a of last"]
    assert seen == [[[B], [C], [A]]]


def test_every_registry_is_called_once_for_the_plugins_that_there_are() -> None:
    calls: list[str] = []

    def counted() -> list[type[Scorer]]:
        calls.append("called")
        return [A]

    host = host_of(counts={"pdtrim_scorers": hookimpl(counted)})
    assert [names(host), names(host), host.failures] == [["a of counts"], ["a of counts"], []]
    assert calls == ["called"]


def test_a_wrapper_may_take_components_away() -> None:
    assert names(host_of(one=offers(A, B), two=offers(C), filters=around(without_a))) == ["b of one", "c of two"]


def test_a_component_that_a_wrapper_adds_is_its_own() -> None:
    host = host_of(one=offers(A), adds=around(with_c), two=offers(B))
    assert names(host) == ["a of one", "c of adds", "b of two"]
    assert host.find("scorer", "adds/c").label == "scorer 'c' (adds 1.0)"


def test_a_component_that_a_wrapper_puts_in_place_of_another_is_its_own() -> None:
    def replaces() -> Generator[None, Offered, Offered]:
        return [[C if component is A else component for component in offered] for offered in (yield)]

    assert names(host_of(one=offers(A, B), replaces=around(replaces))) == ["b of one", "c of replaces"]


def test_wrappers_wrap_each_other() -> None:
    def without_c() -> Generator[None, Offered, Offered]:
        return [[component for component in offered if component is not C] for offered in (yield)]

    plugins = {"one": offers(A, B), "adds": around(with_c)}
    assert names(host_of(**plugins, filters=around(without_c))) == ["a of one", "b of one"]
    assert names(host_of(**plugins, filters=around(without_c, trylast=True))) == ["a of one", "b of one", "c of adds"]


def test_a_wrapper_changes_what_is_registered_after_it_too() -> None:
    host = host_of(one=offers(B), filters=around(without_a))
    assert names(host) == ["b of one"]
    host.register(SimpleNamespace(**offers(A, C)), Origin("late", "late"))
    assert names(host) == ["b of one", "c of late"]


def test_what_two_plugins_share_is_offered_by_both() -> None:
    assert names(host_of(one=offers(A), two=offers(A))) == ["a of one", "a of two"]


# What is wrong


def test_a_wrapper_does_not_see_what_cannot_be_used() -> None:
    host = host_of(bad=offers("a", A, scorer("Not A Name")), filters=around(without_a), good=offers(B))
    assert names(host) == ["b of good"]
    assert told(host) == [
        ("bad 1.0", "'a' is not a subclass of Scorer"),
        ("bad 1.0", "Made has the name 'Not A Name': use lower-case words joined by '-'"),
    ]


def test_what_a_wrapper_adds_that_cannot_be_used_is_its_failure() -> None:
    def adds_text() -> Generator[None, Offered, Offered]:
        return [*(yield), ["text"]]

    host = host_of(one=offers(A), adds=around(adds_text), filters=around(without_a), two=offers(B))
    assert names(host) == ["b of two"]
    assert told(host) == [("adds 1.0", "'text' is not a subclass of Scorer")]


def raises_early() -> Generator[None, Offered, Offered]:
    if True:
        raise ValueError("not today")
    yield


def raises_late() -> Generator[None, Offered, Offered]:
    yield
    raise ValueError("not today")


def answers_a_number() -> Generator[None, Offered, int]:
    yield
    return 3


def answers_one_list() -> Generator[None, Offered, Any]:
    return [component for offered in (yield) for component in offered]


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (raises_early, "ValueError: not today"),
        (raises_late, "ValueError: not today"),
        (answers_a_number, "TypeError: 'int' object is not iterable"),
        (answers_one_list, "TypeError: 'ModelMetaclass' object is not iterable"),
    ],
)
def test_a_wrapper_that_fails_is_recorded_and_takes_nothing_away(function: Callable[[], Any], error: str) -> None:
    host = host_of(one=offers(A), bad=around(function), two=offers(B))
    assert names(host) == ["a of one", "b of two"]
    assert told(host) == [("bad 1.0", f"pdtrim_scorers failed: {error}")]


def test_a_registry_that_fails_half_way_offers_nothing_and_hides_nobody() -> None:
    def half() -> Generator[type[Scorer], None, None]:
        yield A
        raise ValueError("not today")

    host = host_of(one=offers(B), bad={"pdtrim_scorers": hookimpl(half)}, two=offers(C))
    assert names(host) == ["b of one", "c of two"]
    assert told(host) == [("bad 1.0", "pdtrim_scorers failed: ValueError: not today")]


def test_failures_stand_in_the_order_of_loading() -> None:
    host = host_of(
        one=offers("text"),
        two={"pdtrim_scorer": hookimpl(lambda: iter(()))},
        three={"pdtrim_searchers": hookimpl(lambda: 5)},
        four=offers(1),
    )
    assert [source for source, _ in told(host)] == ["one 1.0", "two 1.0", "three 1.0", "four 1.0"]


# Files and recipes


def test_a_file_may_wrap_what_installed_plugins_offer(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text(
        GOOD_FILE.replace("@hookimpl\n", "@hookimpl(wrapper=True)\n").replace(
            "    yield Flat\n", '    return [[c for c in part if c.name != "cosine"] for part in (yield)] + [[Flat]]\n'
        )
    )
    host = load("twin_one", files=(file,))
    offered = {p.component.name: p.origin.source for p in host.of_kind("scorer")}
    assert "cosine" not in offered
    assert (offered["flat"], offered["twin"]) == (str(file), "twin-one")


@pytest.mark.parametrize(
    ("one", "two", "asked"), [({}, {}, "one"), ({}, {"tryfirst": True}, "two"), ({"trylast": True}, {}, "two")]
)
def test_options_decide_which_model_source_is_asked_first(one: dict[str, Any], two: dict[str, Any], asked: str) -> None:
    from pdtrim_core.testing.contracts import TinyModel

    host = load_plugins()
    for name, options in (("one", one), ("two", two)):
        made = type(name.title(), (TinyModel,), {"name": name, "__doc__": "A source."})
        host.register(SimpleNamespace(pdtrim_model_sources=hookimpl(lambda made=made: [made], **options)), Origin("parts", name))
    assert host.failures == []
    data = {"model": "tiny:llama", "recovery": "none", "prune": {"blocks": 1}}
    assert Recipe.from_data(data, host=host).model.name == asked
