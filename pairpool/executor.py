"""`Executor`: `concurrent.futures.ProcessPoolExecutor` over a `Pool`; `get_executor`: one executor for the program.

    Executor ─► ExecutorPool, opened at the first call ─► Pool

The documentation of `concurrent.futures` is the specification.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import operator
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar, Unpack

from pairpool.errors import InitializerFailed
from pairpool.executor_exit import (
    is_too_late_to_submit,
    pools_of_executors,
    shutdown_error,
    too_late_error,
    when_main_ends,
)
from pairpool.executor_pool import ExecutorPool
from pairpool.linux import cgroup, forking
from pairpool.options import ExecutorKeywords, names_of_options
from pairpool.pool import Pool
from pairpool.results.future import PoolFuture, for_process_pool
from pairpool.results.iterator import IMapIterator

__all__ = ["Executor", "get_executor", "when_main_ends"]

R = TypeVar("R")
P = ParamSpec("P")

_METHOD_OF_CONTEXT = {
    "fork": "fork",
    "spawn": "forkserver",
    "forkserver": "forkserver",
    "loky": "forkserver",
    "loky_init_main": "forkserver",
}

_COMPLETE = frozenset({list, tuple, range, str, bytes, dict, set, frozenset, itertools.repeat})
"""Types of inputs that run none of the caller's code when items are taken."""

_executors: weakref.WeakSet[Executor] = weakref.WeakSet()


