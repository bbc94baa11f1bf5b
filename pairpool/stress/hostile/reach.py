"""Find what a task can reach of its worker: the channel, the scoreboard and the payload buffers.

A task runs in the same process as the worker, so the worker's objects are on the stack. Nothing here is part of the
interface of pairpool. A hostile task would do the same.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from pairpool.scoreboard.board import SLOT_WORDS, Scoreboard, Word
from pairpool.transport.channel import Channel
from pairpool.transport.payload_shm import PayloadReader
from pairpool.worker.payloads import Payloads
from pairpool.worker.worker import Worker

__all__ = ["Reach", "memfds_of", "reach"]


class Reach(NamedTuple):
    """The objects of its worker that a task can reach.

    Attributes:
        channel: the worker's end of the pair.
        words: the worker's slot of the scoreboard.
        board: all memory of the scoreboard that this process can write to.
        buffers: payload buffers of the master that this process has mapped.
    """

    channel: socket.socket
    words: memoryview
    board: memoryview
    buffers: list[mmap.mmap]

    @property
    def batch(self) -> int:
        """The number of the batch that runs."""
        return int(self.words[Word.BATCH])

    @property
    def first(self) -> int:
        """The index of its first item."""
        return int(self.words[Word.FIRST])

    @property
    def items(self) -> int:
        """The number of its items."""
        return int(self.words[Word.COUNT])


def _selves() -> Iterator[Any]:
    frame = sys._getframe()
    while frame is not None:
        one = frame.f_locals.get("self")
        if one is not None:
            yield one
        frame = frame.f_back  # type: ignore[assignment]


def _parts(one: object) -> list[Any]:
    """Return the values of the attributes of an object."""
    fields = list(vars(one).values()) if hasattr(one, "__dict__") else []
    return fields + (list(one) if isinstance(one, tuple) else [])


def _whole(board: Scoreboard) -> memoryview:
    """Return the memory of a scoreboard that this process may write to."""
    views = [view for view in _parts(board) if type(view) is memoryview and not view.readonly and view.format == "B"]
    return max(views, key=lambda view: view.nbytes)


def reach() -> Reach:
    """Return what the task that calls this can reach. Raise `LookupError` outside of a worker."""
    selves = list(_selves())
    worker = next((one for one in selves if isinstance(one, Worker)), None)
    if worker is None:
        raise LookupError("no worker is on the stack")
    parts = _parts(worker)
    channel = next(part for part in parts if isinstance(part, Channel))
    words = next(part for part in parts if type(part) is memoryview and part.nbytes == 8 * SLOT_WORDS)
    payloads = next(part for part in parts if isinstance(part, Payloads))
    reader = next(part for part in _parts(payloads) if isinstance(part, PayloadReader))
    buffers = [buffer for part in _parts(reader) if isinstance(part, dict) for buffer in part.values()]
    board = next(part for one in selves for part in _parts(one) if isinstance(part, Scoreboard))
    maps = [buffer for buffer in buffers if isinstance(buffer, mmap.mmap)]
    return Reach(channel.sock, words, _whole(board), maps)


def memfds_of(process: int | str) -> list[str]:
    """Return paths in /proc of the memfds of pairpool that a process has open."""
    found = []
    for name in os.listdir(f"/proc/{process}/fd"):
        path = f"/proc/{process}/fd/{name}"
        try:
            if os.readlink(path).startswith("/memfd:pairpool"):
                found.append(path)
        except OSError:
            continue  # it was closed meanwhile
    return found
