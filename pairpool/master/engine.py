"""`Engine`: what the public faces of a pool use.

    Pool, Executor, AsyncPool, results ──► Engine ──► EngineCore: queue, dispatcher, workers, supervisor, event loop

The faces call the methods of this module, from any thread, and touch nothing behind them. A method that needs what only
the leader may touch submits an action to the event loop. `EngineCore` wires the parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from pairpool.linux import forking, interrupts
from pairpool.master import call_errors
from pairpool.master.driver_thread import DriverThread
from pairpool.master.engine_core import EngineCore
from pairpool.master.engine_settings import ScoreboardFiles, WorkerSettings
from pairpool.master.functions import Function
from pairpool.master.jobs.base import Job, SingleCall, Target
from pairpool.master.jobs.batch_size import UNBOUNDED
from pairpool.master.jobs.call_options import CallOptions
from pairpool.master.jobs.calls import Calls
from pairpool.master.jobs.intake import Gathered, Iteration, Source, Span, take_here
from pairpool.master.jobs.map import MapJob
from pairpool.master.jobs.stream import StreamJob, StreamSpec
from pairpool.master.zygotes import Zygote
from pairpool.scoreboard.board import Scoreboard
from pairpool.trace_events import Trace
from pairpool.transport.items import is_immutable, standalone
from pairpool.transport.protocol import Mode

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from pairpool.master.asyncio_driver import AsyncioDriver
    from pairpool.master.jobs.fed import FedJob
    from pairpool.master.output_sinks import Sink
    from pairpool.master.statistics import PoolStats
    from pairpool.transport.segments import Shared

__all__ = ["Engine"]

T = TypeVar("T")


class Engine(EngineCore):
    """The engine of one pool, as the public faces use it. All methods may be called from any thread."""

    def __init__(
        self,
        make_zygote: Callable[[], Zygote],
        files: ScoreboardFiles,
        settings: WorkerSettings,
        trace: Trace | None = None,
    ) -> None:
        super().__init__(make_zygote, files, settings, trace)
        # These are methods of the event loop themselves, because one more call per result would be measurable.
        self.wait = self.loop.wait
        self.request_turn = self.loop.request_turn
        self.call_later = self.loop.call_later
        self.release_later = self.loop.release_later

    # --- the process, and waiting ---------------------------------------------------------------

    def is_here(self) -> bool:
        """Return whether this process made the pool. A forked child must not use it."""
        return self.identity.is_here()

    def require_owner(self) -> None:
        """Raise `PoolInherited` if this process was forked off the one that made the pool."""
        if not self.identity.is_here():
            forking.require_owner(self.identity)

    def run_once(self) -> None:
        """Do what can be done now without waiting, if no thread drives the pool."""
        self.loop.run_once()

    def tell_followers(self) -> None:
        """Have the threads that wait check again whether their wait is over."""
        self.loop.submit(_nothing)

    def drive_in_background(self) -> None:
        """Have a daemon thread drive the pool for calls that no thread waits for."""
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

    def drive_from(self, events: AbstractEventLoop) -> AsyncioDriver:
        """Have an asyncio event loop drive the pool from now on, until the pool has ended."""
        from pairpool.master.asyncio_driver import AsyncioDriver

        driver = AsyncioDriver(self.loop, events)
        self.at_end(driver.leave)
        return driver

    # --- calls ----------------------------------------------------------------------------------

    def find_function(self, func: Callable[..., Any]) -> Function:
        """Return the function, ready to travel. Raises TypeError, and what its pickling raises."""
        if not callable(func):
            raise TypeError(f"{type(func).__name__!r} object is not callable")
        return self.functions.get(func)

    def function_for(self, func: Callable[..., Any], target: Target) -> Function | None:
        """Return the function, ready to travel. If it cannot be pickled, that is the outcome: return None."""
        if not callable(func):
            raise TypeError(f"{type(func).__name__!r} object is not callable")
        try:
            return self.functions.get(func)
        except Exception as error:
            reason = error
        self.loop.submit(lambda: target.set_outcome(False, reason))
        return None

    def call(self, target: Target, function: Function, args: Any, kwds: Any, options: CallOptions) -> None:
        """Submit a single call whose caller waits at once."""
        job = Calls(Mode.CALL, options)
        job.add(target, self._pack_call(function, args, kwds, is_left=False))
        self._submit(job)

    def submit_call(self, target: Target, function: Function, args: Any, kwds: Any, options: CallOptions) -> None:
        """Submit a single call with the arguments as they are now. It travels with its neighbours."""
        call = self._pack_call(function, args, kwds, is_left=True)
        self.loop.submit(functools.partial(self.queue.add_call, target, call, options))

    def _pack_call(self, function: Function, args: Any, kwds: Any, *, is_left: bool) -> SingleCall:
        """Return the item of a single call.

        Args:
            is_left: whether the caller goes on before the call has ended, and may change large arrays, too.
        """
        if not kwds and is_immutable(args):
            return function.number, args, kwds
        return function.number, take_here(self.serializer, (args, kwds), own=is_left)

    def submit_map(self, target: Any, function: Function, mode: int, gathered: Gathered, options: CallOptions) -> None:
        """Submit a call for each item. `target` gets the list of results."""
        job = MapJob(function, mode, gathered, options, target.set_outcome)
        target.submitted_to(job)
        self._submit(job)

    def source_of(self, iterable: Iterable[Any], *, everything: bool) -> Source:
        """Return the source of a stream.

        Args:
            everything: take all items now, unless they are complete already. Raises what the input raises.
        """
        if type(iterable) is range:
            return Span(iterable)
        source = Iteration(iter(iterable), self.serializer)
        if not everything or type(iterable) is list:
            return source
        with interrupts.defer_signals(), interrupts.allow_signals():
            return Span(source.pull(UNBOUNDED, exactly=True))

    def start_stream(self, job: StreamJob) -> None:
        """Submit a stream, whose iterator exists already. If that is interrupted, the stream ends."""
        try:
            self._submit(job)
            self.loop.run_once()
            if job.options.task_timeout is not None or job.unbounded:
                self.drive_in_background()  # time limits hold also while the reader is busy
        except BaseException as error:
            self.cancel(job, call_errors.left_by(error), kill=True)
            raise

    def submit_fed(
        self, function: Function, options: CallOptions, spec: StreamSpec, tell: Callable[[], None]
    ) -> FedJob:
        """Submit a stream whose items are handed in as they come.

        Args:
            tell: called by the leader when there is something to read, or when the stream was cancelled.
        """
        from pairpool.master.jobs.fed import FedJob  # only asyncio needs it

        job = FedJob(function, Mode.MAP, options, spec, self.serializer, tell)
        self._submit(job)
        return job

    def room_of(self, job: FedJob) -> int:
        """Return how many items a stream takes now."""
        return job.wanted(self.workers.size)

    def _submit(self, job: Job) -> None:
        self.loop.submit(lambda: self.queue.add(job))

    def take(self, thing: Any) -> Any:
        """Return what stands for an object that is part of an argument: its pickle, made now and separately."""
        return standalone(take_here(self.serializer, thing, own=True), thing)

    def share(self, obj: T) -> Shared[T]:
        """Write an object once into memory that all workers map."""
        return self.shared_objects.share(obj)

    # --- the ends of calls ----------------------------------------------------------------------

    def cancel(self, job: Job, reason: BaseException, *, kill: bool) -> bool:
        """End a whole call. Return whether this has ended it.

        Queued items are taken back, also out of the workers' sockets.

        Args:
            kill: also end the items that run.
        """
        return self._ask(lambda: self.cancellation.job(job, reason, kill=kill))

    def cancel_soon(self, job: Job, reason: BaseException, *, kill: bool) -> None:
        """Do as `cancel` does, without waiting for it."""
        self.loop.submit(lambda: self.cancellation.job(job, reason, kill=kill))

    def cancel_call(self, target: Target, reason: BaseException, *, kill: bool) -> bool:
        """Do as `cancel` does for the call with this target, which may be one of several single calls of a job."""

        def action() -> bool:
            job = target.job  # known by now, because the call was submitted before this action
            if job is None or target.has_outcome:
                return False
            if isinstance(job, Calls):
                return self.cancellation.call(job, target, reason, kill=kill)
            return self.cancellation.job(job, reason, kill=kill)

        return self._ask(action)

    def cancel_calls(self, targets: Iterable[Target], reason: BaseException) -> None:
        """End many single calls, those that run included."""

        def action() -> bool:
            self.cancellation.calls(targets, reason)
            return True

        self._ask(action)

    def drop_call(self, target: Target) -> None:
        """End a single call that nobody waits for any more, together with others that are dropped at this time."""
        self._dropped.append(target)
        self.loop.submit(self._cancel_dropped)

    def _cancel_dropped(self) -> None:
        dropped = list(self._dropped)
        if dropped:
            self.cancellation.calls(dropped, call_errors.cancelled())
            for _ in dropped:
                self._dropped.popleft()

    def cancel_waiting(self, reason: BaseException) -> None:
        """End the single calls, and the items of streams, that no worker has begun or is free to begin at once."""

        def action() -> bool:
            jobs = [job for job in self.queue.unfinished if isinstance(job, (Calls, StreamJob))]
            self.cancellation.waiting(jobs, reason, self.supervisor.processes)
            return True

        self._ask(action)

    def end_inputs(self, reason: BaseException) -> None:
        """Take no more from the inputs of streams that wait for their readers. The readers get `reason` at the end."""

        def action() -> None:
            for job in list(self.queue.unfinished):
                if isinstance(job, StreamJob) and job.waits_for_reader:
                    job.end_input(reason)
                    self.queue.settle(job)

        self.loop.submit(action)

    def abandon(self, job: StreamJob, *, half_used: bool) -> None:
        """Give up a stream that nobody reads any more. The rest of a half-used stream does not run."""
        if half_used:
            self.cancel_soon(job, call_errors.abandoned(), kill=False)
        else:
            self.loop.submit(job.discard)

    def expect_no_reader(self, tell: Iterable[Callable[[], object]] = ()) -> None:
        """Let streams run to their ends although nobody reads them, and then call the functions `tell`."""
        self.loop.submit(self.queue.expect_no_reader)
        for function in tell:
            self.loop.submit(function)

    # --- questions ------------------------------------------------------------------------------

    def runs(self, target: Target) -> bool:
        """Return whether a worker runs the call with this target."""
        return self._ask(lambda: any(worker.runs(target) for worker in self.workers))

    @property
    def has_begun_to_end(self) -> bool:
        """Whether the pool ends, or has ended."""
        return self.loop.ended

    @property
    def failure(self) -> BaseException | None:
        """Why no call can run any more; None if calls can run."""
        return self.queue.broken

    def wait_for_calls(self) -> None:
        """Wait until nothing is left to do except for the readers of streams."""
        self.loop.wait(lambda: self.loop.ended or not self._has_calls())

    def _has_calls(self) -> bool:
        unfinished = list(self.queue.unfinished)
        waiting = any(not isinstance(job, StreamJob) or job.unbounded for job in unfinished)
        return waiting or self.loop.has_actions

    def keep_before_leaving(self) -> None:
        """Give the workers enough to do until this thread comes back to read more results."""
        if self.dispatcher.holds_back:
            self.loop.run_once()

    def pids(self) -> list[int]:
        """Return the process numbers of the workers, once all that were asked for are there."""
        self.loop.run_once()
        self.loop.wait(lambda: self.loop.ended or not self.supervisor.awaited)
        members = self.workers.members
        return [members[number].pid for number in sorted(members)]

    # --- size, output and views -----------------------------------------------------------------

    @property
    def most_workers(self) -> int:
        """The number of workers that the scoreboard has room for."""
        return self.board.slots

    def begin_resize(self, processes: int) -> Callable[[], bool]:
        """Keep this many workers from now on. Return a function that tells whether the new ones are there."""
        resized = False

        def action() -> None:
            nonlocal resized
            self.supervisor.resize(processes)
            resized = True

        self.loop.submit(action)
        return lambda: self.loop.ended or (resized and not self.supervisor.awaited)

    def summarize(self, make: Callable[[PoolStats, Callable[[int], int]], T]) -> T:
        """Return what `make` makes of the statistics, and of a function that tells when a worker was ready.

        That function takes the number of a worker. It returns monotonic ns, and 0 if the worker is not ready.
        """
        return self.inquire(lambda: make(self.metrics.statistics, self.ready_at))

    @property
    def sink(self) -> Sink | None:
        """The function that gets what workers write to stdout and stderr; None if that is not captured."""
        collector = self.supervisor.collector
        return None if collector is None or not collector.streams else collector.sink

    def redirect_output(self, sink: Sink) -> None:
        """Give what the workers write from now on to another function, if it is captured."""
        collector = self.supervisor.collector
        if collector is not None:
            collector.redirect(sink)

    def at_end(self, function: Callable[[], object]) -> None:
        """Call a function when the pool has ended and all output has been handed over; the last one first."""
        self._at_end.append(function)

    def not_at_end(self, function: Callable[[], object]) -> None:
        """Undo `at_end`. It may be too late."""
        with suppress(ValueError):  # the pool is ending
            self._at_end.remove(function)

    def attach_scoreboard(self) -> Scoreboard:
        """Return a mapping of the scoreboard that outlives the pool. Close it."""
        return Scoreboard.attach(self.board_fd.fileno(), writable=False)


def _nothing() -> None:
    """Do nothing: only a turn is wanted."""
