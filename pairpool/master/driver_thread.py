"""A thread that drives a pool's loop for calls that nobody waits for."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable

from pairpool.master.event_loop import EventLoop

__all__ = ["DriverThread"]


class DriverThread(threading.Thread):
    """A daemon thread that drives as long as calls are left and nobody else does; else it sleeps.

    Args:
        loop: what it drives.
        is_idle: whether there is nothing to wait for.
    """

    def __init__(self, loop: EventLoop, is_idle: Callable[[], bool]) -> None:
        super().__init__(name="pairpool-driver", daemon=True)
        self._loop = loop
        self._is_idle = is_idle
        self._nudges: queue.SimpleQueue[None] = queue.SimpleQueue()  # in C: no signal's handler can leave it locked
        loop.set_standby(self._take_over)

    def run(self) -> None:
        loop = self._loop
        while not loop.ended:
            try:
                loop.drive_if_free(self._is_idle)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            if not loop.ended:
                self._nudges.get()

    def nudge(self) -> None:
        """There is work, or the pool ends: wake the thread if it sleeps."""
        if self._nudges.empty():
            self._nudges.put(None)

    def _take_over(self) -> None:
        """Somebody has left the lead."""
        if not self._is_idle():
            self.nudge()

    def stop(self) -> None:
        """Wait until the thread, told by `EventLoop.ended`, has ended."""
        self._nudges.put(None)
        if self is not threading.current_thread():
            self.join()
