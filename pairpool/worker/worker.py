"""The worker: one thread, one loop. Receive a packet and serve it, until the master closes its end.

PacketSource ─► BATCH ──────► load_items ─► BatchRunner ─► ReportSender ─► master
             ─► FUNCTION ───► FunctionTable
             ─► SHARE, CAPTURE, DESCRIPTORS, ... ─► the module that knows what they bring
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from pairpool.scoreboard.board import NOTHING, Slot, State, Word
from pairpool.transport import capture, fd_passing, segments
from pairpool.transport.channel import Channel, Cut, Lost
from pairpool.transport.failures import safe
from pairpool.transport.protocol import (
    BatchPacket,
    CapturePacket,
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    Flag,
    ForgetPacket,
    FunctionPacket,
    InitFailedPacket,
    Packet,
    ReadyPacket,
    SharePacket,
    StartPacket,
    UnsharePacket,
)
from pairpool.transport.serializer import Serializer
from pairpool.transport.wire import INLINE_LIMIT
from pairpool.worker.batch_runner import BatchRunner
from pairpool.worker.functions import FunctionTable
from pairpool.worker.loading import load_items
from pairpool.worker.own_process import OwnProcess
from pairpool.worker.packet_source import PacketForWorker, PacketSource
from pairpool.worker.payloads import Payloads
from pairpool.worker.reports import ReportSender

__all__ = ["Worker"]


class Worker:
    """The parts of a worker, and the loop that serves packets.

    Args:
        channel: the worker's end of the pair.
        slot: its slot of the scoreboard.
        initializer: called once, before the first batch.

    Attributes:
        runner: whose method `on_report_signal` handles the master's signal.
    """

    def __init__(
        self, channel: Channel, slot: Slot, initializer: Callable[..., object] | None, initargs: Sequence[Any]
    ) -> None:
        self._channel = channel
        self._words = slot.words
        self._initializer = initializer
        self._initargs = initargs
        self._serializer = Serializer()
        self._payloads = Payloads()
        self._source = PacketSource(channel, self._payloads)
        self._functions = FunctionTable(self._words, self._serializer, self._payloads)
        self._own = OwnProcess(channel, self._words, lambda: self.runner.end_loop_in_child())
        sender = ReportSender(channel, self._words, self._payloads, self._own)
        self.runner = BatchRunner(self._words, self._serializer, self._functions, sender, self._own)
        self._streams = sys.stdout, sys.stderr
        segments.take_missing()  # what the master has noted for itself before the fork says nothing about this process

    def run(self) -> int:
        """Serve until the master closes its end; return the exit status."""
        self._words[Word.STATE] = State.IDLE
        try:
            packet, payload, fds = self._receive()
            while isinstance(packet, CapturePacket):
                self._serve_other(packet, payload, fds)
                packet, payload, fds = self._receive()
            if not self._initialize():
                return 1
            self._words[Word.READY] = time.monotonic_ns()
            while True:
                if type(packet) is BatchPacket:
                    self._serve_batch(packet, payload, fds)
                else:
                    self._serve_other(packet, payload, fds)
                packet, payload, fds = self._receive()
        except Lost:
            return 0

    def _receive(self) -> tuple[PacketForWorker, memoryview, list[int]]:
        """Return the next packet that has all its descriptors."""
        while True:
            try:
                return self._source.next_packet()
            except Cut as cut:
                self._serve_cut(cut.packet)

    def _initialize(self) -> bool:
        """Run the initializer, and return whether that went well.

        This is called after the first packet, which shows that the master knows this worker.
        """
        if self._initializer is None:
            return True
        self._words[Word.STATE] = State.STARTING
        try:
            self._initializer(*self._initargs)
        except BaseException as error:
            self._own.check_process(error)
            text = safe(traceback.format_exc)
            self._own.check()
            self._channel.send(InitFailedPacket(), text.encode("utf-8", "replace")[-INLINE_LIMIT:])
            return False
        self._own.check()
        self._words[Word.STATE] = State.IDLE
        self._channel.send(ReadyPacket())
        return True

    def _serve_batch(self, packet: BatchPacket, payload: memoryview, fds: list[int]) -> None:
        words = self._words
        words[Word.STARTED] = began = time.monotonic_ns()  # before the state, because readers take both together
        words[Word.STATE] = State.LOADING
        words[Word.ITEM] = NOTHING
        words[Word.FUNCTION] = packet.function
        words[Word.FIRST] = packet.first
        words[Word.COUNT] = packet.item_count
        words[Word.BOUND] = 0
        words[Word.BATCH] = packet.batch
        self._source.allow_spinning(packet.flags & Flag.SPIN != 0)
        loaded = load_items(packet, payload, fds, words, self._serializer, self._payloads)
        self._own.check_process()  # an item can fork while it is unpickled
        if loaded is None:
            segments.take_missing()
            self._serve_cut(packet)
        else:
            self.runner.run(packet, loaded, began)
        del loaded  # after the results are pickled, because a finalizer of an item can change what they contain
        self._own.check_process()  # a finalizer can have forked
        words[Word.STATE] = State.IDLE
        if not capture.mend():
            raise Lost("a task has shut down the socket of log records")

    def _serve_other(self, packet: PacketForWorker, payload: memoryview, fds: list[int]) -> None:
        if isinstance(packet, FunctionPacket):
            self._functions.learn(packet, payload, fds)
            self._own.check()
        elif isinstance(packet, ForgetPacket):
            self._functions.forget(packet.function)
        elif isinstance(packet, SharePacket):
            segments.arrive(packet, fds)
        elif isinstance(packet, UnsharePacket):
            segments.forget(packet.segment)
        elif isinstance(packet, CapturePacket):
            self._source.capture_served()
            capture.serve(packet, fds, self._streams)
        elif isinstance(packet, DescriptorsPacket):
            self._payloads.inbox.keep(packet, fds)
        elif isinstance(packet, DiscardDescriptorsPacket):
            self._payloads.inbox.discard(packet)
        else:
            assert isinstance(packet, StartPacket)

    def _serve_cut(self, packet: Packet) -> None:
        """Serve a packet whose descriptors were lost because this process can open no more files."""
        if isinstance(packet, DescriptorsPacket):
            self._payloads.inbox.lose(packet)
        elif isinstance(packet, FunctionPacket):
            self._functions.lose(packet)
        elif isinstance(packet, CapturePacket):
            self._source.capture_served()  # the output stays where it goes now
        else:
            error = fd_passing.table_is_full("the descriptors of the task could not be received")
            if isinstance(packet, BatchPacket):
                self.runner.refuse(packet, error)
            elif isinstance(packet, SharePacket):
                segments.fail_to_arrive(packet, error)
