"""The parts of attacks: the same seed makes the same packets, and every kind of packet occurs."""

from __future__ import annotations

import pytest

from pairpool.stress.hostile.dice import Dice
from pairpool.stress.hostile.packets import PACKET_CLASSES, SHAPES, Facts, Shot, shots
from pairpool.stress.hostile.pickles import BROKEN_PICKLES, broken_failures, broken_table
from pairpool.transport.wire import HEADER_SIZE, PACKET_LIMIT, type_of

FACTS = Facts(batch=12, first=30, items=4)


def some_shots(seed: int, count: int = 200) -> list[Shot]:
    return [shot for number in range(count) for shot in shots(Dice(seed, number), FACTS, 12, may_forge=True)]


def test_the_same_seed_makes_the_same_packets() -> None:
    assert some_shots(3) == some_shots(3)
    assert some_shots(3) != some_shots(4)


def test_packets_have_every_kind_and_fit_into_a_socket() -> None:
    made = some_shots(1, 1000)
    kinds = {shot.data[0] for shot in made if len(shot.data) >= HEADER_SIZE and shot.shape != "noise"}
    assert kinds >= {type_of(kind(*[0] * len(kind.__annotations__))).kind for kind in PACKET_CLASSES}
    assert {shot.shape for shot in made} == {shape(Dice(1), FACTS).shape for shape in SHAPES} | {"idle"}
    assert max(len(shot.data) for shot in made) <= PACKET_LIMIT


def test_a_report_that_may_be_accepted_is_the_last_packet_of_an_attack() -> None:
    for number in range(300):
        made = list(shots(Dice(9, number), FACTS, 12, may_forge=True))
        assert not any(shot.forges for shot in made[:-1])
        assert not any(shot.forges for shot in shots(Dice(9, number), FACTS, 12, may_forge=False))


@pytest.mark.parametrize("make", BROKEN_PICKLES)
def test_broken_pickles_import_no_name_that_exists(make: object) -> None:
    assert callable(make)
    for number in range(50):
        data = make(Dice(2, number))
        assert isinstance(data, bytes)
        for name in (b"os\n", b"posix\n", b"subprocess\n", b"sys\n"):
            assert name not in data


def test_tables_and_failures_are_bytes() -> None:
    for number in range(200):
        for items in (1, 4):
            assert isinstance(broken_table(Dice(1, number), items), bytes)
            assert isinstance(broken_failures(Dice(1, number), items), bytes)
