"""The exceptions of pairpool: what failed, on which task and worker, why, and what to do.

Errors that `multiprocessing` has already named are raised as its own classes, so that existing handlers catch
them; its modules are imported only when such an error is needed.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any

__all__ = [
    "BrokenExecutor",
    "CancelledError",
    "InitializerFailed",
    "LargeCaptureWarning",
    "PoolInherited",
    "WorkerDied",
    "encoding_error",
    "remote_cause",
    "timeout_error",
]


class WorkerDied(BrokenExecutor):
    """The worker process that was running this task ended before the task did. Only this task failed.

    Attributes:
        function: qualified name of the task's function.
        index: position of the item in the call's input (0 for a single call).
        worker: number of the worker in its pool; -1 where it is not about a single one.
        pid: its process id.
        exitcode: exit status, or the negated signal number as in `multiprocessing.Process.exitcode`; None if the
            kernel does not tell (before Linux 6.15).
        reason: the exit in words, such as `signal SIGSEGV` or `exit status 3`.
        stack: the Python stack at a fault in native code, as text; empty where there is none.
    """

    def __init__(
        self,
        function: str,
        index: int,
        worker: int,
        pid: int,
        exitcode: int | None,
        reason: str,
        stack: str = "",
        doing: str = "running",
    ) -> None:
        self.function = function
        self.index = index
        self.worker = worker
        self.pid = pid
        self.exitcode = exitcode
        self.reason = reason
        self.stack = stack
        self.doing = doing
        super().__init__(function, index, worker, pid, exitcode, reason, stack, doing)

    def __str__(self) -> str:
        if self.worker < 0:
            return f"item {self.index} of {self.function} was not run: {self.reason}"
        text = (
            f"worker {self.worker} (pid {self.pid}) ended with {self.reason} while {self.doing} "
            f"item {self.index} of {self.function}; only this item failed"
        )
        return f"{text}\n\n{self.stack.rstrip()}" if self.stack else text


class InitializerFailed(BrokenExecutor):
    """The pool's initializer raised or ended its worker; the pool runs nothing. The text holds the remote traceback."""


class PoolInherited(RuntimeError):
    """A pool was used in a process that was forked off its owner: the copy there is inert."""


class LargeCaptureWarning(UserWarning):
    """A function drags more than 1 MiB of captured data along to every worker."""


def timeout_error() -> Exception:
    """A `multiprocessing.TimeoutError`, without text as there."""
    from multiprocessing import TimeoutError

    return TimeoutError()


def encoding_error(reason: str, value: str) -> Exception:
    """A `multiprocessing.pool.MaybeEncodingError` from the texts of the reason and the value."""
    import multiprocessing.pool

    names: Any = multiprocessing.pool
    error: Exception = names.MaybeEncodingError("", "")
    error.__dict__.update(exc=reason, value=value)
    error.args = (reason, value)
    return error


def remote_cause(traceback: str) -> Exception:
    """A `multiprocessing.pool.RemoteTraceback` that shows the traceback as multiprocessing does."""
    import multiprocessing.pool

    names: Any = multiprocessing.pool
    cause: Exception = names.RemoteTraceback(f'\n"""\n{traceback}"""')
    return cause
