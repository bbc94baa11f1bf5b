"""The backend for joblib: the promises that `Parallel` makes with any backend, and additional ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairpool import WorkerDied
from tests.support import tasks
from tests.support.children import in_child
from tests.support.gates import Gate, Reports
from tests.support.scripts import python
from tests.support.waiting import PATIENCE

joblib = pytest.importorskip("joblib")
np = pytest.importorskip("numpy")

from joblib import Parallel, delayed, effective_n_jobs, parallel_config  # noqa: E402  # only if joblib is installed

import pairpool.joblib as backend  # noqa: E402
from pairpool.joblib_pools import IDLE_POOLS_KEPT, pools  # noqa: E402


@pytest.fixture(autouse=True)
def _backend() -> Iterator[None]:
    """Use fork, which is quicker here. Another test uses the default."""
    backend.register()
    with parallel_config("pairpool", n_jobs=2, start_method="fork"):
        yield
    for executor in pools.executors.values():
        executor.shutdown()
    pools.executors.clear()


def double(x: int) -> int:
    return 2 * x


def fail_at_nine(x: int) -> int:
    if x == 9:
        raise LookupError(f"no {x}")
    return x


def die_at_nine(x: int) -> int:
    if x == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def write_and_sum(array: Any, x: int) -> tuple[int, float, bool]:
    array[0] = x
    return os.getpid(), float(array.sum()), bool(array.flags.writeable)


def threads_allowed() -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def nested(x: int) -> tuple[str, list[int]]:
    inner = Parallel(n_jobs=2)
    found = inner(delayed(double)(y) for y in range(x))
    return type(inner._backend).__name__, found


def hold(_x: int) -> None:
    threading.Event().wait()


def test_few_pools_are_kept() -> None:
    """Each set of options has its own pool. The pools that were unused for the longest time end."""
    calls = [delayed(double)(x) for x in range(3)]
    with Parallel(task_timeout=1000) as parallel:
        for limit in (100, 101, 102, 103, 104, 100):
            with parallel_config("pairpool", n_jobs=2, start_method="fork"):  # not the backend of the outer call
                assert Parallel(task_timeout=limit)(calls) == [0, 2, 4]
        assert len(pools.executors) == IDLE_POOLS_KEPT + 1 + 1  # the pool of the last call, and the one in use
        assert parallel(calls) == [0, 2, 4]
    assert sum(pools.users.values()) == 0


def test_results_come_in_order() -> None:
    assert Parallel()(delayed(double)(x) for x in range(500)) == [2 * x for x in range(500)]
    offset = 3
    assert Parallel()(delayed(lambda x: x + offset)(x) for x in range(10)) == list(range(3, 13))
    assert Parallel()([]) == []


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_come_as_they_are_ready(return_as: str) -> None:
    results = Parallel(return_as=return_as)(delayed(double)(x) for x in range(200))
    assert sorted(results) == [2 * x for x in range(200)]


def test_the_pool_is_kept_for_the_next_call() -> None:
    pids = {pid for _ in range(3) for pid in Parallel(batch_size=1)(delayed(os.getpid)() for _ in range(50))}
    assert len(pids) <= 2
    assert len(pools.executors) == 1


def test_an_exception_ends_the_call_and_the_next_one_is_fine() -> None:
    with pytest.raises(LookupError, match="no 9"):
        Parallel()(delayed(fail_at_nine)(x) for x in range(100))
    assert Parallel()(delayed(double)(x) for x in range(5)) == [0, 2, 4, 6, 8]


def test_a_worker_that_dies_fails_the_call_with_the_name_of_the_task() -> None:
    with pytest.raises(WorkerDied, match="SIGKILL"):
        Parallel()(delayed(die_at_nine)(x) for x in range(100))
    assert Parallel()(delayed(double)(x) for x in range(5)) == [0, 2, 4, 6, 8]


def test_a_time_limit_ends_the_task() -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.2)(delayed(hold)(x) for x in range(4))
    assert Parallel(timeout=PATIENCE)(delayed(double)(x) for x in range(3)) == [0, 2, 4]


def test_n_jobs() -> None:
    cores = len(os.sched_getaffinity(0))
    assert effective_n_jobs(-1) == cores
    assert effective_n_jobs(-1 - cores) == 1
    assert effective_n_jobs(3) == 3
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0)(delayed(double)(x) for x in range(3))
    assert set(Parallel(n_jobs=1)(delayed(os.getpid)() for _ in range(3))) == {os.getpid()}


def test_an_array_is_written_once_and_each_worker_may_write_to_it() -> None:
    array = np.ones(200_000)
    found = Parallel(batch_size=1)(delayed(write_and_sum)(array, x) for x in range(20))
    assert [(total, writable) for _pid, total, writable in found] == [(199_999.0 + x, True) for x in range(20)]
    assert array[0] == 1.0
    assert Parallel(max_nbytes=None)(delayed(write_and_sum)(array, x) for x in range(2))[1][1:] == (200_000.0, True)
    array[1] = 5.0  # a later call sees the new value
    assert Parallel()(delayed(write_and_sum)(array, x) for x in range(2))[1][1] == 200_004.0


def write_at(out: Any, at: int) -> None:
    out[at] = at


def write_inside(inside: Any, at: int) -> None:
    inside["out"][at] = at


def write_below(pair: tuple[Any, Any], at: int) -> bool:
    pair[1][at] = at
    return bool(pair[0].flags.writeable)


@pytest.fixture
def in_file(tmp_path: Path) -> Any:
    return np.memmap(tmp_path / "out", dtype="int64", shape=(30, 20), mode="w+")


def test_tasks_write_to_the_file_of_an_array(in_file: Any) -> None:
    row = in_file[3]
    Parallel()(delayed(write_at)(row, x) for x in range(20))
    assert list(row) == list(range(20))
    Parallel(max_nbytes=None)(delayed(write_inside)({"out": in_file[:, 4]}, x) for x in range(30))
    assert list(in_file[:, 4]) == list(range(30))
    backwards = np.asarray(in_file)[::-2, 5:0:-2]
    transposed = in_file.T
    read_only = np.memmap(in_file.filename, dtype="int64", shape=in_file.shape, mode="r")
    found = Parallel()(delayed(write_below)((read_only, backwards), x) for x in range(15))
    assert set(found) == {False}
    assert [list(line) for line in backwards] == [[x] * 3 for x in range(15)]
    assert np.array_equal(Parallel()(delayed(np.copy)(transposed) for _ in range(2))[1], in_file.T)


def test_an_array_of_a_private_map_or_a_removed_file_travels_by_value(in_file: Any) -> None:
    private = np.memmap(in_file.filename, dtype="int64", shape=in_file.shape, mode="c")
    private[:] = 7
    os.unlink(in_file.filename)
    in_file[:] = 8
    found = Parallel()(delayed(np.sum)(array) for array in (private, in_file, in_file[:0]))
    assert found == [7 * 600, 8 * 600, 0]


def test_arrays_do_not_outlive_their_tasks() -> None:
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def calls() -> Iterator[Any]:
        for x in range(200):
            array = np.full(2000, x)
            made.append(weakref.ref(array))
            alive.append(sum(reference() is not None for reference in made))
            yield delayed(np.sum)(array)

    found = Parallel(max_nbytes=1000, batch_size=1)(calls())
    assert found == [2000 * x for x in range(200)]
    assert max(alive) < 50


@pytest.mark.parametrize("least", [0, 1, 1e3, "1K", "0.5M"])
def test_sizes_are_those_of_joblib(least: Any) -> None:
    array = np.ones(1000)
    empty = np.ones(0)
    assert Parallel(max_nbytes=least)(delayed(np.dot)(array, array) for _ in range(4)) == [1000.0] * 4
    assert Parallel(max_nbytes=least)(delayed(np.sum)(empty) for _ in range(4)) == [0.0] * 4


def test_a_call_does_not_affect_calls_of_other_threads(tmp_path: Path) -> None:
    """A failed call does not end the others, and a call with fewer workers does not wait for them."""
    found: list[Any] = []

    def other() -> None:
        with parallel_config("pairpool", n_jobs=3, start_method="fork", inner_max_num_threads=1):
            calls = [delayed(tasks.tell_and_hold)(reports.path, gate.path, 1), delayed(double)(2)]
            found.extend(Parallel(batch_size=1)(calls))

    with Gate(tmp_path / "gate") as gate, Reports(tmp_path / "reports") as reports:
        thread = threading.Thread(target=other)
        thread.start()
        assert reports.next().endswith(" 1")
        for n_jobs in (3, 2):
            with parallel_config("pairpool", n_jobs=n_jobs, start_method="fork", inner_max_num_threads=1):
                with pytest.raises(LookupError, match="no 9"):
                    Parallel(batch_size=1)(delayed(fail_at_nine)(9) for _ in range(4))
                assert Parallel()(delayed(double)(x) for x in range(4)) == [0, 2, 4, 6]
        gate.let()
        thread.join(PATIENCE)
    assert found == [1, 4]
    assert sum(pools.users.values()) == 0


def test_threads_of_libraries_are_limited() -> None:
    with parallel_config("pairpool", n_jobs=2, inner_max_num_threads=3, start_method="fork"):
        assert Parallel()(delayed(threads_allowed)() for _ in range(2)) == ["3", "3"]


def test_threads_that_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value for OpenMP may be a list, and other libraries have variables of their own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert Parallel()(delayed(threads_allowed)() for _ in range(2)) == ["5,2", "5,2"]
    environment = {"OMP_NUM_THREADS": "5,2", "OPENBLAS_NUM_THREADS": "3", "MKL_NUM_THREADS": ""}
    found = [backend._threads_of(library, environment) for library in ("openmp", "openblas", "mkl", "blis")]
    assert found == [5, 3, None, 5]


def remember(text: str) -> None:
    os.environ["REMEMBERED"] = text


def remembered() -> str | None:
    return os.environ.get("REMEMBERED")


def test_backend_and_parallel_take_the_options_of_pools() -> None:
    found = Parallel(initializer=remember, initargs=("this",))(delayed(remembered)() for _ in range(4))
    assert found == ["this"] * 4
    with parallel_config("pairpool", n_jobs=2, initializer=remember, initargs=("that",), task_timeout=PATIENCE):
        assert Parallel()(delayed(remembered)() for _ in range(4)) == ["that"] * 4
    with parallel_config("pairpool", n_jobs=2, start_method="fork", maxtasksperchild=1):
        assert len(set(Parallel(batch_size=1)(delayed(os.getpid)() for _ in range(4)))) == 4
    with (
        parallel_config("pairpool", n_jobs=2, start_method="fork", nonsense=1),
        pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"),
    ):
        Parallel()(delayed(remembered)() for _ in range(4))


def remember_all(texts: list[str], _function: Any) -> None:
    remember(" ".join(texts))


@pytest.mark.parametrize("more", [str, threading.Lock()], ids=["a class", "a lock"])
def test_options_may_be_of_types_without_a_hash(more: Any) -> None:
    for words in (["this", "that"], ["this", "that"], ["those"]):
        options = {"initializer": remember_all, "initargs": (words, more)}
        assert Parallel(**options)(delayed(remembered)() for _ in range(4)) == [" ".join(words)] * 4
    assert len(pools.executors) <= 3


def test_older_joblib_has_another_name_for_submit() -> None:
    assert backend.PairpoolBackend.apply_async is backend.PairpoolBackend.submit


def test_parallel_in_parallel_uses_threads() -> None:
    found = Parallel()(delayed(nested)(x) for x in (2, 3))
    assert found == [("ThreadingBackend", [0, 2]), ("ThreadingBackend", [0, 2, 4])]


AS_A_SCRIPT = """
from joblib import Parallel, delayed, parallel_config
import pairpool.joblib

