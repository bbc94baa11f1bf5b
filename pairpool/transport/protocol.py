"""The protocol: the kinds of packets, their fields, and what happens to a packet that is recalled.

    caller's process ── SPAWN, REAPED, SPARE_REQUEST ─────────────────────────► zygote
                     ◄── HELLO, SPAWNED, SPAWN_FAILED, SPARE ──────────────────
    caller's process ── START, FUNCTION, BATCH, SHARE, CAPTURE, ... ──────────► worker
                     ◄── READY, INIT_FAILED, RECEIVED, DESCRIPTORS, RESULT ────

Each kind of packet is one class. The decorator `packet` states its number, the columns of the header that hold its
fields, and what happens if a packet of this kind is recalled. The method `is_valid` checks the fields of a packet that
arrives, against the bytes of its payload and the number of its descriptors. That number is -1 if the kernel dropped
descriptors because the table of this process is full. A class without `is_valid` has no payload and no descriptors.

To add a kind, write its class and add it to `Packet`. If the master sends it to workers, add it to `PostedPacket` in
`master/worker_channel.py`, with the field `captures_before`; the worker handles it in `worker/worker.py`. If a worker
sends it, `master/reports.py` handles it. All sides refuse a kind that they do not handle.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NamedTuple

from pairpool.transport import wire
from pairpool.transport.stamps import Stamps
from pairpool.transport.wire import DESCRIPTORS_PER_PACKET, FORMATS, INLINE_LIMIT, REFERENCE_SIZE, Recall, packet

REPORT_SIGNAL = signal.SIGURG
"""Asks a worker for a report of the items that it has finished. A program that a task starts ignores it by default."""


class Flag:
    """Bits of the field `flags`, which is one byte. Different kinds of packets may use a bit in different ways.

    Each packet class says which of them it can have.
    """

    IN_SHM = 1  # the payload is in shared memory, and the packet carries a reference to it
    BY_VALUE = 2  # of a batch: an object in it travels by value, so objects in the results can do so, too
    HAS_STATE = 2  # of a function: it contains objects that a task can change
    FAILURES = 4  # of a result: the payload contains a list of failures
    TIMED = 8  # of a batch: its items have a time limit, so the start of each is stored on the scoreboard
    PARTIAL = 16  # of a result: it reports finished items while a later item of the batch runs
    SPIN = 32  # of a batch: a core is free, so the worker looks for the next packet before it sleeps
    STAMPED = 64  # of a batch: send the start of each item back; of a result: the payload begins with `Stamps`
    CONFIRM = 128  # of a batch: send RECEIVED before its item runs, because the sender then closes its descriptors


class Mode:
    """How a worker applies the function to an item."""

    MAP = 0  # function(item)
    STAR = 1  # function(*item)
    CALL = 2  # the item is (number of the function, args, kwds), or (number, (args, kwds))


# --- work -----------------------------------------------------------------------------------------------


def _has_payload(flags: int, size: int, payload: int) -> bool:
    """Whether a packet has the payload that its header announces."""
    return payload == (REFERENCE_SIZE if flags & Flag.IN_SHM else size)


def attached_count(descriptors: int) -> int:
    """Return how many of a batch's, function's or result's descriptors travel in its own packet."""
    return (descriptors - 1) % DESCRIPTORS_PER_PACKET + 1 if descriptors else 0


def _has_descriptors(flags: int, announced: int, found: int) -> bool:
    """Whether a packet has the descriptors that its header announces.

    The memfd of a buffer in shared memory travels only once, so one more descriptor is possible with `Flag.IN_SHM`.
    """
    if found < 0:
        return True  # the kernel has dropped some of them
    expected = attached_count(announced) if announced else 0
    return found == expected or (found == expected + 1 and flags & Flag.IN_SHM != 0)


_BATCH_FLAGS = Flag.IN_SHM | Flag.BY_VALUE | Flag.TIMED | Flag.SPIN | Flag.STAMPED | Flag.CONFIRM
_RESULT_FLAGS = Flag.IN_SHM | Flag.FAILURES | Flag.PARTIAL | Flag.STAMPED


