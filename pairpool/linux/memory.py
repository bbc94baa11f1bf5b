"""Read and write memory sizes as people write them, and read the memory of a process.

/proc/PID/statm counts pages (proc(5)): the second field is all resident memory, the third is the part of it that is
file-backed or shared.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["MemoryUsage", "format_size", "parse_size", "memory_usage_of"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(size: int | str) -> int:
    """Return a size in bytes, from a number or a text such as `"2GB"` (10**9 each) or `"512 MiB"` (2**20 each).

    Raise `ValueError` if the size is not positive or not readable, and `TypeError` for other types.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"a size is a number of bytes or a text such as '2GB', not {size!r}")
    if isinstance(size, int):
        number = size
    else:
        match = _SIZE.fullmatch(size)
        if match is None:
            raise ValueError(f"a size is a number of bytes or a text such as '2GB', not {size!r}")
        amount, unit, binary = match.groups()
        number = int(float(amount) * (1024 if binary else 1000) ** _POWERS[unit.lower()])
    if number < 1:
        raise ValueError(f"a size must be positive, not {size!r}")
    return number


def format_size(size: float) -> str:
    """Return a number of bytes as text: `1.5 GiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


class MemoryUsage(NamedTuple):
    """Memory of one process in bytes: all resident memory, and the part that is neither file-backed nor shared."""

    resident: int
    private: int


def memory_usage_of(pid: int) -> MemoryUsage | None:
    """Return the memory of a process; None if the process is gone or there is no /proc."""
    try:
        fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = os.read(fd, 256).split()
    except OSError:
        return None  # the process ended between the two calls
    finally:
        os.close(fd)
    resident, shared = int(fields[1]), int(fields[2])
    return MemoryUsage(resident * _PAGE_BYTES, (resident - shared) * _PAGE_BYTES)
