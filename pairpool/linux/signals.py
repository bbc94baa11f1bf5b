"""Set the signal mask of the calling thread."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from pairpool.linux.cpython_private import set_signal_mask

__all__ = ["hold_signals", "set_signal_mask"]

_DEFERRED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2}

"""Signals whose handlers often raise."""


def hold_signals(numbers: Iterable[int] = _DEFERRED) -> set[int]:
    """Block Ctrl-C and similar signals for a few statements, and return the mask of before.

        before = hold_signals()
        try:
            ...
        finally:
            set_signal_mask(signal.SIG_SETMASK, before)

    1. Python calls a handler at the start of a Python function and after each call, and the handler may raise there.
       So this is not a `with` block, because its end would be such a function.
    2. In a program with threads the kernel may deliver the signal to another thread, and Python runs the handler in the
       main thread all the same. So the only promise is that no signal stays blocked for ever.
    """
    before: set[int] = set_signal_mask(signal.SIG_BLOCK, ())
    try:
        set_signal_mask(signal.SIG_BLOCK, numbers)
    except BaseException:
        set_signal_mask(signal.SIG_SETMASK, before)
        raise
    return before
