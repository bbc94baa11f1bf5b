"""The plan of a campaign: a seed determines all tasks, and the calls that run them. No clock and no state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from enum import IntEnum
from hashlib import shake_128
from itertools import accumulate
from typing import NamedTuple

__all__ = ["PlannedCall", "TaskKind", "LETHAL", "Plan", "Slice", "Task", "content"]

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MAX_TASKS_PER_SLICE = 5000

SLICE_BYTES = 16 << 20
"""Bytes of payload after which a slice ends. They bound the memory of a client."""

BLOCK_BYTES = 4093
"""Bytes after which a payload repeats: a prime, so that all pages are different."""


class TaskKind(IntEnum):
    """The kinds of tasks."""

    NOOP = 0
    CPU = 1
    GRIND = 2  # a computation of several ms
    SLEEP = 3
    ECHO = 4  # payloads of up to 64 KiB, in both directions
    BULK = 5  # payloads of up to 32 MiB, in both directions
    RAISE = 6
    BULK_RAISE = 7  # an exception with a message of several MiB
    BAD_RESULT = 8  # a result that cannot be pickled
    PRINT = 9
    RUN = 10  # a program that the task waits for
    FORK = 11  # a forked child that the task waits for
    LEAVE_PROGRAM = 12  # a program that the task leaves behind
    LEAVE_CHILD = 13  # a forked child that the task leaves behind
    EXIT = 14
    ABORT = 15
    SEGFAULT = 16
    SUICIDE = 17  # the task sends SIGKILL to its own process
    TIMEOUT = 18  # the task sleeps for ever, and has a task_timeout


LETHAL = frozenset({TaskKind.EXIT, TaskKind.ABORT, TaskKind.SEGFAULT, TaskKind.SUICIDE})

_PER_MILLION = {
    TaskKind.CPU: 270_000,
    TaskKind.GRIND: 4_000,
    TaskKind.SLEEP: 12_000,
    TaskKind.ECHO: 110_000,
    TaskKind.BULK: 500,
    TaskKind.RAISE: 38_000,
    TaskKind.BULK_RAISE: 60,
    TaskKind.BAD_RESULT: 500,
    TaskKind.PRINT: 10_000,
    TaskKind.RUN: 300,
    TaskKind.FORK: 150,
    TaskKind.LEAVE_PROGRAM: 60,
    TaskKind.LEAVE_CHILD: 60,
    TaskKind.EXIT: 300,
    TaskKind.ABORT: 150,
    TaskKind.SEGFAULT: 150,
    TaskKind.SUICIDE: 100,
    TaskKind.TIMEOUT: 100,
}
"""Tasks of each kind per million tasks. The rest is `NOOP`."""

_KINDS = [*_PER_MILLION, TaskKind.NOOP]
_KIND_BOUNDS = [(bound << 20) // 1_000_000 for bound in accumulate(_PER_MILLION.values())]


class Task(NamedTuple):
    """One task.

    Attributes:
        number: the index of the task in the campaign.
        amount: steps, microseconds, exit status or kind of exception, depending on the kind of the task.
        send: bytes of payload in its argument.
        reply: bytes of payload in its result.
    """

    number: int
    kind: TaskKind
    amount: int = 0
    send: int = 0
    reply: int = 0


class PlannedCall(IntEnum):
    """The method of the pool that a slice goes through."""

    MAP = 0
    STARMAP = 1
    IMAP = 2
    IMAP_UNORDERED = 3
    MAP_ASYNC = 4
    STARMAP_ASYNC = 5
    APPLY = 6
    APPLY_ASYNC = 7


_MAX_TASKS_PER_CALL = {PlannedCall.APPLY: 8, PlannedCall.APPLY_ASYNC: 400}


class Slice(NamedTuple):
    """Tasks that a client runs with one method of the pool.

    Attributes:
        function: 0 for a function by name, 1 for a lambda, 2 for a partial.
        bare: whether to call without `return_exceptions`, if that loses no outcome.
    """

    tasks: list[Task]
    call: PlannedCall
    function: int
    bare: bool


def mix(number: int) -> int:
    """Return 64 mixed bits of a number: the finalizer of splitmix64 (Steele, Lea, Flood 2014)."""
    number = (number + GOLDEN) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


def between(low: int, high: int, bits: int) -> int:
    """Return a number from `low` to `high` for 16 random bits. Its logarithm is distributed evenly."""
    return min(high, int(low * ((high + 1) / low) ** (bits / 65536)))


def content(index: int, salt: int, size: int) -> bytes:
    """Return the payload of a task. `salt` is 0 for its argument and 1 for its result."""
    block = shake_128(b"%d %d" % (index, salt)).digest(min(size, BLOCK_BYTES))
    return block if size <= BLOCK_BYTES else (block * (size // BLOCK_BYTES + 1))[:size]


class Plan:
    """The tasks and slices of a seed.

    Args:
        seed: a number, of which the lowest 64 bits are used.
        tasks: the number of tasks.
        timeouts: whether there are tasks that time out.
    """

    def __init__(self, seed: int, tasks: int, *, timeouts: bool) -> None:
        self.seed = seed
        self.tasks = tasks
        self.timeouts = timeouts
        self._base = mix(mix(seed))
        self._most = max(1, min(MAX_TASKS_PER_SLICE, tasks // 20))

    def task(self, index: int) -> Task:
        """Return the task with this number."""
        bits = mix(self._base + index * GOLDEN)
        kind = _KINDS[bisect_right(_KIND_BOUNDS, bits & 0xFFFFF)]
        if kind is TaskKind.NOOP or (kind is TaskKind.TIMEOUT and not self.timeouts):
            return Task(index, TaskKind.NOOP)
        bits >>= 20
        first, second, ways = bits & 0xFFFF, bits >> 16 & 0xFFFF, bits >> 32
        if kind is TaskKind.CPU:
            return Task(index, kind, between(10, 2000, first))
        if kind is TaskKind.GRIND:
            return Task(index, kind, between(20_000, 200_000, first))
        if kind is TaskKind.SLEEP:
            return Task(index, kind, between(50, 4000, first))
        if kind in (TaskKind.ECHO, TaskKind.BULK):
            low, high = (1, 1 << 16) if kind is TaskKind.ECHO else (1 << 16, 32 << 20)
            send, reply = between(low, high, first), between(low, high, second)
            return Task(index, kind, 0, send * (ways % 3 != 0), reply * (ways % 3 != 1))
        if kind is TaskKind.BULK_RAISE:
            return Task(index, kind, between(1 << 16, 8 << 20, first))
        return Task(index, kind, first)

    def slices(self) -> Iterator[Slice]:
        """Yield all tasks, in slices of 1 to `MAX_TASKS_PER_SLICE` tasks."""
        index = number = 0
        while index < self.tasks:
            bits = mix(self._base ^ mix(~number & MASK))
            call = PlannedCall(bits & 7)
            most = between(1, min(self._most, _MAX_TASKS_PER_CALL.get(call, self._most)), bits >> 8 & 0xFFFF)
            tasks: list[Task] = []
            volume = 0
            while len(tasks) < most and index < self.tasks and volume < SLICE_BYTES:
                task = self.task(index)
                volume += task.send + task.reply
                tasks.append(task)
                index += 1
            yield Slice(tasks, call, max(0, (bits >> 24 & 15) - 13), bool(bits >> 30 & 1))
            number += 1
