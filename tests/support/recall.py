"""Do a part of what the master does when it recalls packets."""

from __future__ import annotations

from pairpool import Pool

__all__ = ["recall_one_packet"]


def recall_one_packet(pool: Pool) -> int:
    """Recall only the next packet, as a master does if the worker reads the others first. Return the packet's kind."""
    (member,) = pool._master.crew.members.values()
    header, payload, fds = member.far.receive(wait=False)
    member._unsend(header, payload, fds, [], [])
    return header.kind
