"""`ClusterPool` on a real scheduler and Dask workers on loopback. Each program has a process of its own."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.dask.batch_sizer import BatchSizer
from pairpool.dask.stats import ClusterCallStats, ClusterStats
from pairpool.view.table import render
from tests.support.dask_cluster import PATIENCE, node, run, scheduler, start, write_program
from tests.support.scripts import environment, python


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a scheduler with two nodes of two threads each."""
    pytest.importorskip("distributed")
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path_factory.mktemp("dask")))
        for _ in range(2):
            stack.enter_context(node(address))
        yield address


# --- calls --------------------------------------------------------------------------------------------


def test_the_methods_of_pool_work_on_a_cluster(cluster: str, tmp_path: Path) -> None:
    code = """
        found = {}
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            found["nodes"] = sorted(pool.nodes.values())
            found["map"] = pool.map(square, range(500)) == [x * x for x in range(500)]
            found["chunks"] = pool.map(square, iter(range(10)), 3) == [x * x for x in range(10)]
            found["empty"] = pool.map(square, [])
            found["starmap"] = pool.starmap(pow, [(2, 3), (3, 2)])
            endless = pool.imap(square, iter(int, 1))
            found["endless"] = [next(endless) for _ in range(5)]
            del endless
            found["unordered"] = sorted(pool.imap_unordered(square, range(50))) == [x * x for x in range(50)]
            found["apply"] = pool.apply(pow, (2, 5)), pool.apply(int, ("11",), {"base": 2})
            offset = 7
            result = pool.map_async(lambda x: x + offset, range(5))
            found["async"] = result.get(30), result.ready(), result.successful()
            found["apply_async"] = pool.apply_async(pow, (2, 6)).get(30)
            found["submit"] = pool.submit(int, "11", base=2).result(30)
            found["limits"] = pool.apply(fail_once, (sys.argv[2],), retries=1, retry_on=LookupError)
            stream = pool.imap_unordered(time.sleep, [0, 60])
            found["next"] = [stream.next(30)]
            try:
                stream.next(0.01)
            except multiprocessing.TimeoutError:
                found["next"].append(stream.cancel(kill=True))
            status = pool.status()
            found["status"] = len(status.workers), status.processes, status.failed
            found["done"] = status.done > 500
        print(json.dumps(found))
    """
    assert run(tmp_path, code, cluster, str(tmp_path / "failed")) == {
        "nodes": [2, 2],
        "map": True,
        "chunks": True,
        "empty": [],
        "starmap": [8, 9],
        "endless": [0, 0, 0, 0, 0],
        "unordered": True,
        "apply": [32, 3],
        "async": [[7, 8, 9, 10, 11], True, True],
        "apply_async": 64,
        "submit": 3,
        "limits": "done",
        "next": [None, True],
        "status": [2, 2, 0],
        "done": True,
    }


def test_an_item_that_fails_does_not_harm_other_items(cluster: str, tmp_path: Path) -> None:
    code = """
        def tell(error):
            return [type(error).__name__, str(error).splitlines()[0], getattr(error, "__notes__", [])]

        found = {}
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            try:
                pool.map(fail_at_three, range(6))
            except LookupError as error:
                found["raised"] = tell(error)
            dead = pool.map(die_at_seven, range(20), return_exceptions=True)
            found["others"] = [x for x in dead if not isinstance(x, Exception)] == [x for x in range(20) if x != 7]
            found["dead"] = tell(dead[7])
            results = pool.imap(fail_at_three, range(5))
            found["imap"] = [next(results) for _ in range(3)]
            try:
                next(results)
            except LookupError:
                found["imap"].append(next(results))
            odd = pool.map(square, [1, Closed(), 3], return_exceptions=True)
            found["argument"] = [odd[0], tell(odd[1])[:2], odd[2]]
            odd = pool.map(make_closed, range(4), return_exceptions=True)
            found["result"] = [odd[0], odd[1], type(odd[2]).__name__, odd[3]]
            found["alive"] = pool.map(square, range(3))
            found["shown"] = str(odd[2]).startswith("Error sending result: '<__main__.Closed object")
            late = pool.map(time.sleep, [60] * 3, task_timeout=0.2, return_exceptions=True)
            found["late"] = [[type(error).__name__, error.index] for error in late]
            def broken():
                yield 1
                yield 2
                raise OSError("the input ends here")
            stream = pool.imap(square, broken())
            found["before"] = [next(stream), next(stream)]
            for call in (lambda: pool.map(square, broken()), lambda: next(stream)):
                try:
                    call()
                except OSError as error:
                    found.setdefault("input", []).append(str(error))
        try:
            pool.map(square, [1])
        except ValueError as error:
            found["ended"] = str(error)
        print(json.dumps(found))
    """
    found = run(tmp_path, code, cluster)
    name, text, [note] = found.pop("raised")
    assert (name, text) == ("LookupError", "three")
    assert note.startswith("on node tcp://127.0.0.1:")
    name, text, _notes = found.pop("dead")
    assert name == "WorkerDied"
    assert "signal SIGSEGV" in text
    assert " on node tcp://127.0.0.1:" in text
    assert text.endswith("while running item 7 of die_at_seven; only this item failed")
    assert found == {
        "others": True,
        "imap": [0, 1, 2, 4],
        "argument": [1, ["TypeError", "not this one"], 9],
        "result": [0, 1, "MaybeEncodingError", 3],
        "alive": [0, 1, 4],
        "shown": True,
        "late": [["TaskTimeout", 0], ["TaskTimeout", 1], ["TaskTimeout", 2]],
        "before": [1, 4],
        "input": ["the input ends here"] * 2,
        "ended": "Pool not running",
    }


