"""What a cluster's pool has done, kept where calls are made: nodes tell theirs along with results."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from pairpool.status import CallStatus, FailureStatus, PoolStatus, WorkerStatus
from pairpool.transport.failures import safe

__all__ = ["ClusterStats", "ClusterCallStats"]

SECONDS = 60
FAILURES = 8
CALLS = 16


class ClusterCallStats:
    """A call under way."""

    def __init__(self, function: str, kind: str, total: int | None) -> None:
        self.function, self.kind, self.total = function, kind, total
        self.began = time.monotonic()
        self.taken = self.done = self.failed = 0


class _Node:
    def __init__(self, number: int, address: str) -> None:
        self.number, self.address = number, address
        self.threads = self.done = self.failed = 0
        self.batches: dict[str, tuple[str, int, float]] = {}  # function, first item and start of each that it may have
        self.is_there = True


class ClusterStats:
    """Counts, from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.state = "RUN"
        self.ended: float | None = None
        self._lock = threading.Lock()
        self._calls: list[ClusterCallStats] = []
        self._nodes: dict[str, _Node] = {}
        self._failures: deque[tuple[float, int | None, str, int, str]] = deque(maxlen=FAILURES)
        self._seconds: deque[tuple[int, int]] = deque(maxlen=SECONDS + 1)  # second and items that ended in it
        self._done = self._failed = 0

    def open(self, call: ClusterCallStats) -> None:
        with self._lock:
            self._calls.append(call)

    def close(self, call: ClusterCallStats) -> None:
        with self._lock:
            self._calls.remove(call)

    def see(self, nodes: dict[str, int]) -> None:
        """These nodes are there now, with so many threads each."""
        with self._lock:
            for address, threads in nodes.items():
                self._node(address).threads = threads
            for address, node in self._nodes.items():
                node.is_there = address in nodes

    def ran(
        self,
        call: ClusterCallStats,
        address: str,
        first: int,
        outcomes: Sequence[tuple[bool, object]],
        functions: Sequence[str] = (),
    ) -> None:
        """A batch has come back.

        Args:
            address: of the node that ran it; empty if none did.
            functions: of each item, where they differ; each is the first of its call, then.
        """
        now, count = time.monotonic(), len(outcomes)
        failures = [
            (functions[offset] if functions else call.function, 0 if functions else first + offset, _in_a_line(outcome))
            for offset, (is_value, outcome) in enumerate(outcomes)
            if not is_value
        ]
        failed = len(failures)
        with self._lock:
            node = self._node(address) if address else None
            number = None if node is None else node.number
            self._failures.extendleft((now, number, function, item, text) for function, item, text in failures)
            if node is not None:
                node.done += count
                node.failed += failed
                node.batches[call.function] = call.function, first, now
            call.done += count
            call.failed += failed
            self._done += count
            self._failed += failed
            second = int(now - self.began)
            if self._seconds and self._seconds[-1][0] == second:
                count += self._seconds.pop()[1]
            self._seconds.append((second, count))

    def _node(self, address: str) -> _Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = _Node(len(self._nodes), address)
        return node

    def status(self) -> PoolStatus:
        """A snapshot with a worker for each node that is there."""
        now = time.monotonic()
        with self._lock:
            calls = tuple(
                CallStatus(one.function, one.kind, one.total, one.done, one.failed, now - one.began)
                for one in self._calls[:CALLS]
            )
            pending = sum((one.taken if one.total is None else one.total) - one.done for one in self._calls)
            this = int(now - self.began)
            ended = dict(self._seconds)
            rates = tuple(ended.get(second, 0) for second in range(max(0, this - SECONDS), this))
            failures = tuple(
                FailureStatus(now - when, worker, function, item, error)
                for when, worker, function, item, error in self._failures
            )
            workers = tuple(self._row(node, now) for node in self._nodes.values() if node.is_there)
            return PoolStatus(
                self.name,
                os.getpid(),
                self.state,
                "forkserver",
                len(workers),
                (self.ended or now) - self.began,
                len(self._calls),
                workers if self.ended is None else (),
                self._done,
                self._failed,
                pending,
                rates,
                calls,
                failures,
            )

    def _row(self, node: _Node, now: float) -> WorkerStatus:
        """A node as one worker: the last batch that it reported is what it is at, more or less."""
        function, first, since = max(node.batches.values(), key=lambda one: one[2], default=("", 0, 0.0))
        is_busy = bool(self._calls) and bool(function)
        return WorkerStatus(
            node.number,
            0,
            "running" if is_busy else "idle",
            function if is_busy else "",
            first if is_busy else None,
            now - since if is_busy else 0.0,
            node.done,
            node.failed,
            0,
            f"{node.threads} threads at {node.address}" if is_busy else "",
        )


def _in_a_line(error: object) -> str:
    """Type and first line of an exception, whose text may be of its own making and fail."""
    return f"{type(error).__name__}: {safe(lambda: str(error))}".splitlines()[0]
