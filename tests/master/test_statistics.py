"""Durations, the slowest items, and what workers did with their time: counted on made-up clocks."""

from __future__ import annotations

import statistics
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.master.statistics import NAMES, OTHERS, SLOWEST, Durations, PoolStats


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


def test_many_equal_ones_are_added_at_once() -> None:
    durations = Durations()
    durations.add(100, 1_000_000)
    durations.add(9_000_000)
    assert (durations.count, durations.nanoseconds, durations.longest) == (1_000_001, 109_000_000, 9_000_000)
    assert durations.quantile(0.5) == pytest.approx(100, rel=0.05)
    assert len(durations.steps) == 2


def test_nothing_has_no_times() -> None:
    durations = Durations()
    assert (durations.mean, durations.quantile(0.95), durations.longest) == (0.0, 0.0, 0)


def test_an_item_that_took_no_time_counts() -> None:
    durations = Durations()
    durations.add(0)
    assert (durations.count, durations.quantile(0.5)) == (1, 0.0)


@given(st.lists(st.integers(1, 1000), max_size=50))
def test_the_slowest_are_kept(lengths: list[int]) -> None:
    tally = PoolStats(0)
    for index, length in enumerate(lengths):
        if tally.is_slow(length):
            tally.add_slow(length, "work", index, 0, partial("argument {}".format, index))
    found = list(tally.slowest())
    assert [slow.nanoseconds for slow in found] == sorted(lengths, reverse=True)[:SLOWEST]
    assert all(slow.argument == f"argument {slow.item}" for slow in found)


def test_names_are_bounded() -> None:
    tally = PoolStats(0)
    for number in range(NAMES + 50):
        tally.function(f"lambda {number}").durations.add(10)
    assert len(tally.functions) == NAMES + 1
    assert tally.functions[OTHERS].durations.count == 50


def test_the_time_of_a_place_is_accounted_for() -> None:
    tally = PoolStats(0)
    tally.asked(3, 100)
    tally.left(3, 130, 1000, died=True)
    tally.asked(3, 1100)
    tally.left(3, 0, 1300, died=False)  # it never could take work
    place = tally.place(3)
    assert (place.present, place.starting, place.deaths, place.asked) == (1100, 230, 1, 0)


def test_a_worker_that_left_is_not_counted_twice() -> None:
    tally = PoolStats(0)
    tally.asked(0, 100)
    tally.left(0, 110, 200, died=False)
    tally.left(0, 110, 900, died=True)
    assert (tally.place(0).present, tally.place(0).starting) == (100, 10)


def test_work_is_the_time_with_calls() -> None:
    tally = PoolStats(0)
    assert tally.working(50) == 0
    tally.work_began(100)
    assert tally.working(150) == 50
    tally.work_ended(200)
    tally.work_ended(900)
    assert tally.working(1000) == 100
    tally.work_began(1000)
    assert tally.working(1010) == 110
