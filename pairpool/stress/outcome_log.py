"""The log of a campaign: which tasks have ended, and how. It needs one byte per task, and more for each death."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, NamedTuple

from pairpool.stress.outcomes import Finding, judge
from pairpool.stress.plan import Task, TaskKind

__all__ = ["Breach", "Died", "OutcomeLog"]

BREACHES_KEPT = 200
"""Breaches that are kept in full. Further breaches are only counted."""

MAX_ENDS_COUNTED = 200
"""Times that a task ended, at most, so that the count fits into a byte."""

NOT_STARTED = 0xFF
"""Count of ends of a task that no client has taken yet."""


class Breach(NamedTuple):
    """A rule of the campaign that was broken.

    Attributes:
        what: the rule, such as `wrong outcome`, `ended twice`, `never ended`, `unexplained death`.
        text: the details.
        task: the number of the task; None if the breach is about no single task.
    """

    what: str
    text: str
    task: int | None = None


class Died(NamedTuple):
    """A `WorkerDied` that a kill has to explain."""

    task: int
    kind: str
    pid: int
    exitcode: int | None
    text: str


class OutcomeLog:
    """Record outcomes. Any thread may call the methods.

    Args:
        tasks: the number of tasks in the campaign.

    Attributes:
        strict: for each task 1 if it must not start twice.
        dealt: how many tasks the clients have taken.
        ended: how many tasks have ended.
    """

    def __init__(self, tasks: int) -> None:
        self._lock = threading.Lock()
        self._ends = bytearray([NOT_STARTED]) * tasks  # written to, so that the memory is resident from the start
        self.strict = bytearray(tasks)
        self.dealt = 0
        self.ended = 0
        self.counts: dict[TaskKind, Counter[str]] = {kind: Counter() for kind in TaskKind}
        self.died: list[Died] = []
        self.breaches: list[Breach] = []
        self.breach_count = 0

    def deal(self, tasks: list[Task], *, strict: bool) -> None:
        """Record that a client takes these tasks, which follow the earlier ones."""
        first, last = tasks[0].number, tasks[-1].number
        self._ends[first : last + 1] = bytes(len(tasks))
        if strict:
            self.strict[first : last + 1] = b"\1" * len(tasks)
        self.dealt = last + 1

    def end(self, task: Task, outcome: Any) -> None:
        """Record the outcome of a task."""
        judgement = judge(task, outcome)
        with self._lock:
            self._ends[task.number] += self._ends[task.number] < MAX_ENDS_COUNTED
            times = self._ends[task.number]
            if times == 1:
                self.ended += 1
                self.counts[task.kind]["count"] += 1
            if judgement.finding is Finding.PREDICTED:
                self.counts[task.kind]["predicted"] += times == 1
            elif judgement.finding is Finding.DIED:
                _finding, text, pid, exitcode = judgement
                self.died.append(Died(task.number, task.kind.name.lower(), pid, exitcode, text))
                self.counts[task.kind]["died"] += 1
            else:
                self._add(Breach("wrong outcome", f"{task} {judgement.text}", task.number), task.kind)
            if times > 1:
                self._add(Breach("ended twice", f"{task} ended {times} times", task.number), task.kind)

    def breach(self, what: str, text: str, task: int | None = None) -> None:
        """Record a breach."""
        with self._lock:
            self._add(Breach(what, text, task))

    def death(self, died: Died) -> None:
        """Record a death that is not the outcome of a task of the plan."""
        with self._lock:
            self.died.append(died)

    def _add(self, breach: Breach, kind: TaskKind | None = None) -> None:
        self.breach_count += 1
        if kind is not None:
            self.counts[kind]["breaches"] += 1
        if len(self.breaches) < BREACHES_KEPT:
            self.breaches.append(breach)

    def unended(self) -> list[int]:
        """Return the tasks that a client has taken and that never ended."""
        found = []
        at = self._ends.find(0, 0, self.dealt)
        while at >= 0:
            found.append(at)
            at = self._ends.find(0, at + 1, self.dealt)
        return found
