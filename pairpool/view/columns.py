"""Build the table of workers: choose the columns that fit, and make a row for each worker. A status in, lines out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.cells import cell_len
from rich.style import Style

from pairpool.status import PoolStatus, WorkerStatus
from pairpool.view.frame import BOLD, CYAN, FAINT, GREEN, RED, YELLOW, Line
from pairpool.view.text import Glyphs, clean, count, fit, item_name, percent, seconds, share_text, size

__all__ = ["workers_table"]

MIN_TASK_CELLS = 18
"""Minimum width of the column of tasks. Other columns are left out before it becomes narrower."""

TASK_STEP_CELLS = 20
"""The column of tasks grows by this step, so that its width does not change with each task."""

ARGUMENT_EXTRA_CELLS = 8
"""Further width of the column of tasks if arguments are known."""

WIDE_FROM_CELLS = 100
"""From this width on the state is a word. Below, it is only a sign."""

PROGRESS_BAR_CELLS = 8
MAX_NOTE_CELLS = 30

Cell = tuple[str, Style | None]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table.

    Attributes:
        title: the text above the column.
        rank: the columns with the lowest rank are left out first.
        width: the width in cells.
        right: whether texts are aligned to the right.
        cell: returns the text and the style for a worker.
    """

    title: str
    rank: int
    width: int
    right: bool
    cell: Callable[[WorkerStatus], Cell]


def workers_table(status: PoolStatus, width: int, lines: int, glyphs: Glyphs) -> list[Line]:
    """Return at most `lines` lines of `width` cells: a head, the workers, and the number of hidden workers.

    Show all workers in order if there is room, else the workers with the longest running tasks.
    """
    workers = status.workers
    if lines < 1 or not workers:
        return []
    if lines == 1:
        return [[(fit(_others(workers, glyphs), width, glyphs), FAINT)]]
    shown: Sequence[WorkerStatus] = workers
    if len(workers) > lines - 1:
        shown = sorted(workers, key=_urgency)[: lines - 2]
    columns = _choose(_columns(workers, width, glyphs), width, _longest(shown))
    table = [_head(columns, width, glyphs)]
    table += [_row(worker, columns, width, glyphs) for worker in shown]
    if len(shown) < len(workers):
        hidden = sorted(workers, key=_urgency)[len(shown) :]
        table.append([(fit(_others(hidden, glyphs), width, glyphs), FAINT)])
    return table


def _urgency(worker: WorkerStatus) -> tuple[bool, float, bool, int]:
    return not worker.is_busy, -worker.seconds, not worker.is_starting, worker.number


def _others(workers: Sequence[WorkerStatus], glyphs: Glyphs) -> str:
    busy = sum(worker.is_busy for worker in workers)
    starting = sum(worker.is_starting for worker in workers)
    idle = len(workers) - busy - starting
    kinds = [f"{number} {kind}" for number, kind in ((busy, "busy"), (idle, "idle"), (starting, "starting")) if number]
    return f"{glyphs.more} {len(workers)} more: {', '.join(kinds)}"


# --- columns ------------------------------------------------------------------------------------------


def _columns(workers: Sequence[WorkerStatus], width: int, glyphs: Glyphs) -> list[Column]:
    """Return all columns that have something to show for these workers. `_choose` sets the width of the task."""
    digits = max(2, len(str(max(worker.number for worker in workers))))
    pids = max(5, max(len(str(worker.pid)) for worker in workers))
    arguments = any(worker.argument for worker in workers)
    notes = max((cell_len(clean(worker.note)) for worker in workers), default=0)
    columns = [
        Column("#", 100, digits, True, lambda worker: (str(worker.number), BOLD)),
        Column("pid", 30, pids, True, lambda worker: (str(worker.pid or ""), FAINT)),
        Column(
            "state" if width >= WIDE_FROM_CELLS else "",
            50,
            10 if width >= WIDE_FROM_CELLS else 1,
            False,
            partial(_state, glyphs),
        ),
        Column("task", 99, MIN_TASK_CELLS + ARGUMENT_EXTRA_CELLS * arguments, False, _nothing),
        Column("for", 98, 6, True, lambda worker: (seconds(worker.seconds) if worker.is_busy else "", None)),
    ]
    if any(worker.progress is not None for worker in workers):
        columns.append(Column("progress", 90, PROGRESS_BAR_CELLS + 5, False, _nothing))
    if notes:
        columns.append(
            Column("note", 25, min(MAX_NOTE_CELLS, max(8, notes)), False, lambda worker: (worker.note, FAINT))
        )
    columns += [
        Column("done", 60, 7, True, lambda worker: (count(worker.done), None)),
        Column("failed", 55, 6, True, lambda worker: (count(worker.failed), RED if worker.failed else FAINT)),
    ]
    if any(worker.cpu is not None for worker in workers):
        columns.append(Column("cpu", 70, 5, True, lambda worker: _maybe(worker.cpu, percent)))
    if any(worker.rss is not None for worker in workers):
        columns.append(Column("rss", 65, 6, True, lambda worker: _maybe(worker.rss, size)))
    if any(worker.replaced for worker in workers):
        columns.append(Column("repl", 40, 4, True, lambda worker: _replaced(worker)))
    return columns


