"""The public exceptions: how programs construct, pickle and read them."""

from __future__ import annotations

import pickle

import pytest

from pairpool import Pool, TaskTimeout, WorkerDied


def test_worker_died_takes_its_details_by_position_or_by_name() -> None:
    by_position = WorkerDied("f", 3, 1, 4711, -9, "signal SIGKILL", "stack", "running", "7", "SIGKILL", "why", "try")
    by_name = WorkerDied(
        "f",
        3,
        worker=1,
        pid=4711,
        exitcode=-9,
        reason="signal SIGKILL",
        stack="stack",
        arguments="7",
        signal="SIGKILL",
        cause="why",
        advice="try",
    )
    assert by_position.args == by_name.args
    assert (by_name.exitcode, by_name.doing, by_name.advice) == (-9, "running", "try")
    with pytest.raises(TypeError, match="color"):
        WorkerDied("f", 3, color="red")


def test_task_timeout_takes_its_details_by_position_or_by_name() -> None:
    by_position = TaskTimeout("f", 3, 0.5, 1, 4711, "7", "stack", "running")
    by_name = TaskTimeout("f", 3, 0.5, worker=1, pid=4711, arguments="7", stack="stack")
    assert by_position.args == by_name.args == ("f", 3, 0.5, 1, 4711, "7", "stack", "running")
    assert by_name.errno is None


@pytest.mark.parametrize(
    "error",
    [WorkerDied("f", 3, exitcode=-9, reason="r"), TaskTimeout("f", 3, 0.5, arguments="7")],
    ids=["died", "limit"],
)
def test_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, vars(copy), str(copy)) == (type(error), error.args, vars(error), str(error))


CALLS: list[str] = ["map", "map_async", "imap", "apply_async"]


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_keyword_is_refused_in_the_name_of_the_pool(name: str) -> None:
    with Pool(1) as pool, pytest.raises(TypeError, match=rf"^Pool\.{name}\(\) got an unexpected keyword"):
        getattr(pool, name)(abs, [1], bogus=2)


@pytest.mark.parametrize("name", CALLS[:3])
def test_a_closed_pool_says_so_before_it_checks_the_options(name: str) -> None:
    with Pool(1) as pool:
        pool.close()
        with pytest.raises(ValueError, match="Pool not running"):
            getattr(pool, name)(abs, [1], chunksize=0)
