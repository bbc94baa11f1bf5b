"""`ClusterPool`: the methods of `Pool` on a Dask cluster that is there. The extra is `pairpool[dask]`.

items ─► batches of a tenth of a second ─► Dask's scheduler ─► a Dask worker on each node ─► its pool
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, Unpack, overload

import cloudpickle

from pairpool.dask import node
from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.call_batcher import BatchedCall, CallBatcher
from pairpool.dask.cluster_call import Batches, ClusterCall
from pairpool.dask.nodes import Nodes
from pairpool.dask.options import NodeOptions, checked, limits_of
from pairpool.dask.packing import repeats
from pairpool.dask.results import ClusterResult, ClusterStream
from pairpool.dask.stats import ClusterCallStats, ClusterStats
from pairpool.errors import ClusterMismatch
from pairpool.linux.interrupts import allow_signals, defer_signals, is_own
from pairpool.master.jobs.intake import gather, length_of
from pairpool.options import (
    Limits,
    RetryOn,
    check_buffersize,
    check_chunksize,
    check_seconds,
)

try:
    from distributed import Client
except ImportError as missing:
    raise ImportError("pairpool.dask needs Dask's distributed: pip install 'pairpool[dask]'") from missing

if TYPE_CHECKING:
    from rich.console import Console

    from pairpool.status import PoolStatus
    from pairpool.view.live import LiveView

__all__ = ["ClusterMismatch", "ClusterPool", "ClusterResult", "ClusterStream", "NodeOptions"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

TARGET = 0.1
"""Seconds that a batch should take: a hundred times what Dask needs for one."""

_names = itertools.count(1)
_open_pools: weakref.WeakSet[ClusterPool] = weakref.WeakSet()


def _end_all() -> None:
    """At interpreter exit, before Dask's event loop stops, for which a call that is half read would wait for ever."""
    for pool in list(_open_pools):
        if pool._pid == os.getpid():
            pool.terminate()


atexit.register(_end_all)


