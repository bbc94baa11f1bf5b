"""The end of executors at the end of the program, in the order of the standard library.

1. The main thread ends. The calls that were submitted run to their ends, before anything that `atexit` holds: that may
   remove what tasks need, such as a temporary directory or a manager.
2. Other threads end. Until then they may submit calls.
3. `atexit` runs. The pools of executors end, and then all other pools.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from typing import Any

from pairpool.executor_pool import ExecutorPool

__all__ = ["is_too_late_to_submit", "pools_of_executors", "shutdown_error", "too_late_error", "when_main_ends"]

pools_of_executors: weakref.WeakSet[ExecutorPool] = weakref.WeakSet()
"""The pools that the end of the interpreter waits for."""

_is_ending = False
"""Whether the main thread has ended. From then on, only threads that the program waits for may submit calls."""

_is_at_exit = False


def is_too_late_to_submit() -> bool:
    """Return whether this thread may not submit calls any more, because the interpreter ends."""
    return _is_at_exit or (_is_ending and threading.current_thread().daemon)


def shutdown_error() -> RuntimeError:
    """Return the error of a call after a shutdown, in the words of `concurrent.futures`."""
    return RuntimeError("cannot schedule new futures after shutdown")


def too_late_error() -> RuntimeError:
    """Return the error of a call at the end of the program, in the words of `concurrent.futures`."""
    return RuntimeError("cannot schedule new futures after interpreter shutdown")


def _run_pending() -> None:
    """Run what was submitted, when the main thread has ended."""
    global _is_ending
    _is_ending = True
    for pool in list(pools_of_executors):
        pool.run_pending()


def _finish_all() -> None:
    """End the pools at interpreter exit, after what other threads have submitted meanwhile has run."""
    global _is_at_exit
    _is_at_exit = True
    for pool in list(pools_of_executors):
        pool.finish(too_late_error())


atexit.register(_finish_all)  # registered after the pools' own function, so it runs before that


def when_main_ends(function: Callable[[], object]) -> bool:
    """Call `function` when the main thread has ended, before anything that `atexit` holds; the last one first.

    `concurrent.futures` uses the same private function of `threading`.

    Returns:
        False if it is too late for that.
    """
    register: Any = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(function)
    except RuntimeError:
        return False
    return True


_is_ending = not when_main_ends(_run_pending)
