"""Signals while the main thread drives a pool: handlers in Python run when a turn is over, and not in the midst of one.

Python runs a handler between any two steps of the main thread, and many handlers raise: KeyboardInterrupt, a time
limit by SIGALRM, `sys.exit` by SIGTERM. In a turn of the loop that may be between taking a result and handing it over,
and somebody else's call would pay for it. So whoever drives holds handlers back: that there was a signal is noted,
whoever waits is woken, and the handler is called then. The caller's own code, which a turn runs (an iterator that reads
from a terminal, say), is struck at once, and so is everything if the signal comes again a while later: a turn may last,
as when a large argument is pickled.

Only handlers that are functions of Python are replaced, and only while the main thread drives. What C has put in front
of one, as `faulthandler.register(..., chain=True)` does, stays, and so does that handler. Those that profilers use
(SIGPROF, SIGVTALRM) are called as ever.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what is beneath `signal`, whose enums take 12 µs of each wait
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from signal import SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, default_int_handler
from typing import Any

Handler = Callable[[int, Any], object]

__all__ = ["Guard", "defer_signals", "allow_signals", "hold", "is_from_handler", "is_in_force", "is_own"]

IMPATIENT = 0.2
"""Seconds after which a signal that comes again is not held back any more."""

_NUMBERS = tuple(map(int, (SIGINT, SIGTERM, SIGALRM, SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT)))

_SIGACTION_BYTES = 512
"""More than any platform's `struct sigaction`, which begins with the handler's address."""


class Guard:
    """Handlers are held back as long as this is in force.

    Args:
        wake: called as soon as there is a signal.

    Attributes:
        pending: handlers that are to be called, by signal number, each with the second when it was held back.
        passages: how many of the caller's functions run now, which may be interrupted.
        raised: what a handler has raised in one of them, or in the midst of a turn after all.
    """

    def __init__(self, wake: Callable[[], object], outer: Guard | None) -> None:
        self.wake = wake
        self.pending: dict[int, tuple[Handler, float]] = {}
        self.passages = 0
        self.raised: BaseException | None = None
        self._outer = outer

    def release(self) -> None:
        """Have handlers be called at once again; calls those that were held back, which may raise."""
        try:
            self._end()
        except BaseException:  # of a handler that was held back, or of one that struck meanwhile
            self._end()
            raise

    def _end(self) -> None:
        global _guard
        if self._outer is None:
            _give_back()
        if _guard is self:
            _guard = self._outer
        self.raised = None  # whose traceback leads back here
        self.call_pending()

    def hand_over(self) -> None:
        """As `release`, but within another guard that is in force the handlers are left to that one."""
        global _guard
        outer = self._outer
        if outer is None or outer.passages:
            self.release()
            return
        if _guard is self:
            _guard = outer
        self.raised = None
        for number, held_back in self.pending.items():
            outer.pending.setdefault(number, held_back)
        if self.pending:
            outer.wake()

    def call_pending(self) -> None:
        """Call the handlers that were held back."""
        while self.pending:
            number, (handler, _since) = self.pending.popitem()
            handler(number, sys._getframe())


_guard: Guard | None = None
_held: dict[int, Handler] = {}
"""What is called for a signal when no guard is in force; what was, where that has ended."""


def _give_back() -> None:
    for number, handler in list(_held.items()):
        if _signal.getsignal(number) is _strike:
            _signal.signal(number, handler)


def hold(wake: Callable[[], object]) -> Guard | None:
    """Hold handlers back; None if this thread runs none."""
    global _guard
    if threading.get_ident() != threading.main_thread().ident:
        return None
    guard = Guard(wake, _guard)
    try:
        _guard = guard
        for number in _NUMBERS:
            handler = _signal.getsignal(number)
            if handler is _strike or not callable(handler):
                continue
            if handler is not default_int_handler and not _is_called_by_python(number):
                continue
            _held[number] = handler
            _signal.signal(number, _strike)
    except ValueError:  # not the main interpreter
        _guard = guard._outer
        return None
    except BaseException:
        guard.release()
        raise
    return guard


def _strike(number: int, frame: Any) -> None:
    guard = _guard
    if guard is None:  # it is being released
        _held[number](number, frame)
    elif guard.passages:
        guard.pending.pop(number, None)
        try:
            _held[number](number, frame)
        except BaseException as error:
            guard.raised = error
            raise
    else:
        now = time.monotonic()
        handler, since = guard.pending.setdefault(number, (_held[number], now))
        if now - since >= IMPATIENT:
            del guard.pending[number]
            try:
                handler(number, frame)
            except BaseException as error:
                guard.raised = error
                raise
        guard.wake()


def is_in_force() -> bool:
    """Whether handlers are held back now."""
    return _guard is not None


def is_from_handler(error: BaseException) -> bool:
    """Whether a signal's handler raised this in the caller's code: then it is not that code's own."""
    guard = _guard if threading.get_ident() == threading.main_thread().ident else None
    return guard is not None and guard.raised is error


def is_own(error: BaseException) -> bool:
    """Whether code of a user's raised this itself in the midst of a turn, and no handler did.

    Without a guard, as in asyncio's loop, anything but an `Exception` may come from a handler.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return True
    guard = _guard
    return isinstance(error, Exception) if guard is None else guard.raised is not error


class defer_signals:
    """A `with` block in which handlers are held back; at the end of the outermost they are called, which may raise."""

    def __enter__(self) -> None:
        self._guard = hold(_nobody)

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            self._guard.hand_over()


def _nobody() -> None:
    """Nobody waits who would have to be woken."""


class allow_signals:
    """A `with` block of the caller's code, or of a wait that may be left: a handler is called in it at once."""

    def __enter__(self) -> None:
        guard = self._guard = _guard if threading.get_ident() == threading.main_thread().ident else None
        if guard is None:
            return
        if guard.pending:
            try:
                guard.call_pending()
            except BaseException as error:
                guard.raised = error
                raise
        guard.passages += 1

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            self._guard.passages -= 1


# --- who calls a handler ------------------------------------------------------------------------------

_sigaction = ctypes.PyDLL(None).sigaction  # which keeps the GIL, and so the core
_sigaction.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_action = ctypes.create_string_buffer(_SIGACTION_BYTES)
_address = ctypes.c_void_p.from_buffer(_action)
_pythons: set[int | None] = set()


def _is_called_by_python(number: int) -> bool:
    """Whether the kernel calls Python's own handler in C for this signal: `signal.signal` would end any other."""
    if not _pythons:
        _pythons.add(_address_of_pythons())
    _sigaction(number, None, ctypes.addressof(_action))
    return _address.value in _pythons


def _address_of_pythons() -> int | None:
    """Where Python's handler in C is: set one for a signal that has none, and look."""
    for number in (_signal.SIGURG, _signal.SIGWINCH, _signal.SIGCONT, _signal.SIGIO):
        if _signal.getsignal(number) == _signal.SIG_DFL:
            _signal.signal(number, _strike)
            try:
                _sigaction(number, None, ctypes.addressof(_action))
                return _address.value
            finally:
                _signal.signal(number, _signal.SIG_DFL)
    return None


def _leave_to_child() -> None:
    """A forked child waits for nothing here."""
    global _guard
    _guard = None
    if threading.get_ident() == threading.main_thread().ident:
        _give_back()


os.register_at_fork(after_in_child=_leave_to_child)
