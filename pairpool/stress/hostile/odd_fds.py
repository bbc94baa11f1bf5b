"""Descriptors that an attack attaches to its packets."""

from __future__ import annotations

import os
import select
import socket

from pairpool.linux import descriptors
from pairpool.stress.hostile.packets import LONG_MEMFD, SEALED_MEMFD, SHORT_MEMFD
from pairpool.transport.payload_shm import DATA_OFFSET

__all__ = ["OddFds"]

FIT_BYTES = 1 << 20
LONG_BYTES = 1 << 40

_PATHS = {"null": "/dev/null", "zero": "/dev/zero", "directory": "/proc"}


class OddFds:
    """The descriptors of one packet; one of each kind, however often it is attached.

    Args:
        channel: the worker's channel, which can travel over itself.
        content: what the memfds contain, as a payload.
    """

    def __init__(self, channel: socket.socket, content: bytes) -> None:
        self._channel = channel
        self._content = content
        self._open: dict[str, int] = {}
        self._others: list[int] = []

    def get(self, kind: str) -> int:
        """Return a descriptor of a kind."""
        if kind == "own channel":
            return self._channel.fileno()
        if kind not in self._open:
            self._open[kind] = self._make(kind)
        return self._open[kind]

    def _make(self, kind: str) -> int:
        if kind in _PATHS:
            return os.open(_PATHS[kind], os.O_RDONLY | os.O_CLOEXEC)
        if kind == "pipe":
            reader, writer = os.pipe()
            self._others.append(writer)
            return reader
        if kind == "socket":
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
        if kind == "epoll":
            with select.epoll() as epoll:
                return os.dup(epoll.fileno())
        if kind == "event":
            return os.eventfd(0)
        return self._make_memfd(kind)

    def _make_memfd(self, kind: str) -> int:
        size = {SHORT_MEMFD: 100, LONG_MEMFD: LONG_BYTES}.get(kind, DATA_OFFSET + FIT_BYTES)
        if kind == SEALED_MEMFD:
            fd = descriptors.fixed_memfd("hostile", size)
        else:
            fd = os.memfd_create("hostile")
            os.ftruncate(fd, size)
        if kind != SHORT_MEMFD:
            os.pwrite(fd, self._content, DATA_OFFSET)
        return fd

    def close(self) -> None:
        """Close all of them, except the channel."""
        for fd in (*self._open.values(), *self._others):
            os.close(fd)
