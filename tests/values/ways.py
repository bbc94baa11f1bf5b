"""The ways to call pairpool, as functions with one signature: items in, outcomes out.

An outcome is a result, or the exception in its place. `Way.is_stream` says when an item is pickled: before the next
step of the input, or when its batch goes out, if pairpool makes a list of the input first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeAlias

import pytest

from pairpool import AsyncPool, Executor, Pool
from tests.support.waiting import PATIENCE

__all__ = ["LISTS", "STREAMS", "WAYS", "Faces", "Way", "outcomes_of"]

Function: TypeAlias = Callable[[Any], Any]


class Faces:
    """Each public face of pairpool with two workers. A face is opened when it is first used.

    Args:
        start_method: the start method of all faces.
        options: options of `Pool`, for all faces.
    """

    def __init__(self, start_method: str = "fork", **options: Any) -> None:
        self._options: dict[str, Any] = {"start_method": start_method, **options}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def pool(self) -> Pool:
        return self._stack.enter_context(Pool(2, **self._options))

    @cached_property
    def executor(self) -> Executor:
        return self._stack.enter_context(Executor(2, **self._options))

    @cached_property
    def _runner(self) -> asyncio.Runner:
        return self._stack.enter_context(asyncio.Runner())

    @cached_property
    def async_pool(self) -> AsyncPool:
        pool = AsyncPool(2, **self._options)
        self.run(pool.open())
        self._stack.callback(lambda: self.run(pool.terminate()))
        return pool

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop of `async_pool`. Raises `TimeoutError` if it hangs."""
        return self._runner.run(asyncio.wait_for(main, PATIENCE))

    @cached_property
    def parallel(self) -> Callable[..., Any]:
        """`joblib.Parallel`, with pairpool as its backend."""
        joblib = pytest.importorskip("joblib")
        import pairpool.joblib as backend

        backend.register()
        self._stack.callback(_end_executors)

        def parallel(**options: Any) -> Any:
            with joblib.parallel_config("pairpool", n_jobs=2, **self._options):
                return joblib.Parallel(**options)

        return parallel


def _end_executors() -> None:
    from pairpool.joblib_pools import pools

    for executor in pools.executors.values():
        executor.shutdown()
    pools.executors.clear()


@dataclass(frozen=True)
class Way:
    """A way to call pairpool.

    Args:
        name: the name in test ids.
        call: returns the outcomes for the faces, the function, the items and `chunksize`. A `chunksize` of None means
            automatic batches. Ways without batches ignore it.
        is_stream: whether each item is pickled before the caller's code runs again.
        is_ordered: whether the outcomes have the order of the items.
        keeps_errors: whether the exception of an item is one of the outcomes, and does not end the call.
        wraps_items: whether pairpool gets each item inside a tuple.
    """

    name: str
    call: Callable[[Faces, Function, Iterable[Any], int | None], list[Any]]
    is_stream: bool = False
    is_ordered: bool = True
    keeps_errors: bool = True
    wraps_items: bool = False


def outcomes_of(stream: Any) -> list[Any]:
    """Return the outcomes of a stream that raises an exception in the place of a result."""
    outcomes: list[Any] = []
    while True:
        try:
            outcomes.append(next(stream))
        except StopIteration:
            return outcomes
        except Exception as error:
            outcomes.append(error)


