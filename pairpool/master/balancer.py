"""Recall and hand-back: move work from busy workers to idle ones.

*Recall* takes whole batches back that a worker has not read:

1. A worker is idle and the queue has nothing to send.
2. The master reads packets back from the worker that has run its present batch the longest and holds more batches.
3. These batches go out again, to the idle worker.

*Hand-back* takes items back out of the batch that a worker runs. The worker stores the index of each item on the
scoreboard (ITEM) and then reads the limit (LIMIT). The master works in the opposite order:

1. The master sees that a batch has run for `HAND_BACK_AFTER_S`. It stores LIMIT = ITEM + 1.
2. It waits `LIMIT_VISIBLE_AFTER_S`, until the store has reached the core of the worker. Then it reads ITEM again.
3. If ITEM is still below the limit, the worker cannot begin an item at or above the limit: it stores ITEM before it
   reads LIMIT, so that it sees either the limit or was seen beyond it. These items go to other workers at once,
   even while the worker runs a long item.
4. If ITEM has reached the limit, the worker stops there by itself and reports.

In a batch of many short items the worker does not read LIMIT before each item. It owns all items below BOUND, and only
items from BOUND on are handed back. A signal makes the worker lower BOUND and report (*partial report*):

1. The master sends the signal (`WorkerHandle.request_partial_report`).
2. The worker reports the items that it has finished, and goes on.
3. The master cuts these items off the batch. Callers that wait for them get their results before the batch ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pairpool.master.jobs.base import Job
from pairpool.master.jobs.map import MapJob
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.scoreboard.board import State, Word

__all__ = ["HAND_BACK_AFTER_S", "Balancer"]

HAND_BACK_AFTER_S = 0.010
"""Seconds that a batch of several items may run before its worker is told to hand back the rest."""

CHECK_INTERVAL_S = HAND_BACK_AFTER_S / 5
"""Seconds between two checks of the batches that run, at least."""

LIMIT_VISIBLE_AFTER_S = 0.002
"""Seconds after which a store to the scoreboard has certainly reached the other core."""


class Balancer:
    """Takes back work that an idle worker could do."""

    def __init__(self, queue: JobQueue, workers: WorkerSet) -> None:
        self._queue = queue
        self._workers = workers
        self._last_check = 0.0

    def recall_for_idle(self, spread: Callable[[Job], int]) -> tuple[bool, bool]:
        """Take unread batches from behind long ones, because workers are idle and the queue has nothing to send.

        Args:
            spread: returns the number of workers that the items of a job are spread among.

        Returns:
            whether a batch can go out again, and whether a worker kept its batches because it will soon be done.
        """
        loaded = [handle for handle in self._workers.members.values() if len(handle.held) > 1]
        loaded.sort(key=lambda handle: handle.held[0].running_since)
        found = is_held_back = False
        now = time.monotonic()
        for handle in loaded[: len(self._workers.empty)]:
            if not self._workers.may_wake(spread(handle.held[-1].job), now):
                is_held_back = True
                continue
            recalled = handle.recall()
            self._queue.put_back(recalled)
            self._workers.place(handle)
            found = found or any(batch.number in batch.job.open for batch in recalled)
        return found, is_held_back

    def hand_back(self) -> None:
        """Take items back from workers that have run a batch of several items for long. See the steps above."""
        now = time.monotonic()
        if now - self._last_check < CHECK_INTERVAL_S:
            return
        self._last_check = now
        for handle in list(self._workers.watched):
            self._check_batch(handle, now)

    def _check_batch(self, handle: WorkerHandle, now: float) -> None:
        batch = handle.held[0]
        words = handle.slot.words
        item = words[Word.ITEM]
        is_running = words[Word.STATE] in (State.RUNNING, State.KEEPING)
        end, bound = batch.first + batch.count, words[Word.BOUND]
        if words[Word.BATCH] != batch.number or not is_running or not batch.first <= item < end:
            return  # it is not at an item of the batch, or its task has stored these words
        if now - batch.running_since <= HAND_BACK_AFTER_S:
            return
        limit = batch.limit
        if not limit and item + 1 < end:
            handle.set_limit(batch, item + 1, now)
        elif limit and now - batch.limit_set_at > LIMIT_VISIBLE_AFTER_S and item < max(limit, bound) < end:
            self._queue.put_back([batch.keep(max(limit, bound) - batch.first)])
        elif item + 1 == end and (item == batch.first or isinstance(batch.job, MapJob)):
            self._workers.unwatch(handle)
        # A partial report helps in two cases: the worker owns all the rest of a batch of short items, or callers may
        # wait for items that are finished. A map has one result, so its caller does not.
        is_wanted = bound >= end > item + 1 or (item > batch.first and not isinstance(batch.job, MapJob))
        if is_wanted and now >= batch.next_report_request:
            handle.request_partial_report(batch, now)
