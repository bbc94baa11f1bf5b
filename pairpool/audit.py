"""From the tally to the report."""

from __future__ import annotations

from collections.abc import Callable

from pairpool.master.tally import FunctionTally, Place, Tally
from pairpool.status import PoolStatus
from pairpool.view.report import FunctionReport, PoolReport, SlowItem, WorkerReport

__all__ = ["make_report"]


def make_report(status: PoolStatus, tally: Tally, ready: Callable[[int], int], now: int) -> PoolReport:
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


def _present(place: Place, now: int) -> int:
    return place.present + (now - place.asked if place.asked else 0)


def _worker(number: int, place: Place, running: int, ready: Callable[[int], int], now: int) -> WorkerReport:
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


def _function(one: FunctionTally) -> FunctionReport:
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
