"""Do a part of what the master does when it recalls packets."""

from __future__ import annotations

from pairpool import Pool
from pairpool.master.worker_channel import RecalledPackets
from pairpool.transport.protocol import Packet

__all__ = ["recall_one_packet"]


def recall_one_packet(pool: Pool) -> Packet:
    """Recall only the next packet, as a master does if the worker reads the others first. Return the packet."""
    (worker,) = pool._engine.workers.members.values()
    packet, payload, fds = worker.worker_end.receive(wait=False)
    worker._undo_sending(packet, payload, fds, RecalledPackets([], []))
    return packet
