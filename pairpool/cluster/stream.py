"""A call on a cluster: batches out, reports in, as many under way as keep the nodes busy.

    Batches ─► submit ─► Dask ─► run_batch on a node ─► Report ─► in order, if that is wanted ─► outcomes

Whoever reads the outcomes drives it: no thread is needed for that, and nothing is taken from the input that nobody
waits for.
"""

from __future__ import annotations

import itertools
import pickle
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import cloudpickle

from pairpool.cluster import node
from pairpool.cluster.books import Books, Call
from pairpool.cluster.pace import Pace

__all__ = ["Batches", "Work"]

AHEAD = 3
"""Batches under way for each node: one runs, one is there when it ends, one is on its way."""

ITEMS_AHEAD = 2
"""Items under way for each thread at least, however few of them make a batch."""

UNREAD = 8
"""Batches for each node that may wait for one before them, where results are wanted in order."""

DEATHS = 10
"""Nodes that may go away under a batch before its items are held to be what ends them."""

Outcome = tuple[bool, Any]


class Sent(NamedTuple):
    """A batch under way."""

    order: node.Order
    deaths: int


class Batches:
    """The items of a call, batch by batch, pickled."""

    def __init__(
        self,
        setup: node.Setup,
        function: bytes,
        mode: int,
        items: Iterator[Any],
        total: int | None,
        policy: dict[str, Any],
        target: float,
        chunksize: int | None,
    ) -> None:
        self._parts = setup, uuid.uuid4().hex, function, mode
        self._items = items
        self._total = total
        self._policy = policy
        self.pace = Pace(target, chunksize)
        self.taken = 0
        self.error: BaseException | None = None
        self.is_exhausted = False

    def next(self, nodes: dict[str, int], at_most: int) -> tuple[node.Order | None, dict[int, BaseException]]:
        """The next batch, and the exceptions of its items that cannot be pickled, by index; None if there is none."""
        remaining = None if self._total is None else self._total - self.taken
        size = min(at_most, self.pace.next(remaining, len(nodes), sum(nodes.values())))
        items: list[Any] = []
        if not self.is_exhausted:
            try:
                items = list(itertools.islice(self._items, size))
            except Exception as error:
                self.error = error
                self.is_exhausted = True
        if len(items) < size:
            self.is_exhausted = True
        if not items:
            return None, {}
        first, self.taken = self.taken, self.taken + len(items)
        setup, call, function, mode = self._parts
        failed: dict[int, BaseException] = {}
        try:
            pickled = cloudpickle.dumps(items)
        except Exception:
            items, failed = _only_those_that_pickle(items)
            pickled = cloudpickle.dumps(items)
        return node.Order(setup, call, function, mode, first, pickled, len(items), self._policy), failed


def _only_those_that_pickle(items: list[Any]) -> tuple[list[Any], dict[int, BaseException]]:
    """The items that can be pickled, and the exceptions of the others by offset."""
    good: list[Any] = []
    failed: dict[int, BaseException] = {}
    for offset, item in enumerate(items):
        try:
            cloudpickle.dumps(item)
            good.append(item)
        except Exception as error:
            failed[offset] = error
    return good, failed