def test_an_item_or_result_that_cannot_be_loaded_fails_alone(cluster: str, tmp_path: Path) -> None:
    code = """
        def tell(one):
            return f"{type(one).__name__}: {one}" if isinstance(one, Exception) else one

        found = {}
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            mixed = pool.map(kind_of, [1, Broken("here"), [3], Broken("there")], 4, return_exceptions=True)
            found["items"] = [tell(one) for one in mixed]
            mixed = pool.map(make_picky, range(4), 4, return_exceptions=True)
            found["results"] = [tell(one).partition(" missing")[0] if x % 2 else one for x, one in enumerate(mixed)]
            mixed = pool.imap(kind_of, [Closed(), 1, Broken("there"), Closed(), 7], 5, return_exceptions=True)
            found["stream"] = [tell(one) for one in mixed]
            late = pool.map(sleep_if, [Closed(), Broken("here"), 60], 3, task_timeout=0.2, return_exceptions=True)
            found["index"] = late[2].index
            errors = pool.map(Broken("there"), [1, 2, 3], 3, return_exceptions=True)
            found["function"] = [[tell(one), len(one.__notes__)] for one in errors]
            found["own"] = len({id(one) for one in errors})
        print(json.dumps(found))
    """
    before = """
        class Broken:
            def __init__(self, text):
                self.text = text

            def __call__(self, x):
                return x

            def __setstate__(self, state):
                raise LookupError(state["text"])

        class Picky(Exception):
            def __init__(self, one, two):
                super().__init__(one)

        def kind_of(x):
            return type(x).__name__

        def sleep_if(x):
            time.sleep(x)

        def make_picky(x):
            return Picky(x, x) if x % 2 else [x]
    """
    found = run(tmp_path, code, cluster, before=before)
    assert found.pop("results")[::2] == [[0], [2]]
    assert found == {
        "items": ["int", "LookupError: here", "list", "LookupError: there"],
        "stream": ["TypeError: not this one", "int", "LookupError: there", "TypeError: not this one", "int"],
        "index": 2,
        "function": [["LookupError: there", 1]] * 3,
        "own": 3,
    }


def test_a_slow_input_does_not_delay_its_first_results(cluster: str, tmp_path: Path) -> None:
    code = """
        pulled = []

        def slow_input():
            for x in range(40):
                time.sleep(0.05)
                pulled.append(x)
                yield x

        with ClusterPool(sys.argv[1], timeout=30) as pool:
            pool.map(square, range(1000))
            found = []
            for way in (pool.imap, pool.imap_unordered):
                pulled.clear()
                stream = way(square, slow_input())
                first = next(stream)
                found.append([first, len(pulled) < 30, sorted([first, *stream]) == [x * x for x in range(40)]])
            pulled.clear()
            stream = pool.imap(square, slow_input())
            try:
                stream.next(0.01)
            except multiprocessing.TimeoutError:
                found.append([len(pulled) < 15, sum(stream)])
        print(json.dumps(found))
    """
    assert run(tmp_path, code, cluster) == [[0, True, True], [0, True, True], [True, sum(x * x for x in range(40))]]


def test_map_async_copies_a_list_that_the_caller_changes(cluster: str, tmp_path: Path) -> None:
    code = """
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            items = list(range(5000))
            result = pool.map_async(square, items)
            items.clear()
            print(json.dumps(result.get(30) == [x * x for x in range(5000)]))
    """
    assert run(tmp_path, code, cluster) is True


