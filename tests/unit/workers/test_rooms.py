"""How many workers there is room for, and what each of them gets."""

from __future__ import annotations

import pytest

from pdtrim_core import PdtrimError
from pdtrim_core.workers.rooms import Machine, Room, room_for

ONE = [Machine(2)]
SEVERAL = [Machine(16, 4), Machine(16, 4)]


@pytest.mark.parametrize(
    ("wanted", "machines", "room"),
    [
        (2, ONE, Room(2, 1, 0.0)),
        (1, ONE, Room(1, 2, 0.0)),
        (None, ONE, Room(2, 1, 0.0)),
        (None, [Machine(1)], Room(1, 1, 0.0)),
        (None, [Machine(64)], Room(16, 4, 0.0)),
        (None, SEVERAL, Room(8, 4, 1.0)),
        (4, SEVERAL, Room(4, 8, 1.0)),
        (16, SEVERAL, Room(16, 2, 0.5)),
        # Three on the machine of 6 processors and one on that of 2: with 2 each.
        (4, [Machine(6), Machine(2)], Room(4, 2, 0.0)),
        (2, [Machine(4), Machine(2)], Room(2, 2, 0.0)),
    ],
)
def test_processors_are_divided_among_workers_such_that_each_fits_on_a_machine(
    wanted: int | None, machines: list[Machine], room: Room
) -> None:
    assert room_for(wanted, machines) == room


def test_more_workers_than_processors_are_refused() -> None:
    with pytest.raises(PdtrimError) as error:
        room_for(3, ONE)
    assert str(error.value) == "--workers 3: this machine has 2 processors, and each worker needs one: ask for fewer"
    with pytest.raises(PdtrimError, match="the cluster of 2 machines has 32 processors"):
        room_for(33, SEVERAL)


@pytest.mark.parametrize("machines", [[], [Machine(0)]])
def test_a_cluster_without_processors_is_refused(machines: list[Machine]) -> None:
    with pytest.raises(PdtrimError, match="has 0 processors"):
        room_for(None, machines)
