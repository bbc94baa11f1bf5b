"""The packets between the master and one worker: sent, kept until there is room, received, and taken back unread.

The master holds both ends of the pair. It sends and receives through its own end. Through the worker's end it takes
back the packets that the worker has not read (*recall*).

1. The kernel gives each packet to exactly one reader, the worker or the master.
2. The master's copy of the worker's end keeps the pair open. Therefore a dead worker shows no end of file, and a send
   to a dead worker does not fail. Its pidfd tells of the death.
3. The kernel limits the descriptors that are in flight, and raises no event when some are read. A worker whose packet
   was refused because of that limit is *fd-blocked*: the dispatcher tries again after a short time.
"""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pairpool.linux import descriptors
from pairpool.transport.capture import CaptureFd
from pairpool.transport.channel import Cut, Lost
from pairpool.transport.fd_passing import Carrier, OutgoingFds, discard_for, packets_ahead
from pairpool.transport.payload import Encoded
from pairpool.transport.payload_shm import PayloadBuffer, PayloadBuffers, PayloadReader
from pairpool.transport.protocol import (
    BatchPacket,
    CapturePacket,
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    Flag,
    ForgetPacket,
    FunctionPacket,
    Packet,
    ResultPacket,
    SharePacket,
    StartPacket,
    UnsharePacket,
    attached_count,
    encode,
    recall_of,
)
from pairpool.transport.received_fds import FdInbox
from pairpool.transport.segments import SegmentFd
from pairpool.transport.spawning import Spawned
from pairpool.transport.wire import INLINE_LIMIT, Buffer, ProtocolError, Recall

__all__ = ["ChannelTroubles", "RecalledPackets", "WorkerChannel"]

MAX_PIECES = 8
"""Pieces of a packet that the kernel gathers; more of them are joined first."""

PostedPacket = BatchPacket | DiscardDescriptorsPacket | ForgetPacket | FunctionPacket | StartPacket | UnsharePacket
"""A packet for a worker, which the worker must not read before the CAPTURE packets that were sent ahead of it."""


class _Outgoing(NamedTuple):
    """A packet that waits for room in the socket.

    Args:
        pieces: the header, and the payload or the reference to it.
        source: the buffer, segment or capture file whose descriptor goes with the packet.
        fds: other descriptors that go with the packet.
        owner: keeps `fds` open.
    """

    packet: Packet
    pieces: list[Buffer]
    source: PayloadBuffer | SegmentFd | CaptureFd | None = None
    fds: Sequence[int] = ()
    owner: OutgoingFds | None = None


class RecalledPackets(NamedTuple):
    """The packets that a recall took back.

    Args:
        batches: the numbers of the batches.
        resend: packets that must reach the worker all the same.
    """

    batches: list[int]
    resend: list[_Outgoing]


class ChannelTroubles:
    """The channels of a pool that need attention. Dictionaries without values, because they keep the order.

    Attributes:
        fd_blocked: channels on which descriptors cannot be sent now, because too many are in flight.
        shut_down: channels that a task has shut down.
    """

    def __init__(self) -> None:
        self.fd_blocked: dict[WorkerChannel, None] = {}
        self.shut_down: dict[WorkerChannel, None] = {}


