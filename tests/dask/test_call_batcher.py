"""Single calls on a cluster: they travel in batches, and each has its own outcome."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from pairpool.dask.results import ClusterResult
from pairpool.dask.stats import ClusterCallStats, ClusterStats
from tests.support.dask_cluster import PATIENCE, node, run, scheduler, start, write_program


@pytest.fixture(scope="module")
def lone_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a scheduler with one node of two threads."""
    with scheduler(tmp_path_factory.mktemp("dask")) as address, node(address):
        yield address


def test_many_calls_need_one_thread(lone_node: str, tmp_path: Path) -> None:
    code = """
        import threading
        from concurrent.futures import as_completed
        found = {}
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            pool.apply(square, (3,))
            before = threading.active_count()
            results = [pool.apply_async(square, (x,)) for x in range(2000)]
            found["threads"] = threading.active_count() - before
            found["results"] = [one.get(60) for one in results] == [x * x for x in range(2000)]
            mixed = [pool.submit(square, 4), pool.submit(pow, 2, exp=3), pool.submit(lambda: "lambda")]
            found["submit"] = [one.result(60) for one in mixed]
            found["completed"] = len(list(as_completed([pool.submit(square, x) for x in range(50)], 60)))
            told = []
            pool.apply_async(square, (5,), callback=told.append).wait(60)
            pool.apply_async(fail_at_three, (3,), error_callback=told.append).wait(60)
            found["callbacks"] = [told[0], str(told[1])]
            last = pool.submit(slow_square, 6)
            pool.close()
            pool.join()
            found["joined"] = last.done() and last.result()
            status = pool.status()
            found["counted"] = [status.done, status.failed, status.pending, len(status.running)]
        print(json.dumps(found))
    """
    assert run(tmp_path, code, lone_node) == {
        "threads": 0,
        "results": True,
        "submit": [16, 8, "lambda"],
        "completed": 50,
        "callbacks": [25, "three"],
        "joined": 36,
        "counted": [2057, 1, 0, 0],
    }


def test_a_call_that_fails_does_not_harm_other_calls(lone_node: str, tmp_path: Path) -> None:
    code = """
        class Rude(Exception):
            def __str__(self):
                raise RuntimeError("no text")

        def be_rude():
            raise Rude

        def outcome(result):
            try:
                return result.get(60)
            except Exception as error:
                return type(error).__name__

        with ClusterPool(sys.argv[1], timeout=30) as pool:
            calls = [
                pool.submit(square, 2),
                pool.submit(fail_at_three, 3),
                pool.submit(die_at_seven, 7),
                pool.submit(be_rude),
                pool.submit(square, Closed()),
                pool.submit(make_closed, 2),
                pool.apply_async(time.sleep, (60,), task_timeout=0.2),
                pool.submit(square, 3),
            ]
            found = [outcome(one) for one in calls]
            try:
                pool.apply(die_at_seven, (7,))
            except Exception as error:
                found.append(str(error).splitlines()[0])
            for wrong in ({"retries": -1}, {"task_timeout": "soon"}):
                try:
                    pool.apply_async(square, (1,), **wrong)
                except (TypeError, ValueError) as error:
                    found.append(type(error).__name__)
        try:
            pool.submit(square, 1)
        except ValueError as error:
            found.append(str(error))
        print(json.dumps(found))
    """
    *found, dead, negative, no_number, ended = run(tmp_path, code, lone_node)
    assert found == [4, "LookupError", "WorkerDied", "Rude", "TypeError", "MaybeEncodingError", "TaskTimeout", 9]
    assert " on node tcp://127.0.0.1:" in dead
    assert "of die_at_seven" in dead
    assert (negative, no_number, ended) == ("ValueError", "TypeError", "Pool not running")


def test_a_function_is_pickled_as_it_is_at_each_call(lone_node: str, tmp_path: Path) -> None:
    code = """
        from functools import partial

        found = {}
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            counter = Counter()
            options = {"n": 0}
            factor = 0

            def scaled():
                return factor

            functions = {
                "object": counter,
                "method": counter.add_one,
                "partial": partial(get_n, options),
                "closure": scaled,
                "global": times_rate,
                "arguments": get_n,
            }
            for kind, function in functions.items():
                results = []
                for number in range(5):
                    counter.n = options["n"] = factor = globals()["rate"] = number
                    results.append(pool.apply_async(function, (options,) if kind == "arguments" else ()))
                found[kind] = [one.get(60) for one in results]
            same = [pool.submit(counter.add_one) for _ in range(5)] + [pool.submit(count, options) for _ in range(5)]
            found["same"] = [one.result(60) for one in same]
            found["mapped"] = [pool.map(counter.add, [1, 1], 1), [counter.n]]
        print(json.dumps(found))
    """
    before = """
        rate = None

        class Counter:
            n = 0

            def __call__(self):
                return self.n

            def add(self, x):
                return self.n + x

            def add_one(self):
                self.n += 1
                return self.n

        def get_n(options):
            return options["n"]

        def count(options):
            options["n"] += 1
            return options["n"]

        def times_rate():
            return rate
    """
    numbers = list(range(5))
    assert run(tmp_path, code, lone_node, before=before) == {
        "object": numbers,
        "method": [number + 1 for number in numbers],
        "partial": numbers,
        "closure": numbers,
        "global": numbers,
        "arguments": numbers,
        "same": [5] * 10,
        "mapped": [[5, 5], [4]],
    }


