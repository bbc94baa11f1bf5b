"""The record of a round: one row per attack. Its memory belongs to the campaign, so it outlives the master."""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple, Self

__all__ = ["HOSTILE_MARK", "MASTER", "AttackRow", "Record"]

HOSTILE_MARK = "PAIRPOOL_HOSTILE"
"""Environment variable of a hostile campaign, `name:pid:fd`: the memfd of the record. It marks all its processes."""

MASTER = "PAIRPOOL_HOSTILE_MASTER"
"""Environment variable with the pid of the master."""

_ROW = struct.Struct("<16sIIII")
"""Name of the last deed, packets, boards, pid of the worker, whether the worker goes on."""


class AttackRow(NamedTuple):
    """One attack: the last thing that it did, and how much it did.

    Attributes:
        pid: the worker that ran it.
        is_over: whether the attack has returned, so that its worker goes on to other items.
    """

    deed: str
    packets: int
    boards: int
    pid: int
    is_over: bool


class Record:
    """The rows of all attacks of a round.

    Args:
        fd: the memfd; closed with this object.
        first: the number of the first attack of the round.
    """

    def __init__(self, fd: int, first: int) -> None:
        self._fd = fd
        self._first = first
        self._rows = os.fstat(fd).st_size // _ROW.size
        self._map = mmap.mmap(fd, 0)

    @classmethod
    def create(cls, name: str, first: int, rows: int) -> Self:
        """Return a record in a new memfd."""
        fd = os.memfd_create(name)
        os.set_inheritable(fd, False)
        os.posix_fallocate(fd, 0, rows * _ROW.size)
        return cls(fd, first)

    @classmethod
    def attach(cls, first: int) -> Self:
        """Return the record of the campaign to which this process belongs."""
        _name, process, fd = os.environ[HOSTILE_MARK].split(":")
        return cls(os.open(f"/proc/{process}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC), first)

    def fileno(self) -> int:
        return self._fd

    def note(self, number: int, deed: str, *, packets: int = 0, boards: int = 0) -> None:
        """Add to the row of an attack."""
        at = (number - self._first) * _ROW.size
        old = _ROW.unpack_from(self._map, at)
        _ROW.pack_into(self._map, at, deed.encode()[:16], old[1] + packets, old[2] + boards, old[3] or os.getpid(), 0)

    def end(self, number: int) -> None:
        """Note that an attack is about to return."""
        at = (number - self._first) * _ROW.size
        _ROW.pack_into(self._map, at, *_ROW.unpack_from(self._map, at)[:4], 1)

    def row(self, number: int) -> AttackRow:
        """Return what an attack did."""
        deed, packets, boards, pid, is_over = _ROW.unpack_from(self._map, (number - self._first) * _ROW.size)
        return AttackRow(deed.rstrip(b"\0").decode(), packets, boards, pid, bool(is_over))

    def outlived_attack(self, pid: int) -> bool:
        """Whether a worker has gone on to other items after an attack."""
        rows = map(self.row, range(self._first, self._first + self._rows))
        return any(row.pid == pid and row.is_over for row in rows)

    def close(self) -> None:
        """Unmap the memory, and close the memfd."""
        self._map.close()
        os.close(self._fd)
