"""Read a trace a second time, and put the part that is shown on the canvas, with totals for the legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pairpool.view.survey import Survey, arguments, lane_key, times
from pairpool.view.timeline_rows import Canvas
from pairpool.view.timeline_svg import OTHERS_COLOUR, PICKLING_COLOUR
from pairpool.view.timescale import length_text
from pairpool.view.trace_reader import Event

__all__ = ["Painter", "PaintedTotals"]

_MARK_KINDS = {"worker died": "died", "worker retired": "retired", "worker began": "began"}


@dataclass(slots=True)
class PaintedTotals:
    """Totals of the tasks and events in the picture.

    Attributes:
        tasks: the number of tasks of each function.
        lengths: the time that they took together, in µs.
        failed: the number of failed tasks.
        happened: how often workers `died`, were `retired` or `replaced`, and the number of spans of `pickling`.
    """

    tasks: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, float] = field(default_factory=dict)
    failed: int = 0
    happened: Counter[str] = field(default_factory=Counter)

    def add_task(self, name: str, length: float, *, failed: bool) -> None:
        """Count a task of `length` µs in the picture."""
        self.tasks[name] += 1
        self.lengths[name] = self.lengths.get(name, 0.0) + length
        self.failed += failed


class Painter:
    """Paints the part of a trace from `begin` to `end` (µs) on a canvas, each function in its colour."""

    def __init__(self, found: Survey, canvas: Canvas, begin: float, end: float, colours: Mapping[str, int]) -> None:
        self.totals = PaintedTotals()
        self._is_ours = found.is_ours
        self._canvas = canvas
        self._begin, self._end = begin, end
        self._scale = canvas.width / (end - begin)
        self._zero = 0.0 if found.is_ours else found.begin
        self._colours = colours
        self._rows = {key: row for row, key in enumerate(found.lanes)}
        self._ended: dict[int, tuple[str, float, str]] = {}
        self._labels = [lane.label for lane in found.lanes.values()]

    def paint(self, events: Iterable[Event]) -> None:
        """Paint all events that are in the picture."""
        ours = self._is_ours
        for event in events:
            phase, kind = event["ph"], event.get("cat")
            if phase == "X" and (kind == "item" or not ours):
                self._paint_task(event)
            elif phase == "X" and kind == "io":
                self._paint_pickling(event)
            elif phase == "i" and kind == "worker" and ours:
                self._paint_worker(event)

    def _place(self, event: Event) -> tuple[int, float, float] | None:
        """Return row, begin and end of an event; None if it is not in the picture."""
        span, row = times(event), self._rows.get(lane_key(event))
        if span is None or row is None:
            return None
        begin, end = span
        if begin == end and self._begin <= begin <= self._end:
            return row, *span
        return (row, *span) if begin < self._end and end > self._begin else None

    def _put(self, row: int, begin: float, end: float, colour: int, failed: bool, title: Callable[[], str]) -> None:
        left, right = (begin - self._begin) * self._scale, (end - self._begin) * self._scale
        self._canvas.add(row, left, right, colour, failed, title)

    def _paint_task(self, event: Event) -> None:
        place = self._place(event)
        if place is None:
            return
        row, begin, end = place
        name = str(event.get("name", ""))
        args = arguments(event)
        failed = self._is_ours and "error" in args
        self.totals.add_task(name, min(end, self._end) - max(begin, self._begin), failed=failed)

        def title() -> str:
            head = f"{name}[{args['item']}]" if "item" in args else name
            since = begin - self._zero
            lines = [f"{head}: {length_text(end - begin)}", f"{self._labels[row]}, at {length_text(since)}"]
            lines += [f"{word}: {args[word]}" for word in ("argument", "error") if word in args]
            return "\n".join(lines)

        self._put(row, begin, end, self._colours.get(name, OTHERS_COLOUR), failed, title)

    def _paint_pickling(self, event: Event) -> None:
        place = self._place(event)
        if place is not None:
            title = f"{'unpickling' if event.get('name') == 'load' else 'pickling'}: {length_text(place[2] - place[1])}"
            self._put(*place, PICKLING_COLOUR, False, lambda: title)
            self.totals.happened["pickling"] += 1

    def _paint_worker(self, event: Event) -> None:
        """Mark a death and its replacement. Mark a retirement only if a new worker followed.

        Other ends need no mark, because their lanes are no longer white.
        """
        span, row = times(event), self._rows.get(lane_key(event))
        kind = _MARK_KINDS.get(str(event.get("name")))
        if span is None or row is None or kind is None:
            return
        args = arguments(event)
        verb = {"died": "died", "retired": "was retired", "began": "took over"}[kind]
        title = f"{self._labels[row]} (pid {args.get('pid', '?')}) {verb} at {length_text(span[0])}"
        if args.get("reason"):
            title += f"\n{args['reason']}"
        if kind == "died":
            self._mark(kind, row, span[0], title)
        if kind != "began":
            self._ended[row] = kind, span[0], title
        elif row in self._ended:
            before, when, reason = self._ended.pop(row)
            if before == "retired":
                self._mark("retired", row, when, reason)
            else:
                self._mark("replaced", row, span[0], title)

    def _mark(self, kind: str, row: int, when: float, title: str) -> None:
        if self._begin <= when <= self._end:
            self._canvas.mark(kind, row, (when - self._begin) * self._scale, title)
            self.totals.happened[kind] += 1
