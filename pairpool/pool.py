"""`Pool`: `multiprocessing.Pool` over SEQPACKET socketpairs.

The documentation of `multiprocessing.pool.Pool` is the specification of every method that it has; docstrings here
say what is the same in a line and what is more in full.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, overload

from pairpool.linux import forking, interrupts, pidfds, requirements
from pairpool.master import call_errors
from pairpool.master.engine import Engine
from pairpool.master.functions import Function
from pairpool.master.jobs.base import MANY, Calls, MapJob, Target
from pairpool.master.jobs.intake import Iteration, Source, Span, gather, length_of, take_here
from pairpool.master.jobs.stream import StreamJob, StreamSpec
from pairpool.opening import descriptors_per_worker, open_engine
from pairpool.options import CallOptions, Limits, PoolOptions, RetryOn, check_processes
from pairpool.results.async_result import AsyncResult, MapResult
from pairpool.results.future import PoolFuture
from pairpool.results.iterator import IMapIterator
from pairpool.scoreboard.board import PoolWord
from pairpool.scoreboard.stacks import read_stacks
from pairpool.transport.items import standalone
from pairpool.transport.protocol import Mode

if TYPE_CHECKING:
    from rich.console import Console

    from pairpool.output_lines import OutputLine
    from pairpool.status import PoolStatus
    from pairpool.transport.segments import Shared
    from pairpool.view.live import LiveView
    from pairpool.view.report import PoolReport

__all__ = ["Pool"]

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"
START_METHODS = PoolWord.METHODS
SLOTS = 4096
DESCRIPTORS_EACH = 4
DESCRIPTORS_BESIDE = 16

_NO_KWDS: dict[str, Any] = {}

_names = itertools.count(1)
_open_masters: weakref.WeakSet[Engine] = weakref.WeakSet()


def _end_all() -> None:
    """At interpreter exit: no pool outlives its program."""
    for master in list(_open_masters):
        if master.identity.is_here():
            master.terminate()


atexit.register(_end_all)


class Pool:
    """A pool of worker processes with the methods of `multiprocessing.Pool`.

    Args:
        processes: how many workers; by default as many as this process may use cores (affinity and cgroup quota).
            The pool opens when two a core are there; `resize` waits for all.
        initializer: called in every worker before its first task, with `initargs`.
        initargs: arguments of the initializer.
        maxtasksperchild: tasks after which a worker is replaced by a fresh one; None for never.
        start_method: `"fork"` (workers inherit what the program has loaded), `"forkserver"` (they come from a fresh
            interpreter: for programs with threads, CUDA or gRPC), or `"direct"` (forked by this very process, which
            then ignores SIGCHLD while the pool is open).
        name: what views call the pool.
        task_timeout: seconds that each item of a call may run, from its own start; then it raises `TaskTimeout`, and
            its worker ends with every process that the task had started. None for any time. Unpickling its argument
            and pickling its result have as long each, but at least 10 s.
        retries: how often an item is run again whose worker died.
        retry_on: types of exceptions after which it is run again as well; `TaskTimeout` may be one.
        memory_limit: bytes, or a text such as `"2GB"`, that a worker may use beyond what it inherited (private memory;
            shared pages do not count). One that is above it between two batches is replaced; one that passes it inside
            a task is ended, and the item raises `WorkerDied`. None for any number.
        start_timeout: seconds that the initializer may take; None for any time.
        chunksize: items to a batch for calls that do not say; None for batches by time. With 1, single calls go one by
            one, too: nothing in this pool ever runs twice unless `retries` allows it.
        live: True for a live view of the pool on standard error, until it ends; see `live`.
        trace: path of a file into which all that the pool does is written as it goes, in the Chrome trace format, which
            Perfetto opens and `pairpool timeline` draws. What the file held is lost.
        capture: True to take what tasks, their C code and programs that they start write to stdout and stderr, and
            print it by whole lines, `[worker 3] text`, to this program's `sys.stdout` and `sys.stderr`; or a function
            that is called with each `OutputLine` instead, in a thread of the pool's own. What tasks wrote has been
            handed over when `join` or `terminate` returns, or the `with` block is left.
        log_level: level, such as `"INFO"` or `logging.INFO`, from which on log records of workers are handed to the
            loggers of the same names here, whose own levels count, too; they have the attribute `worker`. None leaves
            logging in workers as they inherit it.

    `task_timeout`, `retries` and `retry_on` can be given to each call, too; `math.inf` lifts the pool's time limit.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong type.
        OSError: the platform, or a limit on descriptors or processes, does not allow it; the text names which.

    Example:
        >>> from pairpool import Pool
        >>> with Pool(2) as pool:
        ...     pool.map(abs, [-1, 2, -3])
        [1, 2, 3]
    """

    _master: Engine
    _daemon = True  # what multiprocessing calls the workers: their tasks can start none of its processes

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        *,
        start_method: str = "fork",
        name: str | None = None,
        task_timeout: float | None = None,
        retries: int = 0,
        retry_on: RetryOn = (),
        memory_limit: int | str | None = None,
        start_timeout: float | None = None,
        chunksize: int | None = None,
        live: bool = False,
        trace: str | os.PathLike[str] | None = None,
        capture: bool | Callable[[OutputLine], object] = False,
        log_level: int | str | None = None,
    ) -> None:
        self._state = "INIT"
        try:
            with interrupts.defer_signals():
                requirements.require_linux()
                self._options = PoolOptions(
                    processes,
                    initializer,
                    initargs,
                    maxtasksperchild,
                    start_method=start_method,
                    name=name,
                    task_timeout=task_timeout,
                    retries=retries,
                    retry_on=retry_on,
                    memory_limit=memory_limit,
                    start_timeout=start_timeout,
                    chunksize=chunksize,
                    live=live,
                    trace=trace,
                    capture=capture,
                    log_level=log_level,
                )
                self._calls = self._options.calls
                self._single_calls = self._calls.of_single_calls()
                self._processes = self._options.workers
                self._master = open_engine(self._options, self._start, daemon=self._daemon)
                _open_masters.add(self._master)
                self._state = RUN
            if live:
                self.live()
        except BaseException:
            if self._state == RUN:  # there is no pool, then
                self.terminate()
            raise

    def _start(self, master: Engine) -> None:
        master.start()

    # --- calls ----------------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        *,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> R:
        """`func(*args, **kwds)` in a worker; waits for the result.

        Raises what the function raises; `WorkerDied`, `TaskTimeout`; `CancelledError` if the pool is terminated
        meanwhile; `ValueError` if it does not run.
        """
        self._check_running()
        result: AsyncResult[R] = AsyncResult(self, self._master)
        job = Calls(Mode.CALL, self._single_calls.override(task_timeout, retries, retry_on))
        function = self._function(func, result)
        if function is not None:
            keywords = dict(kwds) if kwds else _NO_KWDS
            job.add(result, self._master.pack_call(function.number, tuple(args), keywords, is_left=False))
            self._master.submit_job(job)
        self._wait_or_cancel(result, job)
        return result.get()

    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> AsyncResult[R]:
        """`apply` that returns at once; callbacks run in the thread that drives the pool."""
        self._check_running()
        master = self._master
        options = self._single_calls.override(task_timeout, retries, retry_on)
        result = AsyncResult(self, master, callback, error_callback)
        function = self._function(func, result)
        if function is not None:
            keywords = dict(kwds) if kwds else _NO_KWDS
            master.submit_call(result, function.number, tuple(args), keywords, options)
        master.drive_in_background()
        return result

    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> PoolFuture[R]:
        """`func(*args, **kwargs)` in a worker, as a `concurrent.futures.Future`."""
        return self._submit(func, args, kwargs, as_process_pool=False)

    def _submit(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, as_process_pool: bool
    ) -> PoolFuture[Any]:
        self._check_running()
        master = self._master
        future: PoolFuture[Any] = PoolFuture(self, master, as_process_pool=as_process_pool)
        if as_process_pool and not callable(func):
            future.set_exception(TypeError(f"{type(func).__name__!r} object is not callable"))
            return future
        function = self._function(func, future)
        if function is not None:
            master.submit_call(future, function.number, args, kwargs or _NO_KWDS, self._single_calls)
        master.drive_in_background()
        return future

    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **limits: Unpack[Limits],
    ) -> list[R]: ...

    @overload
    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: bool,
        **limits: Unpack[Limits],
    ) -> list[R | BaseException]: ...

    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: bool = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> list[R] | list[R | BaseException]:
        """`[func(x) for x in iterable]`, in the workers.

        All items are over before it returns or raises. Items go out in batches that take about a millisecond. No item
        sees what a task does to another one; but a large object (64 KiB) that several items contain is one object for
        all items of a batch, except with `chunksize=1`.

        Args:
            chunksize: items to a batch, if you want to fix it; with 1, no item ever runs twice.
            return_exceptions: put exceptions into the list in place of results, instead of raising the first.

        Raises:
            Exception: what the first item raised that failed, `WorkerDied` and `TaskTimeout` among it; what the input
                raised, after the items before it have run.
            CancelledError: the pool was terminated meanwhile.
            ValueError: the pool does not run, or an argument is out of range.
        """
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, None, return_exceptions)
        return self._map_now(func, iterable, Mode.MAP, options)

    @overload
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **limits: Unpack[Limits],
    ) -> list[R]: ...

    @overload
    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: bool,
        **limits: Unpack[Limits],
    ) -> list[R | BaseException]: ...

    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: bool = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> list[R] | list[R | BaseException]:
        """`map` for a function of several arguments: each item is unpacked, `func(*item)`."""
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, None, return_exceptions)
        return self._map_now(func, iterable, Mode.STAR, options)

    @overload
    def map_async(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **limits: Unpack[Limits],
    ) -> MapResult[list[R]]: ...

    @overload
    def map_async(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        callback: Callable[[list[R | BaseException]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        return_exceptions: bool,
        **limits: Unpack[Limits],
    ) -> MapResult[list[R | BaseException]]: ...

    def map_async(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        return_exceptions: bool = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> MapResult[list[R]] | MapResult[list[R | BaseException]]:
        """`map` that returns at once.

        The items are pickled as their batches go out: do not change them before the result is there.
        """
        result: MapResult[list[Any]] = MapResult(self, self._master, callback, error_callback)
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, None, return_exceptions)
        self._start_map(result, func, iterable, Mode.MAP, options, is_left=True)
        self._master.drive_in_background()
        return result

    @overload
    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **limits: Unpack[Limits],
    ) -> MapResult[list[R]]: ...

    @overload
    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[R | BaseException]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        return_exceptions: bool,
        **limits: Unpack[Limits],
    ) -> MapResult[list[R | BaseException]]: ...

    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        return_exceptions: bool = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> MapResult[list[R]] | MapResult[list[R | BaseException]]:
        """`starmap` that returns at once."""
        result: MapResult[list[Any]] = MapResult(self, self._master, callback, error_callback)
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, None, return_exceptions)
        self._start_map(result, func, iterable, Mode.STAR, options, is_left=True)
        self._master.drive_in_background()
        return result

    @overload
    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
        **limits: Unpack[Limits],
    ) -> IMapIterator[R]: ...

    @overload
    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool,
        **limits: Unpack[Limits],
    ) -> IMapIterator[R | BaseException]: ...

    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> IMapIterator[R] | IMapIterator[R | BaseException]:
        """Results in the order of the input, as they come; the input may be endless.

        Args:
            chunksize: as for `map`.
            buffersize: how many items may be taken from the input and not yet yielded. By default these are a few
                batches for each worker: what the workers, or the input, need 0.1 s for, and at most 64 MiB; but two
                items for each worker at least. An input that waits for a result of this call needs `buffersize=1`.
            return_exceptions: yield exceptions instead of raising them.
        """
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, buffersize, return_exceptions)
        return self._start_stream(func, iterable, options, ordered=True)

    @overload
    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
        **limits: Unpack[Limits],
    ) -> IMapIterator[R]: ...

    @overload
    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool,
        **limits: Unpack[Limits],
    ) -> IMapIterator[R | BaseException]: ...

    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> IMapIterator[R] | IMapIterator[R | BaseException]:
        """`imap` with results in the order in which they are ready."""
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, buffersize, return_exceptions)
        return self._start_stream(func, iterable, options, ordered=False)

    def _stream_ahead(
        self, func: Callable[..., R], items: Iterable[Any], chunksize: int | None, buffersize: int | None
    ) -> IMapIterator[R]:
        """A stream of `func(*item)`; without a `buffersize` it runs on to its end whether it is read or not."""
        options = self._calls.override(chunksize=chunksize, buffersize=buffersize)
        stream: IMapIterator[R] = self._start_stream(
            func, items, options, ordered=True, mode=Mode.STAR, is_ahead=buffersize is None
        )
        return stream

    def _function(self, func: Callable[..., Any], result: Target) -> Function | None:
        """The function, ready to travel; if it cannot be pickled, that is the result, and None is returned."""
        if not callable(func):
            raise TypeError(f"{type(func).__name__!r} object is not callable")
        try:
            return self._master.functions.get(func)
        except Exception as error:
            reason = error
        self._master.loop.submit(lambda: result.set_outcome(False, reason))
        return None

    def _map_now(self, func: Callable[..., R], iterable: Iterable[Any], mode: int, options: CallOptions) -> list[R]:
        result: MapResult[list[R]] = MapResult(self, self._master)
        job = self._start_map(result, func, iterable, mode, options)
        if job is not None:
            self._wait_or_cancel(result, job)
        return result.get()

    def _start_map(
        self,
        result: MapResult[Any],
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mode: int,
        options: CallOptions,
        *,
        is_left: bool = False,
    ) -> MapJob | None:
        self._check_running()
        gathered = gather(iterable, is_left=is_left)
        function = self._function(func, result)
        if function is None:
            return None
        job = MapJob(function, mode, gathered, options, result.set_outcome)
        result.job = job
        self._master.submit_job(job)
        return job

    def _start_stream(
        self,
        func: Callable[..., R],
        iterable: Iterable[Any],
        options: CallOptions,
        *,
        ordered: bool,
        mode: int = Mode.MAP,
        is_ahead: bool = False,
    ) -> IMapIterator[R]:
        self._check_running()
        source, total = self._source_of(iterable, everything=is_ahead), length_of(iterable)
        if not callable(func):
            raise TypeError(f"{type(func).__name__!r} object is not callable")
        function = self._master.functions.get(func)
        spec = StreamSpec(
            ordered,
            total,
            is_ahead=is_ahead,
            waits_for_reader=mode == Mode.STAR and not is_ahead,
            frees_results=mode == Mode.STAR,
        )
        job = StreamJob(function, mode, source, options, spec)
        iterator: IMapIterator[R] = IMapIterator.of(
            self, self._master, job, return_exceptions=options.return_exceptions
        )
        try:
            self._master.submit_job(job)
            self._master.loop.run_once()
            if options.task_timeout is not None or is_ahead:
                self._master.drive_in_background()  # limits hold, too, while the reader is busy
        except BaseException as error:
            self._master.cancel(job, call_errors.left_by(error), kill=True)
            raise
        return iterator

    def _source_of(self, iterable: Iterable[Any], *, everything: bool) -> Source:
        """Where a stream takes its items from.

        Args:
            everything: take all items now, unless they are complete already. Raises what the input raises.
        """
        if type(iterable) is range:
            return Span(iterable)
        source = Iteration(iter(iterable), self._master.codec)
        if not everything or type(iterable) is list:
            return source
        with interrupts.defer_signals(), interrupts.allow_signals():
            return Span(source.pull(MANY, exactly=True))

    def taken(self, thing: Any) -> Any:
        """What stands for an object that is part of an argument: the task gets the object as it is now, by itself.

        Two such objects have nothing in common in the task, even if they are parts of one argument. What cannot be
        pickled is returned as it is.
        """
        return standalone(take_here(self._master.codec, thing, own=True), thing)

    def _wait_or_cancel(self, result: AsyncResult[Any], job: Calls | MapJob) -> None:
        """Wait for a call that nobody can come back to: if the wait is interrupted, its tasks end."""
        try:
            result.wait()
        except BaseException as error:
            reason = call_errors.left_by(error)
            if isinstance(job, Calls):  # other threads' calls may have joined it
                self._master.cancel_call(result, reason, kill=True)
            else:
                self._master.cancel(job, reason, kill=True)
            raise

    # --- the pool itself ------------------------------------------------------------------------

    def share(self, obj: T) -> Shared[T]:
        """Write an object once into memory that all workers map, and return a handle for it.

        Passed to a task as an argument, in a partial or in a closure, the handle is the object itself there: the same
        one for all tasks of a worker. Buffers of 4 KiB and more (arrays) are mapped copy-on-write: a task may write to
        them, which its worker alone sees, and read-only ones stay read-only. The rest is unpickled once a worker, at
        the first use; so are `bytes`, which own their memory: a `memoryview` of them arrives as one, without a copy.
        A handle that a function finds in a global which the workers have inherited is a handle there, not the object.

        The memory is freed when neither the handle nor a call or function that has it is left, by `close()`, at the end
        of a `with` block, or with the pool. Other pools of this process may use it, too, if their workers know the
        classes in it.

        Raises:
            ValueError: the pool is not running.
            OSError, MemoryError: there is no memory or no descriptor for it.
            Exception: whatever says that it cannot be pickled.

        Example:
            >>> with Pool() as pool, pool.share(table) as shared:
            ...     pool.map(partial(look_up, shared), keys)
        """
        self._check_running()
        return self._master.shares.share(obj)

    def resize(self, processes: int) -> None:
        """Keep this many workers from now on; those that are too many finish what they hold."""
        self._master.loop.wait(self.begin_resize(processes))

    def begin_resize(self, processes: int) -> Callable[[], bool]:
        """`resize` that does not wait; returns what tells whether it is done."""
        self._check_running()
        processes = check_processes(processes)
        if processes > self._master.board.slots:
            raise ValueError(f"this pool can have at most {self._master.board.slots} processes")
        more = max(0, processes - self._processes)
        requirements.require_descriptors(descriptors_per_worker(self._options) * more, f"{more} more workers")
        self._processes = processes
        return self._master.begin_resize(processes)

    def status(self) -> PoolStatus:
        """What the pool and each worker are doing, read from the status board without disturbing them."""
        forking.require_owner(self._master.identity)
        return self._master.status(self._state)

    def live(self, console: Console | None = None) -> LiveView:
        """Show the pool on the terminal, from now on until the view is stopped or the pool ends.

        Above, tasks done, failed and pending, how many a second, CPU and memory; then a bar for each call that runs; a
        row for each worker with its task, how long it has been at it, and how far it is (`pairpool.progress`); the
        last failures. What tasks write to stdout and stderr comes above it by whole lines, `[3] text` for worker 3
        (from now on: a task that is running already is caught when it has ended). It is drawn from shared memory, four
        times a second at most, and takes about one per cent of a core.

        It is drawn on standard error. Where that is no terminal, a plain line comes every ten seconds and at the end;
        in a notebook it is drawn in the cell's output.

        Args:
            console: a console of rich to draw on instead.

        Example:
            >>> with Pool(8) as pool, pool.live():
            ...     pool.map(work, items)
        """
        self._check_running()
        from pairpool.reporting import make_view

        view = None
        try:
            with interrupts.defer_signals():
                view = make_view(self._master, console, keeps_sink=callable(self._options.capture))
            return view  # noqa: RET504  # it is stopped below if a handler raises as the block ends
        except BaseException:
            if view is not None:  # a handler that was held back has raised
                view.stop()
            raise

    def report(self) -> PoolReport:
        """What the pool has done and where the time went, until now or until it ended: `print(pool.report())`.

        Tasks by function with their number, failures and times; the slowest with their arguments; what share of the
        time each worker was busy, waited, or was being started; how much of the pool was used. Print it with rich's
        `print` to have it in colour.
        """
        from pairpool.reporting import make_report

        forking.require_owner(self._master.identity)
        master = self._master
        return master.inquire(
            lambda: make_report(self.status(), master.accounts.statistics, master.ready_at, time.monotonic_ns())
        )

    def stacks(self, timeout: float = 1.0) -> dict[int, str]:
        """The Python stack of each worker's task, by the worker's number, the most recent call first.

        Tasks go on undisturbed, also those that hold the GIL in a loop or sleep in native code; but native code that
        sleeps or polls may return early (EINTR), as from any signal. A worker without a task is `idle`; where no stack
        can be had within `timeout` seconds, a text in brackets says why, such as that the worker is stopped.

        Example:
            >>> with Pool(1) as pool:
            ...     print(pool.stacks()[0])
            idle
        """
        workers = {worker.number: worker.pid for worker in self.status().workers if worker.pid}
        found = read_stacks(workers.values(), timeout)
        return {number: found[pid] for number, pid in workers.items()}

    def close(self) -> None:
        """Take no more calls; those there are run to their ends."""
        if self._state == RUN:
            forking.require_owner(self._master.identity)
            self._state = CLOSE
            self._master.close()

    def terminate(self) -> None:
        """End at once: running tasks are killed, and calls that have not ended raise `CancelledError`."""
        forking.require_owner(self._master.identity)
        self._state = TERMINATE
        self._master.terminate()

    def join(self) -> None:
        """Wait until all calls have ended and all workers have exited; `close` or `terminate` comes first."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        forking.require_owner(self._master.identity)
        if self._state == CLOSE:
            self._master.finish()
        else:
            self._master.terminate()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.terminate()

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        forking.require_owner(self._master.identity)

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        cls = type(self)
        size = self._master.size if hasattr(self, "_master") else 0
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={size}>"

    def __del__(self, _warn: Any = warnings.warn, _run: str = RUN) -> None:
        master = getattr(self, "_master", None)
        if master is None or not master.identity.is_here():
            return
        if self._state == _run:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
        master.terminate()

    # --- what users of multiprocessing.Pool look at though they should not ----------------------

    @property
    def _pool(self) -> list[_Process]:
        self._master.wait_for_workers()
        members = self._master.crew.members
        return [_Process(members[number].pid) for number in sorted(members)]

    def _repopulate_pool(self) -> None:
        self._master.wait_for_workers()


class _Process:
    """A worker as `multiprocessing.Process` shows one, for those who list `pool._pool`."""

    daemon = True

    def __init__(self, pid: int) -> None:
        self.pid = self.ident = pid

    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def join(self, timeout: float | None = None) -> None:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            pidfds.wait_ended(pidfd, timeout)
        finally:
            os.close(pidfd)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
