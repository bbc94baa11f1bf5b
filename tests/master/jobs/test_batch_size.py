"""The sizes of batches on made-up clocks: alone, and in whole runs of simulated workers."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pairpool.master.jobs.batch_size import (
    LOOKAHEAD_BATCHES,
    MASTER_PER_BATCH_NS,
    MAX_BATCH_BYTES,
    MAX_BATCH_ITEMS,
    MIN_TAPERED_NS,
    SHORT_NS,
    SPREAD_DOUBLES_AFTER_NS,
    TARGET_NS,
    Sizer,
)

MICROSECOND = 1_000
MILLISECOND = 1_000_000

HAND_BACK = 10 * MILLISECOND
"""A worker hands back the items that it has not begun after this time in one batch, as in the master's dispatcher."""


# --- a pool in miniature ------------------------------------------------------------------------------


@dataclass
class Batch:
    """Items from `start` to `stop`, at a worker from `began` on."""

    start: int
    stop: int
    began: int = -1
    version: int = 0


@dataclass
class Outcome:
    """The figures of a run; times in ns."""

    makespan: int = 0
    finished: list[int] = field(default_factory=list)
    """When each worker ended its last batch."""
    sizes: list[int] = field(default_factory=list)
    """Items in each batch as it was sent."""
    executed: list[int] = field(default_factory=list)
    """Items in the order in which their batches ended."""


class Simulation:
    """A discrete-event run of one call over `workers`, with the rules of the dispatcher and without processes.

    A worker holds the batch that it runs, and a second one while batches are short; one that has nothing gets the
    unread batch of another. Each batch costs its worker `overhead` ns, and each message takes `wire` ns.
    """

    def __init__(
        self, items: Sequence[int], workers: int, sizer: Sizer, overhead: int = 20_000, wire: int = 15_000
    ) -> None:
        self.items = items
        self.begins = [0, *itertools.accumulate(items)]
        self.sizer = sizer
        self.overhead = overhead
        self.wire = wire
        self.held: list[deque[Batch]] = [deque() for _ in range(workers)]
        self.again: deque[Batch] = deque()
        self.next = 0
        self.now = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.outcome = Outcome(finished=[0] * workers)

    def run(self) -> Outcome:
        self.deal()
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.outcome.makespan = max(self.outcome.finished) + self.wire
        assert sorted(self.outcome.executed) == list(range(len(self.items)))
        return self.outcome

    def at(self, time: int, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), what))

    def take(self) -> Batch | None:
        workers = len(self.held)
        if self.again:
            batch = self.again.popleft()
            size = max(1, self.sizer.next(batch.stop - batch.start, workers))
            if batch.stop - batch.start > size and self.sizer.chunksize is None:
                self.again.appendleft(Batch(batch.start + size, batch.stop))
                batch.stop = batch.start + size
            return batch
        remaining = len(self.items) - self.next
        if not remaining:
            return None
        batch = Batch(self.next, self.next + min(remaining, self.sizer.next(remaining, workers)))
        assert batch.stop > batch.start, "an empty batch"
        self.next = batch.stop
        return batch

    def deal(self) -> None:
        while True:
            worker = self.with_room()
            if worker is None:
                return
            batch = self.take() or self.recall(worker)
            if batch is None:
                return
            self.outcome.sizes.append(batch.stop - batch.start)
            self.held[worker].append(batch)
            if len(self.held[worker]) == 1:
                self.begin(worker, self.now + self.wire)

    def with_room(self) -> int | None:
        for most in (0, 1):
            for worker, held in enumerate(self.held):
                if len(held) == most and (most == 0 or self.sizer.is_short()):
                    return worker
        return None

    def recall(self, worker: int) -> Batch | None:
        if self.held[worker]:
            return None
        loaded = [held for held in self.held if len(held) > 1]
        return min(loaded, key=lambda held: held[0].began).pop() if loaded else None

    def begin(self, worker: int, time: int) -> None:
        batch = self.held[worker][0]
        batch.began = time + self.overhead
        self.schedule_end(worker, batch)
        if batch.stop - batch.start > 1 and self.sizer.chunksize is None:
            self.at(batch.began + HAND_BACK, lambda: self.cut(worker, batch))

    def schedule_end(self, worker: int, batch: Batch) -> None:
        batch.version += 1
        version, end = batch.version, batch.began + self.begins[batch.stop] - self.begins[batch.start]
        self.at(end, lambda: self.end(worker, batch, version))

    def cut(self, worker: int, batch: Batch) -> None:
        """The rest of a batch that runs long goes to others."""
        if not self.held[worker] or self.held[worker][0] is not batch:
            return
        running = batch.start
        while batch.began + self.begins[running + 1] - self.begins[batch.start] <= self.now:
            running += 1
        if running + 1 < batch.stop:
            self.again.append(Batch(running + 1, batch.stop))
            batch.stop = running + 1
            self.schedule_end(worker, batch)
            self.deal()

    def end(self, worker: int, batch: Batch, version: int) -> None:
        if version != batch.version:
            return
        self.held[worker].popleft()
        self.outcome.executed.extend(range(batch.start, batch.stop))
        self.outcome.finished[worker] = self.now
        if self.held[worker]:
            self.begin(worker, self.now)
        self.at(self.now + self.wire, lambda: self.hear(batch))

    def hear(self, batch: Batch) -> None:
        self.sizer.learn(batch.stop - batch.start, self.begins[batch.stop] - self.begins[batch.start])
        self.deal()