class ClusterPool:
    """The methods of `Pool` on all nodes of an existing Dask cluster, for tasks from some milliseconds up.

    Items go out in batches that take about a tenth of a second, so that Dask's millisecond for each task does not
    matter. On each node, one pool of as many workers as its Dask worker has threads runs them: an item that crashes
    there raises `WorkerDied`, which names the node, and neither its neighbours nor the Dask worker come to harm.

    A node that goes away has its batches run elsewhere: items run *at least* once. A node that joins is used.
    What functions and items need must be importable on the nodes; what `__main__` defines goes by value, an initializer
    too, and functions of `__main__` see the global variables that it has set.

    Args:
        address: of the scheduler, such as `"tcp://scheduler:8786"`; or a `distributed.Client`, which stays yours.
        timeout: seconds to wait for the scheduler, and for its first node.
        name: what views call the pool.
        options: of the pools on the nodes: `initializer`, `initargs`, `maxtasksperchild`, `start_method` (here
            `"forkserver"` by default, or `"fork"`), `task_timeout`, `retries`, `retry_on`, `memory_limit`,
            `start_timeout`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
        ConnectionError: there is no scheduler at that address, or it has no nodes, within `timeout` seconds.
        ClusterMismatch: a node has another version of Python or pairpool, or no pairpool.

    Example:
        >>> with ClusterPool("tcp://scheduler:8786") as pool:
        ...     results = pool.map(simulate, seeds)
    """

    def __init__(
        self,
        address: str | Client,
        *,
        timeout: float = 10.0,
        name: str | None = None,
        **options: Unpack[NodeOptions],
    ) -> None:
        if not isinstance(address, (str, Client)):
            raise TypeError(f"address must be that of a scheduler, as a text, or a distributed.Client, not {address!r}")
        check_seconds(timeout, "timeout")
        self._setup = node.Setup(uuid.uuid4().hex, node.versions(), cloudpickle.dumps(checked(options)))
        self._owns_client = not isinstance(address, Client)
        self._client = _connect(address, timeout) if isinstance(address, str) else address
        self._where = str(address) if isinstance(address, str) else str(self._client.scheduler.address)
        self._books = ClusterStats(name or f"cluster-{next(_names)}")
        self._lock = threading.Lock()
        self._nodes = Nodes(self._client, self._setup.versions, self._books)
        self._threads: list[threading.Thread] = []
        self._works: weakref.WeakSet[ClusterCall] = weakref.WeakSet()
        self._singles = CallBatcher(self._client, self._setup, self._books, BatchSizer(TARGET), self._nodes)
        self._state = "RUN"
        self._pid = os.getpid()
        try:
            self._nodes.check(timeout, self._where)
        except BaseException:
            self._disconnect()
            raise
        _open_pools.add(self)

    @property
    def nodes(self) -> dict[str, int]:
        """The nodes that are used now, by address, with how many workers each has."""
        return self._nodes.present()

    # --- calls ----------------------------------------------------------------------------------

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
        """`[func(x) for x in iterable]`, on the nodes; all items are over before it returns or raises."""
        limits = limits_of(task_timeout, retries, retry_on)
        work = self._begin(func, iterable, node.MAP, "map", chunksize, limits)
        return self._collect(work, return_exceptions)

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
        limits = limits_of(task_timeout, retries, retry_on)
        work = self._begin(func, iterable, node.STAR, "map", chunksize, limits)
        return self._collect(work, return_exceptions)

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
        """Results in the order of the input, as they come; the input may be endless.

        Args:
            buffersize: how many items may be taken from the input and not yet yielded. The default is 11 batches per
                node: 3 under way, and 8 that wait for an earlier result. A batch has `chunksize` items, or about 0.1 s
                of work for all workers of a node. Before the first result, a batch has one item per worker. If the
                input is slow, a batch goes out after 0.1 s with the items that are there, at least one.
        """
        limits = limits_of(task_timeout, retries, retry_on)
        buffersize = check_buffersize(buffersize)
        work = self._begin(func, iterable, node.MAP, "imap", chunksize, limits, buffersize)
        return ClusterStream(work, ordered=True, return_exceptions=return_exceptions)

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
        """`imap` with results in the order in which they are ready."""
        limits = limits_of(task_timeout, retries, retry_on)
        buffersize = check_buffersize(buffersize)
        work = self._begin(func, iterable, node.MAP, "imap", chunksize, limits, buffersize)
        return ClusterStream(work, ordered=False, return_exceptions=return_exceptions)

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
        """`func(*args, **kwds)` on a node; waits for the result."""
        limits = limits_of(task_timeout, retries, retry_on)
        result: ClusterResult[R] = ClusterResult(self._singles.look)
        self._submit(result, func, tuple(args), dict(kwds or {}), limits)
        try:
            return result.get()
        except BaseException:
            result.cancel()  # nobody can come back to it
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
        """`apply` that returns at once; many calls travel by the batch. Others wait for callbacks: be short in them."""
        limits = limits_of(task_timeout, retries, retry_on)
        result = ClusterResult(self._singles.look, callback, error_callback)
        self._submit(result, func, tuple(args), dict(kwds or {}), limits)
        return result

    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> ClusterResult[R]:
        """`func(*args, **kwargs)` on a node, as a `concurrent.futures.Future`; `apply_async` in another form."""
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
        """`map` that returns at once. Each item is pickled when its batch goes out: do not change it before that."""
        limits = limits_of(task_timeout, retries, retry_on)
        work = self._begin(func, iterable, node.MAP, "map", chunksize, limits)
        return self._in_background(lambda: self._collect(work, return_exceptions), work, callback, error_callback)

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
        """`starmap` that returns at once. Each item is pickled when its batch goes out, as with `map_async`."""
        limits = limits_of(task_timeout, retries, retry_on)
        work = self._begin(func, iterable, node.STAR, "map", chunksize, limits)
        return self._in_background(lambda: self._collect(work, return_exceptions), work, callback, error_callback)

    def _submit(
        self,
        result: ClusterResult[Any],
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
        limits: Limits,
    ) -> None:
        """Send a single call, as it is now. If it cannot be pickled, the exception is its outcome."""
        self._check_call(func)
        with defer_signals():  # so that what a signal's handler raises can be told from what an argument raises
            try:
                with allow_signals():
                    content = node.CallContent(*(cloudpickle.dumps(part) for part in (func, (args, kwds), limits)))
            except BaseException as error:
                if not is_own(error):
                    raise
                result.settle(False, error)
                return
        self._singles.submit(BatchedCall(_name_of(func), content, result))

    def _check_call(self, func: Callable[..., Any]) -> None:
        if self._state != "RUN":
            raise ValueError("Pool not running")
        if not callable(func):
            raise TypeError(f"{type(func).__name__!r} object is not callable")

    def _begin(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        mode: int,
        kind: str,
        chunksize: int | None,
        limits: Limits,
        buffersize: int | None = None,
    ) -> ClusterCall:
        self._check_call(func)
        chunksize = check_chunksize(chunksize)
        items: Iterable[Any] = iterable
        error = shared = None
        if kind == "map":
            items, error, _ = gather(iterable)
            if items is iterable and type(items) is list:
                items = items.copy()  # the caller of map_async goes on, and may change the list
            shared = repeats() if chunksize != 1 else None
        total = length_of(items)
        batches = Batches(
            self._setup,
            cloudpickle.dumps(func),
            mode,
            iter(items),
            total,
            limits,
            TARGET,
            chunksize,
            error,
            shared,
        )
        call = ClusterCallStats(_name_of(func), kind, total)
        work = ClusterCall(self._client, batches, call, self._books, self._nodes, buffersize)
        with self._lock:
            self._works.add(work)
        return work

    @staticmethod
    def _collect(work: ClusterCall, return_exceptions: bool) -> list[Any]:
        results: list[Any] = []
        first: BaseException | None = None
        for found in work.outcomes(ordered=True):
            assert found is not None, "nobody has set a deadline"
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

    def _in_background(
        self,
        run: Callable[[], Any],
        work: ClusterCall,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> ClusterResult[Any]:
        result: ClusterResult[Any] = ClusterResult(work.cancel, callback, error_callback)
        thread = threading.Thread(target=result.run, args=(run,), name="pairpool-cluster-map", daemon=True)
        with self._lock:
            self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        thread.start()
        return result

    # --- the pool itself ------------------------------------------------------------------------

    def status(self) -> PoolStatus:
        """What the cluster is doing, with a worker for each node; what nodes told last, along with their results."""
        if self._state != "TERMINATE":
            self._nodes.present()
        return self._books.status()

    def live(self, console: Console | None = None) -> LiveView:
        """Show the pool on the terminal, a line a node, until the view is stopped; see `Pool.live`."""
        from pairpool.view.live import LiveView

        view = LiveView(self._books.status, console)
        view.start()
        return view

    def close(self) -> None:
        """Take no more calls; those there are run to their ends."""
        if self._state == "RUN":
            self._state = self._books.state = "CLOSE"

    def join(self) -> None:
        """Wait until calls that were made to run in the background have ended; `close` or `terminate` comes first."""
        if self._state == "RUN":
            raise ValueError("Pool is still running")
        self._singles.close(cancel=False)
        for thread in self._threads:
            thread.join()
        self._end()

    def terminate(self) -> None:
        """End at once: calls that have not ended raise `CancelledError`."""
        self.close()
        for work in list(self._works):
            work.cancel()
        self._singles.close(cancel=True)
        for thread in self._threads:
            thread.join()
        self._end()

    def _end(self) -> None:
        if self._state == "TERMINATE":
            return
        self._state = self._books.state = "TERMINATE"
        self._books.ended = time.monotonic()
        try:
            if self._client.status == "running":
                self._client.run(node.close_pool, self._setup.key, on_error="ignore")
        except (OSError, TimeoutError) as error:
            logging.getLogger("pairpool").info("the cluster could not be told that its pools end: %s", error)
        self._disconnect()

    def _disconnect(self) -> None:
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> ClusterPool:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.terminate()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} {self._where} state={self._state}>"


class _PunctualClient(Client):  # type: ignore[misc]  # it is Any to mypy
    """A client whose limit counts, too, while it waits for an answer to its greeting; Dask's own does not."""

    async def _start(self, timeout: float, **kwargs: Any) -> Any:
        try:
            return await asyncio.wait_for(super()._start(timeout=timeout, **kwargs), timeout)
        except TimeoutError:
            await self._close(fast=True)
            raise


def _name_of(func: Callable[..., Any]) -> str:
    return getattr(func, "__qualname__", None) or type(func).__qualname__


def _connect(address: str, timeout: float) -> Client:
    try:
        return _PunctualClient(address, timeout=timeout, set_as_default=False, name="pairpool")
    except (OSError, TimeoutError, ValueError, TypeError) as error:  # a TypeError: it is some other server of Dask's
        reason = str(error) or "nothing there speaks as one"
        raise ConnectionError(f"there is no Dask scheduler at {address} within {timeout:g} s ({reason})") from None
