"""Keep the places of a pool filled: start workers, replace dead ones, resize, retire.

    zygote ── Spawned, SpawnFailed ─► ZygoteClient ─► Supervisor ─► WorkerSet
    pidfd ─── death ────────────────► Reaper ── WorkerDeath ──► Supervisor: replace the worker, or give up
    worker ── packets ──────────────► ReportReader ─ retirements ► Supervisor: replace the worker

The supervisor decides. The other three find out what happened.
"""

from __future__ import annotations

import logging
import signal
import time
from typing import TYPE_CHECKING

from pairpool.linux import pidfds, signals
from pairpool.linux.interrupts import allow_signals
from pairpool.master import call_errors
from pairpool.master.parts import EngineParts
from pairpool.master.reaper import Reaper
from pairpool.master.reports import ReportReader
from pairpool.master.restart_policy import RestartPolicy
from pairpool.master.worker_death import WorkerDeath
from pairpool.master.workers import WorkerHandle
from pairpool.master.zygote_client import ZygoteClient, explain_fork_error
from pairpool.master.zygotes import Zygote
from pairpool.scoreboard.board import State, Word
from pairpool.transport.channel import Lost
from pairpool.transport.protocol import StartPacket
from pairpool.transport.spawning import Spawned, SpawnFailed

if TYPE_CHECKING:
    from pairpool.master.output import Collector

__all__ = ["Supervisor"]

WORKERS_PER_CORE_AT_START = 2
"""Workers per core that must have arrived before a pool is open. The fork of one takes more than a millisecond."""


