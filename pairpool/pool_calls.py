"""The calls of a pool whose results come together: `apply`, `map` and their relatives.

The documentation of `multiprocessing.pool.Pool` is the specification of every method that it has. The docstrings here
say what is the same in one line, and what is more in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, Unpack, overload

from pairpool.master import call_errors
from pairpool.master.jobs.intake import gather
from pairpool.options import CallOptions, Limits, RetryOn
from pairpool.pool_streams import PoolStreams
from pairpool.results.async_result import AsyncResult, MapResult
from pairpool.results.future import PoolFuture
from pairpool.transport.protocol import Mode

__all__ = ["PoolCalls"]

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

_NO_KWDS: dict[str, Any] = {}


class PoolCalls(PoolStreams):
    """The methods of `Pool` that run functions in its workers."""

    # --- single calls ---------------------------------------------------------------------------

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
        """Return `func(*args, **kwds)`, run in a worker.

        Raises:
            Exception: what the function raises, `WorkerDied` and `TaskTimeout` included.
            CancelledError: the pool was terminated meanwhile.
            ValueError: the pool is not running, or an argument is out of range.
        """
        self._check_running()
        engine = self._engine
        options = self._single_calls.override(task_timeout, retries, retry_on)
        result: AsyncResult[R] = AsyncResult(self, engine)
        function = engine.function_for(func, result)
        if function is not None:
            engine.call(result, function, tuple(args), dict(kwds) if kwds else _NO_KWDS, options)
        return self._wait_or_cancel(result)

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
        """Start `apply` and return at once. Callbacks run in the thread that drives the pool."""
        self._check_running()
        engine = self._engine
        options = self._single_calls.override(task_timeout, retries, retry_on)
        result = AsyncResult(self, engine, callback, error_callback)
        function = engine.function_for(func, result)
        if function is not None:
            engine.submit_call(result, function, tuple(args), dict(kwds) if kwds else _NO_KWDS, options)
        engine.drive_in_background()
        return result

    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> PoolFuture[R]:
        """Run `func(*args, **kwargs)` in a worker. Return a `concurrent.futures.Future`."""
        return self._submit(func, args, kwargs, as_process_pool=False)

    def _submit(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, as_process_pool: bool
    ) -> PoolFuture[Any]:
        self._check_running()
        engine = self._engine
        future: PoolFuture[Any] = PoolFuture(self, engine, as_process_pool=as_process_pool)
        if as_process_pool and not callable(func):
            future.set_exception(TypeError(f"{type(func).__name__!r} object is not callable"))
            return future
        function = engine.function_for(func, future)
        if function is not None:
            engine.submit_call(future, function, args, kwargs or _NO_KWDS, self._single_calls)
        engine.drive_in_background()
        return future

    # --- maps -----------------------------------------------------------------------------------

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
        """Return `[func(x) for x in iterable]`, run in the workers.

        All items have ended before this returns or raises. Items travel in batches that take about a millisecond. No
        item sees what a task does to another item. But a large object (64 KiB) that several items contain is one object
        for all items of a batch, except with `chunksize=1`.

        Args:
            chunksize: items per batch, if you want to fix it; with 1, no item ever runs twice.
            return_exceptions: put exceptions into the list in place of results, instead of raising the first.

        Raises:
            Exception: what the first item raised that failed, `WorkerDied` and `TaskTimeout` included; or what the
                input raised, after the items before it have run.
            CancelledError: the pool was terminated meanwhile.
            ValueError: the pool is not running, or an argument is out of range.
        """
        self._check_running()
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, None, return_exceptions)
        return self._map(func, iterable, Mode.MAP, options)

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
        """Do as `map` does for a function of several arguments. Each item is unpacked: `func(*item)`."""
        self._check_running()
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, None, return_exceptions)
        return self._map(func, iterable, Mode.STAR, options)

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
        """Start `map` and return at once.

        The items are pickled when their batches go out: do not change them before the result is there.
        """
        self._check_running()
        result: MapResult[list[Any]] = MapResult(self, self._engine, callback, error_callback)
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, None, return_exceptions)
        return self._start_map(result, func, iterable, Mode.MAP, options)

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
        """Start `starmap` and return at once."""
        self._check_running()
        result: MapResult[list[Any]] = MapResult(self, self._engine, callback, error_callback)
        options = self._calls.override(task_timeout, retries, retry_on, chunksize, None, return_exceptions)
        return self._start_map(result, func, iterable, Mode.STAR, options)

    # --- what they have in common ---------------------------------------------------------------

    def _map(self, func: Callable[..., R], iterable: Iterable[Any], mode: int, options: CallOptions) -> list[R]:
        self._check_running()
        result: MapResult[list[R]] = MapResult(self, self._engine)
        gathered = gather(iterable)
        function = self._engine.function_for(func, result)
        if function is None:
            return result.get()
        self._engine.submit_map(result, function, mode, gathered, options)
        return self._wait_or_cancel(result)

    def _start_map(
        self,
        result: MapResult[Any],
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mode: int,
        options: CallOptions,
    ) -> MapResult[Any]:
        self._check_running()
        gathered = gather(iterable, is_left=True)
        function = self._engine.function_for(func, result)
        if function is not None:
            self._engine.submit_map(result, function, mode, gathered, options)
        self._engine.drive_in_background()
        return result

    def _wait_or_cancel(self, result: AsyncResult[R]) -> R:
        """Return the result of a call that nobody can come back to. If the wait is interrupted, its tasks end."""
        try:
            result.wait()
        except BaseException as error:
            self._engine.cancel_call(result, call_errors.left_by(error), kill=True)
            raise
        return result.get()
