"""The plan of a stress campaign, and the comparison of outcomes with it."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from itertools import islice, pairwise
from typing import Any

import pytest

from pairpool import WorkerDied
from pairpool.stress import task_errors, tasks
from pairpool.stress.clients import item_of
from pairpool.stress.outcomes import Finding, index_of, judge
from pairpool.stress.plan import (
    LETHAL,
    MAX_TASKS_PER_SLICE,
    SLICE_BYTES,
    Plan,
    PlannedCall,
    Slice,
    Task,
    TaskKind,
    content,
)

HARMLESS = (TaskKind.NOOP, TaskKind.CPU, TaskKind.SLEEP, TaskKind.ECHO, TaskKind.RAISE)


def plan(seed: int = 3, tasks: int = 20_000, *, timeouts: bool = True) -> Plan:
    return Plan(seed, tasks, timeouts=timeouts)


def test_a_seed_gives_the_same_tasks_and_slices_every_time() -> None:
    assert list(plan().slices()) == list(plan().slices())
    assert plan().task(4711) == plan().task(4711)


def test_another_seed_gives_other_tasks() -> None:
    assert [plan(1).task(number) for number in range(100)] != [plan(2).task(number) for number in range(100)]


def test_the_slices_contain_every_task_once_and_in_order() -> None:
    found = list(plan().slices())
    assert [task for one in found for task in one.tasks] == [plan().task(number) for number in range(20_000)]
    assert {one.call for one in found} == set(PlannedCall)
    assert {one.function for one in found} == {0, 1, 2}
    assert all(1 <= len(one.tasks) <= MAX_TASKS_PER_SLICE for one in found)


def test_a_slice_is_cut_when_its_payload_is_large() -> None:
    def volume(one: Slice) -> int:
        return sum(task.send + task.reply for task in one.tasks)

    found = list(plan(tasks=200_000).slices())
    assert max(map(volume, found)) < SLICE_BYTES + (64 << 20) + 2
    assert sum(map(volume, found)) > SLICE_BYTES


def test_all_kinds_occur_and_most_tasks_are_small() -> None:
    found = Counter(plan().task(number).kind for number in range(200_000))
    assert set(found) == set(TaskKind)
    assert sum(found[kind] for kind in (TaskKind.NOOP, TaskKind.CPU)) > 160_000
    assert 0 < sum(found[kind] for kind in LETHAL) < 400


def test_without_timeouts_those_tasks_do_nothing() -> None:
    with_them = [plan().task(number) for number in range(50_000)]
    without = [plan(timeouts=False).task(number) for number in range(50_000)]
    assert [
        Task(task.number, TaskKind.NOOP) if task.kind is TaskKind.TIMEOUT else task for task in with_them
    ] == without


def test_payloads_have_their_size_and_differ() -> None:
    assert [len(content(1, 0, size)) for size in (0, 1, 4093, 4094, 100_000)] == [0, 1, 4093, 4094, 100_000]
    assert len({content(1, 0, 64), content(1, 1, 64), content(2, 0, 64)}) == 3


# --- outcomes -----------------------------------------------------------------------------------------


def outcome_of(task: Task) -> Any:
    """Return the outcome of a task that runs in this process."""
    try:
        return tasks.run_item(item_of(task))
    except BaseException as error:
        return error


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """Give the bytes in which tasks of this process count their starts."""
    starts = bytearray(20_000)
    monkeypatch.setattr(tasks, "_starts", starts)
    monkeypatch.setattr(tasks, "_process", os.getpid())
    return starts


def test_tasks_have_the_predicted_outcomes(counted: bytearray) -> None:
    found = [task for task in map(plan().task, range(2000)) if task.kind in HARMLESS]
    for task in found:
        outcome = outcome_of(task)
        if not isinstance(outcome, task_errors.Attached) and getattr(outcome, "__cause__", None) is None:
            assert judge(task, outcome).finding is Finding.PREDICTED, task
            assert index_of(outcome) == task.number
    assert sum(counted) == len(found)


def test_the_outcome_of_another_task_is_wrong(counted: bytearray) -> None:
    harmless = list(islice((task for task in map(plan().task, range(9000)) if task.kind in HARMLESS), 500))
    for task, other in pairwise(harmless):
        assert judge(task, outcome_of(other)).finding is Finding.WRONG, (task, other)


def test_every_exception_names_its_task_and_changes_are_noticed() -> None:
    for flavour in range(task_errors.FLAVOURS):
        task = Task(7, TaskKind.RAISE, flavour)
        error = task_errors.make(7, flavour)
        assert index_of(error) == 7
        if isinstance(error, task_errors.Attached) or error.__cause__ is not None:
            continue
        assert judge(task, error).finding is Finding.PREDICTED
        error.extra = 1  # type: ignore[attr-defined]
        assert judge(task, error).finding is Finding.WRONG


def test_a_payload_with_a_flipped_bit_is_wrong(counted: bytearray) -> None:
    task = Task(5, TaskKind.ECHO, 0, 100, 100)
    index, seen, payload = outcome_of(task)
    assert judge(task, (index, seen, payload)).finding is Finding.PREDICTED
    assert judge(task, (index, seen, payload[:-1] + bytes([payload[-1] ^ 1]))).finding is Finding.WRONG
    assert judge(task, (index, (100, 0), payload)).finding is Finding.WRONG


def death(exitcode: int | None, stack: str = "") -> WorkerDied:
    return WorkerDied("run", 0, 1, 4711, exitcode, "a signal", stack)


def test_a_lethal_task_must_end_with_its_own_exit_status() -> None:
    exit_task, fault = Task(1, TaskKind.EXIT, 256 + 9), Task(2, TaskKind.SEGFAULT)
    assert judge(exit_task, death(9)).finding is Finding.PREDICTED
    assert judge(exit_task, death(-9)).finding is Finding.DIED
    assert judge(exit_task, 1).finding is Finding.WRONG
    assert judge(fault, death(-11, "the stack")).finding is Finding.PREDICTED
    assert judge(fault, death(-11)).finding is Finding.DIED
    assert judge(Task(3, TaskKind.NOOP), death(-9))[2:] == (4711, -9)


def test_the_arguments_of_a_no_op_are_small() -> None:
    """The time of a no-op is the cost of the pool, not the cost of large arguments."""
    assert len(pickle.dumps(item_of(Task(1, TaskKind.NOOP)))) < 40
