"""Survey a whole trace in one pass: its lanes, their busy times, and the total time of each function.

All times are in µs from the zero of the trace.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite

from pairpool.view.trace_reader import Event

__all__ = ["CoreUsage", "LaneKey", "Survey", "SurveyLane", "arguments", "core_usage", "coverage", "lane_key", "times"]

MAX_SPANS = 16_384
"""Busy times that a lane keeps. Above that number neighbours are joined, so memory does not grow with the trace."""

LaneKey = tuple[int | str, int | str]
"""The identity of a lane: process id and thread id."""


@dataclass(slots=True)
class SurveyLane:
    """The place of one worker.

    Attributes:
        label: the text beside the lane.
        begins, ends: when tasks began and ended here. Above `MAX_SPANS`, neighbours are joined.
        busy: how long tasks ran between each begin and end.
        started: when workers started here.
        gone: when workers ended here.
        closed: when the place was given up: its last worker was retired and was not replaced.
    """

    label: str = ""
    begins: array[float] = field(default_factory=lambda: array("d"))
    ends: array[float] = field(default_factory=lambda: array("d"))
    busy: array[float] = field(default_factory=lambda: array("d"))
    started: array[float] = field(default_factory=lambda: array("d"))
    gone: array[float] = field(default_factory=lambda: array("d"))
    closed: float = inf

    def add_work(self, begin: float, end: float) -> None:
        """Note that the worker ran something from `begin` to `end`."""
        self.begins.append(begin)
        self.ends.append(end)
        self.busy.append(end - begin)
        if len(self.begins) >= MAX_SPANS:
            self._join_neighbours()

    def _join_neighbours(self) -> None:
        """Halve the number of spans. A joined span covers two and the gap between them, and sums their busy times."""
        begins, ends, busy = (array("d") for _ in range(3))
        for number, (begin, end, time) in enumerate(self.work()):
            if number % 2:
                ends[-1] = end
                busy[-1] += time
            else:
                begins.append(begin)
                ends.append(end)
                busy.append(time)
        self.begins, self.ends, self.busy = begins, ends, busy

    def worker_started(self, when: float) -> None:
        """Note that a worker started here."""
        self.started.append(when)
        self.closed = inf

    def worker_ended(self, when: float, *, retired: bool) -> None:
        """Note that a worker died here, or was retired."""
        self.gone.append(when)
        self.closed = when if retired else inf

    def with_label(self, label: str) -> SurveyLane:
        """Return this lane with a label."""
        return SurveyLane(label, self.begins, self.ends, self.busy, self.started, self.gone, self.closed)

    @property
    def opened(self) -> float:
        """When the place was made. It lies before all times if the trace does not say."""
        return min(self.started) if self.started else -inf

    def work(self) -> Iterator[tuple[float, float, float]]:
        """Yield begin, end and busy time of each span: in order, without overlaps."""
        until = -inf
        for begin, end, busy in sorted(zip(self.begins, self.ends, self.busy, strict=True)):
            if end > until:
                first = max(begin, until)
                yield first, end, busy if first == begin else busy * (end - first) / (end - begin)
                until = end

    def lives(self) -> Iterator[tuple[float, float]]:
        """Yield the times in which there was a worker."""
        if not self.started:
            yield -inf, inf
            return
        gone = [*sorted(self.gone), inf]
        for begin in sorted(self.started):
            yield begin, gone[bisect_left(gone, begin)]


class Survey:
    """The contents of a trace, collected in one pass.

    Args:
        events: the events of the trace.

    Attributes:
        is_ours: whether pairpool wrote the trace. In other traces every complete event counts as a task.
        name: the name of the pool, or of the first process that has a name.
        begin, end: the time from the first to the last event. `end` is before `begin` if the trace has no events.
        lanes: the lanes that have events, in the order of the picture.
        functions: for each function, the total time of its tasks.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self.is_ours = False
        self.name = ""
        self.begin = inf
        self.end = -inf
        self.lanes: dict[LaneKey, SurveyLane] = {}
        self.functions: dict[str, float] = {}
        labels: dict[LaneKey, str] = {}
        for event in events:
            phase = event["ph"]
            if phase == "X":
                self._take_span(event)
            elif phase == "M":
                self._take_name(labels, event)
            elif phase == "i" and event.get("cat") == "worker" and self.is_ours:
                self._take_worker(event)
        ordered = sorted(self.lanes, key=lambda key: [(isinstance(part, str), part) for part in key])
        self.lanes = {key: self.lanes[key].with_label(labels.get(key) or "/".join(map(str, key))) for key in ordered}
        if self.is_ours:
            self.begin = min(self.begin, 0.0)

    def _take_span(self, event: Event) -> None:
        span = times(event)
        if span is None:
            return
        begin, end = span
        self._widen(begin, end)
        kind = event.get("cat") if self.is_ours else "both"
        if kind in ("item", "both"):
            name = str(event.get("name", ""))
            self.functions[name] = self.functions.get(name, 0.0) + end - begin
        if kind in ("batch", "both") or (kind == "item" and arguments(event).get("lost")):
            self._lane(event).add_work(begin, end)

    def _take_name(self, labels: dict[LaneKey, str], event: Event) -> None:
        args = arguments(event)
        name = str(args.get("name", ""))
        if event.get("name") == "thread_name":
            labels[lane_key(event)] = name
        elif event.get("name") == "process_name":
            self.is_ours = self.is_ours or "pairpool" in args
            self.name = self.name or name

    def _take_worker(self, event: Event) -> None:
        span = times(event)
        if span is None:
            return
        when = span[0]
        self._widen(when, when)
        lane = self._lane(event)
        if event.get("name") == "worker began":
            lane.worker_started(when)
        else:
            lane.worker_ended(when, retired=event.get("name") == "worker retired")

    def _widen(self, begin: float, end: float) -> None:
        self.begin, self.end = min(self.begin, begin), max(self.end, end)

    def _lane(self, event: Event) -> SurveyLane:
        return self.lanes.setdefault(lane_key(event), SurveyLane())