class Executor(concurrent.futures.Executor):
    """Run calls in worker processes, as `concurrent.futures.ProcessPoolExecutor` does; it can replace that unchanged.

    There are three differences. A worker that dies fails only the call that it was running, with `WorkerDied` (here a
    `BrokenProcessPool`), and the executor goes on. Calls may be any callables, lambdas and closures included. `map`
    sends items in batches by time if no `chunksize` is given.

    The workers are forked at the first `submit` or `map`, from the program as it is then.

    Args:
        max_workers: the number of workers; by default the number of cores that this process may use.
        mp_context: a context of multiprocessing, or the name of one. Only its start method is used: `fork` is
            pairpool's `"fork"`, in which a zygote is forked once. All others, loky's included, are pairpool's
            `"forkserver"`, a fresh interpreter.
        initializer: called in every worker before its first call, with `initargs`. If it fails, calls fail with
            `InitializerFailed`, which is here a `BrokenProcessPool`, too.
        initargs: arguments of the initializer.
        max_tasks_per_child: calls after which a worker is replaced. It does not change the start method.
        options: options of `Pool`, such as `task_timeout`, `retries`, `memory_limit`, `live`, `name`.

    Example:
        >>> with Executor(4) as executor:
        ...     future = executor.submit(pow, 2, 10)
        ...     future.result()
        1024
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        **options: Unpack[ExecutorKeywords],
    ) -> None:
        max_workers = cgroup.cpu_allowance() if max_workers is None else max_workers
        if operator.index(max_workers) <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        unknown = options.keys() - names_of_options(keyword_only=True)
        if unknown:  # now, because the pool is opened only at the first call
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {min(unknown)!r}")
        if mp_context is not None:
            options.setdefault("start_method", _start_method_of(mp_context))
        self._max_workers = max_workers
        self._options: dict[str, Any] = {
            "initializer": initializer,
            "initargs": initargs,
            "maxtasksperchild": max_tasks_per_child,
            **options,
        }
        self._lock = threading.Lock()
        self._pool: ExecutorPool | None = None
        self._is_shut = False
        self._failure: BaseException | None = None  # of the initializer, while the pool opened
        self._identity = forking.Identity()
        _executors.add(self)

    # --- calls ----------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> PoolFuture[R]:
        """Run `fn(*args, **kwargs)` in a worker.

        Raises:
            RuntimeError: the executor was shut down, or the interpreter is ending.
            BrokenProcessPool: the initializer has failed.
            PoolInherited: this process was forked off the executor's owner.
        """
        return self._open().submit_call(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Return the results of `fn` on the items of the iterables taken together, in their order.

        All items are taken at once unless there is a `buffersize`. Each item of an iterator is pickled before the next
        one is taken. When an item has raised, or the iterator is dropped, the rest of the call is cancelled.

        Args:
            timeout: seconds, from this call on, after which waiting for a result raises `TimeoutError`.
            chunksize: items per batch; None for batches by time. A worker that dies fails only the item that it runs.
            buffersize: how many items may be taken from the iterables and not yet yielded. After a shutdown no more are
                taken: the results of those that were taken can be read, and then there is a RuntimeError.
        """
        if chunksize is not None and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        items: Any = zip(*iterables, strict=False)
        if buffersize is None and _COMPLETE.issuperset(map(type, iterables)):
            items = list(items)
        return _results(self._open().stream_ahead(fn, items, chunksize, buffersize), deadline)

    def _open(self) -> ExecutorPool:
        """Return the pool. Open it if that has not happened."""
        forking.require_owner(self._identity)
        with self._lock:
            if is_too_late_to_submit():
                raise too_late_error()  # first, because the pool has ended by then
            broken = self._broken
            if broken is not None:
                raise for_process_pool(broken)
            if self._is_shut:
                raise shutdown_error()
            if self._pool is None:
                try:
                    self._pool = ExecutorPool(self._max_workers, **self._options)
                except InitializerFailed as error:
                    self._failure = error
                    raise for_process_pool(error) from None
                pools_of_executors.add(self._pool)
            return self._pool

    @property
    def _broken(self) -> BaseException | None:
        """Why no call can run any more; None if calls can run."""
        if self._failure is None and self._pool is not None:
            self._failure = self._pool.failure
        return self._failure

    # --- the executor itself --------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """The pool below, for `status`, `report`, `stacks`, `live` and `share`. It is opened if it was not open."""
        return self._open()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False) -> None:
        """Take no more calls. The calls that are there run to their ends.

        Args:
            wait: return only when they have ended and the workers have exited.
            cancel_futures: cancel the calls, and the items of `map`, that no worker has begun or is free to begin at
                once.
            kill_workers: end all calls at once, as `terminate_workers` does. The name is loky's.
        """
        if kill_workers:
            self.terminate_workers()
            return
        pool = self._shut()
        if pool is not None:
            pool.finish(shutdown_error(), cancel=cancel_futures, wait=wait)

    def _shut(self) -> ExecutorPool | None:
        """Take no more calls. Return the pool, if there is one: the caller ends it."""
        with self._lock:
            self._is_shut = True
            pool, self._pool = self._pool, None
        return pool

    def resize(self, max_workers: int) -> None:
        """Keep this many workers from now on."""
        self._begin_resize(max_workers)()

    def _begin_resize(self, max_workers: int) -> Callable[[], object]:
        """Start `resize`. Return a function that waits for new workers.

        Callbacks may run while it waits, so hold no lock then.
        """
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        with self._lock:
            wait: Callable[[], object] = _do_not_wait
            if self._pool is not None and max_workers != self._max_workers:
                wait = functools.partial(self._pool.wait_until, self._pool.begin_resize(max_workers))
            self._max_workers = max_workers
            return wait

    @property
    def max_workers(self) -> int:
        """The number of workers that it has, or will have."""
        return self._max_workers

    @property
    def is_usable(self) -> bool:
        """Whether it takes calls in this process."""
        with self._lock:
            return not self._is_shut and self._broken is None and self._identity.is_here()

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where no thread would ever release it."""
        self._lock = threading.Lock()

    def terminate_workers(self) -> None:
        """Shut down at once: calls that have not ended are cancelled, and their workers end."""
        pool = self._shut()
        if pool is not None:
            pool.end_now()

    kill_workers = terminate_workers

    def kill_calls(self, futures: Iterable[PoolFuture[Any]]) -> None:
        """Cancel calls of this executor that have not ended. Workers that run one of them are replaced."""
        left = [future for future in list(futures) if not future.done()]
        with self._lock:
            pool = self._pool
        if left and pool is not None:
            pool.cancel_calls(left)

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.leave()  # what was submitted still runs

    @property
    def _processes(self) -> dict[int, Any]:
        """The workers by pid, for programs that look at them although the name is private."""
        with self._lock:
            pool = self._pool
        return {} if pool is None else {process.pid: process for process in pool.processes}

    def __repr__(self) -> str:
        state = "shut down" if self._is_shut else "broken" if self._broken is not None else "open"
        return f"<{type(self).__module__}.{type(self).__qualname__} max_workers={self._max_workers} {state}>"


def _do_not_wait() -> None:
    pass


def _results(stream: IMapIterator[R], deadline: float | None) -> Iterator[R]:
    """Yield the results of a stream until the deadline. When nobody wants more of them, cancel the rest."""
    try:
        if deadline is None:
            yield from stream
        else:
            yield from _until(deadline, stream)
    except Exception as error:
        raise for_process_pool(error) from error.__cause__
    finally:
        stream.leave()


def _until(deadline: float, stream: IMapIterator[R]) -> Iterator[R]:
    from multiprocessing import TimeoutError as NotYet

    while True:
        try:
            result = stream.next(max(0.0, deadline - time.monotonic()))
        except StopIteration:
            return
        except NotYet as error:
            if error.__cause__ is not None:
                raise  # a task raised it
            raise TimeoutError from None
        yield result


def _start_method_of(context: Any) -> str:
    method = context if isinstance(context, str) else context.get_start_method()
    if method not in _METHOD_OF_CONTEXT:
        raise ValueError(f"mp_context has a start method that pairpool does not know: {method!r}")
    return _METHOD_OF_CONTEXT[method]


# --- one executor for the program ---------------------------------------------------------------------

_shared: Executor | None = None
_shared_arguments: dict[str, Any] = {}
"""The arguments with which `_shared` was made."""

_shared_lock = threading.RLock()


def _reset_in_child() -> None:
    """Replace the locks in a forked child: a thread may have held one during the fork, as when a pool opens."""
    global _shared_lock
    _shared_lock = threading.RLock()
    for executor in list(_executors):
        executor.renew_lock()


os.register_at_fork(after_in_child=_reset_in_child)


def get_executor(
    max_workers: int | None = None,
    *,
    reuse: bool | str = "auto",
    kill_workers: bool = False,
    timeout: float | None = None,
    context: Any = None,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    **options: Unpack[ExecutorKeywords],
) -> Executor:
    """Return the program's one executor, made at the first call, as `loky.get_reusable_executor` does.

    Each call returns the same executor as long as the arguments are the same. Another `max_workers` resizes it. Other
    arguments give a new one, and the old one is shut down; so they do if it was shut down or its initializer has
    failed. The executor ends with the program.

    Args:
        max_workers: the number of workers; None for as many as there are, or as this process may use cores.
        reuse: `"auto"`; True for the present one whatever the arguments; False for a new one.
        kill_workers: end the calls of an executor that is replaced, instead of waiting for them.
        timeout: accepted for loky's users, without effect: idle workers return their warm memory, and stay.
        context: as `mp_context` of `Executor`.
        initializer: as for `Executor`.
        initargs: as for `Executor`.
        options: as for `Executor`.

    Example:
        >>> get_executor(2) is get_executor(2)
        True
    """
    global _shared, _shared_arguments
    del timeout
    arguments = {"mp_context": context, "initializer": initializer, "initargs": initargs, **options}
    with _shared_lock:
        old = _shared
        if old is not None and old.is_usable and reuse and (reuse is True or _are_same(_shared_arguments, arguments)):
            wait = _do_not_wait if max_workers is None else old._begin_resize(max_workers)
            new = old
        else:
            if max_workers is None and old is not None and reuse is True:
                max_workers = old.max_workers
            _shared = new = Executor(max_workers, **arguments)
            _shared_arguments = arguments
            wait = _do_not_wait if old is None else old.terminate_workers if kill_workers else old.shutdown
    wait()
    return new


def _are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether arguments are equal, as far as that can be told."""
    try:
        return bool(one == other)
    except Exception:
        return False  # such as arrays, whose comparison is an array
