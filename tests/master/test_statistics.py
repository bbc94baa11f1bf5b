"""Tests of durations, of the slowest items, and of the time of workers. The clocks are made up."""

from __future__ import annotations

import statistics
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.master.statistics import (
    FUNCTION_NAMES_KEPT,
    OTHER_FUNCTIONS,
    SLOWEST_ITEMS_KEPT,
    Durations,
    PoolStats,
    SlotStats,
)


@given(st.lists(st.integers(1, 10**13), min_size=1, max_size=200), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_quantiles_are_within_five_per_cent(lengths: list[int], share: float) -> None:
    durations = Durations()
    for length in lengths:
        durations.add(length)
    exact = sorted(lengths)[max(0, -(-int(share * 1000) * len(lengths) // 1000) - 1)]
    assert durations.quantile(share) == pytest.approx(exact, rel=0.05, abs=1)
    assert durations.count == len(lengths)
    assert durations.longest == max(lengths)
    assert durations.mean == pytest.approx(statistics.fmean(lengths))


def test_many_equal_durations_are_added_at_once() -> None:
    durations = Durations()
    durations.add(100, 1_000_000)
    durations.add(9_000_000)
    assert (durations.count, durations.nanoseconds, durations.longest) == (1_000_001, 109_000_000, 9_000_000)
    assert durations.quantile(0.5) == pytest.approx(100, rel=0.05)
    assert len(durations.steps) == 2


def test_no_durations_have_no_times() -> None:
    durations = Durations()
    assert (durations.mean, durations.quantile(0.95), durations.longest) == (0.0, 0.0, 0)


def test_a_duration_of_zero_counts() -> None:
    durations = Durations()
    durations.add(0)
    assert (durations.count, durations.quantile(0.5)) == (1, 0.0)


@given(st.lists(st.integers(1, 1000), max_size=50))
def test_the_slowest_items_are_kept(lengths: list[int]) -> None:
    stats = PoolStats(0)
    for index, length in enumerate(lengths):
        if stats.is_slow(length):
            stats.add_slow(length, "work", index, 0, partial("argument {}".format, index))
    found = list(stats.slowest())
    assert [slow.nanoseconds for slow in found] == sorted(lengths, reverse=True)[:SLOWEST_ITEMS_KEPT]
    assert all(slow.argument == f"argument {slow.item}" for slow in found)


def test_functions_beyond_the_limit_are_counted_together() -> None:
    stats = PoolStats(0)
    for number in range(FUNCTION_NAMES_KEPT + 50):
        stats.function(f"lambda {number}").durations.add(10)
    assert len(stats.functions) == FUNCTION_NAMES_KEPT + 1
    assert stats.functions[OTHER_FUNCTIONS].durations.count == 50


def test_the_time_of_a_place_is_counted() -> None:
    slot = SlotStats()
    slot.worker_requested(100)
    slot.worker_left(130, 1000, died=True)
    slot.worker_requested(1100)
    slot.worker_left(0, 1300, died=False)  # this worker never could take work
    assert (slot.present, slot.starting, slot.deaths, slot.requested_at) == (1100, 230, 1, 0)


def test_a_worker_that_left_is_not_counted_twice() -> None:
    slot = SlotStats()
    slot.worker_requested(100)
    slot.worker_left(110, 200, died=False)
    slot.worker_left(110, 900, died=True)
    assert (slot.present, slot.starting) == (100, 10)


def test_working_time_is_the_time_with_calls() -> None:
    stats = PoolStats(0)
    assert stats.working(50) == 0
    stats.work_began(100)
    assert stats.working(150) == 50
    stats.work_ended(200)
    stats.work_ended(900)
    assert stats.working(1000) == 100
    stats.work_began(1000)
    assert stats.working(1010) == 110
