"""`EngineCore`: the parts of one pool, wired, and what each turn of the event loop does with them.

    submit ──► event loop ──► JobQueue ──► Dispatcher ──► WorkerSet          calls out
    results ◄──────────────── JobQueue ◄── Dispatcher ◄── WorkerSet          reports in
                              Supervisor ◄── Reaper ◄── pidfds, zygote       workers come and go

    one turn: submitted actions ► prepare ► wait for events ► handlers of the parts ► tend

`engine.py` adds what the public faces use.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pairpool.linux import descriptors, forking, requirements
from pairpool.master import call_errors
from pairpool.master.answers import Question
from pairpool.master.balancer import HAND_BACK_AFTER_S, Balancer
from pairpool.master.cancellation import Cancellation
from pairpool.master.dispatcher import FD_RETRY_INTERVAL_S, Dispatcher
from pairpool.master.driver_thread import DriverThread
from pairpool.master.engine_settings import ScoreboardFiles, WorkerSettings
from pairpool.master.event_loop import EventLoop
from pairpool.master.functions import Functions
from pairpool.master.jobs.base import Target
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.lost_work import LostWork
from pairpool.master.metrics import Metrics
from pairpool.master.parts import EngineParts
from pairpool.master.reaper import Reaper
from pairpool.master.reports import ReportReader
from pairpool.master.shared_objects import SharedObjects
from pairpool.master.supervisor import Supervisor
from pairpool.master.watchdog import Watchdog
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.master.zygote_client import ZygoteClient, fork_zygote
from pairpool.master.zygotes import Zygote
from pairpool.scoreboard.board import Scoreboard, Word
from pairpool.trace_events import Trace
from pairpool.transport.serializer import Serializer
from pairpool.transport.warm_memory import WARM_BYTES_KEPT, WarmMemory

if TYPE_CHECKING:
    from pairpool.master.output import Collector
    from pairpool.master.output_sinks import Sink
    from pairpool.status import PoolStatus

__all__ = ["EXIT_GRACE_S", "EngineCore"]

T = TypeVar("T")

LEADER_ANSWERS_WITHIN_S = 1.0
"""Seconds after which a thread does not wait for the leader's answer to a question that only reads."""

EXIT_GRACE_S = 1.0
"""Seconds that workers without a task get to exit by themselves before they are killed."""


