"""Watch busy workers: time limits, memory limits, and the memory that they use.

The watchdog reads the scoreboard, and only when an item may have used half of its time limit. An item that begins after
one look cannot reach half of its limit before the next look is due.

A worker that exceeds a limit is ended in these steps:

    1. At half of the limit, the watchdog asks the worker to report the finished items of its batch. Otherwise these
       items would have to run again.
    2. At the limit, the watchdog stops the worker with SIGSTOP and looks again. If the worker has begun another item in
       the meantime, the watchdog lets it go on.
    3. The watchdog sends SIGABRT. faulthandler writes the stack of the task, and the worker ends.
    4. If the worker does not end within `ABORT_WITHIN_S`, the watchdog sends SIGKILL.
"""

from __future__ import annotations

import math
import signal
import time
from typing import NamedTuple

from pairpool.linux import pidfds
from pairpool.linux.memory import format_size, memory_usage_of
from pairpool.master.jobs.base import Batch
from pairpool.master.kill_reason import KillReason
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.scoreboard.board import State, Word

__all__ = ["Watchdog"]

MEMORY_LOOK_EVERY_S = 0.25
"""Seconds between two looks at the memory of busy workers."""

LIMITED_MEMORY_LOOK_EVERY_S = 0.025
"""The same for a pool with a memory limit."""

PICKLING_AT_LEAST_S = 10.0
"""Seconds that unpickling a batch's arguments, or pickling its results, may take, however short the time limit is."""

ABORT_WITHIN_S = 0.030
"""Seconds between SIGABRT and SIGKILL, in which a worker writes its stack and ends."""

REPORT_WITHIN_S = 0.020
"""Seconds that a worker gets at least to report finished items before it is ended at a limit."""

CANCELLED_REPORT_WITHIN_S = 0.250
"""The same for a worker that runs a cancelled item. Nobody waits for this item, so that there is more time."""

RESUMED_WITHIN_S = 0.005
"""Seconds within which a worker that runs Python code has reported, and has gone on with its item."""

_AT_WORK = (State.LOADING, State.RUNNING, State.KEEPING, State.SAVING)

_PICKLING = (State.LOADING, State.KEEPING, State.SAVING, State.SENDING)
"""States in which the time limit is at least `PICKLING_AT_LEAST_S`. In any other state, an item counts as running,
because a task can store any number."""

_WITHOUT_ITEM = (State.EMPTY, State.STARTING, State.IDLE)
"""States of a worker that runs no item. `lost_work.py` ends a worker that owes a batch and stays in one of them."""


class _Position(NamedTuple):
    """The position of a worker in its work, as the scoreboard shows it."""

    batch: int
    item: int
    state: int
    started: int


class _Start(NamedTuple):
    """The state of a worker when it was forked."""

    at_s: float
    private_bytes: int


