"""Test tasks that misuse their worker: its channel, its memory, its process. Only their own items may suffer."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pairpool import Pool, TaskTimeout, WorkerDied
from pairpool.linux import process_tree
from pairpool.transport import segments
from tests.support.misuse import (
    BREACHES,
    HARMLESS,
    DeletedWithFork,
    ForksWhenLoaded,
    breach,
    close_channel_twice,
    close_payload_buffer_twice,
    forge_and_sleep,
    fork_and_return,
    fork_natively_and_raise,
    large_result,
    renew_start_for_ever,
    replace_stdout,
    scribble_limit,
    square_slowly,
    steal_packets,
)
from tests.support.pools import MakePool, pids_of
from tests.support.waiting import PATIENCE

SQUARES = [x * x for x in range(60)]


def outcome_beside_others(pool: Pool, task: Any, *args: Any) -> Any:
    """Return the outcome of a task, with 60 other items before, beside and after it. These must all be right."""
    beside = pool.map_async(square_slowly, range(60), chunksize=1)
    calls = [pool.apply_async(square_slowly, (x,)) for x in range(60)]
    bad = pool.apply_async(task, args)
    after = pool.map_async(square_slowly, range(60))
    try:
        outcome = bad.get(PATIENCE)
    except WorkerDied as error:
        outcome = error
    assert beside.get(PATIENCE) == SQUARES
    assert [call.get(PATIENCE) for call in calls] == SQUARES
    assert after.get(PATIENCE) == SQUARES
    assert pool.map(square_slowly, range(60)) == SQUARES
    return outcome


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_of_the_protocol_fails_its_item_alone(start_method: str, make_pool: MakePool, name: str) -> None:
    pool = make_pool(2)
    outcome = outcome_beside_others(pool, breach, name)
    assert isinstance(outcome, WorkerDied)
    assert outcome.function.endswith("breach")
    assert "its channel was misused" in outcome.cause


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_deed_harms_no_other_item(start_method: str, make_pool: MakePool, name: str) -> None:
    pool = make_pool(2)
    before = len(os.listdir("/proc/self/fd"))
    outcome = outcome_beside_others(pool, breach, name)
    assert outcome == "done" or isinstance(outcome, WorkerDied)
    pool.map(square_slowly, range(60))
    assert len(os.listdir("/proc/self/fd")) <= before + 8


def test_a_breach_in_a_batch_of_many_items_fails_one_item(make_pool: MakePool) -> None:
    pool = make_pool(2)
    names = ["one byte" if x == 13 else "descriptors to discard" for x in range(40)]
    found = pool.map(breach, names, chunksize=20, return_exceptions=True)
    assert [type(one) for one in found] == [WorkerDied if x == 13 else str for x in range(40)]
    error: Any = found[13]
    assert error.index == 13


def test_a_breach_without_a_task_ends_only_the_worker(make_pool: MakePool) -> None:
    """A thread that a task left behind sends something while its worker is idle."""
    pool = make_pool(1)
    (pid,) = pids_of(pool)
    pool.apply(leave_a_thread_that_breaches)
    deadline = time.monotonic() + PATIENCE
    while pids_of(pool) == [pid]:
        assert time.monotonic() < deadline
    assert pool.map(square_slowly, range(60)) == SQUARES
    assert pids_of(pool) != [pid]


def leave_a_thread_that_breaches() -> None:
    from tests.support.misuse import worker_of_this_task

    channel = worker_of_this_task()._channel
    threading.Timer(0.05, lambda: channel.sock.send(b"\xff" * 100)).start()


# --- forks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "return", "exit"])
@pytest.mark.parametrize("chunksize", [1, 8])
def test_a_forked_child_that_leaves_its_task_ends(
    start_method: str, make_pool: MakePool, capfd: pytest.CaptureFixture[str], how: str, chunksize: int
) -> None:
    pool = make_pool(2)
    found = pool.starmap(fork_and_return, [(x, how) for x in range(16)], chunksize=chunksize)
    assert found == SQUARES[:16]
    assert pool.map(square_slowly, range(60)) == SQUARES
    pool.close()
    pool.join()
    errors = capfd.readouterr().err
    assert errors.count("had forked, left the task") == 16
    assert errors.count("RuntimeError: escaped in the child") == (16 if how == "raise" else 0)


def test_a_child_that_native_code_forked_ends_too(make_pool: MakePool, capfd: pytest.CaptureFixture[str]) -> None:
    pool = make_pool(2)
    assert pool.map(fork_natively_and_raise, range(16), chunksize=4) == SQUARES[:16]
    pool.close()
    pool.join()
    assert capfd.readouterr().err.count("had forked, left the task") == 16


# --- the channel's descriptor ---------------------------------------------------------------------------


def test_a_closed_channel_is_the_cause_of_the_death(start_method: str, make_pool: MakePool) -> None:
    outcome = outcome_beside_others(make_pool(2), close_channel_twice, 0)
    assert isinstance(outcome, WorkerDied)
    assert "closed the descriptor of its worker's channel" in outcome.cause


def test_a_connection_in_place_of_the_channel_gets_no_result(start_method: str, make_pool: MakePool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        outcome = outcome_beside_others(make_pool(2), close_channel_twice, server.getsockname()[1])
        connection, _address = server.accept()
        with connection:
            connection.settimeout(PATIENCE)
            assert connection.recv(100) == b""
    assert isinstance(outcome, WorkerDied)
    assert "put another file in its place" in outcome.cause


def test_a_file_in_place_of_a_payload_buffer_stays_as_it_is(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(1)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    assert pool.apply(large_result) == b"\x07" * (1 << 20)
    assert pool.apply(close_payload_buffer_twice, (str(victim),)) == b"\x07" * (1 << 20)
    assert pool.apply(large_result) == b"\x07" * (1 << 20)
    assert victim.read_bytes() == b"precious"


# --- the scoreboard -------------------------------------------------------------------------------------


def test_a_limit_that_a_task_sets_costs_no_item(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    assert outcome_beside_others(pool, scribble_limit, 3) == 9
    assert pool.map(scribble_limit, range(20), chunksize=5) == SQUARES[:20]


# --- work that is not begun -----------------------------------------------------------------------------


def test_a_stopped_idle_worker_loses_no_item(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(3)
    assert pool.map(square_slowly, range(60), chunksize=1) == SQUARES
    stopped = min(pids_of(pool))
    os.kill(stopped, signal.SIGSTOP)
    for _ in range(2):
        assert pool.map_async(square_slowly, range(60), chunksize=1).get(PATIENCE) == SQUARES
    with suppress(ProcessLookupError):  # it is killed if it read its packet just before it stopped
        os.kill(stopped, signal.SIGCONT)
    pool.close()
    pool.join()


def test_a_pool_whose_workers_are_all_stopped_replaces_them(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (pid,) = pids_of(pool)
    os.kill(pid, signal.SIGSTOP)
    assert pool.map_async(square_slowly, range(60)).get(PATIENCE) == SQUARES
    assert pids_of(pool) != [pid]


def test_a_worker_that_goes_on_gets_work_again(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (pid,) = pids_of(pool)
    os.kill(pid, signal.SIGSTOP)
    result = pool.map_async(square_slowly, range(60))
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(2)
    os.kill(pid, signal.SIGCONT)
    assert result.get(PATIENCE) == SQUARES
    assert pids_of(pool) == [pid]


def test_a_stolen_packet_costs_no_item(make_pool: MakePool) -> None:
    pool = make_pool(2)
    outcome_beside_others(pool, steal_packets, 5)


def test_a_stopped_worker_does_not_keep_a_pool_from_closing(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2)
    pids = pids_of(pool)
    os.kill(pids[0], signal.SIGSTOP)
    pool.close()
    pool.join()
    assert not set(pids) & set(process_tree.children_of(os.getpid()))


def test_a_stolen_packet_makes_no_item_run_twice(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    path = str(tmp_path / "runs")
    pool.apply(steal_packets, (5,))
    found = pool.map_async(append_line, [(path, x) for x in range(200)], chunksize=1).get(PATIENCE)
    assert found == list(range(200))
    assert sorted(map(int, Path(path).read_text().split())) == list(range(200))


def append_line(where: tuple[str, Any]) -> Any:
    path, x = where
    with open(path, "a") as file:
        file.write(f"{x}\n")
    return x


def test_a_task_that_hides_from_its_time_limit_ends_all_the_same(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stores a later start again and again. Only the sum of all limits of its batch is left then."""
    monkeypatch.setattr("pairpool.master.watchdog.PICKLING_AT_LEAST_S", 0.5)
    pool = make_pool(2)
    with pytest.raises(TaskTimeout):
        pool.apply_async(renew_start_for_ever, task_timeout=0.5).get(PATIENCE)
    assert pool.map(square_slowly, range(60)) == SQUARES


