"""Which step of how many a run is at."""

from __future__ import annotations

from pdtrim_core.cli.step_count import StepCount


def test_steps_are_counted_and_one_may_be_left_out_or_come_again() -> None:
    count = StepCount()
    count.begin(("open", "score", "search", "evaluate"))
    places = []
    for step in ("open", "search", "score", "unknown", "evaluate"):
        count.at(step)
        places.append((count.words(), count.words(short=True)))
    assert places == [
        ("step 1 of 4: ", "1/4 "),
        *[("step 3 of 4: ", "3/4 ")] * 3,
        ("step 4 of 4: ", "4/4 "),
    ]


def test_without_steps_nothing_is_said() -> None:
    count = StepCount()
    count.at("search")
    assert (count.words(), count.words(short=True)) == ("", "")
