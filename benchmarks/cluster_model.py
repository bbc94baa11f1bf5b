"""A cluster on paper: a small discrete-event simulation, and the arithmetic of 1,000 nodes. No Dask, no clocks, seeded.

    program ──out──► scheduler ──► the node with the fewest batches ──► its threads ──► scheduler ──in──► program

The program and the scheduler do one thing at a time, as theirs is one event loop each; so does each node with what a
batch costs it. A batch has one of the node's Dask threads from its first step there to its last. Batches are sized by
the arithmetic of `pairpool.dask.batch_sizer`, with as many under way as the pool has. On loopback all share a few
cores, which a computation or an overhead holds and a sleep does not.

`python -m benchmarks.cluster_model [FILE]` takes the costs from what `benchmarks.cluster` measured, and prints the
tables of docs/scaling.md.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.in_flight import AHEAD, ITEMS_AHEAD
from pairpool.dask.pool import TARGET

RESULTS = Path(__file__).parent / "cluster.json"

LATENCY = 0.0001
"""Seconds on the wire."""

SLICE = 0.004
"""Seconds that a computation has a core before whoever waits for one has it."""


@dataclass(frozen=True)
class Costs:
    """What is spent beside the tasks themselves, in seconds of one core.

    Attributes:
        program, scheduler, node: for each batch; the first two half on its way out, half on its way back.
        program_item, node_item: for each item.
        latency: on the wire, one way; nobody's core.
    """

    program: float
    scheduler: float
    node: float
    program_item: float = 0.0
    node_item: float = 0.0
    latency: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal threads; `cores` is how many all of it shares, None where each has its own."""

    nodes: int
    threads: int = 1
    cores: int | None = None


@dataclass(frozen=True)
class Tasks:
    """So many tasks of `length` seconds, each off by about `jitter` times that; `computes` if they need a core."""

    count: int
    length: float
    computes: bool = False
    jitter: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a simulated call came to.

    Attributes:
        seconds: from call to last result.
        batches: how many there were.
        efficiency: share of the threads' time that tasks had.
        program, scheduler: shares of the time in which they were at work.
    """

    seconds: float
    batches: int
    efficiency: float
    program: float
    scheduler: float


Process = Iterator["float | Server"]


class Clock:
    """Made-up time. A process is an iterator that yields how long it waits, or the server that it waits for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Process]] = []
        self._ties = itertools.count()

    def start(self, process: Process, after: float = 0.0) -> None:
        """Go on with a process, after so long."""
        heapq.heappush(self._due, (self.now + after, next(self._ties), process))

    def run(self) -> None:
        """Until nothing is due."""
        while self._due:
            self.now, _, process = heapq.heappop(self._due)
            wait = next(process, None)
            if isinstance(wait, Server):
                wait.enter(process)
            elif wait is not None:
                self.start(process, wait)


class Server:
    """So many places; a process that finds none free waits in line."""

    def __init__(self, clock: Clock, places: int) -> None:
        self._clock = clock
        self._free = places
        self._line: deque[Process] = deque()
        self.busy = 0.0

    def enter(self, process: Process) -> None:
        if self._free:
            self._free -= 1
            self._clock.start(process)
        else:
            self._line.append(process)

    def leave(self) -> None:
        if self._line:
            self._clock.start(self._line.popleft())
        else:
            self._free += 1


