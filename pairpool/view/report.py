"""The report of a pool: what it has done and where the time went, as data and as tables of rich."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text

from pairpool.view.text import clean
from pairpool.view.timescale import length_text

__all__ = ["FunctionReport", "PoolReport", "SlowItem", "WorkerReport"]

MAX_LISTED_WORKERS = 16
"""Number of workers that have a line each. Further workers share one line."""

PLAIN_WIDTH_CELLS = 110
"""Maximum width of a report as text. A narrower terminal makes the report narrower."""

GAP_CELLS = 2
MIN_TEXT_CELLS = 12
"""Names and arguments keep at least this width. Columns of numbers are left out before that."""


def _length(seconds: float) -> str:
    return length_text(seconds * 1e6)


@dataclass(frozen=True, slots=True)
class FunctionReport:
    """The items of one function. All times are in seconds.

    Attributes:
        name: the name of the function.
        count: the number of items that ended, including items whose worker died.
        failed: the number of items that ended with an exception.
        mean: the mean run time. Short items that travelled together count with the mean of their batch.
        p50: the median run time, within 5 %.
        p95: the run time that 95 % of the items did not exceed, within 5 %.
        longest: the longest run time.
    """

    name: str
    count: int
    failed: int
    mean: float
    p50: float
    p95: float
    longest: float


@dataclass(frozen=True, slots=True)
class SlowItem:
    """One of the slowest items: its function, index, worker, seconds, and a short repr of its argument."""

    function: str
    item: int
    worker: int
    seconds: float
    argument: str


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One place in the pool. The shares (0 to 1) refer to the time in which it had a worker, and add up to 1.

    Attributes:
        number: the number of the place.
        items: the number of items that its workers ran.
        busy: the share of the time in which its worker ran items.
        waiting: the share in which its worker had no item.
        starting: the share in which its worker was starting.
        deaths: the number of workers that died there.
    """

    number: int
    items: int
    busy: float
    waiting: float
    starting: float
    deaths: int


@dataclass(frozen=True, slots=True)
class PoolReport(JupyterMixin):
    """The work of a pool until now, or until it ended. `print` shows it as text, rich and notebooks show tables.

    Attributes:
        name: the name of the pool.
        seconds: how long the pool has been open.
        working: how many of these seconds had a call that had not ended.
        used: the share (0 to 1) of the time of all workers in which they were busy.
        used_while_working: the same share, for the seconds with a call.
        done: the number of items that have ended.
        failed: how many of them ended with an exception.
        functions: one report per function, the longest total time first.
        slowest: at most five of the slowest items, the slowest first.
        workers: one report per worker, by number.
    """

    name: str
    seconds: float
    working: float
    used: float
    used_while_working: float
    done: int
    failed: int
    functions: tuple[FunctionReport, ...]
    slowest: tuple[SlowItem, ...]
    workers: tuple[WorkerReport, ...]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield _headline(self)
        if self.functions:
            yield from ("", _functions(self, width))
        if self.slowest:
            yield from ("", _slowest(self, width))
        if self.workers:
            yield from ("", _workers(self, width))

    def __str__(self) -> str:
        out = io.StringIO()
        shown = Console()
        width = min(PLAIN_WIDTH_CELLS, shown.width) if shown.is_terminal else PLAIN_WIDTH_CELLS
        console = Console(file=out, width=width, color_system=None, force_terminal=False, force_jupyter=False)
        console.print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def _headline(report: PoolReport) -> Text:
    text = Text()
    text.append(clean(report.name), style="bold")
    text.append(f"  {report.done:,} tasks in {_length(report.seconds)}")
    if report.failed:
        text.append(f", {report.failed:,} failed", style="red")
    text.append(f"; workers were busy {report.used:.0%} of the time")
    if report.working and report.working < 0.99 * report.seconds:
        text.append(f", and {report.used_while_working:.0%} of the {_length(report.working)} with calls")
    return text


# --- tables -------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: the text above it.
        rank: if there is not enough room, the columns with the lowest rank are left out.
        is_text: whether the column may be cut, down to `MIN_TEXT_CELLS`. Numbers are shown whole or not at all.
    """

    title: str
    rank: int
    is_text: bool = False


def _table(title: str, columns: Sequence[_Column], rows: Sequence[Sequence[str | Text]], width: int) -> Table:
    """Return a table of at most `width` cells. Texts of the user are not read as markup, and stay on one line."""
    needed = [
        max(map(cell_len, (column.title, *(str(row[place]) for row in rows)))) for place, column in enumerate(columns)
    ]
    least = [
        min(cells, MIN_TEXT_CELLS) if column.is_text else cells for column, cells in zip(columns, needed, strict=True)
    ]
    kept = list(range(len(columns)))

    def spare() -> int:
        return width - sum(least[place] for place in kept) - GAP_CELLS * (len(kept) - 1)

    while spare() < 0 and len(kept) > 1:
        kept.remove(min(kept, key=lambda place: columns[place].rank))
    for place in kept:
        least[place] += max(0, min(needed[place] - least[place], spare()))
    padding = (0, GAP_CELLS, 0, 0)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=padding)
    for place in kept:
        justify: JustifyMethod = "left" if columns[place].is_text else "right"
        table.add_column(columns[place].title, justify=justify, no_wrap=True, max_width=least[place])
    for row in rows:
        cells = [row[place] for place in kept]
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table


def _functions(report: PoolReport, width: int) -> Table:
    columns = [_Column("function", 9, is_text=True), _Column("count", 8), _Column("failed", 7), _Column("mean", 6)]
    columns += [_Column("p50", 2), _Column("p95", 3), _Column("max", 4), _Column("total", 5)]
    rows: list[list[str | Text]] = []
    for one in report.functions:
        failed = Text(f"{one.failed:,}", style="red" if one.failed else "dim")
        times = [_length(value) for value in (one.mean, one.p50, one.p95, one.longest, one.mean * one.count)]
        rows.append([clean(one.name), f"{one.count:,}", failed, *times])
    return _table("Tasks by function", columns, rows, width)


def _slowest(report: PoolReport, width: int) -> Table:
    columns = [_Column("task", 9, is_text=True), _Column("argument", 7, is_text=True), _Column("worker", 6)]
    rows = [
        [clean(f"{one.function}[{one.item}]"), clean(one.argument), str(one.worker), _length(one.seconds)]
        for one in report.slowest
    ]
    return _table("Slowest tasks", [*columns, _Column("took", 8)], rows, width)


def _workers(report: PoolReport, width: int) -> Table:
    columns = [_Column("worker", 9), _Column("tasks", 6), _Column("busy", 8), _Column("waiting", 5)]
    columns += [_Column("starting", 4), _Column("deaths", 7)]
    rows: list[list[str | Text]] = []
    listed = report.workers if len(report.workers) <= MAX_LISTED_WORKERS + 1 else report.workers[:MAX_LISTED_WORKERS]
    for one in listed:
        deaths = Text(str(one.deaths), style="red" if one.deaths else "dim")
        shares = [f"{share:.1%}" for share in (one.busy, one.waiting, one.starting)]
        rows.append([str(one.number), f"{one.items:,}", *shares, deaths])
    others = report.workers[len(listed) :]
    if others:
        shares = [
            f"{sum(getattr(one, part) for one in others) / len(others):.1%}" for part in ("busy", "waiting", "starting")
        ]
        deaths = Text(str(sum(one.deaths for one in others)), style="dim")
        rows.append([f"{len(others)} others", f"{sum(one.items for one in others):,}", *shares, deaths])
    return _table("Workers", columns, rows, width)
