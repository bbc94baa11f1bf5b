"""Measure tasks of unequal length: the time of a map divided by that of a perfect division among the workers.

All libraries map with their defaults. They do not know the lengths.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from time import perf_counter

from benchmarks.cases.calls import warm_maps
from benchmarks.model import SLOW_TO_START, Aim, Case, Values
from benchmarks.peers import Peer, opened
from benchmarks.tasks import nap, spin

SEED = 2
WORKERS = 2

Lengths = Callable[[int], list[float]]
"""Returns the seconds of each task, for a number of tasks."""


def short_then_long(count: int) -> list[float]:
    """Return lengths of which 15 of 16 are 1 ms, and the last ones 40 ms."""
    short = count - count // 16
    return [0.001] * short + [0.040] * (count - short)


def shuffled(count: int) -> list[float]:
    """Return the same lengths in a random order, which is the same in every run."""
    lengths = short_then_long(count)
    random.Random(SEED).shuffle(lengths)
    return lengths


def lognormal(count: int) -> list[float]:
    """Return log-normal lengths around 1 ms. Two standard deviations reach from 10 µs to 100 ms."""
    dice = random.Random(SEED)
    return [min(0.1, max(1e-5, dice.lognormvariate(math.log(1e-3), math.log(100) / 2))) for _ in range(count)]


def one_long(count: int) -> list[float]:
    """Return 300 ms, followed by lengths of 100 µs."""
    return [0.3] + [1e-4] * (count - 1)


def ideal(lengths: list[float], workers: int) -> float:
    """Return the least possible seconds: the sum divided by the workers, or the longest task."""
    return max(sum(lengths) / workers, max(lengths))


def over_ideal(lengths_of: Lengths, task: Callable[[float], float]) -> Callable[[Peer, int], Values]:
    """Return a measurement of the time of one map, divided by the ideal time."""

    def run(peer: Peer, size: int) -> Values:
        lengths = lengths_of(size)
        with opened(peer, WORKERS):
            warm_maps(peer)
            start = perf_counter()
            peer.map(task, lengths)
            return {"value": (perf_counter() - start) / ideal(lengths, WORKERS)}

    return run


def _case(name: str, title: str, lengths_of: Lengths, task: Callable[[float], float], size: int) -> Case:
    without = {} if name == "skew" else SLOW_TO_START
    run = over_ideal(lengths_of, task)
    return Case(name, title, "× ideal", run, size, "balance", aims=(Aim(1.05),), without=without)


CASES = (
    _case("skew", "300 tasks of 1 ms, then 20 of 40 ms", short_then_long, spin, 320),
    _case("skew-sleep", "the same, tasks that sleep", short_then_long, nap, 320),
    _case("skew-shuffled", "the same tasks, shuffled", shuffled, spin, 320),
    _case("lognormal", "log-normal lengths, 10 µs to 100 ms", lognormal, spin, 600),
    _case("one-long", "one of 300 ms, then 2,000 of 100 µs", one_long, spin, 2001),
)
