"""`Executor`: `concurrent.futures.ProcessPoolExecutor` over a `Pool`; `get_executor`: one that is used again and again.

The documentation of `concurrent.futures` is the specification; docstrings here say what is more.
"""

from __future__ import annotations

import atexit
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
from pairpool.linux import cgroup, forking
from pairpool.master import call_errors
from pairpool.options import ExecutorKeywords, names_of_options
from pairpool.pool import Pool
from pairpool.results.future import PoolFuture, for_process_pool
from pairpool.results.iterator import IMapIterator

__all__ = ["Executor", "get_executor", "when_main_ends"]

R = TypeVar("R")
P = ParamSpec("P")

_START_METHODS = {
    "fork": "fork",
    "spawn": "forkserver",
    "forkserver": "forkserver",
    "loky": "forkserver",
    "loky_init_main": "forkserver",
}

_OPTIONS = names_of_options(keyword_only=True)

_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
"""Pools of executors, which the end of the interpreter waits for."""

_executors: weakref.WeakSet[Executor] = weakref.WeakSet()

_is_ending = False
"""Whether the main thread has ended: from then on only threads that the program waits for may submit."""

_is_at_exit = False


def _run_pending() -> None:
    """When the main thread has ended: what was submitted is run, as the standard library does it.

    Before anything that `atexit` holds, for that may take away what tasks need: a temporary directory, a manager.
    """
    global _is_ending
    _is_ending = True
    for pool in list(_open_pools):
        if pool._master.identity.is_here():
            pool._master.wait_for_calls()


def _finish_all() -> None:
    """At interpreter exit: the pools end, when what other threads have submitted meanwhile was run."""
    global _is_at_exit
    _is_at_exit = True
    for pool in list(_open_pools):
        if pool._master.identity.is_here():
            pool._master.end_inputs(_too_late())
            pool.close()
            pool.join()


atexit.register(_finish_all)  # after the pools' own, so it is run before it


def when_main_ends(function: Callable[[], object]) -> bool:
    """Have `function` called when the main thread has ended, before anything that `atexit` holds; the last one first.

    Returns False if it is too late for that. The function of `threading` is the one that `concurrent.futures` uses.
    """
    register: Any = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(function)
    except RuntimeError:
        return False
    return True


_is_ending = not when_main_ends(_run_pending)


class _ExecutorPool(Pool):
    """A pool whose tasks may start processes with multiprocessing, as those of `ProcessPoolExecutor` may."""

    _daemon = False


