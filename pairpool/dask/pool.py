"""`ClusterPool`: the methods of `Pool` on an existing Dask cluster. The extra is `pairpool[dask]`.

items ─► batches of a tenth of a second ─► Dask's scheduler ─► a Dask worker on each node ─► its pool
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, Unpack, overload

from pairpool.dask.base import ClusterPoolBase
from pairpool.dask.cluster_call import ClusterCall
from pairpool.dask.messages import ItemMode
from pairpool.dask.options import limits_of
from pairpool.dask.results import ClusterResult, ClusterStream
from pairpool.options import Limits, RetryOn

__all__ = ["ClusterPool"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class ClusterPool(ClusterPoolBase):
    """The methods of `Pool` on all nodes of an existing Dask cluster, for tasks from some milliseconds up.

    Items go out in batches that take about a tenth of a second, so that Dask's millisecond per task does not matter.
    On each node, one pool runs the items. It has one worker per thread of the Dask worker. An item that crashes raises
    `WorkerDied`, which names the node. The other items and the Dask worker are not harmed.

    If a node goes away, its batches run on another node: items run *at least* once. A node that joins is used.

    Modules that functions and items need must be importable on the nodes. Functions and classes of `__main__` travel
    by value, an initializer too. Functions of `__main__` see the global variables that the initializer has set.

    Args:
        address: the address of the scheduler, such as `"tcp://scheduler:8786"`. Or a `distributed.Client`, which the
            pool does not close.
        timeout: seconds to wait for the scheduler, and for its first node.
        name: the name of the pool in views.
        options: options of the pools on the nodes: `initializer`, `initargs`, `maxtasksperchild`, `start_method`
            (`"forkserver"`, the default here, or `"fork"`), `task_timeout`, `retries`, `retry_on`, `memory_limit`,
            `start_timeout`.

    `task_timeout`, `retries` and `retry_on` can be given to each call, too.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
        ConnectionError: there is no scheduler at that address, or it has no nodes, within `timeout` seconds.
        ClusterMismatch: a node has another version of Python or pairpool, or no pairpool.

    Example:
        >>> with ClusterPool("tcp://scheduler:8786") as pool:
        ...     results = pool.map(simulate, seeds)
    """

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
        """Return `[func(x) for x in iterable]`, computed on the nodes, when all items have ended."""
        limits = limits_of(task_timeout, retries, retry_on)
        return _collect(self._map(func, iterable, ItemMode.MAP, chunksize, limits), return_exceptions)

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
        """Do the same as `map` with `func(*item)` for each item."""
        limits = limits_of(task_timeout, retries, retry_on)
        return _collect(self._map(func, iterable, ItemMode.STAR, chunksize, limits), return_exceptions)

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
    ) -> ClusterStream[R]: ...

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
    ) -> ClusterStream[R | BaseException]: ...

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
    ) -> ClusterStream[R] | ClusterStream[R | BaseException]:
        """Yield the results in the order of the input, as they become ready. The input may be endless.

        Args:
            buffersize: how many items may be taken from the input and not yet yielded. The default is 11 batches per
                node: 3 in flight, and 8 that wait for an earlier result. A batch has `chunksize` items, or about 0.1 s
                of work for all workers of a node. Before the first result, a batch has one item per worker. If the
                input is slow, a batch goes out after 0.1 s with the items that are there, at least one.
        """
        limits = limits_of(task_timeout, retries, retry_on)
        call = self._stream(func, iterable, chunksize, buffersize, limits)
        return ClusterStream(call, ordered=True, return_exceptions=return_exceptions)

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
    ) -> ClusterStream[R]: ...

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
    ) -> ClusterStream[R | BaseException]: ...

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
    ) -> ClusterStream[R] | ClusterStream[R | BaseException]:
        """Do the same as `imap`, but yield the results in the order in which they become ready."""
        limits = limits_of(task_timeout, retries, retry_on)
        call = self._stream(func, iterable, chunksize, buffersize, limits)
        return ClusterStream(call, ordered=False, return_exceptions=return_exceptions)

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
        """Return `func(*args, **kwds)`, computed on a node."""
        result = self.apply_async(func, args, kwds, task_timeout=task_timeout, retries=retries, retry_on=retry_on)
        try:
            return result.get()
        except BaseException:
            result.cancel()  # such as after Ctrl-C: no caller can read the result
            raise

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
    ) -> ClusterResult[R]:
        """Start `apply` and return at once. Many calls travel in one batch.

        Callbacks run in the thread that receives all single calls, so keep them short.
        """
        result = ClusterResult(self._call_batcher.on_cancelled, callback, error_callback)
        self._submit(result, func, (tuple(args), dict(kwds or {})), limits_of(task_timeout, retries, retry_on))
        return result

    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> ClusterResult[R]:
        """Start `func(*args, **kwargs)` on a node and return a `concurrent.futures.Future` at once."""
        return self.apply_async(func, args, kwargs)

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
    ) -> ClusterResult[list[R]]: ...

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
    ) -> ClusterResult[list[R | BaseException]]: ...

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
    ) -> ClusterResult[list[R]] | ClusterResult[list[R | BaseException]]:
        """Start `map` and return at once. Do not change an item before its batch went out and was pickled."""
        limits = limits_of(task_timeout, retries, retry_on)
        call = self._map(func, iterable, ItemMode.MAP, chunksize, limits)
        result: ClusterResult[list[Any]] = ClusterResult(call.cancel, callback, error_callback)
        return self._in_background(result, lambda: _collect(call, return_exceptions))

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
    ) -> ClusterResult[list[R]]: ...

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
    ) -> ClusterResult[list[R | BaseException]]: ...

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
    ) -> ClusterResult[list[R]] | ClusterResult[list[R | BaseException]]:
        """Start `starmap` and return at once. Each item is pickled when its batch goes out, as with `map_async`."""
        limits = limits_of(task_timeout, retries, retry_on)
        call = self._map(func, iterable, ItemMode.STAR, chunksize, limits)
        result: ClusterResult[list[Any]] = ClusterResult(call.cancel, callback, error_callback)
        return self._in_background(result, lambda: _collect(call, return_exceptions))


def _collect(call: ClusterCall, return_exceptions: bool) -> list[Any]:
    """Return all results, or raise the exception of the first item that failed after all items have ended."""
    results: list[Any] = []
    first: BaseException | None = None
    for found in call.outcomes(ordered=True):
        assert found is not None, "the call has a deadline"
        is_value, outcome = found
        if not is_value and first is None:
            first = outcome
        results.append(outcome)
    if first is not None and not return_exceptions:
        try:
            raise first
        finally:
            del first, found, outcome, results
    return results
