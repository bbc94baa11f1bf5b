"""`pairpool timeline`: draw a trace as an SVG picture, with one lane per worker and the utilisation below.

file ─► survey (first pass) ─► scale, colours ─► canvas (second pass) ─► picture ─► SVG text
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Sequence

from pairpool.view.painter import PaintedTotals, Painter
from pairpool.view.survey import CoreUsage, Survey, SurveyLane, core_usage, coverage
from pairpool.view.timeline_rows import Canvas
from pairpool.view.timeline_svg import OTHERS_COLOUR, Entry, Picture, lanes_width, render
from pairpool.view.timescale import SECOND_US, length_text
from pairpool.view.trace_reader import TraceReader

__all__ = ["NothingToDraw", "draw", "run"]

CURVE_STEP_PX = 2.0
"""Width of one step of the utilisation curve."""


class NothingToDraw(Exception):
    """The trace has no task, or none in the requested part."""


def draw(
    reader: TraceReader, width: int, begin: float | None = None, end: float | None = None
) -> tuple[str, list[str]]:
    """Draw a trace.

    Args:
        reader: the trace.
        width: the width of the picture in pixels.
        begin: the first second to show, counted from the opening of the pool. In a trace of another program it counts
            from the first event.
        end: the last second to show.

    Returns:
        The SVG text, and remarks for the reader, such as that the trace is cut off.

    Raises:
        ValueError: the file is not a trace.
        NothingToDraw: the trace has no tasks, or none of that time.
    """
    found = Survey(reader.events())
    if not found.functions:
        raise NothingToDraw(f"{reader.path} holds no tasks")
    zero = 0.0 if found.is_ours else found.begin
    first = found.begin if begin is None else zero + begin * SECOND_US
    last = max(found.end, first + 1e-3) if end is None else zero + end * SECOND_US
    lanes = tuple(found.lanes.values())
    ranked = sorted(found.functions, key=lambda name: -found.functions[name])
    colours = {name: min(rank, OTHERS_COLOUR) for rank, name in enumerate(ranked)}
    canvas = Canvas(len(lanes), lanes_width(width, [lane.label for lane in lanes]))
    painter = Painter(found, canvas, first, last, colours)
    if first <= found.end:
        painter.paint(reader.events())
    totals = painter.totals
    if not totals.tasks:
        ends = length_text(found.end - zero)
        raise NothingToDraw(f"{reader.path} holds no tasks between these times: it ends at {ends}")
    used = core_usage(lanes, first, last, max(1, round(canvas.width / CURVE_STEP_PX)))
    picture = Picture(
        title=found.name or os.path.basename(reader.path),
        is_ours=found.is_ours,
        facts=_facts(found, totals, last - first, used),
        remarks=_remarks(reader, found),
        width=width,
        lanes=lanes,
        begin=first,
        end=last,
        zero=zero,
        canvas=canvas,
        legend=_legend(totals, colours),
        happened=_happened(totals, lanes, first, last),
        usage=used,
    )
    return render(picture), list(picture.remarks)


def _remarks(reader: TraceReader, found: Survey) -> list[str]:
    remarks = []
    if reader.truncated:
        remarks.append("the trace is cut off: its pool runs still, or its end was not written")
    if not found.is_ours:
        remarks.append("not written by pairpool: every span counts as a task")
    return remarks


def _happened(totals: PaintedTotals, lanes: Sequence[SurveyLane], begin: float, end: float) -> frozenset[str]:
    """Return the kinds of marks that the legend explains."""
    happened = {kind for kind, count in totals.happened.items() if count}
    if totals.failed:
        happened.add("failed")
    if any(coverage(lane.lives(), begin, end, 1)[0] < 0.995 * (end - begin) for lane in lanes):
        happened.add("absent")
    return frozenset(happened)


def _facts(found: Survey, totals: PaintedTotals, length: float, used: CoreUsage) -> list[str]:
    def say(number: int, one: str) -> str:
        return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"

    lane = "worker" if found.is_ours else "thread"
    facts = [length_text(length), say(len(found.lanes), lane), say(totals.tasks.total(), "task")]
    if found.is_ours:
        facts.append(f"{totals.failed:,} failed")
    if totals.happened["died"]:
        facts.append(say(totals.happened["died"], "death"))
    return [*facts, f"{lane}s busy {used.average:.0%} of the time"]


def _legend(totals: PaintedTotals, colours: dict[str, int]) -> list[Entry]:
    """Return one entry per function, the longest total time first. Functions that share a colour share an entry."""
    entries: dict[int, Entry] = {}
    for name in sorted(totals.tasks, key=lambda name: colours[name]):
        colour, count, length = colours[name], totals.tasks[name], totals.lengths[name]
        if colour == OTHERS_COLOUR and colour in entries:
            old = entries[colour]
            entries[colour] = Entry(colour, "others", old.count + count, old.length + length)
        else:
            entries[colour] = Entry(colour, name or "(no name)", count, length)
    return list(entries.values())


def run(path: str, output: str | None, width: int, begin: float | None, end: float | None) -> int:
    """Draw the trace at `path` into the file `output`, by default beside the trace, and return the exit status.

    0: the picture is drawn. 1: there is nothing to draw. 2: the trace cannot be read, or the picture cannot be written.
    """
    put = _put
    if output is None:
        output, put = os.path.splitext(path)[0] + ".svg", _replace
    try:
        if output != "-" and os.path.exists(output) and os.path.samefile(path, output):
            raise ValueError(f"{output} is the trace itself: name another file with -o")
        with TraceReader(path) as reader:
            text, remarks = draw(reader, width, begin, end)
        put(text.encode(), output)
    except NothingToDraw as nothing:
        return _complain(nothing, 1)
    except OSError as error:
        return _complain(f"{error.filename or path}: {error.strerror}", 2)
    except ValueError as error:
        return _complain(error, 2)
    for remark in remarks:
        _complain(f"{path}: {remark}", 0)
    return 0


def _complain(text: object, status: int) -> int:
    print(f"pairpool timeline: {text}", file=sys.stderr)
    return status


def _replace(data: bytes, output: str) -> None:
    """Write a file that the user has not named.

    The directory may belong to another user. So the file is new and then takes the name, in place of any link.
    """
    directory, name = os.path.split(output)
    new = os.path.join(directory, f".{name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.rename(new, output)
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, output) from None


def _put(data: bytes, output: str) -> None:
    try:
        if output != "-":
            with open(output, "wb") as file:
                file.write(data)
            return
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        while data:  # bypass the buffer of sys.stdout, which the interpreter would write again at its end
            data = data[os.write(sys.stdout.fileno(), data) :]
    except BrokenPipeError:
        pass  # the reader has seen enough
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout" if output == "-" else output) from None
