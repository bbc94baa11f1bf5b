"""The messages between a program and the nodes of its cluster. Dask carries them as pickles.

program ── BatchOrder ──► run_batch on a node
program ◄─ BatchReport ── run_batch on a node
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import NamedTuple

__all__ = ["BatchOrder", "BatchReport", "CallContent", "CallHead", "ItemMode", "NodeSetup", "versions"]


class ItemMode(IntEnum):
    """How a node applies the function to an item."""

    MAP = 0
    """`function(item)`."""
    STAR = 1
    """`function(*item)`."""
    CALL = 2
    """Each item is a call of its own, a `CallContent`."""


class NodeSetup(NamedTuple):
    """The pool that a client has on each node."""

    key: str
    """Identifies the client."""
    versions: str
    """The result of `versions` in the program."""
    options: bytes
    """Options of `Pool`, pickled."""


class CallHead(NamedTuple):
    """The part of an order that is the same for all batches of a call."""

    setup: NodeSetup
    call: str
    """Identifies the call. A node unpickles the function once per call."""
    function: bytes
    mode: ItemMode
    limits: bytes
    """The limits of the call, pickled. Empty for single calls, because each of them has its own limits."""


class CallContent(NamedTuple):
    """A single call, as an item of a batch."""

    function: bytes
    """The function, pickled. Calls with the same bytes have the same function."""
    arguments: bytes
    """`(args, kwds)`, pickled."""
    limits: bytes
    """The limits of this call, pickled."""


class BatchOrder(NamedTuple):
    """A batch on its way to a node."""

    head: CallHead
    first: int
    """Index of the first item in its call."""
    items: bytes
    """The items, packed (`packing`). For single calls: a list of `CallContent`, pickled."""
    length: int


class BatchReport(NamedTuple):
    """The outcomes of a batch, or the reason why the node refused it."""

    node: str
    seconds: float
    """The sum of the run times of the items. If every item failed: how long the node had the batch."""
    outcomes: bytes = b""
    """For each item its value or its exception, packed (`packing`)."""
    successes: bytes = b""
    """For each item 1 if the outcome is a value, 0 if it is an exception."""
    refusal: str = ""
    """Why this node runs nothing for this client."""


def versions() -> str:
    """Return the versions of this process that must be equal in the program and on the node."""
    number = sys.modules["pairpool"].__version__
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}, pairpool {number}"
