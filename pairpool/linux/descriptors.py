"""Give each descriptor one owner, and close it in forked children.

Facts, and the consequences:

- A forked child inherits every descriptor. A copy of a worker's socket would keep the pair of a dead worker open. So
  each owned descriptor is closed in every child, unless the child is meant to have it.
- A descriptor that is opened while a standard stream is closed gets the number 0, 1 or 2. Then prints would reach it,
  and a program that is started would get another file in its place. So `above_standard` moves it.
- An access to a mapping beyond the end of its file raises SIGBUS, which ends the process (mmap(2)). A process that has
  the descriptor can shorten the file, unless the file is sealed (fcntl(2), F_ADD_SEALS). Seals cannot be removed. So
  memory that several processes map is sealed before another process has it, and readers refuse files without the seals.
- A sealed file can still get holes. The next access to a hole finds a new page of zero bytes.
- Only memfds with ordinary pages are accepted. A hole in a file of huge pages raises SIGBUS if no huge page is free.
"""

from __future__ import annotations

import fcntl
import functools
import os
import stat
from typing import Protocol

__all__ = [
    "Closable",
    "Descriptor",
    "OwnFile",
    "above_standard",
    "disown",
    "fixed_memfd",
    "fixed_size",
    "identity",
    "is_memfd",
    "memfd",
    "own",
]

_FIXED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


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


class OwnFile(Descriptor):
    """A descriptor that notices when other code has closed its number, and perhaps opened another file there."""

    __slots__ = ("_identity",)

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._identity = identity(fd)

    def is_ours(self) -> bool:
        """Return whether the number still means the file that it meant at the beginning."""
        try:
            return identity(self.fd) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Close the file, unless other code has closed its number."""
        if self.is_ours():
            super().close()
        else:
            self.detach()


def above_standard(fd: int) -> int:
    """Return the descriptor. If it has the number of a closed standard stream, return a copy with a higher number."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def identity(fd: int) -> tuple[int, int]:
    """Return what names the file behind a descriptor: its device and its inode. Raise `OSError` if none is open."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


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


def fixed_memfd(name: str, size: int) -> int:
    """Do as `memfd` does, and seal the size: no process can make the file shorter or longer from now on."""
    fd = memfd(name, size)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def fixed_size(fd: int) -> int:
    """Return the size of a file that `fixed_memfd` has made, in any process. Return -1 for all other files."""
    status = os.fstat(fd)
    if not is_memfd(status):
        return -1
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return -1  # the file has no seals
    return status.st_size if seals == _FIXED_SEALS else -1


def is_memfd(status: os.stat_result) -> bool:
    """Return whether a file is a memfd with ordinary pages, or other memory of the same file system.

    Memfds are regular files on a file system of the kernel that is not mounted, and they have no name.
    """
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_dev == _memfd_device()


@functools.cache
def _memfd_device() -> int:
    """Return the device number of the file system of memfds."""
    fd = os.memfd_create("pairpool-device", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)
