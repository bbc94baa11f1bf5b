"""Compare awaits of pairpool with `loop.run_in_executor` and a `ProcessPoolExecutor`, in turns.

    python -m benchmarks.asynchronous [ROUNDS]

Each run is a fresh process. The event loop alone, with coroutines that yield to it once, shows the cost of asyncio
itself. The program prints medians, with the least and the most:

- gather: microseconds per await, for `asyncio.gather` of 10,000 awaits of a no-op.
- pause: the longest delay, in milliseconds, of a coroutine that sleeps for a millisecond again and again meanwhile.
- single: microseconds per await, one after the other (the median of 2,000).
- Pool.apply: the same for the synchronous call.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.tasks import noop

ROOT = Path(__file__).parent.parent
AWAITS = 10_000
SINGLE = 2_000
WAYS = ("pairpool", "executor", "event loop alone")
CASES = ("gather, µs each", "pause, ms", "single, µs", "Pool.apply, µs")

Call = Callable[[int], Awaitable[object]]


async def caller(way: str, stack: AsyncExitStack) -> Call:
    """Return a function that starts one call. The workers have run some calls before."""
    if way == "pairpool":
        from pairpool import AsyncPool

        pool = await stack.enter_async_context(AsyncPool(2))

        def call(item: int) -> Awaitable[object]:
            return pool.run(noop, item)
    elif way == "executor":
        executor = stack.enter_context(ProcessPoolExecutor(2))

        def call(item: int) -> Awaitable[object]:
            return asyncio.get_running_loop().run_in_executor(executor, noop, item)
    else:

        def call(item: int) -> Awaitable[object]:
            return asyncio.sleep(0, item)

    await asyncio.gather(*(call(item) for item in range(200)))
    return call


async def gather(call: Call) -> float:
    begin = time.perf_counter()
    await asyncio.gather(*(call(item) for item in range(AWAITS)))
    return (time.perf_counter() - begin) / AWAITS * 1e6


async def pause(call: Call) -> float:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begin - 0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest = 0.0
    await gather(call)
    ticking.cancel()
    return longest * 1e3


async def single(call: Call) -> float:
    times = []
    for item in range(SINGLE):
        begin = time.perf_counter()
        await call(item)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def apply() -> float:
    from pairpool import Pool

    times = []
    with Pool(2) as pool:
        for item in range(SINGLE):
            begin = time.perf_counter()
            pool.apply(noop, (item,))
            times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


async def measure(way: str) -> dict[str, float]:
    """Measure all figures of one way in this process."""
    async with AsyncExitStack() as stack:
        call = await caller(way, stack)
        figures = {CASES[0]: await gather(call), CASES[1]: await pause(call), CASES[2]: await single(call)}
    if way == "pairpool":
        figures[CASES[3]] = apply()
    return figures


def measure_afresh(way: str) -> dict[str, float]:
    """Measure all figures of one way in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.asynchronous", "--child", way]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main(argv: list[str]) -> None:
    if argv[:1] == ["--child"]:
        print(json.dumps(asyncio.run(measure(argv[1]))))
        return
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(int(argv[0]) if argv else 7):
        for way in WAYS[number % 3 :] + WAYS[: number % 3]:
            for case, value in measure_afresh(way).items():
                found.setdefault(case, {}).setdefault(way, []).append(value)
    for case in CASES:
        print(case)
        for way in WAYS:
            values = found[case].get(way)
            if values:
                print(f"  {way:18} {statistics.median(values):8.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main(sys.argv[1:])
