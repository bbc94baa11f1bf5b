"""Ctrl-C while the main thread drives a pool: it is raised when a turn is over, and not in the midst of one.

Python raises KeyboardInterrupt between any two steps of the main thread. In a turn of the loop that may be between
taking a result and handing it over, and somebody else's call would pay for it. So whoever waits holds interrupts back:
one is noted, whoever waits is woken, and raises it then. The caller's own code, which a turn runs (an iterator that
reads from a terminal, say), is interrupted at once, and so is everything by the second Ctrl-C.

Only Python's own handler is replaced, and only while the main thread waits. A program that has one of its own, as
`asyncio.run` does, keeps it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what is beneath `signal`, whose enums take 12 µs of each wait
import os
import threading
from collections.abc import Callable
from signal import SIGINT, default_int_handler
from typing import Any

__all__ = ["Guard", "Passage", "hold"]

_NUMBER = int(SIGINT)


class Guard:
    """Interrupts are held back as long as this is in force.

    Args:
        wake: called by the signal handler.

    Attributes:
        has_struck: whether there was one.
        passages: how many of the caller's functions run now, which may be interrupted.
    """

    def __init__(self, wake: Callable[[], object], outer: Guard | None) -> None:
        self.wake = wake
        self.has_struck = False
        self.passages = 0
        self._outer = outer

    def release(self) -> None:
        """Have interrupts be raised at once again; raises the one that was held back."""
        global _guard
        _guard = self._outer
        if _guard is None and _signal.getsignal(_NUMBER) is _strike:
            _signal.signal(_NUMBER, default_int_handler)
        if self.has_struck:
            raise KeyboardInterrupt


_guard: Guard | None = None


def hold(wake: Callable[[], object]) -> Guard | None:
    """Hold interrupts back; None if this thread has none, or the program has a handler of its own for them."""
    global _guard
    if threading.get_ident() != threading.main_thread().ident:
        return None
    handler = _signal.getsignal(_NUMBER)
    if handler is not default_int_handler and handler is not _strike:
        return None
    guard = _guard = Guard(wake, _guard)
    if handler is not _strike:
        try:
            _signal.signal(_NUMBER, _strike)
        except ValueError:  # not the main interpreter
            _guard = None
            return None
    return guard


def _strike(number: int, frame: Any) -> None:
    guard = _guard
    if guard is None or guard.has_struck or guard.passages:
        default_int_handler(number, frame)
    else:
        guard.has_struck = True
        guard.wake()


class Passage:
    """A `with` block of the caller's code: an interrupt is raised in it at once."""

    def __enter__(self) -> None:
        self._guard = _guard if threading.get_ident() == threading.main_thread().ident else None
        if self._guard is not None:
            self._guard.passages += 1

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            self._guard.passages -= 1


def _leave_to_child() -> None:
    """A forked child waits for nothing here."""
    global _guard
    _guard = None
    if threading.get_ident() == threading.main_thread().ident and _signal.getsignal(_NUMBER) is _strike:
        _signal.signal(_NUMBER, default_int_handler)


os.register_at_fork(after_in_child=_leave_to_child)
