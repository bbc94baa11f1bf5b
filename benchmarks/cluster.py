"""Measure the costs of a cluster's pool: `ClusterPool.map` and plain `Client.map` in turns, on 1 to 8 local nodes.

    python -m benchmarks.cluster [--rounds N] [--nodes 1,2,4,8] [--save FILE] [--killed]

A node is a Dask worker with one thread. There are three kinds of tasks:

- Sleeping tasks show the cost of the transport, even if there are fewer cores than nodes.
- Computing tasks run on at most as many nodes as there are cores.
- Tasks that do nothing show what a batch and an item cost the program, the scheduler and a node.

`--killed` times one call instead: on one node, on two nodes, and on two nodes of which one is killed.
`python -m benchmarks.cluster_tables` prints the tables of docs/scaling.md. Needs `distributed`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.tasks import noop

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "cluster.json"

LENGTHS_S = 0.001, 0.01, 0.1, 1.0
"""Seconds that a task takes."""

RUN_S = 1.5
"""Seconds that a run of short tasks would take without any overhead."""

MIN_TASKS_PER_NODE = 4
"""Tasks per node, if tasks are long."""

PLAIN_TASKS = 1500
"""Most tasks for plain Dask, which needs milliseconds per task. With more tasks its rate stays the same."""

BATCHES = 800
"""Batches of one item that does nothing. They show what a batch costs."""

ITEMS = 40_000
"""Items that do nothing, in ten batches. They show what an item costs."""

START_LIMIT_S = 60.0
"""Seconds that the processes of Dask may take to start."""

STEPS_PER_SECOND = 20_000_000
"""Steps of a loop that take about a second."""


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        case: `sleep` or `compute`. Or tasks that do nothing: `batches` of one item, or `items` in a few batches.
        way: `pairpool` or `dask`.
        nodes: number of nodes.
        length: requested seconds of a task.
        alone: measured seconds of such a task in a loop without a pool.
        tasks: number of tasks.
        seconds: from the call to the result.
        program: CPU seconds of the program.
        scheduler: CPU seconds of the scheduler.
        workers: CPU seconds of all nodes together.
        bytes: bytes on the loopback device, including those of other programs.
    """

    case: str
    way: str
    nodes: int
    length: float
    alone: float
    tasks: int
    seconds: float
    program: float
    scheduler: float
    workers: float
    bytes: int

    @property
    def efficiency(self) -> float:
        """The share of the nodes' time that the tasks had."""
        return self.tasks * self.alone / (self.nodes * self.seconds)


