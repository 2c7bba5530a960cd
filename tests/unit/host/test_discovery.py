"""Installed plugins: which are loaded, and what comes of importing them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pdtrim_core import PluginHost, load_plugins
from pdtrim_core.errors import RecipeError
from pdtrim_core.host.discovery import import_plugin, installed_plugins
from tests.unit.host.third_parties import BROKEN, GOOD_FILE, Load


def sources(host: PluginHost) -> set[str]:
    return {origin.source for origin in host.origins}


def test_some_plugins_alone_are_loaded_where_the_environment_says_so(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDTRIM_PLUGINS", "pdtrim-core, twin-two")
    host = load("twin_one", "twin_two", "import_error")
    assert sources(host) == {"pdtrim-core", "twin-two"}
    assert (host.failures, host.left_out) == ([], ("broken-import", "twin-one"))
    assert host.find("scorer", "twin").origin.source == "twin-two"
    assert "broken_import" not in sys.modules


def test_a_single_plugin_of_a_distribution_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDTRIM_PLUGINS", "scorers,splitters")
    host = load_plugins()
    assert {origin.plugin for origin in host.origins} == {"scorers", "splitters"}
    assert host.left_out == ()


def test_what_was_left_out_is_said_where_it_is_missed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDTRIM_PLUGINS", "twin-one")
    with pytest.raises(RecipeError) as caught:
        load("twin_one").find("searcher", "annealing")
    assert caught.value.problems == ("there is no searcher 'annealing' (PDTRIM_PLUGINS leaves out pdtrim-core)",)


def test_no_name_at_all_loads_no_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PDTRIM_PLUGINS", "")
    file = tmp_path / "flat.py"
    file.write_text(GOOD_FILE)
    host = load_plugins([file])
    assert [provided.component.name for provided in host.provided] == ["flat"]


def test_a_name_that_nothing_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDTRIM_PLUGINS", "pdtrim-cora")
    with pytest.raises(RecipeError) as caught:
        load_plugins()
    assert (
        str(caught.value)
        == "PDTRIM_PLUGINS: 1 problem\n  no installed plugin is called 'pdtrim-cora'; did you mean 'pdtrim-core'?"
    )


def test_what_a_plugin_prints_stays_out_of_results(load: Load, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text("print('hello from a file')\n" + GOOD_FILE)
    host = load("slow", files=(file,))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "loading my big library" in shown.err
    assert "hello from a file" in shown.err
    assert [origin.source for origin, seconds in host.import_seconds.items() if seconds > 1] == ["broken-slow"]
    assert host.find("scorer", "late").origin.source == "broken-slow"


def test_a_distribution_that_is_on_the_path_twice_is_loaded_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BROKEN / "twin_one")
    host = load("twin_one")
    assert host.failures == []
    assert [origin.source for origin in host.origins].count("twin-one") == 1


def test_plugins_are_in_the_order_of_names(load: Load) -> None:
    load("twin_two", "twin_one", "listener")
    wanted = [(origin.source, origin.plugin) for origin, _ in installed_plugins().wanted]
    assert wanted == sorted(wanted)
    assert {source for source, _ in wanted} >= {"twin-one", "twin-two", "broken-listener", "pdtrim-core"}


def test_what_an_import_raises_is_returned_as_a_problem(load: Load) -> None:
    load("exits")
    ((origin, point),) = [found for found in installed_plugins().wanted if found[0].source == "broken-exits"]
    imported = import_plugin(origin, point)
    assert (imported.plugin, imported.problem) == (None, "cannot import broken_exits: SystemExit: 3")
