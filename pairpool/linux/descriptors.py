"""Descriptors with one owner each, which no forked child keeps; memfd_create(2)."""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

__all__ = ["Closable", "Descriptor", "above_standard", "disown", "memfd", "own"]


class Closable(Protocol):
    """Anything that holds a descriptor and knows how to let go of it."""

    def close(self) -> None: ...


class Descriptor:
    """A bare descriptor number with one owner; closing it twice is harmless."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def above_standard(fd: int) -> int:
    """The descriptor, or, if it took the number of a standard stream that is closed, a copy of it in its place.

    What writes to the standard streams must not reach it, nor may a program that is started get another in its place.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


_owned: dict[int, Closable] = {}


def own(thing: Closable) -> None:
    """Have `thing` closed in every child that this process forks, until `disown`."""
    _owned[id(thing)] = thing


def disown(thing: Closable) -> None:
    """Forget `thing`: it has been closed, or a child is meant to inherit it."""
    _owned.pop(id(thing), None)


def _close_owned_in_child() -> None:
    things = list(_owned.values())
    _owned.clear()
    for thing in things:
        try:
            thing.close()
        except OSError:
            pass  # closed already, by a program that closes all that it inherits: nothing is left to do


os.register_at_fork(after_in_child=_close_owned_in_child)


def memfd(name: str, size: int) -> int:
    """An anonymous file of `size` zero bytes that closes on exec (memfd_create(2))."""
    fd = above_standard(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd
