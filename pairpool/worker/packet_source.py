"""Where a worker gets its packets from: its channel, in an order that respects CAPTURE packets.

The order matters because of recall:

1. The master sends CAPTURE, then BATCH.
2. The master recalls. It takes CAPTURE back; the worker reads BATCH first.
3. The master sends CAPTURE again.

What the batch writes belongs to the capture. Each packet says how many CAPTURE packets come before it
(`captures_before`), and a packet that is early waits here.
"""

from __future__ import annotations

import select
import time
from collections import deque

from pairpool.linux.spin import SPIN_NS, Spinning
from pairpool.transport.channel import Channel
from pairpool.transport.protocol import (
    BatchPacket,
    CapturePacket,
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    ForgetPacket,
    FunctionPacket,
    Packet,
    SharePacket,
    StartPacket,
    UnsharePacket,
)
from pairpool.transport.wire import ProtocolError
from pairpool.worker.payloads import Payloads

__all__ = ["PacketForWorker", "PacketSource"]

COOL_DOWN_AFTER_S = 1.0
"""Seconds without work after which a worker returns the memory that it keeps warm."""

_Other = (
    DescriptorsPacket
    | DiscardDescriptorsPacket
    | ForgetPacket
    | FunctionPacket
    | SharePacket
    | StartPacket
    | UnsharePacket
)
PacketForWorker = BatchPacket | CapturePacket | _Other


class PacketSource:
    """Receives the packets of a worker.

    Args:
        channel: the worker's end of the pair.
        payloads: whose warm memory is returned when no packet comes for a while.
    """

    def __init__(self, channel: Channel, payloads: Payloads) -> None:
        self._channel = channel
        self._payloads = payloads
        self._may_spin = False
        self._spinning = Spinning()
        self._captures = 0
        self._early: deque[tuple[BatchPacket | _Other, memoryview, list[int]]] = deque()

    def capture_served(self) -> None:
        """Note that a CAPTURE packet was served, or that its descriptor was lost."""
        self._captures += 1

    def allow_spinning(self, allowed: bool) -> None:
        """Note whether a core is free to look for the next packet before this process sleeps."""
        self._may_spin = allowed

    def next_packet(self) -> tuple[PacketForWorker, memoryview, list[int]]:
        """Return the next packet whose turn it is.

        Raises:
            Lost: the master has closed its end.
            Cut: descriptors of a packet were lost.
            ProtocolError: the packet is none for a worker.
        """
        early = self._early
        while True:
            if early and early[0][0].captures_before <= self._captures:
                return early.popleft()
            packet, payload, fds = self._await_packet()
            if isinstance(packet, CapturePacket):
                return packet, payload, fds
            if type(packet) is not BatchPacket and not isinstance(packet, _Other):
                raise ProtocolError(f"the master has sent {packet} to a worker")
            if not early and packet.captures_before <= self._captures:
                return packet, payload, fds
            early.append((packet, memoryview(bytes(payload)), fds))

    def _await_packet(self) -> tuple[Packet, memoryview, list[int]]:
        """Receive a packet. Look for it without sleeping if a core is free and that has paid so far."""
        began, spinning = time.monotonic_ns(), self._spinning
        if self._may_spin and spinning.pays():
            while time.monotonic_ns() - began < SPIN_NS:
                try:
                    received = self._channel.receive(wait=False)
                except BlockingIOError:
                    continue
                spinning.found()
                return received
            spinning.missed()
        if self._payloads.is_warm:
            self._cool_down()
        received = self._channel.receive()
        spinning.slept(time.monotonic_ns() - began)
        return received

    def _cool_down(self) -> None:
        """Wait for a packet, and return warm memory if none comes for a while."""
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        if not poller.poll(COOL_DOWN_AFTER_S * 1000):
            self._payloads.give_back()
