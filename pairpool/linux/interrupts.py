"""Defer the handlers of signals while the main thread drives a pool: they run between two turns, never inside one.

Python runs a handler between any two steps of the main thread, and many handlers raise: KeyboardInterrupt, a time limit
by SIGALRM, `sys.exit` by SIGTERM. In a turn of the loop that can be between receiving a result and delivering it, and
then another caller's result would be lost. So the thread that drives defers the handlers:

1. `start_deferring` replaces the handlers that are Python functions with `_on_signal`.
2. A signal comes: `_on_signal` records the handler in the guard, and wakes the thread if it waits.
3. The turn ends, the guard is released, and the recorded handlers are called. They may raise.

Exceptions to this rule:

- A turn runs code of the caller, such as an iterator that reads from a terminal. There, handlers run at once
  (`allow_signals`).
- A turn can last, as when a large argument is pickled. If the same signal comes again after `FORCED_AFTER_S`, its
  handler runs at once.
- Handlers that C code has installed in front of Python's, such as `faulthandler.register(..., chain=True)`, stay in
  place. So do those of SIGPROF and SIGVTALRM, which profilers use.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from signal import SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, default_int_handler
from typing import Any

from pairpool.linux.cpython_private import signal_module as _signal

Handler = Callable[[int, Any], object]

__all__ = ["Guard", "allow_signals", "defer_signals", "is_from_handler", "is_in_force", "is_own", "start_deferring"]

FORCED_AFTER_S = 0.2
"""Seconds after which a signal that comes again is not deferred any more."""

_NUMBERS = tuple(map(int, (SIGINT, SIGTERM, SIGALRM, SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT)))

_SIGACTION_BYTES = 512
"""More than `struct sigaction` has on any platform. It begins with the handler's address."""


class Guard:
    """Handlers are deferred as long as this is in force.

    Args:
        wake: called as soon as there is a signal.
        outer: the guard that was in force before.

    Attributes:
        pending: handlers to be called, by signal number, each with the second when it was deferred.
        allowed: how many of the caller's functions run now, in which handlers run at once.
        raised: what a handler raised in one of them, or in the middle of a turn after all.
    """

    def __init__(self, wake: Callable[[], object], outer: Guard | None) -> None:
        self.wake = wake
        self.pending: dict[int, tuple[Handler, float]] = {}
        self.allowed = 0
        self.raised: BaseException | None = None
        self._outer = outer

    def withdraw(self) -> None:
        """Let the outer guard be in force again, without calling anything."""
        global _guard
        _guard = self._outer

    def release(self) -> None:
        """Stop deferring, and call the deferred handlers, which may raise."""
        try:
            self._end()
        except BaseException:  # from a deferred handler, or from one that ran meanwhile
            self._end()
            raise

    def _end(self) -> None:
        global _guard
        if self._outer is None:
            _restore_handlers()
        if _guard is self:
            _guard = self._outer
        self.raised = None  # its traceback leads back here
        self.call_pending()

    def hand_over(self) -> None:
        """Do as `release` does; but if another guard is in force outside of this one, leave the handlers to it."""
        global _guard
        outer = self._outer
        if outer is None or outer.allowed:
            self.release()
            return
        if _guard is self:
            _guard = outer
        self.raised = None
        for number, deferred in self.pending.items():
            outer.pending.setdefault(number, deferred)
        if self.pending:
            outer.wake()

    def call_pending(self) -> None:
        """Call the deferred handlers."""
        while self.pending:
            number, (handler, _since) = self.pending.popitem()
            handler(number, sys._getframe())

    def on_signal(self, number: int, frame: Any) -> None:
        """Defer the handler of a signal, or call it at once if the caller's code runs or if the signal is repeated."""
        if self.allowed:
            self.pending.pop(number, None)
            self._call(_replaced[number], number, frame)
            return
        now = time.monotonic()
        handler, since = self.pending.setdefault(number, (_replaced[number], now))
        if now - since >= FORCED_AFTER_S:
            del self.pending[number]
            self._call(handler, number, frame)
        self.wake()

    def _call(self, handler: Handler, number: int, frame: Any) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            self.raised = error
            raise

    def enter_allowed(self) -> None:
        """Call handlers at once from now on, first those that were deferred."""
        if self.pending:
            try:
                self.call_pending()
            except BaseException as error:
                self.raised = error
                raise
        self.allowed += 1

    def leave_allowed(self) -> None:
        """Undo `enter_allowed`."""
        self.allowed -= 1


