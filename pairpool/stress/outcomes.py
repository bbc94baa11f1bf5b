"""Judge one outcome: is it the outcome that the seed predicts for this task?"""

from __future__ import annotations

import re
import signal
import zlib
from enum import Enum
from typing import Any, NamedTuple

from pairpool import errors
from pairpool.errors import WorkerDied
from pairpool.stress import task_errors
from pairpool.stress.plan import LETHAL, Task, TaskKind, content

__all__ = ["Finding", "Judgement", "index_of", "judge"]


class Finding(Enum):
    """The judgement of an outcome, in one word."""

    PREDICTED = "as predicted"
    DIED = "WorkerDied"  # the end of the campaign shows whether a kill explains it
    WRONG = "wrong"


class Judgement(NamedTuple):
    """A finding. If the worker died: its pid and exit status. If the outcome is wrong: a text that says why."""

    finding: Finding
    text: str = ""
    pid: int = 0
    exitcode: int | None = None


_AS_PREDICTED = Judgement(Finding.PREDICTED)
_TOKEN = re.compile(r"<task (\d+)>")


def index_of(outcome: Any) -> int | None:
    """Return the number of the task that an outcome names; None if it names none."""
    if isinstance(outcome, BaseException):
        found = _TOKEN.search(_text_of(outcome)[:1000])
        return int(found[1]) if found else None
    index = outcome[0] if type(outcome) is tuple and outcome else outcome
    return index if type(index) is int else None


def _text_of(error: BaseException) -> str:
    return f"{error} {error.args!r}" if len(str(error)) < 10_000 else str(error)


def judge(task: Task, outcome: Any) -> Judgement:
    """Compare an outcome, which is a value or an exception, with the predicted one."""
    if isinstance(outcome, WorkerDied):
        return _judge_death(task, outcome)
    check = _is_right_error if isinstance(outcome, BaseException) else _is_right_value
    is_right = check(task, outcome)
    return _AS_PREDICTED if is_right else Judgement(Finding.WRONG, f"ended with {_short(outcome)}")


def _short(outcome: Any) -> str:
    text = repr(outcome)
    return text if len(text) < 300 else f"{text[:300]}... ({len(text)} characters)"


# --- values -------------------------------------------------------------------------------------------


def _is_right_value(task: Task, value: Any) -> bool:
    index, kind, amount, send, reply = task
    if kind in (TaskKind.CPU, TaskKind.GRIND):
        return bool(value == (index, (amount - 1) * amount * (2 * amount - 1) // 6))
    if kind in (TaskKind.ECHO, TaskKind.BULK):
        seen = (send, zlib.crc32(content(index, 0, send))) if send else None
        if type(value) is not tuple or len(value) != 3 or value[:2] != (index, seen):
            return False
        return bool(value[2] == (content(index, 1, reply) if reply else None))
    if kind in (TaskKind.RAISE, TaskKind.BULK_RAISE, TaskKind.BAD_RESULT, TaskKind.TIMEOUT) or kind in LETHAL:
        return False
    return type(value) is int and value == index


# --- exceptions ---------------------------------------------------------------------------------------


def _is_right_error(task: Task, error: BaseException) -> bool:
    if task.kind is TaskKind.TIMEOUT:
        return isinstance(error, getattr(errors, "TaskTimeout", ()))
    if task.kind is TaskKind.BAD_RESULT:
        return _is_encoding_error(task, error)
    if task.kind is TaskKind.BULK_RAISE:
        return type(error) is ValueError and error.args == (task_errors.token(task.number) + "x" * task.amount,)
    if task.kind is not TaskKind.RAISE:
        return False
    predicted = task_errors.make(task.number, task.amount % task_errors.FLAVOURS)
    if isinstance(predicted, task_errors.Attached):
        return _is_encoding_error(task, error)
    cause = "" if predicted.__cause__ is None else str(predicted.__cause__)
    return signature(error) == signature(predicted) and cause in str(error.__cause__)


def _is_encoding_error(task: Task, error: BaseException) -> bool:
    return type(error).__name__ == "MaybeEncodingError" and task_errors.token(task.number) in _text_of(error)


def signature(error: BaseException) -> object:
    """Return the parts of an exception that must survive its way from the worker."""
    attributes = sorted((name, repr(value)) for name, value in vars(error).items())
    inner = [signature(one) for one in error.exceptions] if isinstance(error, BaseExceptionGroup) else []
    arguments = error.args[:1] if inner else error.args
    return type(error), repr(arguments), str(error), attributes, inner


# --- deaths -------------------------------------------------------------------------------------------

_EXIT_STATUSES = {
    TaskKind.ABORT: -signal.SIGABRT,
    TaskKind.SEGFAULT: -signal.SIGSEGV,
    TaskKind.SUICIDE: -signal.SIGKILL,
}


def _judge_death(task: Task, error: WorkerDied) -> Judgement:
    """Judge a death by its exit status. A death without a status may be the task's own (kernels before 6.15)."""
    if task.kind in LETHAL:
        own = _EXIT_STATUSES.get(task.kind, task.amount % 256)
        has_stack = bool(error.stack) or task.kind not in (TaskKind.ABORT, TaskKind.SEGFAULT)
        if error.exitcode is None or (error.exitcode == own and has_stack):
            return _AS_PREDICTED
    return Judgement(Finding.DIED, str(error).partition("\n")[0], error.pid, error.exitcode)
