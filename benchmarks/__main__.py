"""Measure, write results.json, and make docs/benchmarks.md from it: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks import report, runner
from benchmarks.cases import CASES
from benchmarks.curves import CURVES
from benchmarks.limits import LIMITS
from benchmarks.model import OURS, Results
from benchmarks.peers import DISTRIBUTIONS, PEERS

RESULTS = Path(__file__).parent / "results.json"


def installed() -> list[str]:
    """Return the libraries that are installed."""
    return [name for name in PEERS if name not in DISTRIBUTIONS or importlib.util.find_spec(name)]


def about(repeat: int) -> dict[str, Any]:
    """Return date, versions and hardware of the measurement. They do not identify the machine."""
    names = ("pairpool", "numpy", *(name for name in installed() if name in DISTRIBUTIONS))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.date.today().isoformat(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "repeat": repeat,
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the suite, or the selected part of it. Return the content of results.json."""
    names = arguments.only or [*CASES, *CURVES]
    cases = [case for case in CASES.values() if case.name in names]
    curves = [] if arguments.no_curves else [curve for curve in CURVES.values() if curve.name in names]
    needed = {case.limit for case in cases}
    limits = [limit for limit in LIMITS.values() if limit.name in needed or not arguments.only]
    peers = installed() if arguments.peers is None else [OURS, *arguments.peers]
    libraries = [name for name in installed() if name in peers]
    repeat = 1 if arguments.quick else arguments.repeat
    planned = runner.turns(cases, limits, curves, libraries, repeat)
    runs, points = runner.run(planned, lambda line: print(line, file=sys.stderr, flush=True))
    return {"meta": about(repeat), "runs": runs, "curves": points}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description="Compare pairpool with other pools and with the limits."
    )
    names = [*CASES, *CURVES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="CASE", help=f"of {', '.join(names)}")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="NAME", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds, each in fresh processes (5)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--no-curves", action="store_true", help="cases only")
    parser.add_argument("--report", action="store_true", help="make the page again from earlier measurements")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    data = json.loads(RESULTS.read_text()) if arguments.report else measure(arguments)
    results = Results(data)
    print(report.summary(results))
    if arguments.only or arguments.peers is not None:
        print("only a part was measured: nothing is written", file=sys.stderr)
        return
    if not arguments.report:
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")
    report.write(results)


if __name__ == "__main__":
    main()
