"""Read the scoreboard into a `PoolStatus`, in the master or in any process that can map the scoreboard."""

from __future__ import annotations

from collections.abc import Sequence

from pairpool.scoreboard.board import CALL_KINDS, MAX_SLOTS, NOTHING, PoolWord, Scoreboard, State, Word
from pairpool.status import CallStatus, FailureStatus, PoolStatus, WorkerStatus

__all__ = ["take"]

MINUTE = 60

MAX_PID = 1 << 22
"""The largest limit of pids that the kernel allows (PID_MAX_LIMIT)."""

_BUSY_STATES = (State.LOADING, State.RUNNING, State.KEEPING, State.SAVING, State.FUNCTION, State.SENDING)


def take(board: Scoreboard, now: int) -> PoolStatus:
    """Return what the scoreboard shows at `now` (monotonic ns), whatever its memory contains.

    In the master, the words that the master has written come from its private memory.
    """
    own = board.own
    pool = own.pool
    ended = pool[PoolWord.ENDED]
    until = ended or now
    second = until // 1_000_000_000
    processes = min(pool[PoolWord.PROCESSES], MAX_SLOTS)
    return PoolStatus(
        name=own.name,
        pid=_pid(own.pid),
        state=_one_of(PoolWord.STATES, pool[PoolWord.STATE]),
        start_method=_one_of(PoolWord.METHODS, pool[PoolWord.METHOD]),
        processes=processes,
        uptime=max(0, until - own.created) / 1e9,
        calls=pool[PoolWord.CALLS],
        workers=() if ended else tuple(_workers(board, processes, now)),
        done=pool[PoolWord.DONE],
        failed=pool[PoolWord.FAILED],
        pending=_pending(own),
        rates=tuple(own.seconds(second - MINUTE, second)),
        running=tuple(_calls(own, now)),
        failures=tuple(_failures(own, now)),
    )


def _one_of(names: Sequence[str], number: int) -> str:
    """Return the name with this number, or the first one if the number means none."""
    return names[number if number < len(names) else 0]


def _pid(word: int) -> int:
    return word if word <= MAX_PID else 0


def _pending(own: Scoreboard) -> int:
    """Return the pending items: the last count of them, without those that have ended since."""
    pool = own.pool
    pending, counted = pool[PoolWord.PENDING], pool[PoolWord.COUNTED]
    return max(0, pending - max(0, pool[PoolWord.DONE] - counted))


def _workers(board: Scoreboard, processes: int, now: int) -> list[WorkerStatus]:
    """Return the workers that the pool keeps, and those that are about to exit."""
    places = min(max(processes, board.own.pool[PoolWord.PLACES]), board.slots)
    return [
        _read_worker(board, number, now)
        for number in range(places)
        if number < processes or board.own.slot(number).words[Word.PID]
    ]


def _read_worker(board: Scoreboard, number: int, now: int) -> WorkerStatus:
    words, own = board.slot(number).words, board.own.slot(number).words
    batch, item, state, pid = words[Word.BATCH], words[Word.ITEM], words[Word.STATE], _pid(own[Word.PID])
    at_work = state in _BUSY_STATES and pid != 0
    argument, progress, total, note = "", None, None, ""
    if at_work and (own[Word.SHOWN_BATCH], own[Word.SHOWN_ITEM]) == (batch, item):
        argument = board.own.argument(number)
        if own[Word.SHOWN_BATCH] != batch:
            argument = ""  # the text changed while it was read
    if at_work and (words[Word.TOLD_BATCH], words[Word.TOLD_ITEM]) == (batch, item):
        reals = board.reals(number)
        progress, total, note = reals[Word.PROGRESS], reals[Word.TOTAL], board.note(number)
    return WorkerStatus(
        number=number,
        pid=pid,
        state=_one_of(State.NAMES, state if pid else State.EMPTY),
        function=board.own.function_name(words[Word.FUNCTION]) if at_work else "",
        item=(words[Word.FIRST] if item == NOTHING else item) if at_work else None,
        seconds=max(0, now - words[Word.STARTED]) / 1e9 if at_work else 0.0,
        done=words[Word.DONE],
        failed=words[Word.FAILED],
        replaced=own[Word.REPLACED],
        argument=argument,
        progress=progress,
        total=total or None,
        note=note,
        rss=own[Word.RSS] or None,
    )


def _calls(board: Scoreboard, now: int) -> list[CallStatus]:
    return [
        CallStatus(
            function=board.function_name(record.function),
            kind=_one_of(CALL_KINDS, record.kind),
            total=None if record.total == NOTHING else record.total,
            done=record.done,
            failed=record.failed,
            seconds=max(0, now - record.began) / 1e9,
        )
        for record in board.calls()
    ]


def _failures(board: Scoreboard, now: int) -> list[FailureStatus]:
    return [
        FailureStatus(
            seconds=max(0, now - record.when) / 1e9,
            worker=None if record.worker == NOTHING else record.worker,
            function=record.function,
            item=record.item,
            error=record.error,
        )
        for record in board.failures()
    ]
