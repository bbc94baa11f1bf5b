"""Rights: descriptors beside the pickles that need them, from the sender's table into the receiver's.

    object ─► pickle: "descriptor 3 of this packet"                       ─► object over a descriptor of the receiver's
              Rights: a copy of it ── SCM_RIGHTS, with the packet ──► Arrival

What the kernel does (unix(7), fcntl(2)), and what follows:

- a packet takes 253 descriptors (SCM_MAX_FD): what is more goes in packets of its own, ahead;
- a descriptor in a packet stays open, whoever closes the sender's; with the last packet that nobody reads it is closed;
- descriptors that no longer fit into the receiver's table are lost while the packet arrives (MSG_CTRUNC): the sender's
  own is still there, and what needs it can be sent once more;
- those that were sent and not received are counted for each user, and above RLIMIT_NOFILE no more are taken
  (ETOOMANYREFS): the sender waits until some have been read.

A copy is made when its object is pickled: from then on nobody can close it, or put another file under its number.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pairpool.linux import descriptors
from pairpool.transport import segments
from pairpool.transport.protocol import (
    BatchPacket,
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    FunctionPacket,
    Packet,
    ResultPacket,
    attached_count,
)
from pairpool.transport.wire import DESCRIPTORS_PER_PACKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pairpool.transport.fd import Fd

__all__ = [
    "BATCH_LIMIT",
    "ReceivedFds",
    "FdInbox",
    "NoRoom",
    "ChildFds",
    "OutgoingFds",
    "begin",
    "current",
    "packets_ahead",
    "Carrier",
    "discard_for",
    "settle",
    "table_is_full",
    "take",
    "undo",
]

T = TypeVar("T")

BATCH_LIMIT = 64
"""Descriptors from which on a batch takes no further item: few for any table, and enough to share a packet's cost."""


class NoRoom(OSError):
    """This process may open no more files."""


def table_is_full(what: str) -> NoRoom:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NoRoom(
        errno.EMFILE,
        f"{what}: process {os.getpid()} may open no more files (RLIMIT_NOFILE is {soft}); raise it (ulimit -n), "
        "or close what is not needed any more",
    )


# --- the sender's side --------------------------------------------------------------------------------


class _Copies:
    """The descriptors of an `OutgoingFds`, apart from it: the list of what a fork closes must not keep it alive."""

    __slots__ = ("fds",)

    def __init__(self) -> None:
        self.fds: list[int] = []

    def close(self) -> None:
        self.cut(0)

    def cut(self, start: int) -> None:
        """Close those from this place on."""
        surplus = self.fds[start:]
        del self.fds[start:]
        for fd in surplus:
            os.close(fd)


