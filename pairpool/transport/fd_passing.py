"""Send descriptors beside the pickles that need them: from the sender's table into the receiver's.

    object ─► pickle: "descriptor 3 of this packet"                              ─► object over the received descriptor
              OutgoingFds: a copy of it ── SCM_RIGHTS, with the packet ──► ReceivedFds (`received_fds.py`)

Facts about the kernel (unix(7), fcntl(2)), and their consequences:

- A packet takes 253 descriptors (SCM_MAX_FD): further ones travel ahead, in packets of their own.
- A descriptor in a packet stays open even if the sender closes its own. If nobody reads the packet, the kernel closes
  it with the packet.
- Descriptors that do not fit into the receiver's table are lost when the packet arrives (MSG_CTRUNC). The sender still
  has its own, so what needs them can be sent again.
- The kernel counts the descriptors that a user has sent and nobody has received. Above RLIMIT_NOFILE it takes no more
  (ETOOMANYREFS), and the sender waits until some have been read.

A copy is made when an object is pickled. From then on nobody can close it or put another file under its number.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pairpool.linux import descriptors
from pairpool.linux.descriptors import Closable
from pairpool.transport.protocol import (
    BatchPacket,
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    FunctionPacket,
    Packet,
    ResultPacket,
)
from pairpool.transport.wire import DESCRIPTORS_PER_PACKET

__all__ = [
    "BATCH_LIMIT",
    "Carrier",
    "ChildFds",
    "NoRoom",
    "OutgoingFds",
    "discard_for",
    "owner_of",
    "packets_ahead",
    "table_is_full",
]

BATCH_LIMIT = 64
"""Descriptors of a batch from which on it takes no further item: few for any table, many for one packet."""


class NoRoom(OSError):
    """This process can open no more files."""


def table_is_full(what: str) -> NoRoom:
    """Return the error that says that this process can open no more files."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NoRoom(
        errno.EMFILE,
        f"{what}: process {os.getpid()} may open no more files (RLIMIT_NOFILE is {soft}); raise it (ulimit -n), "
        "or close what is not needed any more",
    )


class _Copies:
    """The descriptors of an `OutgoingFds`, in an object of their own.

    The list of what a fork closes refers to this object, so it does not keep the `OutgoingFds` alive.
    """

    __slots__ = ("fds",)

    def __init__(self) -> None:
        self.fds: list[int] = []

    def close(self) -> None:
        """Close all of them."""
        self.cut(0)

    def cut(self, start: int) -> None:
        """Close those from this place on."""
        surplus = self.fds[start:]
        del self.fds[start:]
        for fd in surplus:
            os.close(fd)


class OutgoingFds:
    """Copies of the descriptors that some pickles name by their places. The last reference to this closes them.

    Attributes:
        fds: the copies.
        close_after_send: objects that their owner gave away, with their places: closed once a copy has arrived.
    """

    __slots__ = ("_copies", "_lenders", "close_after_send", "fds")

    def __init__(self) -> None:
        self._copies = _Copies()
        self.fds = self._copies.fds
        self.close_after_send: list[tuple[int, Closable]] = []
        self._lenders: list[tuple[OutgoingFds, int]] = []

    def __len__(self) -> int:
        return len(self.fds)

    def adopt(self, fds: Sequence[int]) -> None:
        """Own these descriptors from now on."""
        if fds and not self.fds:
            descriptors.own(self._copies)
        self.fds += fds

    def add(self, fd: int, what: object) -> int:
        """Copy the descriptor of `what`, and return the place of the copy. Raise `OSError` if it is not open."""
        try:
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as error:
            reason = _why_not_sent(error, fd, what)
        else:
            self.adopt((copy,))
            return len(self.fds) - 1
        raise reason

    def give_away(self, place: int, thing: Closable) -> None:
        """Note that the object at this place is closed here once its copy has arrived."""
        self.close_after_send.append((place, thing))

    def cut(self, start: int) -> None:
        """Drop those from this place on: what needs them is not sent, or is pickled once more."""
        if len(self.fds) > start:
            self._copies.cut(start)
            self.close_after_send = [given for given in self.close_after_send if given[0] < start]

    def add_to(self, total: OutgoingFds) -> None:
        """Move all of these behind those of `total`."""
        if not self.fds:
            return
        total.borrow(self, self.fds, self.close_after_send)
        self.fds.clear()
        descriptors.disown(self._copies)

    def borrow(self, lender: OutgoingFds, fds: list[int], close_after_send: list[tuple[int, Closable]]) -> None:
        """Own the descriptors of another object until `give_back`."""
        start = len(self.fds)
        self.adopt(fds)
        self._lenders.append((lender, len(fds)))
        self.close_later(start, close_after_send)

    def close_later(self, start: int, close_after_send: list[tuple[int, Closable]]) -> None:
        """Note objects that are closed later, with places that count from `start`."""
        self.close_after_send += [(start + place, thing) for place, thing in close_after_send]

    def give_back(self) -> None:
        """Return all of these to where they came from: they could not be sent, and are sent later."""
        fds = list(self.fds)
        self.fds.clear()
        if fds:
            descriptors.disown(self._copies)
        for lender, count in self._lenders:
            lender.adopt(fds[:count])
            del fds[:count]
        self._lenders.clear()

    def __del__(self, _disown: Callable[[Any], None] = descriptors.disown) -> None:
        copies = getattr(self, "_copies", None)  # missing if the constructor has met the recursion limit
        if copies is not None and copies.fds:
            _disown(copies)
            copies.close()


