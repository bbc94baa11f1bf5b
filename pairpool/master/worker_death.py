"""Find out why a worker ended and which item it was at.

The evidence, all of which outlives the worker:

- the worker's slot of the scoreboard: the state, the batch, the item and the function that it was at;
- the wait status, which the kernel reports through the pidfd;
- the stacks that faulthandler wrote at a fault in native code;
- the kernel's count of out-of-memory kills;
- the master's own reason, if the master killed the worker.
"""

from __future__ import annotations

import os
import signal

from pairpool.linux import pidfds
from pairpool.linux.cgroup import OomCounter
from pairpool.linux.memory import format_size
from pairpool.master.jobs.base import Batch
from pairpool.master.kill_reason import KillReason
from pairpool.master.workers import WorkerHandle
from pairpool.scoreboard.board import State, Word
from pairpool.scoreboard.fault_stacks import read_fault_stack, task_frames
from pairpool.scoreboard.stacks import printable

__all__ = ["WorkerDeath"]

_DOING = {
    State.LOADING: "unpickling the argument of",
    State.RUNNING: "running",
    State.SAVING: "pickling the result of",
    State.KEEPING: "pickling the result of",
    State.SENDING: "sending the result of",
}


_AT_ITEM = (State.LOADING, State.RUNNING, State.KEEPING, State.SAVING)
"""States in which a worker may be at one item."""


