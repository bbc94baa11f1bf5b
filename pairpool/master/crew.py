"""The crew: one worker as the master sees it. What it holds, what it knows, and what waits to be sent to it.

The master holds both ends of the pair. Its own end is for sending and receiving; through the worker's end it takes back
the packets that the worker has not read (`recall`): the kernel gives each packet to exactly one reader. Because of that second
handle a dead worker shows no EOF, and sending to it does not fail: its pidfd tells.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pairpool import kernel
from pairpool.master.jobs import Batch
from pairpool.wire.board import Slot
from pairpool.wire.channel import HEADER, INLINE_LIMIT, Buffer, Channel, Header, Kind, Lost
from pairpool.wire.lanes import Lane, LaneReader, Lanes
from pairpool.worker import Flag
from pairpool.zygote import Spawned

__all__ = ["Member"]


class _Outgoing(NamedTuple):
    """A packet that waits for room in the socket."""

    pieces: list[Buffer]
    lane: Lane | None


class Member:
    """One worker, from its birth to the moment when its descriptors are closed.

    Args:
        spawned: what the zygote handed over; owned from here on.
        slot: its part of the status board.
    """

    def __init__(self, spawned: Spawned, slot: Slot) -> None:
        self.number = spawned.slot
        self.pid = spawned.pid
        self.channel = spawned.near
        self.far = spawned.far
        self.pidfd = spawned.pidfd
        self.slot = slot
        self.held: deque[Batch] = deque()
        self.knows: set[int] = set()
        self.lanes = Lanes()
        self.reader = LaneReader()
        self.given = 0  # tasks sent, as maxtasksperchild counts them
        self.started = False  # has reported that its initializer returned, or has none
        self.retiring = False  # gets no more work
        self.dismissed = False  # has been told to exit
        self._outbox: deque[_Outgoing] = deque()
        for thing in (self.channel, self.far, self.pidfd):
            kernel.own(thing)

    @property
    def wants_room(self) -> bool:
        """Whether packets wait for the socket to take them."""
        return bool(self._outbox)

    # --- sending --------------------------------------------------------------------------------

    def post(self, header: Header, pieces: Sequence[Buffer] = (), size: int = 0) -> None:
        """Send a packet, or keep it until there is room; never blocks. Large payloads go through a lane.

        Raises `OSError` if a lane cannot be made.
        """
        lane = None
        if size > INLINE_LIMIT:
            lane = self.lanes.put(pieces, size)
            header = header._replace(flags=header.flags | Flag.LANE, size=size)
            packet: list[Buffer] = [HEADER.pack(*header), lane.reference()]
        elif len(pieces) == 1:
            packet = [HEADER.pack(*header[:-1], size) + pieces[0]]
        else:
            packet = [HEADER.pack(*header[:-1], size), *pieces]
            if len(packet) > 8:
                packet = [b"".join(packet)]
        if self._outbox or not self._send(packet, lane):
            self._outbox.append(_Outgoing(packet, lane))

    def _send(self, packet: list[Buffer], lane: Lane | None) -> bool:
        fds = () if lane is None or lane.known else (lane.fd.fileno(),)
        if not self.channel.send_packet(packet, fds, wait=False):
            return False
        if lane is not None:
            lane.known = True
        return True

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._outbox and self._send(*self._outbox[0]):
            self._outbox.popleft()

    # --- receiving ------------------------------------------------------------------------------

    def receive(self) -> tuple[Header, memoryview, list[int]] | None:
        """The next packet from the worker, or None if there is none now."""
        try:
            return self.channel.receive(wait=False)
        except BlockingIOError:
            return None

    def content(
        self, header: Header, payload: memoryview, fds: list[int], use: Callable[[memoryview], None]
    ) -> None:
        """Call `use` with the payload of a packet, wherever it is."""
        if header.flags & Flag.LANE:
            self.reader.read(payload, header.size, fds, use)
        else:
            use(payload)

    def recall(self) -> list[Batch]:
        """Take back every batch that the worker has not read, in order; other unread packets go out again."""
        waiting, self._outbox = self._outbox, deque()
        numbers: list[int] = []
        resend: list[Header] = []
        while True:
            try:
                header, payload, fds = self.far.receive(wait=False)
            except (BlockingIOError, Lost):
                break
            self._unsend(header, payload, fds, numbers, resend)
        for pieces, lane in waiting:
            head = bytes(pieces[0])
            header = Header._make(HEADER.unpack_from(head))
            if lane is not None:
                lane.free()
            self._note_unsent(header, numbers, resend)
        recalled = [batch for batch in self.held if batch.number in numbers]
        for batch in recalled:
            self.held.remove(batch)
        for header in resend:
            self.post(header)
        return recalled

    def _unsend(
        self, header: Header, payload: memoryview, fds: list[int], numbers: list[int], resend: list[Header]
    ) -> None:
        if header.flags & Flag.LANE:
            self.lanes.unsent(bytes(payload), known=not fds)
        for fd in fds:
            os.close(fd)
        self._note_unsent(header, numbers, resend)

    def _note_unsent(self, header: Header, numbers: list[int], resend: list[Header]) -> None:
        if header.kind == Kind.BATCH:
            numbers.append(header.batch)
        elif header.kind == Kind.FUNCTION:
            self.knows.discard(header.function)
        else:
            resend.append(header)

    # --- the end --------------------------------------------------------------------------------

    def dismiss(self) -> None:
        """Let the worker see the end of file: it has nothing left to do, and exits."""
        self.dismissed = True
        for end in (self.channel, self.far):
            kernel.disown(end)
            end.close()

    def close(self) -> None:
        """Let go of everything; the worker has ended or is about to."""
        self.dismissed = True
        for thing in (self.channel, self.far, self.pidfd):
            kernel.disown(thing)
            thing.close()
        self.lanes.close()
        self.reader.close()
        self._outbox.clear()