class ChildFds:
    """The objects whose descriptors a pickle names by their places. The copies are made when the pickle is sent.

    An item that waits takes no descriptors. An item that is sent again gets copies of the same descriptors.
    """

    __slots__ = ("close_after_send", "things")

    def __init__(self) -> None:
        self.things: list[Any] = []
        self.close_after_send: list[tuple[int, Closable]] = []

    def __len__(self) -> int:
        return len(self.things)

    def add(self, fd: int, what: object) -> int:
        """Note an object, and return its place. Raise `OSError` if its descriptor is not open."""
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError as error:
            raise _why_not_sent(error, fd, what) from None
        self.things.append(what)
        return len(self.things) - 1

    def give_away(self, place: int, thing: Closable) -> None:
        """Note that the object at this place is closed here once its copy has arrived."""
        self.close_after_send.append((place, thing))

    def cut(self, start: int) -> None:
        """Drop those from this place on."""
        del self.things[start:]
        self.close_after_send = [given for given in self.close_after_send if given[0] < start]

    def add_to(self, total: OutgoingFds) -> None:
        """Copy the descriptors behind those of `total`. Raise `OSError` if one is not open any more."""
        start = len(total.fds)
        for thing in self.things:
            try:
                fd = thing.fileno()
            except ValueError as error:
                raise OSError(errno.EBADF, f"{thing!r} cannot be sent: {error}") from None
            if fd < 0:
                raise OSError(errno.EBADF, f"{thing!r} cannot be sent: it is closed")
            total.add(fd, thing)
        total.close_later(start, self.close_after_send)


def _why_not_sent(error: OSError, fd: int, what: object) -> OSError:
    if error.errno == errno.EMFILE:
        return table_is_full(f"{what!r} cannot be sent")
    return OSError(error.errno, f"{what!r} cannot be sent: its descriptor {fd} is not open")


# --- packets --------------------------------------------------------------------------------------------

Carrier = BatchPacket | FunctionPacket | ResultPacket
"""A packet whose payload names descriptors."""


def owner_of(packet: Carrier) -> tuple[int, int]:
    """Return the function and the batch by which the packets ahead of `packet` name it; one of them can be 0."""
    if isinstance(packet, BatchPacket):
        return packet.function, packet.batch
    if isinstance(packet, FunctionPacket):
        return packet.function, 0
    return 0, packet.batch


def packets_ahead(packet: Carrier, fds: list[int]) -> Iterator[tuple[DescriptorsPacket, list[int]]]:
    """Yield the packets that carry descriptors ahead of `packet`; those left in `fds` travel with `packet` itself."""
    while len(fds) > DESCRIPTORS_PER_PACKET:
        part = fds[:DESCRIPTORS_PER_PACKET]
        del fds[:DESCRIPTORS_PER_PACKET]
        yield DescriptorsPacket(*owner_of(packet), len(part)), part


def discard_for(packet: Packet) -> DiscardDescriptorsPacket | None:
    """Return the packet that discards what travelled ahead of a recalled packet; None if nothing did."""
    if isinstance(packet, BatchPacket | FunctionPacket) and packet.descriptors > DESCRIPTORS_PER_PACKET:
        return DiscardDescriptorsPacket(*owner_of(packet))
    return None