class OutgoingFds:
    """Copies of the descriptors that some pickles name, by their places; closed with the last reference to this.

    Attributes:
        fds: the copies.
        close_after_send: those of `Fd`s that are to be closed here once they have arrived, with their places.
    """

    __slots__ = ("_copies", "_lenders", "close_after_send", "fds")

    def __init__(self) -> None:
        self._copies = _Copies()
        self.fds = self._copies.fds
        self.close_after_send: list[tuple[int, Fd]] = []
        self._lenders: list[tuple[OutgoingFds, int]] = []

    def __len__(self) -> int:
        return len(self.fds)

    def adopt(self, fds: Sequence[int]) -> None:
        """Own descriptors that were received."""
        if fds and not self.fds:
            descriptors.own(self._copies)
        self.fds += fds

    def add(self, fd: int, what: object) -> int:
        """Copy the descriptor of `what`; returns the place of the copy. Raises `OSError` if it is not open."""
        if not self.fds:
            descriptors.own(self._copies)
        try:
            self.fds.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
            return len(self.fds) - 1
        except OSError as error:
            reason = _why_not_sent(error, fd, what)
        raise reason

    def move(self, place: int, fd: Fd) -> None:
        """The `Fd` at this place is to be closed here once its copy has arrived."""
        self.close_after_send.append((place, fd))

    def cut(self, start: int) -> None:
        """Forget those from this place on: what needed them is not sent, or is pickled once more."""
        if len(self.fds) > start:
            self._copies.cut(start)
            self.close_after_send = [mover for mover in self.close_after_send if mover[0] < start]

    def add_to(self, total: OutgoingFds) -> None:
        """Move all of these behind those of `total`."""
        if not self.fds:
            return
        if not total.fds:
            descriptors.own(total._copies)
        start = len(total.fds)
        total.fds += self.fds
        total._lenders.append((self, len(self.fds)))
        self.fds.clear()
        descriptors.disown(self._copies)
        total.close_after_send += [(start + place, fd) for place, fd in self.close_after_send]

    def give_back(self) -> None:
        """Move all of these back to where they came from: they could not be sent, and are sent later."""
        fds = list(self.fds)
        self.fds.clear()
        if fds:
            descriptors.disown(self._copies)
        for lender, count in self._lenders:
            descriptors.own(lender._copies)
            lender.fds += fds[:count]
            del fds[:count]
        self._lenders.clear()

    def __del__(self, _disown: Callable[[Any], None] = descriptors.disown) -> None:
        copies = getattr(self, "_copies", None)  # none if the recursion limit was met as this was made
        if copies is not None and copies.fds:
            _disown(copies)
            copies.close()


class ChildFds:
    """The objects whose descriptors a pickle names, by their places: copies are made when the pickle is sent.

    So an item that waits takes no descriptors, and one that is sent again gets copies of the same ones.
    """

    __slots__ = ("close_after_send", "things")

    def __init__(self) -> None:
        self.things: list[Any] = []
        self.close_after_send: list[tuple[int, Fd]] = []

    def __len__(self) -> int:
        return len(self.things)

    def add(self, fd: int, what: object) -> int:
        """Note an object; returns its place. Raises `OSError` if its descriptor is not open."""
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError as error:
            raise _why_not_sent(error, fd, what) from None
        self.things.append(what)
        return len(self.things) - 1

    def move(self, place: int, fd: Fd) -> None:
        """The `Fd` at this place is to be closed here once its copy has arrived."""
        self.close_after_send.append((place, fd))

    def cut(self, start: int) -> None:
        """Forget those from this place on."""
        del self.things[start:]
        self.close_after_send = [mover for mover in self.close_after_send if mover[0] < start]

    def add_to(self, total: OutgoingFds) -> None:
        """Copy the descriptors, behind those of `total`. Raises `OSError` if one is not open any more."""
        start = len(total.fds)
        for thing in self.things:
            try:
                fd = thing.fileno()
            except ValueError as error:  # it was closed
                raise OSError(errno.EBADF, f"{thing!r} cannot be sent: {error}") from None
            if fd < 0:
                raise OSError(errno.EBADF, f"{thing!r} cannot be sent: it is closed")
            total.add(fd, thing)
        total.close_after_send += [(start + place, fd) for place, fd in self.close_after_send]


def _why_not_sent(error: OSError, fd: int, what: object) -> OSError:
    if error.errno == errno.EMFILE:
        return table_is_full(f"{what!r} cannot be sent")
    return OSError(error.errno, f"{what!r} cannot be sent: its descriptor {fd} is not open")


Carrier = BatchPacket | FunctionPacket | ResultPacket
"""A packet whose payload names descriptors."""


def _owner_of(packet: Carrier) -> tuple[int, int]:
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
        yield DescriptorsPacket(*_owner_of(packet), len(part)), part


def discard_for(packet: Packet) -> DiscardDescriptorsPacket | None:
    """Return the packet that discards what travelled ahead of a recalled packet; None if nothing did."""
    if isinstance(packet, BatchPacket | FunctionPacket) and packet.descriptors > DESCRIPTORS_PER_PACKET:
        return DiscardDescriptorsPacket(*_owner_of(packet))
    return None


