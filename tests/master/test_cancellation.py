"""Test the cancellation of calls whose worker has read them and has not begun to run them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pairpool.master.cancellation import Cancellation
from pairpool.master.jobs.base import Batch
from pairpool.master.jobs.call_options import CallOptions
from pairpool.master.jobs.calls import Calls
from pairpool.transport.protocol import Mode


class Target:
    """The target of a call. It knows only whether the call has an outcome."""

    def __init__(self) -> None:
        self.job: Any = None
        self.has_outcome = False

    def submitted_to(self, job: Any) -> None:
        self.job = job

    def set_outcome(self, _success: bool, _value: object) -> None:
        self.has_outcome = True


class FakeWorker:
    """A worker that has read one batch of three calls. It plays the part of the watchdog, too."""

    def __init__(self) -> None:
        self.eof_sent = False
        self.targets = [Target() for _ in range(3)]
        self.job = Calls(Mode.CALL, CallOptions(chunksize=3))
        for target in self.targets:
            self.job.add(target, (1, (), {}))
        batch = self.job.take(1, 3)
        assert batch is not None
        self.held = [batch]
        self.item = -1
        self.kill_requests: list[int | None] = []
        self.kills: list[int] = []  # the items at which the worker was killed

    @property
    def slot(self) -> Any:
        return SimpleNamespace(words=dict.fromkeys(range(100), self.item))

    def recall(self) -> list[Batch]:
        return []

    def kill(self, _worker: object, _batch: Batch, item: int | None) -> bool:
        self.kill_requests.append(item)
        if self.item < 0 or item not in (None, self.item):
            return False
        self.kills.append(self.item)
        return True


def cancellation_of(worker: FakeWorker) -> Cancellation:
    def nothing(*_: object) -> None: ...

    queue: Any = SimpleNamespace(put_back=nothing, withdraw=nothing, requeue=nothing, settle=nothing)
    workers: Any = SimpleNamespace(members={0: worker}, place=nothing)
    watchdog: Any = worker
    return Cancellation(queue, workers, watchdog)


def test_a_kill_stays_pending_until_the_worker_begins_the_batch() -> None:
    worker = FakeWorker()
    cancellation = cancellation_of(worker)
    cancellation.calls(worker.targets, RuntimeError())
    assert list(cancellation.pending_kills) == worker.held
    assert worker.kills == []
    worker.item = 0
    cancellation.kill_pending()
    assert worker.kills == [0]
    assert not cancellation.pending_kills


def test_a_worker_is_killed_only_at_the_cancelled_item() -> None:
    worker = FakeWorker()
    worker.item = 0
    cancellation = cancellation_of(worker)
    cancellation.calls(worker.targets[1:2], RuntimeError())
    assert worker.kill_requests == []
    worker.item = 1
    cancellation.kill_pending()
    assert worker.kill_requests == [1]
    assert worker.kills == [1]


def test_no_kill_is_pending_after_the_batch_has_ended() -> None:
    worker = FakeWorker()
    cancellation = cancellation_of(worker)
    cancellation.calls(worker.targets[:1], RuntimeError())
    worker.held.clear()
    cancellation.kill_pending()
    assert not cancellation.pending_kills
    assert worker.kill_requests == []
