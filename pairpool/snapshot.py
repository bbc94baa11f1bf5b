"""From the status board to a `PoolStatus`."""

from __future__ import annotations

import time

from pairpool.master.engine import Master
from pairpool.status import PoolStatus, WorkerStatus
from pairpool.wire.board import NOTHING, Board, State, Word

__all__ = ["read_worker", "take"]

_AT_WORK = (State.LOADING, State.RUNNING, State.SAVING, State.FUNCTION, State.SENDING)


def read_worker(board: Board, number: int, now: int) -> WorkerStatus:
    """One slot of the board as it is at `now` (monotonic ns)."""
    words = board.slot(number).words
    state, item, function = words[Word.STATE], words[Word.ITEM], words[Word.FUNCTION]
    at_work = state in _AT_WORK
    return WorkerStatus(
        number=number,
        pid=words[Word.PID],
        state=State.NAMES[state],
        function=board.function_name(function) if at_work else "",
        item=(words[Word.FIRST] if item == NOTHING else item) if at_work else None,
        seconds=max(0, now - words[Word.STARTED]) / 1e9 if at_work else 0.0,
        done=words[Word.DONE],
        failed=words[Word.FAILED],
        replaced=words[Word.REPLACED],
    )


def take(master: Master, name: str, state: str, start_method: str) -> PoolStatus:
    """A snapshot of a pool of this process; of an ended one, without workers."""
    now = time.monotonic_ns()
    numbers = [] if master.loop.ended else sorted(master.crew.members)
    workers = tuple(read_worker(master.board, number, now) for number in numbers)
    return PoolStatus(
        name=name,
        pid=master.identity.pid,
        state=state,
        start_method=start_method,
        processes=master.nursery.processes,
        uptime=(now - master.created) / 1e9,
        calls=len(master.agenda.unfinished),
        workers=workers,
    )
