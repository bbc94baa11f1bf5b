"""A program whose system calls `test_syscalls.py` makes fail. It says what became of each of its steps.

    python syscall_victim.py START_METHOD STEP,STEP,... GATE

GATE is a path for a FIFO. It opens a pool and prints the processes there are, waits for a line, takes the steps while
calls fail, and prints what became of them; waits for another line, by which time nothing fails any more, and does the
same for `LAST`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from functools import partial
from typing import Any

from pairpool import Pool, WorkerDied
from pairpool.linux import process_tree
from tests.support import tasks

BIG = 4 << 20
REPAIR = 3.0
"""Seconds in which a pool has all its workers again once nothing fails any more."""

RIGHT = "right"
LAST = ("full", "ints", "big", "close")


def same(found: object, wanted: object) -> str:
    return RIGHT if found == wanted else f"wrong: {found!r:.200} and not {wanted!r:.200}"


def ints(pool: Pool) -> str:
    return same(pool.map(tasks.square, range(300), 10), [x * x for x in range(300)])


def big(pool: Pool) -> str:
    blocks = [bytes([x]) + bytes(BIG) for x in range(3)]
    return RIGHT if pool.map(tasks.swap, blocks, 1) == [block[::-1] for block in blocks] else "wrong: other bytes"


def death(pool: Pool) -> str:
    """Item 3 kills its worker; the others must be right, or have died of the failing calls."""
    found: list[Any] = pool.map(partial(tasks.die_at, 3, "kill"), range(8), 1, return_exceptions=True)
    died = {index for index, one in enumerate(found) if isinstance(one, BaseException)}
    if 3 not in died or len(found) != 8:
        return f"wrong: {found!r}"
    for index in died:
        check_clear(found[index])
    wanted = {x: x * 10 for x in range(8) if x not in died}
    return same({x: one for x, one in enumerate(found) if x not in died}, wanted)


def slaughter(pool: Pool) -> str:
    """All workers are killed while they are idle: nothing fails."""
    for process in pool._pool:
        try:
            process.kill()
        except ProcessLookupError:
            pass  # of a failing call, just before
    return ints(pool)


def idle_death(pool: Pool) -> str:
    """One worker of two is killed while no call is open, and the other goes on."""
    victim = pool._pool[0]
    victim.kill()
    while victim.is_alive():
        pool._repopulate_pool()
    pool._repopulate_pool()
    return ints(pool)


def stream(pool: Pool) -> str:
    return same(sorted(pool.imap_unordered(tasks.square, range(100), 7)), sorted(x * x for x in range(100)))


def cancelled(pool: Pool) -> str:
    """A stream is cancelled of which each worker has an item that is held, and others unread."""
    gate = sys.argv[3]
    os.mkfifo(gate)
    fd = os.open(gate, os.O_RDWR | os.O_CLOEXEC)  # stays open, for those who come to the gate later
    try:
        pool.imap(partial(tasks.held, gate), range(20), 1, buffersize=20).cancel()
    finally:
        os.write(fd, b"." * 20)
    return ints(pool)


def call(pool: Pool) -> str:
    return same(pool.apply(tasks.add, (1,), {"b": 2}), 3)


def background(pool: Pool) -> str:
    return same(pool.apply_async(tasks.square, (7,)).get(), 49)


def another(pool: Pool) -> str:
    """A second pool is opened, used and closed."""
    with Pool(2, start_method=sys.argv[1]) as other:
        found = ints(other)
        other.close()
        other.join()
    return found


def full(pool: Pool) -> str:
    """All workers are there again, unless the pool says that it can do without."""
    deadline = time.monotonic() + REPAIR
    while len(pool._pool) != 2 and time.monotonic() < deadline:
        pool._repopulate_pool()
        pool.apply(tasks.square, (1,))
    return same(len(pool._pool), 2)


def close(pool: Pool) -> str:
    pool.close()
    pool.join()
    return RIGHT


ALL = (ints, big, death, slaughter, idle_death, stream, cancelled, call, background, another, full, close)
STEPS: dict[str, Callable[[Pool], str]] = {step.__name__: step for step in ALL}


def check_clear(error: BaseException) -> None:
    """Raise `AssertionError` unless the error is of a kind that says what happened."""
    if isinstance(error, WorkerDied):
        clear = error.pid > 0 and bool(error.reason)
    elif isinstance(error, OSError):
        clear = bool(error.errno) and bool(str(error))
    elif isinstance(error, BrokenExecutor):
        clear = bool(str(error))
    elif isinstance(error, RuntimeError):
        clear = "thread" in str(error)  # Python's own: can't start new thread
    else:
        clear = isinstance(error, MemoryError)
    if not clear:
        raise AssertionError(f"{type(error).__name__}: {error}") from error


def take(step: str, pool: Pool) -> str:
    print(f"step {step}", file=sys.stderr, flush=True)
    try:
        return STEPS[step](pool)
    except AssertionError as error:
        return f"unclear: {error!r} caused by {error.__cause__!r}"
    except BaseException as error:
        try:
            check_clear(error)
        except AssertionError:
            import traceback

            return f"unclear: {traceback.format_exc()}"
        return f"error: {type(error).__name__}: {error}"


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    faulthandler.register(signal.SIGTERM, chain=True)  # the test sends it if this hangs
    pool = Pool(2, start_method=sys.argv[1])
    steps = sys.argv[2].split(",")
    pool.map(tasks.square, range(10))
    workers = [process.pid for process in pool._pool]
    zygotes = [pid for pid in process_tree.children_of(os.getpid()) if pid not in workers]
    say({"master": [os.getpid()], "workers": workers, "zygote": zygotes})
    sys.stdin.readline()
    say({step: take(step, pool) for step in steps})
    sys.stdin.readline()
    say({step: take(step, pool) for step in LAST})


if __name__ == "__main__":
    main()