class EngineCore:
    """The parts of one pool, in the process of its caller.

    Args:
        make_zygote: makes the zygote, from which the workers come.
        files: the scoreboard and its files. The engine owns them from here on.
        settings: what the workers are like.
        trace: what writes a trace; None for no trace. The engine owns it from here on.
    """

    def __init__(
        self,
        make_zygote: Callable[[], Zygote],
        files: ScoreboardFiles,
        settings: WorkerSettings,
        trace: Trace | None = None,
    ) -> None:
        self.identity = forking.Identity()
        self.board = files.board
        self.board_fd = files.board_fd
        self._owned = (files.board_fd, files.stacks)
        self._at_end: list[Callable[[], object]] = []
        self._dropped: deque[Target] = deque()  # single calls whose callers have gone
        zygote = fork_zygote(make_zygote)
        try:
            self.loop = EventLoop(self)
        except BaseException:
            zygote.close()
            raise
        memory = WarmMemory(WARM_BYTES_KEPT)
        serializer = self.serializer = Serializer(memory=memory)
        self.functions = Functions(serializer)
        self.workers = WorkerSet()
        self.watchdog = Watchdog(self.workers, settings.memory_limit, settings.start_timeout)
        self.metrics = Metrics(files.board, self.functions, trace)
        self.queue = JobQueue(
            self.functions, self.metrics, self._forget_functions, self.loop.would_deadlock, memory.give_back
        )
        self.shared_objects = SharedObjects(self.queue, self.workers, self.loop, serializer)
        parts = EngineParts(self.loop, self.workers, self.queue, self.watchdog, self.metrics, serializer, files.board)
        self.balancer = Balancer(self.queue, self.workers)
        self.lost_work = LostWork(self.queue, self.workers)
        self.dispatcher = Dispatcher(parts, self.balancer, self.shared_objects, settings.maxtasks)
        self._reports = ReportReader(parts, self.dispatcher.flush)
        self.supervisor = Supervisor(
            settings.processes,
            settings.has_initializer,
            parts,
            ZygoteClient(zygote, make_zygote, self.loop, serializer),
            self._reports,
            Reaper(parts, files.stacks),
        )
        self.cancellation = Cancellation(self.queue, self.workers, self.watchdog)
        self._remains: Scoreboard | None = None  # what is left of the scoreboard when the pool has ended
        self._driver: DriverThread | None = None
        self._board_lock, self._driver_lock = threading.Lock(), threading.Lock()

    # --- what each turn of the loop does --------------------------------------------------------

    def prepare(self, stays: bool) -> float:
        lacking = self.supervisor.request_missing()
        self.dispatcher.dispatch(stays)
        if self.workers.troubles.shut_down:
            self._reports.retire_shut_down()
        watchdog = self.watchdog
        if self.queue.unfinished:
            watchdog.expect_work()
        if watchdog.at < math.inf:
            left = watchdog.at - time.monotonic()
            if left <= 0:
                watchdog.look()
                if self.queue.unfinished:
                    watchdog.expect_work()  # also if no worker is busy: all can be set aside
                if self.lost_work.look():
                    return 0.0  # there is something to dispatch
                self.write_board()
                self.supervisor.zygote.want_spare()
                if self.supervisor.awaited:
                    self.supervisor.zygote.wake()
                left = watchdog.at - time.monotonic()
        else:
            left = math.inf
        if self.dispatcher.holds_back:
            left = min(left, self.dispatcher.retry_after())
        elif self.workers.watched or self.cancellation.pending_kills or lacking:
            left = min(left, HAND_BACK_AFTER_S)
        if self.workers.troubles.fd_blocked:
            left = min(left, FD_RETRY_INTERVAL_S)
        return max(0.0, left) if left < math.inf else -1.0

    def write_board(self) -> None:
        """Write to the scoreboard what only the leader knows: the state of calls, and of items that run for long."""
        self.metrics.refresh(self.queue.unfinished)
        self.metrics.describe(self.workers)

    def status(self, state: str) -> PoolStatus:
        """Return a snapshot of the pool, with this state. A pool that has ended gives its last one, without workers."""
        from dataclasses import replace  # their import takes longer than a pool takes to open

        from pairpool.scoreboard import snapshot

        if self._remains is None:
            self.loop.query(self.write_board)
        with self._board_lock:
            board = self._remains or self.board
            return replace(snapshot.take(board, time.monotonic_ns()), state=state)

    def has_a_core_free(self) -> bool:
        """Return whether the leader may look for events without sleeping."""
        return self.workers.has_a_core_free() and threading.current_thread() is not self._driver

    def tend(self) -> None:
        """Do what is due after the events of a turn."""
        if self.workers.watched:
            self.balancer.hand_back()
        if self.cancellation.pending_kills:
            self.cancellation.kill_pending()
        self.supervisor.tend()

    def recover(self) -> None:
        """Restore a consistent state: no batch is lost, and no worker stays in an unknown state."""
        self.queue.recover(self.workers.recover())

    # --- questions to the leader ----------------------------------------------------------------

    def _forget_functions(self, numbers: list[int]) -> None:
        self.dispatcher.forget(numbers)

    def _ask(self, question: Callable[[], bool]) -> bool:
        """Have the leader answer a question. Return False if the pool ends meanwhile."""
        asked = Question(question)
        self.loop.submit(asked)
        self.loop.wait(lambda: asked.is_answered or self.loop.ended)
        return asked.is_answered and asked.answer()

    def inquire(self, question: Callable[[], T]) -> T:
        """Return the answer to a question about what only the leader may read. An ended pool answers at once.

        If the leader runs code of the caller for long, such as the input of a stream, this thread answers: nothing else
        changes meanwhile.
        """
        asked = Question(question)
        if not self.loop.ended:
            self.loop.submit(asked)
            self.loop.wait(lambda: asked.is_answered or self.loop.ended, LEADER_ANSWERS_WITHIN_S)
        if not asked.is_answered and self.loop.ended:
            self.loop.over.wait(LEADER_ANSWERS_WITHIN_S)  # the pool ends in another thread
        return asked.answer() if asked.is_answered else question()

    def ready_at(self, number: int) -> int:
        """Return when the present worker of this number could first take work (monotonic ns); 0 if it cannot yet."""
        return 0 if self.loop.over.is_set() else self.board.slot(number).words[Word.READY]

    def is_idle(self) -> bool:
        """Return whether nothing is left to do."""
        return not self.queue.unfinished and not self.loop.has_actions

    @property
    def size(self) -> int:
        """The number of workers that are there or have been requested."""
        return len(self.workers.members) + self.supervisor.awaited

    # --- the output of tasks --------------------------------------------------------------------

    def start(self) -> None:
        """Start the first workers. Raise the error that prevents it."""
        self.supervisor.start()
        self._start_collector()

    def begin_start(self) -> None:
        """Do the first half of `start`, without waiting. The second half is due when `has_begun`."""
        self.supervisor.begin()

    @property
    def has_begun(self) -> bool:
        """Whether the first workers are there."""
        return self.supervisor.has_begun

    def finish_start(self) -> None:
        """Do the second half of `start`."""
        self.supervisor.finish_start()
        self._start_collector()

    def _start_collector(self) -> None:
        collector = self.supervisor.collector
        if collector is not None:
            collector.start()

    def settle_output(self) -> None:
        """Wait until what the workers wrote until now has been handed over."""
        collector = self.supervisor.collector
        if collector is not None:
            collector.settle()

    def start_capture(self, sink: Sink, *, streams: bool = True, level: int | None = None) -> None:
        """Give what present and later workers write to `sink`. If it is captured already, only replace the sink.

        Args:
            streams: whether stdout and stderr are captured.
            level: the level from which log records are handed to the loggers of this process; None for none. It can be
                given only before `start`.

        Raises:
            OSError: there are not enough descriptors.
        """
        from pairpool.master.output import Collector

        if self.supervisor.is_starting:
            self.supervisor.capture_output(Collector(sink, streams=streams, level=level))
            return
        requirements.require_descriptors(2 * self.size, f"the output of {self.size} workers")
        self._ask(lambda: self._capture_streams(Collector, sink))

    def _capture_streams(self, make: type[Collector], sink: Sink) -> bool:
        supervisor = self.supervisor
        if supervisor.collector is None:
            supervisor.capture_output(make(sink, streams=False, level=None))
            self._start_collector()
        collector = supervisor.collector
        assert collector is not None
        collector.redirect(sink)
        if not collector.streams:
            collector.capture_streams()
            for worker in self.workers.members.values():
                supervisor.capture(worker, streams=True, log=False)
        return True

    # --- sizes and ends -------------------------------------------------------------------------

    def begin_close(self) -> None:
        """Let the workers exit as soon as nothing is left to do."""

        def action() -> None:
            self.supervisor.begin_closing()
            self.metrics.closing()
            self.supervisor.tend()

        self.loop.submit(action)

    def close(self) -> None:
        """Let the workers exit as soon as nothing is left to do. Hand over what they wrote until now."""
        self.begin_close()
        self.loop.run_once()
        if not self.loop.is_mine:  # the sink may wait for the leader
            self.settle_output()

    def finish(self) -> None:
        """Wait for all calls and for initializers that have not returned, then for the exit of all workers."""
        self.loop.submit(self.queue.expect_no_reader)
        self.loop.wait(lambda: self.loop.ended or (self.is_idle() and self.workers.has_started()))
        self.terminate(grace=None)

    def wind_down(self) -> None:
        """Start to end everything, without waiting. It has ended when `has_no_workers_left`."""

        def action() -> None:
            self.supervisor.begin_closing()
            self.queue.cancel_all(self.queue.refuse_calls(call_errors.terminated()))
            self.workers.kill(self._is_busy)
            self.supervisor.tend()

        self.loop.submit(action)

    def has_no_workers_left(self) -> bool:
        """Return whether no worker is left and none was requested."""
        return not self.workers.members and not self.workers.leaving and not self.supervisor.awaited

    def terminate(self, *, grace: float | None = EXIT_GRACE_S) -> None:
        """End everything now. Workers with a task are killed, others exit, and calls that have not ended are cancelled.

        Args:
            grace: seconds that workers may take to exit; None for any time.
        """
        if self.loop.over.is_set():
            self._stop_threads()
        else:
            self.loop.defer_signals_in(lambda: self._terminate(grace))

    def _terminate(self, grace: float | None) -> None:
        loop = self.loop
        taken = loop.acquire_exclusive()
        try:
            if not loop.over.is_set():
                self._end(grace)
        finally:
            if taken:
                loop.release_exclusive()
            else:
                loop.over.set()
        self.loop.run_callbacks()
        self._stop_threads()

    def _stop_threads(self) -> None:
        """End the driver, and the collector after it has handed over everything that the workers wrote."""
        with self._driver_lock:
            driver = self._driver
        if driver is not None:
            driver.stop()
        collector = self.supervisor.collector
        if collector is not None:
            collector.close()
        while self._at_end:
            self._at_end.pop()()

    def _end(self, grace: float | None) -> None:
        self.loop.run_actions()
        reason = self.queue.refuse_calls(call_errors.terminated())
        self.workers.end(grace, is_busy=self._is_busy)
        self.queue.cancel_all(reason)
        self.shared_objects.close()
        self.supervisor.close()
        self.loop.close()
        self.metrics.close()
        for thing in self._owned:
            descriptors.disown(thing)
            thing.close()
        with self._board_lock:
            self._remains = self.board.remains()
            self.board.close()

    def _is_busy(self, member: WorkerHandle) -> bool:
        """Return whether a worker must be killed: it holds a task, or it has not started and so has done nothing.

        The scoreboard says nothing any more about a worker that was told to exit.
        """
        return bool(member.held) or not member.started or not (member.eof_sent or member.slot.words[Word.READY])
