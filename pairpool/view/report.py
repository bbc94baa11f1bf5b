"""The report: what a pool has done and where the time went, as data and as tables of rich."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pairpool.view.timescale import length_text

__all__ = ["FunctionReport", "PoolReport", "SlowItem", "WorkerReport"]

WORKERS = 16
"""Workers that are listed one by one; of more, the others share a line."""

PLAIN_WIDTH = 110


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
class PoolReport:
    """What a pool has done, until now or until it ended. `print` shows it as text, rich's `print` as tables.

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

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [_headline(self)]
        if self.functions:
            parts += ["", _functions(self)]
        if self.slowest:
            parts += ["", _slowest(self)]
        if self.workers:
            parts += ["", _workers(self)]
        return Group(*parts)

    def __str__(self) -> str:
        out = io.StringIO()
        console = Console(file=out, width=PLAIN_WIDTH, color_system=None, force_terminal=False, force_jupyter=False)
        console.print(self)
        return out.getvalue().rstrip("\n")


def _plain(text: str) -> Text:
    """The user's own words: no markup, one line."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return Text(shown, no_wrap=True, overflow="ellipsis")


def _headline(report: PoolReport) -> Text:
    text = Text()
    text.append(report.name, style="bold")
    text.append(f"  {report.done:,} tasks in {_length(report.seconds)}")
    if report.failed:
        text.append(f", {report.failed:,} failed", style="red")
    text.append(f"; workers were busy {report.used:.0%} of the time")
    if report.working and report.working < 0.99 * report.seconds:
        text.append(f", and {report.used_while_working:.0%} of the {_length(report.working)} with calls")
    return text


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _functions(report: PoolReport) -> Table:
    table = _table("Tasks by function")
    table.add_column("function", no_wrap=True, overflow="ellipsis")
    for name in ("count", "failed", "mean", "p50", "p95", "max", "total"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in report.functions:
        failed = Text(f"{one.failed:,}", style="red" if one.failed else "dim")
        times = [_length(value) for value in (one.mean, one.p50, one.p95, one.longest, one.mean * one.count)]
        table.add_row(_plain(one.name), f"{one.count:,}", failed, *times)
    return table


def _slowest(report: PoolReport) -> Table:
    table = _table("Slowest tasks")
    table.add_column("task", no_wrap=True, overflow="ellipsis")
    table.add_column("argument", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("worker", justify="right", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    for one in report.slowest:
        task = _plain(f"{one.function}[{one.item}]")
        table.add_row(task, _plain(one.argument), str(one.worker), _length(one.seconds))
    return table


def _workers(report: PoolReport) -> Table:
    table = _table("Workers")
    for name in ("worker", "tasks", "busy", "waiting", "starting"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("deaths", justify="right", no_wrap=True)
    listed = report.workers if len(report.workers) <= WORKERS + 1 else report.workers[:WORKERS]
    for one in listed:
        deaths = Text(str(one.deaths), style="red" if one.deaths else "dim")
        shares = [f"{share:.1%}" for share in (one.busy, one.waiting, one.starting)]
        table.add_row(str(one.number), f"{one.items:,}", *shares, deaths)
    others = report.workers[len(listed) :]
    if others:
        shares = [
            f"{sum(getattr(one, part) for one in others) / len(others):.1%}" for part in ("busy", "waiting", "starting")
        ]
        deaths = Text(str(sum(one.deaths for one in others)), style="dim")
        table.add_row(f"{len(others)} others", f"{sum(one.items for one in others):,}", *shares, deaths)
    return table
