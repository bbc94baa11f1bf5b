"""The nodes of a cluster: which there are, and which of them are used."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Any

from pairpool.dask import node
from pairpool.dask.stats import ClusterStats
from pairpool.errors import ClusterMismatch

__all__ = ["GONE", "Nodes"]

GONE = "the Dask scheduler has gone away, and did not come back in time"

LOOK_EVERY = 1.0
"""Seconds between two looks at which nodes there are."""


class Nodes:
    """Dask's workers that fit this program; from any thread.

    Args:
        client: of the cluster.
        versions: what nodes have to have.
        books: told which nodes there are.
    """

    def __init__(self, client: Any, versions: str, books: ClusterStats) -> None:
        self._client = client
        self._versions = versions
        self._books = books
        self._lock = threading.Lock()
        self._there: dict[str, int] = {}
        self._looked_at = -math.inf
        self._refused: set[str] = set()

    def check(self, timeout: float, where: str) -> None:
        """Wait for a node, and see whether all that are there fit.

        Raises:
            ConnectionError: there is none within `timeout` seconds.
            ClusterMismatch: one does not fit.
        """
        try:
            self._client.wait_for_workers(1, timeout=timeout)
        except TimeoutError:
            raise ConnectionError(f"the Dask scheduler at {where} has no node within {timeout:g} s") from None
        found = self._client.run(node.versions, on_error="return")
        for address, answer in found.items():
            if isinstance(answer, BaseException):
                raise ClusterMismatch(f"the node {address} has no pairpool like this one's: {answer!r}") from answer
            if answer != self._versions:
                raise ClusterMismatch(f"the node {address} has {answer}, and this program {self._versions}")

    def present(self) -> dict[str, int]:
        """Those that are used now, by address, with how many threads each has.

        Raises `ConnectionError` if there is no scheduler any more.
        """
        with self._lock:
            if time.monotonic() - self._looked_at > LOOK_EVERY:
                try:
                    found = self._client.nthreads()
                except (OSError, TimeoutError) as error:
                    raise ConnectionError(GONE) from error
                self._there = {address: threads for address, threads in found.items() if address not in self._refused}
                self._looked_at = time.monotonic()
                self._books.see(self._there)
            return dict(self._there)

    def limits(self) -> list[str] | None:
        """The addresses that batches are limited to; None where all nodes fit."""
        if not self._refused:
            return None
        there = list(self.present())
        if not there:
            raise ClusterMismatch("no node of the cluster has the versions of this program")
        return there

    def refuse(self, address: str, reason: str) -> None:
        """Use a node no more, which has said itself that it does not fit."""
        with self._lock:
            if address in self._refused:
                return
            self._refused.add(address)
            self._looked_at = -math.inf
        logging.getLogger("pairpool").warning("%s: it is not used", reason)
