"""From the engine to what people look at: the tally becomes a report, the board a live view."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pairpool.master.statistics import FunctionStats, PoolStats, SlotStats
from pairpool.scoreboard import snapshot
from pairpool.scoreboard.board import Scoreboard
from pairpool.status import PoolStatus
from pairpool.view.report import FunctionReport, PoolReport, SlowItem, WorkerReport

if TYPE_CHECKING:
    from rich.console import Console

    from pairpool.master.engine import Engine
    from pairpool.output_lines import OutputLine
    from pairpool.view.live import LiveView

__all__ = ["make_report", "make_view"]


def make_view(master: Engine, console: Console | None, *, keeps_sink: bool) -> LiveView:
    """A live view of a pool, begun; it ends with the pool. Handlers of signals must be held back meanwhile.

    It has a mapping of the board of its own, so that it never meets one that the pool has just closed.

    Args:
        keeps_sink: whether somebody else gets the output of tasks.
    """
    from pairpool.master.output import print_lines, print_tagged
    from pairpool.view.live import LiveView

    board = Scoreboard.attach(master.board_fd.fileno(), writable=False)
    sink = print_lines if master.collector is None or not master.collector.streams else master.collector.sink

    def end() -> None:
        board.close()
        if not keeps_sink and master.collector is not None:
            master.collector.sink = sink
        with suppress(ValueError):  # the pool ends just now, and has it stopped
            master.at_end.remove(view.stop)

    def settle() -> None:
        if master.collector is not None:
            master.collector.settle()

    view = LiveView(lambda: snapshot.take(board, time.monotonic_ns()), console, settle=settle, at_end=end)

    def show(lines: list[OutputLine]) -> None:
        above = [line for line in lines if line.stream in view.streams]
        if above:
            view.show(above)
        print_tagged([line for line in lines if line.stream not in view.streams])

    try:
        view.start()
    except BaseException:
        board.close()
        raise
    master.at_end.append(view.stop)
    if not keeps_sink:
        try:
            master.start_capture(show)
        except BaseException:
            view.stop()
            raise
    return view


def make_report(status: PoolStatus, tally: PoolStats, ready: Callable[[int], int], now: int) -> PoolReport:
    """What has been counted until `now` (monotonic ns).

    Args:
        status: the pool at that moment: what its workers are at counts, too.
        ready: monotonic ns when the present worker of a place could take work; 0 if it could not yet.
    """
    now = tally.ended or now
    running = {worker.number: worker.seconds for worker in status.workers if worker.is_busy}
    workers = tuple(
        _worker(number, place, int(running.get(number, 0.0) * 1e9), ready, now)
        for number, place in sorted(tally.places.items())
    )
    present = sum(_present(place, now) for place in tally.places.values())
    busy = sum(place.busy for place in tally.places.values()) + int(sum(running.values()) * 1e9)
    wall, working = now - tally.created, tally.working(now)
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
            _function(one) for one in sorted(tally.functions.values(), key=lambda one: -one.durations.nanoseconds)
        ),
        slowest=tuple(
            SlowItem(one.function, one.item, one.worker, one.nanoseconds / 1e9, one.argument) for one in tally.slowest()
        ),
        workers=workers,
    )


def _present(place: SlotStats, now: int) -> int:
    return place.present + (now - place.asked if place.asked else 0)


def _worker(number: int, place: SlotStats, running: int, ready: Callable[[int], int], now: int) -> WorkerReport:
    present = max(1, _present(place, now))
    starting = place.starting
    if place.asked:
        starting += max(0, (ready(number) or now) - place.asked)
    starting = min(starting, present)
    busy = min(place.busy + running, present - starting)
    return WorkerReport(
        number=number,
        items=place.items,
        busy=busy / present,
        waiting=(present - starting - busy) / present,
        starting=starting / present,
        deaths=place.deaths,
    )


def _function(one: FunctionStats) -> FunctionReport:
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
