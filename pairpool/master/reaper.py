"""Settle what a dead worker leaves: its unread batches, its unfinished items, its descriptors.

1. The report reader reads the reports that the worker had sent.
2. The reaper takes back the batches that the worker had not read. They run on other workers.
3. The reaper attributes the death: the item that the worker was at fails, and the other items run again.
4. The reaper returns the death. The supervisor decides whether another worker takes the place.
"""

from __future__ import annotations

from pairpool.linux import descriptors
from pairpool.linux.cgroup import OomCounter
from pairpool.master.jobs.base import Batch
from pairpool.master.metrics import arguments_of
from pairpool.master.parts import EngineParts
from pairpool.master.worker_death import WorkerDeath
from pairpool.master.workers import WorkerHandle
from pairpool.scoreboard.board import Word

__all__ = ["Reaper"]

MAX_UNEXPLAINED_DEATHS = 4
"""Workers that may die of a batch without a sign of the item that they were at. Such deaths are rare: a kill between
two steps of the worker. If there are more, a task hides them, so the items run alone, and then they fail."""

OUTSIDE_KILL_WEIGHT = 0.25
"""Weight of a death during the unpickling of a function, if another process may have killed the worker (else 1)."""


class Reaper:
    """Reap workers that have ended.

    Args:
        parts: the other parts of the engine.
        stacks: the memfd to which workers write their stacks at a fault.
    """

    def __init__(self, parts: EngineParts, stacks: descriptors.Descriptor) -> None:
        self._loop = parts.loop
        self._workers = parts.workers
        self._queue = parts.queue
        self._watchdog = parts.watchdog
        self._metrics = parts.metrics
        self._stacks = stacks
        self._oom = OomCounter()

    def reap(self, worker: WorkerHandle) -> WorkerDeath | None:
        """Settle what a dead worker leaves, and close its handle; signals are held back by the caller.

        Return the death, or None if the worker had been told to exit.

        The loop watches the pidfd until the end of this function. If an exception interrupts the function, the loop
        reports the death again in the next turn, and the function runs once more.
        """
        self._workers.begin_update(worker)
        death = None
        if worker.eof_sent:
            worker.take_held()
        else:
            self._loop.unwatch(worker.channel.fileno())
            recalled = worker.recall()
            unfinished = worker.take_held()
            if unfinished:
                worker.received()
            death = WorkerDeath(worker, self._stacks.fileno(), self._oom)
            self._settle(death, unfinished, recalled)
            worker.slot.store(Word.PID, 0)
        self._watchdog.forget(worker)
        self._loop.unwatch(worker.pidfd.fileno())
        self._workers.remove(worker)
        worker.close()
        self._workers.end_update()
        return death

    def _settle(self, death: WorkerDeath, unfinished: list[Batch], recalled: list[Batch]) -> None:
        """Send the dead worker's batches out again, without the item that it was at."""
        worker = death.worker
        if death.is_at_startup:
            self._metrics.worker_left(worker, death.reason)
            self._queue.put_back(recalled)
            self._queue.put_back(unfinished)
            return
        number = death.function_being_loaded
        # A worker loads a function before it reads the batch that needs it. In a batch, a task has stored this state.
        if number is not None and not unfinished and any(number in one.function_numbers() for one in recalled):
            weight = OUTSIDE_KILL_WEIGHT if death.is_from_outside else 1.0
            if not death.went_with_zygote:
                self._queue.functions.count_crash(number, weight)
        self._queue.put_back(recalled)
        for batch in unfinished:
            self._attribute(death, batch, unfinished)
        # Report the death last: in a trace, the lost item comes before the death of its worker.
        self._metrics.worker_left(worker, death.reason)

    def _attribute(self, death: WorkerDeath, batch: Batch, unfinished: list[Batch]) -> None:
        """Fail the item of a batch that the worker was at, if any, and send the other items out again."""
        offset = death.failed_item(batch, unfinished)
        if offset is None and batch.is_handed_over:
            offset = 0  # the worker was about to run the only item, and the item's descriptors are gone with the worker
        if offset is None and batch is unfinished[0] and not death.went_with_zygote:
            batch.count_unexplained_death()
            if batch.unexplained_deaths > MAX_UNEXPLAINED_DEATHS and batch.count == 1:
                offset = 0
        if offset is None:
            if death.is_in_doubt(batch) or batch.unexplained_deaths > MAX_UNEXPLAINED_DEATHS:
                batch.mark_individual()
            self._queue.put_back([batch])
            return
        index = batch.first + offset if batch.targets is None else 0
        error = death.error(self._metrics.name_of(batch, offset), index, arguments_of(batch, offset))
        lost = self._queue.split_off(batch, offset)
        self._metrics.item_lost(death.worker, lost, error)
        self._queue.fail(lost, error)
