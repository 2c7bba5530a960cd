"""Data checked against a pydantic model: what is bent, which sentence tells of each problem, and what is suggested."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pdtrim_core.recipe.validation import checked

STRICT = ConfigDict(extra="forbid")


class Wheels(BaseModel):
    model_config = STRICT

    count: int = Field(4, gt=0)
    sizes: tuple[float, ...] = ()


class Car(BaseModel):
    model_config = STRICT

    name: str
    colour: Literal["red", "blue"] = "red"
    spare: bool = False
    wheels: Wheels | None = None

    @field_validator("name")
    @classmethod
    def _has_letters(cls, name: str) -> str:
        if not name.isalpha():
            raise ValueError("a name has letters only: leave out the rest")
        return name


def problems_of(data: dict[str, Any], place: str = "car", *, also: tuple[str, ...] = ()) -> list[str]:
    problems: list[str] = []
    assert checked(Car, data, place, problems, also=also) is None
    return problems


def test_data_without_problems_become_the_model_and_lists_become_tuples() -> None:
    problems: list[str] = []
    car = checked(Car, {"name": "Mini", "wheels": {"count": 3, "sizes": [1, 2.5]}}, "car", problems)
    assert car == Car(name="Mini", wheels=Wheels(count=3, sizes=(1.0, 2.5)))
    assert problems == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"naem": "x"}, "car.naem: unknown key; did you mean 'name'?"),
        ({"zzz": 1}, "car.zzz: unknown key; there are colour, name, spare, wheels"),
        ({"wheels": {"cuont": 3}}, "car.wheels.cuont: unknown key; did you mean 'count'?"),
        ({"wheels": {"zzz": 3}}, "car.wheels.zzz: unknown key; there are count, sizes"),
        ({"wheels": {"count": 0}}, "car.wheels.count: must be greater than 0 (got 0)"),
        ({"wheels": {"sizes": [1, "2"]}}, "car.wheels.sizes.1: must be a valid number (got '2')"),
        ({"wheels": 4}, "car.wheels: must be a table (got 4)"),
        ({"name": "R2"}, "car.name: a name has letters only: leave out the rest (got 'R2')"),
        ({"colour": "rde"}, "car.colour: must be 'red' or 'blue' (got 'rde')"),
    ],
)
def test_a_problem_is_one_sentence_with_the_path_and_what_was_given(change: dict[str, Any], problem: str) -> None:
    assert problems_of({"name": "Mini", **change}) == [problem]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"wheels": {"count": "5"}}, "car.wheels.count: must be a valid integer (got '5')"),
        ({"wheels": {"count": True}}, "car.wheels.count: must be a valid integer (got True)"),
        ({"wheels": {"count": 4.5}}, "car.wheels.count: must be a valid integer (got 4.5)"),
        ({"spare": 1}, "car.spare: must be a valid boolean (got 1)"),
        ({"spare": "yes"}, "car.spare: must be a valid boolean (got 'yes')"),
        ({"name": date(2024, 1, 2)}, "car.name: must be a valid string (got {'date': '2024-01-02'})"),
    ],
)
def test_nothing_is_bent_into_another_type(change: dict[str, Any], problem: str) -> None:
    assert problems_of({"name": "Mini", **change}) == [problem]


def test_all_problems_are_told_behind_those_that_were_there() -> None:
    problems = ["before"]
    assert checked(Car, {"spare": 2, "zz": 1}, "car", problems) is None
    assert problems[0] == "before"
    assert sorted(problems[1:]) == [
        "car.name: required key is missing",
        "car.spare: must be a valid boolean (got 2)",
        "car.zz: unknown key; there are colour, name, spare, wheels",
    ]


def test_data_without_a_place_are_told_by_their_keys_alone() -> None:
    assert problems_of({}, "") == ["name: required key is missing"]


def test_other_keys_of_the_same_table_are_suggested_there_and_not_below() -> None:
    assert problems_of({"name": "Mini", "egine": 1}, also=("engine",)) == ["car.egine: unknown key; did you mean 'engine'?"]
    assert problems_of({"name": "Mini", "wheels": {"egine": 1}}, also=("engine",)) == [
        "car.wheels.egine: unknown key; there are count, sizes"
    ]
