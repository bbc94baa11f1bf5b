"""The tasks and marks of a timeline's lanes, in pixels. Long tasks stay single and short tasks are merged, to keep the
picture small."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["OPACITY_LEVELS", "Bar", "Canvas", "Mark", "Run"]

MAX_COLUMNS = 60_000
"""Short tasks are merged in columns. All lanes together have at most this number of columns."""

MAX_BARS = 35_000
"""At most this number of tasks, the longest ones, are drawn singly."""

MIN_BAR_PX = 2.0
"""Tasks that are narrower than this are merged."""

MAX_TITLED_BARS = 3_000
"""At most this number of tasks, the longest ones, have a tooltip."""

MARK_MERGE_PX = 3.0
"""Marks of one kind that are closer than this become one mark."""

OPACITY_LEVELS = 4
"""Number of shades that show how full a column is."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A task from `left` to `right`, in pixels. `title` returns the text of its tooltip."""

    lane: int
    left: float
    right: float
    colour: int
    failed: bool
    title: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Run:
    """Adjacent columns from `left` to `right` in which short tasks ran, most of the time those of one colour.

    The tasks took about `level` of `OPACITY_LEVELS` parts of the time: 1 means little, `OPACITY_LEVELS` means all.
    """

    lane: int
    left: float
    right: float
    colour: int
    level: int


@dataclass(slots=True)
class Mark:
    """An event that happened `count` times near `at`. `title` describes the first one."""

    kind: str
    lane: int
    at: float
    title: str
    count: int = 1

    def count_again(self) -> None:
        """Count one more event at this place."""
        self.count += 1


@dataclass(slots=True)
class Canvas:
    """Collects tasks and marks, in pixels from the left edge of the lanes.

    The memory depends on the lanes and the width, not on the number of tasks.

    Attributes:
        lanes: the number of lanes.
        width: the width of the lanes in pixels.
        columns: the number of columns per lane.
        column: the width of a column in pixels.
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
        self.columns = max(1, min(math.ceil(self.width), MAX_COLUMNS // max(1, self.lanes)))
        self.column = self.width / self.columns

    def add(self, lane: int, left: float, right: float, colour: int, failed: bool, title: Callable[[], str]) -> None:
        """Add a task. The part outside the lanes is cut off. `title` is called when the task is drawn, if at all."""
        left, right = max(left, 0.0), min(right, self.width)
        if right < left:
            return
        if right - left < MIN_BAR_PX:
            self._merge(lane, left, right, colour, failed)
            return
        self._count += 1
        entry = (right - left, self._count, Bar(lane, left, right, colour, failed, title))
        if len(self._bars) < MAX_BARS:
            heapq.heappush(self._bars, entry)
        else:
            _, _, bar = heapq.heappushpop(self._bars, entry)
            self._merge(bar.lane, bar.left, bar.right, bar.colour, bar.failed)

    def mark(self, kind: str, lane: int, at: float, title: str) -> None:
        """Add a mark, if it is within the lanes."""
        if 0 <= at <= self.width:
            key = (kind, lane, int(at / MARK_MERGE_PX))
            if key in self.marks:
                self.marks[key].count_again()
            else:
                self.marks[key] = Mark(kind, lane, at, title)

    def bars(self) -> tuple[list[Bar], list[Bar]]:
        """Return the tasks that are drawn singly: those with a tooltip, and the others."""
        ordered = [bar for _, _, bar in sorted(self._bars, key=lambda entry: (-entry[0], entry[1]))]
        return ordered[:MAX_TITLED_BARS], ordered[MAX_TITLED_BARS:]

    def runs(self) -> Iterator[Run]:
        """Yield the short tasks: adjacent columns that look the same are one run."""
        last: Run | None = None
        for cell in sorted(self._cells):
            lane, column = divmod(cell, self.columns)
            times = self._cells[cell]
            colour = max(times, key=times.__getitem__)
            filled = min(1.0, sum(times.values()) / self.column)
            level = max(1, math.ceil(filled * OPACITY_LEVELS - 0.25))
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
        """Yield the columns in which short tasks failed: lane, left and right."""
        for cell in sorted(self._failures):
            lane, column = divmod(cell, self.columns)
            yield lane, column * self.column, (column + 1) * self.column

    def _merge(self, lane: int, left: float, right: float, colour: int, failed: bool) -> None:
        """Add a task to the columns that it touches."""
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