@pytest.mark.parametrize(
    ("word", "value"), [("STATE", 0), ("STATE", 6), ("STATE", 7), ("STATE", 1 << 60), ("BATCH", 0)]
)
def test_a_task_that_forges_its_words_does_not_run_for_ever(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, word: str, value: int
) -> None:
    monkeypatch.setattr("pairpool.master.watchdog.PICKLING_AT_LEAST_S", 0.5)
    monkeypatch.setattr("pairpool.master.lost_work.KILL_AFTER_S", 1.5)
    pool = make_pool(2)
    result = pool.apply_async(forge_and_sleep, (word, value), task_timeout=0.5)
    with pytest.raises((TaskTimeout, WorkerDied)):
        result.get(PATIENCE)
    assert pool.map(square_slowly, range(60)) == SQUARES


class FinishesLate:
    """An argument whose finalizer takes longer in the worker than the pool waits for the worker to read."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.master = os.getpid()

    def __del__(self) -> None:
        time.sleep(0 if os.getpid() == self.master else self.seconds)


def take(_thing: object) -> None:
    """Return nothing, so that the argument ends after the report."""


def test_workers_that_finish_late_get_the_work_that_waits(make_pool: MakePool) -> None:
    """The call is made in a thread, because the main thread looks around once per second anyway."""
    pool = make_pool(2)
    for result in [pool.apply_async(take, (FinishesLate(2.0),)) for _ in range(2)]:
        result.get(PATIENCE)
    found: list[list[int]] = []
    caller = threading.Thread(target=lambda: found.append(pool.map(square_slowly, range(60))), daemon=True)
    caller.start()
    caller.join(PATIENCE)
    assert found == [SQUARES]


def test_a_child_that_a_finalizer_forks_ends(make_pool: MakePool, capfd: pytest.CaptureFixture[str]) -> None:
    pool = make_pool(1)
    assert pool.apply(type, (DeletedWithFork(),)) is DeletedWithFork
    assert pool.map(square_slowly, range(60)) == SQUARES
    text, deadline = "", time.monotonic() + PATIENCE
    while "left the task" not in text and "Traceback" not in text and time.monotonic() < deadline:
        text += capfd.readouterr().err
    assert "left the task" in text


def test_a_child_that_an_argument_forks_runs_no_item(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(1)
    path = str(tmp_path / "runs")
    assert pool.map(append_line, [(path, ForksWhenLoaded())], chunksize=1) == [5]
    assert Path(path).read_text() == "5\n"


def test_a_stream_without_flush_in_place_of_stdout_harms_no_item(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(1)
    pids = pids_of(pool)
    assert pool.apply(replace_stdout, (5,)) == 5
    assert pool.map(square_slowly, range(60)) == SQUARES
    assert pids_of(pool) == pids


def test_a_program_may_have_a_stdout_without_flush(
    start_method: str, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", object())
    assert make_pool(1).map(square_slowly, range(60)) == SQUARES


# --- the zygote and tracing -----------------------------------------------------------------------------


def stop_zygote_and_die(_x: int) -> None:
    os.kill(os.getppid(), signal.SIGSTOP)
    os._exit(3)


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_a_zygote_that_a_task_stops_goes_on(start_method: str, make_pool: MakePool) -> None:
    pool = make_pool(2, start_method=start_method)
    found = pool.map_async(stop_zygote_and_die, range(4), chunksize=1, return_exceptions=True).get(PATIENCE)
    assert [type(one) for one in found] == [WorkerDied] * 4
    assert pool.map_async(square_slowly, range(60)).get(PATIENCE) == SQUARES
    pool.close()
    pool.join()


def ask_to_be_traced() -> int:
    """Ask the kernel to stop this process at each signal (PTRACE_TRACEME of ptrace(2))."""
    return int(ctypes.CDLL(None).ptrace(0, 0, None, None))


def test_a_worker_that_asks_to_be_traced_ends_with_its_pool(make_pool: MakePool) -> None:
    pool = make_pool(1)
    assert pool.apply(ask_to_be_traced) == 0
    pool.close()
    pool.join()


def test_what_the_master_missed_does_not_reach_new_workers(start_method: str, make_pool: MakePool) -> None:
    """A report that names a descriptor which did not come leaves a note in the master, which workers inherit."""
    segments.missing_error()
    try:
        pool = make_pool(2)
        assert list(pool.imap(square_slowly, range(60))) == SQUARES
    finally:
        segments.take_missing()


def test_a_program_may_have_a_default_timeout_for_sockets(start_method: str, make_pool: MakePool) -> None:
    socket.setdefaulttimeout(0.05)
    try:
        pool = make_pool(2)
        pids = pids_of(pool)
        pool.apply(time.sleep, (0.2,))  # meanwhile the other worker and the master wait for longer than the timeout
        assert pool.map(square_slowly, range(60)) == SQUARES
        assert pids_of(pool) == pids
    finally:
        socket.setdefaulttimeout(None)
