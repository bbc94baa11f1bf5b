"""Draw the memory and the descriptors of the master over time, from logs of `pairpool stress --memory-log FILE`.

    python benchmarks/plot_stress.py OUT.svg LABEL=LOG.csv [LABEL=LOG.csv ...]

Logs follow one another on the time axis. Needs matplotlib (the `bench` extra).
"""

from __future__ import annotations

import csv
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main() -> None:
    out, *logs = sys.argv[1:]
    figure, (memory, fds) = plt.subplots(2, 1, sharex=True, figsize=(9, 5), height_ratios=(2, 1))
    start = 0.0
    for log in logs:
        label, _, path = log.partition("=")
        with open(path) as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        minutes = [(start + row["seconds"]) / 60 for row in rows]
        (line,) = memory.plot(minutes, [row["rss"] / 2**20 for row in rows], lw=0.9, label=label)
        fds.plot(minutes, [row["fds"] for row in rows], lw=0.9, color=line.get_color())
        start += rows[-1]["seconds"]
    memory.set_ylabel("resident memory, MiB")
    memory.set_ylim(bottom=0)
    memory.legend(frameon=False, ncols=3, fontsize=8)
    fds.set_ylabel("descriptors")
    fds.set_ylim(bottom=0)
    fds.set_xlabel("minutes")
    for axes in (memory, fds):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", lw=0.3)
    figure.suptitle("pairpool stress: the master under fire", fontsize=11)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
