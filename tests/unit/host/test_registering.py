"""A plugin that is registered in Python by a name works, or what is wrong with it is raised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core import PluginError, PluginHost
from pdtrim_core.api import Drop, Plan, Removal, Searcher, hookimpl
from pdtrim_core.host.host import Origin


class Ears:
    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def pdtrim_note_made(self, note: str) -> None:
        self.heard.append(note)


class Own(Searcher):
    """Requests one plan."""

    name = "own"

    def search(self, space: Any, rng: Any) -> Any:
        del space, rng
        yield Plan.unified(Removal([Drop(1)]))


def test_a_listener_with_a_name_hears() -> None:
    host, ears = PluginHost(), Ears()
    host.register(ears, "me")
    host.tell("pdtrim_note_made", note="one")
    assert ears.heard == ["one"]
    assert (host.failures, host.origins) == ([], [Origin("me", "python")])


def test_components_with_a_name_are_found_and_named_in_messages() -> None:
    host = PluginHost()
    host.register(SimpleNamespace(pdtrim_searchers=hookimpl(lambda: [Own])), "mine")
    assert host.find("searcher", "own").component is Own
    assert host.label_of(Own()) == "searcher 'own' (python)"


@pytest.mark.parametrize(
    ("plugin", "name", "problem"),
    [
        (object(), "me", "it implements no hook: mark its methods with @hookimpl"),
        (Ears, "me", "the hook pdtrim_note_made has no argument 'self'"),
        (Ears(), "", "its name is empty"),
        (SimpleNamespace(pdtrim_note_mad=hookimpl(lambda: None)), "me", "there is no hook pdtrim_note_mad; did you mean"),
        (SimpleNamespace(pdtrim_note_made=lambda note: note), "me", "pdtrim_note_made is not marked with @hookimpl"),
    ],
)
def test_what_is_wrong_with_it_is_raised(plugin: object, name: str, problem: str) -> None:
    host = PluginHost()
    with pytest.raises(PluginError) as caught:
        host.register(plugin, name)
    assert str(caught.value).startswith(f"plugin '{name}' cannot be registered: {problem}")
    assert (host.failures, host.origins) == ([], [])
    host.register(Ears(), "me")  # nothing is left of it


def test_a_name_is_given_once_and_is_a_text() -> None:
    host = PluginHost()
    host.register(Ears(), "me")
    with pytest.raises(PluginError, match="it is registered already, as python:me"):
        host.register(Ears(), "me")
    with pytest.raises(PluginError, match="register takes a plugin and a name for it, such as 'mine', not int"):
        host.register(Ears(), 3)  # type: ignore[arg-type]


def test_one_may_listen_for_a_while_and_again() -> None:
    host, ears = PluginHost(), Ears()
    for note in ("one", "two"):
        with host.listening(ears, "me"):
            host.tell("pdtrim_note_made", note=note)
        host.tell("pdtrim_note_made", note="between")
    assert ears.heard == ["one", "two"]
    assert (host.origins, host.failures) == ([], [])
