"""Every test of every contract has a broken component that it catches, and is the sentence of one contract alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pdtrim_core import testing
from pdtrim_core.api.kinds import KINDS

HERE = Path(__file__).parent
CONTRACTS = [name for name in testing.__all__ if name.endswith("Contract")]
WELL_FORMED = "test_it_is_a_well_formed_component"


def test_every_kind_has_its_contract() -> None:
    kinds = {getattr(testing, name).__annotations__["component"] for name in CONTRACTS}
    assert kinds == {f"ClassVar[type[{kind.__name__}]]" for kind in KINDS.values()}


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_test_of_a_contract_is_shown_to_catch_something(name: str) -> None:
    contract = getattr(testing, name)
    texts = [file.read_text() for file in HERE.glob("test_*_contract*.py")]
    (text,) = (text for text in texts if re.search(rf"failing\({name}, component", text))
    caught = set(re.findall(r'\(\w+, "(test_\w+)"\)', text))
    assert {test for test in dir(contract) if test.startswith("test_")} - {WELL_FORMED} <= caught