class Work:
    """A call under way; read by one thread, cancelled by any.

    Args:
        client: of the cluster.
        nodes: gives the nodes that may be used now, with their threads.
        only_on: gives the addresses of those where some may not be used; None where all may.
        refuse: told the address of a node that says that it does not fit, and why.
        buffersize: items that may be taken and not yet read; None for some batches a node.
    """

    def __init__(
        self,
        client: Any,
        batches: Batches,
        call: Call,
        books: Books,
        nodes: Callable[[], dict[str, int]],
        only_on: Callable[[], list[str] | None],
        refuse: Callable[[str, str], None],
        buffersize: int | None,
    ) -> None:
        self._client = client
        self._batches = batches
        self._call = call
        self._books = books
        self._nodes = nodes
        self._only_on = only_on
        self._refuse = refuse
        self._buffersize = buffersize
        self._sent: dict[Any, Sent] = {}  # by Dask's future
        self._items_sent = 0
        self._holes: dict[int, dict[int, BaseException]] = {}  # items that could not be pickled, by their batch's first
        self._read = 0
        self._is_cancelled = False
        self._is_over = False
        self.at_end: Callable[[Work], None] = lambda _work: None

    def cancel(self) -> bool:
        """End the call. Returns whether there was something to end."""
        if self._is_over:
            return False
        self._is_cancelled = True
        self._client.cancel(list(self._sent), force=True)
        return True

    def values(self, *, ordered: bool, return_exceptions: bool) -> Iterator[Any]:
        """The results one by one; an exception in the place of its item."""
        return _Values(self.outcomes(ordered=ordered), return_exceptions)

    def outcomes(self, *, ordered: bool) -> Iterator[Outcome]:
        """For each item whether it has a value, and that or its exception."""
        from distributed import as_completed

        arrivals = as_completed(loop=self._client.loop)
        waiting: dict[int, list[Outcome]] = {}
        due = 0
        ready: deque[list[Outcome]] = deque()
        self._books.open(self._call)
        try:
            self._fill(arrivals)
            while self._sent:
                future = next(arrivals)
                first, outcomes = self._receive(arrivals, future)
                if outcomes is not None and ordered:
                    waiting[first] = outcomes
                    while due in waiting:
                        ready.append(waiting.pop(due))
                        due += len(ready[-1])
                elif outcomes is not None:
                    ready.append(outcomes)
                self._fill(arrivals)
                while ready:
                    for outcome in ready.popleft():
                        self._read += 1
                        yield outcome
                    self._fill(arrivals)
            if self._is_cancelled:
                raise CancelledError("the call was cancelled")
            if self._batches.error is not None:
                raise self._batches.error
        except RuntimeError as error:
            self._require_scheduler(error)
            raise
        finally:
            self._is_over = True
            if self._sent and self._client.status == "running":
                self._client.cancel(list(self._sent), force=True)
            self._sent.clear()
            self._books.close(self._call)
            self.at_end(self)

    # --- out ------------------------------------------------------------------------------------

    def _fill(self, arrivals: Any) -> None:
        """Have as many batches under way as keep the nodes busy."""
        if self._is_cancelled:
            return
        nodes = self._nodes()
        many, threads = max(1, len(nodes)), sum(nodes.values())
        while not self._batches.is_exhausted and (
            len(self._sent) < AHEAD * many or self._items_sent < ITEMS_AHEAD * threads
        ):
            unread = self._batches.taken - self._read
            usual = self._batches.pace.next(None, many, threads)
            bound = self._buffersize or (len(self._sent) + UNREAD * many) * usual
            if unread >= bound and unread:
                return
            order, failed = self._batches.next(nodes, max(1, bound - unread))
            if order is None:
                return
            self._call.taken = self._batches.taken
            if failed:
                self._holes[order.first] = failed
            self._submit(arrivals, order, 0)

    def _submit(self, arrivals: Any, order: node.Order, deaths: int) -> None:
        future = self._client.submit(
            node.run_batch,
            order,
            key=f"pairpool-{uuid.uuid4().hex}",
            pure=False,
            workers=self._only_on(),
            allow_other_workers=False,
        )
        self._sent[future] = Sent(order, deaths)
        self._items_sent += order.length
        arrivals.add(future)

    def _require_scheduler(self, error: Exception) -> None:
        """Raise `ConnectionError` if what went wrong is that there is no scheduler any more."""
        if self._client.status in ("closing", "closed"):
            raise ConnectionError("the Dask scheduler has gone away, and did not come back in time") from error

    # --- in -------------------------------------------------------------------------------------

    def _receive(self, arrivals: Any, future: Any) -> tuple[int, list[Outcome] | None]:
        """The first index and the outcomes of a batch that has ended; None if it goes out once more."""
        order, deaths = self._sent.pop(future)
        self._items_sent -= order.length
        try:
            report: node.Report = future.result()
        except Exception as error:
            return order.first, self._on_lost(arrivals, order, deaths, error)
        finally:
            future.release()
        if report.refusal:
            self._refuse(report.node, report.refusal)
            self._submit(arrivals, order, deaths)
            return order.first, None
        try:
            outcomes: list[Outcome] = pickle.loads(report.outcomes)
        except Exception as error:
            outcomes = [(False, error)] * order.length
        self._batches.pace.learn(order.length, report.seconds)
        holes = self._holes.pop(order.first, None)
        for offset in sorted(holes or ()):
            assert holes is not None
            outcomes.insert(offset, (False, holes[offset]))
        self._books.ran(self._call, report.node, order.first, outcomes)
        return order.first, outcomes

    def _on_lost(
        self, arrivals: Any, order: node.Order, deaths: int, error: Exception
    ) -> list[Outcome] | None:
        """Dask gave a batch up: nodes or connections went away under it, or the whole call was cancelled."""
        if self._is_cancelled:
            return None
        self._require_scheduler(error)
        from distributed.scheduler import KilledWorker

        if isinstance(error, (KilledWorker, CancelledError, OSError)) and deaths < DEATHS:
            self._submit(arrivals, order, deaths + 1)
            return None
        outcomes: list[Outcome] = [(False, error)] * order.length
        return outcomes


class _Values:
    """An iterator that goes on after an exception, which a generator cannot."""

    def __init__(self, outcomes: Iterator[Outcome], return_exceptions: bool) -> None:
        self._outcomes = outcomes
        self._return_exceptions = return_exceptions

    def __iter__(self) -> _Values:
        return self

    def __next__(self) -> Any:
        is_value, outcome = next(self._outcomes)
        if is_value or self._return_exceptions:
            return outcome
        try:
            raise outcome
        finally:
            del outcome
