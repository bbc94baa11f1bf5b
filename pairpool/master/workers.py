"""The crew: workers as the master sees them. What each holds, what it knows, and what waits to be sent to it.

The master holds both ends of the pair. Its own end is for sending and receiving; through the worker's end it takes back
the packets that the worker has not read (`recall`): the kernel gives each packet to exactly one reader. Because of
that second handle a dead worker shows no EOF, and sending to it does not fail: its pidfd tells.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import signal
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pairpool.linux import cgroup, descriptors, pidfds
from pairpool.master.jobs.base import Batch, Target
from pairpool.master.kill_reason import KillReason
from pairpool.master.zygotes import Zygote
from pairpool.scoreboard.board import Slot, Word
from pairpool.transport.capture import CaptureFd
from pairpool.transport.channel import Cut, Lost
from pairpool.transport.fd_passing import Carrier, OutgoingFds, discard_for, packets_ahead
from pairpool.transport.payload_shm import PayloadBuffer, PayloadBuffers, PayloadReader
from pairpool.transport.protocol import (
    REPORT_SIGNAL,
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
from pairpool.transport.wire import INLINE_LIMIT, Buffer, Recall

__all__ = ["LATELY", "WorkerSet", "WorkerHandle"]

AHEAD_AMONG = 64
"""Workers among which such batches are spread."""

LATELY = 0.010
"""Seconds for which a worker counts as one that will soon be done."""

HURRY_EVERY = 0.010
"""Seconds after which a worker that has not reported is asked again; twice as many after each time."""

LOOK_AT = 8
"""Workers with one batch that are looked at for room: one call's batches are as long on each."""


PostedPacket = BatchPacket | DiscardDescriptorsPacket | ForgetPacket | FunctionPacket | StartPacket | UnsharePacket
"""A packet for a worker, which the worker must not read before the CAPTURE packets that were sent ahead of it."""


class _Outgoing(NamedTuple):
    """A packet that waits for room in the socket."""

    packet: Packet
    pieces: list[Buffer]
    """The header, and the payload or the reference to its buffer."""
    attachment: PayloadBuffer | SegmentFd | CaptureFd | None = None
    fds: Sequence[int] = ()
    outgoing_fds: OutgoingFds | None = None
    """Keeps `fds` open."""


