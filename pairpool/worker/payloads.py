"""The payloads that a worker receives and sends, and the memory that it keeps warm for large ones."""

from __future__ import annotations

from collections.abc import Callable

from pairpool.transport.payload_shm import PayloadBuffers, PayloadReader
from pairpool.transport.protocol import BatchPacket, Flag, FunctionPacket
from pairpool.transport.received_fds import FdInbox
from pairpool.transport.warm_memory import WARM_BYTES_KEPT, process_memory

__all__ = ["Payloads"]


class Payloads:
    """Reads payloads from packets or from shared memory.

    Attributes:
        inbox: descriptors that came ahead of the packets that need them.
        buffers: shared memory for large results.
    """

    def __init__(self) -> None:
        self.inbox = FdInbox()
        self.buffers = PayloadBuffers()
        self._reader = PayloadReader()
        process_memory.restart(WARM_BYTES_KEPT)

    def use(
        self,
        packet: BatchPacket | FunctionPacket,
        payload: memoryview,
        fds: list[int],
        use: Callable[[memoryview], None],
    ) -> bool:
        """Call `use` with the payload of a packet, wherever it is. Return False if its descriptors are lost."""
        if not packet.descriptors:
            self._read(packet, payload, fds, use)
            return True
        with self.inbox.gather(packet, fds) as received:
            self._read(packet, payload, fds, use)
        return not received.is_cut

    def _read(
        self,
        packet: BatchPacket | FunctionPacket,
        payload: memoryview,
        fds: list[int],
        use: Callable[[memoryview], None],
    ) -> None:
        if packet.flags & Flag.IN_SHM:
            self._reader.read(payload, packet.size, fds, use)
        else:
            use(payload)

    @property
    def is_warm(self) -> bool:
        """Whether memory is kept for the next large payload."""
        return process_memory.is_warm or self._reader.is_warm or bool(self.buffers.warm_bytes)

    def give_back(self) -> None:
        """Return the memory that is kept warm to the kernel."""
        process_memory.give_back()
        self.buffers.give_back()
        self._reader.give_back()
