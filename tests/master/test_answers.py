"""Test questions to the leader: exceptions reach the thread that asks, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pairpool.master.answers import Question
from tests.support.pools import MakePool
from tests.support.tasks import square
from tests.support.waiting import PATIENCE


def refuse() -> int:
    raise ValueError("no answer")


def test_a_question_keeps_its_exception_for_the_thread_that_asked() -> None:
    asked = Question(refuse)
    asked()
    assert asked.is_answered
    with pytest.raises(ValueError, match="no answer"):
        asked.answer()


def test_an_exception_of_a_question_does_not_reach_the_call_that_leads(make_pool: MakePool) -> None:
    pool = make_pool(2)
    release = threading.Event()

    def slow_input() -> Iterator[int]:
        for x in range(3):
            yield x
            if x == 1:
                assert release.wait(PATIENCE)

    found: list[list[int]] = []
    leader = threading.Thread(target=lambda: found.append(list(pool.imap(square, slow_input()))))
    leader.start()
    asker = threading.Timer(0.0, release.set)
    asker.start()
    with pytest.raises(ValueError, match="no answer"):
        pool._engine.inquire(refuse)
    leader.join(PATIENCE)
    asker.join()
    assert found == [[0, 1, 4]]


def test_a_report_does_not_wait_for_the_input_of_a_stream(make_pool: MakePool) -> None:
    pool = make_pool(2)
    waits, release = threading.Event(), threading.Event()

    def blocked_input() -> Iterator[int]:
        yield 3
        waits.set()
        assert release.wait(PATIENCE)

    found: list[list[int]] = []
    leader = threading.Thread(target=lambda: found.append(list(pool.imap(square, blocked_input()))))
    leader.start()
    assert waits.wait(PATIENCE)
    try:
        assert pool.report().workers
        assert set(pool.stacks()) == {0, 1}
        assert not release.is_set()
    finally:
        release.set()
        leader.join(PATIENCE)
    assert found == [[9]]
