"""What the workers do. At the top of a module, so that every library can name it."""

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
    """Gives back what it gets: the task of all cases that measure the pool and nothing else."""
    return x


def spin(seconds: float) -> float:
    """Compute for so long by the clock."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass
    return seconds


def nap(seconds: float) -> float:
    """Sleep for so long: no core is used."""
    time.sleep(seconds)
    return seconds


def whoami(seconds: float) -> int:
    """The worker's pid, after so many seconds' sleep, in which other workers take the other tasks."""
    time.sleep(seconds)
    return os.getpid()


def look_at(array: Bytes, every: int = PAGE) -> int:
    """Read one byte of each page of an array, or of so many bytes, and return its first byte."""
    int(array[::every].sum())
    return int(array[0])


def look_together(array: Bytes, roll: str, workers: int, every: int = 1 << 20) -> int:
    """`look_at`, then wait until so many have done so: each of the workers has the array then. Gives 0."""
    look_at(array, every)
    meet(roll, workers)
    return 0


def weigh_together(array: Bytes, roll: str, workers: int, master: int) -> int:
    """The same; then, while all hold it, the bytes of memory that the master and all its descendants use."""
    look_together(array, roll, workers, PAGE)
    weight = memory.proportional(memory.family(master))
    meet(roll + "-weighed", workers)
    return weight


def meet(roll: str, workers: int, patience: float = 30.0) -> None:
    """Wait, for at most `patience` seconds, until so many processes are here. Raises `TimeoutError`.

    Each appends a byte to the file `roll`, whose size is then the count, looked at each millisecond.
    """
    fd = os.open(roll, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, b".")
        end = perf_counter() + patience
        while os.fstat(fd).st_size < workers:
            if perf_counter() > end:
                raise TimeoutError(f"{os.fstat(fd).st_size} of {workers} workers came within {patience:g} s")
            time.sleep(0.001)
    finally:
        os.close(fd)
