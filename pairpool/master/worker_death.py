"""What a result packet or a dead worker says about each item: values, errors, and who is to blame."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pairpool.linux import pidfds
from pairpool.linux.cgroup import OomCounter
from pairpool.linux.interrupts import is_own
from pairpool.linux.memory import format_size
from pairpool.master.jobs.base import Batch
from pairpool.scoreboard.board import State, Word
from pairpool.scoreboard.fault_stacks import read_fault_stack, task_frames
from pairpool.transport import fd_passing
from pairpool.transport.failures import Failure, Fault, error_for_each
from pairpool.transport.payload import EACH, each_item, load_all, load_item
from pairpool.transport.protocol import Flag, ResultPacket
from pairpool.transport.stamps import Stamps

if TYPE_CHECKING:
    from pairpool.master.workers import WorkerHandle

__all__ = [
    "Death",
    "KillReason",
    "abandoned",
    "cancelled",
    "cut_outcome",
    "initializer_died",
    "initializer_failed",
    "left_by",
    "lethal_function",
    "read_outcome",
    "stillborn",
    "terminated",
    "without_first",
]

Outcome = tuple[list[Any], dict[int, BaseException], list[Failure], Stamps | None]

_DOING = {
    State.LOADING: "unpickling the argument of",
    State.RUNNING: "running",
    State.SAVING: "pickling the result of",
    State.KEEPING: "pickling the result of",
    State.SENDING: "sending the result of",
}


def read_outcome(
    packet: ResultPacket, content: memoryview, has_a_reader: Callable[[int], bool] | None = None
) -> Outcome:
    """The values, the errors by offset, the failures that another try may mend, and the stamps.

    Args:
        has_a_reader: tells by its offset whether an item's value is wanted, where it has descriptors; else it is None.
    """
    failures: list[Failure] = []
    stamps = None
    if packet.flags & Flag.STAMPED:
        size = Stamps.size(packet.item_count)
        stamps, content = Stamps.unpack(content[:size]), content[size:]
    if packet.flags & Flag.FAILURES:
        failures = [Failure(*one) for one in pickle.loads(content[: packet.failures_size])]
        content = content[packet.failures_size :]
    values: list[Any] = []
    failed: dict[int, BaseException] = {}
    if not len(content):
        values = [None] * packet.item_count
    elif packet.format != EACH:
        try:
            values = load_all(packet.format, content)
        except BaseException as error:  # no memory for them, or no numpy here
            if not is_own(error):
                raise
            values = [None] * packet.item_count
            failed = dict(enumerate(error_for_each(error, packet.item_count)))
    else:
        for offset, (pickled, buffers, place) in enumerate(each_item(content)):
            is_read = has_a_reader is None or has_a_reader(offset)
            try:
                if packet.descriptors:
                    fd_passing.begin(place)
                values.append(load_item(pickled, buffers) if pickled and is_read else None)
                if has_a_reader is not None:
                    fd_passing.settle()
            except BaseException as error:  # SystemExit, too: a module may call `exit` where it is imported
                if not is_own(error):
                    raise
                fd_passing.undo()
                error.add_note("raised while the result of the task was unpickled")
                values.append(None)
                failed[offset] = error
    for failure in failures:
        failed[failure.offset] = error_of(failure)
    return values, failed, [one for one in failures if one.missing is not None or one.fault == Fault.ROOM], stamps


def cut_outcome(packet: ResultPacket) -> Outcome:
    """What becomes of results that have come without their descriptors."""
    error = fd_passing.table_is_full("the result of the task could not be received")
    return [None] * packet.item_count, dict(enumerate(error_for_each(error, packet.item_count))), [], None


def without_first(outcome: Outcome, count: int) -> Outcome:
    """An outcome without that of its first `count` items."""
    values, failed, missing, _stamps = outcome
    failed = {offset - count: error for offset, error in failed.items() if offset >= count}
    missing = [one._replace(offset=one.offset - count) for one in missing if one.offset >= count]
    return values[count:], failed, missing, None


def error_of(failure: Failure) -> BaseException:
    """The exception that a worker described, with the remote traceback as its cause."""
    from pairpool import errors

    error: BaseException | None = None
    reason = f"{failure.kind} cannot be pickled"
    if failure.pickled is not None:
        try:
            error = pickle.loads(failure.pickled)
        except BaseException as problem:
            if not is_own(problem):
                raise
            reason = f"it could not be unpickled: {problem!r}"
    if failure.fault == Fault.RESULT:
        error = errors.encoding_error(failure.kind, failure.text, error)
    if not isinstance(error, BaseException):
        error = errors.encoding_error(reason, f"{failure.kind}: {failure.text}")
    error.__cause__ = errors.remote_cause(failure.remote)
    return error


_AT_ITEM = (State.LOADING, State.RUNNING, State.KEEPING, State.SAVING)
"""States in which a worker may be at one item."""


class KillReason(NamedTuple):
    """Why the master itself ends a worker, and over which item."""

    batch: int
    item: int
    limit: float
    """The time limit in seconds; 0 where it is another limit."""
    cause: str
    advice: str


class Death:
    """What can be told of a worker that has ended.

    Args:
        stacks: descriptor of the memfd that holds the stacks at a fault.
        oom: tells whether the kernel has killed for want of memory.
    """

    def __init__(self, member: WorkerHandle, stacks: int, oom: OomCounter) -> None:
        self.member = member
        words = member.slot.words
        self.state = words[Word.STATE]
        self.batch = words[Word.BATCH]
        self.item = words[Word.ITEM]
        self.function = words[Word.FUNCTION]
        self.status, self.went_with_zygote = _read_status(member)
        room = read_fault_stack(stacks, member.number)
        self.stack = task_frames(room.split(b"\0", 1)[0].decode("utf-8", "replace"))
        self.cause, self.advice = self._explain(oom)

    @property
    def exitcode(self) -> int | None:
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)

    @property
    def signal(self) -> int:
        """The number of the signal that ended it; 0 if it exited, or if that is unknown."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else 0

    @property
    def reason(self) -> str:
        text = pidfds.describe_status(self.status)
        return f"{text}, sent by the pool" if self.member.doom is not None or self.member.torn else text

    @property
    def is_from_outside(self) -> bool:
        """Whether it was ended by a signal that programs do not raise by mistake."""
        return self.signal in _SENT

    @property
    def function_being_loaded(self) -> int | None:
        return self.function if self.state == State.FUNCTION else None

    def _explain(self, oom: OomCounter) -> tuple[str, str]:
        """The likely cause, and what to do."""
        doom = self.member.doom
        if doom is not None:
            return doom.cause, doom.advice
        if self.went_with_zygote:
            return "the zygote, which forks the workers, was ended, and takes all its workers with it", _ADVICE_RETRY
        number = self.signal
        if self.member.torn and number == signal.SIGKILL:
            return (
                "an exception, of a signal handler or a second Ctrl-C, struck the pool while it dealt with this worker",
                _ADVICE_RETRY,
            )
        if number == signal.SIGKILL and oom.advanced():
            return _out_of_memory(self.member.slot.words[Word.RSS], oom.limit()), _ADVICE_MEMORY
        if number in _SENT:
            return f"killed from outside: somebody sent it {signal.Signals(number).name}", _ADVICE_RETRY
        if number:
            where = _ADVICE_FAULT if "  File " in self.stack else _ADVICE_BLIND
            return _FAULTS.get(number, "a signal that nothing in the task had handled"), where
        if self.status is None:
            return "", _ADVICE_RETRY
        return "os._exit() in the task, or exit() in native code that it called", _ADVICE_EXIT

    def culprit(self, batch: Batch, unfinished: list[Batch]) -> int | None:
        """The offset of the item of `batch` that was being dealt with; None if none was, or it cannot be told."""
        if batch.number != self.batch:
            was_before = self.batch in [one.number for one in unfinished[unfinished.index(batch) + 1 :]]
            return 0 if was_before and batch.count == 1 else None
        offset = self.item - batch.first
        if self.state in _AT_ITEM and 0 <= offset < batch.count:
            return offset
        return 0 if self.is_in_doubt(batch) and batch.count == 1 else None

    def is_in_doubt(self, batch: Batch) -> bool:
        """Whether the worker was busy with the batch as a whole."""
        return batch.number == self.batch and self.state in (State.LOADING, State.SAVING, State.SENDING)

    def error(self, function: str, index: int, arguments: str) -> BaseException:
        """What the item gets to see."""
        from pairpool.errors import TaskTimeout, WorkerDied

        doing = _DOING.get(self.state, "running")
        member, doom = self.member, self.member.doom
        stack = self.stack if doom is None else self.stack.partition("\n\n")[2]  # without the words on SIGABRT
        if doom is not None and doom.limit:
            return TaskTimeout(function, index, doom.limit, member.number, member.pid, arguments, stack, doing)
        return WorkerDied(
            function,
            index,
            member.number,
            member.pid,
            self.exitcode,
            self.reason,
            stack,
            doing,
            arguments,
            signal.Signals(self.signal).name if self.signal in list(signal.Signals) else "",
            self.cause,
            self.advice,
        )

    @property
    def doom(self) -> KillReason | None:
        """Why the master ended it, if it did."""
        return self.member.doom

    @property
    def who(self) -> str:
        return f"worker {self.member.number} (pid {self.member.pid})"

    def __str__(self) -> str:
        return f"{self.who} ended with {self.reason}"


