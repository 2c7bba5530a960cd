"""Names of a module that stand for something else: as long as the context, and never longer."""

from __future__ import annotations

from types import ModuleType

import pytest

from pdtrim_core.harness.overrides import overridden


def module() -> ModuleType:
    made = ModuleType("made")
    vars(made).update(one=1, two=2)
    return made


def test_names_stand_for_other_values_inside_alone() -> None:
    changed = module()
    with overridden(changed, one="other", two=None):
        assert (vars(changed)["one"], vars(changed)["two"]) == ("other", None)
    assert (vars(changed)["one"], vars(changed)["two"]) == (1, 2)


def test_names_are_put_back_after_an_error() -> None:
    changed = module()
    with pytest.raises(ZeroDivisionError), overridden(changed, one="other"):
        raise ZeroDivisionError
    assert vars(changed)["one"] == 1


def test_a_name_that_the_module_lacks_is_refused_before_anything_changes() -> None:
    changed = module()
    with pytest.raises(AttributeError, match="three"), overridden(changed, one="other", three=3):
        pytest.fail("it was let in")
    assert vars(changed)["one"] == 1
    assert "three" not in vars(changed)