class Simulation:
    """One call of `ClusterPool.map`."""

    def __init__(
        self, cluster: Cluster, tasks: Tasks, costs: Costs, seed: int = 0, chunksize: int | None = None
    ) -> None:
        self._cluster, self._tasks, self._costs = cluster, tasks, costs
        self._clock = clock = Clock()
        self._random = random.Random(seed)
        self._cores = None if cluster.cores is None else Server(clock, cluster.cores)
        self._program, self._scheduler = Server(clock, 1), Server(clock, 1)
        self._loops = [Server(clock, 1) for _ in range(cluster.nodes)]
        self._dask_threads = [Server(clock, cluster.threads) for _ in range(cluster.nodes)]
        self._workers = [Server(clock, cluster.threads) for _ in range(cluster.nodes)]
        self._loads = [0] * cluster.nodes
        self._by_load = [(0, node) for node in range(cluster.nodes)]
        self._pace = BatchSizer(TARGET, chunksize)
        self._taken = self._under_way = self._items_under_way = self._batches = self._done = 0
        self._work = 0.0

    def run(self) -> Outcome:
        self._fill()
        self._clock.run()
        assert self._done == self._tasks.count, "items were lost"
        seconds = self._clock.now
        available = seconds * self._cluster.nodes * self._cluster.threads
        shares = self._program.busy / seconds, self._scheduler.busy / seconds
        return Outcome(seconds, self._batches, self._work / available, *shares)

    def _fill(self) -> None:
        """Send what there is room for, by the rule of `pairpool.dask.cluster_call`."""
        nodes, threads = self._cluster.nodes, self._cluster.nodes * self._cluster.threads
        while self._taken < self._tasks.count and (
            self._under_way < AHEAD * nodes or self._items_under_way < ITEMS_AHEAD * threads
        ):
            remaining = self._tasks.count - self._taken
            size = min(remaining, self._pace.next(remaining, nodes, threads))
            self._taken += size
            self._items_under_way += size
            self._under_way += 1
            self._batches += 1
            self._clock.start(self._send(size))

    def _send(self, size: int) -> Process:
        """From the program to the workers of a node."""
        costs = self._costs
        yield from self._spend(self._program, (costs.program + costs.program_item * size) / 2)
        yield costs.latency
        yield from self._spend(self._scheduler, costs.scheduler / 2)
        node = self._least_loaded()
        yield costs.latency
        yield self._dask_threads[node]
        yield from self._spend(self._loops[node], (costs.node + costs.node_item * size) / 2)
        parts = min(size, self._cluster.threads)
        lengths = [self._length(len(range(part, size, parts))) for part in range(parts)]
        left = [parts]
        for length in lengths:
            self._clock.start(self._part(node, length, left, size, sum(lengths)))

    def _part(self, node: int, length: float, left: list[int], size: int, work: float) -> Process:
        """What one worker runs of a batch; the last one that ends brings the batch back."""
        workers = self._workers[node]
        yield workers
        if self._tasks.computes and self._cores is not None:
            for begin in range(int(length / SLICE) + 1):
                yield self._cores
                yield min(SLICE, length - begin * SLICE)
                self._cores.leave()
        else:
            yield length
        workers.leave()
        left[0] -= 1
        if not left[0]:
            yield from self._bring_back(node, size, work)

    def _bring_back(self, node: int, size: int, work: float) -> Process:
        costs = self._costs
        yield from self._spend(self._loops[node], (costs.node + costs.node_item * size) / 2)
        self._dask_threads[node].leave()
        yield costs.latency
        self._change_load(node, -1)
        yield from self._spend(self._scheduler, costs.scheduler / 2)
        yield costs.latency
        yield from self._spend(self._program, (costs.program + costs.program_item * size) / 2)
        self._done += size
        self._work += work
        self._items_under_way -= size
        self._under_way -= 1
        self._pace.learn(size, work)
        self._fill()

    def _spend(self, server: Server, seconds: float) -> Process:
        """Hold a server for so long, and one of the cores where they are shared."""
        yield server
        if self._cores is not None:
            yield self._cores
        yield seconds
        if self._cores is not None:
            self._cores.leave()
        server.busy += seconds
        server.leave()

    def _length(self, items: int) -> float:
        """Seconds that so many items take, one after the other."""
        mean = self._tasks.length * items
        return max(0.0, self._random.gauss(mean, self._tasks.jitter * self._tasks.length * items**0.5))

    def _least_loaded(self) -> int:
        """The node with the fewest batches, as Dask chooses where all of them take as long."""
        while True:
            load, node = heapq.heappop(self._by_load)
            if load == self._loads[node]:
                self._change_load(node, 1)
                return node

    def _change_load(self, node: int, by: int) -> None:
        self._loads[node] += by
        heapq.heappush(self._by_load, (self._loads[node], node))


# --- from what was measured ---------------------------------------------------------------------------

Run = dict[str, Any]


