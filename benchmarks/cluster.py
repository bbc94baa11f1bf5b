"""What a cluster's pool costs: `ClusterPool.map` and plain `Client.map` in turns, on 1 to 8 nodes on loopback.

`python -m benchmarks.cluster [--rounds N] [--nodes 1,2,4,8] [--save FILE] [--killed]`. A node is a Dask worker with one
thread. Sleeping tasks show what the way there and back costs where there are fewer cores than nodes; computing ones run
on as many nodes as there are cores. Tasks that do nothing tell what a batch and an item cost the program, the scheduler
and a node. Needs `distributed`. `python -m benchmarks.cluster_model` makes tables of it. `--killed` times one call
instead: on one node, on two, and on two of which one is killed.
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

LENGTHS = 0.001, 0.01, 0.1, 1.0
"""Seconds that a task takes."""

SECONDS = 1.5
"""How long a run should take if nothing cost anything, in tasks of up to a tenth of that."""

FEWEST = 4
"""Tasks a node, of long ones."""

PLAIN_TASKS = 1500
"""The most that plain Dask is given: it takes milliseconds for each, and the rate is the same with more."""

BATCHES = 800
"""Of one item that does nothing, to see what a batch costs."""

ITEMS = 40_000
"""That do nothing, in batches of a tenth of them, to see what an item costs."""

START = 60.0
"""Seconds that processes of Dask may take to be there."""

STEPS = 20_000_000
"""Of a loop, in about a second."""


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        case: `sleep`, `compute`, or of tasks that do nothing: `batches` of one each, `items` of a few batches.
        way: `pairpool` or `dask`.
        nodes: how many.
        length: seconds of a task, as asked for.
        alone: seconds that such a task takes in a loop in a process of its own, without a pool.
        tasks: how many.
        seconds: from call to result.
        program, scheduler, workers: CPU seconds there; the last one of all nodes together.
        bytes: what went over the loopback device, anybody's.
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
        """Share of the nodes' time that tasks had."""
        return self.tasks * self.alone / (self.nodes * self.seconds)


@dataclass
class Cluster:
    """Processes of Dask's, and what this program made to talk to them."""

    scheduler: psutil.Process
    workers: list[psutil.Process]
    client: Any
    pool: Any

    def cpu(self) -> tuple[float, float, float]:
        """CPU seconds of the program, of the scheduler and of all nodes, pools on them included."""
        on_nodes = [one for worker in self.workers for one in (worker, *worker.children(recursive=True))]
        return time.process_time(), _cpu_of(self.scheduler), sum(map(_cpu_of, on_nodes))


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def loopback_bytes() -> int:
    """Sent over the loopback device since the machine was started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == "lo":
            return int(figures.split()[8])
    raise OSError("there is no loopback device")


@contextmanager
def dask_process(*arguments: str) -> Iterator[psutil.Process]:
    """A process of Dask's, killed at the end."""
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
    """A scheduler with so many nodes of one thread each, and a pool on them."""
    from distributed import Client

    from pairpool.dask import ClusterPool

    with ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-jupyter"]
        scheduler = stack.enter_context(dask_process("scheduler", *options, "--scheduler-file", str(file)))
        options = ["--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        workers = [stack.enter_context(dask_process("worker", *options)) for _ in range(nodes)]
        deadline = time.monotonic() + START
        while not file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the scheduler did not start")
            time.sleep(0.05)
        client = stack.enter_context(Client(scheduler_file=str(file), timeout=START, set_as_default=False))
        client.wait_for_workers(nodes, timeout=START)
        pool = stack.enter_context(ClusterPool(client, timeout=START))
        yield Cluster(scheduler, workers, client, pool)


def compute(seconds: float) -> float:
    """Work that takes about so long, and the same number of steps whatever else the machine does."""
    for _ in range(int(seconds * STEPS)):
        pass
    return seconds


def alone(task: Callable[[float], object], length: float) -> float:
    """Seconds that the task takes in a loop: a sleep lasts longer than it is asked to."""
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
    """Both ways in turns, over tasks of one length."""
    task = time.sleep if case == "sleep" else compute
    nodes = len(there.workers)
    count = nodes * max(FEWEST, round(SECONDS / length))
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
    """Items that do nothing: one to a batch, then many."""
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
            for length in LENGTHS:
                yield from tasks_of(there, "sleep", length, rounds)
                if nodes <= cores:
                    yield from tasks_of(there, "compute", length, rounds)


# --- a node that is killed ----------------------------------------------------------------------------

KILLED_TASKS = 1600
KILLED_LENGTH = 0.01


def sleep_and_return(item: int) -> int:
    time.sleep(KILLED_LENGTH)
    return item


def with_a_kill(nodes: int, kills: bool) -> float:
    """Seconds for the call; its results are complete and in order, or this raises."""
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

    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="What a cluster's pool costs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", default="1,2,4,8", help="how many, separated by commas")
    parser.add_argument("--killed", action="store_true", help="time only a call with a node killed")
    parser.add_argument("--save", type=Path, default=RESULTS, metavar="FILE")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without ending what was started
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
