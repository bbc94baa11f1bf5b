"""`StreamJob`: when the reader of a stream has had all results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pairpool.master.jobs.call_options import DEFAULTS
from pairpool.master.jobs.stream import StreamJob, StreamSpec
from pairpool.transport.protocol import Mode


class Watched(list[int]):
    """The last items of an input. They note whether the stream looks read while they are put into a batch."""

    def __init__(self, items: Sequence[int]) -> None:
        super().__init__(items)
        self.job: StreamJob | None = None
        self.looked_read: list[bool] = []

    def __len__(self) -> int:
        if self.job is not None:
            self.looked_read.append(self.job.is_read)
        return super().__len__()


class LastItems:
    """A source that is exhausted after one batch."""

    item_ns = 0.0

    def __init__(self, items: Watched) -> None:
        self.items = items
        self.is_exhausted = False

    def pull(self, size: int, *, exactly: bool) -> Watched:
        self.is_exhausted = True
        return self.items

    def rest(self) -> Sequence[int]:
        return ()

    def has_at_least(self, count: int) -> bool:
        return not self.is_exhausted


def test_a_stream_is_not_read_while_its_last_items_are_put_into_a_batch() -> None:
    """A reader in another thread would end the stream then, and lose the results of these items."""
    items = Watched([1, 2, 3])
    function: Any = None
    job = StreamJob(function, Mode.MAP, LastItems(items), DEFAULTS, StreamSpec(ordered=True))
    items.job = job
    batch = job.take(1, 10)
    assert batch is not None
    assert items.looked_read
    assert not any(items.looked_read)
    assert not job.is_read
    job.deliver(batch, [1, 4, 9], {})
    assert list(job.hand_out()) == [1, 4, 9]
    assert job.is_read
