"""A program whose system calls `test_syscalls.py` makes fail. It prints the outcome of each of its steps.

    python syscall_victim.py START_METHOD STEP,STEP,... GATE

GATE is a path for a FIFO.

    1. The program opens a pool, prints the pids of its processes, and waits for a line.
    2. It takes the steps while calls fail, prints their outcomes, and waits for another line.
    3. It takes the steps of `LAST`, while no call fails, and prints their outcomes.
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
"""Seconds within which a pool has all its workers again after the last failing call."""

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
    """Item 3 kills its worker. The other items must be right, or their workers died because of the failing calls."""
    found: list[Any] = pool.map(partial(tasks.die_at, 3, "kill"), range(8), 1, return_exceptions=True)
    died = {index for index, one in enumerate(found) if isinstance(one, BaseException)}
    if 3 not in died or len(found) != 8:
        return f"wrong: {found!r}"
    for index in died:
        check_clear(found[index])
    wanted = {x: x * 10 for x in range(8) if x not in died}
    return same({x: one for x, one in enumerate(found) if x not in died}, wanted)


def slaughter(pool: Pool) -> str:
    """Kill all workers while they are idle. No item may fail."""
    for process in pool._pool:
        try:
            process.kill()
        except ProcessLookupError:
            pass  # a failing call has just ended the worker
    return ints(pool)


def idle_death(pool: Pool) -> str:
    """Kill one of two workers while there is no call. The other worker goes on."""
    victim = pool._pool[0]
    victim.kill()
    while victim.is_alive():
        pool._repopulate_pool()
    pool._repopulate_pool()
    return ints(pool)


def stream(pool: Pool) -> str:
    return same(sorted(pool.imap_unordered(tasks.square, range(100), 7)), sorted(x * x for x in range(100)))


def cancelled(pool: Pool) -> str:
    """Cancel a stream while each worker holds one of its items and has not read others."""
    gate = sys.argv[3]
    os.mkfifo(gate)
    fd = os.open(gate, os.O_RDWR | os.O_CLOEXEC)  # stays open, because other items may reach the gate later
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
    """Open, use and close a second pool."""
    with Pool(2, start_method=sys.argv[1]) as other:
        found = ints(other)
        other.close()
        other.join()
    return found


def full(pool: Pool) -> str:
    """Check that the pool has all its workers again."""
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
    """Raise `AssertionError` unless the error says what happened."""
    if isinstance(error, WorkerDied):
        clear = error.pid > 0 and bool(error.reason)
    elif isinstance(error, OSError):
        clear = bool(error.errno) and bool(str(error))
    elif isinstance(error, BrokenExecutor):
        clear = bool(str(error))
    elif isinstance(error, RuntimeError):
        clear = "thread" in str(error)  # Python itself raises "can't start new thread"
    elif isinstance(error, ImportError):
        clear = "shared object" in str(error)  # Python itself raises it, for a library that cannot be mapped
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
    faulthandler.register(signal.SIGTERM, chain=True)  # the test sends SIGTERM if the program hangs
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