def test_a_large_object_in_many_items_travels_once_per_batch(cluster: str, tmp_path: Path) -> None:
    code = """
        from pairpool.dask import cluster_call

        sizes = []

        class InFlight(cluster_call.InFlight):
            def submit(self, order):
                sizes.append(len(order.items))
                super().submit(order)

        cluster_call.InFlight = InFlight
        text = "x" * 1_000_000
        table = {"text": text, "seen": []}
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            found = [
                pool.map(length_of, [(table, x) for x in range(100)], 50) == [1_000_000 + x for x in range(100)],
                pool.starmap(length, [(table, x) for x in range(100)], 50) == [1_000_000 + x for x in range(100)],
                pool.map(len, [[text]] * 100, 50) == [1] * 100,
                pool.map(length_of, [(table, x) for x in range(4)], 1) == [1_000_000 + x for x in range(4)],
            ]
        print(json.dumps([found, [round(size / 1e6, 1) for size in sizes]]))
    """
    before = """
        def length(table, x):
            return len(table["text"]) + x

        def length_of(item):
            return length(*item)
    """
    found, sizes = run(tmp_path, code, cluster, before=before)
    assert found == [True] * 4
    assert sizes == [2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_call_survives_a_killed_node_and_uses_a_new_one(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    code = """
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            results = pool.imap(slow_square, range(1500))
            found = [next(results) for _ in range(200)]
            print("go on", flush=True)
            found += results
            seen = sorted(worker.done for worker in pool.status().workers)
        print(json.dumps([found == [x * x for x in range(1500)], len(seen), seen[0] > 0]))
    """
    script = write_program(tmp_path, code)
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path))
        first, _second = (stack.enter_context(node(address)) for _ in range(2))
        program = stack.enter_context(start(script, address))
        assert program.stdout is not None
        assert program.stdout.readline() == "go on\n"
        first.kill()
        stack.enter_context(node(address))
        out, _ = program.communicate(timeout=PATIENCE)
    assert program.returncode == 0
    assert json.loads(out) == [True, 2, True]


def test_a_cancelled_call_raises_and_the_pool_goes_on(cluster: str, tmp_path: Path) -> None:
    code = """
        from concurrent.futures import CancelledError
        pool = ClusterPool(sys.argv[1], timeout=30)
        result = pool.map_async(time.sleep, [0.05] * 100_000)
        while not pool.status().done:
            time.sleep(0.01)
        ended = result.cancel()
        try:
            result.get(30)
        except CancelledError:
            print(json.dumps([ended, result.cancelled(), result.cancel(), pool.map(square, range(3))]))
        finally:
            pool.terminate()
    """
    assert run(tmp_path, code, cluster) == [True, True, False, [0, 1, 4]]


def test_a_call_can_be_cancelled_while_a_batch_goes_out(cluster: str, tmp_path: Path) -> None:
    code = """
        from concurrent.futures import CancelledError
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            stream = pool.imap(time.sleep, itertools.repeat(100_000))
            submit = pool._client.submit

            def cancelled_meanwhile(*args, **kwargs):
                future = submit(*args, **kwargs)
                stream.cancel()
                return future

            pool._client.submit = cancelled_meanwhile
            try:
                next(stream)
            except CancelledError as error:
                print(json.dumps(str(error)))
    """
    assert run(tmp_path, code, cluster) == "the call was cancelled"


def test_an_initializer_of_the_main_module_sets_globals_for_its_functions(cluster: str, tmp_path: Path) -> None:
    code = """
        found = []
        with ClusterPool(sys.argv[1], timeout=30, initializer=set_up, initargs=(7,)) as pool:
            found.append(pool.map(scaled, [1, 2]))
            found.append(pool.starmap(partial(scaled_sum, 1), [(2,), (3,)]))
            found.append(pool.apply(lambda: factor))
        for initializer in (fail_at_three, ClusterPool.nowhere):
            with ClusterPool(sys.argv[1], timeout=30, initializer=initializer, initargs=(3,)) as pool:
                try:
                    pool.map(square, [1])
                except InitializerFailed as error:
                    found.append(str(error).splitlines()[-1])
        print(json.dumps(found))
    """
    before = """
        from functools import partial
        from pairpool import InitializerFailed

        factor = None

        def set_up(number):
            global factor, known
            factor, known = number, {}

        def scaled(x):
            return factor * known.setdefault(x, x)

        def scaled_sum(x, y):
            return scaled(x) + scaled(y)

        ClusterPool.nowhere = lambda number: os._exit(number)
    """
    found = run(tmp_path, code, cluster, before=before)
    assert found[:3] == [[7, 14], [21, 28], 7]
    assert found[3] == "LookupError: three"
    assert "exit status 3" in found[4]