class WorkerDeath:
    """The death of a worker: how it ended, the likely cause, and what the worker was at.

    Args:
        stacks: descriptor of the memfd to which workers write their stacks at a fault.
        oom: the kernel's count of out-of-memory kills.

    Attributes:
        worker: the handle of the dead worker.
        stack: the Python stack at a fault in native code; empty if there is none.
        went_with_zygote: whether the worker ended because its zygote ended.
        cause: the likely cause in words.
        advice: what the caller can do, in one line.
    """

    def __init__(self, worker: WorkerHandle, stacks: int, oom: OomCounter) -> None:
        self.worker = worker
        words = worker.slot.words
        self._state = words[Word.STATE]
        self._batch = words[Word.BATCH]
        self._item = words[Word.ITEM]
        self._function = words[Word.FUNCTION]
        self._status, self.went_with_zygote = _read_status(worker)
        report = read_fault_stack(stacks, worker.number)
        self.stack = task_frames(printable(report.split(b"\0", 1)[0].decode("utf-8", "replace")))
        self.cause, self.advice = self._explain(oom)

    @property
    def is_at_startup(self) -> bool:
        """Whether the worker ended before its initializer had returned."""
        return not self.worker.started

    @property
    def exitcode(self) -> int | None:
        """The exit status, or the negated signal number; None if the kernel does not tell."""
        return None if self._status is None else os.waitstatus_to_exitcode(self._status)

    @property
    def signal(self) -> int:
        """The number of the signal that ended the worker; 0 if the worker exited, or if the status is unknown."""
        return os.WTERMSIG(self._status) if self._status is not None and os.WIFSIGNALED(self._status) else 0

    @property
    def reason(self) -> str:
        """The exit in words, such as `signal SIGSEGV`."""
        text = pidfds.describe_status(self._status)
        return f"{text}, sent by the pool" if self.kill_reason is not None or self.worker.inconsistent else text

    @property
    def kill_reason(self) -> KillReason | None:
        """Why the master killed the worker; None if the master did not."""
        return self.worker.kill_reason

    @property
    def is_from_outside(self) -> bool:
        """Whether the worker was ended by a signal that programs do not raise by mistake."""
        return self.signal in _SENT

    @property
    def function_being_loaded(self) -> int | None:
        """The number of the function that the worker was unpickling; None if it was not unpickling a function."""
        return self._function if self._state == State.FUNCTION and self.kill_reason is None else None

    @property
    def blamed_batch(self) -> int:
        """The number of the batch that is to blame if it is not known which of its items; 0 if the item is known."""
        reason = self.kill_reason
        if reason is not None:
            return reason.batch if reason.blames_batch else 0
        return self._batch if self._state == State.CHANNEL_LOST else 0

    def _explain(self, oom: OomCounter) -> tuple[str, str]:
        """Return the likely cause, and the advice."""
        if self.kill_reason is not None:
            return self.kill_reason.cause, self.kill_reason.advice
        if self.went_with_zygote:
            return "the zygote, which forks the workers, was ended, and takes all its workers with it", _ADVICE_RETRY
        if self._state == State.CHANNEL_LOST:
            return "a task closed the descriptor of its worker's channel, or put another file in its place", _ADVICE_FD
        number = self.signal
        if self.worker.inconsistent and number == signal.SIGKILL:
            return (
                "an exception, of a signal handler or a second Ctrl-C, struck the pool while it dealt with this worker",
                _ADVICE_RETRY,
            )
        if number == signal.SIGKILL and oom.advanced():
            return _out_of_memory(self.worker.slot.own[Word.RSS], oom.limit()), _ADVICE_MEMORY
        if number in _SENT:
            return f"killed from outside: somebody sent it {signal.Signals(number).name}", _ADVICE_RETRY
        if number:
            advice = _ADVICE_FAULT if "  File " in self.stack else _ADVICE_FAULT_NO_STACK
            return _FAULTS.get(number, "a signal that nothing in the task had handled"), advice
        if self._status is None:
            return "", _ADVICE_RETRY
        return "os._exit() in the task, or exit() in native code that it called", _ADVICE_EXIT

    def failed_item(self, batch: Batch, unfinished: list[Batch]) -> int | None:
        """Return the offset of the item of `batch` that the worker was at; None if there is none, or it is unknown.

        Args:
            unfinished: all batches that the worker had read and not reported, in order.
        """
        if self.blamed_batch:
            return 0 if self.is_in_doubt(batch) and batch.count == 1 else None
        if batch.number != self._batch:
            is_earlier = self._batch in [one.number for one in unfinished[unfinished.index(batch) + 1 :]]
            return 0 if is_earlier and batch.count == 1 else None
        offset = self._item - batch.first
        if self._state in _AT_ITEM and 0 <= offset < batch.count:
            return offset
        return 0 if self.is_in_doubt(batch) and batch.count == 1 else None

    def is_in_doubt(self, batch: Batch) -> bool:
        """Whether the worker was at the batch as a whole, so that any of its items may have ended the worker."""
        if self.blamed_batch:
            return batch.number == self.blamed_batch
        return batch.number == self._batch and self._state in (State.LOADING, State.SAVING, State.SENDING)

    def error(self, function: str, index: int, arguments: str) -> BaseException:
        """Return the error of the item that the worker was at.

        Args:
            function: name of the item's function.
            index: position of the item in its call.
            arguments: short repr of the item.
        """
        from pairpool.errors import DeathDetails, TaskTimeout, WorkerDied

        doing = _DOING.get(self._state, "running")
        worker, reason = self.worker, self.kill_reason
        # A worker that the master aborts writes a first paragraph about SIGABRT, which tells the user nothing.
        stack = self.stack if reason is None else self.stack.partition("\n\n")[2]
        details = DeathDetails(
            exitcode=self.exitcode,
            reason=self.reason,
            signal=signal.Signals(self.signal).name if self.signal in list(signal.Signals) else "",
            cause=self.cause,
            advice=self.advice,
            arguments=arguments,
            doing=doing,
            stack=stack,
        )
        if reason is not None and reason.limit_s:
            return TaskTimeout(function, index, reason.limit_s, worker.number, worker.pid, arguments, stack, doing)
        return WorkerDied(function, index, worker.number, worker.pid, *details)

    def initializer_error(self) -> BaseException:
        """Return the error of a pool whose worker ended in the initializer."""
        from pairpool.errors import InitializerFailed

        text = f"{self._who}: the initializer" if self.kill_reason else f"{self} in the initializer: "
        text += self.cause
        return InitializerFailed(f"{text}\n\n{self.stack}" if self.stack else text)

    @property
    def _who(self) -> str:
        return f"worker {self.worker.number} (pid {self.worker.pid})"

    def __str__(self) -> str:
        return f"{self._who} ended with {self.reason}"


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
_ADVICE_FAULT_NO_STACK = "look at the native code that the task calls; retries= helps only if the fault is a rare one"
_ADVICE_FD = "look for a descriptor that is closed twice, or closed by somebody who has not opened it"
_ADVICE_EXIT = "raise an exception instead, which the caller gets; sys.exit() is such a one"


def _out_of_memory(rss: int, limit: int | None) -> str:
    text = "out of memory: the kernel's OOM killer ended it"
    if rss:
        text += f"; it last used {format_size(rss)}"
    return f"{text}; the cgroup's limit is {format_size(limit)}" if limit else text


def _read_status(dead: WorkerHandle) -> tuple[int | None, bool]:
    """Return the wait status of a worker, and whether the worker ended because its zygote ended.

    The kernel records the status when the process is reaped. It reaps the children of a zygote at once, because
    zygotes ignore SIGCHLD. If the zygote is gone, the process that adopts orphans reaps them, at any time.
    """
    pidfd = dead.pidfd.fileno()
    status = pidfds.exit_status(pidfd, 0.0)
    if status is None and not dead.zygote.is_gone:
        status = pidfds.exit_status(pidfd)
    if status in (None, int(signal.SIGKILL)) and dead.zygote.is_gone:
        return int(signal.SIGKILL), True  # PDEATHSIG is SIGKILL
    return status, False
