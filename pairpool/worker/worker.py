"""The worker: one thread, one loop. Receive a batch, run its items, send what became of them.

    packet ─► load items ─► for each: store its index on the board, call, keep the value ─► save values ─► packet

Whatever happens to an item happens to it alone: an exception becomes its outcome; a crash is blamed on the index
that the board shows, with the state that says in which of these steps it was.
"""

from __future__ import annotations

import pickle
import select
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any, NamedTuple

from pairpool.linux.spin import SPIN_NS, Spinning
from pairpool.scoreboard.board import NOTHING, Slot, State, Word
from pairpool.scoreboard.stacks import show_threads
from pairpool.transport import capture, fd_passing, segments
from pairpool.transport.channel import Channel, Cut, Lost
from pairpool.transport.failures import Failure, Fault, describe_failure, missing_module, safe
from pairpool.transport.items import PICKLED_NONE, Part
from pairpool.transport.keeper import Keeper
from pairpool.transport.payload import BULK, EACH, SHARING, Encoded, each_item, load_all, load_item, load_shared
from pairpool.transport.payload_shm import PayloadBuffers, PayloadReader
from pairpool.transport.protocol import (
    BatchPacket,
    CapturePacket,
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    Flag,
    ForgetPacket,
    FunctionPacket,
    InitFailedPacket,
    Mode,
    Packet,
    ReadyPacket,
    ReceivedPacket,
    ResultPacket,
    SharePacket,
    StartPacket,
    UnsharePacket,
)
from pairpool.transport.repeats import LARGE_OBJECT_BYTES
from pairpool.transport.serializer import Serializer
from pairpool.transport.stamps import Stamps
from pairpool.transport.warm_memory import WARM_BYTES_KEPT, process_memory
from pairpool.transport.wire import INLINE_LIMIT, Buffer, ProtocolError

__all__ = ["Worker"]

IDLE_AFTER = 1.0
"""Seconds without work after which a worker gives back what it keeps warm."""

SHORT_FROM = 256
"""Items in a batch from which on each is so short that a look at the limit would cost as much as the item."""

TIMED_UP_TO = 16
"""Items in a batch up to which each item's start is on the board; in larger batches they are too short for a clock."""


STAMPED_FROM_NS = 200_000
"""How long a batch has to take for the starts of its items to be worth sending."""


class _Broken(NamedTuple):
    """A function that could not be unpickled, kept in its place with the reason."""

    error: Failure


class _Stateful:
    """A callable that contains objects which a task may change: each item gets a copy, or each batch if it is large.

    Args:
        first: the copy that was loaded when the callable came.
    """

    def __init__(self, pickled: memoryview, buffers: list[memoryview], first: Any) -> None:
        self._pickled = bytes(pickled)
        self._buffers = [memoryview(bytes(buffer)) for buffer in buffers]
        self._first = [first]
        self._current: Any = None
        self.is_large = len(self._pickled) + sum(map(len, self._buffers)) >= LARGE_OBJECT_BYTES

    def load(self) -> Any:
        """A copy that nobody has had."""
        return self._first.pop() if self._first else load_item(memoryview(self._pickled), self._buffers)

    def __call__(self, *args: Any, **kwds: Any) -> Any:
        self._current = self.load()  # it is kept until the result is pickled, which may contain a part of it
        return self._current(*args, **kwds)


class _Report(NamedTuple):
    """What a report is about; the fields of its packet that do not depend on its payload."""

    batch: int
    first: int
    item_count: int
    took_ns: int = 0
    sharing_took_us: int = 0
    is_partial: bool = False


_Carrier = BatchPacket | FunctionPacket
_OtherFromMaster = (
    DescriptorsPacket
    | DiscardDescriptorsPacket
    | ForgetPacket
    | FunctionPacket
    | SharePacket
    | StartPacket
    | UnsharePacket
)
_FromMaster = BatchPacket | CapturePacket | _OtherFromMaster


