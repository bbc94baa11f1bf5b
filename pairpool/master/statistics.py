"""Count how long items took, by function, and what the workers of each place did with their time.

The memory is bounded, however long a pool runs:

- Durations are counted in steps of 9 %.
- Functions beyond the first `FUNCTION_NAMES_KEPT` are counted together.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["Durations", "FunctionStats", "PoolStats", "SlotStats", "SlowestItem"]

STEPS_PER_DOUBLING = 8
"""Steps in which a duration doubles."""

FUNCTION_NAMES_KEPT = 256
"""Functions that are counted by name."""

OTHER_FUNCTIONS = "(other functions)"
"""The name under which all further functions are counted."""

SLOWEST_ITEMS_KEPT = 5
"""Items that a report lists as the slowest."""


class Durations:
    """Count durations: their number, sum and maximum are exact, their quantiles are within 5 %."""

    __slots__ = ("count", "longest", "nanoseconds", "steps")

    def __init__(self) -> None:
        self.count = 0
        self.nanoseconds = 0
        self.longest = 0
        self.steps: Counter[int] = Counter()

    def add(self, nanoseconds: int, count: int = 1) -> None:
        """Add `count` durations of `nanoseconds` each."""
        self.count += count
        self.nanoseconds += nanoseconds * count
        if nanoseconds > self.longest:
            self.longest = nanoseconds
        self.steps[int(math.log2(nanoseconds) * STEPS_PER_DOUBLING) if nanoseconds > 0 else 0] += count

    @property
    def mean(self) -> float:
        """The mean in ns; 0 if there are no durations."""
        return self.nanoseconds / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Return the duration in ns that this share (0 to 1) did not exceed; 0 if there are no durations."""
        rank = share * self.count
        seen = 0
        for step in sorted(self.steps):
            seen += self.steps[step]
            if seen >= rank:
                return min(float(self.longest), 2 ** ((step + 0.5) / STEPS_PER_DOUBLING))
        return float(self.longest)


class FunctionStats:
    """The items of one function."""

    __slots__ = ("durations", "failed", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = 0
        self.durations = Durations()

    def add_failed(self, count: int) -> None:
        """Count items that ended with an exception."""
        self.failed += count


class SlowestItem(NamedTuple):
    """One of the slowest items. Among equal durations, the order of arrival decides."""

    nanoseconds: int
    order: int
    function: str
    item: int
    worker: int
    argument: str


class SlotStats:
    """The time of the workers that had one place of the pool, in ns.

    Attributes:
        present: time between the request for a worker and its end.
        busy: time with a task.
        starting: time between the request for a worker and the moment when it could take work.
        items: items that have ended.
        deaths: workers that died.
        requested_at: when the present worker was requested; 0 if there is none.
    """

    __slots__ = ("busy", "deaths", "items", "present", "requested_at", "starting")

    def __init__(self) -> None:
        self.present = 0
        self.busy = 0
        self.starting = 0
        self.items = 0
        self.deaths = 0
        self.requested_at = 0

    def add_work(self, nanoseconds: int, items: int) -> None:
        """Add the time that a worker spent on some items."""
        self.busy += nanoseconds
        self.items += items

    def worker_requested(self, now: int) -> None:
        """Begin the time of another worker."""
        self.requested_at = now

    def worker_left(self, ready: int, now: int, *, died: bool) -> None:
        """End the time of the present worker, if there is one.

        Args:
            ready: monotonic ns when the worker could first take work, as it says; 0 if it never could.
            now: monotonic ns.
            died: whether the worker died, and was not retired.
        """
        if self.requested_at:
            self.starting += max(0, (min(ready, now) or now) - self.requested_at)
            self.present += now - self.requested_at
        self.requested_at = 0
        self.deaths += died


class PoolStats:
    """The contents of a pool's report.

    Args:
        created: monotonic ns when the pool was opened.

    Attributes:
        ended: monotonic ns when the pool ended; 0 until then.
        functions: the functions, by name.
        slots: the places of the pool, by number.
    """

    def __init__(self, created: int) -> None:
        self.created = created
        self.ended = 0
        self.functions: dict[str, FunctionStats] = {}
        self.slots: dict[int, SlotStats] = {}
        self._slowest: list[SlowestItem] = []
        self._order = itertools.count()
        self._working = 0
        self._working_since = 0

    # --- items ----------------------------------------------------------------------------------

    def function(self, name: str) -> FunctionStats:
        """Return the counts of a function, or those of all other functions if there are too many."""
        found = self.functions.get(name)
        if found is None:
            if len(self.functions) >= FUNCTION_NAMES_KEPT:
                name = OTHER_FUNCTIONS
            found = self.functions.setdefault(name, FunctionStats(name))
        return found

    def is_slow(self, nanoseconds: int) -> bool:
        """Return whether an item that took this long is among the slowest until now."""
        return len(self._slowest) < SLOWEST_ITEMS_KEPT or nanoseconds > self._slowest[0].nanoseconds

    def add_slow(self, nanoseconds: int, function: str, item: int, worker: int, argument: Callable[[], str]) -> None:
        """Add an item for which `is_slow` was true."""
        entry = SlowestItem(nanoseconds, next(self._order), function, item, worker, argument())
        if len(self._slowest) < SLOWEST_ITEMS_KEPT:
            heapq.heappush(self._slowest, entry)
        else:
            heapq.heapreplace(self._slowest, entry)

    def slowest(self) -> Iterator[SlowestItem]:
        """Yield the slowest items, the slowest one first."""
        yield from sorted(self._slowest, reverse=True)

    # --- workers --------------------------------------------------------------------------------

    def slot(self, number: int) -> SlotStats:
        """Return the counts of a place."""
        found = self.slots.get(number)
        if found is None:
            found = self.slots[number] = SlotStats()
        return found

    # --- the pool -------------------------------------------------------------------------------

    def work_began(self, now: int) -> None:
        """Note that there is a call, and there was none before."""
        self._working_since = now

    def work_ended(self, now: int) -> None:
        """Note that no call is left."""
        if self._working_since:
            self._working += now - self._working_since
            self._working_since = 0

    def working(self, now: int) -> int:
        """Return for how many ns there was at least one call that had not ended."""
        return self._working + (now - self._working_since if self._working_since else 0)

    def end(self, now: int) -> None:
        """Note that the pool has ended."""
        self.work_ended(now)
        self.ended = now