_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that come from other processes."""

_FAULTS: dict[int, str] = {
    signal.SIGSEGV: "a fault in native code: it touched memory that is not its own, or the stack overflowed",
    signal.SIGBUS: "a fault in native code: memory behind a mapping was gone, such as a file that was cut short",
    signal.SIGABRT: "native code called abort(), as it does when it finds its own state broken",
    signal.SIGILL: "a fault in native code: an instruction that this processor does not have",
    signal.SIGFPE: "a fault in native code: an integer divided by zero",
    signal.SIGSYS: "a system call that a filter (seccomp) forbids",
    signal.SIGXCPU: "its CPU time had passed RLIMIT_CPU",
    signal.SIGXFSZ: "a file that it wrote had passed RLIMIT_FSIZE",
    signal.SIGPIPE: "it wrote to a pipe or socket that nobody reads, with SIGPIPE not ignored",
    signal.SIGALRM: "a timer that the task had set went off, with no handler",
}

_ADVICE_RETRY = "nothing in the task need be wrong: retries=1 would run such items again"
_ADVICE_MEMORY = "use fewer workers or smaller items; memory_limit= ends such items before the kernel does"
_ADVICE_FAULT = "look at the native code that the stack below leads to; retries= helps only if the fault is a rare one"
_ADVICE_BLIND = "look at the native code that the task calls; retries= helps only if the fault is a rare one"
_ADVICE_EXIT = "raise an exception instead, which the caller gets; sys.exit() is such a one"


def _out_of_memory(rss: int, limit: int | None) -> str:
    text = "out of memory: the kernel's OOM killer ended it"
    if rss:
        text += f"; it last used {format_size(rss)}"
    return f"{text}; the cgroup's limit is {format_size(limit)}" if limit else text


def _read_status(member: WorkerHandle) -> tuple[int | None, bool]:
    """The wait status of a worker, and whether it ended because its zygote had.

    The status is filed when a process is reaped. The kernel does that for a zygote that ignores SIGCHLD; once that is
    gone it is up to whoever adopts orphans, at any time.
    """
    pidfd = member.pidfd.fileno()
    status = pidfds.exit_status(pidfd, 0.0)
    if status is None and not member.zygote.is_gone:
        status = pidfds.exit_status(pidfd)
    if status in (None, int(signal.SIGKILL)) and member.zygote.is_gone:
        return int(signal.SIGKILL), True  # which is what PDEATHSIG sends
    return status, False


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

    text = f"{death.who}: the initializer" if death.doom else f"{death} in the initializer: "
    text += death.cause
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