class _Missing:
    """Stands in a batch for an item that is not to be run."""


class Worker:
    """A worker's state between packets.

    Args:
        channel: its end of the pair.
        slot: its part of the board.
        initializer: called once, before the first batch.
    """

    def __init__(
        self, channel: Channel, slot: Slot, initializer: Callable[..., object] | None, initargs: Sequence[Any]
    ) -> None:
        self.channel = channel
        self.words = slot.words
        self.initializer = initializer
        self.initargs = initargs
        self.codec = Serializer()
        self.functions: dict[int, Any] = {}
        self._carrying: set[int] = set()  # functions that have descriptors
        self.reader = PayloadReader()
        self.lanes = PayloadBuffers()
        self.inbox = fd_passing.FdInbox()
        process_memory.restart(WARM_BYTES_KEPT)
        self.failures: list[Failure] = []
        self._keeper = _ValueKeeper(self)
        self._sharing_took = 0  # ns that it took to load what several items of this batch have in common
        self._stamps: list[int] = []  # starts of the items of this batch that were not reported
        self._running: tuple[BatchPacket, list[Any]] | None = None
        self._reported = 0
        self._remaining: Any = None  # the items of a batch of short ones that were not begun
        self._may_spin = 0
        self._spinning = Spinning()
        self._inherited = sys.stdout, sys.stderr
        self._outlets = 0  # CAPTURE packets that were served
        self._early: deque[tuple[BatchPacket | _OtherFromMaster, memoryview, list[int]]] = deque()  # wait for those

    def run(self) -> int:
        """Serve until the master closes its end; returns the exit status."""
        receive = self._next_packet
        self.words[Word.STATE] = State.IDLE
        try:
            received = receive()
            while isinstance(received[0], CapturePacket):
                self._serve_other(*received)
                received = receive()
            if not self._initialize():
                return 1
            self.words[Word.READY] = time.monotonic_ns()
            while True:
                packet, payload, fds = received
                if type(packet) is BatchPacket:
                    self._may_spin = packet.flags & Flag.SPIN
                    self._serve_batch(packet, payload, fds)
                else:
                    self._serve_other(packet, payload, fds)
                received = receive()
        except Lost:
            return 0

    def _next_packet(self) -> tuple[_FromMaster, memoryview, list[int]]:
        """The next packet of those that have come with all that belongs to them.

        The master may take back the packet with an outlet just before this worker reads the batch behind it. What the
        batch writes belongs there: it waits until that packet has come again.
        """
        early = self._early
        while True:
            if early and early[0][0].captures_before <= self._outlets:
                return early.popleft()
            try:
                packet, payload, fds = self._await_packet()
            except Cut as cut:
                self._serve_cut(cut.packet)
                continue
            if isinstance(packet, CapturePacket):
                return packet, payload, fds
            if type(packet) is not BatchPacket and not isinstance(packet, _OtherFromMaster):
                raise ProtocolError(f"the master has sent {packet} to a worker")
            if not early and packet.captures_before <= self._outlets:
                return packet, payload, fds
            early.append((packet, memoryview(bytes(payload)), fds))

    def _await_packet(self) -> tuple[Packet, memoryview, list[int]]:
        """The next packet; looks without sleeping where a core is free and that pays."""
        began, spinning = time.monotonic_ns(), self._spinning
        if self._may_spin and spinning.pays():
            while time.monotonic_ns() - began < SPIN_NS:
                try:
                    packet = self.channel.receive(wait=False)
                except BlockingIOError:
                    continue  # not there yet
                spinning.found()
                return packet
            spinning.missed()
        if process_memory.is_warm or self.reader.is_warm or self.lanes.warm_bytes:
            self._cool_down()
        packet = self.channel.receive()
        spinning.slept(time.monotonic_ns() - began)
        return packet

    def _cool_down(self) -> None:
        """Wait for a packet, and give back what is kept warm for large arrays if none comes for a while."""
        poller = select.poll()
        poller.register(self.channel.fileno(), select.POLLIN)
        if not poller.poll(IDLE_AFTER * 1000):
            process_memory.give_back()
            self.lanes.give_back()
            self.reader.give_back()

    def _serve_other(self, packet: _FromMaster, payload: memoryview, fds: list[int]) -> None:
        if isinstance(packet, FunctionPacket):
            self._learn(packet, payload, fds)
        elif isinstance(packet, ForgetPacket):
            self._forget(packet.function)
        elif isinstance(packet, SharePacket):
            segments.arrive(packet, fds)
        elif isinstance(packet, UnsharePacket):
            segments.forget(packet.segment)
        elif isinstance(packet, CapturePacket):
            self._outlets += 1
            capture.arrive(packet, fds, self._inherited)
        elif isinstance(packet, DescriptorsPacket):
            self.inbox.keep(packet, fds)
        elif isinstance(packet, DiscardDescriptorsPacket):
            self.inbox.discard(packet)
        else:
            assert isinstance(packet, StartPacket)

    def _forget(self, number: int) -> None:
        function = [self.functions.pop(number, None)]
        if number in self._carrying:
            self._carrying.discard(number)
            _let_go(function)

    def _serve_cut(self, packet: Packet) -> None:
        """A packet has come whose descriptors are lost, for this process may open no more files."""
        error = fd_passing.table_is_full("the descriptors of the task could not be received")
        if isinstance(packet, BatchPacket):
            self._refuse(packet, error)
        elif isinstance(packet, DescriptorsPacket):
            self.inbox.lose(packet)
        elif isinstance(packet, FunctionPacket):
            self.functions[packet.function] = _Broken(describe_failure(self.codec, 0, Fault.ROOM, error))
        elif isinstance(packet, SharePacket):
            segments.fail_to_arrive(packet, error)
        elif isinstance(packet, CapturePacket):
            self._outlets += 1  # and the output goes where it went before

    def _refuse(self, packet: BatchPacket, error: OSError) -> None:
        """Report all items of a batch as failed for want of room."""
        failure = describe_failure(self.codec, 0, Fault.ROOM, error)
        failures = [failure._replace(offset=offset) for offset in range(packet.item_count)]
        self._send(_Report(packet.batch, packet.first, packet.item_count), None, failures)

    def _initialize(self) -> bool:
        """Run the initializer; the first packet of any kind says that the master knows this worker."""
        if self.initializer is None:
            return True
        self.words[Word.STATE] = State.STARTING
        try:
            self.initializer(*self.initargs)
        except BaseException:
            text = safe(traceback.format_exc)
            self.channel.send(InitFailedPacket(), text.encode("utf-8", "replace")[-INLINE_LIMIT:])
            return False
        self.words[Word.STATE] = State.IDLE
        self.channel.send(ReadyPacket())
        return True

    def _content(
        self,
        packet: BatchPacket | FunctionPacket,
        payload: memoryview,
        fds: list[int],
        use: Callable[[memoryview], None],
    ) -> bool:
        """Call `use` with the payload of a packet, wherever it is; False if its descriptors were lost before it."""
        if packet.descriptors:
            with self.inbox.gather(packet, fds) as arrival:
                self._read(packet, payload, fds, use)
            return not arrival.is_cut
        self._read(packet, payload, fds, use)
        return True

    def _read(
        self,
        packet: BatchPacket | FunctionPacket,
        payload: memoryview,
        fds: list[int],
        use: Callable[[memoryview], None],
    ) -> None:
        if packet.flags & Flag.IN_SHM:
            self.reader.read(payload, packet.size, fds, use)
        else:
            use(payload)

    def _learn(self, header: FunctionPacket, payload: memoryview, fds: list[int]) -> None:
        self.words[Word.FUNCTION] = header.function
        self.words[Word.STARTED] = time.monotonic_ns()
        self.words[Word.STATE] = State.FUNCTION

        def load(content: memoryview) -> None:
            pickled, buffers, _place = next(each_item(content))
            try:
                function = load_item(pickled, buffers)
                if header.flags & Flag.HAS_STATE:
                    function = _Stateful(pickled, buffers, function)
                self.functions[header.function] = function
            except BaseException as error:
                fd_passing.undo()
                missing = missing_module(pickled, error)
                self.functions[header.function] = _Broken(
                    describe_failure(self.codec, 0, Fault.FUNCTION, error, missing)
                )
            if header.descriptors:
                self._carrying.add(header.function)
            if segments.take_missing():
                self.functions.pop(header.function, None)

        if not self._content(header, payload, fds, load):
            segments.take_missing()
            self._serve_cut(header)
        self.words[Word.STATE] = State.IDLE

    # --- a batch --------------------------------------------------------------------------------

    def _serve_batch(self, header: BatchPacket, payload: memoryview, fds: list[int]) -> None:
        words = self.words
        words[Word.STARTED] = began = time.monotonic_ns()  # before the state: whoever looks takes the two together
        words[Word.STATE] = State.LOADING
        words[Word.ITEM] = NOTHING
        words[Word.FUNCTION] = header.function
        words[Word.FIRST] = header.first
        words[Word.COUNT] = header.item_count
        words[Word.BOUND] = 0
        words[Word.BATCH] = header.batch
        items = self._load(header, payload, fds)
        if items is None:
            segments.take_missing()
            self.failures.clear()
            self._refuse(header, fd_passing.table_is_full("the descriptors of the task could not be received"))
            words[Word.STATE] = State.IDLE
            return
        is_ready = self._knows_functions(header, items)
        if header.flags & Flag.CONFIRM and is_ready and not self._needs_another_try(header, items):
            self.channel.send(ReceivedPacket(header.batch))
        values: list[Any] = []
        timed = header.flags & Flag.TIMED
        words[Word.ITEM] = NOTHING  # now, so that nobody takes what was unpickled last for what runs
        if timed:
            words[Word.STARTED] = time.monotonic_ns()
        words[Word.STATE] = State.RUNNING
        self._reported = 0
        self._stamps.clear()
        self._keeper.begin(values, header.item_count)
        self._keeper.flags = header.flags
        if is_ready:
            self._running = header, values
            if isinstance(items, _Loaded):
                self._run(self._careful(header), items.items, header, values)
            else:
                self._run(self._plain(header), items, header, values)
        self._running = None
        ended = time.monotonic_ns()
        if timed:
            words[Word.STARTED] = ended
        words[Word.STATE] = State.SAVING
        words[Word.ITEM] = NOTHING
        self._report(header, values, began, ended)
        del items  # not before the results are pickled: a finalizer may change what they contain
        words[Word.STATE] = State.IDLE

    def _load(self, header: BatchPacket, payload: memoryview, fds: list[int]) -> Any:
        """The items of a batch: a sequence, or `_Loaded` where some of them may have failed to load."""
        loaded: Any = None

        def load(content: memoryview) -> None:
            nonlocal loaded
            if header.format not in (EACH, SHARING):
                loaded = self._load_bulk(header, content)
                return
            loaded = _Loaded([])
            words = self.words
            shared, entries = None, each_item(content)
            lacking: dict[int, str | None] = {}  # modules in which something was missing, by the error's identity
            if header.format == SHARING:
                began = time.monotonic_ns()
                shared, entries = load_shared(
                    content, lambda pickled, error: lacking.update({id(error): missing_module(pickled, error)})
                )
                self._sharing_took += time.monotonic_ns() - began
            for offset, (pickled, buffers, place) in enumerate(entries):
                words[Word.ITEM] = header.first + offset
                item: Any = _Missing
                if pickled:
                    try:
                        if header.descriptors:
                            fd_passing.begin(place)
                        item = load_item(pickled, buffers, shared)
                        if header.descriptors:
                            fd_passing.settle()
                    except BaseException as error:
                        fd_passing.undo()
                        missing = lacking[id(error)] if id(error) in lacking else missing_module(pickled, error)
                        self.failures.append(describe_failure(self.codec, offset, Fault.ARGUMENT, error, missing))
                loaded.items.append(item)

        if not self._content(header, payload, fds, load):
            return None
        return loaded

    def _load_bulk(self, header: BatchPacket, content: memoryview) -> Any:
        """Plain data, which fails to load only for want of memory or of numpy: then that is what each item gets."""
        try:
            return load_all(header.format, content)
        except BaseException as error:
            failure = describe_failure(self.codec, 0, Fault.ARGUMENT, error)
            self.failures += [failure._replace(offset=offset) for offset in range(header.item_count)]
            return _Loaded([_Missing] * header.item_count)

    def _knows_functions(self, header: BatchPacket, items: Any) -> bool:
        """Whether the batch can be run; if not, it goes back with nothing done.

        The master may take back the packet with a function, or with a segment, just before this worker reads the batch
        that needs it.
        """
        if segments.take_missing():
            return False
        if header.mode != Mode.CALL:
            return header.function in self.functions
        calls = items.items if isinstance(items, _Loaded) else items
        return all(call is _Missing or call[0] in self.functions for call in calls)

    def _needs_another_try(self, header: BatchPacket, items: Any) -> bool:
        """Whether the only item of a batch, or its function, was not unpickled: it may yet go by value."""
        if self.failures:
            return True
        number = items.items[0][0] if header.mode == Mode.CALL else header.function
        return isinstance(self.functions[number], _Broken)

    def _plain(self, header: BatchPacket) -> Callable[[Any], Any]:
        """The function as one of one argument."""
        if header.mode == Mode.CALL:
            return self._call
        function = self.functions[header.function]
        if isinstance(function, _Broken):
            return lambda _item: _raise_broken(function)
        if type(function) is _Stateful and function.is_large:
            began = time.monotonic_ns()
            try:
                function = function.load()
            except BaseException as error:
                failure = describe_failure(self.codec, 0, Fault.FUNCTION, error)
                return lambda _item: _raise_broken(_Broken(failure))
            self._sharing_took += time.monotonic_ns() - began
        if header.mode == Mode.STAR:
            return lambda item: function(*tuple(item))
        return function  # type: ignore[no-any-return]

    def _careful(self, header: BatchPacket) -> Callable[[Any], Any]:
        plain = self._plain(header)
        return lambda item: None if item is _Missing else plain(item)

    def _call(self, item: tuple[Any, ...]) -> Any:
        if len(item) == 3:
            number, args, kwds = item
        else:
            number, (args, kwds) = item
        self.words[Word.FUNCTION] = number
        function = self.functions[number]
        if isinstance(function, _Broken):
            _raise_broken(function)
        return function(*args, **kwds)

    def _run(self, function: Any, items: Sequence[Any], header: BatchPacket, values: list[Any]) -> None:
        """Run the items in order; one value each is appended, None for a failure."""
        timed = bool(header.flags & (Flag.TIMED | Flag.STAMPED))
        remaining = iter(items)
        loop = _run_timed if timed or header.item_count <= TIMED_UP_TO else _run_limited
        if header.item_count >= SHORT_FROM and not timed:
            self._remaining = remaining
            self.words[Word.BOUND] = header.first + header.item_count
            loop = _run_short
        while True:
            try:
                index = header.first + len(values)
                loop(function, remaining, self.words, index, values, self._stamps, self._keeper.keep)
                break
            except BaseException as error:
                taken = len(items) - length_hint(remaining)
                if len(values) == taken:  # between two items: the last one's, as far as anybody's
                    values.pop()
                if isinstance(error, _FunctionBroken):
                    failure = error.failure._replace(offset=len(values))
                else:
                    failure = describe_failure(self.codec, len(values), Fault.RAISED, error)
                self.failures.append(failure)
            values.append(self._keeper.nothing)
        self._remaining = None

    # --- the report -----------------------------------------------------------------------------

    def hurry(self, _number: int, frame: Any) -> None:
        """On the master's signal, while an item runs: report those before it, which somebody may be waiting for.

        A handler runs between two steps of the main thread. It does nothing unless these are steps of the item's own
        code: then nobody is at work on the values, and the master asks again. That may be while this is at work on
        them itself, so there is no batch for a second one until the first is done.
        """
        running, self._running = self._running, None
        if running is None:
            return
        try:
            if self._remaining is not None and self.words[Word.LIMIT] != NOTHING:
                self._stop_short(running[0])
            if _is_of_a_task(frame):
                self._report_finished(*running)
        finally:
            self._running = running

    def _report_finished(self, header: BatchPacket, values: list[Any]) -> None:
        """Report the items of a batch that have ended since the last report, while a later one runs."""
        done, finished = self._reported, values[self._reported :]
        if not finished:
            return
        finished = self._keeper.take(finished)
        item = self.words[Word.ITEM]
        failures = [one._replace(offset=one.offset - done) for one in self.failures if one.offset < len(values)]
        header = header._replace(first=header.first + done)
        encoded = self._save(header, finished, failures)
        self.words[Word.ITEM] = item
        reply = _Report(header.batch, header.first, len(finished), is_partial=True)
        try:
            self._send(reply, encoded, failures, self._take_stamps(header, len(finished), 0, 0))
        except (OSError, MemoryError):
            if encoded is not None and encoded.fds is not None:
                encoded.fds.give_back()
            return  # the report at the end of the batch says so
        self._reported = len(values)
        self.failures = [one for one in self.failures if one.offset >= len(values)]
        self.words[Word.DONE] += len(finished)
        self.words[Word.FAILED] += len(failures)
        values[done:] = [None] * len(finished)
        _drop(finished, encoded)

    def _stop_short(self, header: BatchPacket) -> None:
        """Begin no item any more that was not taken yet, and say which is the first of those."""
        remaining, self._remaining = self._remaining, None
        left = length_hint(remaining)
        remaining.__setstate__(sys.maxsize)
        self.words[Word.BOUND] = header.first + header.item_count - left

    def _take_stamps(self, header: BatchPacket, count: int, began: int, ended: int) -> Stamps | None:
        """The starts of the first `count` items that were not reported, if they are worth sending.

        A batch of many short items has none; of a single one, or of few short ones, the time of the batch says as much.
        """
        if not header.flags & Flag.STAMPED and began and (count < 2 or ended - began < STAMPED_FROM_NS):
            return None
        starts, self._stamps = self._stamps[:count], self._stamps[count:]
        if not count or len(starts) < count:
            return None
        return Stamps(began or starts[0], starts, self._stamps[0] if self._stamps else ended or time.monotonic_ns())

    def _report(self, header: BatchPacket, values: list[Any], began: int, ended: int) -> None:
        failures, self.failures = self.failures, []
        kept, values = values, self._keeper.take(values)
        self._keeper.begin([])
        if values is not kept:
            kept.clear()  # the only references are in `values`, from which `_drop` takes them
        if self._reported:
            del values[: self._reported]
            failures = [one._replace(offset=one.offset - self._reported) for one in failures]
            header = header._replace(first=header.first + self._reported)
        count = len(values)
        failures = [failure for failure in failures if failure.offset < count]  # those behind it go back undone
        took = time.monotonic_ns() - began
        encoded = self._save(header, values, failures)
        _drop(values, encoded)
        self.words[Word.DONE] += count
        self.words[Word.FAILED] += len(failures)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                _flush(stream)
        sharing_took, self._sharing_took = self._sharing_took // 1000, 0
        reply = _Report(header.batch, header.first, count, took, sharing_took)
        stamps = self._take_stamps(header, count, began, ended)
        try:
            self._send(reply, encoded, failures, stamps)
        except (OSError, MemoryError) as error:
            self._send(reply, None, [self._lost_result(offset, error) for offset in range(count)])

    def _lost_result(self, offset: int, error: BaseException) -> Failure:
        return describe_failure(self.codec, offset, Fault.RAISED, error)

    def _save(self, header: BatchPacket, values: list[Any], failures: list[Failure]) -> Encoded | None:
        if not values:
            return None

        def fail(offset: int, error: BaseException) -> None:
            failures.append(self._describe_result(offset, error, values[offset]))

        def mark(offset: int) -> None:
            self.words[Word.ITEM] = header.first + offset

        return self.codec.encode(
            values, fail, mark=mark, may_go_by_value=bool(header.flags & Flag.BY_VALUE), are_settled=True
        )

    def fail_result(self, offset: int, error: BaseException, value: Any) -> None:
        """A value could not be pickled directly after its item had run."""
        self.failures.append(self._describe_result(offset, error, value))

    def _describe_result(self, offset: int, error: BaseException, value: Any) -> Failure:
        described = describe_failure(self.codec, offset, Fault.RESULT, error)
        remote = safe(lambda: "".join(traceback.format_exception(error)))
        return described._replace(kind=safe(lambda: repr(error)), text=safe(lambda: repr(value)), remote=remote)

    def _send(
        self, reply: _Report, encoded: Encoded | None, failures: list[Failure], stamps: Stamps | None = None
    ) -> None:
        """Send a report; stamps and failures come first, so that values can be read in place."""
        flags = Flag.PARTIAL if reply.is_partial else 0
        pieces: list[Buffer] = []
        size = failures_size = 0
        if stamps is not None:
            pieces.append(stamps.pack())
            size = len(pieces[0])
            flags |= Flag.STAMPED
        if failures:
            pieces.append(pickle.dumps([tuple(failure) for failure in failures], 5))
            failures_size = len(pieces[-1])
            size += failures_size
            flags |= Flag.FAILURES
        format = BULK
        fds: list[int] = []
        if encoded is not None:
            pieces += encoded.pieces
            size += encoded.size
            format = encoded.format
            if encoded.fds is not None:
                fds = list(encoded.fds.fds)
        is_large = size > INLINE_LIMIT
        packet = ResultPacket(
            flags | Flag.IN_SHM if is_large else flags,
            format,
            reply.batch,
            reply.first,
            reply.item_count,
            failures_size,
            len(fds),
            reply.took_ns,
            reply.sharing_took_us,
            size,
        )
        lane = self.lanes.put(pieces, size) if is_large else None
        if not reply.is_partial:
            self.words[Word.STATE] = State.SENDING
        for ahead, part in fd_passing.packets_ahead(packet, fds):
            self.channel.send(ahead, fds=part)
        if lane is None:
            self.channel.send(packet, b"".join(pieces) if len(pieces) > 1 else (pieces or [b""])[0], fds)
            return
        if not lane.known:
            fds.append(lane.fd.fileno())
        self.channel.send(packet, lane.reference(), fds)
        lane.sent()


