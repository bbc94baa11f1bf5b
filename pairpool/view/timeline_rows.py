"""What a timeline shows of each lane, in pixels: long tasks one by one, short ones merged, so that it stays small."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["LEVELS", "Bar", "Canvas", "Mark", "Run"]

COLUMNS = 60_000
"""How many columns all lanes together have at most, in which short tasks are merged."""

BARS = 35_000
"""How many tasks are drawn one by one at most: the longest."""

LEAST_BAR = 2.0
"""Pixels that a task has to be wide to be drawn by itself."""

TITLED = 3_000
"""How many tasks are told of when they are pointed at: the longest."""

MARK_WIDTH = 3.0
"""Pixels within which marks of a kind are one."""

LEVELS = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """A task from `left` to `right`, in pixels; `title` gives a text that tells of it."""

    lane: int
    left: float
    right: float
    colour: int
    failed: bool
    title: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Run:
    """Columns from `left` to `right` in which short tasks took time, most of it those of one colour.

    `level` of LEVELS parts of the time, that is: 1 means little, LEVELS all of it.
    """

    lane: int
    left: float
    right: float
    colour: int
    level: int


@dataclass(slots=True)
class Mark:
    """Something that happened `count` times about there; `title` tells of the first time."""

    kind: str
    lane: int
    at: float
    title: str
    count: int = 1


@dataclass(slots=True)
class Canvas:
    """Gathers tasks and marks, in pixels from the left edge of the lanes.

    Memory depends on lanes and width, not on how many tasks there are.

    Attributes:
        lanes: how many there are.
        width: of them, in pixels.
        columns: how many a lane has.
        column: width of one in pixels.
    """

    lanes: int
    width: float
    marks: dict[tuple[str, int, int], Mark] = field(default_factory=dict)
    _cells: dict[int, dict[int, float]] = field(default_factory=dict)
    _failures: set[int] = field(default_factory=set)
    _bars: list[tuple[float, int, Bar]] = field(default_factory=list)
    _count: int = 0
    columns: int = field(init=False)
    column: float = field(init=False)

    def __post_init__(self) -> None:
        self.columns = max(1, min(math.ceil(self.width), COLUMNS // max(1, self.lanes)))
        self.column = self.width / self.columns

    def add(self, lane: int, left: float, right: float, colour: int, failed: bool, title: Callable[[], str]) -> None:
        """Put a task in. The part outside of the lanes is cut off. `title` is called when it is drawn, if at all."""
        left, right = max(left, 0.0), min(right, self.width)
        if right < left:
            return
        if right - left < LEAST_BAR:
            self._merge(lane, left, right, colour, failed)
            return
        self._count += 1
        entry = (right - left, self._count, Bar(lane, left, right, colour, failed, title))
        if len(self._bars) < BARS:
            heapq.heappush(self._bars, entry)
        else:
            _, _, bar = heapq.heappushpop(self._bars, entry)
            self._merge(bar.lane, bar.left, bar.right, bar.colour, bar.failed)

    def mark(self, kind: str, lane: int, at: float, title: str) -> None:
        """Mark what happened there, if it is within the lanes."""
        if 0 <= at <= self.width:
            key = (kind, lane, int(at / MARK_WIDTH))
            if key in self.marks:
                self.marks[key].count += 1
            else:
                self.marks[key] = Mark(kind, lane, at, title)

    def bars(self) -> tuple[list[Bar], list[Bar]]:
        """The tasks that are drawn one by one: those that are told of, and the others."""
        ordered = [bar for _, _, bar in sorted(self._bars, key=lambda entry: (-entry[0], entry[1]))]
        return ordered[:TITLED], ordered[TITLED:]

    def runs(self) -> Iterator[Run]:
        """The short tasks: columns side by side that look the same are one run."""
        last: Run | None = None
        for cell in sorted(self._cells):
            lane, column = divmod(cell, self.columns)
            times = self._cells[cell]
            colour = max(times, key=times.__getitem__)
            filled = min(1.0, sum(times.values()) / self.column)
            level = max(1, math.ceil(filled * LEVELS - 0.25))
            run = Run(lane, column * self.column, (column + 1) * self.column, colour, level)
            if last and _look(last) == _look(run) and math.isclose(last.right, run.left):
                last = Run(lane, last.left, run.right, colour, level)
                continue
            if last:
                yield last
            last = run
        if last:
            yield last

    def failures(self) -> Iterator[tuple[int, float, float]]:
        """Where short tasks failed: lane, left and right."""
        for cell in sorted(self._failures):
            lane, column = divmod(cell, self.columns)
            yield lane, column * self.column, (column + 1) * self.column

    def _merge(self, lane: int, left: float, right: float, colour: int, failed: bool) -> None:
        """Put a task into the columns that it touches."""
        size = self.column
        last = self.columns - 1
        base = lane * self.columns
        low, high = min(last, int(left / size)), min(last, int(right / size))
        for column in range(low, high + 1):
            part = min(right, (column + 1) * size) - max(left, column * size)
            if part > 0 or low == high:
                times = self._cells.setdefault(base + column, {})
                times[colour] = times.get(colour, 0.0) + part
        if failed:
            self._failures.add(base + low)


def _look(run: Run) -> tuple[int, int, int]:
    return run.lane, run.colour, run.level