def _outcome(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except Exception as error:
        return error


def _tuples(items: Iterable[Any]) -> list[tuple[Any]]:
    return [(item,) for item in items]


# --- Pool ---------------------------------------------------------------------------------------------


def _imap(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return outcomes_of(faces.pool.imap(function, items, chunksize))


def _imap_unordered(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return list(faces.pool.imap_unordered(function, items, chunksize, return_exceptions=True))


def _imap_buffer(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return list(faces.pool.imap(function, items, chunksize, buffersize=3, return_exceptions=True))


def _apply_async(faces: Faces, function: Function, items: Iterable[Any], _chunksize: int | None) -> list[Any]:
    results = [faces.pool.apply_async(function, (item,)) for item in items]
    return [_outcome(lambda result=result: result.get(PATIENCE)) for result in results]  # type: ignore[misc]


def _submit(faces: Faces, function: Function, items: Iterable[Any], _chunksize: int | None) -> list[Any]:
    futures = [faces.pool.submit(function, item) for item in items]
    return [_outcome(lambda future=future: future.result(PATIENCE)) for future in futures]  # type: ignore[misc]


def _map(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return faces.pool.map(function, items, chunksize, return_exceptions=True)


def _starmap(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return faces.pool.starmap(function, _tuples(items), chunksize, return_exceptions=True)


def _map_async(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return faces.pool.map_async(function, items, chunksize, return_exceptions=True).get(PATIENCE)


def _starmap_async(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return faces.pool.starmap_async(function, _tuples(items), chunksize, return_exceptions=True).get(PATIENCE)


def _map_lambda(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return faces.pool.map(lambda item: function(item), items, chunksize, return_exceptions=True)


# --- Executor -----------------------------------------------------------------------------------------


def _executor_map(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return list(faces.executor.map(function, items, chunksize=chunksize))


def _executor_map_buffer(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return list(faces.executor.map(function, items, chunksize=chunksize, buffersize=5))


def _executor_submit(faces: Faces, function: Function, items: Iterable[Any], _chunksize: int | None) -> list[Any]:
    futures = [faces.executor.submit(function, item) for item in items]
    return [_outcome(lambda future=future: future.result(PATIENCE)) for future in futures]  # type: ignore[misc]


# --- AsyncPool ----------------------------------------------------------------------------------------


async def _as_async(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


def _async_run(faces: Faces, function: Function, items: Iterable[Any], _chunksize: int | None) -> list[Any]:
    pool = faces.async_pool

    async def main() -> list[Any]:
        calls = []
        for item in items:
            calls.append(asyncio.create_task(pool.run(function, item)))
            await asyncio.sleep(0)  # the call begins in this step of the event loop
        return await asyncio.gather(*calls, return_exceptions=True)

    return list(faces.run(main()))


def _async_map(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    pool = faces.async_pool
    return list(faces.run(pool.map(function, items, chunksize, return_exceptions=True)))


def _async_starmap(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    pool = faces.async_pool
    return list(faces.run(pool.starmap(function, _tuples(items), chunksize, return_exceptions=True)))


def _async_stream(faces: Faces, start: Callable[[AsyncPool], AsyncIterator[Any]]) -> list[Any]:
    pool = faces.async_pool

    async def main() -> list[Any]:
        return [outcome async for outcome in start(pool)]

    return list(faces.run(main()))


def _async_imap(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return _async_stream(faces, lambda pool: pool.imap(function, items, chunksize, return_exceptions=True))


def _async_imap_async(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return _async_stream(faces, lambda pool: pool.imap(function, _as_async(items), chunksize, return_exceptions=True))


def _async_unordered(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return _async_stream(faces, lambda pool: pool.imap_unordered(function, items, chunksize, return_exceptions=True))


def _async_unordered_async(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return _async_stream(
        faces, lambda pool: pool.imap_unordered(function, _as_async(items), chunksize, return_exceptions=True)
    )


# --- joblib -------------------------------------------------------------------------------------------


def _calls(function: Function, items: Iterable[Any]) -> Iterator[Any]:
    from joblib import delayed

    return (delayed(function)(item) for item in items)


def _parallel(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return list(faces.parallel(batch_size=chunksize or "auto")(_calls(function, items)))


def _parallel_by_eight(faces: Faces, function: Function, items: Iterable[Any], chunksize: int | None) -> list[Any]:
    return list(faces.parallel(batch_size=chunksize or 8)(_calls(function, items)))


STREAMS = [
    Way("Pool.imap", _imap, is_stream=True),
    Way("Pool.imap_unordered", _imap_unordered, is_stream=True, is_ordered=False),
    Way("Pool.imap buffersize=3", _imap_buffer, is_stream=True),
    Way("Pool.apply_async", _apply_async, is_stream=True),
    Way("Pool.submit", _submit, is_stream=True),
    Way("Executor.map", _executor_map, is_stream=True, keeps_errors=False),
    Way("Executor.map buffersize=5", _executor_map_buffer, is_stream=True, keeps_errors=False),
    Way("Executor.submit", _executor_submit, is_stream=True),
    Way("AsyncPool.run", _async_run, is_stream=True),
    Way("AsyncPool.imap", _async_imap, is_stream=True),
    Way("AsyncPool.imap of an asynchronous input", _async_imap_async, is_stream=True),
    Way("AsyncPool.imap_unordered", _async_unordered, is_stream=True, is_ordered=False),
    Way("AsyncPool.imap_unordered of an asynchronous input", _async_unordered_async, is_stream=True, is_ordered=False),
]
"""Ways that pickle each item before the caller's code runs again."""

LISTS = [
    Way("Pool.map", _map),
    Way("Pool.map of a lambda", _map_lambda),
    Way("Pool.starmap", _starmap, wraps_items=True),
    Way("Pool.map_async", _map_async),
    Way("Pool.starmap_async", _starmap_async, wraps_items=True),
    Way("AsyncPool.map", _async_map),
    Way("AsyncPool.starmap", _async_starmap, wraps_items=True),
    Way("joblib", _parallel, keeps_errors=False, wraps_items=True),
    Way("joblib batch_size=8", _parallel_by_eight, keeps_errors=False, wraps_items=True),
]
"""Ways that make a list of the input first, or that get a list, because joblib reads ahead."""

WAYS = [*STREAMS, *LISTS]
