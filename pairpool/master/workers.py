"""All workers of a pool, and which of them have room for another batch."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from pairpool.linux import cgroup, pidfds
from pairpool.master.jobs.base import Batch
from pairpool.master.kill_reason import KillReason
from pairpool.master.worker_channel import ChannelTroubles
from pairpool.master.worker_handle import WorkerHandle

__all__ = ["SOON_DONE_WITHIN_S", "WorkerHandle", "WorkerSet"]

CONTINUE_STOPPED_EVERY_S = 0.1
"""Seconds after which a worker that has not exited is continued, in case another process has stopped it."""

MAX_WORKERS_COMPARED = 64
"""Workers among which the least loaded one is chosen, at most."""

SOON_DONE_WITHIN_S = 0.010
"""Seconds for which a worker that began a batch counts as a worker that will soon be done."""

MAX_WORKERS_ASKED_FOR_ROOM = 8
"""Workers with one batch that are asked for room, at most: the batches of one call take equally long on each worker."""


class WorkerSet:
    """All workers of a pool, and which of them have room.

    Attributes:
        cores: the number of cores that this process may use.
        members: the workers on duty, which get batches, by number.
        finished: the workers that get no more batches and hold none, until the supervisor retires them.
        leaving: the workers that were told to exit and have not ended.
        watched: the workers that run a batch of several items, which may take long.
        empty: the workers on duty that hold no batch, in the order in which they became empty.
        troubles: the workers whose channels need attention.
    """

    def __init__(self) -> None:
        self.members: dict[int, WorkerHandle] = {}
        self.finished: list[WorkerHandle] = []
        self.leaving: list[WorkerHandle] = []
        self.watched: dict[WorkerHandle, None] = {}
        self.troubles = ChannelTroubles()
        self.empty: OrderedDict[WorkerHandle, None] = OrderedDict()
        self._with_one_batch: dict[WorkerHandle, None] = {}
        self._recent: dict[WorkerHandle, float] = {}  # when workers began what they run, the earliest first
        self._updating: WorkerHandle | None = None
        self.cores = cgroup.cpu_allowance()

    def __iter__(self) -> Iterator[WorkerHandle]:
        yield from list(self.members.values())
        yield from list(self.leaving)

    def has_started(self) -> bool:
        """Return whether the initializers of all workers on duty have returned."""
        return all(handle.started for handle in list(self.members.values()))

    @property
    def size(self) -> int:
        return max(1, len(self.members))

    def is_on_duty(self, handle: WorkerHandle) -> bool:
        return self.members.get(handle.number) is handle

    # --- exceptions that interrupt the engine ---------------------------------------------------

    def begin_update(self, handle: WorkerHandle) -> None:
        """Note that the state of a handle is about to change.

        An exception of a signal handler can interrupt the engine at any point. If that happens before `end_update`,
        the handle may not match its worker, and `recover` kills the worker.
        """
        self._updating = handle

    def end_update(self) -> None:
        """Note that the change is complete."""
        self._updating = None

    def recover(self) -> set[int]:
        """After an exception interrupted the engine, kill the worker whose handle was being changed.

        Return the numbers of the batches that workers hold.
        """
        for one in list(self.members.values()):
            self.place(one)
        handle = self._updating
        if handle is not None and not handle.eof_sent:
            handle.kill_inconsistent()
        self._updating = None
        return {batch.number for one in self for batch in one.held}

    # --- room -----------------------------------------------------------------------------------

    def add(self, handle: WorkerHandle) -> None:
        """Put a new worker on duty. `place_new` must follow."""
        self.members[handle.number] = handle

    def place_new(self, handle: WorkerHandle) -> None:
        """Queue a new worker behind the workers that have already run a task, in order of start time.

        The oldest of the new workers becomes ready first.
        """
        self.place(handle)
        if handle in self.empty:
            self.empty.move_to_end(handle, last=False)

    def place(self, handle: WorkerHandle) -> None:
        """Note how much room a worker has. Call this after its batches or its state have changed."""
        self.empty.pop(handle, None)
        self._with_one_batch.pop(handle, None)
        if not handle.held:
            self.watched.pop(handle, None)
            self._recent.pop(handle, None)
        if handle.retiring or handle.is_aside or not self.is_on_duty(handle):
            return
        if not handle.held:
            self.empty[handle] = None
        elif len(handle.held) == 1:
            self._with_one_batch[handle] = None

    def with_room(self, spread: int, now: float) -> WorkerHandle | None:
        """Return a worker that can take a batch: one that holds none, or one whose only batch is short.

        Args:
            spread: workers that may have begun a batch lately before an idle worker is woken (`Sizer.spread`).
            now: monotonic seconds.
        """
        if self.empty and self.may_wake(spread, now):
            return next(reversed(self.empty))  # the last one to finish: its caches are warm, and it may still spin
        for handle in itertools.islice(self._with_one_batch, MAX_WORKERS_ASKED_FOR_ROOM):
            sizer = handle.held[0].job.sizer
            if sizer.is_short() and not (sizer.grows and spread == 1):
                return handle
        return None

    def may_wake(self, spread: int, now: float) -> bool:
        """Return whether an idle worker may get work: fewer than `spread` workers began a batch lately.

        "Lately" means less than `SOON_DONE_WITHIN_S` ago.
        """
        recent = self._recent
        if len(recent) < spread:
            return True
        while recent and next(iter(recent.values())) < now - SOON_DONE_WITHIN_S:
            del recent[next(iter(recent))]
        return len(recent) < spread

    def has_a_core_free(self) -> bool:
        """Return whether a core is left for the master while all workers that hold a batch run."""
        return len(self.members) - len(self.empty) < self.cores

    def least_loaded(self, spread: int, now: float, at_most: int) -> WorkerHandle | None:
        """Return the worker that holds the fewest batches, if it holds fewer than `at_most`.

        This is for work that no caller waits for yet.
        """
        among = self.members.values() if self.may_wake(spread, now) else self._recent
        compared = itertools.islice(among, MAX_WORKERS_COMPARED)
        on_duty = [handle for handle in compared if not (handle.retiring or handle.is_aside)]
        handle = min(on_duty, key=lambda one: len(one.held), default=None)
        return handle if handle is not None and len(handle.held) < at_most else None

    def started(self, handle: WorkerHandle, batch: Batch, now: float) -> None:
        """Note that a worker runs this batch from `now` on."""
        self._recent.pop(handle, None)
        self._recent[handle] = now
        batch.started(now)
        if batch.count > 1 and batch.job.sizer.chunksize is None:
            self.watched[handle] = None

    def unwatch(self, handle: WorkerHandle) -> None:
        """Note that the batch that a worker runs need not be watched any more."""
        self.watched.pop(handle, None)

    # --- the end --------------------------------------------------------------------------------

    def kill_for(self, handle: WorkerHandle, reason: KillReason) -> None:
        """Kill a worker for a reason that its death will tell. It gets no more batches."""
        handle.kill_for(reason)
        self.place(handle)
        handle.kill()

    def take_off_duty(self, handle: WorkerHandle) -> None:
        """Give a worker no more batches and let it exit."""
        handle.retire()
        del self.members[handle.number]
        self.leaving.append(handle)
        self.place(handle)
        handle.send_eof()

    def finish(self, handle: WorkerHandle) -> None:
        """Note that a worker which gets no more batches holds none. The supervisor retires it."""
        self.finished.append(handle)

    def remove(self, handle: WorkerHandle) -> None:
        """Remove a worker that has ended."""
        if self.is_on_duty(handle):
            del self.members[handle.number]
        else:
            self.leaving.remove(handle)
        self.place(handle)

    def kill(self, chosen: Callable[[WorkerHandle], bool]) -> None:
        """Kill the workers for which `chosen` returns true."""
        for handle in self:
            if chosen(handle):
                handle.kill()

    def end(self, grace: float | None, *, is_busy: Callable[[WorkerHandle], bool]) -> None:
        """End all workers. Busy workers are killed at once.

        Args:
            grace: seconds after which the other workers are killed, too; None for no limit.
        """
        workers = list(self)
        self.kill(is_busy)
        for handle in workers:
            if not (is_busy(handle) or handle.eof_sent):
                handle.send_eof()
        deadline = None if grace is None else time.monotonic() + grace
        for handle in workers:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not _wait_for_exit(handle, left):
                handle.kill()
                pidfds.wait_ended(handle.pidfd.fileno(), None)
            handle.take_held()
            handle.close()
        self.members.clear()
        self.leaving.clear()
        for place in (self.watched, self.empty, self._with_one_batch, self._recent):
            place.clear()


def _wait_for_exit(handle: WorkerHandle, timeout: float | None) -> bool:
    """Wait until a worker has exited, and continue it if another process has stopped it. Return False if time is up."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = max(0.0, deadline - time.monotonic())
        if pidfds.wait_ended(handle.pidfd.fileno(), min(left, CONTINUE_STOPPED_EVERY_S)):
            return True
        if left <= CONTINUE_STOPPED_EVERY_S:
            return False
        if pidfds.state_of(handle.pid) == "T":
            pidfds.send_signal(handle.pidfd.fileno(), signal.SIGCONT)
