"""From a made-up board to a status."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator

import pytest

from pairpool.scoreboard import snapshot
from pairpool.scoreboard.board import (
    CALLS,
    FAILURES,
    NOTHING,
    POOL_AT,
    POOL_WORDS,
    SECONDS,
    SLOT_WORDS,
    CallRecord,
    FailureRecord,
    PoolWord,
    Scoreboard,
    State,
    Word,
)
from pairpool.view.table import headline_plain, render
from pairpool.view.top import as_json, farewell
from pairpool.view.usage import Sampler

SECOND = 1_000_000_000
BORN = 1_000 * SECOND
NOW = BORN + 90 * SECOND + 500_000_000


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """A board of four places, of a pool that keeps two workers."""
    fd, board = Scoreboard.create(4, "a pool", BORN)
    os.close(fd)
    board.pool[PoolWord.PROCESSES] = 2
    yield board
    board.close()


def put_worker(board: Scoreboard, number: int, state: int, item: int = NOTHING) -> memoryview:
    """A worker that has been at batch 7, items 40 to 49, for three seconds."""
    slot = board.slot(number)
    slot.clear()
    words = slot.words
    words[Word.PID], words[Word.STATE], words[Word.ITEM] = 100 + number, state, item
    words[Word.BATCH], words[Word.FIRST], words[Word.COUNT] = 7, 40, 10
    words[Word.STARTED] = NOW - 3 * SECOND
    words[Word.FUNCTION] = 5
    return words


@pytest.mark.parametrize(("pending", "counted", "done", "left"), [(10, 5, 8, 7), (10, 5, 5, 10), (3, 0, 9, 0)])
def test_pending_items_do_not_include_those_that_ended_since_the_count(
    board: Scoreboard, pending: int, counted: int, done: int, left: int
) -> None:
    board.pool[PoolWord.PENDING], board.pool[PoolWord.COUNTED], board.pool[PoolWord.DONE] = pending, counted, done
    assert snapshot.take(board, NOW).pending == left


def test_a_pool_without_workers_yet(board: Scoreboard) -> None:
    status = snapshot.take(board, NOW)
    assert (status.name, status.pid, status.state, status.start_method) == ("a pool", os.getpid(), "RUN", "fork")
    assert [worker.state for worker in status.workers] == ["empty", "empty"]
    assert (status.starting, status.idle, status.busy) == (2, 0, 0)
    assert status.uptime == pytest.approx(90.5)
    assert len(status.rates) == 60
    assert not any(status.rates)


def test_states_of_workers(board: Scoreboard) -> None:
    board.name_function(5, "work")
    put_worker(board, 0, State.IDLE)
    put_worker(board, 1, State.RUNNING, 43)
    status = snapshot.take(board, NOW)
    idle, busy = status.workers
    assert (idle.state, idle.item, idle.function, idle.seconds) == ("idle", None, "", 0.0)
    assert (busy.state, busy.item, busy.function, busy.seconds) == ("running", 43, "work", 3.0)
    assert (status.busy, status.idle, status.starting) == (1, 1, 0)


@pytest.mark.parametrize("state", [State.LOADING, State.SAVING, State.SENDING])
def test_between_items_the_first_item_of_the_batch_is_shown(board: Scoreboard, state: int) -> None:
    put_worker(board, 0, state)
    assert snapshot.take(board, NOW).workers[0].item == 40


def test_a_surplus_worker_is_shown_until_it_exits(board: Scoreboard) -> None:
    board.pool[PoolWord.PLACES] = 4
    put_worker(board, 3, State.RUNNING, 43)
    assert [worker.number for worker in snapshot.take(board, NOW).workers] == [0, 1, 3]
    board.slot(3).words[Word.PID] = 0
    assert [worker.number for worker in snapshot.take(board, NOW).workers] == [0, 1]


def test_an_argument_is_shown_for_its_own_item_only(board: Scoreboard) -> None:
    words = put_worker(board, 0, State.RUNNING, 43)
    board.show_argument(0, 7, 43, "'the argument'")
    assert snapshot.take(board, NOW).workers[0].argument == "'the argument'"
    words[Word.ITEM] = 44
    assert snapshot.take(board, NOW).workers[0].argument == ""
    words[Word.ITEM], words[Word.BATCH] = 43, 8
    assert snapshot.take(board, NOW).workers[0].argument == ""
    words[Word.BATCH], words[Word.STATE] = 7, State.IDLE
    assert snapshot.take(board, NOW).workers[0].argument == ""


def test_a_total_of_zero_is_unknown(board: Scoreboard) -> None:
    words = put_worker(board, 0, State.RUNNING, 43)
    board.reals(0)[Word.PROGRESS] = 0.25
    words[Word.TOLD_BATCH], words[Word.TOLD_ITEM] = 7, 43
    board.write_note(0, "a quarter")
    worker = snapshot.take(board, NOW).workers[0]
    assert (worker.progress, worker.total, worker.note) == (0.25, None, "a quarter")


def test_texts_are_cut_between_characters(board: Scoreboard) -> None:
    put_worker(board, 0, State.RUNNING, 43)
    board.show_argument(0, 7, 43, "x" + "€" * 300)
    board.write_note(0, "€" * 300)
    board.name_function(5, "€" * 300)
    worker = snapshot.take(board, NOW).workers[0]
    assert worker.argument.strip("€") == "x"
    assert worker.function.strip("€") == ""
    assert 0 < len(worker.argument.encode()) < 256
    assert 0 < len(worker.function.encode()) < 96


def test_counts_of_old_seconds_are_not_used(board: Scoreboard) -> None:
    first = NOW // SECOND
    for second, items in ((first - 61, 5), (first - 60, 7), (first - 2, 11), (first - 1, 13), (first, 17)):
        board.pool[board.begin_second(second)] += items
    rates = snapshot.take(board, NOW).rates
    assert (rates[0], rates[-2], rates[-1]) == (7, 11, 13)
    assert sum(rates) == 31
    later = snapshot.take(board, NOW + SECONDS * SECOND).rates
    assert not any(later)  # what is older than the row is long is not taken for new


def test_calls(board: Scoreboard) -> None:
    board.name_function(5, "work")
    began = NOW - 4 * SECOND
    records = [CallRecord(5, 0, 100, 30, 2, began, 1), CallRecord(0, 1, NOTHING, 7, 0, began, 2)]
    board.write_calls(records)
    assert board.calls() == records
    sized, unsized = snapshot.take(board, NOW).running
    assert (sized.function, sized.kind, sized.total, sized.done, sized.failed) == ("work", "map", 100, 30, 2)
    assert (unsized.function, unsized.kind, unsized.total, unsized.seconds) == ("", "imap", None, 4.0)


def test_more_calls_than_fit(board: Scoreboard) -> None:
    board.write_calls([CallRecord(0, 2, 1, 0, 0, BORN, number) for number in range(CALLS + 5)])
    assert [record.number for record in board.calls()] == list(range(CALLS))


def test_the_last_failures(board: Scoreboard) -> None:
    for number in range(FAILURES + 3):
        board.add_failure(FailureRecord(NOW - SECOND, NOTHING if number % 2 else 1, number, "work", f"error {number}"))
    failures = snapshot.take(board, NOW).failures
    assert [one.item for one in failures] == list(range(FAILURES + 2, 2, -1))
    assert (failures[0].worker, failures[1].worker) == (1, None)
    assert (failures[0].error, failures[0].function, failures[0].seconds) == (f"error {FAILURES + 2}", "work", 1.0)


def test_an_ended_pool(board: Scoreboard) -> None:
    put_worker(board, 0, State.RUNNING, 43)
    board.pool[PoolWord.DONE] = 12
    board.pool[PoolWord.STATE] = 2
    board.pool[PoolWord.ENDED] = BORN + 5 * SECOND
    status = snapshot.take(board, NOW)
    assert (status.is_over, status.workers, status.uptime, status.done) == (True, (), 5.0, 12)
    remains = board.remains()
    assert snapshot.take(remains, NOW) == status
    remains.close()


def test_a_board_that_is_only_read(board: Scoreboard) -> None:
    fd, other = Scoreboard.create(2, "another", BORN)
    seen = Scoreboard.attach(fd, writable=False)
    os.close(fd)
    other.pool[PoolWord.DONE] = 3
    assert snapshot.take(seen, NOW).done == 3
    with pytest.raises(TypeError):
        seen.pool[PoolWord.DONE] = 4
    seen.close()
    other.close()


NUMBERS = [0, 1, 3, 8, 9, 1 << 22, (1 << 22) + 1, 1 << 32, 1 << 63, NOTHING - 1, NOTHING]
REALS = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 5e-324, 1.7e308, -1.0, 0.5]


@pytest.mark.parametrize("seed", range(40))
def test_a_status_can_be_shown_whatever_the_memory_contains(seed: int) -> None:
    noise = random.Random(seed)
    fd, board = Scoreboard.create(4, "a pool", BORN)
    os.close(fd)
    try:
        if seed % 2:
            content = noise.randbytes(len(board._bytes) - POOL_AT)
            board._bytes[POOL_AT:] = content
        for word in range(POOL_WORDS):
            board.pool[word] = noise.choice(NUMBERS)
        board.pool[PoolWord.ENDED] = noise.choice([0, 0, 0, 1, NOTHING])
        for number in range(4):
            words, reals = board.slot(number).words, board.reals(number)
            for word in range(SLOT_WORDS):
                words[word] = noise.choice(NUMBERS)
            words[Word.PID], words[Word.STATE] = 1 + number, noise.randrange(10)
            words[Word.TOLD_BATCH], words[Word.TOLD_ITEM] = words[Word.BATCH], words[Word.ITEM]
            reals[Word.PROGRESS], reals[Word.TOTAL] = noise.choice(REALS), noise.choice(REALS)
        status = snapshot.take(board, NOW)
        assert len(status.workers) <= 4
        assert all(0 <= worker.pid <= 1 << 22 for worker in status.workers)
        for width in (1, 40, 80, 200):
            for ascii in (False, True):
                assert len(render(status, width, 30, ascii=ascii).lines) <= 30
        for text in (headline_plain(status), farewell(status), render(status, 200, None).text.replace("\n", "")):
            assert text.isprintable()
        json.loads(json.dumps(as_json(status)), parse_constant=pytest.fail)
        Sampler().fill(status)
    finally:
        board.close()
