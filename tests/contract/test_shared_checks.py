"""What all contracts share: well-formed components, departures with a reason, imports that do without pytest."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, ClassVar

import pytest
from pydantic import ConfigDict, Field

from pdtrim_core.api import Drop, Plan, Removal, Requests, Searcher, SearchSpace, SimilarityScorer
from pdtrim_core.testing import (
    ScorerContract,
    SearcherContract,
)

if TYPE_CHECKING:
    from random import Random

    from torch import Tensor


WELL_FORMED = "test_it_is_a_well_formed_component"


class FirstNorm(SimilarityScorer):
    """How little a block changes the norms."""

    name = "first-norm"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        change: Tensor = (after.norm(dim=-1) - before.norm(dim=-1)).abs()
        return -change


class Shuffle(Searcher):
    """Some removals at random."""

    name = "shuffle"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        for _ in range(3):
            yield Plan.unified(Removal(rng.sample(_drops(space), space.count)))


def _drops(space: SearchSpace) -> list[Drop]:
    return [Drop(block) for block in range(space.block_count)]


class Undescribed(Shuffle):
    pass


class BadlyNamed(Shuffle):
    """A name with capitals and a space."""

    name = "Bad Name"


class OptionWithoutWords(Shuffle):
    """An option that listings cannot explain."""

    steps_a_try: int = 3


class OptionWithAFullStop(Shuffle):
    """An option whose description is a sentence."""

    tries: int = Field(3, description="number of tries.")


class ImpossibleDefault(Shuffle):
    """A default that a recipe may not say."""

    tries: int = Field(0, gt=0, description="number of tries")


class Changeable(Shuffle):
    """A component that changes under way."""

    model_config = ConfigDict(frozen=False)


class TakesAnyOption(Shuffle):
    """A component that swallows misspelt options."""

    model_config = ConfigDict(extra="ignore")


class ForgetsAnOption(Shuffle):
    """An option that is not recorded."""

    tries: int = Field(3, exclude=True, description="number of tries")


@pytest.mark.parametrize(
    ("component", "complaint"),
    [
        (Undescribed, "its docstring needs a first line: listings show it"),
        (BadlyNamed, "BadlyNamed has the name 'Bad Name': use lower-case words joined by '-'"),
        (OptionWithoutWords, "option 'steps_a_try' has no description"),
        (OptionWithAFullStop, "the description of option 'tries' ends with a full stop"),
        (ImpossibleDefault, "Input should be greater than 0"),
        (Changeable, "a component must be frozen: it is remembered as it was"),
        (TakesAnyOption, "DID NOT RAISE"),
        (ForgetsAnOption, "its options do not read back from JSON"),
    ],
)
def test_a_component_that_is_not_well_formed_is_caught(component: type[Searcher], complaint: str) -> None:
    options = {"tries": 4} if component is ForgetsAnOption else {}
    made = type("TestOfTests", (SearcherContract,), {"component": component, "options": options})()
    with pytest.raises((Exception, pytest.fail.Exception), match=complaint):
        getattr(made, WELL_FORMED)()


def test_a_component_of_another_kind_is_caught() -> None:
    made = type("TestOfTests", (ScorerContract,), {"component": Shuffle})()
    with pytest.raises(AssertionError, match="is not a subclass of Scorer"):
        getattr(made, WELL_FORMED)()


def test_a_contract_test_is_not_overridden_without_a_reason() -> None:
    with pytest.raises(TypeError) as caught:
        type("TestMine", (ScorerContract,), {"test_padding_does_not_matter": lambda self: None})
    assert str(caught.value) == (
        'TestMine overrides test_padding_does_not_matter: say why, departs = {"test_padding_does_not_matter": "reason"}'
    )


def test_a_departure_needs_a_reason() -> None:
    with pytest.raises(TypeError) as caught:
        type("TestMine", (ScorerContract,), {"departs": {"test_padding_does_not_matter": " "}})
    assert str(caught.value) == "TestMine departs from test_padding_does_not_matter without a reason"


def test_a_departure_names_a_test() -> None:
    with pytest.raises(TypeError) as caught:
        type("TestMine", (ScorerContract,), {"departs": {"test_padding_does_matter": "it is wide"}})
    assert str(caught.value) == (
        "TestMine departs from test_padding_does_matter, which is no test of it; did you mean 'test_padding_does_not_matter'?"
    )


def test_a_departed_test_is_skipped_with_its_reason() -> None:
    made = type("TestMine", (ScorerContract,), {"departs": {"test_padding_does_not_matter": "padding is its subject"}})()
    with pytest.raises(pytest.skip.Exception, match="departs: padding is its subject"):
        made.test_padding_does_not_matter()


def test_an_override_with_a_reason_is_what_runs() -> None:
    class TestMine(ScorerContract):
        component = FirstNorm
        departs: ClassVar[dict[str, str]] = {"test_padding_does_not_matter": "padding is its subject"}

        def test_padding_does_not_matter(self) -> None:
            raise LookupError

    with pytest.raises(LookupError):
        TestMine().test_padding_does_not_matter()


def test_the_tiny_models_need_no_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; import pdtrim_core.testing as t; t.ByteTokenizer()\n"
        "try: t.ScorerContract\n"
        "except ImportError as error: print('needs', error.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "needs pytest\n"


def test_a_misspelt_contract_is_an_attribute_error() -> None:
    import pdtrim_core.testing

    with pytest.raises(AttributeError, match=r"module 'pdtrim_core\.testing' has no attribute 'ScoreContract'"):
        _ = pdtrim_core.testing.ScoreContract
