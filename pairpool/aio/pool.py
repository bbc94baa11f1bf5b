"""`AsyncPool`: a pool for asyncio."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, overload

from pairpool.aio.core import Core
from pairpool.aio.stream import AsyncStream
from pairpool.options import DEFAULTS, CallOptions, Limits, PoolKeywords, RetryOn
from pairpool.transport.protocol import Mode

if TYPE_CHECKING:
    from rich.console import Console

    from pairpool.status import PoolStatus
    from pairpool.transport.segments import Shared
    from pairpool.view.live import LiveView
    from pairpool.view.report import PoolReport

__all__ = ["AsyncPool"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class AsyncPool:
    """A pool of worker processes whose calls are awaited, in one event loop (asyncio's or uvloop's).

    There is no thread: the event loop watches the pool's descriptor, and turns it for about a millisecond at a time.
    What is the caller's runs in the event loop's thread, and keeps others from it for as long as it takes: pickling
    arguments, unpickling results, and plain iterables that are read; so does opening a pool, for some milliseconds.

    Cancelling a coroutine that waits (`task.cancel()`, `asyncio.timeout`) cancels the task: one that is queued is taken
    back, one that runs is ended with its worker, which is replaced. Other tasks are not touched.

    Args:
        processes: how many workers; by default as many as this process may use cores.
        live: True for a live view of the pool; it and `capture` have a thread each.
        options: the others of `Pool`.

    Example:
        >>> async def main() -> int:
        ...     async with AsyncPool(2) as pool:
        ...         return await pool.run(pow, 2, 10)
        >>> asyncio.run(main())
        1024
    """

    def __init__(self, processes: int | None = None, *, live: bool = False, **options: Unpack[PoolKeywords]) -> None:
        capture = options.get("capture") or live
        self._core = Core({"processes": processes, **options, "capture": capture}, live)
        self._limits: Limits = {}

    # --- opening and closing --------------------------------------------------------------------

    async def open(self) -> None:
        """Start the workers, as `async with` does; raises what `Pool` raises."""
        await self._core.open()

    async def __aenter__(self) -> AsyncPool:
        await self.open()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.terminate()

    def close(self) -> None:
        """Take no more calls; those there are run to their ends, and `join` waits for them."""
        self._core.inner.begin_close()

    async def join(self) -> None:
        """Wait until all calls have ended and all workers have exited; `close` comes first."""
        await self._core.join()

    async def terminate(self) -> None:
        """End at once: running tasks are killed, and calls that have not ended raise `CancelledError`.

        That is pairpool's (and concurrent.futures'), an ordinary exception, and not the one that cancels coroutines.
        """
        await self._core.terminate()

    async def aclose(self) -> None:
        """`terminate`, for `contextlib.aclosing`."""
        await self.terminate()

    # --- calls ----------------------------------------------------------------------------------

    def with_options(
        self,
        *,
        task_timeout: float | None = None,
        retries: int | None = None,
        retry_on: RetryOn | None = None,
    ) -> AsyncPool:
        """The same pool, for calls with other limits than its own; what is None stays as it is.

        Example:
            >>> await pool.with_options(task_timeout=5, retries=2).run(work, item)
        """
        limits: Limits = {"task_timeout": task_timeout, "retries": retries, "retry_on": retry_on}
        DEFAULTS.override(**limits)  # which checks them
        twin = copy.copy(self)
        twin._limits = {**self._limits, **{name: value for name, value in limits.items() if value is not None}}  # type: ignore[typeddict-item]
        return twin

    def _options(
        self, chunksize: int | None = None, buffersize: int | None = None, return_exceptions: bool = False
    ) -> CallOptions:
        """Return the options of a call."""
        calls = self._core.inner.calls
        if self._limits:
            calls = calls.override(**self._limits)
        return calls.override(None, None, None, chunksize, buffersize, return_exceptions)

    async def run(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """`func(*args, **kwargs)` in a worker.

        Raises what the function raises, `WorkerDied`, `TaskTimeout`; `ValueError` if the pool is not open;
        `RuntimeError` if it was opened in another event loop.
        """
        return await self._core.call(func, args, kwargs, self._options())  # type: ignore[no-any-return]

    @overload
    async def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[R]: ...

    @overload
    async def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: bool,
    ) -> list[R | BaseException]: ...

    async def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        return_exceptions: bool = False,
    ) -> list[R] | list[R | BaseException]:
        """`[func(x) for x in iterable]`, in the workers; `return_exceptions` puts exceptions into the list.

        The whole input is read first.
        """
        return await self._core.map(func, iterable, Mode.MAP, self._options(chunksize, None, return_exceptions))

    @overload
    async def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[R]: ...

    @overload
    async def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: bool,
    ) -> list[R | BaseException]: ...

    async def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        return_exceptions: bool = False,
    ) -> list[R] | list[R | BaseException]:
        """`map` for a function of several arguments: each item is unpacked, `func(*item)`."""
        return await self._core.map(func, iterable, Mode.STAR, self._options(chunksize, None, return_exceptions))

    @overload
    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
    ) -> AsyncStream[R]: ...

    @overload
    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool,
    ) -> AsyncStream[R | BaseException]: ...

    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
    ) -> AsyncStream[R] | AsyncStream[R | BaseException]:
        """Results in the order of the input, as they come, for `async for`; the input may be endless.

        The input is read from now on, by a coroutine of its own, and only as far as there is room. A plain iterable
        that blocks, blocks the event loop: give it an asynchronous one.

        Args:
            chunksize: items to a batch, if you want to fix it; with 1, no item ever runs twice.
            buffersize: how many items may be taken from the input and not yet yielded. By default these are a few
                batches for each worker: what the workers, or the input, need 0.1 s for, and at most 64 MiB; but two
                items for each worker at least.
            return_exceptions: yield exceptions instead of raising them.
        """
        options = self._options(chunksize, buffersize, return_exceptions)
        return self._core.stream(func, iterable, options, ordered=True)

    @overload
    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: Literal[False] = False,
    ) -> AsyncStream[R]: ...

    @overload
    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool,
    ) -> AsyncStream[R | BaseException]: ...

    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T] | AsyncIterable[T],
        chunksize: int | None = None,
        *,
        buffersize: int | None = None,
        return_exceptions: bool = False,
    ) -> AsyncStream[R] | AsyncStream[R | BaseException]:
        """`imap` with results in the order in which they are ready."""
        options = self._options(chunksize, buffersize, return_exceptions)
        return self._core.stream(func, iterable, options, ordered=False)

    # --- the pool itself ------------------------------------------------------------------------

    def share(self, obj: T) -> Shared[T]:
        """`Pool.share`: write an object once into memory that all workers map."""
        return self._core.inner.share(obj)

    async def resize(self, processes: int) -> None:
        """Keep this many workers from now on; returns when new ones are there."""
        await self._core.resize(processes)

    def status(self) -> PoolStatus:
        """`Pool.status`: what the pool and each worker are doing; at once, and from any thread."""
        return self._core.inner.status()

    def report(self) -> PoolReport:
        """`Pool.report`: what the pool has done and where the time went; at once, and from any thread."""
        return self._core.inner.report()

    def stacks(self, timeout: float = 1.0) -> dict[int, str]:
        """`Pool.stacks`: the Python stack of each worker's task.

        It waits for what the workers answer: `await asyncio.to_thread(pool.stacks)` does so elsewhere.
        """
        return self._core.inner.stacks(timeout)

    def live(self, console: Console | None = None) -> LiveView:
        """`Pool.live`: show the pool on the terminal, until the view is stopped or the pool ends."""
        return self._core.inner.live(console)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} {self._core.describe()}>"
