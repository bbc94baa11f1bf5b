"""CPU and memory of workers: psutil measures real processes, within the limit of frequency."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from pairpool.status import PoolStatus
from pairpool.view import usage
from pairpool.view.usage import SAMPLE_EVERY_S, SAMPLING_CORE_SHARE, Sampler
from tests.view.statuses import make_status, make_worker

BURN = "print('up', flush=True)\nwhile True: pass"
IDLE = "import sys\nprint('up', flush=True)\nsys.stdin.read()"
HOLD = "import sys\nheld = bytearray(b'x') * (200 << 20)\nprint('up', flush=True)\nsys.stdin.read()"

Start = Callable[[str], "subprocess.Popen[str]"]


class Clock:
    """Replaces `time` in the module. The test sets it forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a program and waits until it runs. The program ends with the test."""
    with ExitStack() as stack:

        def begin(source: str) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            return process

        yield begin


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(usage, "time", clock)
    return clock


def status_of(*pids: int) -> PoolStatus:
    return make_status(tuple(make_worker(number, pid=pid) for number, pid in enumerate(pids)))


def test_who_burns_and_who_idles(start: Start, clock: Clock) -> None:
    burns, idles, holds = start(BURN), start(IDLE), start(HOLD)
    sampler = Sampler()
    status = status_of(burns.pid, idles.pid, holds.pid)
    first = sampler.fill(status)
    assert [worker.cpu for worker in first.workers] == [None, None, None]  # since when?
    used = psutil.Process(burns.pid)
    until = sum(used.cpu_times()[:2]) + 0.3
    while sum(used.cpu_times()[:2]) < until:
        time.sleep(0.02)  # it does not matter how long
    clock.now += SAMPLE_EVERY_S
    one, other, third = sampler.fill(status).workers
    assert one.cpu is not None
    assert other.cpu is not None
    assert one.cpu > 5
    assert other.cpu < one.cpu / 2
    assert one.rss is not None
    assert third.rss is not None
    assert one.rss > 1 << 20
    assert third.rss > one.rss + (190 << 20)
    assert sampler.fill(status).rss == one.rss + (other.rss or 0) + third.rss


def test_who_has_ended_uses_nothing_and_is_forgotten(start: Start, clock: Clock) -> None:
    stays, ends = start(IDLE), start(IDLE)
    sampler = Sampler()
    assert all(worker.rss for worker in sampler.fill(status_of(stays.pid, ends.pid)).workers)
    ends.kill()
    ends.wait()
    for _ in range(2):
        clock.now += SAMPLE_EVERY_S
        one, other = sampler.fill(status_of(stays.pid, ends.pid)).workers
        assert one.rss
        assert one.cpu is not None
        assert (other.cpu, other.rss) == (None, None)
    assert set(sampler._processes) == {stays.pid}


def test_a_zombie_uses_nothing(start: Start, clock: Clock) -> None:
    ends = start(IDLE)
    sampler = Sampler()
    sampler.fill(status_of(ends.pid))
    ends.kill()
    pidfd_ended(ends)
    clock.now += SAMPLE_EVERY_S
    (worker,) = sampler.fill(status_of(ends.pid)).workers
    assert not worker.rss


def pidfd_ended(process: subprocess.Popen[str]) -> None:
    """Wait until the process has ended, and leave it unreaped."""
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_a_worker_in_the_place_of_another_starts_anew(start: Start, clock: Clock) -> None:
    one, other = start(IDLE), start(IDLE)
    sampler = Sampler()
    sampler.fill(status_of(one.pid))
    clock.now += SAMPLE_EVERY_S
    assert sampler.fill(status_of(one.pid)).workers[0].cpu is not None
    clock.now += SAMPLE_EVERY_S
    assert sampler.fill(status_of(other.pid)).workers[0].cpu is None
    assert set(sampler._processes) == {other.pid}


@pytest.mark.parametrize("error", [psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess])
def test_a_process_that_may_not_be_looked_at(
    error: type[psutil.Error], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> psutil.Process:
        raise error(pid)

    monkeypatch.setattr(psutil, "Process", refuse)
    (worker,) = Sampler().fill(status_of(1)).workers
    assert (worker.cpu, worker.rss) == (None, None)


def test_a_worker_that_is_being_made_is_not_looked_for(clock: Clock) -> None:
    (worker,) = Sampler().fill(make_status((make_worker(0, pid=0, rss=123),))).workers
    assert (worker.cpu, worker.rss) == (None, 123)


def test_it_samples_no_more_often_than_it_says(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    cost = 0.0

    def sample(_sampler: Sampler, _pids: set[int]) -> None:
        times.append(clock.now)
        clock.now += cost

    monkeypatch.setattr(Sampler, "_sample", sample)
    sampler = Sampler()
    status = status_of(1)
    for _ in range(21):
        sampler.fill(status)
        clock.now += SAMPLE_EVERY_S / 4
    assert times == [1000.0 + SAMPLE_EVERY_S * number for number in range(6)]

    cost = 0.05  # of which so much takes more than SAMPLING_CORE_SHARE, if it is done every second
    clock.now += SAMPLE_EVERY_S
    before = len(times)
    begin = clock.now
    while clock.now < begin + 60:
        sampler.fill(status)
        clock.now += SAMPLE_EVERY_S / 4
    assert len(times) - before <= 60 * SAMPLING_CORE_SHARE / cost + 1


def test_without_a_pause_each_call_samples() -> None:
    sampler = Sampler(every=0.0)
    status = make_status((make_worker(0, pid=os.getpid()),))
    assert sampler.fill(status).workers[0].cpu is None
    assert sampler.fill(status).workers[0].cpu is not None
