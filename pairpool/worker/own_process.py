"""Notice that this process, or its channel, is not the worker's own any more.

Two mistakes of tasks would otherwise reach other tasks:

- A task forks, and the child returns from the task or raises. The child would go on as a second worker. It has a copy
  of the channel, so it would read the batches of the worker. Therefore a child ends as soon as it has left the task.
- A task closes the descriptor of the channel, such as by a second `close` of its own number. The next file that it
  opens gets this number, and the worker would send results to it. Therefore the worker looks at the file behind the
  descriptor once for each batch, before it sends the report.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from pairpool.linux import children, descriptors
from pairpool.scoreboard.board import State, Word
from pairpool.transport.channel import Channel
from pairpool.transport.failures import safe

__all__ = ["OwnProcess"]

SO_COOKIE = 57
"""Asks a socket for a number that no other socket of this machine has (socket(7)); twice as fast as fstat(2)."""


class OwnProcess:
    """The identity of the worker: its process, and the file behind its channel.

    Args:
        words: the worker's slot of the scoreboard.
        on_fork: called in each child that a task forks by `os.fork`, to end the loop over the items there.
    """

    def __init__(self, channel: Channel, words: memoryview, on_fork: Callable[[], None]) -> None:
        self._pid = os.getpid()
        self._channel = channel
        self._mark = _marker_of(channel)
        self._own_mark = self._mark()
        self._words = words
        self._on_fork = on_fork
        descriptors.own(self)

    def close(self) -> None:
        """Close the channel in a child that a task has forked. The fork calls this there."""
        self._on_fork()
        if self._is_ours():
            self._channel.close()

    def _is_ours(self) -> bool:
        """Return whether the channel's descriptor still means the channel."""
        try:
            return self._mark() == self._own_mark
        except OSError:
            return False

    def check_process(self, error: BaseException | None = None) -> None:
        """End this process if it is a child that has left its task, perhaps by raising `error`."""
        if os.getpid() != self._pid:
            _end_child(self._pid, error)

    def check(self) -> None:
        """End this process unless it is the worker and still has its channel."""
        if os.getpid() != self._pid:
            _end_child(self._pid, None)
        if not self._is_ours():
            self._words[Word.STATE] = State.CHANNEL_LOST
            _write(f"pairpool: a task has closed the descriptor of the channel of worker process {self._pid}")
            os._exit(1)


def _marker_of(channel: Channel) -> Callable[[], object]:
    """Return a function that returns what names the socket of a channel. It raises `OSError` if there is none."""
    sock = channel.sock

    def cookie() -> bytes:
        return sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)

    try:
        cookie()
    except OSError:  # a kernel that has no cookies, such as that of a sandbox
        return lambda: descriptors.identity(sock.fileno())
    return cookie


def _end_child(worker: int, error: BaseException | None) -> NoReturn:
    """End a child that has left its task, with an error on stderr."""
    status = 1
    text = ""
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        text = safe(lambda: "".join(traceback.format_exception(error)))
    children.flush_output()
    _write(
        f"{text}pairpool: process {os.getpid()}, which a task in worker process {worker} had forked, left the task. "
        "It ends here. A child ends by os._exit()."
    )
    os._exit(status & 0xFF)


def _write(text: str) -> None:
    """Write a line to stderr, even if a task has replaced `sys.stderr`."""
    try:
        os.write(2, f"{text}\n".encode("utf-8", "replace"))
    except OSError:
        if sys.stderr is not None:
            safe(lambda: str(sys.stderr.write(f"{text}\n")))