class WorkerChannel:
    """Both ends of a worker's pair, the packets that wait, and what the worker has been sent.

    Args:
        spawned: what the zygote handed over. The channel owns its descriptors from here on.
        troubles: where the channel is noted if it needs attention, shared by all workers of a pool.

    Attributes:
        channel: the master's end of the pair.
        worker_end: the master's copy of the worker's end.
        known_functions: the numbers of the functions that the worker has.
        known_segments: the shared segments that the worker has, each with the numbers of the functions that need it.
        captures_sent: capture files sent to the worker. No later packet may overtake them, not even after a recall.
        is_shut_down: whether a task has shut the worker's end down, so that nothing can be sent.
        eof_sent: whether the ends are closed, so that the worker exits.
    """

    def __init__(self, spawned: Spawned, troubles: ChannelTroubles) -> None:
        self.channel = spawned.near
        self.worker_end = spawned.far
        self.known_functions: set[int] = set()
        self.known_segments: dict[int, set[int]] = {}
        self._payload_buffers = PayloadBuffers()
        self._payload_reader = PayloadReader()
        self._batch_buffers: dict[int, tuple[PayloadBuffer, int]] = {}
        self.fd_inbox = FdInbox(is_bounded=True)
        self.captures_sent = 0
        self.eof_sent = False
        self.is_shut_down = False
        self._outbox: deque[_Outgoing] = deque()
        self._fd_blocked = troubles.fd_blocked
        self._shut_down = troubles.shut_down
        for end in (self.channel, self.worker_end):
            descriptors.own(end)

    @property
    def wants_room(self) -> bool:
        """Whether packets wait for the socket to have room."""
        return bool(self._outbox) and self not in self._fd_blocked and not self.is_shut_down

    # --- sending --------------------------------------------------------------------------------

    def post(self, packet: PostedPacket, pieces: Sequence[Buffer] = (), fds: OutgoingFds | None = None) -> None:
        """Send a packet, or keep it until there is room. Never blocks. Large payloads go through shared memory.

        Args:
            fds: the descriptors that the payload needs.

        Raises:
            OSError: the shared memory cannot be made.
        """
        buffer = None
        attached: Sequence[int] = ()
        if self.captures_sent:
            packet = packet._replace(captures_before=self.captures_sent)
        if isinstance(packet, BatchPacket | FunctionPacket):
            if packet.size > INLINE_LIMIT:
                buffer = self._payload_buffers.put(pieces, packet.size)
                if isinstance(packet, BatchPacket):
                    self._batch_buffers[packet.batch] = buffer, buffer.payloads
                packet = packet._replace(flags=packet.flags | Flag.IN_SHM)
                pieces = [buffer.reference()]
            if fds is not None:
                attached = self._post_ahead(packet, fds)
        if len(pieces) == 1:
            content: list[Buffer] = [encode(packet) + pieces[0]]
        else:
            content = [encode(packet), *pieces]
            if len(content) > MAX_PIECES:
                content = [b"".join(content)]
        self._send_or_keep(_Outgoing(packet, content, buffer, attached, fds))

    def _post_ahead(self, packet: Carrier, fds: OutgoingFds) -> list[int]:
        """Post the descriptors that do not fit into the packet. Return those that go with the packet itself."""
        left = list(fds.fds)
        for ahead, attached in packets_ahead(packet, left):
            self._send_or_keep(_Outgoing(ahead, [encode(ahead)], None, attached, fds))
        return left

    def post_function(self, packet: FunctionPacket, encoded: Encoded) -> None:
        """Send a function."""
        self.post(packet, encoded.pieces, encoded.fds)
        self.known_functions.add(packet.function)

    def post_forget(self, function: int) -> None:
        """Let the worker drop a function."""
        self.known_functions.discard(function)
        self.post(ForgetPacket(function))

    def post_capture(self, packet: CapturePacket, file: CaptureFd) -> None:
        """Send a capture file. The worker reads it before every later packet, even if the file is recalled."""
        self._send_or_keep(_Outgoing(packet, [encode(packet)], file))
        self.captures_sent += 1

    def post_segment(self, packet: SharePacket, segment: SegmentFd) -> None:
        """Send a shared segment."""
        self._send_or_keep(_Outgoing(packet, [encode(packet)], segment))
        self.known_segments[packet.segment] = set()

    def _send_or_keep(self, outgoing: _Outgoing) -> None:
        if self._outbox or not self._send(outgoing):
            self._outbox.append(outgoing)

    def _send(self, outgoing: _Outgoing) -> bool:
        if self.is_shut_down:
            return False
        _packet, pieces, source, fds, _owner = outgoing
        if source is not None and not source.known:
            fds = (*fds, source.fd.fileno())
        try:
            if not self.channel.send_packet(pieces, fds, wait=False):
                return False
        except Lost:  # a task has shut the worker's end down: a closed end could not be the reason, see 2. above
            self.is_shut_down = True
            self._shut_down[self] = None
            return False
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            self._fd_blocked[self] = None
            return False
        if source is not None:
            source.sent()
        return True

    def flush(self) -> None:
        """Send the packets that wait, as far as there is room."""
        self._fd_blocked.pop(self, None)
        while self._outbox and self._send(self._outbox[0]):
            self._outbox.popleft()

    # --- receiving ------------------------------------------------------------------------------

    def receive(self) -> tuple[Packet, memoryview, list[int]] | None:
        """Return the next packet from the worker, or None if there is none now.

        Raises:
            Cut: the descriptors of the packet are lost.
            Lost: a task has shut the channel down.
            ProtocolError: it is no packet.
        """
        try:
            return self.channel.receive(wait=False)
        except BlockingIOError:
            return None

    def has_packet(self) -> bool:
        """Return whether the worker has sent a packet that was not received."""
        return _is_readable(self.channel.fileno())

    def has_unread(self) -> bool:
        """Return whether a packet waits for the worker in its socket."""
        return _is_readable(self.worker_end.fileno())

    def content(
        self, packet: ResultPacket, payload: memoryview, fds: list[int], use: Callable[[memoryview], None]
    ) -> None:
        """Call `use` with the payload of a packet, wherever the payload is."""
        if packet.flags & Flag.IN_SHM:
            self._payload_reader.read(payload, packet.size, fds, use)
        else:
            use(payload)

    def frees_payload_of(self, batch: int) -> bool:
        """Return whether the worker has freed the shared memory of a batch that it has finished.

        A worker that has not done so must get no more batches: each large one would take new memory.
        """
        found = self._batch_buffers.pop(batch, None)
        return found is None or not found[0].holds(found[1])

    # --- recall ---------------------------------------------------------------------------------

    def recall_packets(self) -> RecalledPackets:
        """Take back the packets that the worker has not read. `send_again` must follow.

        1. Packets in the socket are received through the worker's end. Each has one reader: the worker or this method.
        2. Packets that wait for room follow.
        3. The protocol says for each kind of packet whether it is sent again, taken back or forgotten. Functions and
           segments are forgotten: they are sent again when a batch needs them.
        """
        waiting, self._outbox = self._outbox, deque()
        self._fd_blocked.pop(self, None)
        recalled = RecalledPackets([], [])
        while True:
            try:
                packet, payload, fds = self.worker_end.receive(wait=False)
            except Cut as cut:  # the lost descriptors are copies: those that they were made of are still here
                self._undo_sending(cut.packet, cut.payload, None, recalled)
            except ProtocolError:
                continue  # a task has found the master's end, and has sent something to its own worker
            except (OSError, Lost):
                break  # no packet is left; or the kernel has no memory for one now, and it stays with the worker
            else:
                self._undo_sending(packet, payload, fds, recalled)
        for outgoing in waiting:
            if recall_of(outgoing.packet) is not Recall.RESEND and outgoing.source is not None:
                outgoing.source.free()
            self._undo(outgoing, recalled)
        return recalled

    def send_again(self, recalled: RecalledPackets) -> None:
        """Send the packets that were recalled and must reach the worker all the same, in order."""
        for outgoing in recalled.resend:
            self._send_or_keep(outgoing)

    def _undo_sending(
        self, packet: Packet, payload: memoryview, fds: list[int] | None, recalled: RecalledPackets
    ) -> None:
        """Undo a packet that was sent and was not read. `fds` is None if its descriptors were lost."""
        if recall_of(packet) is Recall.RESEND:
            kept = OutgoingFds()
            kept.adopt(fds or ())
            pieces: list[Buffer] = [encode(packet), bytes(payload)] if payload else [encode(packet)]
            self._undo(_Outgoing(packet, pieces, None, kept.fds, kept), recalled)
            return
        if isinstance(packet, BatchPacket | FunctionPacket) and packet.flags & Flag.IN_SHM:
            is_known = fds is not None and len(fds) == attached_count(packet.descriptors)
            self._payload_buffers.taken_back(bytes(payload), known=is_known)
        for fd in fds or ():
            os.close(fd)
        self._undo(_Outgoing(packet, []), recalled)

    def _undo(self, outgoing: _Outgoing, recalled: RecalledPackets) -> None:
        """Do what the protocol says about a packet that is recalled."""
        packet, recall = outgoing.packet, recall_of(outgoing.packet)
        if recall is Recall.RESEND:
            recalled.resend.append(outgoing)
        elif isinstance(packet, BatchPacket):
            recalled.batches.append(packet.batch)
            self._batch_buffers.pop(packet.batch, None)
        elif isinstance(packet, SharePacket):
            self.known_functions -= self.known_segments.pop(packet.segment, set())
        elif isinstance(packet, FunctionPacket):
            self.known_functions.discard(packet.function)
        elif isinstance(packet, DescriptorsPacket):
            if not packet.batch:  # they belong to a function
                self.known_functions.discard(packet.function)
        else:
            raise ProtocolError(f"{packet} was recalled, and nothing here says how to undo it")
        discard = discard_for(packet)
        if discard is not None:
            recalled.resend.append(_Outgoing(discard, [encode(discard)]))

    # --- the end --------------------------------------------------------------------------------

    def send_eof(self) -> None:
        """Let the worker see the end of file, so that it exits."""
        self.eof_sent = True
        self._fd_blocked.pop(self, None)
        self._shut_down.pop(self, None)
        for end in (self.channel, self.worker_end):
            descriptors.disown(end)
            end.close()

    def close(self) -> None:
        """Release all descriptors: the worker has ended or is about to end."""
        self.send_eof()
        self._payload_buffers.close()
        self._payload_reader.close()
        self.fd_inbox.close()
        self._outbox.clear()


def _is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