class Executor(concurrent.futures.Executor):
    """Runs calls in worker processes, as `concurrent.futures.ProcessPoolExecutor` does; in its place without changes.

    What is different: a worker that dies fails the one call that it was running, with `WorkerDied` (which is a
    `BrokenProcessPool` here), and the executor goes on. Calls may be any callable, lambdas and closures included. `map`
    sends items in batches by time where `chunksize` is not given.

    The workers are forked at the first `submit` or `map`, from the program as it is then.

    Args:
        max_workers: how many; by default as many as this process may use cores.
        mp_context: a context of multiprocessing, or the name of one, of which the start method is taken: `fork` is
            pairpool's `"fork"`, in which a zygote is forked once, and the others, loky's included, are its
            `"forkserver"`, a fresh interpreter.
        initializer: called in every worker before its first call, with `initargs`. If it fails, calls fail with
            `InitializerFailed`, which is a `BrokenProcessPool`, too.
        max_tasks_per_child: calls after which a worker is replaced; it does not change the start method.
        options: of `Pool`, such as `task_timeout`, `retries`, `memory_limit`, `live`, `name`.

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
        if max_workers is None:
            max_workers = cgroup.cpu_allowance()
        elif operator.index(max_workers) <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        unknown = options.keys() - _OPTIONS
        if unknown:  # the pool is opened at the first call, which is late to hear of it
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
        self.arguments: dict[str, Any] = {}  # of `get_executor`, which made it
        self._lock = threading.Lock()
        self._pool: Pool | None = None
        self._is_shut = False
        self._failure: BaseException | None = None  # of the initializer, while the pool was opened
        self._identity = forking.Identity()
        _executors.add(self)

    # --- calls ----------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> PoolFuture[R]:
        """`fn(*args, **kwargs)` in a worker.

        Raises:
            RuntimeError: the executor was shut down, or the interpreter is ending.
            BrokenProcessPool: the initializer has failed.
            PoolInherited: this process was forked off the executor's owner.
        """
        return self._open()._submit(fn, args, kwargs, as_process_pool=True)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """The results of `fn` on the items of the iterables taken together, in their order.

        All items are taken at once unless there is a `buffersize`. Each item of an iterator is pickled before the next
        one is taken. When an item has raised, or the iterator is dropped, the rest of the call is cancelled.

        Args:
            timeout: seconds, from this call on, after which waiting for a result raises `TimeoutError`.
            chunksize: items to a batch; None for batches by time. A worker that dies takes no more than its item along.
            buffersize: how many items may be taken from the iterables and not yet yielded. After a shutdown no more are
                taken: the results of those that were can be read, and then there is a RuntimeError.
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
        return _results(self._open()._stream_ahead(fn, items, chunksize, buffersize), deadline)

    def _open(self) -> Pool:
        """The pool, which is opened now if it was not before."""
        forking.require_owner(self._identity)
        with self._lock:
            if _is_at_exit or (_is_ending and threading.current_thread().daemon):
                raise _too_late()  # said first, for the pool has ended by then
            broken = self._broken
            if broken is not None:
                raise for_process_pool(broken)
            if self._is_shut:
                raise _is_shut_down()
            if self._pool is None:
                try:
                    self._pool = _ExecutorPool(self._max_workers, **self._options)
                except InitializerFailed as error:
                    self._failure = error
                    raise for_process_pool(error) from None
                _open_pools.add(self._pool)
            return self._pool

    @property
    def _broken(self) -> BaseException | None:
        """Why no call can be run any more, if that is so."""
        if self._failure is None and self._pool is not None:
            self._failure = self._pool._master.agenda.broken
        return self._failure

    # --- the executor itself --------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """The pool beneath, for `status`, `report`, `stacks`, `live` and `share`; opened now if it was not before."""
        return self._open()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False) -> None:
        """Take no more calls; those there are run to their ends.

        Args:
            wait: return only when they have ended, and the workers have exited.
            cancel_futures: cancel those that no worker has begun, or is free to begin at once; items of `map`, too.
            kill_workers: end them all at once, as `terminate_workers` does; loky's name for it.
        """
        if kill_workers:
            self.terminate_workers()
            return
        with self._lock:
            self._is_shut = True
            pool, self._pool = self._pool, None
        if pool is None or not pool._master.identity.is_here():
            return
        if cancel_futures:
            pool._master.cancel_waiting(call_errors.cancelled())
        pool._master.end_inputs(_is_shut_down())
        pool.close()
        if wait:
            pool.join()

    def resize(self, max_workers: int) -> None:
        """Keep this many workers from now on."""
        self._begin_resize(max_workers)()

    def _begin_resize(self, max_workers: int) -> Callable[[], object]:
        """Have so many workers; returns what waits for new ones: callbacks may run meanwhile, so hold no lock."""
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        with self._lock:
            wait: Callable[[], object] = _no_wait
            if self._pool is not None and max_workers != self._max_workers:
                wait = functools.partial(self._pool._master.loop.wait, self._pool.begin_resize(max_workers))
            self._max_workers = max_workers
            return wait

    @property
    def max_workers(self) -> int:
        """How many workers it has, or will have."""
        return self._max_workers

    @property
    def is_usable(self) -> bool:
        """Whether it takes calls, here and now."""
        with self._lock:
            return not self._is_shut and self._broken is None and self._identity.is_here()

    def renew_lock(self) -> None:
        """In a forked child, in which nobody would ever release the one there is."""
        self._lock = threading.Lock()

    def terminate_workers(self) -> None:
        """Shut down at once: calls that have not ended are cancelled, and their workers end."""
        with self._lock:
            self._is_shut = True
            pool, self._pool = self._pool, None
        if pool is not None and pool._master.identity.is_here():
            pool.terminate()

    kill_workers = terminate_workers

    def kill_calls(self, futures: Iterable[PoolFuture[Any]]) -> None:
        """Cancel calls of this executor that have not ended, those that run included: their workers are replaced."""
        left = [future for future in list(futures) if not future.done()]
        with self._lock:
            pool = self._pool
        if left and pool is not None and pool._master.identity.is_here():
            pool._master.cancel_calls(left, call_errors.cancelled())

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None and pool._master.identity.is_here():
            pool.close()  # what was submitted is run; the pool ends with the last future

    @property
    def _processes(self) -> dict[int, Any]:
        """Workers by pid, for those who look at them though they should not."""
        with self._lock:
            pool = self._pool
        return {} if pool is None else {process.pid: process for process in pool._pool}

    def __repr__(self) -> str:
        state = "shut down" if self._is_shut else "broken" if self._broken is not None else "open"
        return f"<{type(self).__module__}.{type(self).__qualname__} max_workers={self._max_workers} {state}>"