_guard: Guard | None = None

_replaced: dict[int, Handler] = {}
"""The handler of each signal that `_on_signal` stands for, or stood for last."""


def _restore_handlers() -> None:
    for number, handler in list(_replaced.items()):
        if _signal.getsignal(number) is _on_signal:
            _signal.signal(number, handler)


def start_deferring(wake: Callable[[], object]) -> Guard | None:
    """Defer handlers until the guard that this returns is released. None if this thread runs no handlers."""
    global _guard
    if threading.get_ident() != threading.main_thread().ident:
        return None
    guard = Guard(wake, _guard)
    try:
        _guard = guard
        for number in _NUMBERS:
            handler = _signal.getsignal(number)
            if handler is _on_signal or not callable(handler):
                continue
            if handler is not default_int_handler and not _is_called_by_python(number):
                continue
            _replaced[number] = handler
            _signal.signal(number, _on_signal)
    except ValueError:  # not the main interpreter
        guard.withdraw()
        return None
    except BaseException:
        guard.release()
        raise
    return guard


def _on_signal(number: int, frame: Any) -> None:
    guard = _guard
    if guard is None:  # it is being released
        _replaced[number](number, frame)
    else:
        guard.on_signal(number, frame)


def is_in_force() -> bool:
    """Return whether handlers are deferred now."""
    return _guard is not None


def _guard_of_this_thread() -> Guard | None:
    return _guard if threading.get_ident() == threading.main_thread().ident else None


def is_from_handler(error: BaseException) -> bool:
    """Return whether the handler of a signal raised this inside the caller's code, and not that code itself."""
    guard = _guard_of_this_thread()
    return guard is not None and guard.raised is error


def is_own(error: BaseException) -> bool:
    """Return whether the user's code raised this itself in the middle of a turn, and no handler did.

    Without a guard, as in asyncio's event loop, anything but an `Exception` may come from a handler.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return True
    guard = _guard
    return isinstance(error, Exception) if guard is None else guard.raised is not error


class defer_signals:  # used like a function
    """A `with` block in which handlers are deferred. They run at the end of the outermost block, and may raise."""

    def __enter__(self) -> None:
        self._guard = start_deferring(_wake_nobody)

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            self._guard.hand_over()


def _wake_nobody() -> None:
    """Do nothing, because no thread waits."""


class allow_signals:  # used like a function
    """A `with` block for code of the caller, or for a wait that may be interrupted: handlers run in it at once."""

    def __enter__(self) -> None:
        guard = self._guard = _guard_of_this_thread()
        if guard is not None:
            guard.enter_allowed()

    def __exit__(self, *_: object) -> None:
        if self._guard is not None:
            self._guard.leave_allowed()


# --- which code calls a handler -----------------------------------------------------------------------

_SIGACTION = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_sigaction = _SIGACTION(("sigaction", ctypes.PyDLL(None)))  # PYFUNCTYPE keeps the GIL, and so the core
_action = ctypes.create_string_buffer(_SIGACTION_BYTES)
_address = ctypes.c_void_p.from_buffer(_action)
_addresses_of_python: set[int | None] = set()


def _is_called_by_python(number: int) -> bool:
    """Return whether the kernel calls Python's own C handler for this signal. `signal.signal` would undo any other."""
    if not _addresses_of_python:
        _addresses_of_python.add(_find_address_of_python())
    _sigaction(number, None, ctypes.addressof(_action))
    return _address.value in _addresses_of_python


def _find_address_of_python() -> int | None:
    """Return the address of Python's C handler. Set it for a signal that has none, and read it back."""
    for number in (_signal.SIGURG, _signal.SIGWINCH, _signal.SIGCONT, _signal.SIGIO):
        if _signal.getsignal(number) == _signal.SIG_DFL:
            _signal.signal(number, _on_signal)
            try:
                _sigaction(number, None, ctypes.addressof(_action))
                return _address.value
            finally:
                _signal.signal(number, _signal.SIG_DFL)
    return None


def _reset_in_child() -> None:
    """Stop deferring in a forked child, which waits for nothing here."""
    global _guard
    _guard = None
    if threading.get_ident() == threading.main_thread().ident:
        _restore_handlers()


os.register_at_fork(after_in_child=_reset_in_child)