@packet(12, "flags mode format function number first count descriptors captures size", recall=Recall.TAKE_BACK)
class BatchPacket(NamedTuple):
    """Items for a worker to run."""

    flags: int
    mode: int
    format: int
    function: int  # its number; with `Mode.CALL` that of the first call
    batch: int
    first: int  # index of the first item within its call
    item_count: int  # items
    descriptors: int = 0  # that its pickles name, in this packet and in DESCRIPTORS packets before it
    captures_before: int = 0  # CAPTURE packets that must be served before this packet
    size: int = 0  # bytes of the payload

    def is_valid(self, payload: int, descriptors: int) -> bool:
        flags, mode, format, function, batch, _first, count, announced, _captures, size = self
        return (
            not flags & ~_BATCH_FLAGS
            and mode <= Mode.CALL
            and format < FORMATS
            and function > 0
            and batch > 0
            and count > 0
            and (payload == size if not flags & Flag.IN_SHM else payload == REFERENCE_SIZE)
            and (announced == descriptors == 0 or _has_descriptors(flags, announced, descriptors))
        )


@packet(13, "flags format number first count split descriptors nanoseconds microseconds size", recall=Recall.NEVER)
class ResultPacket(NamedTuple):
    """A report about items of a batch. Its payload is times, failures and values, in this order."""

    flags: int
    format: int
    batch: int
    first: int  # index of the first item that it reports
    item_count: int  # items that it reports
    failures_size: int = 0  # bytes of the pickled failures
    descriptors: int = 0
    took_ns: int = 0  # from the arrival of the batch to the end of its last item; 0 in a partial report
    sharing_took_us: int = 0  # the part of it that loaded what several items have in common
    size: int = 0

    def is_valid(self, payload: int, descriptors: int) -> bool:
        flags, format, batch, _first, count, failures_size, announced, _took, _sharing_took, size = self
        return (
            not flags & ~_RESULT_FLAGS
            and format < FORMATS
            and batch > 0
            and (failures_size > 0) == (flags & Flag.FAILURES != 0)
            and failures_size + (Stamps.size(count) if flags & Flag.STAMPED else 0) <= size
            and (payload == size if not flags & Flag.IN_SHM else payload == REFERENCE_SIZE)
            and (announced == descriptors == 0 or _has_descriptors(flags, announced, descriptors))
        )


@packet(10, "flags function descriptors captures size", recall=Recall.FORGET)
class FunctionPacket(NamedTuple):
    """A pickled function. Batches name it by its number."""

    flags: int
    function: int
    descriptors: int = 0
    captures_before: int = 0
    size: int = 0

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return (
            not self.flags & ~(Flag.IN_SHM | Flag.HAS_STATE)
            and self.function > 0
            and _has_payload(self.flags, self.size, payload)
            and _has_descriptors(self.flags, self.descriptors, descriptors)
        )


@packet(11, "function captures", recall=Recall.RESEND)
class ForgetPacket(NamedTuple):
    """The worker drops a function."""

    function: int
    captures_before: int = 0

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.function > 0 and payload == descriptors == 0


@packet(15, "number first captures", recall=Recall.FORGET)
class SharePacket(NamedTuple):
    """A segment of `Pool.share`; its memfd travels with the packet."""

    segment: int
    table_at: int  # where the table of its buffers begins
    captures_before: int = 0

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.segment > 0 and payload == 0 and descriptors in (1, -1)


@packet(16, "number captures", recall=Recall.RESEND)
class UnsharePacket(NamedTuple):
    """The worker drops a segment."""

    segment: int
    captures_before: int = 0

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.segment > 0 and payload == descriptors == 0


@packet(18, "function number count captures", recall=Recall.FORGET)
class DescriptorsPacket(NamedTuple):
    """Descriptors of a packet that follows, because one packet cannot carry all of them."""

    function: int  # of the packet that follows
    batch: int  # of the packet that follows; 0 if that is a FUNCTION packet
    fd_count: int
    captures_before: int = 0

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.fd_count == DESCRIPTORS_PER_PACKET and payload == 0 and descriptors in (self.fd_count, -1)


@packet(22, "function number captures", recall=Recall.RESEND)
class DiscardDescriptorsPacket(NamedTuple):
    """The worker closes the descriptors that came ahead of a packet, because that packet was recalled."""

    function: int
    batch: int
    captures_before: int = 0


