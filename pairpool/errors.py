"""The exceptions of pairpool. Their texts say what failed, which task and worker it was, the cause, and what to try.

If `multiprocessing` has a class for an error, pairpool raises that class, so that existing handlers catch it. Its
modules are imported only when such an error occurs.
"""

from __future__ import annotations

import sys
from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "BrokenExecutor",
    "CancelledError",
    "ClusterMismatch",
    "InitializerFailed",
    "LargeCaptureWarning",
    "PoolInherited",
    "TaskTimeout",
    "WorkerDied",
    "encoding_error",
    "remote_cause",
    "remote_text",
    "timeout_error",
    "with_cause",
]

E = TypeVar("E", bound=BaseException)


class DeathDetails(NamedTuple):
    """The details of the end of a worker; see the attributes of `WorkerDied`."""

    exitcode: int | None = None
    reason: str = ""
    stack: str = ""
    doing: str = "running"
    arguments: str = ""
    signal: str = ""
    cause: str = ""
    advice: str = ""


class TimeoutDetails(NamedTuple):
    """The details of a task that exceeded its time limit; see the attributes of `TaskTimeout`."""

    arguments: str = ""
    stack: str = ""
    doing: str = "running"


class WorkerDied(BrokenExecutor):
    """The worker process that was running this task ended before the task did. Only this task failed.

    The arguments of the constructor after `pid` are `exitcode`, `reason`, `stack`, `doing`, `arguments`, `signal`,
    `cause` and `advice`, by position or by name.

    Attributes:
        function: qualified name of the task's function.
        index: position of the item in the call's input (0 for a single call).
        arguments: short repr of the item, or of a single call's arguments.
        worker: number of the worker in its pool; -1 if the error is not about one worker.
        pid: process id of the worker.
        exitcode: exit status, or the negated signal number as in `multiprocessing.Process.exitcode`; None if the
            kernel does not tell (before Linux 6.15).
        signal: name of the signal that ended the worker, such as `SIGSEGV`; empty if the worker exited.
        reason: the exit in words, such as `signal SIGSEGV` or `exit status 3`.
        cause: the likely cause in words.
        advice: what the caller can do, in one line.
        stack: the Python stack at a fault in native code, as text; empty if there is none.
        doing: the activity that the worker did not finish: `running`, `unpickling the argument of`,
            `pickling the result of` ...
    """

    def __init__(self, function: str, index: int, worker: int = -1, pid: int = 0, *details: Any, **named: Any) -> None:
        given = DeathDetails(*details, **named)
        self.function = function
        self.index = index
        self.worker = worker
        self.pid = pid
        self.exitcode = given.exitcode
        self.signal = given.signal
        self.reason = given.reason
        self.cause = given.cause
        self.advice = given.advice
        self.arguments = given.arguments
        self.stack = given.stack
        self.doing = given.doing
        super().__init__(function, index, worker, pid, *given)

    def __str__(self) -> str:
        item = f"item {self.index} of {self.function}"
        if self.worker < 0:
            return f"{item} was not run: {self.reason}"
        text = (
            f"worker {self.worker} (pid {self.pid}) ended with {self.reason} while {self.doing} {item}; "
            "only this item failed"
        )
        return _with_details(text, arguments=self.arguments, cause=self.cause, advice=self.advice, stack=self.stack)


class TaskTimeout(TimeoutError):
    """A task ran for longer than its time limit. The task and every process that it had started were ended.

    The arguments of the constructor after `pid` are `arguments`, `stack` and `doing`, by position or by name.

    Attributes:
        function: as in `WorkerDied`, like `index`, `arguments`, `worker` and `pid`.
        stack: the Python stack of the task at its limit.
        limit: the limit in seconds.
        doing: the activity that took too long: `running`, `unpickling the argument of` or `pickling the result of`.
    """

    def __init__(
        self,
        function: str,
        index: int,
        limit: float = 0.0,
        worker: int = -1,
        pid: int = 0,
        *details: str,
        **named: str,
    ) -> None:
        given = TimeoutDetails(*details, **named)
        self.function = function
        self.index = index
        self.limit = limit
        self.worker = worker
        self.pid = pid
        self.arguments = given.arguments
        self.stack = given.stack
        self.doing = given.doing
        super().__init__()
        # Set `args` afterwards: with two or more arguments, the constructor of OSError reads an errno out of them.
        self.args = (function, index, limit, worker, pid, *given)

    def __str__(self) -> str:
        text = (
            f"item {self.index} of {self.function} was ended after {self.limit:g} s, its time limit, "
            f"while worker {self.worker} (pid {self.pid}) was {self.doing} it"
        )
        return _with_details(text, arguments=self.arguments, stack=self.stack)


def _with_details(text: str, *, stack: str, **details: str) -> str:
    lines = [text, *(f"  {name}: {value}" for name, value in details.items() if value)]
    return "\n".join([*lines, "", stack.rstrip()] if stack else lines)


class InitializerFailed(BrokenExecutor):
    """The pool's initializer raised, ended its worker, or did not return in time. The pool runs no tasks.

    The text contains the remote traceback, or the Python stack of the worker when it ended.
    """


class ClusterMismatch(RuntimeError):
    """A node of a cluster has another version of Python or pairpool than this program, or no pairpool."""


class PoolInherited(RuntimeError):
    """A pool was used in a process that is a fork of its owner. The copy of the pool there does nothing."""


class LargeCaptureWarning(UserWarning):
    """A function takes more than 1 MiB of captured data along to every worker."""


def with_cause(error: E, cause: BaseException | None) -> E:
    """Return an exception after it was given a cause, as `raise error from cause` does, but without raising it."""
    error.__cause__ = cause
    return error


def timeout_error() -> Exception:
    """Return a `multiprocessing.TimeoutError` without a text, as multiprocessing raises it."""
    from multiprocessing import TimeoutError

    return TimeoutError()


def encoding_error(reason: str, value: str, original: BaseException | None = None) -> Exception:
    """Return a `multiprocessing.pool.MaybeEncodingError`.

    Args:
        reason: the text of the reason.
        value: the repr of the value that could not be pickled.
        original: the exception that is the reason, if it could be pickled. It becomes the attribute `original`.
    """
    import multiprocessing.pool

    names: Any = multiprocessing.pool
    error: Exception = names.MaybeEncodingError("", "")
    error.__dict__.update(exc=reason, value=value, original=original)
    BaseException.__init__(error, reason, value)  # the constructor of the class would take their repr
    return error


def remote_cause(traceback: str) -> Exception:
    """Return a `multiprocessing.pool.RemoteTraceback`, which shows a traceback as multiprocessing does."""
    import multiprocessing.pool

    names: Any = multiprocessing.pool
    cause: Exception = names.RemoteTraceback(f'\n"""\n{traceback}"""')
    return cause


def remote_text(cause: BaseException | None) -> str | None:
    """Return the text of a `remote_cause`; None for any other exception."""
    module: Any = sys.modules.get("multiprocessing.pool")
    if module is None or not isinstance(cause, module.RemoteTraceback):
        return None
    return str(cause.tb)
