"""Sockets for tests that send descriptors."""

from __future__ import annotations

import socket
from contextlib import ExitStack

__all__ = ["socket_pairs"]


def socket_pairs(opened: ExitStack, count: int) -> list[tuple[socket.socket, socket.socket]]:
    """Return connected sockets, which `opened` closes: of each pair one to keep and one to send."""
    return [
        (opened.enter_context(near), opened.enter_context(far))
        for near, far in (socket.socketpair() for _ in range(count))
    ]