@dataclass(frozen=True, slots=True)
class CoreUsage:
    """The share of the workers that was busy.

    Attributes:
        shares: one share (0 to 1) of the expected workers for each part of the time. All parts are equally long.
        average: the share over the whole time. It is 0 if no worker was expected.
    """

    shares: tuple[float, ...]
    average: float


def lane_key(event: Event) -> LaneKey:
    """Return the identity of an event's lane."""
    pid, tid = event.get("pid", 0), event.get("tid", 0)
    return pid if type(pid) is int else str(pid), tid if type(tid) is int else str(tid)


def times(event: Event) -> tuple[float, float] | None:
    """Return begin and end of an event in µs; None if it has no valid times."""
    try:
        begin = float(event["ts"])
        end = begin + float(event.get("dur", 0))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (begin, end) if end >= begin and isfinite(begin) and isfinite(end) else None


def arguments(event: Event) -> Event:
    """Return the `args` of an event; empty if it has none."""
    args = event.get("args")
    return args if isinstance(args, dict) else {}


def coverage(spans: Iterable[tuple[float, float]], begin: float, end: float, parts: int) -> list[float]:
    """Divide the time from `begin` to `end` into equal parts, and return how much of each the spans cover, in µs."""
    return _shares(((first, last, last - first) for first, last in spans), begin, end, parts)


def _shares(spans: Iterable[tuple[float, float, float]], begin: float, end: float, parts: int) -> list[float]:
    """Do the same as `coverage` for spans that are busy only for a part of their time."""
    sums = [0.0] * parts
    size = (end - begin) / parts
    for first, last, busy in spans:
        share = busy / (last - first) if busy != last - first else 1.0
        first, last = max(first, begin), min(last, end)
        if not last > first:
            continue
        low = min(parts - 1, int((first - begin) / size))
        high = min(parts - 1, int((last - begin) / size))
        if low == high:
            sums[low] += (last - first) * share
            continue
        sums[low] += (begin + (low + 1) * size - first) * share
        sums[high] += (last - (begin + high * size)) * share
        for part in range(low + 1, high):
            sums[part] += size * share
    return sums


def core_usage(lanes: Sequence[SurveyLane], begin: float, end: float, parts: int) -> CoreUsage:
    """Divide the time from `begin` to `end` into equal parts, and return how busy the lanes were in each part.

    A worker is expected from the start of the first worker of a place until its last worker is retired. So the time
    between a death and the replacement counts as unused.
    """
    work = [0.0] * parts
    for lane in lanes:
        for part, covered in enumerate(_shares(lane.work(), begin, end, parts)):
            work[part] += covered
    places = coverage(((lane.opened, lane.closed) for lane in lanes), begin, end, parts)
    shares = tuple(min(1.0, used / there) if there else 0.0 for used, there in zip(work, places, strict=True))
    return CoreUsage(shares, min(1.0, sum(work) / sum(places)) if any(places) else 0.0)
