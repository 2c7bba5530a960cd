"""The plugin host: what is wrong with a plugin is recorded, and the rest works."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core import PluginHost, hookimpl, load_plugins
from pdtrim_core.api import Scorer, Searcher
from pdtrim_core.api.kinds import KINDS
from pdtrim_core.errors import PdtrimError, PluginError, RecipeError
from pdtrim_core.host.host import Failure, Origin
from tests.unit.host.third_parties import BROKEN, GOOD_FILE, Load, told


def built_in(host: PluginHost) -> list[str]:
    return [provided.label for provided in host.provided if provided.origin.source == "pdtrim-core"]


def test_nothing_is_wrong_with_the_built_ins(host: PluginHost) -> None:
    assert host.failures == []
    assert all(host.of_kind(kind) for kind in KINDS)


def test_a_component_knows_where_it_comes_from(host: PluginHost) -> None:
    cosine = host.find("scorer", "cosine")
    assert cosine.label == f"scorer 'cosine' (pdtrim-core {cosine.origin.version})"
    assert host.label_of(cosine.component()) == cosine.label


def test_a_component_of_no_plugin_is_named_without_origin(host: PluginHost) -> None:
    class Stray(Searcher):
        name = "stray"

        def search(self, space: Any, rng: Any) -> Any:
            yield from ()

    assert host.label_of(Stray()) == "searcher 'stray'"


BROKEN_PLUGINS = {
    "import_error": [
        (
            "broken-import 1.0",
            "cannot import broken_import: ModuleNotFoundError: No module named 'no_such_package_anywhere'",
        )
    ],
    "exits": [("broken-exits 1.0", "cannot import broken_exits: SystemExit: 3")],
    "no_such_part": [
        (
            "broken-entry 1.0",
            "cannot import broken_entry:parts: AttributeError: module 'broken_entry' has no attribute 'parts'",
        )
    ],
    "misspelt_hook": [("broken-hook 1.0", "there is no hook pdtrim_scorer; did you mean 'pdtrim_scorers'?")],
    "unmarked_hook": [("broken-unmarked 1.0", "pdtrim_scorers is not marked with @hookimpl")],
    "misspelt_argument": [
        (
            "broken-argument 1.0",
            "the hook pdtrim_note_made has no argument 'noot'; did you mean 'note'?",
        )
    ],
    "wrong_kind": [
        ("broken-kind 1.0", "<class 'pdtrim_core.plan.plan.Plan'> is not a subclass of Scorer"),
        ("broken-kind 1.0", "'norm-ratio' is not a subclass of Scorer"),
        ("broken-kind 1.0", "Sound() is not a subclass of Scorer"),
    ],
    "abstract": [("broken-abstract 1.0", "Hollow does not define score")],
    "bad_names": [
        ("broken-names 1.0", "Spaced has the name 'Norm Ratio': use lower-case words joined by '-'"),
        ("broken-names 1.0", "Nameless has the name '': use lower-case words joined by '-'"),
    ],
    "number_as_name": [("broken-number 1.0", "Numbered has the name 5: use lower-case words joined by '-'")],
    "raising_hook": [("broken-raising 1.0", "pdtrim_scorers failed: ZeroDivisionError: division by zero")],
    "failing_wrappers": [("broken-wrappers 1.0", "pdtrim_scorers failed: ZeroDivisionError: division by zero")],
    "wrong_arguments": [
        (
            "broken-arguments 1.0",
            "Seedless.search cannot be called as search(space, rng): too many positional arguments",
        )
    ],
    "hostile": [("broken-hostile 1.0", "hands off pdtrim_scorers")],
    "old": [
        ("broken-old 1.0", "there is no hook pdtrim_layers; did you mean 'pdtrim_splitters'?"),
        ("broken-old 1.0", "the hook pdtrim_note_made has no argument 'text'; there is note"),
    ],
    "no_list": [("broken-list 1.0", "pdtrim_scorers failed: TypeError: 'NoneType' object is not iterable")],
}


HALF_BROKEN = {"twin_one", "twin_two", "listener", "slow", "raising_questions"}
"""Plugins that load, and fail or annoy later."""


def test_every_fake_distribution_is_used() -> None:
    assert {path.name for path in BROKEN.iterdir()} == {*BROKEN_PLUGINS, *HALF_BROKEN}


@pytest.mark.parametrize("name", BROKEN_PLUGINS)
def test_what_is_wrong_with_a_plugin_is_recorded_and_the_rest_works(load: Load, host: PluginHost, name: str) -> None:
    try:
        broken = load(name)
    except BaseException as error:  # noqa: BLE001 - even SystemExit must not come through
        pytest.fail(f"a broken plugin stopped load_plugins: {error!r}")
    assert told(broken) == BROKEN_PLUGINS[name]
    assert built_in(broken) == built_in(host)
    assert broken.find("scorer", "cosine").origin.source == "pdtrim-core"


def test_broken_plugins_do_not_hide_each_other(load: Load) -> None:
    problems = sorted(problem for problems in BROKEN_PLUGINS.values() for problem in problems)
    assert sorted(told(load(*BROKEN_PLUGINS))) == problems


def test_what_is_sound_in_a_broken_plugin_works(load: Load) -> None:
    host = load("wrong_kind", "raising_hook")
    assert host.find("scorer", "sound").label == "scorer 'sound' (broken-kind 1.0)"
    assert host.find("searcher", "patient").label == "searcher 'patient' (broken-raising 1.0)"


def test_a_plugin_with_a_misspelt_or_unmarked_hook_is_left_out_whole(load: Load) -> None:
    host = load("misspelt_hook", "unmarked_hook")
    assert {origin.source for origin in host.origins} == {"pdtrim-core"}
    assert {provided.origin.source for provided in host.provided} == {"pdtrim-core"}


def test_a_plugin_registered_twice_is_recorded() -> None:
    host = PluginHost()
    origin = Origin("parts", "twice", "2.0")
    module = type(sys)("twice")
    host.register(module, origin)
    host.register(module, origin)
    assert host.origins == [origin]
    assert [failure.origin for failure in host.failures] == [origin]


def test_one_object_is_one_plugin() -> None:
    def offers() -> list[Any]:
        return []

    plugin, alike = (SimpleNamespace(pdtrim_scorers=hookimpl(offers)) for _ in range(2))
    host = PluginHost()
    host.register(plugin, Origin("parts", "mine", "1.0"))
    host.register(plugin, Origin("others", "mine", "1.0"))
    host.register(alike, Origin("parts", "mine", "1.0"))
    assert told(host) == [("mine 1.0", "it is registered already, as mine:parts")] * 2


# Finding


def test_an_unknown_name_gets_advice(host: PluginHost) -> None:
    with pytest.raises(RecipeError) as caught:
        host.find("scorer", "cosin")
    assert caught.value.problems == ("there is no scorer 'cosin'; did you mean 'cosine'?",)


def test_an_unknown_name_is_told_that_plugins_are_broken(load: Load) -> None:
    with pytest.raises(RecipeError) as caught:
        load("import_error", "no_such_part").find("scorer", "cosin")
    assert caught.value.problems == (
        "there is no scorer 'cosin'; did you mean 'cosine'? (2 plugins failed to load: see pdtrim-core plugins)",
    )


def test_one_broken_plugin_is_told_in_the_singular(load: Load) -> None:
    with pytest.raises(RecipeError) as caught:
        load("wrong_kind").find("scorer", "cosin")
    assert caught.value.problems == (
        "there is no scorer 'cosin'; did you mean 'cosine'? (1 plugin failed to load: see pdtrim-core plugins)",
    )


def test_broken_plugins_are_counted_not_their_problems(load: Load) -> None:
    host = load("wrong_kind", "bad_names")
    assert len(host.failures) == 5
    with pytest.raises(RecipeError, match=r"\(2 plugins failed to load: see pdtrim-core plugins\)"):
        host.find("scorer", "cosin")


def test_a_name_that_two_distributions_offer_must_be_told_apart(load: Load) -> None:
    host = load("twin_one", "twin_two")
    assert host.failures == []
    with pytest.raises(RecipeError) as caught:
        host.find("scorer", "twin")
    assert caught.value.problems == ("'twin' is offered by 2 plugins: say use = 'twin-one/twin' or 'twin-two/twin'",)
    for source in ("twin-one", "twin-two"):
        assert host.find("scorer", f"{source}/twin").label == f"scorer 'twin' ({source} 1.0)"
    assert host.find("scorer", "cosine").component.name == "cosine"


def test_a_name_of_one_distribution_may_be_qualified_too(host: PluginHost) -> None:
    assert host.find("scorer", "pdtrim-core/cosine") == host.find("scorer", "cosine")


def test_a_wrong_distribution_is_not_found(host: PluginHost) -> None:
    with pytest.raises(RecipeError) as caught:
        host.find("splitter", "elsewhere/zzz")
    known = sorted(provided.component.name for provided in host.of_kind("splitter"))
    assert caught.value.problems == (f"there is no splitter 'elsewhere/zzz'; there are {', '.join(known)}",)


def test_a_name_may_exist_in_two_kinds(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text(GOOD_FILE.replace('"flat"', '"greedy"'))
    host = load(files=(file,))
    assert issubclass(host.find("scorer", "greedy").component, Scorer)
    assert issubclass(host.find("searcher", "greedy").component, Searcher)


# Blocks


def places(find: Callable[..., Any]) -> PluginHost:
    module = type(sys)("places")
    module.pdtrim_find_blocks = hookimpl(find)  # type: ignore[attr-defined]
    host = PluginHost()
    host.register(module, Origin("parts", "places"))
    assert host.failures == []
    return host


def test_blocks_are_where_a_plugin_says() -> None:
    place = object()
    assert places(lambda model: place).find_blocks(object(), "owner/name") is place


def test_a_model_whose_blocks_no_plugin_finds_is_named_with_the_remedy() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="odd"))
    with pytest.raises(PdtrimError) as caught:
        places(lambda model: None).find_blocks(model, "owner/name")
    assert str(caught.value) == (
        "owner/name: no plugin knows where the architecture 'odd' keeps its blocks; a plugin can say so with the hook "
        "pdtrim_find_blocks"
    )


def test_a_hook_that_fails_to_find_blocks_is_named() -> None:
    with pytest.raises(PluginError) as caught:
        places(lambda model: model.layers).find_blocks(5, "owner/name")
    assert str(caught.value) == (
        "the hook pdtrim_find_blocks of places:parts failed: AttributeError: 'int' object has no attribute 'layers'"
    )


# Events


def test_a_listener_that_raises_is_muted_after_one_warning(load: Load) -> None:
    host = load("listener")
    with pytest.warns(UserWarning, match="is muted") as caught:
        host.tell("pdtrim_note_made", note="one")
    assert [str(warning.message) for warning in caught] == [
        "plugin broken-listener:parts failed in pdtrim_note_made and is muted: ValueError: too loud"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.tell("pdtrim_note_made", note="two")
        host.tell("pdtrim_run_started", recipe={}, out=Path("runs"), steps=())
    assert sys.modules["broken_listener"].heard == ["one"]


def test_a_muted_listener_does_not_mute_others(load: Load) -> None:
    listener = type(sys)("listener")
    heard: list[str] = []

    @hookimpl
    def pdtrim_note_made(note: str) -> None:
        heard.append(note)

    listener.pdtrim_note_made = pdtrim_note_made  # type: ignore[attr-defined]
    host = load("listener")
    host.register(listener, Origin("ears", "test"))
    with pytest.warns(UserWarning, match="is muted"):
        host.tell("pdtrim_note_made", note="one")
    host.tell("pdtrim_note_made", note="two")
    assert heard == ["one", "two"]


def test_a_host_hears_nothing_of_another(load: Load) -> None:
    first = load("listener")
    with pytest.warns(UserWarning, match="is muted"):
        first.tell("pdtrim_note_made", note="one")
    with pytest.warns(UserWarning, match="is muted"):
        load_plugins().tell("pdtrim_note_made", note="two")


# Plain files


def test_a_plain_file_is_a_plugin(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text(GOOD_FILE)
    host = load(files=(file,))
    assert host.find("scorer", "flat").label == f"scorer 'flat' ({file})"
    assert host.find("scorer", f"{file}/flat") == host.find("scorer", "flat")


def test_two_files_of_one_name_are_two_plugins(load: Load, tmp_path: Path) -> None:
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "mine.py")
        files[-1].write_text(GOOD_FILE.replace("flat", folder))
    host = load(files=tuple(files))
    assert host.failures == []
    assert {host.find("scorer", name).origin.source for name in ("one", "two")} == {str(file) for file in files}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "plugin file {} does not exist"),
        ("notes.txt", "hello", "plugin file {} is not a Python file (.py)"),
        ("raises.py", "1 / 0", "plugin file {} failed: ZeroDivisionError: division by zero"),
        ("exits.py", "raise SystemExit(3)", "plugin file {} failed: SystemExit: 3"),
        ("unmarked.py", GOOD_FILE.replace("@hookimpl\n", ""), "plugin file {}: pdtrim_scorers is not marked with @hookimpl"),
        ("hollow.py", GOOD_FILE.replace("def score", "def skore"), "plugin file {}: Flat does not define score"),
        (
            "misspelt.py",
            GOOD_FILE.replace("pdtrim_scorers", "pdtrim_scorer"),
            "plugin file {}: there is no hook pdtrim_scorer; did you mean 'pdtrim_scorers'?",
        ),
    ],
)
def test_a_file_that_was_named_is_needed(load: Load, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(PluginError) as caught:
        load(files=(file,))
    assert str(caught.value) == message.format(file)


def test_a_file_with_a_syntax_error_is_named_with_its_line(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "typo.py"
    file.write_text("x = 1\ny = (\n")
    with pytest.raises(PluginError) as caught:
        load(files=(file,))
    assert str(caught.value) == f"plugin file {file} failed: SyntaxError: '(' was never closed (typo.py, line 2)"


def test_broken_installed_plugins_do_not_stop_a_sound_file(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text(GOOD_FILE)
    host = load("import_error", "wrong_kind", files=(file,))
    assert host.find("scorer", "flat").component.name == "flat"


def test_origins_and_failures_are_shown_in_words() -> None:
    assert str(Origin("parts", "pdtrim-norm", "0.1.0")) == "pdtrim-norm 0.1.0"
    assert str(Origin("mine", "./mine.py")) == "./mine.py"
    assert Failure(Origin("a", "b"), "c") == Failure(Origin("a", "b"), "c")


# Slow, talkative, failing where they are asked


def test_a_plugin_that_cannot_find_blocks_does_not_keep_others_from_it(load: Load, host: PluginHost) -> None:
    from pdtrim_core.testing import tiny_transformers

    model = tiny_transformers("llama")
    assert load("raising_questions").find_blocks(model, "tiny") == host.find_blocks(model, "tiny")


def test_where_no_plugin_finds_blocks_the_one_that_failed_is_named(load: Load) -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="odd"))
    with pytest.raises(PluginError) as caught:
        load("raising_questions").find_blocks(model, "owner/name")
    assert str(caught.value) == ("the hook pdtrim_find_blocks of broken-questions:parts failed: LookupError: SimpleNamespace")


def test_one_plugin_file_may_be_given_without_a_list(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("")
    for given in (file, str(file), [str(file)]):
        assert load_plugins(given).origins[-1].plugin == "own"
