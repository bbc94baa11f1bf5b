"""The cluster on paper (`benchmarks.cluster_model`), and that a real node's threads all have something to do."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed")

from benchmarks import cluster_model as model
from benchmarks.cluster_model import Cluster, Costs, Outcome, Simulation, Tasks
from tests.support.dask_cluster import node, run, scheduler

FREE = Costs(0.0, 0.0, 0.0)
USUAL = Costs(0.001, 0.001, 0.002)


def simulate(cluster: Cluster, tasks: Tasks, costs: Costs = USUAL, **options: Any) -> Outcome:
    return Simulation(cluster, tasks, costs, **options).run()


def test_where_nothing_costs_anything_all_threads_work_all_the_time() -> None:
    found = simulate(Cluster(4, 8), Tasks(3200, 0.01), FREE)
    assert found.seconds == pytest.approx(1.0, rel=0.05)
    assert found.efficiency == pytest.approx(1.0, rel=0.05)
    assert found.program == found.scheduler == 0.0


@pytest.mark.parametrize("length", [0.001, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("threads", [1, 16])
def test_a_node_is_kept_busy_whatever_the_length_of_tasks(length: float, threads: int) -> None:
    count = int(2 * threads * max(10.0, 6 * length) / length)
    assert simulate(Cluster(2, threads), Tasks(count, length)).efficiency > 0.9


def test_one_scheduler_is_the_limit_of_batches() -> None:
    costs = Costs(0.0, 0.002, 0.0)
    found = simulate(Cluster(100, 1), Tasks(5000, 0.001), costs, chunksize=1)
    assert found.batches == 5000
    assert found.seconds == pytest.approx(5000 * 0.002, rel=0.01)
    assert found.scheduler == pytest.approx(1.0, rel=0.01)


def test_shared_cores_hold_up_computing_and_not_sleeping() -> None:
    tasks = Tasks(400, 0.01)
    cluster = Cluster(4, 1, cores=2)
    assert simulate(cluster, tasks, FREE).seconds == pytest.approx(1.0, rel=0.1)
    assert simulate(cluster, replace(tasks, computes=True), FREE).seconds == pytest.approx(2.0, rel=0.1)


def test_the_same_seed_gives_the_same_and_another_something_else() -> None:
    tasks = Tasks(500, 0.02, jitter=0.5)
    first, second, other = (simulate(Cluster(3, 4), tasks, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_costs_are_read_off_what_was_measured() -> None:
    def measured(case: str, tasks: int, program: float, scheduler: float, workers: float) -> dict[str, Any]:
        spent = {"program": program, "scheduler": scheduler, "workers": workers}
        return {"case": case, "tasks": tasks, "nodes": 2, **spent}

    runs = [measured("batches", 100, *values) for values in ((0.1, 0.2, 0.4), (0.2, 0.3, 0.5), (0.9, 0.9, 0.9))]
    runs += [measured("items", 1000, 0.002, 0.1, 0.01), measured("sleep", 10, 5.0, 5.0, 5.0)]
    costs = model.costs_of([*runs, {**runs[2], "nodes": 1}], 2)
    each = (costs.program, costs.scheduler, costs.node, costs.program_item, costs.node_item)
    assert each == pytest.approx((0.002, 0.003, 0.005, 2e-6, 1e-5))


def test_all_threads_of_a_node_work_on_long_items(tmp_path: Path) -> None:
    code = """
        def interval(_):
            began = time.monotonic()
            time.sleep(0.3)
            return began, time.monotonic()

        with ClusterPool(sys.argv[1], timeout=30) as pool:
            pool.map(square, range(8))  # opens the pool there
            spans = pool.map(interval, range(40))
        most = max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)
        print(json.dumps(most))
    """
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path))
        stack.enter_context(node(address, 8))
        assert run(tmp_path, code, address) == 8