# --- the receiver's side ------------------------------------------------------------------------------


class FdInbox:
    """Descriptors that have come ahead of the packets that need them."""

    def __init__(self) -> None:
        self._early: dict[tuple[int, int], list[int] | None] = {}

    def keep(self, packet: DescriptorsPacket, fds: list[int]) -> None:
        """Store what a packet has brought, until the packet that needs it arrives."""
        early = self._early.setdefault((packet.function, packet.batch), [])
        if early is None:
            _close(fds)
        else:
            early += fds

    def discard(self, packet: DiscardDescriptorsPacket) -> None:
        """Close what came ahead of a packet that will not arrive."""
        _close(self._early.pop((packet.function, packet.batch), None) or ())

    def lose(self, packet: DescriptorsPacket) -> None:
        """Note that a packet's descriptors were lost because the table is full."""
        key = packet.function, packet.batch
        _close(self._early.get(key) or ())
        self._early[key] = None

    def gather(self, packet: Carrier, fds: list[int]) -> ReceivedFds:
        """Return all descriptors of a packet. Take its own out of `fds`, and leave the memfd of its payload there."""
        early = self._early.pop(_owner_of(packet), [])
        own = fds[: attached_count(packet.descriptors)]
        del fds[: len(own)]
        if early is None:
            _close(own)
            return ReceivedFds([], is_cut=True)
        if len(early) + len(own) < packet.descriptors:
            _close([*early, *own])
            return ReceivedFds([])
        return ReceivedFds([*early, *own])

    def close(self) -> None:
        for early in self._early.values():
            _close(early or ())
        self._early.clear()


class ReceivedFds:
    """The descriptors of one packet while it is unpickled: what nobody takes is closed at the end of the block.

    Args:
        fds: the descriptors; none if they went astray, where whatever needs one raises `segments.Lacking`.
        is_cut: whether they were lost for want of room.
    """

    def __init__(self, fds: list[int], *, is_cut: bool = False) -> None:
        self._fds = fds
        self._made: list[Any] = []
        self._base = 0
        self.is_cut = is_cut

    def begin(self, base: int) -> None:
        """What is unpickled from now on counts its descriptors from the place `base` on."""
        self._base = base

    def take(self, place: int, make: Callable[[int], T]) -> T:
        """What `make` makes of a descriptor, and owns it from then on."""
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
        """An item failed to load: close what was made for it."""
        made, self._made = self._made, []
        for thing in made:
            thing.close()

    def settle(self) -> None:
        """An item has what was made for it."""
        self._made.clear()

    def __enter__(self) -> Self:
        self._outer = current()
        _arriving.arrival = self
        return self

    def __exit__(self, *_: object) -> None:
        _arriving.arrival = self._outer
        _close([fd for fd in self._fds if fd >= 0])
        self._fds.clear()
        self.settle()


_arriving = threading.local()


def current() -> ReceivedFds | None:
    """The descriptors of what this thread unpickles."""
    return getattr(_arriving, "arrival", None)


def take(place: int, make: Callable[[int], T]) -> T:
    """What `make` makes of the descriptor at this place, for what is being unpickled."""
    arrival = current()
    if arrival is None:
        raise TypeError("this is unpickled by pairpool alone, for its descriptor comes beside the pickle")
    return arrival.take(place, make)


def begin(base: int) -> None:
    """The item that is unpickled next has its descriptors from the place `base` on."""
    arrival = current()
    if arrival is not None:
        arrival.begin(base)


def settle() -> None:
    """An item was loaded: what was made for it is the item's."""
    arrival = current()
    if arrival is not None:
        arrival.settle()


def undo() -> None:
    """What was being unpickled has failed: close what was made for it."""
    arrival = current()
    if arrival is not None:
        arrival.undo()


def _close(fds: Any) -> None:
    for fd in fds:
        os.close(fd)
