"""The Python stacks that workers leave when native code crashes: one memfd for all workers, one room for each slot."""

from __future__ import annotations

import faulthandler
import os

from pairpool.scoreboard.stacks import WORKER_FILES

__all__ = ["catch_faults", "read_fault_stack", "task_frames"]

ROOM_BYTES = 1 << 20
"""Bytes of the memfd for each slot. Only pages that were written take memory."""


def catch_faults(stacks: int, number: int) -> None:
    """In a worker, have faulthandler write the stack of a crash into the room of this slot.

    Args:
        stacks: descriptor of the memfd.
        number: the slot of the worker.
    """
    try:
        own = os.open(f"/proc/self/fd/{stacks}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # without /proc a crash is still noticed, only without its stack
    start = number * ROOM_BYTES
    if os.pread(own, 1, start).strip(b"\0"):
        used = os.pread(own, ROOM_BYTES, start).rstrip(b"\0")
        os.pwrite(own, bytes(len(used)), start)
    os.lseek(own, start, os.SEEK_SET)
    faulthandler.enable(own)


def read_fault_stack(stacks: int, number: int) -> bytes:
    """Return what the worker of a slot left; empty if there is no memory to read it."""
    try:
        return os.pread(stacks, ROOM_BYTES, number * ROOM_BYTES)
    except OSError:
        return b""


def task_frames(stack: str) -> str:
    """Return a faulthandler report without the frames of the worker below the task."""
    lines = stack.splitlines()
    for position, line in enumerate(lines):
        if WORKER_FILES in line:
            return "\n".join(lines[:position])
    return stack