def square(x):
    return x * x

def sum_of_squares(x):
    return sum(Parallel(n_jobs=2, backend="pairpool")(delayed(square)(y) for y in range(x)))

if __name__ == "__main__":
    pairpool.joblib.register(make_default=True)
    print(Parallel(n_jobs=2)(delayed(sum_of_squares)(x) for x in range(4)))
    print(Parallel(n_jobs=2)(delayed(square)(x) for x in range(5)))
    with parallel_config("pairpool", inner_max_num_threads=1):
        print(Parallel(n_jobs=2)(delayed(square)(x) for x in range(3)))
"""


def test_a_program_from_a_fresh_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(AS_A_SCRIPT)
    done = python("-W", "default", script)
    assert (done.stdout, done.returncode) == ("[0, 0, 1, 5]\n[0, 1, 4, 9, 16]\n[0, 1, 4]\n", 0), done.stderr


LEFT_HALF_READ = """
from joblib import Parallel, delayed, parallel_config
import pairpool.joblib

if __name__ == "__main__":
    pairpool.joblib.register()
    with parallel_config("pairpool", n_jobs=2, start_method="fork"):
        results = Parallel(return_as="generator")(delayed(abs)(-x) for x in range(100))
        print(next(results), next(results))
"""


def test_a_program_may_end_while_results_are_left(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LEFT_HALF_READ)
    done = python("-W", "ignore", script)
    assert (done.stdout, done.stderr, done.returncode) == ("0 1\n", "", 0)


def test_a_forked_child_has_pools_of_its_own() -> None:
    """This holds although another thread held the lock during the fork."""
    calls = [delayed(double)(x) for x in range(3)]
    is_held, is_over = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with pools._lock:
            is_held.set()
            is_over.wait(PATIENCE)

    with Parallel() as parallel:
        assert parallel(calls) == [0, 2, 4]
        thread = threading.Thread(target=hold_the_lock)
        thread.start()
        assert is_held.wait(PATIENCE)
        try:
            assert in_child(lambda: Parallel()(calls)) == [0, 2, 4]
        finally:
            is_over.set()
            thread.join()
        assert parallel(calls) == [0, 2, 4]


def test_without_joblib_the_extra_is_named() -> None:
    code = "import sys; sys.modules['joblib'] = None; import pairpool.joblib"
    done = python("-c", code)
    assert done.stderr.splitlines()[-1] == "ImportError: pairpool.joblib needs joblib: pip install 'pairpool[joblib]'"


SEARCH = """
from joblib import parallel_config
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
import pairpool.joblib

if __name__ == "__main__":
    pairpool.joblib.register()
    x, y = make_classification(2000, 80, random_state=0)
    found = {}
    for name in ("pairpool", "loky"):
        with parallel_config(name, n_jobs=2):
            search = GridSearchCV(LogisticRegression(max_iter=200), {"C": [0.01, 0.1, 1.0]}, cv=3).fit(x, y)
            scores = cross_val_score(LogisticRegression(max_iter=200), x, y, cv=3)
        found[name] = search.best_params_, list(search.cv_results_["mean_test_score"]), list(scores)
    print(found["pairpool"] == found["loky"], found["pairpool"][0])
"""


def test_a_search_finds_the_same_as_with_loky(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script = tmp_path / "search.py"
    script.write_text(SEARCH)
    done = python("-W", "default", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True {'C': ")
