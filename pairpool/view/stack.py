"""`pairpool stack`: show the Python stacks of a pool's tasks, even if the master is stuck."""

from __future__ import annotations

from rich.text import Text

from pairpool.scoreboard.stacks import IDLE, read_stacks
from pairpool.status import PoolStatus, WorkerStatus
from pairpool.view.choose import OK, Output, choose, conclude
from pairpool.view.find import NoPool, NotPermitted, PoolObserver
from pairpool.view.text import clean

__all__ = ["headline", "run"]


def run(what: str | None, worker: int | None, timeout: float) -> int:
    """Show the stacks of all workers of a pool, or of one worker, and return the exit status."""
    return conclude("stack", lambda: _run(what, worker, timeout))


def _run(what: str | None, number: int | None, timeout: float) -> int:
    found = choose(what, may_ask=True)
    with PoolObserver(found) as observer:
        status = observer.status()
    if status.is_over:
        raise NoPool(f"pool {found} has ended")
    number = found.worker if number is None else number
    workers = [one for one in status.workers if number in (None, one.number)]
    if not workers:
        raise NoPool(f"pool {found} has no worker {number}; it has 0 to {status.processes - 1}")
    try:
        texts = read_stacks([one.pid for one in workers if one.pid], timeout)
    except PermissionError:
        raise NotPermitted(f"the workers of pool {found} belong to another user") from None
    console = Output()
    console.print(_title(status), soft_wrap=True)
    for one in workers:
        console.print(headline(one), soft_wrap=True)
        text = texts.get(one.pid, "")
        if text and text != IDLE:
            console.print(Text("\n".join(f"  {line}" for line in text.splitlines())), soft_wrap=True)
    return OK


def _title(status: PoolStatus) -> Text:
    text = Text.assemble((clean(status.name), "bold"))
    text.append(f" (pid {status.pid}): {status.busy} of {status.processes} workers busy")
    if status.remark:
        text.append(f" · {status.remark}", "yellow")
    return text


def headline(worker: WorkerStatus) -> Text:
    """Return a worker in one line: its number and pid, its task, and how long the task has run."""
    text = Text.assemble((f"worker {worker.number}", "bold"))
    if worker.pid:
        text.append(f" (pid {worker.pid})", "dim")
    text.append(f": {worker.state}")
    if worker.item is not None:
        text.append(f" {clean(worker.function)}[{worker.item}]", "cyan")
        if worker.argument:
            text.append(f" {clean(worker.argument)}", "dim")
        text.append(f" for {worker.seconds:.1f} s")
    return text