class WorkerHandle:
    """One worker, from its birth to the moment when its descriptors are closed.

    Args:
        spawned: what the zygote handed over; owned from here on.
        slot: its part of the status board.
        zygote: what it was forked off.
        starved: where those are noted that have something to send, but too many descriptors are under way.
    """

    def __init__(
        self, spawned: Spawned, slot: Slot, zygote: Zygote, starved: dict[WorkerHandle, None] | None = None
    ) -> None:
        self.number = spawned.slot
        self.serial = spawned.serial
        self.pid = spawned.pid
        self.channel = spawned.near
        self.far = spawned.far
        self.pidfd = spawned.pidfd
        self.slot = slot
        self.zygote = zygote
        self.held: deque[Batch] = deque()
        self.knows: set[int] = set()
        self.segments: dict[int, set[int]] = {}  # those that it knows, each with the functions that need it
        self.payload_buffers = PayloadBuffers()
        self.reader = PayloadReader()
        self.inbox = FdInbox()
        self.outlets = 0  # of its output, which no later packet may overtake
        self.given = 0  # tasks sent, as maxtasksperchild counts them
        self.started = False  # its initializer has returned, or it has none
        self.is_first = False  # it is the first worker in its place
        self.init_error: str | None = None  # the traceback of its initializer
        self.kill_reason: KillReason | None = None  # why the master ends it, if the master does
        self.inconsistent = False  # an exception interrupted the master while it handled this worker; it is killed
        self.retiring = False  # gets no more work
        self.dismissed = False  # has been told to exit
        self._outbox: deque[_Outgoing] = deque()
        self._starved: dict[WorkerHandle, None] = {} if starved is None else starved
        for thing in (self.channel, self.far, self.pidfd):
            descriptors.own(thing)

    @property
    def wants_room(self) -> bool:
        """Whether packets wait for the socket to have room."""
        return bool(self._outbox) and self not in self._starved

    # --- sending --------------------------------------------------------------------------------

    def post(
        self, packet: PostedPacket, pieces: Sequence[Buffer] = (), outgoing_fds: OutgoingFds | None = None
    ) -> None:
        """Send a packet, or keep it until there is room; never block. A large payload travels in shared memory.

        Raises `OSError` if no shared memory can be had.
        """
        attachment = None
        fds: Sequence[int] = ()
        if self.outlets:
            packet = packet._replace(captures_before=self.outlets)
        if isinstance(packet, BatchPacket | FunctionPacket):
            if packet.size > INLINE_LIMIT:
                attachment = self.payload_buffers.put(pieces, packet.size)
                packet = packet._replace(flags=packet.flags | Flag.IN_SHM)
                pieces = [attachment.reference()]
            if outgoing_fds is not None:
                fds = self._post_ahead(packet, outgoing_fds)
        if len(pieces) == 1:
            content: list[Buffer] = [encode(packet) + pieces[0]]
        else:
            content = [encode(packet), *pieces]
            if len(content) > 8:
                content = [b"".join(content)]
        self._send_or_keep(_Outgoing(packet, content, attachment, fds, outgoing_fds))

    def _post_ahead(self, packet: Carrier, outgoing_fds: OutgoingFds) -> list[int]:
        """Post the descriptors that do not fit into the packet itself; return those that travel with it."""
        left = list(outgoing_fds.fds)
        for ahead, fds in packets_ahead(packet, left):
            self._send_or_keep(_Outgoing(ahead, [encode(ahead)], None, fds, outgoing_fds))
        return left

    def capture(self, packet: CapturePacket, outlet: CaptureFd) -> None:
        """Send an outlet; what is posted from now on is not read before it, not even if it is taken back."""
        self.pass_on(packet, outlet)
        self.outlets += 1

    def pass_on(self, packet: SharePacket | CapturePacket, passage: SegmentFd | CaptureFd) -> None:
        """Send a packet with a descriptor, or keep both until there is room."""
        self._send_or_keep(_Outgoing(packet, [encode(packet)], passage))

    def _send_or_keep(self, outgoing: _Outgoing) -> None:
        if self._outbox or not self._send(outgoing):
            self._outbox.append(outgoing)

    def _send(self, outgoing: _Outgoing) -> bool:
        _packet, content, attachment, fds, _outgoing_fds = outgoing
        if attachment is not None and not attachment.known:
            fds = (*fds, attachment.fd.fileno())
        try:
            if not self.channel.send_packet(content, fds, wait=False):
                return False
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            self._starved[self] = None
            return False
        if attachment is not None:
            attachment.sent()
        return True

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        self._starved.pop(self, None)
        while self._outbox and self._send(self._outbox[0]):
            self._outbox.popleft()

    def enlist(self, *, is_first: bool, has_initializer: bool) -> None:
        """Note whether the worker is the first one in its place, and whether it must report that it is ready."""
        self.is_first, self.started = is_first, not has_initializer

    def set_kill_reason(self, reason: KillReason) -> None:
        """Note why the master ends the worker."""
        self.kill_reason = reason

    def give_no_more(self) -> None:
        """Give the worker no more batches. When it holds none, the supervisor retires it."""
        self.retiring = True

    def on_ready(self) -> None:
        """Note that the initializer has returned."""
        self.started = True

    def on_initializer_failed(self, traceback: str) -> None:
        """Note that the initializer raised. The worker exits, and the supervisor decides when its death is noticed."""
        self.init_error = traceback

    # --- receiving ------------------------------------------------------------------------------

    def receive(self) -> tuple[Packet, memoryview, list[int]] | None:
        """The next packet from the worker, or None if there is none now. Raises `Cut` if its descriptors are lost."""
        try:
            return self.channel.receive(wait=False)
        except BlockingIOError:
            return None

    def has_packet(self) -> bool:
        """Whether the worker has sent something that was not received."""
        poller = select.poll()
        poller.register(self.channel.fileno(), select.POLLIN)
        return bool(poller.poll(0))

    def content(
        self, packet: ResultPacket, payload: memoryview, fds: list[int], use: Callable[[memoryview], None]
    ) -> None:
        """Call `use` with the payload of a packet, wherever it is."""
        if packet.flags & Flag.IN_SHM:
            self.reader.read(payload, packet.size, fds, use)
        else:
            use(payload)

    def recall(self) -> list[Batch]:
        """Take back every batch that the worker has not read, in order; other unread packets go out again."""
        waiting, self._outbox = self._outbox, deque()
        self._starved.pop(self, None)
        taken_back: list[int] = []
        resend: list[_Outgoing] = []
        while True:
            try:
                packet, payload, fds = self.far.receive(wait=False)
            except Cut as cut:  # the lost descriptors are copies: those that they were made of are still here
                self._undo_sending(cut.packet, cut.payload, None, taken_back, resend)
            except (OSError, Lost):
                break  # no packet is left; or the kernel has no memory for one now, and it stays with the worker
            else:
                self._undo_sending(packet, payload, fds, taken_back, resend)
        for outgoing in waiting:
            if recall_of(outgoing.packet) is not Recall.RESEND and outgoing.attachment is not None:
                outgoing.attachment.free()
            self._undo(outgoing, taken_back, resend)
        recalled = [batch for batch in self.held if batch.number in taken_back]
        for batch in recalled:
            self.held.remove(batch)
        for outgoing in resend:
            self._send_or_keep(outgoing)
        return recalled

    def _undo_sending(
        self,
        packet: Packet,
        payload: memoryview,
        fds: list[int] | None,
        taken_back: list[int],
        resend: list[_Outgoing],
    ) -> None:
        """Undo a packet that was sent and was not read; without `fds` its descriptors were lost."""
        if recall_of(packet) is Recall.RESEND:
            kept = OutgoingFds()
            kept.adopt(fds or ())
            content: list[Buffer] = [encode(packet), bytes(payload)] if payload else [encode(packet)]
            self._undo(_Outgoing(packet, content, None, kept.fds, kept), taken_back, resend)
            return
        if isinstance(packet, BatchPacket | FunctionPacket) and packet.flags & Flag.IN_SHM:
            is_known = fds is not None and len(fds) == attached_count(packet.descriptors)
            self.payload_buffers.taken_back(bytes(payload), known=is_known)
        for fd in fds or ():
            os.close(fd)
        self._undo(_Outgoing(packet, []), taken_back, resend)

    def _undo(self, outgoing: _Outgoing, taken_back: list[int], resend: list[_Outgoing]) -> None:
        """Do what the protocol says about a packet that is recalled.

        Args:
            taken_back: gets the numbers of batches.
            resend: gets the packets that are sent again.
        """
        packet, recall = outgoing.packet, recall_of(outgoing.packet)
        if recall is Recall.RESEND:
            resend.append(outgoing)
        elif isinstance(packet, BatchPacket):
            taken_back.append(packet.batch)
        elif isinstance(packet, SharePacket):
            self.knows -= self.segments.pop(packet.segment, set())
        elif isinstance(packet, FunctionPacket) or (isinstance(packet, DescriptorsPacket) and not packet.batch):
            self.knows.discard(packet.function)
        else:
            assert recall is not Recall.NEVER, f"{packet} was recalled from a worker"
        discard = discard_for(packet)
        if discard is not None:
            resend.append(_Outgoing(discard, [encode(discard)]))

    def hurry(self, batch: Batch, now: float) -> None:
        """Have the worker report what is finished of the batch that it runs."""
        pidfds.send_signal(self.pidfd.fileno(), REPORT_SIGNAL)
        if not batch.hurried:
            batch.hurried_since = now
        batch.hurry_at = now + min(1.0, HURRY_EVERY * 2**batch.hurried)
        batch.hurried += 1

    def runs(self, target: Target) -> bool:
        """Whether the worker is at the single call with this target, as the board says."""
        number, item = self.slot.words[Word.BATCH], self.slot.words[Word.ITEM]
        for batch in self.held:
            if batch.targets is not None and batch.number == number and 0 <= item - batch.first < batch.count:
                return batch.targets[item - batch.first] is target
        return False

    # --- the end --------------------------------------------------------------------------------

    def dismiss(self) -> None:
        """Let the worker see the end of file: it has nothing left to do, and exits."""
        self.dismissed = True
        self._starved.pop(self, None)
        for end in (self.channel, self.far):
            descriptors.disown(end)
            end.close()

    def close(self) -> None:
        """Let go of everything; the worker has ended or is about to."""
        self.dismissed = True
        for thing in (self.channel, self.far, self.pidfd):
            descriptors.disown(thing)
            thing.close()
        self.payload_buffers.close()
        self.reader.close()
        self.inbox.close()
        self._outbox.clear()
        self._starved.pop(self, None)


