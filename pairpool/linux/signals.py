"""The signal mask of the calling thread."""

from __future__ import annotations

import signal
from collections.abc import Iterable

from pairpool.linux.cpython_private import set_signal_mask

__all__ = ["hold_signals", "set_signal_mask"]

_DEFERRED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2}

"""Signals whose handlers are apt to raise."""


def hold_signals(numbers: Iterable[int] = _DEFERRED) -> set[int]:
    """Have Ctrl-C and the like come after a few statements, and not within; returns the mask of before.

        before = hold_signals()
        try:
            ...
        finally:
            set_signal_mask(signal.SIG_SETMASK, before)

    A handler that raises can strike where a Python function begins, and behind each call: hence no `with` block, whose
    end would be such a function, and hence the care here. With more threads the kernel may give the signal to another,
    and the handler still runs in the main one: nothing is promised but that no signal stays held back for ever.
    """
    before: set[int] = set_signal_mask(signal.SIG_BLOCK, ())
    try:
        set_signal_mask(signal.SIG_BLOCK, numbers)
    except BaseException:
        set_signal_mask(signal.SIG_SETMASK, before)
        raise
    return before