_COMPLETE = frozenset({list, tuple, range, str, bytes, dict, set, frozenset, itertools.repeat})
"""Types of inputs that run none of the caller's code when items are taken."""


def _no_wait() -> None:
    """There is nothing to wait for."""


def _is_shut_down() -> RuntimeError:
    return RuntimeError("cannot schedule new futures after shutdown")


def _too_late() -> RuntimeError:
    return RuntimeError("cannot schedule new futures after interpreter shutdown")


def _results(stream: IMapIterator[R], deadline: float | None) -> Iterator[R]:
    """The results of a stream until the deadline; when nobody wants more of them, the rest is cancelled."""
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
                raise  # it is a task's own
            raise TimeoutError from None
        yield result


def _start_method_of(context: Any) -> str:
    method = context if isinstance(context, str) else context.get_start_method()
    if method not in _START_METHODS:
        raise ValueError(f"mp_context has a start method that pairpool does not know: {method!r}")
    return _START_METHODS[method]


# --- one that is used again and again -----------------------------------------------------------------

_shared: Executor | None = None
_shared_lock = threading.RLock()


def _make_child_whole() -> None:
    """In a forked child: a lock may have been held while it was forked, as when a pool is opened."""
    global _shared_lock
    _shared_lock = threading.RLock()
    for executor in list(_executors):
        executor.renew_lock()


os.register_at_fork(after_in_child=_make_child_whole)


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
    """The program's one executor, made when it is first asked for: what `loky.get_reusable_executor` is.

    It is the same one at each call as long as the arguments are the same. With another `max_workers` it is resized;
    with other arguments, or where it was shut down or its initializer has failed, there is a new one, and the old one
    is shut down. It ends with the program.

    Args:
        max_workers: how many; None for as many as there are, or as this process may use cores.
        reuse: `"auto"`; True for the one there is whatever the arguments; False for a new one.
        kill_workers: end the calls of one that is replaced, instead of waiting for them.
        timeout: accepted for loky's users, and of no effect: workers that idle give back what they kept warm, and stay.
        context: as `mp_context` of `Executor`.
        initializer: as for `Executor`.
        initargs: as for `Executor`.
        options: as for `Executor`.

    Example:
        >>> get_executor(2) is get_executor(2)
        True
    """
    global _shared
    del timeout
    arguments = {"mp_context": context, "initializer": initializer, "initargs": initargs, **options}
    with _shared_lock:
        old = _shared
        if old is not None and old.is_usable and reuse and (reuse is True or _are_same(old.arguments, arguments)):
            wait = _no_wait if max_workers is None else old._begin_resize(max_workers)
            new = old
        else:
            if max_workers is None and old is not None and reuse is True:
                max_workers = old._max_workers
            _shared = new = Executor(max_workers, **arguments)
            new.arguments = arguments
            wait = _no_wait if old is None else old.terminate_workers if kill_workers else old.shutdown
    wait()
    return new


def _are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether arguments are equal, as far as that can be told."""
    try:
        return bool(one == other)
    except Exception:
        return False  # arrays, say, whose comparison is no yes or no
