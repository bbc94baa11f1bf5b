"""Private memory for large arrays that were received, kept warm and used again.

Fresh pages cost as much time as the copy into them. So memory that no array uses any more serves the next array.
"""

from __future__ import annotations

import mmap
import sys
import threading

__all__ = ["HUGE_PAGES_FROM_BYTES", "WARM_BYTES_KEPT", "WarmMemory", "process_memory"]

HUGE_PAGES_FROM_BYTES = 4 << 20
"""Copies of this size and above go to huge pages and may be used again. Smaller copies are ordinary bytearrays."""

WARM_BYTES_KEPT = 128 << 20
"""Bytes of private memory that a worker keeps for the next large arrays while the worker has work."""


class WarmMemory:
    """Copies buffers to private memory, and uses the memory of dropped copies again.

    Args:
        at_most: number of bytes to keep; 0 to keep nothing.
    """

    def __init__(self, at_most: int) -> None:
        self.restart(at_most)

    def restart(self, at_most: int) -> None:
        """Begin again in a forked process, where the memory and the state of the lock are those of its parent."""
        self._at_most = at_most
        self._kept: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def copy(self, source: memoryview) -> bytearray | memoryview:
        """Copy a buffer to writable memory that belongs to the caller. Large copies use huge pages (madvise(2))."""
        size = len(source)
        if size < HUGE_PAGES_FROM_BYTES:
            return bytearray(source)
        if not self._lock.acquire(blocking=False):  # another thread holds it, or this thread, below a finalizer
            return bytearray(source)
        try:
            target = memoryview(self._find(size) or self._make(size))[:size]
        finally:
            self._lock.release()
        target[:] = source
        return target

    def _find(self, size: int) -> mmap.mmap | None:
        kept = self._kept
        for position in range(len(kept)):
            # Two references: this list and the call of getrefcount. No array, and no view of an array, is left.
            if sys.getrefcount(kept[position]) == 2 and size <= len(kept[position]) <= 2 * size:
                kept.append(kept.pop(position))
                return kept[-1]
        return None

    def _make(self, size: int) -> mmap.mmap:
        while self._kept and sum(map(len, self._kept)) + size > self._at_most:
            del self._kept[0]  # the kernel frees it now, or with the last array that uses it
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # the kernel has no transparent huge pages: the copy is correct, only slower
        if size <= self._at_most:
            self._kept.append(memory)
        return memory

    @property
    def is_warm(self) -> bool:
        """Whether any memory is kept."""
        return bool(self._kept)

    def give_back(self) -> None:
        """Keep nothing. Memory in use is freed with the last array that uses it."""
        self._kept.clear()


process_memory = WarmMemory(0)
"""The memory of this process for received arrays. A worker keeps some, because a worker frees it when it idles."""
