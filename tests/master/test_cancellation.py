"""Calls that are cancelled at the worst moment: their worker has read them, and not begun."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pairpool.master.cancellation import Cancellation
from pairpool.master.jobs.base import Batch, Calls
from pairpool.master.jobs.call_options import CallOptions
from pairpool.transport.protocol import Mode


class Target:
    """Of a call; knows only whether it has an outcome."""

    def __init__(self) -> None:
        self.job: Any = None
        self.has_outcome = False

    def set_outcome(self, _success: bool, _value: object) -> None:
        self.has_outcome = True


class Worker:
    """Holds one batch of three calls, which it has read; plays overseer, too."""

    def __init__(self) -> None:
        self.dismissed = False
        self.targets = [Target() for _ in range(3)]
        self.job = Calls(Mode.CALL, CallOptions(chunksize=3))
        for target in self.targets:
            self.job.add(target, (1, (), {}))
        batch = self.job.take(1, 3)
        assert batch is not None
        self.held = [batch]
        self.item = -1
        self.asked: list[int | None] = []
        self.kills: list[int] = []  # where it was then

    @property
    def slot(self) -> Any:
        return SimpleNamespace(words=dict.fromkeys(range(100), self.item))

    def recall(self) -> list[Batch]:
        return []

    def kill(self, _member: object, _batch: Batch, item: int | None) -> bool:
        self.asked.append(item)
        if self.item < 0 or item not in (None, self.item):
            return False
        self.kills.append(self.item)
        return True


def cancellation_of(worker: Worker) -> Cancellation:
    def nothing(*_: object) -> None: ...

    agenda: Any = SimpleNamespace(put_back=nothing, withdraw=nothing, requeue=nothing, settle=nothing)
    crew: Any = SimpleNamespace(members={0: worker}, place=nothing)
    overseer: Any = worker
    return Cancellation(agenda, crew, overseer)


def test_a_batch_that_is_not_begun_is_looked_at_until_it_is() -> None:
    worker = Worker()
    cancellation = cancellation_of(worker)
    cancellation.calls(worker.targets, RuntimeError())
    assert list(cancellation.condemned) == worker.held
    assert worker.kills == []
    worker.item = 0
    cancellation.look()
    assert worker.kills == [0]
    assert not cancellation.condemned


def test_a_worker_is_killed_at_what_was_cancelled_and_at_nothing_else() -> None:
    worker = Worker()
    worker.item = 0
    cancellation = cancellation_of(worker)
    cancellation.calls(worker.targets[1:2], RuntimeError())
    assert worker.asked == []
    worker.item = 1
    cancellation.look()
    assert worker.asked == [1]
    assert worker.kills == [1]


def test_a_batch_that_has_ended_is_looked_at_no_more() -> None:
    worker = Worker()
    cancellation = cancellation_of(worker)
    cancellation.calls(worker.targets[:1], RuntimeError())
    worker.held.clear()
    cancellation.look()
    assert not cancellation.condemned
    assert worker.asked == []