class _ValueKeeper(Keeper):
    """Keeps the values of a batch. One that cannot be pickled is a failure of its item."""

    flags = 0
    """Of the batch."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.codec)
        self._worker = worker

    def _pickle(self, thing: Any) -> Part:
        words = self._worker.words
        if self.flags & Flag.TIMED:
            words[Word.STARTED] = time.monotonic_ns()
        words[Word.STATE] = State.KEEPING
        try:
            return self.serializer.dump_other(
                thing, copy_buffers=True, may_go_by_value=bool(self.flags & Flag.BY_VALUE)
            )
        except BaseException as error:
            self._worker.fail_result(len(self.kept), error, thing)
            return PICKLED_NONE
        finally:
            words[Word.STATE] = State.RUNNING


# Loops over the items of a batch. The index of each is stored before it is run, and its value appended after. Most
# tasks return values of one type: where that is a type of atoms, nothing but the comparison is spent on each.

Keep = Callable[[Any], tuple[type | None, Any]]
"""Returns what is kept of a value, and before it the type of values that need not be kept this way (`Keeper.keep`)."""


def _run_timed(
    function: Any,
    remaining: Iterator[Any],
    words: memoryview,
    index: int,
    values: list[Any],
    stamps: list[int],
    keep: Keep,
) -> None:
    """Items so long that each one's start is on the board, too."""
    item_word, limit, started, clock = Word.ITEM, Word.LIMIT, Word.STARTED, time.monotonic_ns
    kind = None
    for item in remaining:
        words[started] = start = clock()  # before the index: no item must be seen with the start of the one before it
        stamps.append(start)
        words[item_word] = index
        if index >= words[limit]:
            return
        value = function(item)
        if type(value) is not kind:
            kind, value = keep(value)
        values.append(value)
        index += 1


