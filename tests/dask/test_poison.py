"""Items and results that end the process which unpickles them, and items that end the process of the Dask worker."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed")

from distributed.scheduler import KilledWorker

from pairpool.dask.in_flight import MAX_NODE_LOSSES, FinishedBatch, InFlight
from pairpool.dask.messages import BatchOrder, BatchReport, CallHead, ItemMode, NodeFunction, NodeLimits, NodeSetup
from pairpool.dask.packing import Packer, opened, part_of, unpack
from pairpool.errors import WorkerDied
from tests.support.dask_cluster import node, run, scheduler

POISON = """
class Poison:
    # ends the process that unpickles it
    def __reduce__(self):
        return os._exit, (3,)

    def __call__(self, x):
        return x

class PoisonElsewhere:
    # ends each process that unpickles it, except the program
    def __init__(self, program):
        self.program = program

    def __reduce__(self):
        return eval, (f"7 if __import__('os').getpid() == {self.program} else __import__('os')._exit(3)",)

class PoisonError(Exception):
    def __reduce__(self):
        return os._exit, (3,)

def number(x):
    return 1 if isinstance(x, Poison) else x

def first(x, y):
    return x

def make_poison(x):
    return PoisonElsewhere(x) if x else x

def raise_poison(x):
    if x == 1:
        raise PoisonError
    return x

def kinds(found):
    return [type(one).__name__ if isinstance(one, Exception) else one for one in found]

def text(one):
    return str(one).splitlines()[0]
"""


@pytest.fixture(scope="module")
def lone_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a scheduler with one node. The tests of this file must not end the node."""
    with scheduler(tmp_path_factory.mktemp("dask")) as address, node(address) as there:
        yield address
        assert there.poll() is None, "the Dask worker has ended"


def test_an_item_that_ends_whoever_loads_it_fails_alone(lone_node: str, tmp_path: Path) -> None:
    code = """
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            items = [Poison() if x in (3, 77, 199) else [x] if x % 2 else x for x in range(200)]
            mixed = pool.map(number, items, return_exceptions=True)
            died = [x for x, one in enumerate(mixed) if isinstance(one, Exception)]
            found = {
                "map": died,
                "values": all(mixed[x] == items[x] for x in range(200) if x not in died),
                "text": text(mixed[77]),
                "starmap": kinds(pool.starmap(first, [(1, 2), (Poison(), 3), ([4], 5)], return_exceptions=True)),
                "imap": kinds(pool.imap(number, [1, Poison(), [2]], return_exceptions=True)),
                "unordered": sorted(kinds(pool.imap_unordered(number, ["1", Poison(), "2"], return_exceptions=True))),
                "submit": kinds([one.exception(30) or one.result() for one in [
                    pool.submit(number, 1), pool.submit(number, Poison()), pool.submit(number, [2]),
                ]]),
                "function": kinds(pool.map(Poison(), [1, 2], return_exceptions=True)),
                "after": pool.map(square, range(3)),
            }
        print(json.dumps(found))
    """
    found = run(tmp_path, code, lone_node, before=POISON)
    text = found.pop("text")
    assert "while unpickling the argument of item 77 of number; only this item failed" in text
    assert " on node tcp://127.0.0.1:" in text
    assert found == {
        "map": [3, 77, 199],
        "values": True,
        "starmap": [1, "WorkerDied", [4]],
        "imap": [1, "WorkerDied", [2]],
        "unordered": ["1", "2", "WorkerDied"],
        "submit": [1, "WorkerDied", [2]],
        "function": ["WorkerDied"] * 2,
        "after": [0, 1, 4],
    }


