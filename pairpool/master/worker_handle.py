"""One worker as the master sees it: its process, the batches that it holds, and its state."""

from __future__ import annotations

import signal
from collections import deque

from pairpool.linux import descriptors, pidfds
from pairpool.master.jobs.base import Batch, Target
from pairpool.master.kill_reason import KillReason
from pairpool.master.worker_channel import ChannelTroubles, WorkerChannel
from pairpool.master.zygotes import Zygote
from pairpool.scoreboard.board import NOTHING, Word
from pairpool.scoreboard.master_board import MasterSlot
from pairpool.transport.protocol import REPORT_SIGNAL
from pairpool.transport.spawning import Spawned

__all__ = ["WorkerHandle"]

REPORT_REQUEST_INTERVAL_S = 0.010
"""Seconds after which a worker that has not reported is asked again. The interval doubles with each request."""

MAX_REPORT_REQUEST_INTERVAL_S = 1.0
"""The longest such interval."""


class WorkerHandle(WorkerChannel):
    """One worker, from its start until its descriptors are closed.

    Args:
        spawned: what the zygote handed over. The handle owns its descriptors from here on.
        slot: the part of the scoreboard that belongs to the worker.
        zygote: the process that forked the worker.
        troubles: see `WorkerChannel`.
        started: whether the worker is ready, because it has no initializer.
        is_first: whether the worker is the first one in its place, and not a replacement.

    Attributes:
        held: the batches that the worker has and has not reported. It runs the first of them.
        tasks_sent: tasks sent to the worker, as maxtasksperchild counts them.
        started: whether the initializer has returned, or there is none.
        is_ready: whether the worker has said that its initializer has returned.
        has_received: whether the worker is known to have read a packet.
        initializer_traceback: the traceback of the initializer, if it raised.
        kill_reason: why the master kills the worker; None if it does not.
        inconsistent: whether an exception interrupted the engine while it changed this handle. The worker is killed.
        retiring: whether the worker gets no more batches.
        is_misused: whether the worker's packets are not read any more, because a task has misused the channel.
        is_aside: whether the worker gets no batches now, because it does not read its packets.
    """

    def __init__(
        self,
        spawned: Spawned,
        slot: MasterSlot,
        zygote: Zygote,
        troubles: ChannelTroubles,
        *,
        started: bool,
        is_first: bool,
    ) -> None:
        super().__init__(spawned, troubles)
        self.number = spawned.slot
        self.serial = spawned.serial
        self.pid = spawned.pid
        self.pidfd = spawned.pidfd
        self.slot = slot
        self.zygote = zygote
        self.held: deque[Batch] = deque()
        self.tasks_sent = 0
        self.started = started
        self.is_ready = self.has_received = False
        self.is_first = is_first
        self.initializer_traceback: str | None = None
        self.kill_reason: KillReason | None = None
        self.inconsistent = False
        self.retiring = False
        self.is_misused = False
        self.is_aside = False
        descriptors.own(self.pidfd)

    # --- life -----------------------------------------------------------------------------------

    def initializer_returned(self) -> None:
        """Note that the worker is ready."""
        self.started = self.is_ready = self.has_received = True

    def received(self) -> None:
        """Note that the worker has read a packet."""
        self.has_received = True

    def initializer_failed(self, traceback: str) -> None:
        """Keep the traceback. The worker ends by itself, and the supervisor acts on its death."""
        self.initializer_traceback = traceback

    def retire(self) -> None:
        """Give the worker no more batches."""
        self.retiring = True

    def set_aside(self, aside: bool) -> None:
        """Give the worker no batches for now, or give it batches again."""
        self.is_aside = aside

    def kill(self) -> None:
        """End the worker at once."""
        self.end_descendants()
        pidfds.send_signal(self.pidfd.fileno(), signal.SIGKILL)

    def end_descendants(self) -> None:
        """Kill what the worker has started, if that cannot be found after its death. The worker may be stopped then."""
        self.zygote.end_descendants(self.serial)

    def kill_for(self, reason: KillReason) -> None:
        """Note why the worker is killed. It gets no more batches."""
        self.kill_reason = reason
        self.retiring = True

    def stop_reading(self) -> None:
        """Read no packet of the worker any more, because a task has misused the channel."""
        self.is_misused = True

    def kill_inconsistent(self) -> None:
        """Kill the worker because an exception interrupted a change of this handle."""
        self.inconsistent = True
        self.kill()

    def close(self) -> None:
        """Release all descriptors: the worker has ended or is about to end."""
        super().close()
        descriptors.disown(self.pidfd)
        self.pidfd.close()

    # --- batches --------------------------------------------------------------------------------

    def hold(self, batch: Batch) -> None:
        """Note that the batch is sent to the worker."""
        self.held.append(batch)
        batch.assigned_to(self.number, batch.first, batch.count)

    def drop(self, batch: Batch) -> None:
        """Note that the batch could not be sent."""
        self.held.remove(batch)

    def finish_first(self) -> None:
        """Note that the worker has reported the whole batch that it ran."""
        self.has_received = True
        if not self.frees_payload_of(self.held.popleft().number):
            self.retire()

    def holds(self, number: int) -> bool:
        """Return whether the worker holds the batch with this number."""
        return any(batch.number == number for batch in self.held)

    def drop_before(self, number: int) -> list[Batch]:
        """Return the batches before the one with this number. The handle holds them no more."""
        dropped = []
        while self.held[0].number != number:
            dropped.append(self.held.popleft())
        return dropped

    def take_held(self) -> list[Batch]:
        """Return all batches that the worker held. The handle holds none from now on."""
        held = list(self.held)
        self.held.clear()
        return held

    def count_sent(self, tasks: int, maxtasks: int) -> None:
        """Count tasks that were sent. After `maxtasks` of them, the worker retires."""
        self.tasks_sent += tasks
        if self.tasks_sent >= maxtasks:
            self.retiring = True

    def recall(self) -> list[Batch]:
        """Take back every batch that the worker has not read. Return them in order.

        1. Each packet that the worker has not read comes back.
        2. The handle stops holding the batches among these packets. If an exception interrupts the engine from here on,
           `JobQueue.recover` finds the batches.
        3. Packets of other kinds go out again.
        """
        packets = self.recall_packets()
        recalled = [batch for batch in self.held if batch.number in packets.batches]
        for batch in recalled:
            self.held.remove(batch)
        self.send_again(packets)
        return recalled

    def set_limit(self, batch: Batch, index: int, now: float) -> None:
        """Tell the worker not to begin the item at `index` nor any later item of the batch that it runs."""
        batch.set_limit(index, now)
        self.slot.words[Word.LIMIT] = index

    def clear_limit(self) -> None:
        self.slot.words[Word.LIMIT] = NOTHING

    def request_partial_report(self, batch: Batch, now: float) -> None:
        """Ask the worker to report the finished items of the batch that it runs."""
        pidfds.send_signal(self.pidfd.fileno(), REPORT_SIGNAL)
        interval = min(MAX_REPORT_REQUEST_INTERVAL_S, REPORT_REQUEST_INTERVAL_S * 2**batch.report_requests)
        batch.report_requested(now, now + interval)

    def runs(self, target: Target) -> bool:
        """Return whether the worker runs the single call with this target, according to the scoreboard."""
        number, item = self.slot.words[Word.BATCH], self.slot.words[Word.ITEM]
        for batch in self.held:
            if batch.targets is not None and batch.number == number and 0 <= item - batch.first < batch.count:
                return batch.targets[item - batch.first] is target
        return False
