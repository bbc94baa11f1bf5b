"""Tasks of unequal length: how much longer than by a perfect division among the workers.

All libraries map with their defaults, and are told nothing of the lengths.
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
"""Gives the seconds of each of so many tasks."""


def short_then_long(count: int) -> list[float]:
    """15 of 16 take a millisecond each, the last ones 40."""
    short = count - count // 16
    return [0.001] * short + [0.040] * (count - short)


def shuffled(count: int) -> list[float]:
    """The same in a random order, the same in every run."""
    lengths = short_then_long(count)
    random.Random(SEED).shuffle(lengths)
    return lengths


def lognormal(count: int) -> list[float]:
    """Lengths over four decades, 10 µs to 100 ms, around 1 ms: two standard deviations each way."""
    dice = random.Random(SEED)
    return [min(0.1, max(1e-5, dice.lognormvariate(math.log(1e-3), math.log(100) / 2))) for _ in range(count)]


def one_long(count: int) -> list[float]:
    """300 ms, and behind it 100 µs each."""
    return [0.3] + [1e-4] * (count - 1)


def ideal(lengths: list[float], workers: int) -> float:
    """The seconds below which no division comes: the whole over the workers, or the longest task."""
    return max(sum(lengths) / workers, max(lengths))


def over_ideal(lengths_of: Lengths, task: Callable[[float], float]) -> Callable[[Peer, int], Values]:
    """The time of one map over the ideal."""

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
