"""Notice work that a worker holds and does not begin, and bring it to another worker.

A worker that is idle reads its next packet at once. If it does not, one of these has happened:

| what has happened | what the master finds |
| --- | --- |
| the worker was stopped by a signal, or hangs while it starts | the packet is unread: the recall takes it back |
| a child of a task has read the packet, or a filter has dropped it | nothing comes back |

1. After `RECALL_AFTER_S` the master takes back what the worker has not read. It sends a packet without meaning
   (`StartPacket`), and sends the worker no batches until the worker has read that packet.
2. After `KILL_AFTER_S` the master kills a worker that has read its packet and has not begun the batch. It also kills a
   worker that has not read, if it is idle or stopped. The batches of a dead worker go out again. A worker that a
   debugger has stopped is left alone.

A worker that waits for a core looks the same. What it has not read runs elsewhere then, and it loses nothing.
"""

from __future__ import annotations

import time

from pairpool.linux import pidfds
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.kill_reason import work_not_begun
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.scoreboard.board import State, Word
from pairpool.transport.protocol import StartPacket

__all__ = ["LostWork"]

RECALL_AFTER_S = 1.0
"""Seconds after which a batch that an idle worker has not begun is taken back."""

KILL_AFTER_S = 5.0
"""Seconds after which an idle worker that has not begun its batch, or does not read, is killed."""

_IDLE_STATES = (State.EMPTY, State.IDLE)
"""States of a worker that has no batch, or has not read the one that it was sent. A new worker is EMPTY."""


class LostWork:
    """Looks for batches that are held and not begun. Only the leader uses it."""

    def __init__(self, queue: JobQueue, workers: WorkerSet) -> None:
        self._queue = queue
        self._workers = workers
        self._aside_since: dict[WorkerHandle, float] = {}
        self._has_changed = False
        self._checked: dict[WorkerHandle, int] = {}  # the number of the batch for which a recall brought nothing

    def look(self) -> bool:
        """Look once. The engine calls this a few times per second while there is work.

        Return whether work came back, or a worker that can take work.
        """
        now = time.monotonic()
        self._has_changed = False
        for worker in [one for one in self._checked if not self._workers.is_on_duty(one)]:
            del self._checked[worker]
        for worker in list(self._aside_since):
            self._look_at_aside(worker, now)
        for worker in list(self._workers.members.values()):
            if worker.held and worker.kill_reason is None and _has_not_begun(worker):
                self._look_at_owing(worker, now)
        return self._has_changed

    def _look_at_owing(self, worker: WorkerHandle, now: float) -> None:
        batch = worker.held[0]
        waited = now - batch.running_since
        if waited < RECALL_AFTER_S or worker.has_packet():
            return
        if self._checked.get(worker) != batch.number:
            self._recall(worker, now)
        elif waited >= KILL_AFTER_S and pidfds.state_of(worker.pid) != "t":
            self._checked.pop(worker)
            # A worker that is idle has reported the batch of which it shows the number. So a task has stored the state.
            is_forged = worker.slot.words[Word.BATCH] == batch.number
            self._workers.kill_for(worker, work_not_begun(KILL_AFTER_S, batch.number if is_forged else 0))

    def _recall(self, worker: WorkerHandle, now: float) -> None:
        """Take back what a worker has not read."""
        first = worker.held[0]
        self._workers.begin_update(worker)
        recalled = worker.recall()
        if first in recalled:
            worker.post(StartPacket())
            worker.set_aside(True)
            self._aside_since[worker] = now
        else:
            self._checked[worker] = first.number
        self._queue.put_back(recalled)
        self._has_changed = self._has_changed or bool(recalled)
        self._workers.place(worker)
        self._workers.end_update()

    def _look_at_aside(self, worker: WorkerHandle, now: float) -> None:
        """Give a worker work again if it has read its packet, or kill it after some time."""
        since = self._aside_since[worker]
        if not self._workers.is_on_duty(worker) or worker.kill_reason is not None:
            del self._aside_since[worker]
        elif not worker.has_unread():
            del self._aside_since[worker]
            worker.set_aside(False)
            self._workers.place(worker)
            self._has_changed = True
        elif now - since >= KILL_AFTER_S - RECALL_AFTER_S and _may_be_killed(worker):
            del self._aside_since[worker]
            self._workers.kill_for(worker, work_not_begun(KILL_AFTER_S, 0))


def _has_not_begun(worker: WorkerHandle) -> bool:
    """Return whether a worker is not at the first batch that it holds, and has nothing else to do."""
    words = worker.slot.words
    state = words[Word.STATE]
    return state in _IDLE_STATES or (state != State.FUNCTION and words[Word.BATCH] != worker.held[0].number)


def _may_be_killed(worker: WorkerHandle) -> bool:
    """Return whether a worker does nothing. One that has sent a report may still run the finalizers of its items."""
    state = pidfds.state_of(worker.pid)
    return state == "T" or (state != "t" and worker.slot.words[Word.STATE] in _IDLE_STATES)