def costs_of(runs: list[Run], nodes: int) -> Costs:
    """The costs of batches and items that did nothing, on so many nodes; medians."""
    batches = [run for run in runs if run["case"] == "batches" and run["nodes"] == nodes]
    items = [run for run in runs if run["case"] == "items" and run["nodes"] == nodes]

    def each(found: list[Run], where: str) -> float:
        return float(median(run[where] / run["tasks"] for run in found))

    program, scheduler, node = (each(batches, where) for where in ("program", "scheduler", "workers"))
    return Costs(program, scheduler, node, each(items, "program"), each(items, "workers"), LATENCY)


def groups(runs: list[Run]) -> Iterator[tuple[str, float, int, list[float], list[float], list[Run]]]:
    """Case, length, nodes, efficiencies of pairpool and of plain Dask, and pairpool's runs."""
    keys = sorted({(run["case"], run["length"], run["nodes"]) for run in runs if run["length"]})
    for key in keys:
        same = [run for run in runs if (run["case"], run["length"], run["nodes"]) == key]
        by_way = [[run for run in same if run["way"] == way] for way in ("pairpool", "dask")]
        ours, plain = ([efficiency(run) for run in some] for some in by_way)
        yield *key, ours, plain, by_way[0]


def efficiency(run: Run) -> float:
    return float(run["tasks"] * run["alone"] / (run["nodes"] * run["seconds"]))


def as_measured(runs: list[Run], costs: Costs, cores: int) -> Outcome:
    """What the model says of a case that was measured."""
    run = runs[0]
    length = median(one["alone"] for one in runs)
    tasks = Tasks(run["tasks"], length, computes=run["case"] == "compute")
    return Simulation(Cluster(run["nodes"], 1, cores), tasks, costs).run()


def spread(shares: list[float]) -> str:
    return f"{median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def milliseconds(runs: list[Run], where: str) -> str:
    each = [run[where] / run["tasks"] * 1000 for run in runs]
    return f"{median(each):.1f} ({min(each):.1f} to {max(each):.1f})"


def costs_table(runs: list[Run]) -> Iterator[str]:
    yield "| nodes | program | scheduler | all nodes | from first to last |"
    yield "| ---: | --- | --- | --- | --- |"
    for nodes in sorted({run["nodes"] for run in runs}):
        same = [run for run in runs if run["case"] == "batches" and run["nodes"] == nodes]
        found = (milliseconds(same, where) for where in ("program", "scheduler", "workers", "seconds"))
        yield f"| {nodes} | {' | '.join(found)} |"


def measured_table(runs: list[Run], cores: int) -> Iterator[str]:
    yield "| tasks | nodes | `ClusterPool.map` | the model | `Client.map` |"
    yield "| --- | ---: | --- | ---: | --- |"
    for case, length, nodes, ours, plain, some in groups(runs):
        said = as_measured(some, costs_of(runs, nodes), cores).efficiency
        yield f"| {case} {length * 1000:g} ms | {nodes} | {spread(ours)} | {said:.0%} | {spread(plain)} |"


PAPER = (1, 16), (10, 16), (100, 16), (300, 16), (1000, 16)
PAPER_LENGTHS = 0.001, 0.01, 0.1, 1.0, 10.0


def paper_table(costs: Costs, seconds: float) -> Iterator[str]:
    """Efficiency of calls of so many seconds."""
    lengths = " | ".join(f"{length * 1000:g} ms" for length in PAPER_LENGTHS)
    yield f"| nodes of 16 threads | {lengths} | scheduler | program |"
    yield "| ---: |" + " ---: |" * (len(PAPER_LENGTHS) + 2)
    for nodes, threads in PAPER:
        found = []
        for length in PAPER_LENGTHS:
            count = int(nodes * threads * max(seconds, 6 * length) / length)
            found.append(Simulation(Cluster(nodes, threads), Tasks(count, length, jitter=0.3), costs).run())
        busy = f"{max(one.scheduler for one in found):.0%} | {max(one.program for one in found):.0%}"
        yield f"| {nodes} | " + " | ".join(f"{one.efficiency:.0%}" for one in found) + f" | {busy} |"


def main() -> None:
    data = json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS).read_text())
    runs = data["runs"]
    costs = costs_of(runs, min(run["nodes"] for run in runs))
    tables = costs_table(runs), measured_table(runs, data["meta"]["cores"]), [str(costs)], paper_table(costs, 60.0)
    for table in tables:
        print(*table, sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
