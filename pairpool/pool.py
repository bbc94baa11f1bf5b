"""`Pool`: `multiprocessing.Pool` over SEQPACKET socketpairs.

Pool ─► PoolCalls ─► PoolStreams      the methods: the pool itself; map, apply; imap
 │
 └────► Engine                        what the pool is in this process (`master/`)
"""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from pairpool.linux import interrupts, requirements
from pairpool.master.engine import Engine
from pairpool.opening import descriptors_per_worker, open_engine
from pairpool.options import PoolOptions, RetryOn, check_processes
from pairpool.pool_calls import PoolCalls
from pairpool.pool_processes import PoolProcess
from pairpool.pool_streams import PoolStreams
from pairpool.scoreboard.stacks import read_stacks

if TYPE_CHECKING:
    from rich.console import Console

    from pairpool.output_lines import OutputLine
    from pairpool.status import PoolStatus
    from pairpool.transport.segments import Shared
    from pairpool.view.live import LiveView
    from pairpool.view.report import PoolReport

__all__ = ["Pool"]

T = TypeVar("T")

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"

_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _end_all() -> None:
    """End all pools at interpreter exit, because no pool outlives its program."""
    for engine in list(_open_engines):
        if engine.is_here():
            engine.terminate()


atexit.register(_end_all)


