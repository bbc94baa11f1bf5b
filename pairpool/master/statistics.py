"""The tally: how long items took, by function, and what each place's workers did with their time. Counting only.

Memory is bounded, however long a pool runs: durations are counted in steps of 9 %, names beyond `NAMES` go together.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["Durations", "FunctionStats", "SlotStats", "Slow", "PoolStats"]

STEPS = 8
"""Steps for each doubling of a duration."""

NAMES = 256
OTHERS = "(other functions)"
SLOWEST = 5


class Durations:
    """How long many things took: exact count, sum and longest; quantiles within 5 %."""

    __slots__ = ("count", "longest", "nanoseconds", "steps")

    def __init__(self) -> None:
        self.count = 0
        self.nanoseconds = 0
        self.longest = 0
        self.steps: Counter[int] = Counter()

    def add(self, nanoseconds: int, count: int = 1) -> None:
        """`count` things took `nanoseconds` each."""
        self.count += count
        self.nanoseconds += nanoseconds * count
        if nanoseconds > self.longest:
            self.longest = nanoseconds
        self.steps[int(math.log2(nanoseconds) * STEPS) if nanoseconds > 0 else 0] += count

    @property
    def mean(self) -> float:
        """Nanoseconds; 0 of none."""
        return self.nanoseconds / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Nanoseconds that this share (0 to 1) of them did not exceed; 0 of none."""
        rank = share * self.count
        seen = 0
        for step in sorted(self.steps):
            seen += self.steps[step]
            if seen >= rank:
                return min(float(self.longest), 2 ** ((step + 0.5) / STEPS))
        return float(self.longest)


class FunctionStats:
    """The items of one function."""

    __slots__ = ("durations", "failed", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = 0
        self.durations = Durations()


class Slow(NamedTuple):
    """One of the slowest items."""

    nanoseconds: int
    order: int
    function: str
    item: int
    worker: int
    argument: str


class SlotStats:
    """What the workers of one place in the pool did with their time, in ns."""

    __slots__ = ("asked", "busy", "deaths", "items", "present", "starting")

    def __init__(self) -> None:
        self.present = 0
        self.busy = 0
        self.starting = 0
        self.items = 0
        self.deaths = 0
        self.asked = 0
        """When the present worker was asked for; 0 if there is none."""


class PoolStats:
    """All that a report tells.

    Args:
        created: monotonic ns when the pool was opened.
    """

    def __init__(self, created: int) -> None:
        self.created = created
        self.ended = 0
        self.functions: dict[str, FunctionStats] = {}
        self.places: dict[int, SlotStats] = {}
        self._slow: list[Slow] = []
        self._order = itertools.count()
        self._working = 0
        self._working_since = 0

    # --- items ----------------------------------------------------------------------------------

    def function(self, name: str) -> FunctionStats:
        """The tally of a function, by its name."""
        found = self.functions.get(name)
        if found is None:
            if len(self.functions) >= NAMES:
                name = OTHERS
            found = self.functions.setdefault(name, FunctionStats(name))
        return found

    def is_slow(self, nanoseconds: int) -> bool:
        """Whether an item that took so long is one of the slowest until now."""
        return len(self._slow) < SLOWEST or nanoseconds > self._slow[0].nanoseconds

    def add_slow(self, nanoseconds: int, function: str, item: int, worker: int, argument: Callable[[], str]) -> None:
        """Note an item that `is_slow`."""
        entry = Slow(nanoseconds, next(self._order), function, item, worker, argument())
        if len(self._slow) < SLOWEST:
            heapq.heappush(self._slow, entry)
        else:
            heapq.heapreplace(self._slow, entry)

    def slowest(self) -> Iterator[Slow]:
        """The slowest items, the slowest first."""
        yield from sorted(self._slow, reverse=True)

    # --- workers --------------------------------------------------------------------------------

    def place(self, number: int) -> SlotStats:
        found = self.places.get(number)
        if found is None:
            found = self.places[number] = SlotStats()
        return found

    def asked(self, number: int, now: int) -> None:
        """A worker was asked for."""
        self.place(number).asked = now

    def left(self, number: int, ready: int, now: int, *, died: bool) -> None:
        """The worker of a place has ended.

        Args:
            ready: monotonic ns when it could take work first; 0 if it never could.
        """
        place = self.place(number)
        if place.asked:
            place.starting += max(0, (ready or now) - place.asked)
            place.present += now - place.asked
        place.asked = 0
        place.deaths += died

    # --- the whole ------------------------------------------------------------------------------

    def work_began(self, now: int) -> None:
        """There is a call, and there was none."""
        self._working_since = now

    def work_ended(self, now: int) -> None:
        """There is no call any more."""
        if self._working_since:
            self._working += now - self._working_since
            self._working_since = 0

    def working(self, now: int) -> int:
        """For how many ns there was at least one call that had not ended."""
        return self._working + (now - self._working_since if self._working_since else 0)
