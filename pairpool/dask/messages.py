"""The messages between a program and the nodes of its cluster. Dask carries them as pickles.

The fields are plain data, or pickles as bytes. So Dask and its workers never load an object of the user, which could
end the process that loads it.

program ── BatchOrder ──► run_batch on a node
program ◄─ BatchReport ── run_batch on a node
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any, NamedTuple

__all__ = [
    "BatchOrder",
    "BatchReport",
    "CallContent",
    "CallHead",
    "ItemMode",
    "NodeFunction",
    "NodeLimits",
    "NodeSetup",
    "versions",
]


class ItemMode(IntEnum):
    """How a node applies the function to an item."""

    MAP = 0
    """`function(item)`."""
    STAR = 1
    """`function(*item)`."""
    CALL = 2
    """Each item is a call of its own: the item is `(args, kwds)`."""


class NodeSetup(NamedTuple):
    """The pool that a client has on each node."""

    key: str
    """Identifies the client."""
    versions: str
    """The result of `versions` in the program."""
    options: bytes
    """Options of `Pool`, pickled. They are plain data, and the initializer is a pickle inside."""


class NodeLimits(NamedTuple):
    """The limits of a call that override those of the pools on the nodes. None keeps the pool's."""

    task_timeout: float | None = None
    retries: int | None = None
    repeats_timeouts: bool = False
    """Whether an item that exceeds its time limit runs again. The function's pickle has the other exceptions."""


class NodeFunction(NamedTuple):
    """A function that only the workers of the pools load."""

    name: str
    pickled: bytes
    """The function, and the tuple of the exceptions after which an item runs again, pickled."""
    has_state: bool
    """Whether the function contains objects that a task can change."""


class CallHead(NamedTuple):
    """The part of an order that is the same for all batches of a call."""

    setup: NodeSetup
    call: str
    """Identifies the call."""
    function: NodeFunction
    """For single calls a placeholder, because each of them has its own function."""
    mode: ItemMode
    limits: NodeLimits
    """Of no use for single calls, because each of them has its own limits."""


class CallContent(NamedTuple):
    """A single call, pickled."""

    function: NodeFunction
    limits: NodeLimits
    kind: int
    """How the arguments travel (`packing`)."""
    arguments: Any
    """`(args, kwds)`, as their kind says."""


class BatchOrder(NamedTuple):
    """A batch on its way to a node."""

    head: CallHead
    first: int
    """Index of the first item in its call."""
    items: bytes
    """The items, packed (`packing`). For single calls: the arguments."""
    length: int
    calls: tuple[tuple[NodeFunction, NodeLimits], ...] = ()
    """For single calls: the function and the limits of each."""


class BatchReport(NamedTuple):
    """The outcomes of a batch, or the reason why the node refused it."""

    node: str
    seconds: float
    """The sum of the run times of the items. If every item failed: how long the node had the batch."""
    outcomes: bytes = b""
    """For each item its value or its exception, packed (`packing`)."""
    refusal: str = ""
    """Why this node runs nothing for this client."""


def versions() -> str:
    """Return the versions of this process that must be equal in the program and on the node."""
    number = sys.modules["pairpool"].__version__
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}, pairpool {number}"