def test_a_result_passes_through_the_dask_worker_unopened(lone_node: str, tmp_path: Path) -> None:
    code = """
        me = os.getpid()
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            found = {
                "map": pool.map(make_poison, [0, me, 0]),
                "imap": list(pool.imap(make_poison, [0, me, 0])),
                "unordered": sorted(pool.imap_unordered(make_poison, [0, me, 0])),
                "apply": [pool.apply(make_poison, (me,)), pool.apply_async(make_poison, (0,)).get(30)],
                "raised": kinds(pool.map(raise_poison, range(3), return_exceptions=True)),
            }
        print(json.dumps(found))
    """
    assert run(tmp_path, code, lone_node, before=POISON) == {
        "map": [0, 7, 0],
        "imap": [0, 7, 0],
        "unordered": [0, 0, 7],
        "apply": [7, 0],
        "raised": [0, "WorkerDied", 2],
    }


def test_the_types_of_retry_on_are_compared_in_the_workers(lone_node: str, tmp_path: Path) -> None:
    code = """
        class Again(LookupError):
            pass

        def fail(path):
            with open(path, "a") as file:
                file.write("x")
            if os.path.getsize(path) < 3:
                raise Again("not yet")
            return "done"

        one, other = sys.argv[2:]
        with ClusterPool(sys.argv[1], timeout=30, retries=5, retry_on=LookupError) as pool:
            found = [pool.map(fail, [one]), pool.apply_async(fail, (other,), retries=1, retry_on=(OSError, Again))]
            try:
                found[1].get(30)
            except Again as error:
                found[1] = [str(error), error.__notes__[0], str(error.__cause__).strip().splitlines()[0]]
            late = pool.map_async(time.sleep, [60], task_timeout=0.2, retries=1, retry_on=TimeoutError)
            try:
                late.get(30)
            except TimeoutError as error:
                found.append(error.__notes__[0])
        print(json.dumps(found))
    """
    files = [str(tmp_path / name) for name in ("one", "other")]
    assert run(tmp_path, code, lone_node, *files) == [
        ["done"],
        ["not yet", "the item was run 2 times", '"""'],
        "the item was run 2 times",
    ]


def test_a_killed_dask_worker_costs_no_result_and_leaves_no_process(tmp_path: Path) -> None:
    code = """
        import logging, psutil
        from distributed import Client, LocalCluster
        logging.disable(logging.CRITICAL)
        options = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
        with LocalCluster(**options) as local, Client(local) as client, ClusterPool(client) as pool:
            results = pool.imap(slow_square, range(400))
            found = [next(results) for _ in range(20)]
            pid = min(client.run(os.getpid).values())
            there = psutil.Process(pid).children(recursive=True)
            os.kill(pid, signal.SIGKILL)
            found += results
            _gone, alive = psutil.wait_procs(there, 30)
        print(json.dumps([found == [x * x for x in range(400)], len(there) > 1, len(alive)]))
    """
    assert run(tmp_path, code) == [True, True, 0]


def test_an_item_that_ends_its_dask_worker_is_found(tmp_path: Path) -> None:
    code = """
        import dask, logging
        from distributed import Client, LocalCluster
        logging.disable(logging.CRITICAL)
        options = dict(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None)
        dask.config.set({"distributed.scheduler.allowed-failures": 0})
        with LocalCluster(**options) as local, Client(local) as client, ClusterPool(client) as pool:
            mixed = pool.map(kill_dask, [[x, os.getpid()] for x in range(4)], 4, return_exceptions=True)
            found = [type(one).__name__ if isinstance(one, Exception) else one for one in mixed]
            print(json.dumps([found, str(mixed[2])]))
    """
    before = """
        def kill_dask(item):
            import psutil
            x, program = item
            if x == 2:
                # program ─► nanny's child ─► zygote ─► worker
                one = psutil.Process()
                while one.ppid() != program:
                    one = one.parent()
                one.kill()
                time.sleep(60)
            return x
    """
    found, text = run(tmp_path, code, before=before)
    assert found == [0, 1, "WorkerDied", 3]
    assert text.startswith("item 2 of kill_dask ")
    assert "KilledWorker" in text


# --- the search for the guilty item, without a cluster --------------------------------------------------


