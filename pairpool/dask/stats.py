"""The statistics of a cluster's pool, kept in the program. Nodes report theirs along with results.

calls ── open, ran, close ──► ClusterStats ── status ──► PoolStatus, with one worker per node
Nodes ── set_nodes ─────────►
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from pairpool.status import CallStatus, FailureStatus, PoolStatus, WorkerStatus
from pairpool.transport.failures import safe

__all__ = ["ClusterCallStats", "ClusterStats"]

RATE_SECONDS = 60
"""Seconds for which `PoolStatus.rates` tells the items per second."""

FAILURES_SHOWN = 8
CALLS_SHOWN = 16


class ClusterCallStats:
    """The counts of one call, or of all single calls that are open at the same time."""

    def __init__(self, function: str, kind: str, total: int | None) -> None:
        self.function, self.kind, self.total = function, kind, total
        self.began_s = time.monotonic()
        self._taken = self.done = self.failed = 0

    @property
    def pending(self) -> int:
        """The items that have not ended."""
        return (self._taken if self.total is None else self.total) - self.done

    def take(self, items: int, function: str | None = None) -> None:
        """Count items that were taken from the input. Single calls of several functions are called `calls`."""
        self._taken += items
        if function is not None and function != self.function:
            self.function = "calls"

    def drop(self, items: int) -> None:
        """Discount items that were cancelled."""
        self._taken -= items

    def add(self, done: int, failed: int) -> None:
        """Count items that ended, and how many of them failed."""
        self.done += done
        self.failed += failed


class NodeStats:
    """The counts of one node."""

    def __init__(self, number: int, address: str) -> None:
        self._number, self._address = number, address
        self._threads = self._done = self._failed = 0
        self._batches: dict[str, tuple[str, int, float]] = {}  # by function: it, the first item, the time of the report
        self.number = number
        self.is_present = True

    def set_threads(self, threads: int | None) -> None:
        """Note how many threads the node has; None if the node is gone."""
        self.is_present = threads is not None
        if threads is not None:
            self._threads = threads

    def ran(self, function: str, first: int, done: int, failed: int, now: float) -> None:
        """Count a batch that the node has reported."""
        self._done += done
        self._failed += failed
        self._batches[function] = function, first, now

    def status(self, now: float, *, has_calls: bool) -> WorkerStatus:
        """Return the node as one worker, which approximately runs the batch that it reported last."""
        function, first, since = max(self._batches.values(), key=lambda one: one[2], default=("", 0, 0.0))
        is_busy = has_calls and bool(function)
        return WorkerStatus(
            self._number,
            0,
            "running" if is_busy else "idle",
            function if is_busy else "",
            first if is_busy else None,
            now - since if is_busy else 0.0,
            self._done,
            self._failed,
            0,
            f"{self._threads} threads at {self._address}" if is_busy else "",
        )


class ClusterStats:
    """The counts of the whole pool. Any thread may call the methods."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began_s = time.monotonic()
        self._state = "RUN"
        self._ended_s: float | None = None
        self._lock = threading.Lock()
        self._calls: list[ClusterCallStats] = []
        self._nodes: dict[str, NodeStats] = {}
        self._failures: deque[tuple[float, int | None, str, int, str]] = deque(maxlen=FAILURES_SHOWN)
        self._ended_in: deque[tuple[int, int]] = deque(maxlen=RATE_SECONDS + 1)  # a second, and the items of it
        self._done = self._failed = 0

    # --- the pool and its calls -----------------------------------------------------------------

    def set_state(self, state: str) -> None:
        """Note the state of the pool: `RUN`, `CLOSE` or `TERMINATE`."""
        self._state = state
        if state == "TERMINATE":
            self._ended_s = time.monotonic()

    def open(self, call: ClusterCallStats) -> None:
        """Count the items of a call from now on."""
        with self._lock:
            self._calls.append(call)

    def close(self, call: ClusterCallStats) -> None:
        """Note that a call has ended."""
        with self._lock:
            self._calls.remove(call)

    def set_nodes(self, nodes: dict[str, int]) -> None:
        """Note which nodes are present: the number of threads by address."""
        with self._lock:
            for address in nodes:
                self._node(address)
            for address, node in self._nodes.items():
                node.set_threads(nodes.get(address))

    def ran(
        self,
        call: ClusterCallStats,
        address: str,
        first: int,
        outcomes: Sequence[tuple[bool, object]],
        functions: Sequence[str] = (),
    ) -> None:
        """Count a batch that has come back.

        Args:
            address: the node that ran the batch; empty if no node did.
            functions: for single calls, the function of each item. Each item is then the first of its call.
        """
        now, count = time.monotonic(), len(outcomes)
        failures = [
            (functions[offset] if functions else call.function, 0 if functions else first + offset, _one_line(outcome))
            for offset, (is_value, outcome) in enumerate(outcomes)
            if not is_value
        ]
        failed = len(failures)
        with self._lock:
            node = self._node(address) if address else None
            number = None if node is None else node.number
            self._failures.extendleft((now, number, function, item, text) for function, item, text in failures)
            if node is not None:
                node.ran(call.function, first, count, failed, now)
            call.add(count, failed)
            self._done += count
            self._failed += failed
            second = int(now - self._began_s)
            if self._ended_in and self._ended_in[-1][0] == second:
                count += self._ended_in.pop()[1]
            self._ended_in.append((second, count))

    def _node(self, address: str) -> NodeStats:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = NodeStats(len(self._nodes), address)
        return node

    # --- the snapshot ---------------------------------------------------------------------------

    def status(self) -> PoolStatus:
        """Return a snapshot that has one worker per present node."""
        now = time.monotonic()
        with self._lock:
            has_calls = bool(self._calls)
            workers = tuple(node.status(now, has_calls=has_calls) for node in self._nodes.values() if node.is_present)
            return PoolStatus(
                self._name,
                os.getpid(),
                self._state,
                "forkserver",
                len(workers),
                (self._ended_s or now) - self._began_s,
                len(self._calls),
                workers if self._ended_s is None else (),
                self._done,
                self._failed,
                sum(call.pending for call in self._calls),
                self._rates(now),
                tuple(
                    CallStatus(one.function, one.kind, one.total, one.done, one.failed, now - one.began_s)
                    for one in self._calls[:CALLS_SHOWN]
                ),
                tuple(
                    FailureStatus(now - when, worker, function, item, error)
                    for when, worker, function, item, error in self._failures
                ),
            )

    def _rates(self, now: float) -> tuple[int, ...]:
        """Return the items that ended in each of the last seconds, the oldest first."""
        this = int(now - self._began_s)
        ended = dict(self._ended_in)
        return tuple(ended.get(second, 0) for second in range(max(0, this - RATE_SECONDS), this))


def _one_line(error: object) -> str:
    """Return the type and the first line of an exception. The exception's own `__str__` may fail."""
    return f"{type(error).__name__}: {safe(lambda: str(error))}".splitlines()[0]
