"""The two groups of public names, and where the names of 0.1 went."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pdtrim_core
from pdtrim_core import api
from pdtrim_core.host.compatibility import GONE, RENAMED


def test_every_public_name_is_there_and_both_groups_mean_the_same_by_it() -> None:
    for name in api.__all__:
        assert getattr(api, name) is not None
    for name in pdtrim_core.__all__:
        assert getattr(pdtrim_core, name) is not None
    for name in {*pdtrim_core.__all__} & {*api.__all__}:
        assert getattr(pdtrim_core, name) is getattr(api, name)


def test_those_who_use_it_from_python_meet_few_names() -> None:
    assert len(pdtrim_core.__all__) <= 30


@pytest.mark.parametrize("name", ["Scorer", "PruneContext", "python_reference"])
def test_a_name_of_a_plugin_says_where_it_is(name: str) -> None:
    with pytest.raises(ImportError, match=rf"^pdtrim_core.{name} is pdtrim_core.api.{name} since 0.2$"):
        getattr(pdtrim_core, name)


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_a_name_that_is_another_one_now_says_which(name: str) -> None:
    with pytest.raises(ImportError, match=rf"^pdtrim_core.{name} is pdtrim_core.api.{RENAMED[name]} since 0.2$"):
        getattr(pdtrim_core, name)
    assert hasattr(api, RENAMED[name])


@pytest.mark.parametrize("name", sorted(GONE))
def test_a_name_that_is_no_more_says_what_to_do(name: str) -> None:
    with pytest.raises(ImportError) as caught:
        getattr(pdtrim_core, name)
    assert str(caught.value) == f"pdtrim_core.{name} {GONE[name]}"
    assert not hasattr(api, name)


def test_a_name_that_never_was_is_an_attribute_error_as_everywhere() -> None:
    with pytest.raises(AttributeError, match="module 'pdtrim_core' has no attribute 'scorrer'"):
        pdtrim_core.scorrer  # noqa: B018
    assert not hasattr(api, "scorrer")


def test_an_old_plugin_is_told_by_its_own_import_statement() -> None:
    code = "from pdtrim_core import Scorer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ImportError: pdtrim_core.Scorer is pdtrim_core.api.Scorer since 0.2"


def test_importing_either_group_does_not_import_torch() -> None:
    code = "import sys, pdtrim_core, pdtrim_core.api; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