@packet(19, "number", recall=Recall.NEVER)
class ReceivedPacket(NamedTuple):
    """A worker is about to run a batch with `Flag.CONFIRM`, so its sender closes the descriptors of the batch."""

    batch: int

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.batch > 0 and payload == descriptors == 0


# --- the life of a worker -------------------------------------------------------------------------------


@packet(7, "captures", recall=Recall.RESEND)
class StartPacket(NamedTuple):
    """The worker may run its initializer. The first packet of any other kind allows that, too."""

    captures_before: int = 0


@packet(8, "", recall=Recall.NEVER)
class ReadyPacket(NamedTuple):
    """The initializer of a worker has returned."""


@packet(9, "", recall=Recall.NEVER)
class InitFailedPacket(NamedTuple):
    """The initializer of a worker has raised. The payload is the traceback as text."""

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return payload <= INLINE_LIMIT and descriptors == 0


@packet(17, "first count", recall=Recall.RESEND)
class CapturePacket(NamedTuple):
    """The worker writes a stream to the attached descriptor. Without one, the stream stays as it is."""

    stream: int  # STDOUT, STDERR or LOG of `capture.py`
    level: int = 0  # the lowest level of log records to send

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return 1 <= self.stream <= 3 and payload == 0 and descriptors <= 1


# --- the zygote -----------------------------------------------------------------------------------------


@packet(6, "", recall=Recall.NEVER)
class HelloPacket(NamedTuple):
    """The zygote is ready. The payload lists the names of callables in its `__main__`, separated by spaces."""

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return descriptors == 0


@packet(2, "number first", recall=Recall.NEVER)
class SpawnPacket(NamedTuple):
    """The zygote forks a worker."""

    serial: int
    slot: int

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.serial > 0 and payload == descriptors == 0


@packet(3, "number first count", recall=Recall.NEVER)
class SpawnedPacket(NamedTuple):
    """A worker was forked. Both ends of its pair and a pidfd are attached."""

    serial: int
    slot: int
    pid: int

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.serial > 0 and self.pid > 0 and payload == 0 and descriptors in (3, -1)


@packet(4, "first count", recall=Recall.NEVER)
class SpawnFailedPacket(NamedTuple):
    """The kernel refused a fork. The payload is the text of the error."""

    slot: int
    errno: int

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.errno > 0 and descriptors == 0


@packet(5, "number", recall=Recall.NEVER)
class ReapedPacket(NamedTuple):
    """A worker has ended, so the zygote ends the processes that it left."""

    serial: int

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return self.serial > 0 and payload == descriptors == 0


@packet(20, "", recall=Recall.NEVER)
class SpareRequestPacket(NamedTuple):
    """The zygote forks a spare of itself."""


@packet(14, "count", recall=Recall.NEVER)
class SparePacket(NamedTuple):
    """A spare zygote. The end of its control pair and a pidfd are attached; nothing is if it could not be made."""

    pid: int = 0

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return payload == 0 and descriptors in ((2, -1) if self.pid else (0,))


@packet(21, "count", recall=Recall.NEVER)
class PreparationPacket(NamedTuple):
    """A fresh zygote reads its setup from the TEXT packets that follow."""

    parts: int


@packet(1, "number", recall=Recall.NEVER)
class TextPacket(NamedTuple):
    """A payload without a meaning of its own, for programs that use a `Channel` directly."""

    number: int = 0

    def is_valid(self, payload: int, descriptors: int) -> bool:
        return True


Packet = (
    BatchPacket
    | CapturePacket
    | DescriptorsPacket
    | DiscardDescriptorsPacket
    | ForgetPacket
    | FunctionPacket
    | HelloPacket
    | InitFailedPacket
    | PreparationPacket
    | ReadyPacket
    | ReapedPacket
    | ReceivedPacket
    | ResultPacket
    | SharePacket
    | SparePacket
    | SpareRequestPacket
    | SpawnFailedPacket
    | SpawnPacket
    | SpawnedPacket
    | StartPacket
    | TextPacket
    | UnsharePacket
)


# --- packets to bytes and back --------------------------------------------------------------------------


encode: Callable[[Packet], bytes] = wire.encode
"""Returns the header of a packet."""


def recall_of(one: Packet) -> Recall:
    """Return what happens to a packet that is taken back from a worker."""
    return wire.type_of(one).recall
