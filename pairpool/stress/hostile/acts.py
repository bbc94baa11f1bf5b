"""Deeds of a hostile task other than to send a packet: what it does to its channel and to its process.

No deed makes the later tasks of the same process fail, such as a limit of the process would. Nothing can protect them:
a task can replace any object of its process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable

from pairpool.stress.hostile.dice import Dice
from pairpool.stress.hostile.reach import Reach
from pairpool.transport.wire import MAX_DESCRIPTORS, PACKET_LIMIT

__all__ = ["ACTS", "Act"]

Act = Callable[[Dice, Reach], None]

SOL_SOCKET_ATTACH_FILTER = 26
SOL_SOCKET_LOCK_FILTER = 44
SOL_SOCKET_PEEK_OFF = 42
SOL_SOCKET_PASS_PIDFD = 76

DRY_S = 0.002
"""Seconds that a thief waits for a packet."""


def _shut_down(dice: Dice, reach: Reach) -> None:
    reach.channel.shutdown(dice.pick((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)))


def _close(_dice: Dice, reach: Reach) -> None:
    os.close(reach.channel.fileno())


def _replace(dice: Dice, reach: Reach) -> None:
    """Let another file take the channel's number, as after a double close."""
    near, far = socket.socketpair(socket.AF_UNIX, dice.pick((socket.SOCK_SEQPACKET, socket.SOCK_STREAM)))
    with near, open(os.devnull, "r+b") as null:
        os.dup2(dice.pick((near.fileno(), null.fileno())), reach.channel.fileno())
    if dice.one_in(2):
        far.detach()  # the other end stays open, and nobody reads it
    else:
        far.close()


def _close_all(_dice: Dice, _reach: Reach) -> None:
    os.closerange(3, 256)


def _steal(dice: Dice, reach: Reach) -> None:
    """Read packets that are for the worker."""
    wanted = dice.pick((1, 1, 2, 100))
    deadline = time.monotonic() + DRY_S
    while wanted and time.monotonic() < deadline:
        try:
            _data, fds, _flags, _address = socket.recv_fds(
                reach.channel, PACKET_LIMIT, MAX_DESCRIPTORS, socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            time.sleep(0.0001)
            continue
        for fd in fds:
            os.close(fd)
        wanted -= 1


def _die(dice: Dice, _reach: Reach) -> None:
    os.kill(os.getpid(), dice.pick((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)))


def _stop(_dice: Dice, _reach: Reach) -> None:
    """Stop the process. The time limit of the task ends it."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _exit(dice: Dice, _reach: Reach) -> None:
    os._exit(dice.below(256))


def _make_nonblocking(_dice: Dice, reach: Reach) -> None:
    reach.channel.setblocking(False)


def _set_options(dice: Dice, reach: Reach) -> None:
    """Set options of the socket, which the master's copy of the worker's end shares."""
    option = dice.pick(
        (socket.SO_RCVBUF, socket.SO_RCVLOWAT, socket.SO_PASSCRED, SOL_SOCKET_PEEK_OFF, SOL_SOCKET_PASS_PIDFD)
    )
    try:
        reach.channel.setsockopt(socket.SOL_SOCKET, option, dice.pick((0, 1, 4096)))
        if dice.one_in(2):
            reach.channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000))
    except OSError:
        pass  # the kernel does not know the option


def _filter(dice: Dice, reach: Reach) -> None:
    """Attach a filter that drops every packet to the worker, or that cuts it off after some bytes."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, dice.pick((0, 0, 1, 40))))
    argument = struct.pack("HL", 1, ctypes.addressof(program))
    try:
        reach.channel.setsockopt(socket.SOL_SOCKET, SOL_SOCKET_ATTACH_FILTER, argument)
        if dice.one_in(2):
            reach.channel.setsockopt(socket.SOL_SOCKET, SOL_SOCKET_LOCK_FILTER, 1)
    except OSError:
        pass


def _escape(dice: Dice, _reach: Reach) -> None:
    """Fork a child that raises out of the task."""
    pid = os.fork()
    if pid == 0:
        raise dice.pick((RuntimeError, SystemExit, KeyboardInterrupt))("raised in a forked child")
    if dice.one_in(2):
        os.waitpid(pid, 0)


def _return_twice(dice: Dice, _reach: Reach) -> None:
    """Fork a child that returns from the task, as the parent does."""
    pid = os.fork()
    if pid and dice.one_in(2):
        os.waitpid(pid, 0)


def _read_in_thread(_dice: Dice, reach: Reach) -> None:
    """Leave a thread behind that reads the packets of the worker."""

    def read() -> None:
        try:
            for _ in range(20):
                reach.channel.recv(PACKET_LIMIT)
        except OSError:
            pass

    threading.Thread(target=read, daemon=True).start()


def _close_standard(_dice: Dice, _reach: Reach) -> None:
    for fd in range(3):
        os.close(fd)


ACTS: dict[str, tuple[Act, int]] = {
    "shut down": (_shut_down, 12),
    "close": (_close, 12),
    "replace": (_replace, 12),
    "close all": (_close_all, 6),
    "steal": (_steal, 4),
    "die": (_die, 12),
    "stop": (_stop, 1),
    "exit": (_exit, 6),
    "non-blocking": (_make_nonblocking, 6),
    "options": (_set_options, 8),
    "filter": (_filter, 2),
    "escape": (_escape, 8),
    "return twice": (_return_twice, 8),
    "thread": (_read_in_thread, 2),
    "close standard": (_close_standard, 4),
}
"""Each deed with its weight. Deeds that the pool notices only after a time limit have small ones."""
