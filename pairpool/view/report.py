"""The report: what a pool has done and where the time went, as data and as tables of rich."""

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

WORKERS = 16
"""Workers that are listed one by one; of more, the others share a line."""

PLAIN_WIDTH = 110
"""Columns of a report as text, at most; in a terminal that is narrower it fits that."""

GAP = 2
TEXT_LEAST = 12
"""Cells of a name or an argument before numbers are left out."""


def _length(seconds: float) -> str:
    return length_text(seconds * 1e6)


@dataclass(frozen=True, slots=True)
class FunctionReport:
    """The items of one function; times in seconds.

    Attributes:
        name: of the function.
        count: items that were run to an end, those included that ended with their worker.
        failed: items that ended with an exception.
        mean: of how long items ran. Those that are so short that many went in one batch count with the batch's mean.
        p50: the median of it, within 5 %.
        p95: what 95 % of the items did not exceed, within 5 %.
        longest: of them.
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
    """One place in the pool; the shares (0 to 1) are of the time that it had a worker, and add up to 1.

    Attributes:
        number: of the place.
        items: that its workers ran.
        busy: share of the time in which it ran items.
        waiting: in which it had none.
        starting: in which it was being made.
        deaths: workers that died there.
    """

    number: int
    items: int
    busy: float
    waiting: float
    starting: float
    deaths: int


@dataclass(frozen=True, slots=True)
class PoolReport(JupyterMixin):
    """What a pool has done, until now or until it ended. `print` shows it as text, rich and notebooks as tables.

    Attributes:
        name: of the pool.
        seconds: that it has been open.
        working: seconds of these in which there was a call that had not ended.
        used: share (0 to 1) of the time of all workers in which they were busy.
        used_while_working: the same, of the time in which there was a call.
        done: items that have ended.
        failed: those of them that ended with an exception.
        functions: by total time, the longest first.
        slowest: the slowest items, the slowest first; at most five.
        workers: by number.
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
        width = min(PLAIN_WIDTH, shown.width) if shown.is_terminal else PLAIN_WIDTH
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
        title: above it.
        rank: where there is no room for all, those with the lowest are left out.
        is_text: whether it may be cut, down to `TEXT_LEAST`; numbers are whole or not there.
    """

    title: str
    rank: int
    is_text: bool = False


def _table(title: str, columns: Sequence[_Column], rows: Sequence[Sequence[str | Text]], width: int) -> Table:
    """A table of at most `width` cells; the users' own words in it are no markup, and on one line."""
    needed = [
        max(map(cell_len, (column.title, *(str(row[place]) for row in rows)))) for place, column in enumerate(columns)
    ]
    least = [min(cells, TEXT_LEAST) if column.is_text else cells for column, cells in zip(columns, needed, strict=True)]
    kept = list(range(len(columns)))

    def spare() -> int:
        return width - sum(least[place] for place in kept) - GAP * (len(kept) - 1)

    while spare() < 0 and len(kept) > 1:
        kept.remove(min(kept, key=lambda place: columns[place].rank))
    for place in kept:
        least[place] += max(0, min(needed[place] - least[place], spare()))
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.padding = (0, GAP, 0, 0)
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
    listed = report.workers if len(report.workers) <= WORKERS + 1 else report.workers[:WORKERS]
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
