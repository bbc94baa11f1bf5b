"""Who leads, and who leaves the lead to whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pairpool.master.event_loop import EventLoop
from tests.support.waiting import PATIENCE


class NoWork:
    def prepare(self, stays: bool) -> float:
        return -1.0

    def has_a_core_free(self) -> bool:
        return False

    def tend(self) -> None:
        pass

    def mend(self) -> None:
        pass


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop(NoWork())
    yield loop
    loop.close()


def test_a_glance_is_this_threads_where_nobody_leads(loop: EventLoop) -> None:
    by: list[int] = []
    loop.glance(lambda: by.append(threading.get_ident()))
    assert by == [threading.get_ident()]


def test_a_glance_is_left_to_the_leader(loop: EventLoop) -> None:
    """Each of them, however fast they follow each other: who only looks takes nothing from who waits."""
    by: list[int] = []
    leads, is_over = threading.Event(), threading.Event()
    loop.submit(leads.set)
    leader = threading.Thread(target=lambda: loop.wait(is_over.is_set))
    leader.start()
    try:
        assert leads.wait(PATIENCE)
        for number in range(1, 201):
            loop.glance(lambda: by.append(threading.get_ident()))
            if len(by) < number:  # on a busy machine the leader may take longer than a glance waits
                assert loop.wait(lambda number=number: len(by) == number, PATIENCE)  # type: ignore[misc]
    finally:
        loop.submit(is_over.set)
        leader.join()
    assert by == [leader.ident] * 200


def test_what_a_glance_within_a_turn_asks_for_comes_after_it(loop: EventLoop) -> None:
    """The thread leads itself: it does not wait for others."""
    seen: list[str] = []

    def look() -> None:
        loop.glance(lambda: seen.append("glance"))
        seen.append("turn")

    loop.submit(look)
    loop.poke()
    assert seen == ["turn", "glance"]


def test_glances_of_many_threads_end_with_nobody_to_lead(loop: EventLoop) -> None:
    seen: list[int] = []

    def glance_often() -> None:
        for _ in range(100):
            loop.glance(lambda: seen.append(1))

    threads = [threading.Thread(target=glance_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    loop.poke()
    assert len(seen) >= 400  # an action that an interrupt or another thread's turn meets may be run twice


def test_who_stands_in_leaves_it_to_who_leads_and_is_told_when_nobody_does(loop: EventLoop) -> None:
    told, leads, is_over = threading.Event(), threading.Event(), threading.Event()
    loop.standby = told.set
    loop.submit(leads.set)
    leader = threading.Thread(target=lambda: loop.wait(is_over.is_set))
    leader.start()
    try:
        assert leads.wait(PATIENCE)
        loop.stand_in(is_over.is_set)  # would drive until then, if nobody led
        assert not is_over.is_set()
        assert not told.is_set()
    finally:
        loop.submit(is_over.set)
        leader.join()
    assert told.is_set()


def test_nobody_stands_in_for_a_follower(loop: EventLoop) -> None:
    """The lead goes to a thread that waits, and not to the one that drives for those who do not."""
    told: list[int] = []
    loop.standby = lambda: told.append(threading.get_ident())
    leads, first_is_over, second_is_over = threading.Event(), threading.Event(), threading.Event()
    loop.submit(leads.set)
    first = threading.Thread(target=lambda: loop.wait(first_is_over.is_set))
    first.start()
    assert leads.wait(PATIENCE)
    follows = threading.Event()

    def is_second_over() -> bool:
        if loop._followers:
            follows.set()
        return second_is_over.is_set()

    second = threading.Thread(target=lambda: loop.wait(is_second_over))
    second.start()
    assert follows.wait(PATIENCE)
    loop.submit(first_is_over.set)
    first.join(PATIENCE)
    assert told == []
    loop.submit(second_is_over.set)
    second.join(PATIENCE)
    assert set(told) == {second.ident}


def test_who_stands_in_drives_where_nobody_leads(loop: EventLoop) -> None:
    by: list[int] = []
    loop.submit(lambda: by.append(threading.get_ident()))
    loop.stand_in(lambda: bool(by))
    assert by == [threading.get_ident()]