class WorkerSet:
    """All workers of a pool, and which of them have room.

    Attributes:
        cores: how many cores this process may use.
        members: those that get work, by number.
        finished: those that get no more work and hold none, until the supervisor retires them.
        leaving: those that were told to exit and have not ended.
        touching: the one that is being dealt with; if an exception strikes then, its state is in doubt.
        watched: those that run a batch of several items, which may turn out to be long.
        starved: those to which packets with descriptors cannot be sent now, for too many are under way.
    """

    def __init__(self) -> None:
        self.members: dict[int, WorkerHandle] = {}
        self.leaving: list[WorkerHandle] = []
        self.finished: list[WorkerHandle] = []
        self.touching: WorkerHandle | None = None
        self.watched: dict[WorkerHandle, None] = {}
        self.starved: dict[WorkerHandle, None] = {}
        self.empty: OrderedDict[WorkerHandle, None] = OrderedDict()
        self._single: dict[WorkerHandle, None] = {}
        self._recent: dict[WorkerHandle, float] = {}
        self.cores = cgroup.cpu_allowance()

    def __iter__(self) -> Iterator[WorkerHandle]:
        yield from list(self.members.values())
        yield from list(self.leaving)

    def begin_handling(self, member: WorkerHandle) -> None:
        """Note that the master handles a worker from here on: an exception would leave its state in doubt."""
        self.touching = member

    def end_handling(self) -> None:
        """Note that the master has handled a worker without an exception."""
        self.touching = None

    def has_started(self) -> bool:
        """Whether the initializers of all workers on duty have returned."""
        return all(member.started for member in list(self.members.values()))

    @property
    def size(self) -> int:
        return max(1, len(self.members))

    def is_on_duty(self, member: WorkerHandle) -> bool:
        return self.members.get(member.number) is member

    def place_newborn(self, member: WorkerHandle) -> None:
        """The same for a new one: behind those that have worked, and the first born first, who is there soonest."""
        self.place(member)
        if member in self.empty:
            self.empty.move_to_end(member, last=False)

    def place(self, member: WorkerHandle) -> None:
        """Note how much room a worker has, after what it holds or may hold has changed."""
        self.empty.pop(member, None)
        self._single.pop(member, None)
        if not member.held:
            self.watched.pop(member, None)
            self._recent.pop(member, None)
        if member.retiring or not self.is_on_duty(member):
            return
        if not member.held:
            self.empty[member] = None
        elif len(member.held) == 1:
            self._single[member] = None

    def with_room(self, spread: int, now: float) -> WorkerHandle | None:
        """A worker that can take a batch: one that has none, else one whose only batch is short.

        Args:
            spread: workers that may have been given something lately before one that idles is (`Sizer.spread`).
            now: monotonic seconds.
        """
        if self.empty and self.may_wake(spread, now):
            return next(reversed(self.empty))  # the last to have worked: its caches are warm, and it may not sleep yet
        for member in itertools.islice(self._single, LOOK_AT):
            sizer = member.held[0].job.sizer
            if sizer.is_short() and not (sizer.grows and spread == 1):
                return member
        return None

    def may_wake(self, spread: int, now: float) -> bool:
        """Whether a worker that idles may be given work; those count that began what they do less than `LATELY` ago."""
        recent = self._recent
        if len(recent) < spread:
            return True
        while recent and next(iter(recent.values())) < now - LATELY:
            del recent[next(iter(recent))]
        return len(recent) < spread

    def has_a_core_free(self) -> bool:
        """Whether a core is left for the master while all workers that hold something run."""
        return len(self.members) - len(self.empty) < self.cores

    def least_loaded(self, spread: int, now: float, at_most: int) -> WorkerHandle | None:
        """The worker that holds the fewest batches, fewer than `at_most`, for work that nobody waits for yet."""
        among = self.members.values() if self.may_wake(spread, now) else self._recent
        on_duty = [member for member in itertools.islice(among, AHEAD_AMONG) if not member.retiring]
        member = min(on_duty, key=lambda one: len(one.held), default=None)
        return member if member is not None and len(member.held) < at_most else None

    def begin(self, member: WorkerHandle, batch: Batch, now: float) -> None:
        """A batch is now the one that its worker runs."""
        self._recent.pop(member, None)
        self._recent[member] = now
        if batch.count > 1 and batch.job.sizer.chunksize is None:
            batch.since = now
            self.watched[member] = None

    def dismiss(self, member: WorkerHandle) -> None:
        """Take a worker off duty and let it exit."""
        member.retiring = True
        del self.members[member.number]
        self.leaving.append(member)
        self.place(member)
        member.dismiss()

    def finish(self, member: WorkerHandle) -> None:
        """Note that a worker which gets no more work holds none. The supervisor retires it."""
        self.finished.append(member)

    def remove(self, member: WorkerHandle) -> None:
        """A worker has ended."""
        if self.is_on_duty(member):
            del self.members[member.number]
        else:
            self.leaving.remove(member)
        self.place(member)

    def mend(self) -> set[int]:
        """After an exception: kill the worker that was being dealt with; returns what the workers hold."""
        for one in list(self.members.values()):
            self.place(one)
        member = self.touching
        if member is not None and not member.dismissed:
            member.inconsistent = True
            pidfds.send_signal(member.pidfd.fileno(), signal.SIGKILL)
        self.touching = None
        return {batch.number for one in self for batch in one.held}

    def kill(self, chosen: Callable[[WorkerHandle], bool]) -> None:
        """Have those who are chosen end at once."""
        for member in self:
            if chosen(member):
                pidfds.send_signal(member.pidfd.fileno(), signal.SIGKILL)

    def end(self, grace: float | None, *, is_busy: Callable[[WorkerHandle], bool]) -> None:
        """End all workers: the busy ones are killed, the others may take `grace` seconds to exit (None: any time)."""
        crew = list(self)
        self.kill(is_busy)
        for member in crew:
            if not (is_busy(member) or member.dismissed):
                member.dismiss()
        deadline = None if grace is None else time.monotonic() + grace
        for member in crew:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not pidfds.wait_ended(member.pidfd.fileno(), left):
                pidfds.send_signal(member.pidfd.fileno(), signal.SIGKILL)
                pidfds.wait_ended(member.pidfd.fileno(), None)
            member.held.clear()
            member.close()
        self.members.clear()
        self.leaving.clear()
        for place in (self.watched, self.empty, self._single, self._recent):
            place.clear()
