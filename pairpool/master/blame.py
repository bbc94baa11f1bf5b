"""What a result packet or a dead worker says about each item: values, errors, and who is to blame."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

from pairpool import kernel, worker
from pairpool.failures import Failure, Fault
from pairpool.master.jobs import Batch
from pairpool.wire.board import State, Word
from pairpool.wire.channel import Header
from pairpool.wire.codec import BULK, each_item, load_item
from pairpool.worker import STACK_ROOM, Flag

if TYPE_CHECKING:
    from pairpool.master.crew import Member

__all__ = [
    "Death",
    "abandoned",
    "cancelled",
    "initializer_died",
    "initializer_failed",
    "left_by",
    "lethal_function",
    "read_outcome",
    "stillborn",
    "terminated",
]

Outcome = tuple[list[Any], dict[int, BaseException], list[Failure]]

_DOING = {
    State.LOADING: "unpickling the argument of",
    State.RUNNING: "running",
    State.SAVING: "pickling the result of",
    State.SENDING: "sending the result of",
}


def read_outcome(header: Header, content: memoryview) -> Outcome:
    """The values, the errors by offset, and the failures for want of something that may go by value."""
    failures: list[Failure] = []
    if header.flags & Flag.FAILURES:
        failures = [Failure(*one) for one in pickle.loads(content[: header.split])]
        content = content[header.split :]
    values: list[Any] = []
    failed: dict[int, BaseException] = {}
    if not len(content):
        values = [None] * header.items
    elif header.format == BULK:
        values = pickle.loads(content)
    else:
        for offset, (pickled, buffers) in enumerate(each_item(content)):
            try:
                values.append(load_item(pickled, buffers) if pickled else None)
            except Exception as error:
                error.add_note("raised while the result of the task was unpickled")
                values.append(None)
                failed[offset] = error
    for failure in failures:
        failed[failure.offset] = error_of(failure)
    return values, failed, [one for one in failures if one.missing is not None]


def error_of(failure: Failure) -> BaseException:
    """The exception that a worker described, with the remote traceback as its cause."""
    from pairpool import errors

    error: BaseException | None = None
    reason = f"{failure.kind} cannot be pickled"
    if failure.fault == Fault.RESULT:
        error = errors.encoding_error(failure.kind, failure.text)
    elif failure.pickled is not None:
        try:
            error = pickle.loads(failure.pickled)
        except Exception as problem:
            reason = f"it could not be unpickled: {problem!r}"
    if not isinstance(error, BaseException):
        error = errors.encoding_error(reason, f"{failure.kind}: {failure.text}")
    error.__cause__ = errors.remote_cause(failure.remote)
    return error


class Death:
    """What can be told of a worker that has ended."""

    def __init__(self, member: Member, stacks: int) -> None:
        self._member = member
        words = member.slot.words
        self.state = words[Word.STATE]
        self.batch = words[Word.BATCH]
        self.item = words[Word.ITEM]
        self.function = words[Word.FUNCTION]
        self.status = kernel.exit_status(member.pidfd.fileno())
        room = os.pread(stacks, STACK_ROOM, member.number * STACK_ROOM)
        self.stack = _task_frames(room.split(b"\0", 1)[0].decode("utf-8", "replace"))

    @property
    def exitcode(self) -> int | None:
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)

    @property
    def reason(self) -> str:
        return kernel.describe_status(self.status)

    @property
    def function_being_loaded(self) -> int | None:
        return self.function if self.state == State.FUNCTION else None

    def culprit(self, batch: Batch, unfinished: list[Batch]) -> int | None:
        """The offset of the item of `batch` that was being dealt with; None if none was, or it cannot be told."""
        if batch.number != self.batch:
            was_before = self.batch in [one.number for one in unfinished[unfinished.index(batch) + 1 :]]
            return 0 if was_before and batch.count == 1 else None
        offset = self.item - batch.first
        if self.state in (State.LOADING, State.RUNNING, State.SAVING) and 0 <= offset < batch.count:
            return offset
        return 0 if self.is_in_doubt(batch) and batch.count == 1 else None

    def is_in_doubt(self, batch: Batch) -> bool:
        """Whether the worker was busy with the batch as a whole."""
        return batch.number == self.batch and self.state in (State.LOADING, State.SAVING, State.SENDING)

    def error(self, function: str, index: int) -> BaseException:
        from pairpool.errors import WorkerDied

        doing = _DOING.get(self.state, "running")
        return WorkerDied(
            function, index, self._member.number, self._member.pid, self.exitcode, self.reason, self.stack, doing
        )

    def __str__(self) -> str:
        return f"worker {self._member.number} (pid {self._member.pid}) ended with {self.reason}"


def _task_frames(stack: str) -> str:
    """A faulthandler report without the frames below the task: those are the worker's, and how it was forked."""
    lines = stack.splitlines()
    for position, line in enumerate(lines):
        if f'"{worker.__file__}"' in line:
            return "\n".join(lines[:position])
    return stack


def terminated() -> BaseException:
    from pairpool.errors import CancelledError

    return CancelledError("the pool was terminated before this task ended")


def cancelled() -> BaseException:
    from pairpool.errors import CancelledError

    return CancelledError("the call was cancelled")


def left_by(error: BaseException) -> BaseException:
    from pairpool.errors import CancelledError

    return CancelledError(f"the call was left by {type(error).__name__}")


def abandoned() -> BaseException:
    from pairpool.errors import CancelledError

    return CancelledError("the iterator over the results was dropped")


def initializer_failed(traceback: str) -> BaseException:
    from pairpool.errors import InitializerFailed, remote_cause

    error = InitializerFailed(f"the initializer raised in a worker\n\n{traceback}")
    error.__cause__ = remote_cause(traceback)
    return error


def initializer_died(death: Death) -> BaseException:
    from pairpool.errors import InitializerFailed

    text = f"{death} in the initializer"
    return InitializerFailed(f"{text}\n\n{death.stack}" if death.stack else text)


def lethal_function(function: str, index: int) -> BaseException:
    from pairpool.errors import WorkerDied

    reason = "every worker that unpickled the function died of it, one after the other"
    return WorkerDied(function, index, -1, 0, None, reason, doing="unpickling the function of")


def stillborn(count: int) -> BaseException:
    from pairpool.errors import BrokenExecutor

    return BrokenExecutor(
        f"{count} workers in a row ended before they could receive anything; "
        "something on this machine kills them as they start"
    )
