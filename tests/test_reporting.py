"""Test the counts on the scoreboard, the progress of tasks, and the report of a pool."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

import pairpool
from pairpool import Pool, WorkerDied
from pairpool.scoreboard import snapshot
from pairpool.status import PoolStatus
from pairpool.view.report import FunctionReport, PoolReport, SlowItem, WorkerReport
from tests.support import tasks
from tests.support.gates import Gate, Reports
from tests.support.pools import MakePool
from tests.support.waiting import PATIENCE

LOOK_AGAIN = 0.01
"""Seconds between two looks at a status that changes without an event."""


def wait_for(pool: Pool, condition: Callable[[PoolStatus], bool]) -> PoolStatus:
    """Wait for a status that fulfils the condition, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not condition(status := pool.status()):
        assert time.monotonic() < deadline, status
        threading.Event().wait(LOOK_AGAIN)
    return status


# --- the scoreboard ----------------------------------------------------------------------------------------


def test_items_are_counted_as_they_end(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.map(tasks.square, range(1000))
    pool.map(tasks.refuse_odd, range(10), return_exceptions=True)
    list(pool.imap(tasks.square, range(50)))
    for result in [pool.apply_async(tasks.square, (x,)) for x in range(20)]:
        result.get()
    status = pool.status()
    assert (status.done, status.failed, status.pending, status.calls) == (1080, 5, 0, 0)
    assert status.running == ()


def test_the_item_of_a_dead_worker_counts_as_failed(make_pool: MakePool) -> None:
    pool = make_pool(2)
    outcomes: list[Any] = pool.map(partial(tasks.die_at, 7, "exit"), [7], return_exceptions=True)
    assert isinstance(outcomes[0], WorkerDied)
    status = pool.status()
    assert (status.done, status.failed) == (1, 1)
    assert status.failures[0].error.startswith("WorkerDied: worker ")
    assert status.failures[0].function == "partial(die_at)"
    assert "\n" not in status.failures[0].error


def test_the_last_failures_are_listed(make_pool: MakePool) -> None:
    pool = make_pool(2)
    for x in range(1, 41, 2):
        with pytest.raises(tasks.Odd):
            pool.apply(tasks.refuse_odd, (x,))
    failures = pool.status().failures
    assert len(failures) == 8
    assert failures[0].error.startswith("Odd")
    assert failures[0].worker in (0, 1)
    assert [one.seconds for one in failures] == sorted(one.seconds for one in failures)


def test_running_calls_are_listed(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    sized = pool.map_async(partial(tasks.held, gate.path), range(6), chunksize=1)
    endless = pool.imap(tasks.square, itertools.count())
    of_list = pool.imap_unordered(tasks.square, [1, 2, 3])
    status = wait_for(pool, lambda status: len(status.running) == 3 and status.busy == 2)
    calls = status.running
    assert [call.kind for call in calls] == ["map", "imap", "imap"]
    assert [call.total for call in calls] == [6, None, 3]
    assert calls[0].function == "partial(held)"
    assert status.calls == 3
    assert status.pending >= 9
    gate.let(6)
    assert sized.get(PATIENCE) == list(range(6))
    endless.cancel()
    assert sorted(of_list) == [1, 4, 9]
    assert pool.status().running == ()


def test_finished_items_are_not_pending(make_pool: MakePool, gate: Gate) -> None:
    """Readers from outside see it, too, although the leader counts the pending items only now and then."""
    pool = make_pool(2)
    held = pool.map_async(partial(tasks.held, gate.path), range(6), chunksize=1)
    board = pool._engine.board
    for number in range(6):
        assert pool.status().pending == 6 - number  # the leader counts now, and not again soon
        gate.let(1)
        deadline = time.monotonic() + PATIENCE
        while (seen := snapshot.take(board, time.monotonic_ns())).done == number:
            assert time.monotonic() < deadline
            threading.Event().wait(LOOK_AGAIN)
        assert seen.pending == 5 - number
    held.get(PATIENCE)


def test_a_long_item_is_shown_with_its_argument(start_method: str, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    result = pool.apply_async(tasks.held, (gate.path, "the argument"))
    status = wait_for(pool, lambda status: any(worker.argument for worker in status.workers))
    shown = [worker for worker in status.workers if worker.argument]
    assert len(shown) == 1
    assert "'the argument'" in shown[0].argument
    gate.let()
    assert result.get(PATIENCE) == "the argument"
    assert all(not worker.argument for worker in pool.status().workers)


def test_an_argument_whose_repr_raises_is_shown_as_such(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    result = pool.apply_async(tasks.held, (gate.path, tasks.Unprintable()))
    status = wait_for(pool, lambda status: bool(status.workers[0].argument))
    assert "Unprintable" in status.workers[0].argument or "unprintable" in status.workers[0].argument
    gate.let()
    assert isinstance(result.get(PATIENCE), tasks.Unprintable)


def test_rates_add_up(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.map(tasks.square, range(500))
    status = wait_for(pool, lambda status: sum(status.rates) == 500)
    assert len(status.rates) == 60
    assert sum(status.rates) == status.done


def test_an_ended_pool_keeps_its_counts() -> None:
    with Pool(2, name="gone") as pool:
        pool.map(tasks.square, range(10))
    status = pool.status()
    assert (status.name, status.done, status.workers, status.is_over) == ("gone", 10, (), True)
    assert pool.report().done == 10
    assert pool.status().uptime == status.uptime


def test_places_removed_by_a_resize_are_not_shown(make_pool: MakePool) -> None:
    pool = make_pool(4)
    pool.resize(4)
    pool.resize(2)
    status = wait_for(pool, lambda status: len(status.workers) == 2)
    assert [worker.number for worker in status.workers] == [0, 1]
    assert all(worker.pid for worker in status.workers)


# --- progress -----------------------------------------------------------------------------------------


def test_progress_is_shown_while_the_task_runs(
    start_method: str, make_pool: MakePool, gate: Gate, reports: Reports
) -> None:
    pool = make_pool(1)
    steps = [(3, 8, "third of eight"), (4.5, None, "")]
    result = pool.apply_async(tasks.tell_progress, (reports.path, gate.path, steps))
    reports.take(1)
    worker = pool.status().workers[0]
    assert (worker.progress, worker.total, worker.note) == (3.0, 8.0, "third of eight")
    gate.let()
    reports.take(1)
    worker = pool.status().workers[0]
    assert (worker.progress, worker.total, worker.note) == (4.5, 8.0, "")  # the total is unchanged
    gate.let()
    result.get(PATIENCE)
    worker = pool.status().workers[0]
    assert (worker.progress, worker.total, worker.note) == (None, None, "")


def test_progress_belongs_to_one_item(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    told = pool.apply_async(tasks.tell_progress, (reports.path, gate.path, [(1, 2, "mine")]))
    reports.take(1)
    gate.let()
    told.get(PATIENCE)
    silent = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 5))
    reports.take(1)
    worker = pool.status().workers[0]
    assert worker.state == "running"
    assert (worker.progress, worker.total, worker.note) == (None, None, "")
    gate.let()
    silent.get(PATIENCE)
    third = pool.apply_async(tasks.tell_progress, (reports.path, gate.path, [(7, None, "")]))
    reports.take(1)
    worker = pool.status().workers[0]
    assert (worker.progress, worker.total, worker.note) == (7.0, None, "")  # without the total of the first call
    gate.let()
    third.get(PATIENCE)


def test_a_long_note_is_cut_between_characters(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    result = pool.apply_async(tasks.tell_progress, (reports.path, gate.path, [(1, 2, "ä" * 500)]))
    reports.take(1)
    note = pool.status().workers[0].note
    assert note == "ä" * len(note)
    assert 60 <= len(note) < 128
    gate.let()
    result.get(PATIENCE)


@pytest.mark.parametrize("done", ["half", None, b"1"])
def test_progress_that_is_no_number_is_an_error_of_the_task(make_pool: MakePool, done: Any) -> None:
    with pytest.raises(TypeError):
        make_pool(1).apply(pairpool.progress, (done,))


def test_progress_outside_of_a_worker_does_nothing() -> None:
    pairpool.progress(1, 2, "nobody looks")


# --- the report ---------------------------------------------------------------------------------------


def test_a_report_counts_by_function(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.map(tasks.square, range(1000))
    pool.map(tasks.refuse_odd, range(10), return_exceptions=True)
    for x in range(3):
        pool.apply(tasks.add, (x,))
    report = pool.report()
    counted = {one.name: (one.count, one.failed) for one in report.functions}
    assert counted == {"square": (1000, 0), "refuse_odd": (10, 5), "add": (3, 0)}
    assert (report.done, report.failed) == (1013, 5)
    assert sum(worker.items for worker in report.workers) == 1013
    for one in report.functions:
        assert 0 < one.p50 <= one.p95 <= one.longest * 1.05
        assert 0 < one.mean <= one.longest


def test_a_report_lists_the_slowest_items(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.map(tasks.busy_for, [0.001] * 40 + [1.6] + [0.001] * 10 + [0.8])
    slowest = pool.report().slowest
    assert [(one.item, one.argument) for one in slowest[:2]] == [(40, "1.6"), (51, "0.8")]
    assert 1.6 <= slowest[0].seconds < PATIENCE
    assert len(slowest) == 5


def test_a_long_item_among_many_short_ones_is_found(make_pool: MakePool) -> None:
    pool = make_pool(1)
    lengths = [0.00002] * 3000
    lengths[1500] = 1.5
    pool.map(tasks.busy_for, lengths)
    report = pool.report()
    assert (report.slowest[0].item, report.slowest[0].argument) == (1500, "1.5")
    assert 1.4 < report.slowest[0].seconds < PATIENCE  # the time of the batch without the usual time of its other items
    assert report.functions[0].count == 3000
    assert report.functions[0].p50 < 0.001


def test_the_parts_of_a_workers_time_add_up(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.map(tasks.busy_for, [0.05] * 4)
    pool.map(partial(tasks.die_at, 1, "exit"), [1], return_exceptions=True)
    for report in (pool.report(), ended(pool).report()):
        assert [worker.number for worker in report.workers] == [0, 1]
        for worker in report.workers:
            assert worker.busy + worker.waiting + worker.starting == pytest.approx(1.0)
            assert min(worker.busy, worker.waiting, worker.starting) >= 0
        assert sum(worker.deaths for worker in report.workers) == 1
        assert 0 < report.used <= report.used_while_working <= 1
        assert 0 < report.working <= report.seconds


def ended(pool: Pool) -> Pool:
    pool.close()
    pool.join()
    return pool


def test_the_time_of_a_killed_item_counts_as_busy(make_pool: MakePool, gate: Gate, reports: Reports) -> None:
    pool = make_pool(1)
    result = pool.apply_async(tasks.tell_and_hold, (reports.path, gate.path, 1))
    pid = int(reports.take(1)[0].split()[0])
    before = pool.report()
    assert before.workers[0].busy > 0
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        result.get(PATIENCE)
    report = pool.report()
    assert report.functions[0].count == 1
    assert report.slowest[0].function == "tell_and_hold"
    assert report.workers[0].deaths == 1


def test_a_report_while_another_thread_drives(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    held = pool.map_async(partial(tasks.held, gate.path), range(2), chunksize=1)
    wait_for(pool, lambda status: status.busy == 2)
    assert pool.report().functions == ()
    gate.let(2)
    held.get(PATIENCE)
    assert pool.report().functions[0].count == 2


@pytest.mark.parametrize("width", [20, 40, 60, 80, 110])
def test_numbers_of_a_report_are_never_cut(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Columns without room are left out, and long names and arguments are cut."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any output for a terminal
    name = "a_function_with_a_name_that_is_longer_than_most"
    function = FunctionReport(name, 1_234_567, 12, 0.0123, 0.0104, 0.0147, 0.0153)
    slow = SlowItem(name, 123, 5, 12.3, "字" * 60)
    worker = WorkerReport(7, 123_456, 0.5, 0.25, 0.25, 3)
    lines = str(PoolReport("p\n\x1b[1m", 9.0, 8.0, 0.5, 0.6, 5, 1, (function,), (slow,), (worker,))).splitlines()
    assert all(cell_len(line) <= width and line.isprintable() and line == line.rstrip() for line in lines)
    numbers = {"1,234,567", "12", "12.3 ms", "10.4 ms", "14.7 ms", "15.3 ms", "4 h 13 min", "5", "12.3 s"}
    numbers |= {"7", "123,456", "50.0%", "25.0%", "3"}
    titles = [number for number, line in enumerate(lines) if line in ("Tasks by function", "Slowest tasks", "Workers")]
    for title in titles:
        cells = re.split("  +", lines[title + 2].strip())
        assert all(cell in numbers or cell.startswith(name[:8]) or cell.endswith("…") for cell in cells), cells
        assert len(cells) == len(lines[title + 1].split())
    assert len(titles) == 3
    assert ("p50" in lines[titles[0] + 1].split()) == (width >= 80)


def test_a_notebook_shows_a_report_as_tables() -> None:
    function = FunctionReport("bake_bread", 10, 1, 0.0123, 0.0104, 0.0147, 0.0153)
    report = PoolReport("pool-1", 9.0, 8.0, 0.5, 0.6, 5, 1, (function,), (), ())
    bundle = report._repr_mimebundle_((), ())
    for shown in (bundle["text/plain"], bundle["text/html"]):
        assert "Tasks by function" in shown
        assert "bake_bread" in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_report_prints_in_any_width(make_pool: MakePool, width: int) -> None:
    pool = make_pool(2, name="[bold]not markup[/]")
    pool.map(tasks.identity, ["[red]\n\t", "x" * 500])
    pool.map(tasks.refuse_odd, range(4), return_exceptions=True)
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True).print(pool.report())
    shown = out.getvalue()
    assert "\t" not in shown
    assert all(cell_len(line) <= width for line in Text.from_ansi(shown).plain.splitlines())
    text = str(pool.report())
    assert "[bold]not markup[/]" in text
    assert "refuse_odd" in text
    assert "\x1b" not in text
