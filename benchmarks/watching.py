"""Measure the cost of watching: the same work in a plain pool, with the live view, and with a trace, in turns.

    python -m benchmarks.watching [ROUNDS]

Each run is a fresh process whose standard error is a terminal of 100 x 30, so that the view is really drawn. The
program prints the median and the spread of each, and the share of time that watching takes.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tasks import noop, spin

ROOT = Path(__file__).parent.parent
WAYS = ("plain", "live", "trace", "plain again")
"""The last one shows the difference between two equal runs."""

SIZE = struct.pack("HHHH", 30, 100, 0, 0)
MEASURE_S = 4.0
"""Seconds of a measurement: several frames of the view, and several samples of CPU and memory."""


def no_ops(pool: Any) -> float:
    """Measure microseconds per item, for maps of a million no-ops."""
    return _repeat(lambda: pool.map(noop, range(1_000_000))) / 1_000_000 * 1e6


def milliseconds(pool: Any) -> float:
    """Measure milliseconds of wall time per millisecond of work of all workers together."""
    return _repeat(lambda: pool.map(spin, [0.001] * 1000)) / 1.0


def _repeat(work: Callable[[], object]) -> float:
    """Return the mean seconds of the work. It is repeated for `MEASURE_S`."""
    work()
    begin = time.perf_counter()
    times = 0
    while time.perf_counter() - begin < MEASURE_S:
        work()
        times += 1
    return (time.perf_counter() - begin) / times


CASES = {"no-ops, µs per item": no_ops, "1 ms tasks, ms per task": milliseconds}


def child(case: str, way: str) -> None:
    """Measure in this process, and print the figure."""
    from pairpool import Pool

    with tempfile.TemporaryDirectory() as directory:
        ways: dict[str, dict[str, Any]] = {"live": {"live": True}, "trace": {"trace": f"{directory}/run.json"}}
        options = ways.get(way, {})
        with Pool(2, **options) as pool:
            value = CASES[case](pool)
    print(json.dumps(value))


def measure(case: str, way: str) -> float:
    """Measure in a fresh process with its own terminal, whose output is read and dropped."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, SIZE)
    command = [sys.executable, "-m", "benchmarks.watching", "--child", case, way]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=slave) as process:
        os.close(slave)
        assert process.stdout is not None
        drawn = 0
        out = process.stdout.fileno()
        while select.select([master, out], [], [])[0] == [master]:
            try:
                drawn += len(os.read(master, 65536))
            except OSError:
                break  # the terminal is closed: the figure is next
        figure = process.stdout.read()
    os.close(master)
    if process.returncode or (way == "live" and drawn < 1000):
        raise SystemExit(f"{case}, {way}: status {process.returncode}, {drawn} bytes drawn")
    return float(json.loads(figure))


def main(argv: list[str]) -> None:
    if argv[:1] == ["--child"]:
        child(*argv[1:])
        return
    rounds = int(argv[0]) if argv else 7
    for case in CASES:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds):
            for way in WAYS[number % 4 :] + WAYS[: number % 4]:
                found[way].append(measure(case, way))
        plain = statistics.median(found["plain"])
        print(case)
        for way, values in found.items():
            median = statistics.median(values)
            print(f"  {way:12} {median:.4f} ({min(values):.4f} to {max(values):.4f})  {median / plain - 1:+.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
