"""The nodes of a cluster: which nodes there are, and which of them the pool uses."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Any

from pairpool.dask.messages import versions
from pairpool.dask.stats import ClusterStats
from pairpool.errors import ClusterMismatch

__all__ = ["SCHEDULER_GONE", "Nodes"]

SCHEDULER_GONE = "the Dask scheduler has gone away, and did not come back in time"

REFRESH_INTERVAL_S = 1.0
"""Seconds for which a list of nodes is used before the scheduler is asked again."""


class Nodes:
    """The Dask workers that have the versions of this program. Any thread may call the methods.

    Args:
        client: the Dask client of the cluster.
        required: the versions that a node must have.
        stats: learns which nodes there are.
    """

    def __init__(self, client: Any, required: str, stats: ClusterStats) -> None:
        self._client = client
        self._required = required
        self._stats = stats
        self._lock = threading.Lock()
        self._present: dict[str, int] = {}
        self._refreshed_s = -math.inf
        self._refused: set[str] = set()

    def check(self, timeout: float, where: str) -> None:
        """Wait for the first node, and check the versions of all nodes.

        Raises:
            ConnectionError: there is no node within `timeout` seconds.
            ClusterMismatch: a node has other versions.
        """
        try:
            self._client.wait_for_workers(1, timeout=timeout)
        except TimeoutError:
            raise ConnectionError(f"the Dask scheduler at {where} has no node within {timeout:g} s") from None
        found = self._client.run(versions, on_error="return")
        for address, answer in found.items():
            if isinstance(answer, BaseException):
                raise ClusterMismatch(f"the node {address} has no pairpool like this one's: {answer!r}") from answer
            if answer != self._required:
                raise ClusterMismatch(f"the node {address} has {answer}, and this program {self._required}")

    def present(self) -> dict[str, int]:
        """Return the nodes that are used now: the number of threads by address.

        Raises `ConnectionError` if the scheduler has gone away.
        """
        with self._lock:
            if time.monotonic() - self._refreshed_s > REFRESH_INTERVAL_S:
                try:
                    found = self._client.nthreads()
                except (OSError, TimeoutError) as error:
                    raise ConnectionError(SCHEDULER_GONE) from error
                self._present = {address: threads for address, threads in found.items() if address not in self._refused}
                self._refreshed_s = time.monotonic()
                self._stats.set_nodes(self._present)
            return dict(self._present)

    def allowed(self) -> list[str] | None:
        """Return the addresses that batches are limited to; None if every node may run them.

        Raises `ClusterMismatch` if no node has the versions of this program.
        """
        if not self._refused:
            return None
        present = list(self.present())
        if not present:
            raise ClusterMismatch("no node of the cluster has the versions of this program")
        return present

    def refuse(self, address: str, reason: str) -> None:
        """Stop using a node that has reported other versions."""
        with self._lock:
            if address in self._refused:
                return
            self._refused.add(address)
            self._refreshed_s = -math.inf
        logging.getLogger("pairpool").warning("%s: it is not used", reason)