def test_the_limits_of_a_call_do_not_change_other_calls(lone_node: str, tmp_path: Path) -> None:
    code = """
        class Rare(Exception):
            pass

        def fail_rarely(path):
            if not os.path.exists(path):
                open(path, "w").close()
                raise Rare
            return "done"

        with ClusterPool(sys.argv[1], timeout=30) as pool:
            calls = [
                pool.apply_async(square, (2,)),
                pool.apply_async(fail_rarely, (sys.argv[2],), retries=1, retry_on=Rare),
                pool.apply_async(square, (3,)),
            ]
            print(json.dumps([one.get(60) for one in calls]))
    """
    assert run(tmp_path, code, lone_node, str(tmp_path / "failed")) == [4, "done", 9]


def test_calls_can_be_cancelled_before_and_while_they_run(lone_node: str, tmp_path: Path) -> None:
    code = """
        from concurrent.futures import CancelledError, wait
        pool = ClusterPool(sys.argv[1], timeout=30)
        runs = [pool.submit(time.sleep, 1000.0) for _ in range(2)]
        while not all(one.running() for one in runs):
            time.sleep(0.01)
        waits = [pool.submit(square, x) for x in range(200)]
        found = [all(one.cancel() for one in waits), all(one.cancelled() for one in waits)]
        found.append(len(wait(waits, 60).done))
        found.append([one.cancel() for one in runs])
        try:
            runs[0].result(60)
        except CancelledError:
            found.append("cancelled")
        found.append(pool.submit(square, 5).result(60))
        rest = pool.submit(time.sleep, 1000.0)
        pool.terminate()
        try:
            rest.result(60)
        except CancelledError:
            found.append("terminated")
        print(json.dumps(found))
    """
    assert run(tmp_path, code, lone_node) == [True, True, 200, [True, True], "cancelled", 25, "terminated"]


def test_single_calls_survive_a_killed_node_but_not_a_lost_scheduler(tmp_path: Path) -> None:
    code = """
        import logging
        logging.disable(logging.CRITICAL)
        with ClusterPool(sys.argv[1], timeout=3) as pool:
            calls = [pool.submit(slow_square, x) for x in range(600)]
            calls[50].result(60)
            print("go on", flush=True)
            found = [[one.result(60) for one in calls] == [x * x for x in range(600)]]
            print("go on", flush=True)
            calls = [pool.submit(slow_square, x) for x in range(20_000)]
            try:
                sum(one.result(60) for one in calls)
            except ConnectionError as error:
                found.append(str(error))
        print(json.dumps(found))
    """
    script = write_program(tmp_path, code)
    with ExitStack() as stack:
        running = stack.enter_context(ExitStack())
        address = running.enter_context(scheduler(tmp_path))
        first, _second = (stack.enter_context(node(address)) for _ in range(2))
        program = stack.enter_context(start(script, address))
        assert program.stdout is not None
        assert program.stdout.readline() == "go on\n"
        first.kill()
        assert program.stdout.readline() == "go on\n"
        running.close()
        out, _ = program.communicate(timeout=PATIENCE)
    assert json.loads(out) == [True, "the Dask scheduler has gone away, and did not come back in time"]


def test_only_the_first_outcome_of_a_result_counts() -> None:
    told: list[object] = []
    result: ClusterResult[int] = ClusterResult(lambda: told.append("cancel"), told.append, told.append)
    assert result.begin()
    assert result.begin()
    assert result.settle(True, 1)
    assert not result.settle(False, LookupError())
    assert not result.cancel()
    assert (result.get(), result.successful(), told) == (1, True, [1])


def test_a_result_that_was_cancelled_before_its_call_began_takes_no_outcome() -> None:
    told: list[object] = []
    result: ClusterResult[int] = ClusterResult(lambda: told.append("cancel"), told.append, told.append)
    assert result.cancel()
    assert not result.begin()
    assert not result.settle(True, 1)
    assert (result.cancelled(), result.successful(), told) == (True, False, ["cancel"])


def test_statistics_contain_an_exception_whose_str_fails() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    stats = ClusterStats("far away")
    call = ClusterCallStats("calls", "apply", None)
    stats.open(call)
    stats.ran(call, "tcp://one:1", 0, [(False, Rude()), (False, ValueError())], ["f", "g"])
    failures = [(one.function, one.item, one.error) for one in stats.status().failures]
    assert failures == [("g", 0, "ValueError: "), ("f", 0, "Rude: <unprintable: RuntimeError>")]
