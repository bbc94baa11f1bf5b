"""`pairpool top`: the live view of any pool on the machine, from outside.

board under /proc ─► PoolObserver.status ─► Sampler: cpu, rss ─► table.render ─► the terminal, a line, or JSON
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from typing import Any

from rich.live import Live

from pairpool.status import PoolStatus
from pairpool.view.choose import OK, Output, choose, conclude
from pairpool.view.find import NoPool, PoolObserver, pools
from pairpool.view.keys import Keys
from pairpool.view.table import headline_plain, render
from pairpool.view.text import clean
from pairpool.view.usage import Sampler

__all__ = ["as_json", "farewell", "run"]

CPU_MEASURED_OVER_S = 0.25
"""Seconds between the two looks that tell how much of a core each worker uses."""

WIDTH = 80
"""Columns of a picture where there is no terminal."""


def run(what: str | None, *, once: bool, as_json: bool, interval: float) -> int:
    """Show a pool until it ends or `q` is pressed, or once; returns the exit status.

    Args:
        what: a pid, a pool's name or `PID:NAME`; None for the only pool, or one chosen from a list.
        once: print one picture.
        as_json: print one JSON object; without `what` a list of all pools.
        interval: seconds between two pictures.
    """

    def act() -> int:
        if as_json:
            return _print_json(what)
        with PoolObserver(choose(what, may_ask=not once)) as sight:
            return _print_once(sight) if once else _watch(sight, interval)

    return conclude("top", act)


# --- once -------------------------------------------------------------------------------------------


def _measured(sights: list[PoolObserver]) -> list[PoolStatus]:
    """What these pools are doing, with what their workers use."""
    samplers = [Sampler(every=0.0) for _ in sights]
    for sampler, sight in zip(samplers, sights, strict=True):
        sampler.fill(sight.status())
    time.sleep(CPU_MEASURED_OVER_S)
    return [sampler.fill(sight.status()) for sampler, sight in zip(samplers, sights, strict=True)]


def _print_once(sight: PoolObserver) -> int:
    [status] = _measured([sight])
    console = Output()
    if console.is_terminal:
        console.print(render(status, console.width, console.height - 1, ascii=console.is_ascii))
    else:
        console.print(render(status, console.width, None, ascii=console.is_ascii))
    return OK


def _print_json(what: str | None) -> int:
    if what is not None:
        with PoolObserver(choose(what, may_ask=False)) as sight:
            print(json.dumps(as_json(_measured([sight])[0]), indent=2))
        return OK
    sights = []
    try:
        for found in pools():
            if found.problem:
                print(f"process {found.pid} is left out: {found.problem}", file=sys.stderr)
                continue
            try:
                sights.append(PoolObserver(found))
            except NoPool:
                continue  # it has ended since it was listed
        print(json.dumps([as_json(status) for status in _measured(sights)], indent=2))
    finally:
        for sight in sights:
            sight.close()
    return OK


def as_json(status: PoolStatus) -> dict[str, Any]:
    """The fields of a status, and what it derives from them, as plain values; numbers that are none are null."""
    fields = dataclasses.asdict(status)
    for name in ("busy", "idle", "starting", "cpu", "rss", "is_over"):
        fields[name] = getattr(status, name)
    plain: dict[str, Any] = _plain(fields)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- until it ends ----------------------------------------------------------------------------------


def _watch(sight: PoolObserver, interval: float) -> int:
    console = Output()
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            last = _show_pictures(sight, console, interval)
        else:
            last = _show_lines(sight, interval)
    except KeyboardInterrupt:
        return OK
    if last is not None:
        print(farewell(last))
    return OK


def _show_pictures(sight: PoolObserver, console: Output, interval: float) -> PoolStatus | None:
    """Have the view fill the screen; returns the last status of a pool that ends, None if the user has enough."""
    sampler = Sampler()
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            status = sampler.fill(sight.status())
            if status.is_over:
                return status
            live.update(render(status, console.width, console.height, ascii=console.is_ascii), refresh=True)
            if "q" in keys.wait(interval).lower():
                return None


def _show_lines(sight: PoolObserver, interval: float) -> PoolStatus:
    """A line every interval, for what is no terminal or a simple one; returns the last status."""
    sampler = Sampler()
    while True:
        status = sampler.fill(sight.status())
        if status.is_over:
            return status
        print(headline_plain(status), flush=True)
        time.sleep(interval)


def farewell(status: PoolStatus) -> str:
    """What is left to say of a pool that has ended, in a line."""
    text = f"pool {clean(status.name)} ended after {status.uptime:.1f} s: {status.done} done, {status.failed} failed"
    return f"{text} ({status.remark})" if status.remark else text
