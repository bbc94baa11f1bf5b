"""The tasks. They are functions of a module, so that every library can pickle them by name."""

from __future__ import annotations

import os
import time
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks import memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

PAGE = 4096
"""Bytes of a page of memory."""


def noop(x: Any) -> Any:
    """Return the argument: the task of all cases that measure only the pool."""
    return x


def spin(seconds: float) -> float:
    """Compute for some seconds of the clock."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass
    return seconds


def nap(seconds: float) -> float:
    """Sleep for some seconds, without using a core."""
    time.sleep(seconds)
    return seconds


def whoami(seconds: float) -> int:
    """Return the pid of the worker after a sleep, during which other workers take the other tasks."""
    time.sleep(seconds)
    return os.getpid()


def look_at(array: Bytes, every: int = PAGE) -> int:
    """Read one byte of each page of an array, or one of `every` bytes. Return the first byte."""
    int(array[::every].sum())
    return int(array[0])


def look_together(array: Bytes, roll: str, workers: int, every: int = 1 << 20) -> int:
    """Read an array, and wait until all workers have read theirs. So each worker has one item. Return 0."""
    look_at(array, every)
    meet(roll, workers)
    return 0


def weigh_together(array: Bytes, roll: str, workers: int, master: int) -> int:
    """Do the same. While all workers hold the array, return the bytes of the master and its descendants."""
    look_together(array, roll, workers, PAGE)
    weight = memory.proportional(memory.family(master))
    meet(roll + "-weighed", workers)
    return weight


def meet(roll: str, workers: int, patience: float = 30.0) -> None:
    """Wait until a number of processes have called this function. Raises `TimeoutError` after `patience` seconds.

    Each process appends a byte to the file `roll`, and looks at the size of the file every millisecond.
    """
    fd = os.open(roll, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, b".")
        end = perf_counter() + patience
        while os.fstat(fd).st_size < workers:
            if perf_counter() > end:
                raise TimeoutError(f"{os.fstat(fd).st_size} of {workers} workers met within {patience:g} s")
            time.sleep(0.001)
    finally:
        os.close(fd)