class Named:
    """Stands for Dask's state of a worker."""

    def __init__(self, address: str) -> None:
        self.address = address


class FakeFuture:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def result(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def release(self) -> None:
        pass


class FakeCluster:
    """Stands for the Dask client and the nodes. A batch with a guilty item fails, as does each that goes with it."""

    status = "running"

    def __init__(self, guilty: set[int], error: Exception) -> None:
        self.guilty, self.error = guilty, error
        self.sent: list[tuple[FakeFuture, BatchOrder]] = []
        self.submitted = 0
        self.in_flight = InFlight(self, self, lambda _future: None, lambda _order: True)  # type: ignore[arg-type]

    def allowed(self) -> None:
        return None

    def submit(self, _function: Any, order: BatchOrder, **_options: Any) -> FakeFuture:
        self.submitted += 1
        self.sent.append((FakeFuture(None), order))
        return self.sent[-1][0]

    def finish(self) -> Iterator[FinishedBatch]:
        """Run batches until none is in flight."""
        while self.sent:
            sent, self.sent = self.sent, []
            items = [[one for _is_loaded, one in unpack(order.items)] for _future, order in sent]
            is_bad = any(not self.guilty.isdisjoint(one) for one in items)
            for (future, _order), values in zip(sent, items, strict=True):
                packer = Packer()
                for value in values:
                    packer.add(value * 2)
                future.outcome = self.error if is_bad else BatchReport("node", 0.1, packer.packed())
                yield self.in_flight.receive(future)


def order_of(first: int, length: int) -> BatchOrder:
    packer = Packer()
    for number in range(first, first + length):
        packer.add(number)
    head = CallHead(NodeSetup("", "", b""), "call", NodeFunction("f", b"", False), ItemMode.MAP, NodeLimits())
    return BatchOrder(head, first, packer.packed(), length)


@pytest.mark.parametrize(
    ("guilty", "length"),
    [(0, 1000), (1, 1000), (500, 1000), (999, 1000), (1000, 1000), (1999, 1000), (0, 1), (1, 1), (2, 3)],
)
def test_a_guilty_item_costs_a_logarithmic_number_of_batches(guilty: int, length: int) -> None:
    cluster = FakeCluster({guilty}, KilledWorker("task", Named("tcp://node:1"), 3))
    for first in (0, length):
        cluster.in_flight.submit(order_of(first, length))
    found: dict[int, Any] = {}
    for order, outcomes, is_in_flight, _report in cluster.finish():
        assert is_in_flight == (outcomes is None)
        if outcomes is not None:
            assert not is_in_flight
            found |= {order.first + offset: outcome for offset, outcome in enumerate(outcomes)}
    is_value, error = found.pop(guilty)
    assert not is_value
    assert isinstance(error, WorkerDied)
    assert error.index == guilty
    assert found == {number: (True, number * 2) for number in range(2 * length) if number != guilty}
    assert cluster.submitted <= 2 + 2 + 2 * math.ceil(math.log2(length))
    assert not cluster.in_flight
    assert cluster.in_flight.has_room({"node": 1})


@pytest.mark.parametrize("error", [CancelledError("lost"), OSError("closed")])
def test_a_batch_that_dask_always_loses_ends_with_worker_died(error: Exception) -> None:
    cluster = FakeCluster({2}, error)
    cluster.in_flight.submit(order_of(0, 4))
    last = list(cluster.finish())[-1]
    assert cluster.submitted == MAX_NODE_LOSSES + 1
    assert last.outcomes is not None
    assert [type(one) for _is_value, one in last.outcomes] == [WorkerDied] * 4


def test_a_part_of_a_package_contains_its_items() -> None:
    packer = Packer()
    for number in range(10):
        packer.add([number] if number % 2 else number)
    part = part_of(packer.packed(), 3, 6)
    assert [one for _is_loaded, one in unpack(part)] == [[3], 4, [5]]
    assert len(opened(part)[0]) == 3