@dataclass
class Cluster:
    """The processes of Dask, and this program's connections to them."""

    scheduler: psutil.Process
    workers: list[psutil.Process]
    client: Any
    pool: Any

    def cpu(self) -> tuple[float, float, float]:
        """Return the CPU seconds of the program, of the scheduler, and of all nodes with their pools."""
        on_nodes = [one for worker in self.workers for one in (worker, *worker.children(recursive=True))]
        return time.process_time(), _cpu_of(self.scheduler), sum(map(_cpu_of, on_nodes))


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def loopback_bytes() -> int:
    """Return the bytes that the loopback device has sent since the machine was started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == "lo":
            return int(figures.split()[8])
    raise OSError("there is no loopback device")


@contextmanager
def dask_process(*arguments: str) -> Iterator[psutil.Process]:
    """Start a process of Dask, and kill it at the end of the block."""
    command = [sys.executable, "-m", "dask", *arguments]
    quiet = subprocess.DEVNULL
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment, cwd=ROOT) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


@contextmanager
def cluster(nodes: int) -> Iterator[Cluster]:
    """Start a scheduler and nodes of one thread each, and open a pool on them."""
    from distributed import Client

    from pairpool.dask import ClusterPool

    with ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-jupyter"]
        scheduler = stack.enter_context(dask_process("scheduler", *options, "--scheduler-file", str(file)))
        options = ["--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        workers = [stack.enter_context(dask_process("worker", *options)) for _ in range(nodes)]
        deadline = time.monotonic() + START_LIMIT_S
        while not file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the scheduler did not start")
            time.sleep(0.05)
        client = stack.enter_context(Client(scheduler_file=str(file), timeout=START_LIMIT_S, set_as_default=False))
        client.wait_for_workers(nodes, timeout=START_LIMIT_S)
        pool = stack.enter_context(ClusterPool(client, timeout=START_LIMIT_S))
        yield Cluster(scheduler, workers, client, pool)


def compute(seconds: float) -> float:
    """Compute for about this time. The number of steps does not depend on the load of the machine."""
    for _ in range(int(seconds * STEPS_PER_SECOND)):
        pass
    return seconds


def alone(task: Callable[[float], object], length: float) -> float:
    """Return the seconds per task in a loop, because a sleep takes longer than its argument."""
    times = max(1, int(0.3 / length))
    begin = time.perf_counter()
    for _ in range(times):
        task(length)
    return (time.perf_counter() - begin) / times


def by_pool(there: Cluster, task: Callable[[Any], object], items: list[Any], chunksize: int | None = None) -> None:
    found = there.pool.map(task, items, chunksize)
    assert len(found) == len(items)


def by_dask(there: Cluster, task: Callable[[Any], object], items: list[Any]) -> None:
    found = there.client.gather(there.client.map(task, items, pure=False))
    assert len(found) == len(items)


def measure(there: Cluster, run: Callable[[], None], **what: Any) -> Run:
    before, sent, begin = there.cpu(), loopback_bytes(), time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    after = there.cpu()
    spent = [round(late - early, 4) for early, late in zip(before, after, strict=True)]
    return Run(**what, seconds=round(seconds, 4), program=spent[0], scheduler=spent[1], workers=spent[2],
               bytes=loopback_bytes() - sent)  # fmt: skip


def tasks_of(there: Cluster, case: str, length: float, rounds: int) -> Iterator[Run]:
    """Measure both ways in turns, with tasks of one length."""
    task = time.sleep if case == "sleep" else compute
    nodes = len(there.workers)
    count = nodes * max(MIN_TASKS_PER_NODE, round(RUN_S / length))
    for number in range(rounds):
        ways = ("pairpool", "dask") if number % 2 else ("dask", "pairpool")
        loop = round(alone(task, length), 6)
        for way in ways:
            items = [length] * (count if way == "pairpool" else min(count, PLAIN_TASKS))
            run = by_pool if way == "pairpool" else by_dask
            yield measure(
                there, lambda run=run, items=items: run(there, task, items),  # type: ignore[misc]
                case=case, way=way, nodes=nodes, length=length, alone=loop, tasks=len(items),
            )  # fmt: skip


def nothing(there: Cluster, rounds: int) -> Iterator[Run]:
    """Measure items that do nothing: first one per batch, then many per batch."""
    for _ in range(rounds):
        for case, count, chunksize in (("batches", BATCHES, 1), ("items", ITEMS, ITEMS // 10)):
            yield measure(
                there, lambda count=count, chunksize=chunksize: by_pool(there, noop, [0] * count, chunksize),  # type: ignore[misc]
                case=case, way="pairpool", nodes=len(there.workers), length=0.0, alone=0.0, tasks=count,
            )  # fmt: skip


def all_runs(node_counts: list[int], rounds: int) -> Iterator[Run]:
    cores = len(os.sched_getaffinity(0))
    for nodes in node_counts:
        with cluster(nodes) as there:
            by_pool(there, time.sleep, [0.01] * 100 * nodes)  # opens the pools on the nodes
            by_dask(there, time.sleep, [0.01] * 10 * nodes)
            yield from nothing(there, rounds)
            for length in LENGTHS_S:
                yield from tasks_of(there, "sleep", length, rounds)
                if nodes <= cores:
                    yield from tasks_of(there, "compute", length, rounds)


# --- a node that is killed ----------------------------------------------------------------------------

KILLED_TASKS = 1600
KILLED_LENGTH_S = 0.01


def sleep_and_return(item: int) -> int:
    time.sleep(KILLED_LENGTH_S)
    return item


def with_a_kill(nodes: int, kills: bool) -> float:
    """Return the seconds of the call. Raise `AssertionError` if results are missing or out of order."""
    with cluster(nodes) as there:
        by_pool(there, time.sleep, [0.01] * 100 * nodes)
        found = []
        begin = time.perf_counter()
        for result in there.pool.imap(sleep_and_return, range(KILLED_TASKS)):
            found.append(result)
            if kills and len(found) == KILLED_TASKS // 4:
                there.workers[-1].kill()
        seconds = time.perf_counter() - begin
    assert found == list(range(KILLED_TASKS)), "results were lost, or are out of order"
    return seconds


def print_kills(rounds: int) -> None:
    ways = {"one node": (1, False), "two nodes": (2, False), "two nodes, one killed after a quarter": (2, True)}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, case in ways.items():
            found[way].append(with_a_kill(*case))
    for way, seconds in found.items():
        print(f"{way}: {median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), complete and in order")


def main() -> None:
    import distributed

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster", description="Measure the costs of a cluster's pool."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", default="1,2,4,8", help="numbers of nodes, separated by commas")
    parser.add_argument("--killed", action="store_true", help="time only a call during which a node is killed")
    parser.add_argument("--save", type=Path, default=RESULTS, metavar="FILE")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves the blocks that end the processes of Dask
    if arguments.killed:
        print_kills(arguments.rounds)
        return
    meta = {
        "python": sys.version.split()[0],
        "distributed": distributed.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "rounds": arguments.rounds,
    }
    lines = []
    for run in all_runs([int(one) for one in arguments.nodes.split(",")], arguments.rounds):
        lines.append(json.dumps(asdict(run)))
        both = ",\n".join(lines)
        arguments.save.write_text(f'{{"meta": {json.dumps(meta)},\n"runs": [\n{both}\n]}}\n')
        print(f"{run.case:8} {run.way:9} {run.nodes} nodes, {run.length:g} s x {run.tasks}: {run.seconds:.3f} s, "
              f"efficiency {run.efficiency:.1%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
