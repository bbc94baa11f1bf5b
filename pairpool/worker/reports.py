"""Send the reports about batches.

Each is one RESULT packet. Its payload is times, failures and values, in this order.
"""

from __future__ import annotations

from typing import NamedTuple

from pairpool.scoreboard.board import State, Word
from pairpool.transport import fd_passing
from pairpool.transport.channel import Channel
from pairpool.transport.failures import Failure, pack_failures
from pairpool.transport.payload import BULK, Encoded
from pairpool.transport.protocol import Flag, ReceivedPacket, ResultPacket
from pairpool.transport.stamps import Stamps
from pairpool.transport.wire import INLINE_LIMIT, Buffer
from pairpool.worker.own_process import OwnProcess
from pairpool.worker.payloads import Payloads

__all__ = ["Report", "ReportSender"]


class Report(NamedTuple):
    """What a report is about: the fields of its packet that do not depend on the payload."""

    batch: int
    first: int
    item_count: int
    took_ns: int = 0
    sharing_took_us: int = 0
    is_partial: bool = False


class ReportSender:
    """Sends reports to the master.

    Args:
        words: the worker's slot of the scoreboard.
        own: checked before each report, because the task may have forked or closed the channel.
    """

    def __init__(self, channel: Channel, words: memoryview, payloads: Payloads, own: OwnProcess) -> None:
        self._channel = channel
        self._own = own
        self._words = words
        self._payloads = payloads

    def confirm(self, batch: int) -> None:
        """Tell the master that it can close the descriptors of a batch, because the batch is about to run."""
        self._own.check()
        self._channel.send(ReceivedPacket(batch))

    def send(
        self, report: Report, encoded: Encoded | None, failures: list[Failure], stamps: Stamps | None = None
    ) -> None:
        """Send a report.

        Raises:
            OSError: there is no descriptor for shared memory.
            MemoryError: there is no memory for the payload.
        """
        self._own.check()
        pieces: list[Buffer] = []
        flags, size, failures_size = Flag.PARTIAL if report.is_partial else 0, 0, 0
        if stamps is not None:
            pieces.append(stamps.pack())
            flags, size = flags | Flag.STAMPED, len(pieces[0])
        if failures:
            pieces.append(pack_failures(failures))
            flags, failures_size = flags | Flag.FAILURES, len(pieces[-1])
        format = BULK
        fds: list[int] = []
        if encoded is not None:
            pieces += encoded.pieces
            size += encoded.size
            format = encoded.format
            if encoded.fds is not None:
                fds = list(encoded.fds.fds)
        size += failures_size
        batch, first, count, took, sharing, is_partial = report
        packet = ResultPacket(flags, format, batch, first, count, failures_size, len(fds), took, sharing, size)
        if size > INLINE_LIMIT:
            self._send_large(packet, pieces, fds, is_partial)
            return
        self._begin_sending(packet, fds, is_partial)
        self._channel.send(packet, b"".join(pieces) if len(pieces) != 1 else pieces[0], fds)

    def _send_large(self, packet: ResultPacket, pieces: list[Buffer], fds: list[int], is_partial: bool) -> None:
        buffer = self._payloads.buffers.put(pieces, packet.size)
        packet = packet._replace(flags=packet.flags | Flag.IN_SHM)
        self._begin_sending(packet, fds, is_partial)
        if not buffer.known:
            fds.append(buffer.fd.fileno())
        self._channel.send(packet, buffer.reference(), fds)
        buffer.sent()

    def _begin_sending(self, packet: ResultPacket, fds: list[int], is_partial: bool) -> None:
        """Show the state, and send ahead the descriptors that do not fit into the packet; they leave `fds`."""
        if not is_partial:
            self._words[Word.STATE] = State.SENDING
        for ahead, part in fd_passing.packets_ahead(packet, fds):
            self._channel.send(ahead, fds=part)
