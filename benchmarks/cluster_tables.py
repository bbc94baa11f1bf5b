"""Print the tables of docs/scaling.md from the measurements of `benchmarks.cluster`.

python -m benchmarks.cluster_tables [FILE]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cluster import RESULTS

Run = dict[str, Any]


def costs_table(runs: list[Run]) -> Iterator[str]:
    """Yield the lines of the table of milliseconds per batch."""
    yield "| nodes | program | scheduler | all nodes | from first to last |"
    yield "| ---: | --- | --- | --- | --- |"
    for nodes in sorted({run["nodes"] for run in runs}):
        same = [run for run in runs if run["case"] == "batches" and run["nodes"] == nodes]
        found = (_milliseconds(same, where) for where in ("program", "scheduler", "workers", "seconds"))
        yield f"| {nodes} | {' | '.join(found)} |"


def efficiency_table(runs: list[Run]) -> Iterator[str]:
    """Yield the lines of the table of efficiency against the length of tasks."""
    yield "| tasks | nodes | `ClusterPool.map` | `Client.map` |"
    yield "| --- | ---: | --- | --- |"
    for case, length, nodes in sorted({(run["case"], run["length"], run["nodes"]) for run in runs if run["length"]}):
        same = [run for run in runs if (run["case"], run["length"], run["nodes"]) == (case, length, nodes)]
        shares = (_spread([_efficiency(run) for run in same if run["way"] == way]) for way in ("pairpool", "dask"))
        yield f"| {case} {length * 1000:g} ms | {nodes} | {' | '.join(shares)} |"


def _efficiency(run: Run) -> float:
    return float(run["tasks"] * run["alone"] / (run["nodes"] * run["seconds"]))


def _spread(shares: list[float]) -> str:
    return f"{median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def _milliseconds(runs: list[Run], where: str) -> str:
    each = [run[where] / run["tasks"] * 1000 for run in runs]
    return f"{median(each):.1f} ({min(each):.1f} to {max(each):.1f})"


def main() -> None:
    runs = json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS).read_text())["runs"]
    for table in (costs_table(runs), efficiency_table(runs)):
        print(*table, sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
