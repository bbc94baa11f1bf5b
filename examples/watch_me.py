"""A pool that is worth watching: uneven tasks that report progress, print, fail, and sometimes crash.

    python examples/watch_me.py                   with a live view
    python examples/watch_me.py --quiet &         without a live view: then look from outside
    pairpool top watch-me
    pairpool stack watch-me

The program ends after a minute (--seconds N), and prints a report. The exit status is 0, because the failures are
intended.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import pairpool
from pairpool import Pool, WorkerDied

WORDS = ["almond", "birch", "cedar", "dogwood", "elder", "fir", "gorse", "hazel", "ivy", "juniper"]


def dig(seed: int) -> str:
    """Search a number whose digest begins with zeros. The time that this takes is not predictable."""
    wanted = 2 + random.Random(seed).randrange(3)
    for number in itertools.count():
        if number % 1000 == 0:
            pairpool.progress(number, note=f"{wanted} zeros")
        if hashlib.sha256(f"{seed}:{number}".encode()).hexdigest().startswith("0" * wanted):
            return f"{seed}:{number}"
    raise AssertionError("there is always another number")


def brew(seed: int) -> int:
    """Take some steps of uneven length. Print between them, sometimes from a subprocess."""
    draw = random.Random(seed)
    steps = draw.randrange(3, 12)
    for step in range(steps):
        pairpool.progress(step, steps, draw.choice(WORDS))
        time.sleep(draw.expovariate(4))
        if draw.random() < 0.1:
            print(f"brew {seed}: {draw.choice(WORDS)} is in")
        if draw.random() < 0.02:
            subprocess.run(["echo", f"brew {seed}: a word from a subprocess"], check=True)
    return steps


def stumble(seed: int) -> int:
    """Fail in three of ten cases, and crash in one of ten."""
    draw = random.Random(seed)
    time.sleep(draw.expovariate(2))
    fate = draw.random()
    if fate < 0.1:
        print(f"stumble {seed}: these are its last words", end="", flush=True)
        os._exit(3)
    if fate < 0.4:
        raise ValueError(f"{draw.choice(WORDS)} was not ripe")
    return seed


def seeds(until: float) -> Iterator[int]:
    """Yield numbers until a time of `time.monotonic`, but at least one."""
    for number in itertools.count():
        yield number
        if time.monotonic() >= until:
            return


def lot(number: int, workers: int) -> range:
    """Return the seeds of one round of brews."""
    size = 4 * workers
    return range(number * size, (number + 1) * size)


def main() -> int:
    parser = argparse.ArgumentParser(description="A pool that is worth watching.")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="how long the pool takes new tasks (60)"
    )
    parser.add_argument("--workers", type=int, default=6, metavar="N", help="processes of the pool (6)")
    parser.add_argument("--quiet", action="store_true", help="no live view, for `pairpool top watch-me`")
    arguments = parser.parse_args()
    with Pool(arguments.workers, name="watch-me", live=not arguments.quiet, capture=True) as pool:
        until = time.monotonic() + arguments.seconds
        rounds = itertools.count()
        brews = pool.map_async(brew, lot(next(rounds), arguments.workers))
        digs = pool.imap_unordered(dig, seeds(until), buffersize=arguments.workers)
        for number, _found in enumerate(digs):
            pool.apply_async(stumble, (number,), error_callback=tell)
            if brews.ready():
                brews = pool.map_async(brew, lot(next(rounds), arguments.workers))
        pool.close()
        pool.join()
    print(pool.report())
    return 0


def tell(error: BaseException) -> None:
    """Print a crash. Other errors are visible in the view."""
    if isinstance(error, WorkerDied):
        print(str(error).splitlines()[0], file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
