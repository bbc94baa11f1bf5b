"""The exceptions that end calls and pools, apart from those that tasks raise.

`pairpool.errors` is imported inside the functions, because its import takes longer than a pool takes to open.
"""

from __future__ import annotations

__all__ = [
    "abandoned",
    "cancelled",
    "died_at_startup",
    "initializer_failed",
    "left_by",
    "lethal_function",
    "terminated",
]


def terminated() -> BaseException:
    """Return the error of a task whose pool was terminated."""
    from pairpool.errors import CancelledError

    return CancelledError("the pool was terminated before this task ended")


def cancelled() -> BaseException:
    """Return the error of a task whose call was cancelled."""
    from pairpool.errors import CancelledError

    return CancelledError("the call was cancelled")


def left_by(error: BaseException) -> BaseException:
    """Return the error of a task whose caller was interrupted by `error`, an exception of a signal handler."""
    from pairpool.errors import CancelledError

    return CancelledError(f"the call was left by {type(error).__name__}")


def abandoned() -> BaseException:
    """Return the error of an item whose iterator was dropped."""
    from pairpool.errors import CancelledError

    return CancelledError("the iterator over the results was dropped")


def initializer_failed(traceback: str) -> BaseException:
    """Return the error of a pool whose initializer raised an exception with this traceback."""
    from pairpool.errors import InitializerFailed, remote_cause, with_cause

    error = InitializerFailed(f"the initializer raised in a worker\n\n{traceback}")
    return with_cause(error, remote_cause(traceback))


def lethal_function(function: str, index: int) -> BaseException:
    """Return the error of an item that is not sent, because its function kills the workers that unpickle it."""
    from pairpool.errors import WorkerDied

    reason = "every worker that unpickled the function died of it, one after the other"
    return WorkerDied(function, index, reason=reason, doing="unpickling the function of")


def died_at_startup(count: int) -> BaseException:
    """Return the error of a pool in which `count` workers in a row ended before they received anything."""
    from pairpool.errors import BrokenExecutor

    return BrokenExecutor(
        f"{count} workers in a row ended before they could receive anything; "
        "something on this machine kills them as they start"
    )