def _longest(workers: Sequence[WorkerStatus]) -> int:
    """Return the width of the longest task in cells."""
    return max(
        (cell_len(f"{clean(one.function)}[{one.item}] {clean(one.argument)}") for one in workers if one.is_busy),
        default=0,
    )


def _choose(columns: list[Column], width: int, task: int) -> list[Column]:
    """Return the columns that fit, by rank. The column of tasks gets the remaining cells, as far as it needs them."""
    needed = max(2, -(-task // TASK_STEP_CELLS)) * TASK_STEP_CELLS
    kept = list(columns)
    while _cells(kept) > width and len(kept) > 3:
        kept.remove(min(kept, key=lambda column: column.rank))
    spare = width - _cells(kept)
    return [
        replace(column, width=max(1, min(needed, column.width + spare))) if column.title == "task" else column
        for column in kept
    ]


def _cells(columns: list[Column]) -> int:
    return sum(column.width + 1 for column in columns) - 1


def _head(columns: list[Column], width: int, glyphs: Glyphs) -> Line:
    titles = [fit(column.title, column.width, glyphs, right=column.right) for column in columns]
    return [(fit(" ".join(titles), width, glyphs), FAINT)]


def _row(worker: WorkerStatus, columns: list[Column], width: int, glyphs: Glyphs) -> Line:
    line: Line = []
    for place, column in enumerate(columns):
        if place:
            line.append((" ", None))
        if column.title == "task":
            says_state = any(one.title == "state" for one in columns)
            line += _task(worker, column.width, glyphs, says_state)
        elif column.title == "progress":
            line += _progress_bar(worker, column.width, glyphs)
        else:
            text, style = column.cell(worker)
            if column.width == 1:
                text = text[:1]  # only the sign of the state
            line.append((fit(clean(text), column.width, glyphs, right=column.right), style))
    return line


# --- cells --------------------------------------------------------------------------------------------


def _nothing(_worker: WorkerStatus) -> Cell:
    return "", None  # `_row` fills this cell, because it has more than one style


def _state(glyphs: Glyphs, worker: WorkerStatus) -> Cell:
    if worker.is_starting:
        return f"{glyphs.other} starting", YELLOW
    if worker.is_busy:
        return f"{glyphs.busy} {worker.state}", GREEN
    return f"{glyphs.idle} {worker.state}", FAINT


def _maybe(value: float | int | None, show: Callable[[int], str]) -> Cell:
    return ("" if value is None else show(value), None)  # type: ignore[arg-type]  # percent takes a float, size an int


def _replaced(worker: WorkerStatus) -> Cell:
    return (str(worker.replaced), YELLOW) if worker.replaced else ("", None)


def _task(worker: WorkerStatus, width: int, glyphs: Glyphs, says_state: bool) -> Line:
    """Return the task and as much of its argument as fits. Without a task, return the state if no column shows it."""
    if not worker.is_busy:
        state = "starting" if worker.is_starting else worker.state
        return [(fit("" if says_state else state, width, glyphs), FAINT)]
    name = item_name(worker.function, worker.item, width, glyphs)
    room = width - cell_len(name)
    argument = clean(worker.argument)
    if not argument or room < 3:
        return [(fit(name, width, glyphs), CYAN)]
    return [(name, CYAN), (" " + fit(argument, room - 1, glyphs), None)]


def _progress_bar(worker: WorkerStatus, width: int, glyphs: Glyphs) -> Line:
    """Return a small bar and a percentage if the total is known, else the number."""
    done = worker.progress
    if done is None:
        return [(" " * width, None)]
    if not worker.total:
        return [(fit(_number(done), width, glyphs, right=True), None)]
    share = done / worker.total
    full, rest = glyphs.bar(share, PROGRESS_BAR_CELLS)
    text = "?" if math.isnan(share) else share_text(share)
    return [(full, GREEN), (rest, FAINT), (fit(text, width - PROGRESS_BAR_CELLS, glyphs, right=True), None)]


def _number(value: float) -> str:
    return count(int(value)) if abs(value) < 1e15 and value == int(value) else f"{value:.4g}"
