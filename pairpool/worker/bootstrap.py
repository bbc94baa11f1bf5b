"""Give a worker the environment that the workers of multiprocessing have.

Scripts ask `multiprocessing.current_process()` for a name. They expect exit functions and threads to be handled as in
multiprocessing. The standard library does that work; this module registers pairpool's processes with it.
"""

from __future__ import annotations

import os
import sys

from pairpool.linux import cpython_private

__all__ = ["become_pool_worker", "finish_pool_worker"]


def become_pool_worker(serial: int, master: int, *, daemon: bool) -> None:
    """Make `multiprocessing.current_process()` tell what it tells in a worker of multiprocessing.

    Nothing is done if the program has not imported multiprocessing, because the import would cost every worker time.

    Args:
        daemon: whether tasks may not start a `multiprocessing.Process`, as there.
    """
    cpython_private.clear_exit_functions()
    cpython_private.forget_executor_threads()
    if "multiprocessing.context" not in sys.modules:
        return
    try:
        cpython_private.set_current_process(serial, master, daemon=daemon)
    except ProcessLookupError:
        os._exit(1)  # the master is gone


def finish_pool_worker() -> None:
    """Run what multiprocessing's objects registered for the end of the process, and wait for non-daemon threads."""
    cpython_private.finish_process()
