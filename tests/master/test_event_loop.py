"""Leader and followers: which thread drives the loop, and how the lead passes on."""

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

    def recover(self) -> None:
        pass


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop(NoWork())
    yield loop
    loop.close()


def test_a_query_runs_in_this_thread_if_nobody_leads(loop: EventLoop) -> None:
    by: list[int] = []
    loop.query(lambda: by.append(threading.get_ident()))
    assert by == [threading.get_ident()]


def test_a_query_is_left_to_the_leader(loop: EventLoop) -> None:
    """A thread that only asks something never takes the lead from a thread that waits, however often it asks."""
    by: list[int] = []
    leads, is_over = threading.Event(), threading.Event()
    loop.submit(leads.set)
    leader = threading.Thread(target=lambda: loop.wait(is_over.is_set))
    leader.start()
    try:
        assert leads.wait(PATIENCE)
        for number in range(1, 201):
            loop.query(lambda: by.append(threading.get_ident()))
            if len(by) < number:  # on a busy machine the leader may take longer than a query waits
                assert loop.wait(lambda number=number: len(by) == number, PATIENCE)  # type: ignore[misc]
    finally:
        loop.submit(is_over.set)
        leader.join()
    assert by == [leader.ident] * 200


def test_a_query_from_within_a_turn_runs_after_it(loop: EventLoop) -> None:
    """The thread is the leader itself, so it does not wait for another one."""
    seen: list[str] = []

    def look() -> None:
        loop.query(lambda: seen.append("query"))
        seen.append("turn")

    loop.submit(look)
    loop.run_once()
    assert seen == ["turn", "query"]


def test_queries_of_many_threads_end_although_no_thread_waits(loop: EventLoop) -> None:
    seen: list[int] = []

    def query_often() -> None:
        for _ in range(100):
            loop.query(lambda: seen.append(1))

    threads = [threading.Thread(target=query_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    loop.run_once()
    assert len(seen) >= 400  # an action may run twice if another thread's turn meets it


def test_the_standby_thread_leaves_the_lead_to_others_and_is_told_when_it_is_free(loop: EventLoop) -> None:
    told, leads, is_over = threading.Event(), threading.Event(), threading.Event()
    loop.set_standby(told.set)
    loop.submit(leads.set)
    leader = threading.Thread(target=lambda: loop.wait(is_over.is_set))
    leader.start()
    try:
        assert leads.wait(PATIENCE)
        loop.drive_if_free(is_over.is_set)  # would drive until then, if nobody led
        assert not is_over.is_set()
        assert not told.is_set()
    finally:
        loop.submit(is_over.set)
        leader.join()
    assert told.is_set()


def test_a_follower_comes_before_the_standby_thread(loop: EventLoop) -> None:
    """The lead goes to a thread that waits for a result, and not to the thread that drives in the background."""
    told: list[int] = []
    loop.set_standby(lambda: told.append(threading.get_ident()))
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


def test_the_standby_thread_drives_if_nobody_leads(loop: EventLoop) -> None:
    by: list[int] = []
    loop.submit(lambda: by.append(threading.get_ident()))
    loop.drive_if_free(lambda: bool(by))
    assert by == [threading.get_ident()]
