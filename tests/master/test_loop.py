"""Who leads, and who leaves the lead to whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pairpool.master.loop import Loop
from tests.support import PATIENCE


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
def loop() -> Iterator[Loop]:
    loop = Loop(NoWork())
    yield loop
    loop.close()


def test_a_glance_is_this_threads_where_nobody_leads(loop: Loop) -> None:
    by: list[int] = []
    loop.glance(lambda: by.append(threading.get_ident()))
    assert by == [threading.get_ident()]


def test_a_glance_is_left_to_the_leader(loop: Loop) -> None:
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


def test_what_a_glance_within_a_turn_asks_for_comes_after_it(loop: Loop) -> None:
    """The thread leads itself: it does not wait for others."""
    seen: list[str] = []

    def look() -> None:
        loop.glance(lambda: seen.append("glance"))
        seen.append("turn")

    loop.submit(look)
    loop.poke()
    assert seen == ["turn", "glance"]


def test_glances_of_many_threads_end_with_nobody_to_lead(loop: Loop) -> None:
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
