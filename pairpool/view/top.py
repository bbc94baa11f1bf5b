"""`pairpool top`: show the live view of any pool on the machine, from outside.

scoreboard under /proc ─► PoolObserver.status ─► Sampler: cpu, rss ─► table.render ─► the terminal, a line, or JSON
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
"""Time between the two samples from which the CPU use of each worker is computed."""


def run(what: str | None, *, once: bool, as_json: bool, interval: float) -> int:
    """Show a pool once, or until it ends or `q` is pressed, and return the exit status.

    Args:
        what: a pid, the name of a pool, or `PID:NAME`. None means the only pool, or a pool chosen from a list.
        once: print one picture.
        as_json: print one JSON object. Without `what`, print a list of all pools.
        interval: the time between two pictures in seconds.
    """

    def act() -> int:
        if as_json:
            return _print_json(what)
        with PoolObserver(choose(what, may_ask=not once)) as observer:
            return _print_once(observer) if once else _watch(observer, interval)

    return conclude("top", act)


# --- once -------------------------------------------------------------------------------------------


def _measured(observers: list[PoolObserver]) -> list[PoolStatus]:
    """Return the status of each pool, with CPU and memory of its workers."""
    samplers = [Sampler(every=0.0) for _ in observers]
    for sampler, observer in zip(samplers, observers, strict=True):
        sampler.fill(observer.status())
    time.sleep(CPU_MEASURED_OVER_S)
    return [sampler.fill(observer.status()) for sampler, observer in zip(samplers, observers, strict=True)]


def _print_once(observer: PoolObserver) -> int:
    [status] = _measured([observer])
    console = Output()
    if console.is_terminal:
        console.print(render(status, console.width, console.height - 1, ascii=console.is_ascii))
    else:
        console.print(render(status, console.width, None, ascii=console.is_ascii))
    return OK


def _print_json(what: str | None) -> int:
    if what is not None:
        with PoolObserver(choose(what, may_ask=False)) as observer:
            print(json.dumps(as_json(_measured([observer])[0]), indent=2))
        return OK
    observers = []
    try:
        for found in pools():
            if found.problem:
                print(f"process {found.pid} is left out: {found.problem}", file=sys.stderr)
                continue
            try:
                observers.append(PoolObserver(found))
            except NoPool:
                continue  # the pool has ended since it was listed
            except OSError as error:  # not permitted any more, or too many files are open
                print(f"process {found.pid} is left out: {error}", file=sys.stderr)
        print(json.dumps([as_json(status) for status in _measured(observers)], indent=2))
    finally:
        for observer in observers:
            observer.close()
    return OK


def as_json(status: PoolStatus) -> dict[str, Any]:
    """Return the fields of a status and its derived values as plain values. Infinite numbers and NaN are null."""
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


def _watch(observer: PoolObserver, interval: float) -> int:
    console = Output()
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            last = _show_pictures(observer, console, interval)
        else:
            last = _show_lines(observer, interval)
    except KeyboardInterrupt:
        return OK
    if last is not None:
        print(farewell(last))
    return OK


def _show_pictures(observer: PoolObserver, console: Output, interval: float) -> PoolStatus | None:
    """Fill the screen with the view. Return the last status if the pool ends, None if the user quits."""
    sampler = Sampler()
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            status = sampler.fill(observer.status())
            if status.is_over:
                return status
            live.update(render(status, console.width, console.height, ascii=console.is_ascii), refresh=True)
            if "q" in keys.wait(interval).lower():
                return None


def _show_lines(observer: PoolObserver, interval: float) -> PoolStatus:
    """Print a line every interval, if there is no terminal or only a simple one. Return the last status."""
    sampler = Sampler()
    while True:
        status = sampler.fill(observer.status())
        if status.is_over:
            return status
        print(headline_plain(status), flush=True)
        time.sleep(interval)


def farewell(status: PoolStatus) -> str:
    """Return the result of a pool that has ended, in one line."""
    text = f"pool {clean(status.name)} ended after {status.uptime:.1f} s: {status.done} done, {status.failed} failed"
    return f"{text} ({status.remark})" if status.remark else text
