"""Make reports and live views of a pool: its counts become a report, its scoreboard a live view."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pairpool.master.statistics import FunctionStats, PoolStats, SlotStats
from pairpool.scoreboard import snapshot
from pairpool.status import PoolStatus
from pairpool.view.report import FunctionReport, PoolReport, SlowItem, WorkerReport

if TYPE_CHECKING:
    from rich.console import Console

    from pairpool.master.engine import Engine
    from pairpool.output_lines import OutputLine
    from pairpool.view.live import LiveView

__all__ = ["make_report", "make_view", "report_of"]


def make_view(engine: Engine, console: Console | None, *, keeps_sink: bool) -> LiveView:
    """Return a live view of a pool, already started. The end of the pool stops it.

    The view maps the scoreboard itself, so that the pool can close its own mapping at any time. The caller holds back
    signal handlers during this call.

    Args:
        keeps_sink: whether another sink keeps the output of tasks, instead of the view.
    """
    from pairpool.master.output_sinks import print_lines, print_tagged
    from pairpool.view.live import LiveView

    scoreboard = engine.attach_scoreboard()
    sink = engine.sink or print_lines

    def end() -> None:
        scoreboard.close()
        if not keeps_sink:
            engine.redirect_output(sink)
        engine.not_at_end(view.stop)

    view = LiveView(
        lambda: snapshot.take(scoreboard, time.monotonic_ns()), console, settle=engine.settle_output, at_end=end
    )

    def show(lines: list[OutputLine]) -> None:
        above = [line for line in lines if line.stream in view.streams]
        if above:
            view.show(above)
        print_tagged([line for line in lines if line.stream not in view.streams])

    try:
        view.start()
    except BaseException:
        scoreboard.close()
        raise
    engine.at_end(view.stop)
    if not keeps_sink:
        try:
            engine.start_capture(show)
        except BaseException:
            view.stop()
            raise
    return view


def report_of(engine: Engine, status: Callable[[], PoolStatus]) -> PoolReport:
    """Return the report of a pool until now, or until it ended.

    Args:
        status: returns the status of the pool.
    """
    return engine.summarize(lambda stats, ready: make_report(status(), stats, ready, time.monotonic_ns()))


def make_report(status: PoolStatus, stats: PoolStats, ready: Callable[[int], int], now: int) -> PoolReport:
    """Return the report of everything that was counted until `now` (monotonic ns).

    Args:
        status: the pool at that moment. The present items of its workers count, too.
        stats: the counts.
        ready: returns when the present worker of a place could first take work (monotonic ns); 0 if it cannot yet.
    """
    now = stats.ended or now
    running = {worker.number: worker.seconds for worker in status.workers if worker.is_busy}
    workers = tuple(
        _worker_report(number, slot, int(running.get(number, 0.0) * 1e9), ready, now)
        for number, slot in sorted(stats.slots.items())
    )
    present = sum(_present(slot, now) for slot in stats.slots.values())
    busy = sum(slot.busy for slot in stats.slots.values()) + int(sum(running.values()) * 1e9)
    wall, working = now - stats.created, stats.working(now)
    used = min(1.0, busy / present) if present else 0.0
    return PoolReport(
        name=status.name,
        seconds=wall / 1e9,
        working=working / 1e9,
        used=used,
        used_while_working=min(1.0, used * wall / working) if working else 0.0,
        done=status.done,
        failed=status.failed,
        functions=tuple(
            _function_report(one)
            for one in sorted(stats.functions.values(), key=lambda one: -one.durations.nanoseconds)
        ),
        slowest=tuple(
            SlowItem(one.function, one.item, one.worker, one.nanoseconds / 1e9, one.argument) for one in stats.slowest()
        ),
        workers=workers,
    )


def _present(slot: SlotStats, now: int) -> int:
    return slot.present + (now - slot.requested_at if slot.requested_at else 0)


def _worker_report(number: int, slot: SlotStats, running: int, ready: Callable[[int], int], now: int) -> WorkerReport:
    present = max(1, _present(slot, now))
    starting = slot.starting
    if slot.requested_at:
        starting += max(0, (ready(number) or now) - slot.requested_at)
    starting = min(starting, present)
    busy = min(slot.busy + running, present - starting)
    return WorkerReport(
        number=number,
        items=slot.items,
        busy=busy / present,
        waiting=(present - starting - busy) / present,
        starting=starting / present,
        deaths=slot.deaths,
    )


def _function_report(one: FunctionStats) -> FunctionReport:
    durations = one.durations
    return FunctionReport(
        name=one.name,
        count=durations.count,
        failed=one.failed,
        mean=durations.mean / 1e9,
        p50=durations.quantile(0.5) / 1e9,
        p95=durations.quantile(0.95) / 1e9,
        longest=durations.longest / 1e9,
    )