class Supervisor:
    """Keep the places of a pool filled.

    Args:
        processes: how many workers to keep.
        has_initializer: whether workers report that their initializer returned.
        parts: the other parts of the engine.
        zygote_client: starts workers.
        reports: handles the packets of workers.
        reaper: settles what dead workers leave.

    Attributes:
        processes: how many workers the pool keeps.
        is_starting: whether the pool is not open yet.
        is_closing: whether workers exit when nothing is left to do.
        collector: reads the output of workers; None if nobody wants the output.
    """

    def __init__(
        self,
        processes: int,
        has_initializer: bool,
        parts: EngineParts,
        zygote_client: ZygoteClient,
        reports: ReportReader,
        reaper: Reaper,
    ) -> None:
        self.processes = processes
        self._has_initializer = has_initializer
        self._loop = parts.loop
        self._workers = parts.workers
        self._queue = parts.queue
        self._watchdog = parts.watchdog
        self._metrics = parts.metrics
        self._scoreboard = parts.scoreboard
        self._zygotes = zygote_client
        self._reports = reports
        self._reaper = reaper
        self.is_starting = True
        self.is_closing = False
        self.collector: Collector | None = None
        self._policy = RestartPolicy()
        self._filled: set[int] = set()  # places that have had a worker
        self._reports_seen = 0
        self._initializers_seen = 0
        self._metrics.set_processes(self.processes)
        self._zygotes.watch(self._on_zygote)

    # --- start ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Request all workers and wait for the first ones. The others arrive while those work.

        Raise `OSError` if the kernel refuses one of the first workers.
        """
        self.begin()
        while not self.has_begun:
            with allow_signals():  # a signal handler that raises may end the wait
                self.zygote.wait(None)
            self._on_zygote(0)
        self.finish_start()

    def begin(self) -> None:
        """Request all workers. The caller runs the loop until `has_begun`, then calls `finish_start`."""
        for number in range(self.processes):
            self._request(number)
        self._zygotes.note_inherited_names()

    @property
    def has_begun(self) -> bool:
        """Whether the first workers have arrived, or none will arrive."""
        is_enough = len(self._workers.members) >= self._workers.cores * WORKERS_PER_CORE_AT_START
        return is_enough or not self.awaited or self._queue.broken is not None

    def finish_start(self) -> None:
        """End the start, after the first workers have arrived. Raise `OSError` if one of them could not be made."""
        self.is_starting = False
        if self._queue.broken is not None:
            raise self._queue.broken
        self._zygotes.note_main_names()

    @property
    def zygote(self) -> Zygote:
        """The present zygote."""
        return self._zygotes.zygote

    @property
    def awaited(self) -> int:
        """The number of workers that were requested and have not arrived."""
        return len(self._zygotes.requested)

    def _request(self, number: int) -> None:
        self._clear(number)
        self._metrics.worker_requested(number)
        try:
            self._zygotes.request(number)
        except OSError as error:
            self._on_refused(number, error)
            return
        if not self.zygote.watched():  # the zygote is this process, and has answered at once
            self._on_zygote(0)

    def _clear(self, number: int) -> None:
        """Show a place as empty on the scoreboard.

        A worker that was retired before it began may still write its state there. Readers go by the pid.
        """
        self._scoreboard.slot(number).clear()

    # --- the zygote -----------------------------------------------------------------------------

    def _on_zygote(self, _events: int) -> None:
        """Handle all answers of the zygote. If the zygote has ended, make another."""
        while not self._loop.ended:
            try:
                before = signals.hold_signals()
                try:
                    answer = self._zygotes.receive()
                    if isinstance(answer, Spawned):
                        self._enlist(answer)
                finally:
                    signals.set_signal_mask(signal.SIG_SETMASK, before)
            except Lost:
                self._on_zygote_lost()
                return
            if answer is None:
                return
            if isinstance(answer, SpawnFailed):
                self._on_refused(answer.slot, answer.error)
            elif answer.slot >= self.processes or self._is_done:
                self.retire(self._workers.members[answer.slot])

    def _on_refused(self, number: int, error: OSError) -> None:
        """Try a refused fork again later. Give up if no worker is left after some tries, or if the pool is starting."""
        is_hopeless = self._policy.fork_refused(has_workers=bool(self._workers.members))
        reason = explain_fork_error(error, f"worker {number} of {self.processes}")
        if self.is_starting or is_hopeless:
            self.break_down(reason)
            return
        if self._policy.fork_refusals == 1:
            logging.getLogger("pairpool").warning("%s; the pool goes on without, and tries again", reason)
        self._policy.plan_fork(number, time.monotonic())

    def _on_zygote_lost(self) -> None:
        """Make another zygote after the zygote was killed with all its workers, and repeat the requests."""
        self._note_progress()
        reason = self._zygotes.replace(is_first_start=self.is_starting)
        if reason is not None:
            self.break_down(reason)
            return
        for number in sorted(self._zygotes.requested):
            self._request(number)

    def _enlist(self, spawned: Spawned) -> None:
        self._policy.fork_succeeded()
        slot, is_first = self._scoreboard.slot(spawned.slot), spawned.slot not in self._filled
        troubles, started = self._workers.troubles, not self._has_initializer
        worker = WorkerHandle(spawned, slot, self.zygote, troubles, started=started, is_first=is_first)
        self._workers.add(worker)
        self._loop.watch(worker.channel.fileno(), lambda events: self._on_packets(worker, events))
        self._loop.watch(worker.pidfd.fileno(), lambda _events: self._on_death(worker))
        worker.slot.store(Word.PID, worker.pid)
        self._filled.add(worker.number)
        self._watchdog.enlist(worker)
        self._metrics.worker_arrived(worker)
        if self.collector is not None:
            self.capture(worker, streams=self.collector.streams, log=True)
        if self._has_initializer:
            worker.post(StartPacket())
        self._workers.place_new(worker)

    def capture_output(self, collector: Collector) -> None:
        """Have the output of all workers that start from now on sent to a collector."""
        self.collector = collector

    def capture(self, worker: WorkerHandle, *, streams: bool, log: bool) -> None:
        """Have the output of a worker sent to the collector.

        If the kernel refuses a descriptor, the output goes where it went before, and one warning says so.
        """
        assert self.collector is not None
        before = signals.hold_signals()
        try:
            for header, writer in self.collector.attach(worker.number, worker.pid, streams=streams, log=log):
                worker.post_capture(header, writer)
        except OSError as error:
            logging.getLogger("pairpool").warning(
                "the output of worker %d (pid %d) cannot be captured: %s", worker.number, worker.pid, error
            )
        finally:
            signals.set_signal_mask(signal.SIG_SETMASK, before)
        if worker.wants_room:
            self._loop.watch_for_room(worker.channel.fileno(), True)

    # --- the life of a worker -------------------------------------------------------------------

    def _on_packets(self, worker: WorkerHandle, events: int) -> None:
        self._reports.on_packets(worker, events)
        if self._workers.finished:
            self._retire_finished()

    def _retire_finished(self) -> None:
        """Retire the workers that hold nothing any more and get no more work."""
        while self._workers.finished:
            self._workers.begin_update(self._workers.finished[-1])
            self.retire(self._workers.finished[-1])
            self._workers.end_update()
            self._workers.finished.pop()

    def _note_progress(self) -> None:
        """Reset the counts of failures in a row if something has succeeded since the last call."""
        if self._reports_seen != self._reports.reports_handled:
            self._reports_seen = self._reports.reports_handled
            self._policy.worker_succeeded()
            self._zygotes.on_result()
        if self._initializers_seen != self._reports.initializers_returned:
            self._initializers_seen = self._reports.initializers_returned
            self._policy.worker_succeeded()

    def tend(self) -> None:
        """Retire workers that have nothing left to do.

        The loop calls this in each turn, so that no worker is forgotten if an exception interrupts another turn.
        """
        if self._workers.finished:
            self._retire_finished()
        if self.is_closing and self._is_done:
            for worker in list(self._workers.members.values()):
                if worker.started:  # a worker in its initializer is retired after that
                    self.retire(worker)

    @property
    def _is_done(self) -> bool:
        return self.is_closing and not self._queue.unfinished

    def begin_closing(self) -> None:
        """Let every worker exit when nothing is left to do."""
        self.is_closing = True

    def retire(self, worker: WorkerHandle) -> None:
        """Let a worker exit, and request another in its place at once."""
        if not self._workers.is_on_duty(worker):
            return
        if worker.started:
            self._policy.initializer_succeeded(worker.number)
        self._loop.unwatch(worker.channel.fileno())
        self._workers.take_off_duty(worker)
        self._metrics.worker_left(worker, "")
        if worker.number < self.processes and not self._is_done:
            worker.slot.store(Word.REPLACED, worker.slot.own[Word.REPLACED] + 1)
            self._request(worker.number)
        else:
            self._clear(worker.number)

    def resize(self, processes: int) -> None:
        """Keep `processes` workers from now on."""
        before, self.processes = self.processes, processes
        self._metrics.set_processes(processes)
        members = self._workers.members
        for number in range(before, processes):
            if number not in members and number not in self._zygotes.requested:
                self._request(number)
        for number in range(processes, before):
            worker = members.get(number)
            if worker is not None:
                worker.retire()
                self._workers.place(worker)
                if not worker.held:
                    self.retire(worker)

    # --- deaths and gaps ------------------------------------------------------------------------

    def _on_death(self, worker: WorkerHandle) -> None:
        """Have a dead worker reaped, then decide about its place."""
        if not pidfds.has_ended(worker.pidfd.fileno()):
            return  # the event belongs to a descriptor that was closed in this turn and had the same number
        self._reports.drain(worker, everything=True)
        self._retire_finished()
        if self._loop.ended:
            return
        before = signals.hold_signals()
        try:
            death = self._reaper.reap(worker)
            self.zygote.reaped(worker.serial)
            if death is not None and death.is_at_startup:
                self._on_startup_failed(death)
        finally:
            signals.set_signal_mask(signal.SIG_SETMASK, before)
        if death is not None:
            self._replace(worker)

    def _on_startup_failed(self, death: WorkerDeath) -> None:
        """Decide about the place of a worker that ended in its initializer.

        1. The first worker of a place: the initializer is wrong, and the pool gives up. Exception: another process
           killed the worker.
        2. A later worker of a place: start another after a pause. The pauses grow. After some tries the pool gives up.
        """
        worker, number = death.worker, death.worker.number
        is_hopeless = self._policy.initializer_failed(number)
        traceback = worker.initializer_traceback
        has_failed = traceback is not None or not death.is_from_outside or death.kill_reason is not None
        if (worker.is_first and has_failed) or is_hopeless:
            wrong = death.initializer_error() if traceback is None else call_errors.initializer_failed(traceback)
            self.break_down(wrong)
        elif number < self.processes:
            self._policy.plan_initializer(number, time.monotonic())

    def _replace(self, worker: WorkerHandle) -> None:
        """Request a worker for the place of one that died, unless the pool ends or does not keep the place."""
        number = worker.number
        if worker.started:
            self._policy.initializer_succeeded(number)
        if self._queue.broken is not None or self._is_done:
            return
        if number >= self.processes or self._is_filled(number):
            return
        is_startup_death = worker.slot.words[Word.STATE] == State.EMPTY and not worker.has_received
        if is_startup_death and not worker.zygote.is_gone:
            self._note_progress()
            if self._policy.died_at_startup(self.processes):
                self.break_down(call_errors.died_at_startup(self._policy.startup_deaths))
                return
        worker.slot.store(Word.REPLACED, worker.slot.own[Word.REPLACED] + 1)
        self._request(number)

    def _is_filled(self, number: int) -> bool:
        """Whether a place has a worker, or will get one."""
        return number in self._workers.members or number in self._zygotes.requested or number in self._policy.retry_at

    def request_missing(self) -> bool:
        """Request workers for the places whose next try is due; return whether some places are still empty."""
        retry_at = self._policy.retry_at
        if retry_at:
            for number in self._policy.take_due(time.monotonic()):
                if number not in self._workers.members and number < self.processes:
                    self._request(number)
        if len(self._workers.members) + len(self._zygotes.requested) + len(retry_at) < self.processes:
            self._fill_gaps()
        return not self._zygotes.zygote.flush() or bool(retry_at)

    def _fill_gaps(self) -> None:
        """Request workers for places that an exception left empty, between a death and the request."""
        if self.is_starting or self._queue.broken is not None or self._is_done:
            return
        for number in range(self.processes):
            if not self._is_filled(number):
                self._request(number)

    # --- the end --------------------------------------------------------------------------------

    def break_down(self, reason: BaseException) -> None:
        """End every call, now and later, with `reason`, because the pool cannot work any more."""
        self._queue.break_down(reason)

    def close(self) -> None:
        """End the zygote."""
        self._zygotes.close()