def simulate(items: Sequence[int], workers: int = 2, chunksize: int | None = None, **costs: int) -> Outcome:
    return Simulation(items, workers, Sizer(chunksize), **costs).run()


def ideal(items: Sequence[int], workers: int) -> float:
    return max(sum(items) / workers, max(items))


# --- whole runs ---------------------------------------------------------------------------------------


def test_uniform_short_items_go_in_batches_of_the_target() -> None:
    outcome = simulate([MICROSECOND] * 300_000)
    at_target = 300_000 * MICROSECOND // TARGET_NS
    assert at_target <= len(outcome.sizes) <= at_target * 1.1 + 30
    assert max(outcome.sizes) == TARGET_NS // MICROSECOND
    assert outcome.makespan <= 1.1 * ideal([MICROSECOND] * 300_000, 2)


def test_sizes_grow_from_one_and_taper_off() -> None:
    sizes = simulate([MICROSECOND] * 100_000).sizes
    assert sizes[:2] == [1, 1]
    assert sizes.index(max(sizes)) < 25, "it takes long to get going"
    tail = sizes[-12:]
    assert tail == sorted(tail, reverse=True)
    assert tail[-1] <= MIN_TAPERED_NS // MICROSECOND
    assert tail[0] > 10 * tail[-1]


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
@pytest.mark.parametrize("length", [100, MICROSECOND, 30 * MICROSECOND, MILLISECOND, 7 * MILLISECOND])
def test_uniform_items_end_close_to_the_ideal(length: int, workers: int) -> None:
    count = min(workers * 200 * MILLISECOND // length, 600_000)
    items = [length] * count
    outcome = simulate(items, workers)
    assert outcome.makespan <= 1.1 * ideal(items, workers) + length + TARGET_NS


@pytest.mark.parametrize("workers", [2, 8])
def test_the_last_batches_end_together(workers: int) -> None:
    outcome = simulate([10 * MICROSECOND] * 50_000, workers)
    assert max(outcome.finished) - min(outcome.finished) <= TARGET_NS / 2


SHORT_THEN_LONG = [MILLISECOND] * 300 + [40 * MILLISECOND] * 20


@pytest.mark.parametrize("workers", [2, 4])
def test_short_then_long_items_end_close_to_the_ideal(workers: int) -> None:
    assert simulate(SHORT_THEN_LONG, workers).makespan <= 1.1 * ideal(SHORT_THEN_LONG, workers)


@pytest.mark.parametrize("seed", range(5))
def test_mixed_items_end_close_to_the_ideal(seed: int) -> None:
    items = list(SHORT_THEN_LONG)
    random.Random(seed).shuffle(items)
    # at the very end a long item may run alone: the two workers are half of one apart from the ideal
    assert simulate(items).makespan <= 1.02 * ideal(items, 2) + 20 * MILLISECOND


def test_long_then_short_items_end_close_to_the_ideal() -> None:
    items = SHORT_THEN_LONG[::-1]
    assert simulate(items).makespan <= 1.1 * ideal(items, 2)


def test_very_short_then_long_items_are_shared_all_the_same() -> None:
    """The size has grown to a thousand when the first long item comes."""
    items = [MICROSECOND] * 100_000 + [20 * MILLISECOND] * 50
    outcome = simulate(items)
    assert outcome.makespan <= 1.03 * ideal(items, 2)


@given(
    items=st.lists(
        st.sampled_from([100, MICROSECOND, 50 * MICROSECOND, MILLISECOND, 30 * MILLISECOND]), min_size=1, max_size=400
    ),
    workers=st.integers(1, 6),
)
def test_no_input_takes_much_longer_than_greedy_sharing(items: list[int], workers: int) -> None:
    """List scheduling ends within sum/workers + longest (Graham, 1966); batches may add the time of one."""
    outcome = simulate(items, workers)
    costs = 50_000 * (len(outcome.sizes) / workers + 2)
    assert outcome.makespan <= sum(items) / workers + max(items) + HAND_BACK + TARGET_NS + costs


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
@pytest.mark.parametrize("length", [100, 3 * MILLISECOND])
def test_an_explicit_size_is_obeyed(chunksize: int, length: int) -> None:
    full, rest = divmod(500, chunksize)
    assert simulate([length] * 500, chunksize=chunksize).sizes == [chunksize] * full + ([rest] if rest else [])


# --- one size after the other -------------------------------------------------------------------------


def grown(item: int = 1, times: int = 20) -> Sizer:
    """A sizer that has seen full batches of items of `item` ns."""
    sizer = Sizer()
    for _ in range(times):
        count = sizer.next(None, 1)
        sizer.learn(count, count * item)
    return sizer


def test_it_starts_with_one_item() -> None:
    sizer = Sizer()
    assert sizer.next(None, 4) == sizer.next(1_000_000, 4) == 1
    assert not sizer.is_known
    assert not sizer.is_short(), "nothing is queued behind what may be long"


@pytest.mark.parametrize("item", [1, 30, MICROSECOND, 77 * MICROSECOND, TARGET_NS // 2, TARGET_NS, 9 * TARGET_NS])
def test_it_settles_at_the_target(item: int) -> None:
    sizer = grown(item)
    assert sizer.next(None, 4) == min(max(1, TARGET_NS // item), MAX_BATCH_ITEMS)
    assert sizer.is_known


def test_it_grows_no_more_than_sixteenfold_at_a_time() -> None:
    sizer, before = Sizer(), 1
    for _ in range(12):
        sizer.learn(before, before * 10)
        size = sizer.next(None, 2)
        assert before <= size <= 16 * before
        before = size
    assert before == MAX_BATCH_ITEMS


def test_it_grows_slower_when_it_comes_close() -> None:
    sizer = Sizer()
    sizer.learn(1, TARGET_NS // 8)
    assert sizer.next(None, 2) == 2
    other = Sizer()
    other.learn(1, TARGET_NS // 8 - 1)
    assert other.next(None, 2) == 8, "as many as fit"


@pytest.mark.parametrize("length", [2, 10, 1000, 50_000])
def test_slow_items_shrink_it_at_once(length: int) -> None:
    """After one slow batch the next is as long as its items allow."""
    sizer = grown(100)
    before = sizer.next(None, 2)
    assert before == TARGET_NS // 100
    sizer.learn(before, before * 100 * length)
    assert sizer.next(None, 2) == max(1, TARGET_NS // (100 * length))


def test_it_grows_again_after_one_slow_batch() -> None:
    sizer = grown(100)
    sizer.learn(sizer.next(None, 2), 50 * TARGET_NS)
    assert sizer.next(None, 2) < 1000
    for _ in range(10):
        count = sizer.next(None, 2)
        sizer.learn(count, count * 100)
    assert sizer.next(None, 2) == TARGET_NS // 100


def test_a_tapered_batch_says_nothing_about_larger_ones() -> None:
    sizer = grown(MICROSECOND)
    before = sizer.next(None, 2)
    sizer.learn(1, 100)
    assert sizer.next(None, 2) == before


def test_an_empty_batch_teaches_nothing() -> None:
    sizer = grown(MICROSECOND)
    before = sizer.next(None, 2)
    sizer.learn(0, 10 * TARGET_NS)
    assert sizer.next(None, 2) == before


def test_items_of_no_time_are_known_all_the_same() -> None:
    sizer = Sizer()
    sizer.learn(1, 0)
    assert sizer.is_known
    assert sizer.is_short()


@pytest.mark.parametrize(("item", "short"), [(SHORT_NS, True), (SHORT_NS + 1, False), (MICROSECOND, True)])
def test_a_second_batch_waits_only_behind_short_ones(item: int, short: bool) -> None:
    assert grown(item).is_short() is short


def test_an_explicit_size_is_short_or_not_by_its_own_items() -> None:
    sizer = Sizer(100)
    sizer.learn(100, 100 * MICROSECOND)
    assert sizer.is_short()
    sizer.learn(100, SHORT_NS + 100)
    assert not sizer.is_short()
    assert [sizer.next(remaining, 2) for remaining in (None, 1, 10_000)] == [100] * 3
    assert sizer.lookahead(2, 0) == LOOKAHEAD_BATCHES * 2 * 100


def test_large_items_make_small_batches() -> None:
    sizer = grown()
    sizer.learn_bytes(1, 10_000)
    assert sizer.next(None, 2) == MAX_BATCH_BYTES // 10_000
    sizer.learn_bytes(1, 10 * MAX_BATCH_BYTES)
    assert sizer.next(None, 2) == 1
    for _ in range(60):
        sizer.learn_bytes(1000, 8)
    assert sizer.next(None, 2) == MAX_BATCH_ITEMS


# --- whatever happens ---------------------------------------------------------------------------------

LESSONS = st.lists(
    st.one_of(
        st.tuples(st.just("time"), st.integers(0, 100_000), st.integers(0, 10**12)),
        st.tuples(st.just("bytes"), st.integers(1, 100_000), st.integers(0, 10**9)),
        st.tuples(st.just("full"), st.just(0), st.integers(0, 10**7)),
    ),
    max_size=30,
)


def taught(sizer: Sizer, lessons: list[tuple[str, int, int]]) -> Sizer:
    for what, count, amount in lessons:
        if what == "time":
            sizer.learn(count, amount)
        elif what == "bytes":
            sizer.learn_bytes(count, amount)
        else:
            size = sizer.next(None, 1)
            sizer.learn(size, size * amount)
    return sizer


@given(lessons=LESSONS, remaining=st.integers(1, 10**7), workers=st.integers(1, 500))
@example(lessons=[("full", 0, 1)] * 20, remaining=10**7, workers=1)
@example(lessons=[("full", 0, 1)] * 20, remaining=1, workers=500)
def test_a_size_is_always_possible(lessons: list[tuple[str, int, int]], remaining: int, workers: int) -> None:
    sizer = taught(Sizer(), lessons)
    assert 1 <= sizer.next(remaining, workers) <= min(remaining, MAX_BATCH_ITEMS)
    assert 1 <= sizer.next(None, workers) <= MAX_BATCH_ITEMS
    assert sizer.next(remaining, workers) <= sizer.next(None, workers)


@given(lessons=LESSONS, workers=st.integers(1, 500))
def test_a_stream_may_always_go_on(lessons: list[tuple[str, int, int]], workers: int) -> None:
    sizer = taught(Sizer(), lessons)
    assert sizer.lookahead(workers, 0) >= max(1, workers * sizer.next(None, workers))


@given(lessons=LESSONS, workers=st.integers(1, 50), remaining=st.integers(1, 10**6))
def test_the_more_remains_the_larger_a_batch_may_be(
    lessons: list[tuple[str, int, int]], workers: int, remaining: int
) -> None:
    sizer = taught(Sizer(), lessons)
    sizes = [sizer.next(remaining + more, workers) for more in range(0, 500, 7)]
    assert sizes == sorted(sizes)


@given(lessons=LESSONS, remaining=st.integers(1, 10**6), workers=st.integers(1, 50))
def test_no_batch_is_more_than_a_share(lessons: list[tuple[str, int, int]], remaining: int, workers: int) -> None:
    """So that what is left can be given to all: no more than half of an even share, or than is worth a packet."""
    sizer = taught(Sizer(), lessons)
    size = sizer.next(remaining, workers)
    assert size <= -(-remaining // (2 * workers)) or size * sizer._item_ns <= MIN_TAPERED_NS


def test_short_items_are_not_spread_over_more_workers_than_help() -> None:
    sizer = Sizer()
    sizer.learn(100, 100 * MICROSECOND)
    assert sizer.spread(2, 0, many=False) == 4
    sizer.learn(1, MILLISECOND)
    assert sizer.spread(2, 0, many=False) == MILLISECOND // MASTER_PER_BATCH_NS
    sizer.learn(1, 2 * SHORT_NS)
    assert sizer.spread(2, 0, many=False) >= 10**6


def test_items_that_nobody_knows_are_tried_by_more_workers_the_longer_they_take() -> None:
    sizer = Sizer()
    waits = (0, SPREAD_DOUBLES_AFTER_NS - 1, SPREAD_DOUBLES_AFTER_NS, 8 * SPREAD_DOUBLES_AFTER_NS)
    assert [sizer.spread(2, 1 + wait, many=False) for wait in waits] == [4, 4, 8, 1024]
    assert sizer.spread(2, 1, many=True) == 1


@given(lessons=LESSONS, chunksize=st.integers(1, 10**6), remaining=st.none() | st.integers(1, 10**6))
def test_an_explicit_size_stays(lessons: list[tuple[str, int, int]], chunksize: int, remaining: int | None) -> None:
    assert taught(Sizer(chunksize), lessons).next(remaining, 3) == chunksize


@given(lessons=LESSONS, item_bytes=st.integers(1, 10**6))
def test_a_batch_fits_a_packet_as_far_as_is_known(lessons: list[tuple[str, int, int]], item_bytes: int) -> None:
    sizer = taught(Sizer(), lessons)
    sizer.learn_bytes(1, item_bytes)
    size = sizer.next(None, 2)
    assert size == 1 or size * item_bytes <= MAX_BATCH_BYTES
