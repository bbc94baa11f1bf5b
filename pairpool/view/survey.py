"""What a whole trace holds, found in one pass: the lanes, when they were at work, and which functions took the time."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pairpool.view.trace_reader import Event

__all__ = ["Key", "SurveyLane", "Survey", "CoreUsage", "arguments", "coverage", "lane_key", "survey", "times", "usage"]

Key = tuple[int | str, int | str]
"""What tells lanes apart: process id and thread id."""

FOREVER = math.inf


@dataclass(slots=True)
class SurveyLane:
    """One worker's place. All times in µs from the trace's zero.

    Attributes:
        label: what to call it.
        begins, ends: when it was at work, in the order of the file.
        born: when workers began here.
        gone: when workers ended here.
        closed: when the place was given up: its last worker was retired and none came after it.
    """

    label: str = ""
    begins: array[float] = field(default_factory=lambda: array("d"))
    ends: array[float] = field(default_factory=lambda: array("d"))
    born: array[float] = field(default_factory=lambda: array("d"))
    gone: array[float] = field(default_factory=lambda: array("d"))
    closed: float = FOREVER

    @property
    def opened(self) -> float:
        """When the place was made; before all times if that was not told."""
        return min(self.born) if self.born else -FOREVER

    def work(self) -> Iterator[tuple[float, float]]:
        """When it was at work: in order, nothing twice."""
        until = -FOREVER
        for begin, end in sorted(zip(self.begins, self.ends, strict=True)):
            if end > until:
                yield max(begin, until), end
                until = end

    def lives(self) -> Iterator[tuple[float, float]]:
        """When there was a worker."""
        if not self.born:
            yield -FOREVER, FOREVER
            return
        gone = [*sorted(self.gone), FOREVER]
        for begin in sorted(self.born):
            yield begin, gone[bisect_left(gone, begin)]


@dataclass(slots=True)
class Survey:
    """What a trace holds. All times in µs from the trace's zero.

    Attributes:
        is_ours: whether pairpool wrote it; else every complete event counts as a task.
        name: of the pool, or of the first process that has one.
        begin, end: of the whole, `end` before `begin` if nothing happens.
        lanes: those in which something happens, in the order of the picture.
        functions: for each, how long its tasks took together.
    """

    is_ours: bool = False
    name: str = ""
    begin: float = FOREVER
    end: float = -FOREVER
    lanes: dict[Key, SurveyLane] = field(default_factory=dict)
    functions: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoreUsage:
    """How much of the workers was used.

    Attributes:
        shares: of the workers that were to be there, how many were at work: in equal parts of the time, 0 to 1.
        average: the same of the whole time; 0 if no worker was to be there.
    """

    shares: tuple[float, ...]
    average: float


def survey(events: Iterable[Event]) -> Survey:
    """Go through a trace."""
    found = Survey()
    names: dict[Key, str] = {}
    for event in events:
        phase = event["ph"]
        if phase == "X":
            _take_span(found, event)
        elif phase == "M":
            _take_name(found, names, event)
        elif phase == "i" and event.get("cat") == "worker" and found.is_ours:
            _take_worker(found, event)
    for key, lane in found.lanes.items():
        lane.label = names.get(key) or "/".join(map(str, key))
    ordered = sorted(found.lanes, key=lambda key: [(isinstance(part, str), part) for part in key])
    found.lanes = {key: found.lanes[key] for key in ordered}
    if found.is_ours:
        found.begin = min(found.begin, 0.0)
    return found


def lane_key(event: Event) -> Key:
    """The lane of an event."""
    pid, tid = event.get("pid", 0), event.get("tid", 0)
    return pid if type(pid) is int else str(pid), tid if type(tid) is int else str(tid)


def times(event: Event) -> tuple[float, float] | None:
    """Begin and end of an event in µs; None if it has none that make sense."""
    try:
        begin = float(event["ts"])
        end = begin + float(event.get("dur", 0))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (begin, end) if end >= begin and math.isfinite(begin) and math.isfinite(end) else None


def arguments(event: Event) -> Event:
    """What an event tells beside its times."""
    args = event.get("args")
    return args if isinstance(args, dict) else {}


def _take_span(found: Survey, event: Event) -> None:
    span = times(event)
    if span is None:
        return
    begin, end = span
    found.begin, found.end = min(found.begin, begin), max(found.end, end)
    kind = event.get("cat") if found.is_ours else "both"
    if kind in ("item", "both"):
        name = str(event.get("name", ""))
        found.functions[name] = found.functions.get(name, 0.0) + end - begin
    if kind in ("batch", "both") or (kind == "item" and arguments(event).get("lost")):
        lane = found.lanes.setdefault(lane_key(event), SurveyLane())
        lane.begins.append(begin)
        lane.ends.append(end)


def _take_name(found: Survey, names: dict[Key, str], event: Event) -> None:
    args = arguments(event)
    name = str(args.get("name", ""))
    if event.get("name") == "thread_name":
        names[lane_key(event)] = name
    elif event.get("name") == "process_name":
        found.is_ours = found.is_ours or "pairpool" in args
        found.name = found.name or name


def _take_worker(found: Survey, event: Event) -> None:
    span = times(event)
    if span is None:
        return
    when = span[0]
    found.begin, found.end = min(found.begin, when), max(found.end, when)
    lane = found.lanes.setdefault(lane_key(event), SurveyLane())
    if event.get("name") == "worker began":
        lane.born.append(when)
        lane.closed = FOREVER
    else:
        lane.gone.append(when)
        lane.closed = when if event.get("name") == "worker retired" else FOREVER


def coverage(spans: Iterable[tuple[float, float]], begin: float, end: float, parts: int) -> list[float]:
    """How much of each of so many equal parts of the time from `begin` to `end` these spans cover, summed up, in µs."""
    sums = [0.0] * parts
    size = (end - begin) / parts
    for first, last in spans:
        first, last = max(first, begin), min(last, end)
        if not last > first:
            continue
        low = min(parts - 1, int((first - begin) / size))
        high = min(parts - 1, int((last - begin) / size))
        if low == high:
            sums[low] += last - first
            continue
        sums[low] += begin + (low + 1) * size - first
        sums[high] += last - (begin + high * size)
        for part in range(low + 1, high):
            sums[part] += size
    return sums


def usage(lanes: Sequence[SurveyLane], begin: float, end: float, parts: int) -> CoreUsage:
    """How much of the lanes was used from `begin` to `end`, in so many equal parts of the time.

    A worker is to be there from the first that had its place to the last that was retired. So the time from a death
    to the replacement counts as unused.
    """
    work = [0.0] * parts
    for lane in lanes:
        for part, covered in enumerate(coverage(lane.work(), begin, end, parts)):
            work[part] += covered
    places = coverage(((lane.opened, lane.closed) for lane in lanes), begin, end, parts)
    shares = tuple(min(1.0, used / there) if there else 0.0 for used, there in zip(work, places, strict=True))
    return CoreUsage(shares, min(1.0, sum(work) / sum(places)) if any(places) else 0.0)
