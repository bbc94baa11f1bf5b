"""Receive the descriptors that pickles need.

    DESCRIPTORS packets ─► FdInbox ─┐
    the packet itself ──────────────┴─► ReceivedFds ─► take(place, make) while an item is unpickled

Each descriptor has one owner at any time: the inbox, then the `ReceivedFds`, then the object that `make` returns. If an
item fails to load, `undo` closes the objects that were made for it.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Self, TypeVar

from pairpool.linux import descriptors
from pairpool.transport import segments
from pairpool.transport.fd_passing import Carrier, owner_of
from pairpool.transport.protocol import DescriptorsPacket, DiscardDescriptorsPacket, attached_count

__all__ = ["FdInbox", "ReceivedFds", "begin", "current", "settle", "take", "undo"]

T = TypeVar("T")


class FdInbox:
    """Descriptors that came ahead of the packets that need them.

    Args:
        is_bounded: whether the descriptors for one packet may take at most half of the table of this process. If more
            come, all of them are closed, as if they were lost.

    Attributes:
        early: the descriptors, by the function and the batch of the packet; None if some of them were lost.
    """

    def __init__(self, *, is_bounded: bool = False) -> None:
        self._is_bounded = is_bounded
        self.early: dict[tuple[int, int], list[int] | None] = {}

    def keep(self, packet: DescriptorsPacket, fds: list[int]) -> None:
        """Store what a packet has brought, until the packet that needs it arrives."""
        early = self.early.setdefault((packet.function, packet.batch), [])
        if early is None or (self._is_bounded and len(early) + len(fds) > _table_size() // 2):
            _close(fds)
            self.lose(packet)
        else:
            early += fds

    def discard(self, packet: DiscardDescriptorsPacket) -> None:
        """Close what came ahead of a packet that will not arrive."""
        _close(self.early.pop((packet.function, packet.batch), None) or ())

    def lose(self, packet: DescriptorsPacket) -> None:
        """Note that the descriptors of a packet were lost because the table is full."""
        key = packet.function, packet.batch
        _close(self.early.get(key) or ())
        self.early[key] = None

    def gather(self, packet: Carrier, fds: list[int]) -> ReceivedFds:
        """Return all descriptors of a packet. Take its own out of `fds`, and leave the memfd of its payload there."""
        early = self.early.pop(owner_of(packet), [])
        own = fds[: attached_count(packet.descriptors)]
        del fds[: len(own)]
        if early is None:
            _close(own)
            return ReceivedFds([], is_cut=True)
        if len(early) + len(own) < packet.descriptors:  # a DESCRIPTORS packet was recalled
            _close([*early, *own])
            return ReceivedFds([])
        return ReceivedFds([*early, *own])

    def close(self) -> None:
        """Close everything."""
        for early in self.early.values():
            _close(early or ())
        self.early.clear()


class ReceivedFds:
    """The descriptors of one packet while it is unpickled. The end of the block closes those that no object took.

    Args:
        fds: the descriptors. If it is empty although the packet names some, `take` raises `segments.missing_error`.
        is_cut: whether they were lost because the table is full.
    """

    def __init__(self, fds: list[int], *, is_cut: bool = False) -> None:
        self._fds = fds
        self._made: list[Any] = []
        self._base = 0
        self.is_cut = is_cut

    def begin(self, base: int) -> None:
        """Count the places of the next item from `base` on."""
        self._base = base

    def take(self, place: int, make: Callable[[int], T]) -> T:
        """Return what `make` makes of the descriptor at a place, and then owns."""
        place += self._base
        if place >= len(self._fds):
            raise segments.missing_error()
        fd, self._fds[place] = self._fds[place], -1
        if fd < 0:
            raise ValueError("a descriptor was unpickled twice")
        fd = descriptors.above_standard(fd)
        try:
            made = make(fd)
        except BaseException:
            os.close(fd)
            raise
        self._made.append(made)
        return made

    def undo(self) -> None:
        """Close what was made for an item that failed to load."""
        made, self._made = self._made, []
        for thing in made:
            thing.close()

    def settle(self) -> None:
        """Let an item that was loaded keep what was made for it."""
        self._made.clear()

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
        _close([fd for fd in self._fds if fd >= 0])
        self._fds.clear()
        self.settle()


_current: ContextVar[ReceivedFds | None] = ContextVar("received_fds", default=None)


def current() -> ReceivedFds | None:
    """Return the descriptors of what this thread unpickles."""
    return _current.get()


def take(place: int, make: Callable[[int], T]) -> T:
    """Return what `make` makes of the descriptor at a place of what is being unpickled."""
    received = _current.get()
    if received is None:
        raise TypeError("only pairpool can unpickle this, because its descriptor travels beside the pickle")
    return received.take(place, make)


def begin(base: int) -> None:
    """Count the places of the item that is unpickled next from `base` on."""
    received = _current.get()
    if received is not None:
        received.begin(base)


def settle() -> None:
    """Let an item that was loaded keep what was made for it."""
    received = _current.get()
    if received is not None:
        received.settle()


def undo() -> None:
    """Close what was made for an item that failed to load."""
    received = _current.get()
    if received is not None:
        received.undo()


def _table_size() -> int:
    """Return how many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