def _run_limited(
    function: Any,
    remaining: Iterator[Any],
    words: memoryview,
    index: int,
    values: list[Any],
    _stamps: list[int],
    keep: Keep,
) -> None:
    """Items of which the master may take back those behind the one that runs, at any time."""
    item_word, limit = Word.ITEM, Word.LIMIT
    kind = None
    for item in remaining:
        words[item_word] = index
        if index >= words[limit]:
            return
        value = function(item)
        if type(value) is not kind:
            kind, value = keep(value)
        values.append(value)
        index += 1


def _run_short(
    function: Any,
    remaining: Iterator[Any],
    words: memoryview,
    index: int,
    values: list[Any],
    _stamps: list[int],
    keep: Keep,
) -> None:
    """Items so short that looking at the limit would cost as much: if one is long after all, a signal ends the loop.

    The handler moves the iterator to its end.
    """
    item_word = Word.ITEM
    kind = None
    for item in remaining:
        words[item_word] = index
        value = function(item)
        if type(value) is not kind:
            kind, value = keep(value)
        values.append(value)
        index += 1


_LOOPS = frozenset(loop.__code__ for loop in (_run_timed, _run_limited, _run_short))
_NOT_TASKS = (describe_failure.__code__, show_threads.__code__, Keeper.keep.__code__)


def _is_of_a_task(frame: Any) -> bool:
    """Whether a frame is an item's own code, or below it."""
    inner = None
    while frame is not None and frame.f_code not in _LOOPS:
        inner, frame = frame, frame.f_back
    return frame is not None and inner is not None and inner.f_code not in _NOT_TASKS


class _Loaded(NamedTuple):
    """Items that were loaded one by one."""

    items: list[Any]


class _FunctionBroken(BaseException):
    """Carries the failure of a function that could not be unpickled to the item that needed it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


def _raise_broken(function: _Broken) -> None:
    raise _FunctionBroken(function.error)


def _let_go(things: list[Any]) -> None:
    """Drop what may have sockets and files: that is how they are let go of, and no sign of a task that forgot to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        things.clear()


def _drop(values: list[Any], encoded: Encoded | None) -> None:
    """Let go of values that were pickled: sockets and files among them are closed with their last references."""
    if encoded is None or encoded.fds is None:
        values.clear()
        return
    _let_go(values)
    for _place, mover in encoded.fds.movers:
        mover.close()


def _flush(stream: Any) -> None:
    try:
        stream.flush()
    except (OSError, ValueError):
        pass  # the task's own output is closed or full: nobody to tell, and its result still counts