def test_large_arguments_cause_no_warning_of_dask(cluster: str, tmp_path: Path) -> None:
    code = """
        with ClusterPool(sys.argv[1], timeout=30) as pool, warnings.catch_warnings():
            warnings.simplefilter("error")
            print(json.dumps(pool.map(len, [bytes(12_000_000)] * 2)))
    """
    assert run(tmp_path, code, cluster) == [12_000_000] * 2


def test_several_nodes_may_live_in_one_process(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    code = """
        from distributed import LocalCluster
        options = dict(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0")
        with LocalCluster(**options) as local, ClusterPool(local.scheduler_address, timeout=30) as pool:
            found = pool.map(slow_square, range(50)) == [x * x for x in range(50)]
            print(json.dumps([found, [worker.done > 0 for worker in pool.status().workers]]))
    """
    assert run(tmp_path, code) == [True, [True, True]]


def test_a_lost_scheduler_raises_connection_error(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    code = """
        import logging
        logging.disable(logging.CRITICAL)
        with ClusterPool(sys.argv[1], timeout=3) as pool:
            results = pool.imap(slow_square, range(100_000))
            next(results)
            print("go on", flush=True)
            try:
                sum(results)
            except ConnectionError as error:
                print(json.dumps(str(error)))
    """
    script = write_program(tmp_path, code)
    with ExitStack() as stack:
        running = stack.enter_context(ExitStack())
        address = running.enter_context(scheduler(tmp_path))
        stack.enter_context(node(address))
        program = stack.enter_context(start(script, address))
        assert program.stdout is not None
        assert program.stdout.readline() == "go on\n"
        running.close()
        out, _ = program.communicate(timeout=PATIENCE)
    assert json.loads(out) == "the Dask scheduler has gone away, and did not come back in time"


def test_all_threads_of_a_node_work_on_long_items(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    code = """
        def interval(_):
            began = time.monotonic()
            time.sleep(0.3)
            return began, time.monotonic()

        with ClusterPool(sys.argv[1], timeout=30) as pool:
            pool.map(square, range(8))  # opens the pool on the node
            spans = pool.map(interval, range(40))
        most = max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)
        print(json.dumps(most))
    """
    with scheduler(tmp_path) as address, node(address, 8):
        assert run(tmp_path, code, address) == 8


# --- bad input ----------------------------------------------------------------------------------------


def test_a_missing_scheduler_a_missing_node_and_other_versions_are_errors(cluster: str, tmp_path: Path) -> None:
    code = """
        import logging
        logging.disable(logging.CRITICAL)
        found = []
        for address in sys.argv[1:]:
            began = time.monotonic()
            try:
                ClusterPool(address, timeout=1.0)
            except Exception as error:
                found.append([type(error).__name__, str(error), time.monotonic() - began < 15])
        print(json.dumps(found))
    """
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import pairpool\npairpool.__version__ = '0.0.7'\n")
    path = os.pathsep.join([str(other), environment()["PYTHONPATH"]])
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with (
        scheduler(tmp_path / "one") as empty,
        scheduler(tmp_path / "two") as mixed,
        node(mixed, PYTHONPATH=path),
        socket.create_server(("127.0.0.1", 0)) as mute,
    ):
        silent = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        found = run(tmp_path, code, "tcp://127.0.0.1:9", empty, mixed, silent)
    kinds = [kind for kind, _text, _in_time in found]
    assert kinds == ["ConnectionError", "ConnectionError", "ClusterMismatch", "ConnectionError"]
    assert all(in_time for _kind, _text, in_time in found)
    assert found[0][1].startswith("there is no Dask scheduler at tcp://127.0.0.1:9 within 1 s")
    assert found[1][1] == f"the Dask scheduler at {empty} has no node within 1 s"
    assert "pairpool 0.0.7, and this program Python" in found[2][1]
    assert found[3][1] == f"there is no Dask scheduler at {silent} within 1 s (nothing there speaks as one)"


def test_wrong_arguments_are_refused_in_the_program(cluster: str, tmp_path: Path) -> None:
    code = """
        def tell(call):
            try:
                call()
            except Exception as error:
                return f"{type(error).__name__}: {error}"

        found = [tell(lambda: ClusterPool(None)), tell(lambda: ClusterPool(sys.argv[1], timeout=-1))]
        for options in (
            {"bogus": 1}, {"chunksize": 1}, {"live": True}, {"task_timeout": 0}, {"retries": -1}, {"initializer": 3},
            {"start_method": "direct"}, {"memory_limit": "lots"}, {"start_timeout": 0},
        ):
            found.append(tell(lambda: ClusterPool(sys.argv[1], **options)))
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            found.append(tell(lambda: pool.map(square, [1], task_timeout=-1, return_exceptions=True)))
            found.append(tell(lambda: pool.apply(square, (1,), retry_on=3)))
            found.append(tell(lambda: pool.imap(square, [1], memory_limit=3)))
        print(json.dumps(found))
    """
    assert run(tmp_path, code, cluster) == [
        "TypeError: address must be that of a scheduler, as a text, or a distributed.Client, not None",
        "ValueError: timeout must be positive, not -1",
        "TypeError: bogus is not an option of a pool on a cluster",
        "TypeError: chunksize is not an option of a pool on a cluster",
        "TypeError: live is not an option of a pool on a cluster",
        "ValueError: task_timeout must be positive, not 0",
        "ValueError: retries must be 0 or more, not -1",
        "TypeError: initializer must be a callable",
        "ValueError: start_method must be fork or forkserver on a cluster, not 'direct'",
        "ValueError: a size is a number of bytes or a text such as '2GB', not 'lots'",
        "ValueError: start_timeout must be positive, not 0",
        "ValueError: task_timeout must be positive, not -1",
        "TypeError: retry_on must be a type of exceptions or a tuple of such types, not 3",
        "TypeError: ClusterPool.imap() got an unexpected keyword argument 'memory_limit'",
    ]


def test_without_distributed_the_error_names_the_extra() -> None:
    done = python("-c", "import sys; sys.modules['distributed'] = None; import pairpool.dask")
    expected = "ImportError: pairpool.dask needs Dask's distributed: pip install 'pairpool[dask]'"
    assert done.stderr.splitlines()[-1] == expected


# --- batch sizes and statistics -----------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0.0, 100.0)), max_size=30),
    st.integers(0, 4000),
    st.integers(1, 64),
)
def test_a_batch_has_at_least_one_item_and_grows_step_by_step(
    learned: list[tuple[int, float]], nodes: int, threads: int
) -> None:
    sizer = BatchSizer(0.1)
    largest = 1
    for items, seconds in learned:
        sizer.learn(items, seconds)
        largest = max(largest, items)
        for remaining in (None, 10_000, 1):
            assert 1 <= sizer.next(remaining, nodes, nodes * threads) <= 4 * largest


def settled(item: float, nodes: int, threads: int) -> BatchSizer:
    """Return a sizer that has learned how many seconds an item takes."""
    sizer = BatchSizer(0.1)
    assert sizer.next(None, nodes, threads) == threads // nodes  # one item per worker until the first batch is back
    for _ in range(20):
        size = sizer.next(None, nodes, threads)
        sizer.learn(size, size * item)
    return sizer


def test_a_batch_takes_about_the_target() -> None:
    sizer = settled(0.001, 4, 16)
    assert sizer.next(None, 4, 16) == 400  # a tenth of a second on a node of four threads
    assert sizer.next(1600, 4, 16) == 200  # the last ones are smaller
    assert sizer.next(300, 4, 16) == 100  # but not tiny
    sizer.learn(100, 10.0)  # suddenly slow
    assert sizer.next(None, 4, 16) == 4
    assert BatchSizer(0.1, 7).next(3, 4, 16) == 7


def test_with_many_nodes_batches_are_longer_to_spare_the_scheduler() -> None:
    sizer = settled(0.01, 1000, 16_000)
    per_second = 1000 / (sizer.next(None, 1000, 16_000) * 0.01 / 16)
    assert per_second == pytest.approx(250, rel=0.01)  # at two milliseconds each: half of the scheduler's time


def test_a_view_shows_one_line_per_node() -> None:
    stats = ClusterStats("far away")
    call = ClusterCallStats("simulate", "map", 100)
    stats.open(call)
    stats.set_nodes({"tcp://one:1": 8, "tcp://two:2": 16})
    stats.ran(call, "tcp://one:1", 0, [(True, None)] * 20)
    stats.ran(call, "tcp://two:2", 20, [(True, None), (False, LookupError("no"))])
    status = stats.status()
    assert (status.processes, status.done, status.failed, status.pending) == (2, 22, 1, 78)
    assert [(worker.number, worker.done, worker.failed) for worker in status.workers] == [(0, 20, 0), (1, 2, 1)]
    text = render(status, 120, None).text
    assert "16 threads at tcp://two:2" in text
    assert "LookupError: no" in text
    assert "0 starting" in text
    stats.set_nodes({"tcp://two:2": 16})
    assert [worker.number for worker in stats.status().workers] == [1]
    stats.close(call)
    assert stats.status().workers[0].state == "idle"
