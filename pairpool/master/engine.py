"""The master: what a pool is in its caller's process. Puts the parts together, and is what the public faces talk to.

submit ─► inbox ─► agenda ─► dealer ─► workers                jobs     agenda.py, jobs.py, batching.py
results ◄───────── agenda ◄─ dealer ◄─ workers                packets  dealer.py, crew.py
                             nursery ◄─ deaths, zygote        workers  nursery.py, blame.py
loop.py turns all of it, in the thread of whoever waits.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pairpool.linux import descriptors, forking, requirements
from pairpool.master import call_errors
from pairpool.master.cancellation import Cancellation
from pairpool.master.dispatcher import STARVED_FOR, WATCH_EVERY, Dispatcher
from pairpool.master.driver_thread import DriverThread
from pairpool.master.event_loop import EventLoop
from pairpool.master.functions import Functions
from pairpool.master.jobs.base import Calls, Job, SingleCall, Target
from pairpool.master.jobs.call_options import CallOptions
from pairpool.master.jobs.intake import take_here
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.jobs.stream import StreamJob
from pairpool.master.metrics import Metrics
from pairpool.master.parts import EngineParts
from pairpool.master.reaper import Reaper
from pairpool.master.shared_objects import SharedObjects
from pairpool.master.supervisor import Supervisor
from pairpool.master.watchdog import Watchdog
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.master.zygote_client import ZygoteClient, fork_zygote
from pairpool.master.zygotes import Zygote
from pairpool.scoreboard.board import PoolWord, Scoreboard, Word
from pairpool.trace_events import Trace
from pairpool.transport.items import is_immutable
from pairpool.transport.serializer import Serializer
from pairpool.transport.warm_memory import WARM_BYTES_KEPT, WarmMemory

if TYPE_CHECKING:
    from pairpool.master.output import Collector
    from pairpool.master.output_sinks import Sink
    from pairpool.status import PoolStatus

__all__ = ["GRACE", "Engine", "ScoreboardFiles", "WorkerSettings"]

T = TypeVar("T")

GRACE = 1.0
"""Seconds that workers without a task get to exit by themselves before they are killed."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the workers of an engine are like.

    Attributes:
        processes: the number of workers to keep.
        maxtasks: tasks after which a worker is replaced; None for never.
        has_initializer: whether workers report when they are ready.
        memory_limit: private bytes that a worker may have beyond what it inherited; None for any number.
        start_timeout: seconds that the initializer may take; None for any time.
    """

    processes: int
    maxtasks: int | None = None
    has_initializer: bool = False
    memory_limit: int | None = None
    start_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreboardFiles:
    """A scoreboard, its memfd, and the memfd into which workers write their stacks at a fault."""

    board: Scoreboard
    board_fd: descriptors.Descriptor
    stacks: descriptors.Descriptor

    @classmethod
    def create(cls, slots: int, name: str, method: int) -> ScoreboardFiles:
        """Create a scoreboard for a pool of this name and start method."""
        number, board = Scoreboard.create(slots, name, time.monotonic_ns())
        board.pool[PoolWord.METHOD] = method
        files = cls(
            board, descriptors.Descriptor(number), descriptors.Descriptor(descriptors.memfd("pairpool-stacks", 0))
        )
        descriptors.own(files.board_fd)
        descriptors.own(files.stacks)
        return files

    def close(self) -> None:
        """Close all of them. An engine that has started does this itself."""
        for descriptor in (self.board_fd, self.stacks):
            descriptors.disown(descriptor)
            descriptor.close()
        self.board.close()


class Engine:
    """The engine of one pool.

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
        board, stacks = files.board, files.stacks
        self.identity = forking.Identity()
        self.board = board
        self.board_fd = files.board_fd
        self._owned = (files.board_fd, stacks)
        self.at_end: list[Callable[[], object]] = []  # what is to be done when the pool has ended, and all is told
        zygote = fork_zygote(make_zygote)
        try:
            self.loop = EventLoop(self)
        except BaseException:
            zygote.close()
            raise
        memory = WarmMemory(WARM_BYTES_KEPT)
        codec = self.codec = Serializer(memory=memory)
        self.functions = Functions(codec)
        self.crew = WorkerSet()
        self.overseer = Watchdog(self.crew, settings.memory_limit, settings.start_timeout)
        self.accounts = Metrics(board, self.functions, trace)
        self.agenda = JobQueue(self.functions, self._forget, self.loop.would_deadlock, self.accounts)
        self.agenda.at_rest = memory.give_back
        self.shares = SharedObjects(self.agenda, self.crew, self.loop, codec)
        parts = EngineParts(self.loop, self.crew, self.agenda, self.overseer, self.accounts, codec, board)
        self._dealer = Dispatcher(parts, self.shares, settings.maxtasks)
        self.nursery = Supervisor(
            settings.processes,
            settings.has_initializer,
            parts,
            ZygoteClient(zygote, make_zygote, self.loop, codec),
            self._dealer,
            Reaper(parts, stacks),
        )
        self.cancellation = Cancellation(self.agenda, self.crew, self.overseer)
        self._remains: Scoreboard | None = None  # of the board, when the pool has ended
        self._board_lock = threading.Lock()
        self._driver: DriverThread | None = None
        self._driver_lock = threading.Lock()

    # --- what the loop turns --------------------------------------------------------------------

    def prepare(self, stays: bool) -> float:
        lacking = self.nursery.request_missing()
        self._dealer.deal(stays)
        overseer = self.overseer
        if self.agenda.unfinished:
            overseer.expect_work()
        if overseer.at < math.inf:
            left = overseer.at - time.monotonic()
            if left <= 0:
                overseer.look()
                self.write_board()
                self.nursery.zygote.want_spare()
                left = overseer.at - time.monotonic()
        else:
            left = math.inf
        if self._dealer.holds_back:
            left = min(left, self._dealer.patience())
        elif self.crew.watched or self.cancellation.pending_kills or lacking:
            left = min(left, WATCH_EVERY)
        if self.crew.starved:
            left = min(left, STARVED_FOR)
        return max(0.0, left) if left < math.inf else -1.0

    def write_board(self) -> None:
        """Have the board show what only the leader knows of calls and of items that run for long."""
        self.accounts.refresh(self.agenda.unfinished)
        self.accounts.describe(self.crew)

    def status(self, state: str) -> PoolStatus:
        """A snapshot of a pool in this state; of one that has ended, the last one, without workers."""
        from dataclasses import replace  # they take longer to import than a pool takes to open

        from pairpool.scoreboard import snapshot

        if self._remains is None:
            self.loop.query(self.write_board)
        with self._board_lock:
            board = self._remains or self.board
            return replace(snapshot.take(board, time.monotonic_ns()), state=state)

    def before_leaving(self) -> None:
        """The leader has what it waited for: see to it that workers have enough to do until somebody comes back."""
        if self._dealer.holds_back:
            self.loop.run_once()

    def has_a_core_free(self) -> bool:
        return self.crew.has_a_core_free() and threading.current_thread() is not self._driver

    def tend(self) -> None:
        if self.crew.watched:
            self._dealer.look_after_batches()
        if self.cancellation.pending_kills:
            self.cancellation.kill_pending()
        self.nursery.tend()

    def recover(self) -> None:
        """No batch may be lost, and no worker be left in an unknown state."""
        self.agenda.mend(self.crew.mend())

    # --- calls ----------------------------------------------------------------------------------

    def _forget(self, numbers: list[int]) -> None:
        self._dealer.forget(numbers)

    def submit_job(self, job: Job) -> None:
        """Append a job; from any thread."""
        self.loop.submit(lambda: self.agenda.add(job))

    def pack_call(self, number: int, args: Any, kwds: Any, *, is_left: bool) -> SingleCall:
        """The item of a single call of function `number`, with the arguments as they are now; from any thread.

        Args:
            is_left: whether the caller goes on before the call has ended, and may change large arrays, too.
        """
        if not kwds and is_immutable(args):
            return number, args, kwds
        return number, take_here(self.codec, (args, kwds), own=is_left)

    def submit_call(self, target: Target, number: int, args: Any, kwds: Any, options: CallOptions) -> None:
        """Append a single call of function `number`, with the arguments as they are now; from any thread."""
        call = self.pack_call(number, args, kwds, is_left=True)
        self.loop.submit(functools.partial(self.agenda.add_call, target, call, options))

    def abandon(self, job: StreamJob, *, half_used: bool) -> None:
        """Nobody will read a stream any more: what is left of a half-used one is not run."""
        if half_used:
            self.loop.submit(lambda: self.cancellation.job(job, call_errors.abandoned(), kill=False))
        else:
            self.loop.submit(job.discard)

    def cancel(self, job: Job, reason: BaseException, *, kill: bool) -> bool:
        """End a whole call; from any thread.

        What is queued is taken back, out of the workers' sockets too; what runs is ended if `kill` says so.
        Returns whether the call has ended by it.
        """
        return self._ask(lambda: self.cancellation.job(job, reason, kill=kill))

    def cancel_call(self, target: Target, reason: BaseException, *, kill: bool) -> bool:
        """`cancel` for the call with this target, which may be one of several single calls."""

        def action() -> bool:
            job = target.job  # known by now, for the call was submitted before this action
            if job is None or target.has_outcome:
                return False
            if isinstance(job, Calls):
                return self.cancellation.call(job, target, reason, kill=kill)
            return self.cancellation.job(job, reason, kill=kill)

        return self._ask(action)

    def cancel_calls(self, targets: Iterable[Target], reason: BaseException) -> None:
        """End many single calls, those that run included; from any thread."""

        def action() -> bool:
            self.cancellation.calls(targets, reason)
            return True

        self._ask(action)

    def cancel_waiting(self, reason: BaseException) -> None:
        """End single calls, and items of streams, that no worker has begun, or is free to begin at once.

        From any thread.
        """

        def action() -> bool:
            jobs = [job for job in self.agenda.unfinished if isinstance(job, (Calls, StreamJob))]
            self.cancellation.waiting(jobs, reason, self.nursery.processes)
            return True

        self._ask(action)

    def end_inputs(self, reason: BaseException) -> None:
        """Take no more from the inputs of streams that wait for their readers, who get `reason` in the end."""

        def action() -> None:
            for job in list(self.agenda.unfinished):
                if isinstance(job, StreamJob) and job.waits_for_reader:
                    job.end_input(reason)
                    self.agenda.settle(job)

        self.loop.submit(action)

    def runs(self, target: Target) -> bool:
        """Whether a worker is at the call with this target; from any thread."""
        return self._ask(lambda: any(member.runs(target) for member in self.crew))

    def _ask(self, question: Callable[[], bool]) -> bool:
        """Have the leader answer a question; False if the pool ends meanwhile."""
        verdict: list[bool] = []
        self.loop.submit(lambda: verdict.append(question()))
        self.loop.wait(lambda: bool(verdict) or self.loop.ended)
        return verdict[:1] == [True]

    def inquire(self, question: Callable[[], T]) -> T:
        """The answer to a question about what only the leader may look at; of an ended pool, at once."""
        answers: list[T] = []
        if not self.loop.ended:
            self.loop.submit(lambda: answers.append(question()))
            self.loop.wait(lambda: bool(answers) or self.loop.ended)
        if not answers:
            self.loop.over.wait()  # it ends in another thread
            answers.append(question())
        return answers[0]

    def ready_at(self, number: int) -> int:
        """Monotonic ns when the present worker of a place could take work; 0 if it could not, or there is none."""
        return 0 if self.loop.over.is_set() else self.board.slot(number).words[Word.READY]

    def drive_in_background(self) -> None:
        """Have a daemon thread wait for what nobody waits for."""
        driver = self._driver
        if driver is not None:
            driver.nudge()
        else:
            self.loop.defer_signals_in(self._start_driver)

    def _start_driver(self) -> None:
        with self._driver_lock:
            if self._driver is None and not self.loop.ended:
                driver = DriverThread(self.loop, self.is_idle)
                driver.start()
                self._driver = driver

    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self.agenda.unfinished and not self.loop.has_actions

    def wait_for_calls(self) -> None:
        """Wait until nothing is left to do but for readers of streams."""
        self.loop.wait(lambda: self.loop.ended or not self._has_calls())

    def _has_calls(self) -> bool:
        unfinished = list(self.agenda.unfinished)
        waiting = any(not isinstance(job, StreamJob) or job.unbounded for job in unfinished)
        return waiting or self.loop.has_actions

    @property
    def size(self) -> int:
        """How many workers there are, or have been asked for."""
        return len(self.crew.members) + self.nursery.awaited

    # --- the output of tasks --------------------------------------------------------------------

    @property
    def collector(self) -> Collector | None:
        """Who reads the output of workers; None where it is not captured."""
        return self.nursery.collector

    def start(self) -> None:
        """Have the first workers made. Raises what keeps them from it."""
        self.nursery.start()
        self._start_collector()

    def go(self) -> None:
        """The rest of `start`, for those who have called `nursery.begin` and turned the loop until it has begun."""
        self.nursery.finish_start()
        self._start_collector()

    def _start_collector(self) -> None:
        if self.collector is not None:
            self.collector.start()

    def start_capture(self, sink: Sink, *, streams: bool = True, level: int | None = None) -> None:
        """Give what the workers write, those there and those to come, to `sink`; if it is captured already, only that.

        Args:
            streams: whether stdout and stderr are captured.
            level: level from which on log records are handed to this process's loggers; None for none. It can be given
                only before `start`.

        Raises:
            OSError: there are not enough descriptors.
        """
        from pairpool.master.output import Collector

        if self.nursery.is_starting:
            self.nursery.capture_output(Collector(sink, streams=streams, level=level))
            return
        requirements.require_descriptors(2 * self.size, f"the output of {self.size} workers")
        self._ask(lambda: self._capture_streams(Collector, sink))

    def _capture_streams(self, make: type[Collector], sink: Sink) -> bool:
        nursery = self.nursery
        if nursery.collector is None:
            nursery.capture_output(make(sink, streams=False, level=None))
            self._start_collector()
        collector = nursery.collector
        assert collector is not None
        collector.redirect(sink)
        if not collector.streams:
            collector.capture_streams()
            for member in self.crew.members.values():
                nursery.capture(member, streams=True, log=False)
        return True

    # --- sizes and ends -------------------------------------------------------------------------

    def begin_resize(self, processes: int) -> Callable[[], bool]:
        """Keep this many workers from now on; returns what tells whether new ones are there."""
        resized = False

        def action() -> None:
            nonlocal resized
            self.nursery.resize(processes)
            resized = True

        self.loop.submit(action)
        return lambda: self.loop.ended or (resized and not self.nursery.is_waiting)

    def wait_for_workers(self) -> None:
        """Notice workers that have ended, and wait until all that were asked for are there."""
        self.loop.run_once()
        self.loop.wait(lambda: self.loop.ended or not self.nursery.is_waiting)

    def begin_close(self) -> None:
        """Let the workers exit as soon as nothing is left to do."""

        def action() -> None:
            self.nursery.begin_closing()
            self.accounts.closing()
            self.nursery.retire_all()

        self.loop.submit(action)

    def close(self) -> None:
        """Let the workers exit as soon as nothing is left to do; what they wrote until now is handed over."""
        self.begin_close()
        self.loop.run_once()
        if self.collector is not None and not self.loop.is_mine:  # the sink may wait for who leads
            self.collector.settle()

    def finish(self) -> None:
        """Wait for all calls, and for initializers that have not returned; then for all workers to exit."""
        self.loop.submit(self.agenda.expect_no_reader)
        self.loop.wait(lambda: self.loop.ended or (self.is_idle() and self.crew.has_started()))
        self.terminate(grace=None)

    def wind_down(self) -> None:
        """`terminate` that does not wait: have everything end, which it has when `is_deserted`."""

        def action() -> None:
            self.nursery.begin_closing()
            self.agenda.broken = self.agenda.broken or call_errors.terminated()
            self.agenda.cancel_all(self.agenda.broken)
            self.crew.kill(self._is_busy)
            self.nursery.retire_all()

        self.loop.submit(action)

    def is_deserted(self) -> bool:
        """Whether no worker is left, and none is to come."""
        return not self.crew.members and not self.crew.leaving and not self.nursery.is_waiting

    def terminate(self, *, grace: float | None = GRACE) -> None:
        """End everything now: workers with a task are killed, others exit; calls that have not ended are cancelled.

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
        """The workers have ended: so do the driver, and the collector when it has handed over all that they wrote."""
        with self._driver_lock:
            driver = self._driver
        if driver is not None:
            driver.stop()
        if self.collector is not None:
            self.collector.close()
        while self.at_end:
            self.at_end.pop()()

    def _end(self, grace: float | None) -> None:
        self.loop.run_actions()
        reason = self.agenda.broken or call_errors.terminated()
        self.agenda.broken = reason
        self.crew.end(grace, is_busy=self._is_busy)
        self.agenda.cancel_all(reason)
        self.shares.close()
        self.nursery.close()
        self.loop.close()
        self.accounts.close()
        for thing in self._owned:
            descriptors.disown(thing)
            thing.close()
        with self._board_lock:
            self._remains = self.board.remains()
            self.board.close()

    def _is_busy(self, member: WorkerHandle) -> bool:
        """Whether a worker has something to end first, or is not there yet: then it has done nothing.

        Of one that was told to exit nothing is on the board any more.
        """
        return bool(member.held) or not member.started or not (member.dismissed or member.slot.words[Word.READY])