class Pool(PoolCalls):
    """A pool of worker processes with the methods of `multiprocessing.Pool`.

    The documentation of `multiprocessing.pool.Pool` is the specification of every method that it has.

    Args:
        processes: the number of workers; by default the number of cores that this process may use (affinity and cgroup
            quota). The pool opens when two workers per core are there; `resize` waits for all.
        initializer: called in every worker before its first task, with `initargs`.
        initargs: arguments of the initializer.
        maxtasksperchild: tasks after which a worker is replaced by a fresh one; None for never.
        start_method: `"fork"` (workers inherit what the program has loaded), `"forkserver"` (workers come from a fresh
            interpreter; use it for programs with threads, CUDA or gRPC), or `"direct"` (this very process forks them,
            and ignores SIGCHLD while the pool is open).
        name: what views call the pool.
        task_timeout: seconds that each item of a call may run, from its own start. Then it raises `TaskTimeout`, and
            its worker ends together with every process that the task has started. None for any time. Unpickling the
            argument and pickling the result may each take as long, but at least 10 s.
        retries: how often an item runs again if its worker died.
        retry_on: types of exceptions after which an item runs again as well; `TaskTimeout` may be one.
        memory_limit: bytes, or a text such as `"2GB"`, that a worker may use beyond what it inherited (private memory;
            shared pages do not count). A worker that is above the limit between two batches is replaced. A worker that
            passes it inside a task is ended, and the item raises `WorkerDied`. None for any number.
        start_timeout: seconds that the initializer may take; None for any time.
        chunksize: items per batch for calls that do not give one; None for batches by time. With 1, single calls go one
            by one, too: nothing in this pool ever runs twice unless `retries` allows it.
        live: True for a live view of the pool on standard error until the pool ends; see `live`.
        trace: path of a file to which everything that the pool does is written as it goes, in the Chrome trace format.
            Perfetto opens it, and `pairpool timeline` draws it. An existing file is overwritten.
        capture: True to take what tasks, their C code and programs that they start write to stdout and stderr, and to
            print it line by line, as `[worker 3] text`, to this program's `sys.stdout` and `sys.stderr`. Or a function
            that is called with each `OutputLine` instead, in a thread of the pool. Everything that tasks wrote has
            been handed over when `join` or `terminate` returns, or when the `with` block ends.
        log_level: level, such as `"INFO"` or `logging.INFO`, from which log records of workers are handed to the
            loggers of the same names here. The levels of these loggers count, too. The records have the attribute
            `worker`. None leaves logging in workers as they inherit it.

    `task_timeout`, `retries` and `retry_on` can be given to each call, too; `math.inf` lifts the pool's time limit.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong type.
        OSError: the platform, or a limit on descriptors or processes, does not allow the pool; the text says which.

    Example:
        >>> from pairpool import Pool
        >>> with Pool(2) as pool:
        ...     pool.map(abs, [-1, 2, -3])
        [1, 2, 3]
    """

    _daemon = True  # as multiprocessing calls its workers: their tasks cannot start processes with multiprocessing

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
                ).checked()
                self._calls = self._options.calls
                self._single_calls = self._calls.of_single_calls()
                self._processes = self._options.workers
                open_engine(self._options, self._adopt, daemon=self._daemon)
                self._start()
                self._state = RUN
            if live:
                self.live()
        except BaseException:
            self._state = TERMINATE
            if hasattr(self, "_engine"):  # a handler of a signal may raise at any step
                self._engine.terminate()
            raise

    def _adopt(self, engine: Engine) -> None:
        """Own the engine from the moment it exists, so that nothing of it is left if a later step raises."""
        self._engine = engine
        _open_engines.add(engine)

    def _start(self) -> None:
        self._engine.start()

    # --- the pool itself ------------------------------------------------------------------------

    def share(self, obj: T) -> Shared[T]:
        """Write an object once into memory that all workers map, and return a handle for it.

        Pass the handle to a task as an argument, in a partial or in a closure. There it is the object itself, and all
        tasks of a worker get the same one. Buffers of 4 KiB and more (arrays) are mapped copy-on-write. A task may
        write to them, and only its worker sees that; read-only buffers stay read-only. The rest is unpickled once per
        worker, at the first use. So are `bytes`, which own their memory: a `memoryview` of them arrives as one, without
        a copy. A handle that a function finds in a global which the workers have inherited stays a handle, not the
        object.

        `close()` frees the memory, and so does the end of a `with` block or of the pool. Otherwise the memory is freed
        when neither the handle nor a call or function that contains it is left. Other pools of this process may use the
        handle, too, if their workers know the classes in it.

        Raises:
            ValueError: the pool is not running.
            OSError, MemoryError: there is no memory or no descriptor for it.
            Exception: whatever says that it cannot be pickled.

        Example:
            >>> with Pool() as pool, pool.share(table) as shared:
            ...     pool.map(partial(look_up, shared), keys)
        """
        self._check_running()
        return self._engine.share(obj)

    def taken(self, thing: Any) -> Any:
        """Return what stands for an object that is part of an argument: the task gets the object as it is now.

        Two such objects have nothing in common in the task, even if they are parts of one argument. An object that
        cannot be pickled is returned as it is.
        """
        return self._engine.take(thing)

    def resize(self, processes: int) -> None:
        """Keep this many workers from now on. Workers that are too many finish what they hold."""
        self._engine.wait(self.begin_resize(processes))

    def begin_resize(self, processes: int) -> Callable[[], bool]:
        """Start `resize`, and return a function that tells whether it is done."""
        self._check_running()
        processes = check_processes(processes)
        if processes > self._engine.most_workers:
            raise ValueError(f"this pool can have at most {self._engine.most_workers} processes")
        more = max(0, processes - self._processes)
        requirements.require_descriptors(descriptors_per_worker(self._options) * more, f"{more} more workers")
        self._processes = processes
        return self._engine.begin_resize(processes)

    def status(self) -> PoolStatus:
        """Return what the pool and each worker are doing, read from the scoreboard without disturbing the workers."""
        self._engine.require_owner()
        return self._engine.status(self._state)

    def live(self, console: Console | None = None) -> LiveView:
        """Show the pool on the terminal, from now on until the view is stopped or the pool ends.

        The view has four parts. At the top, tasks done, failed and pending, tasks per second, CPU and memory. Then one
        bar per call that runs. Then one row per worker, with its task, how long the task has run, and how far it is
        (`pairpool.progress`). Last, the latest failures. From now on, the output of tasks appears above the view
        line by line, `[3] text` for worker 3. The output of a task that runs already appears when the task has ended.
        The view is drawn from shared memory, at most four times per second, and takes about one per cent of
        a core.

        It is drawn on standard error. If that is no terminal, a plain line is written every ten seconds and at the end.
        In a notebook, the view is drawn in the cell's output.

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
                view = make_view(self._engine, console, keeps_sink=callable(self._options.capture))
            return view  # noqa: RET504  # it is stopped below if a handler raises as the block ends
        except BaseException:
            if view is not None:  # a deferred handler has raised
                view.stop()
            raise

    def report(self) -> PoolReport:
        """Return what the pool has done and where the time went, until now or until it ended: `print(pool.report())`.

        The report lists tasks by function, with their number, failures and times, and the slowest tasks with their
        arguments. It says which share of the time each worker was busy, waited, or was starting, and how much of the
        pool was used. Print it with rich's `print` to have it in colour.
        """
        from pairpool.reporting import report_of

        self._engine.require_owner()
        return report_of(self._engine, self.status)

    def stacks(self, timeout: float = 1.0) -> dict[int, str]:
        """Return the Python stack of each worker's task, by the worker's number, the most recent call first.

        Tasks go on undisturbed, also those that hold the GIL in a loop or sleep in native code. But native code that
        sleeps or polls may return early (EINTR), as after any signal. A worker without a task is `idle`. If a worker
        gives no stack within `timeout` seconds, a text in brackets says why, such as that the worker is stopped.

        Example:
            >>> with Pool(1) as pool:
            ...     print(pool.stacks()[0])
            idle
        """
        workers = {worker.number: worker.pid for worker in self.status().workers if worker.pid}
        found = read_stacks(workers.values(), timeout)
        return {number: found[pid] for number, pid in workers.items()}

    def close(self) -> None:
        """Take no more calls. The calls that are there run to their ends."""
        if self._state == RUN:
            self._engine.require_owner()
            self._state = CLOSE
            self._engine.close()

    def terminate(self) -> None:
        """End at once: running tasks are killed, and calls that have not ended raise `CancelledError`."""
        self._engine.require_owner()
        self._state = TERMINATE
        self._engine.terminate()

    def join(self) -> None:
        """Wait until all calls have ended and all workers have exited. Call `close` or `terminate` first."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        self._engine.require_owner()
        if self._state == CLOSE:
            self._engine.finish()
        else:
            self._engine.terminate()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.terminate()

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        self._engine.require_owner()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        cls = type(self)
        size = self._engine.size if hasattr(self, "_engine") else 0
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={size}>"

    def __del__(self, _warn: Any = warnings.warn, _run: str = RUN) -> None:
        engine = getattr(self, "_engine", None)
        if engine is None or not engine.is_here():
            return
        try:
            if self._state == _run:
                _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
        finally:  # the warning may be an error
            engine.terminate()

    # --- what users of multiprocessing.Pool look at although it is private ----------------------

    @property
    def _pool(self) -> list[PoolProcess]:
        return [PoolProcess(pid) for pid in self._engine.pids()]

    def _repopulate_pool(self) -> None:
        self._engine.pids()


def _name_methods_after_pool() -> None:
    """Let error texts say `Pool.map()`, although a base class of `Pool` defines the method."""
    for part in (PoolCalls, PoolStreams):
        for name, method in vars(part).items():
            if isinstance(method, FunctionType):
                setattr(method, "__qualname__", f"Pool.{name}")  # noqa: B010  # mypy does not allow the assignment


_name_methods_after_pool()
