"""Give each descriptor one owner, and close it in forked children.

Facts, and the consequences:

- A forked child inherits every descriptor. A copy of a worker's socket would keep the pair of a dead worker open. So
  each owned descriptor is closed in every child, unless the child is meant to have it.
- A descriptor that is opened while a standard stream is closed gets the number 0, 1 or 2. Then prints would reach it,
  and a program that is started would get another file in its place. So `above_standard` moves it.
"""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

__all__ = ["Closable", "Descriptor", "above_standard", "disown", "memfd", "own"]


class Closable(Protocol):
    """An object that holds a descriptor and can close it."""

    def close(self) -> None: ...


class Descriptor:
    """A plain descriptor with one owner. A second `close` does nothing."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def detach(self) -> int:
        """Return the number, which the caller then owns."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def above_standard(fd: int) -> int:
    """Return the descriptor. If it has the number of a closed standard stream, return a copy with a higher number."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


_owned: dict[int, Closable] = {}


def own(thing: Closable) -> None:
    """Close `thing` in every child that this process forks, until `disown`."""
    _owned[id(thing)] = thing


def disown(thing: Closable) -> None:
    """Stop closing `thing` in children, because it has been closed or because a child is meant to inherit it."""
    _owned.pop(id(thing), None)


def _close_owned_in_child() -> None:
    things = list(_owned.values())
    _owned.clear()
    for thing in things:
        try:
            thing.close()
        except OSError:
            pass  # the program has closed all that it inherited, and nothing is left to close


os.register_at_fork(after_in_child=_close_owned_in_child)


def memfd(name: str, size: int) -> int:
    """Return the descriptor of an anonymous file of `size` zero bytes that closes on exec (memfd_create(2))."""
    fd = above_standard(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd
