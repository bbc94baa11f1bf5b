"""Draw the picture of a pool: a `PoolStatus` and a size in, a `Frame` out. No clock, no terminal, no I/O.

    name and uptime
    workers, CPU, memory
    tasks, tasks per second, the last minute
    a bar for each running call
    a row for each worker
    the last failures

A terminal of 40 x 10 cells shows some of every part. A smaller one shows as much as fits.
"""

from __future__ import annotations

from rich.cells import cell_len

from pairpool.status import CallStatus, FailureStatus, PoolStatus
from pairpool.view.columns import workers_table
from pairpool.view.frame import BOLD, CYAN, FAINT, GREEN, RED, YELLOW, Frame, Line, cells, joined
from pairpool.view.text import Glyphs, clean, count, fit, item_name, percent, rate, seconds, share_text, size

__all__ = ["headline_plain", "render"]

UNICODE = Glyphs()
ASCII = Glyphs(ascii=True)

GAPS_FROM_LINES = 18
"""From this height on, empty lines separate the parts."""

RATE_OVER_S = 5
"""Tasks per second are averaged over this time."""

MAX_LABEL_CELLS = 28
MIN_BAR_CELLS, MAX_BAR_CELLS = 6, 60

MIN_PLACE_CELLS = 12
"""Minimum width of a failed item's name. At most it has half of the line, so that the error has room."""


def render(status: PoolStatus, width: int, height: int | None, *, ascii: bool = False) -> Frame:
    """Return the picture of a pool.

    Args:
        status: the status to draw.
        width: the maximum width in cells.
        height: the maximum number of lines; None for no limit.
        ascii: use only ASCII signs.
    """
    if height is None:
        height = GAPS_FROM_LINES + len(status.running) + len(status.workers) + len(status.failures)
    glyphs = ASCII if ascii else UNICODE
    head = _headlines(status, width, glyphs)[:height]
    gap = 1 if height >= GAPS_FROM_LINES else 0
    calls, workers, failures = _allot(status, height - len(head), gap)
    parts = [
        head,
        _calls(status, width, calls, glyphs),
        workers_table(status, width, workers, glyphs),
        _failures(status, width, failures, glyphs),
    ]
    lines: list[Line] = []
    for part in parts:
        if part and lines and gap:
            lines.append([])
        lines += part
    return Frame(lines[: max(0, height)], max(1, width))


def headline_plain(status: PoolStatus) -> str:
    """Return the status of a pool in one line of plain text."""
    workers = f"{status.busy} busy, {status.idle} idle"
    if status.starting:
        workers += f", {status.starting} starting"
    tasks = f"{status.done:,} done, {status.failed:,} failed, {status.pending:,} pending"
    speed = rate(_speed(status))
    text = f"{clean(status.name)}: up {seconds(status.uptime)}; workers: {workers}; tasks: {tasks}; {speed}"
    if status.is_over:
        text = f"{clean(status.name)}: ended after {seconds(status.uptime)}; tasks: {status.done:,} done, "
        text += f"{status.failed:,} failed"
    return f"{text}; {clean(status.remark)}" if status.remark else text


def _speed(status: PoolStatus) -> float:
    """Return the tasks per second in the last seconds. For a pool that has ended, return its average."""
    if status.is_over:
        return status.done / status.uptime if status.uptime else 0.0
    span = min(RATE_OVER_S, max(1, int(status.uptime)))
    return sum(status.rates[-span:]) / span


def _allot(status: PoolStatus, lines: int, gap: int) -> tuple[int, int, int]:
    """Return the number of lines for calls, workers and failures, without the gaps."""
    calls, workers, failures = len(status.running), len(status.workers), len(status.failures)
    lines -= gap * sum(map(bool, (calls, workers, failures)))
    wanted = workers + 1 if workers else 0
    least = min(wanted, 4)
    calls = min(calls, max(1, (lines - least) // 3)) if lines > least else 0
    failures = min(failures, max(0, (lines - least - calls) // (2 if wanted > lines - calls - failures else 1)))
    failures = min(failures, max(1, (lines - calls) // 4)) if wanted > lines - calls - failures else failures
    rest = max(0, lines - calls - failures)
    rows = min(wanted, rest)
    return min(len(status.running), calls + rest - rows), rows, failures


# --- the head -----------------------------------------------------------------------------------------


def _headlines(status: PoolStatus, width: int, glyphs: Glyphs) -> list[Line]:
    lines = [_first(status, width, glyphs)]
    if not status.is_over:
        lines.append(_workers(status, width))
    lines.append(_tasks(status, width, glyphs))
    if status.remark:
        lines.insert(1, [(fit(clean(status.remark), width, glyphs), YELLOW)])
    return lines


def _first(status: PoolStatus, width: int, glyphs: Glyphs) -> Line:
    state = {"RUN": "", "CLOSE": "closing"}.get(status.state, "ended" if status.is_over else "ending")
    beside = [f"up {seconds(status.uptime)}"] if not status.is_over else [f"ended after {seconds(status.uptime)}"]
    name = clean(status.name)
    parts: list[tuple[int, Line]] = [
        (9, [(fit(name, min(cell_len(name), max(8, width - 18)), glyphs), BOLD)]),
        (8, [(beside[0], None)]),
        (5, [(f"pid {status.pid}", FAINT)]),
        (1, [(status.start_method, FAINT)]),
    ]
    if state and not status.is_over:
        parts.insert(1, (7, [(state, YELLOW)]))
    return joined(parts, width)


def _workers(status: PoolStatus, width: int) -> Line:
    parts: list[tuple[int, Line]] = [
        (9, [(f"{status.busy} busy", GREEN if status.busy else FAINT)]),
        (8, [(f"{status.idle} idle", None if status.idle else FAINT)]),
        (6, [(f"{status.starting} starting", YELLOW if status.starting else FAINT)]),
    ]
    if width >= 60:
        parts.insert(0, (10, [("workers", FAINT)]))
    if status.cpu is not None:
        parts.append((5, [("cpu " if width >= 60 else "", FAINT), (percent(status.cpu), None)]))
    if status.rss is not None:
        parts.append((4, [("memory " if width >= 60 else "", FAINT), (size(status.rss), None)]))
    return joined(parts, width)


def _tasks(status: PoolStatus, width: int, glyphs: Glyphs) -> Line:
    parts: list[tuple[int, Line]] = [
        (9, [(f"{count(status.done)} done", None)]),
        (8, [(f"{count(status.failed)} failed", RED if status.failed else FAINT)]),
        (7, [(f"{count(status.pending)} pending", None if status.pending else FAINT)]),
        (6, [(rate(_speed(status)), CYAN)]),
    ]
    if width >= 60:
        parts.insert(0, (10, [("tasks  ", FAINT)]))
    line = joined(parts, width)
    room = width - cells(line) - 2
    if room >= 8 and status.rates:
        seconds_open = int(status.uptime) + 1
        line += [("  ", None), (glyphs.sparkline(status.rates, min(room, 60, seconds_open)), CYAN)]
    return line


# --- calls --------------------------------------------------------------------------------------------


def _calls(status: PoolStatus, width: int, lines: int, glyphs: Glyphs) -> list[Line]:
    shown = status.running[:lines]
    if not shown:
        return []
    more = max(len(status.running), status.calls) - len(shown)
    label = max(cell_len(_label(call)) for call in shown)
    label = min(label, MAX_LABEL_CELLS, max(6, width // 4))
    figures = [_figures(call, max(4, width - label - 2 - MIN_BAR_CELLS * (call.total is not None))) for call in shown]
    beside_bars = [cells(line) for line, call in zip(figures, shown, strict=True) if call.total is not None]
    bar = max(0, min(MAX_BAR_CELLS, width - label - 2 - max(beside_bars, default=0)))
    table: list[Line] = []
    for call, beside in zip(shown, figures, strict=True):
        drawn = _bar(call, bar, glyphs) if call.total is not None else []
        table.append([(fit(_label(call), label, glyphs), None), (" ", None), *drawn, (" ", None), *beside])
    if more > 0 and len(shown) > 1:
        table[-1] = [(fit(f"{glyphs.more} {more + 1} more calls", width, glyphs), FAINT)]
    return table


def _label(call: CallStatus) -> str:
    return f"{call.kind} {clean(call.function)}".rstrip()


def _figures(call: CallStatus, width: int) -> Line:
    """Return the figures beside the bar. If there is not enough room, leave out the least important ones."""
    speed = call.done / call.seconds if call.seconds > 0 else 0.0
    figures: list[tuple[int, Line]] = []
    if call.total is not None:
        share = call.done / call.total if call.total else 1.0
        figures.append((9, [(f"{share_text(share):>4}", BOLD)]))
        figures.append((5, [(f"{count(call.done)}/{count(call.total)}", None)]))
    else:
        figures.append((9, [(f"{count(call.done)} done", BOLD)]))
    if call.failed:
        figures.append((8, [(f"{count(call.failed)} failed", RED)]))
    figures.append((4, [(rate(speed), CYAN)]))
    if call.total is not None and speed > 0 and call.done < call.total:
        figures.append((7, [(f"{seconds((call.total - call.done) / speed)} left", None)]))
    return joined(figures, width)


def _bar(call: CallStatus, width: int, glyphs: Glyphs) -> Line:
    """Return a bar: its done part is green, and the failed share of it red."""
    total = max(1, call.total or 1)
    done, rest = glyphs.bar(call.done / total, width)
    failed = min(len(done), -(-call.failed * width // total))
    return [(done[: len(done) - failed], GREEN), (done[len(done) - failed :], RED), (rest, FAINT)]


# --- failures -----------------------------------------------------------------------------------------


def _failures(status: PoolStatus, width: int, lines: int, glyphs: Glyphs) -> list[Line]:
    shown = status.failures[:lines]
    places = [_place(one, width, glyphs) for one in shown]
    column = max(map(cell_len, places), default=0)
    return [_failure(one, fit(place, column, glyphs), width, glyphs) for one, place in zip(shown, places, strict=True)]


def _place(one: FailureStatus, width: int, glyphs: Glyphs) -> str:
    """Return the name of the failed item, and its worker if there is room."""
    where = item_name(one.function, one.item, max(MIN_PLACE_CELLS, width // 2), glyphs)
    return f"{where} on {one.worker}" if one.worker is not None and width >= 100 else where


def _failure(one: FailureStatus, place: str, width: int, glyphs: Glyphs) -> Line:
    line: Line = [(f"{glyphs.cross} ", RED)]
    if width >= 60:
        ago = fit(f"{seconds(one.seconds)} ago", 10, glyphs, right=True)
        line.append((f"{ago}  ", FAINT))
    line.append((f"{place}  ", CYAN))
    return [*line, (fit(clean(one.error), max(0, width - cells(line)), glyphs), RED)]
