"""Open memfds of other processes by their names, although these processes are not trusted.

A process can show any file under any name: in its own mount namespace, /proc/PID/fd/N of a FIFO reads
`/memfd:pairpool-board (deleted)`. The reader may be root. So the file is checked before it is opened.

Facts (open(2), proc(5), fcntl(2)), and the consequences:

- To open a FIFO, a device or a file with a lease can wait for ever, and has effects of its own. O_PATH gives a handle
  that does not open the file. The check and the later opening mean the same file, because both use the handle.
- fstat(2) asks the file system, and a file system in user space (FUSE) need not answer. The number of the mount in
  /proc/self/fdinfo comes from the kernel. All memfds are on one mount of the kernel, which has no place in any
  directory tree. So this number is compared first.
- Opening /proc/self/fd/N of the handle opens the file itself. O_NONBLOCK turns the wait for a lease into an error.
- The owner of a memfd is the user of the process when it made the memfd. The process may have another user since then
  (`os.setuid` in an initializer). So the owner must be a user of the process, or the user who looks. A reader that
  looks at its own workers after they have dropped privileges finds its own memfds.
- /proc/PID/fd lists descriptors in order, and takes some microseconds for each. So only the first are looked at.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator

from pairpool.linux import descriptors

__all__ = ["NotTrusted", "find_memfd", "is_named", "open_memfd", "numbers_named", "users_of"]

DESCRIPTORS_LOOKED_AT = 1 << 16
"""Descriptors of one process that are looked at."""


class NotTrusted(ValueError):
    """A file with the name of a memfd is not a memfd of its process. The text says why."""


def is_named(pid: int, number: int, name: str) -> bool:
    """Return whether a descriptor of a process shows the name of a memfd. The file need not be a memfd.

    Raise the errors of readlink(2).
    """
    return os.readlink(f"/proc/{pid}/fd/{number}") == f"/memfd:{name} (deleted)"


def numbers_named(pid: int, name: str) -> Iterator[int]:
    """Yield the descriptors of a process that show the name of a memfd.

    Raise `FileNotFoundError` or `ProcessLookupError` if the process has ended, `PermissionError` if the kernel does
    not let this user look.
    """
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in itertools.islice(entries, DESCRIPTORS_LOOKED_AT):
            try:
                is_found = is_named(pid, int(entry.name), name)
            except (PermissionError, ProcessLookupError):
                raise
            except OSError:
                continue  # the descriptor was closed since it was listed, or its file has a path that is too long
            if is_found:
                yield int(entry.name)


def find_memfd(pid: int, name: str, *, writable: bool) -> int:
    """Open the first memfd of a process that has this name and can be trusted. Return -1 if it has none."""
    for number in numbers_named(pid, name):
        try:
            return open_memfd(pid, number, name, writable=writable)
        except (FileNotFoundError, NotTrusted):
            continue
    return -1


def open_memfd(pid: int, number: int, name: str, *, writable: bool = False) -> int:
    """Open a memfd of another process.

    Args:
        pid: the process.
        number: its descriptor.
        name: the name of the memfd.
        writable: whether to open it for writing, too.

    Raises:
        NotTrusted: the descriptor is not a memfd, or it has another name or an owner that the process does not explain.
        FileNotFoundError: the descriptor was closed, or the process has ended.
        PermissionError: the kernel does not let this user look.
    """
    if not is_named(pid, number, name):
        raise NotTrusted("the descriptor means another file now")
    handle = os.open(f"/proc/{pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
    try:
        if _mount_of(handle) != _memfd_mount():
            raise NotTrusted("the file is not a memfd, though it has the name of one")
        status = os.fstat(handle)
        if not descriptors.is_memfd(status) or not is_named(os.getpid(), handle, name):
            raise NotTrusted("the file is not a memfd, though it has the name of one")
        if status.st_uid not in {*users_of(pid), os.geteuid()}:
            raise NotTrusted(f"the memfd belongs to another user ({status.st_uid})")
        return _open(handle, writable=writable)
    finally:
        os.close(handle)


def _open(handle: int, *, writable: bool) -> int:
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{handle}", flags)
    except OSError as error:
        raise NotTrusted(f"the memfd cannot be opened: {error.strerror}") from None


def users_of(pid: int) -> list[int]:
    """Return the real, effective, saved and file system user of a process (proc(5))."""
    with open(f"/proc/{pid}/status", errors="replace") as file:
        return next([int(user) for user in line.split()[1:]] for line in file if line.startswith("Uid:"))


def _mount_of(fd: int) -> str:
    """Return the number of the mount of a file, without asking its file system."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return next(line for line in file if line.startswith("mnt_id:"))


@functools.cache
def _memfd_mount() -> str:
    fd = os.memfd_create("pairpool-mount", os.MFD_CLOEXEC)
    try:
        return _mount_of(fd)
    finally:
        os.close(fd)
