"""A thread that drives a pool for calls that no thread waits for."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable

from pairpool.master.event_loop import EventLoop

__all__ = ["DriverThread"]


class DriverThread(threading.Thread):
    """Drive a pool as long as calls are left and no other thread leads; else sleep.

    Args:
        loop: the event loop of the pool.
        is_idle: returns whether nothing is left to do.
    """

    def __init__(self, loop: EventLoop, is_idle: Callable[[], bool]) -> None:
        super().__init__(name="pairpool-driver", daemon=True)
        self._loop = loop
        self._is_idle = is_idle
        self._nudges: queue.SimpleQueue[None] = (
            queue.SimpleQueue()
        )  # written in C: the handler of a signal cannot leave it locked
        loop.set_standby(self._take_over)

    def run(self) -> None:
        """Run the thread."""
        loop = self._loop
        while not loop.ended:
            try:
                loop.drive_if_free(self._is_idle)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            if not loop.ended:
                self._nudges.get()

    def nudge(self) -> None:
        """Wake the thread if it sleeps, because there is work or the pool ends."""
        if self._nudges.empty():
            self._nudges.put(None)

    def _take_over(self) -> None:
        """Take the lead, which another thread has left, if calls are left."""
        if not self._is_idle():
            self.nudge()

    def stop(self) -> None:
        """Wait until the thread has ended. `EventLoop.ended` tells it to."""
        self._nudges.put(None)
        if self is not threading.current_thread():
            self.join()
