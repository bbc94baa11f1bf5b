"""The ledger: what has ended, and how. Its size is that of the campaign in bytes, plus the deaths."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, NamedTuple

from pairpool.stress.outcomes import Finding, judge
from pairpool.stress.plan import Task, TaskKind

__all__ = ["Breach", "Died", "Ledger"]

MOST_BREACHES = 200
"""Breaches that are kept in full; of the others, only how many."""


class Breach(NamedTuple):
    """Something that must not be.

    Attributes:
        what: its sort, such as `wrong outcome`, `ended twice`, `never ended`, `unexplained death`.
        text: what exactly.
        task: the task's index; None where it is not about one.
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


class Ledger:
    """Takes down outcomes; from any thread.

    Args:
        tasks: how many there may be.
    """

    def __init__(self, tasks: int) -> None:
        self._lock = threading.Lock()
        self._ended = bytearray(b"\xff" * tasks)  # written to, so that the memory is there from the start
        self.strict = bytearray(tasks)
        """1 for tasks that must not start twice."""
        self.dealt = 0
        self.ended = 0
        self.counts: dict[TaskKind, Counter[str]] = {kind: Counter() for kind in TaskKind}
        self.died: list[Died] = []
        self.breaches: list[Breach] = []
        self.breach_count = 0

    def deal(self, tasks: list[Task], *, strict: bool) -> None:
        """Note that these tasks, which come next, are handed to a client."""
        first, last = tasks[0].number, tasks[-1].number
        self._ended[first : last + 1] = bytes(len(tasks))
        if strict:
            self.strict[first : last + 1] = b"\1" * len(tasks)
        self.dealt = last + 1

    def end(self, task: Task, outcome: Any) -> None:
        """Note how a task ended."""
        judgement = judge(task, outcome)
        with self._lock:
            self._ended[task.number] += self._ended[task.number] < 200
            times = self._ended[task.number]
            if times == 1:
                self.ended += 1
                self.counts[task.kind]["count"] += 1
            if judgement.finding is Finding.FORETOLD:
                self.counts[task.kind]["foretold"] += times == 1
            elif judgement.finding is Finding.DIED:
                _finding, text, pid, exitcode = judgement
                self.died.append(Died(task.number, task.kind.name.lower(), pid, exitcode, text))
                self.counts[task.kind]["died"] += 1
            else:
                self._add(Breach("wrong outcome", f"{task} {judgement.text}", task.number), task.kind)
            if times > 1:
                self._add(Breach("ended twice", f"{task} ended {times} times", task.number), task.kind)

    def breach(self, what: str, text: str, task: int | None = None) -> None:
        """Note a breach."""
        with self._lock:
            self._add(Breach(what, text, task))

    def _add(self, breach: Breach, kind: TaskKind | None = None) -> None:
        self.breach_count += 1
        if kind is not None:
            self.counts[kind]["breaches"] += 1
        if len(self.breaches) < MOST_BREACHES:
            self.breaches.append(breach)

    def unended(self) -> list[int]:
        """Tasks that were dealt and never ended."""
        found = []
        at = self._ended.find(0, 0, self.dealt)
        while at >= 0:
            found.append(at)
            at = self._ended.find(0, at + 1, self.dealt)
        return found