class Watchdog:
    """Watch the workers of a pool. Only the leader uses it.

    Args:
        workers: the workers.
        memory_limit: private bytes that a worker may have in addition to those that it inherited; None for any number.
        start_timeout: seconds that an initializer may take; None for any time.

    Attributes:
        at: when the next look is due (monotonic seconds); infinite if no worker is busy.
    """

    def __init__(self, workers: WorkerSet, memory_limit: int | None, start_timeout: float | None) -> None:
        self._workers = workers
        self.memory_limit = memory_limit
        self.start_timeout = start_timeout
        self._memory_look_every_s = MEMORY_LOOK_EVERY_S if memory_limit is None else LIMITED_MEMORY_LOOK_EVERY_S
        self._next_memory_look = 0.0
        self._starts: dict[WorkerHandle, _Start] = {}
        self._kill_at: dict[WorkerHandle, float] = {}  # workers that were sent SIGABRT, with the time for SIGKILL
        self.at = math.inf

    # --- when to look ---------------------------------------------------------------------------

    def expect_work(self) -> None:
        """Plan a look at the memory of busy workers, because there is something to do."""
        if self.at == math.inf:
            self.at = self._next_memory_look = time.monotonic() + self._memory_look_every_s

    def expect(self, seconds: float) -> None:
        """Plan a look in this many seconds at the latest."""
        self.at = min(self.at, time.monotonic() + seconds)

    def enlist(self, worker: WorkerHandle) -> None:
        """Watch a new worker."""
        usage = memory_usage_of(worker.pid) if self.memory_limit is not None else None
        self._starts[worker] = _Start(time.monotonic(), 0 if usage is None else usage.private)
        if self.start_timeout is not None and not worker.started:
            self.expect(self.start_timeout)

    def forget(self, worker: WorkerHandle) -> None:
        """Watch a worker that has ended no more."""
        self._starts.pop(worker, None)
        self._kill_at.pop(worker, None)

    # --- looking --------------------------------------------------------------------------------

    def look(self) -> None:
        """End the workers that exceed a limit, and plan the next look."""
        now = time.monotonic()
        is_any_busy = False
        self.at = math.inf
        is_memory_due = now >= self._next_memory_look
        for worker in list(self._workers.members.values()):
            if worker.kill_reason is not None:
                self._kill_if_due(worker, now)
            elif not worker.started:
                self._look_at_start(worker, now)
            elif worker.held:
                is_any_busy = True
                self._look_at_time(worker, now)
                if is_memory_due:
                    self._look_at_memory(worker)
        if is_any_busy:
            if is_memory_due:
                # One look takes a while with many workers, so that it must not come too often.
                self._next_memory_look = now + max(self._memory_look_every_s, len(self._workers.members) * 0.001)
            self.at = min(self.at, self._next_memory_look)

    def _kill_if_due(self, worker: WorkerHandle, now: float) -> None:
        at = self._kill_at.get(worker, now)
        if at <= now:
            worker.kill()
        else:
            self.at = min(self.at, at)

    def _look_at_start(self, worker: WorkerHandle, now: float) -> None:
        limit = self.start_timeout
        if limit is None:
            return
        due = self._starts[worker].at_s + limit
        if now < due:
            self.at = min(self.at, due)
        elif not worker.has_packet():
            cause = f" had not returned within {limit:g} s (start_timeout)"
            self._abort(worker, KillReason(0, 0, limit, cause, ""))

    def _look_at_time(self, worker: WorkerHandle, now: float) -> None:
        position = _position_of(worker)
        if now > _latest_end(worker.held[0]) and position.state != State.FUNCTION and not worker.has_packet():
            limit = worker.held[0].job.options.task_timeout or 0.0
            self._abort(worker, KillReason(worker.held[0].number, 0, limit, "", "", blames_batch=True))
            return
        batch = next((one for one in worker.held if one.number == position.batch), None)
        limits = [one.job.options.task_timeout for one in worker.held]
        if batch is None or position.state in _WITHOUT_ITEM or batch.job.options.task_timeout is None:
            shortest = min((limit for limit in limits if limit is not None), default=math.inf)
            self.at = min(self.at, now + shortest / 2)
            return
        limit = batch.job.options.task_timeout
        allowed = max(limit, PICKLING_AT_LEAST_S) if position.state in _PICKLING else limit
        started = position.started / 1e9
        due = (started if started <= now else batch.running_since) + allowed  # a task can have stored a later start
        half = due - limit / 2
        if now < half:
            self.at = min(self.at, half)
            return
        owes_report = self._request_report(worker, batch, position, now)
        if now < due:
            again = max(batch.next_report_request, now + RESUMED_WITHIN_S) if owes_report else due
            self.at = min(self.at, due, again)
        elif now < batch.first_report_request + (REPORT_WITHIN_S if owes_report else RESUMED_WITHIN_S):
            self.at = min(self.at, now + RESUMED_WITHIN_S)
        elif worker.has_packet():
            self.at = min(self.at, now + RESUMED_WITHIN_S)  # its report has arrived, and is read in this turn
        elif not self._abort_at(worker, position, KillReason(batch.number, position.item, limit, "", "")):
            self.at = min(self.at, now + limit)

    def _look_at_memory(self, worker: WorkerHandle) -> None:
        usage = memory_usage_of(worker.pid)
        if usage is None:
            return
        worker.slot.store(Word.RSS, usage.resident)
        used = usage.private - self._inherited_bytes(worker)
        if self.memory_limit is None or used <= self.memory_limit:
            return
        position = _position_of(worker)
        if position.state in _AT_WORK and any(one.number == position.batch for one in worker.held):
            self._abort_at(worker, position, self._over_memory(position, used, self.memory_limit))

    def _inherited_bytes(self, worker: WorkerHandle) -> int:
        return self._starts[worker].private_bytes if worker in self._starts else 0

    def _over_memory(self, position: _Position, used: int, limit: int) -> KillReason:
        cause = f"memory_limit: it used {format_size(used)} of its own, and the limit is {format_size(limit)}"
        return KillReason(position.batch, position.item, 0.0, cause, "raise memory_limit=, or give it smaller items")

    def is_too_large(self, worker: WorkerHandle) -> bool:
        """Return whether a worker that has finished a batch exceeds the memory limit."""
        if self.memory_limit is None:
            return False
        usage = memory_usage_of(worker.pid)
        return usage is not None and usage.private - self._inherited_bytes(worker) > self.memory_limit

    # --- reports of finished items --------------------------------------------------------------

    def _request_report(self, worker: WorkerHandle, batch: Batch, position: _Position, now: float) -> bool:
        """Ask a worker to report the finished items of its batch; return False if it has none to report.

        After the first request the position does not count any more: while the worker pickles the report, the
        scoreboard shows it at the items of the report.
        """
        if not batch.report_requests:
            finished = batch.count if position.state == State.SAVING else position.item - batch.first
            if position.state == State.LOADING or not 0 <= finished <= batch.count or not batch.has_waiting(finished):
                return False
        if not batch.report_requests or now >= batch.next_report_request:
            worker.request_partial_report(batch, now)
        return True

    # --- ending a worker ------------------------------------------------------------------------

    def _abort_at(self, worker: WorkerHandle, position: _Position, reason: KillReason) -> bool:
        """End a worker if it is still at this position; return False if it has gone on."""
        was_running = pidfds.halt(worker.pidfd.fileno(), worker.pid)
        if _position_of(worker) != position:
            if was_running:
                pidfds.send_signal(worker.pidfd.fileno(), signal.SIGCONT)
            return False
        self._abort(worker, reason)
        return True

    def _abort(self, worker: WorkerHandle, reason: KillReason) -> None:
        worker.kill_for(reason)
        worker.end_descendants()
        pidfds.abort(worker.pidfd.fileno(), worker.pid)
        self._kill_at[worker] = time.monotonic() + ABORT_WITHIN_S
        self.expect(ABORT_WITHIN_S)

    def kill(self, worker: WorkerHandle, batch: Batch, item: int | None) -> bool:
        """End a worker by SIGKILL if it is at `item` of `batch` (None: at any item); return False if it is not.

        A worker that has finished items to report first gets some time for that, and the caller tries again.
        """
        position = _position_of(worker)
        if item is not None and position.batch == batch.number:
            now = time.monotonic()
            owes_report = self._request_report(worker, batch, position, now)
            if owes_report and now < batch.first_report_request + CANCELLED_REPORT_WITHIN_S:
                return False
        was_running = pidfds.halt(worker.pidfd.fileno(), worker.pid)
        position = _position_of(worker)
        if position.batch == batch.number and position.state in _AT_WORK and item in (None, position.item):
            worker.kill()
            return True
        if was_running:
            pidfds.send_signal(worker.pidfd.fileno(), signal.SIGCONT)
        return False


def _latest_end(batch: Batch) -> float:
    """Return when a batch with a time limit has ended at the latest (monotonic seconds), whatever the scoreboard shows.

    The limit counts for each item while it runs. It also counts, or `PICKLING_AT_LEAST_S`, while the item is unpickled
    and while its result is pickled. A task can store a later start again and again, but it cannot exceed this sum.
    """
    limit = batch.job.options.task_timeout
    if limit is None:
        return math.inf
    return batch.running_since + (batch.sent_until - batch.sent_from) * (limit + 2 * max(limit, PICKLING_AT_LEAST_S))


def _position_of(worker: WorkerHandle) -> _Position:
    """Read the position of a worker from the scoreboard.

    The order of the reads fits the order of the worker's stores: it stores the start of an item before the item's
    index, and the number of a batch last.
    """
    words = worker.slot.words
    return _Position(words[Word.BATCH], words[Word.ITEM], words[Word.STATE], words[Word.STARTED])
