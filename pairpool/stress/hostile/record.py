"""The record of a round: one row per attack, one byte per process. The campaign owns the memory, so it stays."""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple, Self

from pairpool.scoreboard.snapshot import MAX_PID

__all__ = ["HOSTILE_MARK", "MASTER", "AttackRow", "Record"]

HOSTILE_MARK = "PAIRPOOL_HOSTILE"
"""Environment variable of a hostile campaign, `name:pid:fd`: the memfd of the record. It marks all its processes."""

MASTER = "PAIRPOOL_HOSTILE_MASTER"
"""Environment variable with the pid of the master."""

_ROW = struct.Struct("<16sIIII")
"""Name of the last deed, packets, boards, pid of the worker, whether the attack has returned."""


class AttackRow(NamedTuple):
    """One attack: the last thing that it did, and how much it did.

    Attributes:
        pid: the worker that ran it last. An attack that forges an empty report runs again.
        has_returned: whether the attack has returned, or raised.
    """

    deed: str
    packets: int
    boards: int
    pid: int
    has_returned: bool

    @property
    def has_begun(self) -> bool:
        """Whether a worker has begun the attack."""
        return self.deed != ""


class Record:
    """The rows of all attacks of a round.

    Args:
        fd: the memfd; closed with this object.
        first: the number of the first attack of the round.
    """

    def __init__(self, fd: int, first: int) -> None:
        self._fd = fd
        self._first = first
        self._map = mmap.mmap(fd, 0)

    @classmethod
    def create(cls, name: str, first: int, rows: int) -> Self:
        """Return a record in a new memfd."""
        fd = os.memfd_create(name)
        os.set_inheritable(fd, False)
        os.ftruncate(fd, MAX_PID + rows * _ROW.size)  # only pages that are written take memory
        return cls(fd, first)

    @classmethod
    def attach(cls, first: int) -> Self:
        """Return the record of the campaign to which this process belongs."""
        _name, process, fd = os.environ[HOSTILE_MARK].split(":")
        return cls(os.open(f"/proc/{process}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC), first)

    def fileno(self) -> int:
        return self._fd

    def _at(self, number: int) -> int:
        return MAX_PID + (number - self._first) * _ROW.size

    def note(self, number: int, deed: str, *, packets: int = 0, boards: int = 0) -> None:
        """Add to the row of an attack."""
        _deed, old_packets, old_boards, *_rest = _ROW.unpack_from(self._map, self._at(number))
        row = deed.encode()[:16], old_packets + packets, old_boards + boards, os.getpid(), 0
        _ROW.pack_into(self._map, self._at(number), *row)

    def row(self, number: int) -> AttackRow:
        """Return what an attack did."""
        deed, packets, boards, pid, has_returned = _ROW.unpack_from(self._map, self._at(number))
        return AttackRow(deed.rstrip(b"\0").decode(), packets, boards, pid, bool(has_returned))

    def end(self, number: int) -> None:
        """Note that an attack is about to return, so that this process goes on to other items."""
        _ROW.pack_into(self._map, self._at(number), *_ROW.unpack_from(self._map, self._at(number))[:4], 1)
        self._map[os.getpid()] = 1

    def has_gone_on(self, pid: int) -> bool:
        """Whether a process has gone on to other items after an attack."""
        return self._map[pid] != 0

    def close(self) -> None:
        """Unmap the memory, and close the memfd."""
        self._map.close()
        os.close(self._fd)
