"""Everything private to CPython that pairpool uses.

`tests/linux/test_cpython_private.py` has one test for each name. After a new release of CPython, run it first.
"""

from __future__ import annotations

import _signal as signal_module  # type: ignore[import-not-found]
import atexit
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "clear_exit_functions",
    "finish_process",
    "forget_executor_threads",
    "importing_main",
    "interpreter_flags",
    "name_main_process",
    "remote_traceback",
    "set_current_process",
    "set_signal_mask",
    "signal_module",
]

# `_signal` is the C module beneath `signal`. The functions of `signal` convert their results to enums, which takes
# 12 µs of each wait, and an exception raised by a signal handler can strike inside them.
set_signal_mask: Callable[[int, Iterable[int]], set[int]] = signal_module.pthread_sigmask
"""`signal.pthread_sigmask` without its Python frame: no exception can strike between the call and the change."""

RUNS_EXIT_FUNCTIONS = sys.version_info >= (3, 13)
"""From 3.13 on, the children of multiprocessing run their own exit functions, but not those of their parent."""


def interpreter_flags() -> list[str]:
    """Return the command line options that make a fresh interpreter behave like this one."""
    from multiprocessing import util

    flags: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


def remote_traceback(text: str) -> BaseException:
    """Return the cause that `ProcessPoolExecutor` gives to an exception from a worker."""
    from concurrent.futures import process

    names: Any = process
    cause: BaseException = names._RemoteTraceback(text)
    return cause


# --- in a forked child ----------------------------------------------------------------------------------


def clear_exit_functions() -> None:
    """Drop the exit functions that this process inherited, on versions that run those of a child."""
    if RUNS_EXIT_FUNCTIONS:
        atexit._clear()


def forget_executor_threads() -> None:
    """Drop the inherited list of threads of `ThreadPoolExecutor`, which would be joined at the end.

    The threads belong to the program. One of them may be the thread that was forked.
    """
    pools: Any = sys.modules.get("concurrent.futures.thread")
    if pools is not None:
        pools._threads_queues.clear()


def set_current_process(serial: int, master: int, *, daemon: bool) -> None:
    """Make `multiprocessing.current_process()` describe a worker of a `multiprocessing.Pool`.

    Raises `ProcessLookupError` if the master has ended.

    Args:
        serial: the number of the worker.
        master: the pid of the process that opened the pool.
        daemon: whether a task may not start a `multiprocessing.Process`.
    """
    import multiprocessing.context
    import multiprocessing.process as process
    import multiprocessing.util as util

    state: Any = process
    before = state._current_process
    me: Any = multiprocessing.context.ForkProcess(daemon=daemon)
    identity = (*before._identity, serial)
    vars(me).update(_identity=identity, _name="ForkPoolWorker-" + ":".join(map(str, identity)), _parent_pid=master)
    vars(state).update(_current_process=me)
    vars(state).update(
        _parent_process=state._ParentProcess(before.name, master, os.pidfd_open(master)),
        _process_counter=itertools.count(1),
        _children=set(),
    )
    finalizers: Any = util
    finalizers._finalizer_registry.clear()
    finalizers._run_after_forkers()


def finish_process() -> None:
    """Wait for non-daemon threads, and run what multiprocessing and `atexit` have registered for the end."""
    threads: Any = threading
    threads._shutdown()
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()
    if RUNS_EXIT_FUNCTIONS:
        atexit._run_exitfuncs()


# --- in a fresh interpreter -----------------------------------------------------------------------------


@contextmanager
def importing_main() -> Iterator[None]:
    """Let multiprocessing know that this process imports the main module of its parent.

    Meanwhile `Process.start` raises the error that explains `if __name__ == "__main__":`.
    """
    import multiprocessing.process as process

    me = vars(process.current_process())
    me["_inheriting"] = True
    try:
        yield
    finally:
        del me["_inheriting"]


def name_main_process() -> None:
    """Give this process the name that the main process of a program has."""
    import multiprocessing.process as process

    vars(process.current_process())["_name"] = "MainProcess"
