"""Workers inherit the right things, die with their zygote and their master, and leave the master unchanged."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from pairpool import Pool
from pairpool.linux import descriptors, forking, pidfds, process_tree
from pairpool.linux.sigchld import sigchld
from pairpool.master import direct_zygote
from pairpool.master.direct_zygote import DirectZygote
from pairpool.master.fresh_zygote import FreshZygote
from pairpool.master.zygotes import ForkedZygote, Zygote, ZygoteProcess
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import TextPacket
from pairpool.transport.spawning import Body, Spawned, SpawnFailed
from pairpool.worker import zygote
from tests.support.children import in_child, wait_for_end
from tests.support.scripts import ROOT, environment
from tests.support.waiting import PATIENCE

TEXT = TextPacket()

Make = Callable[[Body], Zygote]


@contextmanager
def closing(made: Zygote) -> Iterator[Zygote]:
    try:
        yield made
    finally:
        made.close()


def have(made: Zygote, slot: int = 0) -> Spawned | SpawnFailed:
    """The zygote's answer to a request."""
    made.request(slot)
    while True:
        made.wait(PATIENCE)
        answer = made.receive()
        if answer is not None:
            return answer


@contextmanager
def worker_of(made: Zygote, slot: int = 0) -> Iterator[Spawned]:
    """A worker, killed and let go of at the end; its descriptors are owned, as the master does it."""
    worker = have(made, slot)
    assert isinstance(worker, Spawned)
    things = worker.near, worker.far, worker.pidfd
    for thing in things:
        descriptors.own(thing)
    try:
        yield worker
    finally:
        pidfds.send_signal(worker.pidfd.fileno(), signal.SIGKILL)
        assert wait_for_end(worker.pidfd.fileno())
        for thing in things:
            descriptors.disown(thing)
            thing.close()


def tell(channel: Channel, value: Any) -> None:
    channel.send(TEXT, pickle.dumps(value))


def told(channel: Channel) -> Any:
    return pickle.loads(channel.receive()[1])


def stay(channel: Channel) -> int:
    """Be there until the master lets go."""
    try:
        while True:
            channel.receive()
    except Lost:
        return 0


@contextmanager
def watching(pid: int) -> Iterator[int]:
    """A pidfd of a process that is not ours."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


# --- bodies -------------------------------------------------------------------------------------------


def echo(channel: Channel, slot: int, serial: int) -> int:
    tell(channel, (slot, serial, os.getpid(), os.getppid()))
    try:
        while True:
            header, payload, _fds = channel.receive()
            channel.send(header, bytes(payload).upper())
    except Lost:
        return 0


def make_echo(fds: list[int], setup: bytes) -> Body:
    """Return the body of workers in a fresh zygote."""
    assert (fds, setup) == ([], b"setup")
    return echo


def busy(channel: Channel, _slot: int, _serial: int) -> int:
    """Say so, and look at nothing any more."""
    tell(channel, os.getpid())
    while True:
        signal.pause()


def with_descendants(channel: Channel, _slot: int, _serial: int) -> int:
    """Leave a child, and a grandchild in a session of its own that nobody holds by anything."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os.setsid()
        else:
            os.write(writing, grandchild.to_bytes(8, "little"))
        while True:
            signal.pause()
    tell(channel, (child, int.from_bytes(os.read(reading, 8), "little")))
    return stay(channel)


def inquire(question: Callable[[], Any]) -> Body:
    """Tell what `question` returns in the worker."""

    def body(channel: Channel, _slot: int, _serial: int) -> int:
        tell(channel, question())
        return stay(channel)

    return body


def answer_of(make: Make, question: Callable[[], Any]) -> Any:
    with closing(make(inquire(question))) as made, worker_of(made) as worker:
        worker.far.close()  # so that a worker that fails to answer is noticed
        return told(worker.near)


def fork_zygote(body: Body, keep: Sequence[descriptors.Closable] = ()) -> ZygoteProcess:
    return ForkedZygote(zygote.serve, body, keep)


both = pytest.mark.parametrize("make", [fork_zygote, DirectZygote], ids=["forked", "direct"])


def _fresh(_body: Body) -> ZygoteProcess:
    return FreshZygote(
        "pairpool.worker.forkserver_main:run_fresh_zygote", "tests.worker.test_zygote:make_echo", [], b"setup"
    )


# --- births -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fork_zygote, DirectZygote, _fresh], ids=["forked", "direct", "fresh"])
def test_workers_run_the_body(make: Make) -> None:
    with closing(make(echo)) as made, worker_of(made, 7) as first, worker_of(made, 3) as second:
        assert made.was_ready
        answers = [told(worker.near) for worker in (first, second)]
        assert [(slot, serial, pid) for slot, serial, pid, _parent in answers] == [
            (7, first.serial, first.pid),
            (3, second.serial, second.pid),
        ]
        assert [worker.slot for worker in (first, second)] == [7, 3]
        assert second.serial > first.serial
        parent = made.pid if isinstance(made, ZygoteProcess) else os.getpid()
        assert [answer[3] for answer in answers] == [parent, parent]
        for worker in (first, second):
            worker.near.send(TEXT, b"hello")
            assert bytes(worker.near.receive()[1]) == b"HELLO"


@both
def test_a_worker_ends_when_its_master_closes_both_ends(make: Make) -> None:
    with closing(make(echo)) as made, worker_of(made) as worker, worker_of(made) as other:
        told(worker.near)
        worker.near.close()
        worker.far.close()
        assert wait_for_end(worker.pidfd.fileno())
        assert not pidfds.has_ended(other.pidfd.fileno())


@both
def test_the_second_handle_is_on_the_workers_end(make: Make) -> None:
    with closing(make(busy)) as made, worker_of(made) as worker:
        told(worker.near)
        worker.near.send(TEXT, b"not read")
        assert bytes(worker.far.receive(wait=False)[1]) == b"not read"


@both
def test_descriptors_close_on_exec(make: Make) -> None:
    with closing(make(echo)) as made, worker_of(made) as worker:
        fds = [worker.near.fileno(), worker.far.fileno(), worker.pidfd.fileno(), *made.watched()]
        assert [os.get_inheritable(fd) for fd in fds] == [False] * len(fds)


@both
def test_a_fork_that_fails_is_reported(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_body: Body, _slot: int, _serial: int, **_options: bool) -> Spawned:
        raise OSError(errno.EAGAIN, "no more processes")

    for module in (zygote, direct_zygote):
        monkeypatch.setattr(module, "fork_worker", refuse)
    with closing(make(echo)) as made:
        answer = have(made, 5)
        assert isinstance(answer, SpawnFailed)
        assert answer.slot == 5
        assert (answer.error.errno, answer.error.strerror) == (errno.EAGAIN, "no more processes")


def test_a_worker_without_a_pidfd_is_not_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of descriptors may be full between the fork and its pidfd.

    A check after the test finds a zombie if SIGCHLD has its default disposition again before the child ends.
    """

    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with closing(DirectZygote(lambda channel, _slot, _serial: stay(channel))) as made:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", refuse)
            answer = have(made)
        assert isinstance(answer, SpawnFailed)
        assert answer.error.errno == errno.EMFILE


def test_an_exception_of_the_body_is_shown_and_ends_the_worker() -> None:
    script = """
        from pairpool.linux import pidfds
        from tests.worker.test_zygote import TEXT, fork_zygote, have
        def body(channel, slot, serial):
            channel.receive()  # as it must, for its pidfd can be opened only while it is there
            print("printed", end="")
            raise ZeroDivisionError("in the body")
        zygote = fork_zygote(body)
        worker = have(zygote)
        worker.near.send(TEXT)
        pidfds.wait_ended(worker.pidfd.fileno(), None)
        print(f"[{pidfds.exit_status(worker.pidfd.fileno())}]")
        for thing in (worker.near, worker.far, worker.pidfd, zygote):
            thing.close()
        """
    done = run_script(script)
    assert "ZeroDivisionError: in the body" in done.stderr
    assert done.stdout in ("printed[256]\n", "printed[None]\n")


@both
def test_output_that_is_buffered_at_a_fork_is_written_once(make: Make) -> None:
    script = f"""
        import sys
        from tests.worker.test_zygote import {make.__name__}, echo, closing, worker_of, told
        print("out", end="")
        print("err", end="", file=sys.stderr)
        with closing({make.__name__}(echo)) as zygote:
            print("more", end="")
            with worker_of(zygote) as worker:
                told(worker.near)
        """
    done = run_script(script)
    assert (done.stdout, done.stderr) == ("outmore", "err")


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# --- what a worker inherits ---------------------------------------------------------------------------


@both
def test_a_worker_sees_the_status_of_its_own_children(make: Make) -> None:
    """With SIGCHLD ignored, as in the zygote, it would be 0."""
    assert answer_of(make, lambda: subprocess.run([sys.executable, "-c", "raise SystemExit(3)"]).returncode) == 3


@both
def test_workers_have_default_signals(make: Make) -> None:
    def handler(_number: int, _frame: object) -> None: ...

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.signal(signal.SIGTERM, handler), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    wakeup = signal.set_wakeup_fd(writing)
    try:
        found = answer_of(
            make,
            lambda: (
                signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
                signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
                signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN,
                signal.set_wakeup_fd(-1),
                signal.pthread_sigmask(signal.SIG_BLOCK, []),
            ),
        )
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR1, before[1])
        os.close(reading)
        os.close(writing)
    assert found == (True, True, True, -1, set())


@both
def test_sigint_does_nothing_in_a_worker_and_ends_programs_that_it_starts(make: Make) -> None:
    """SIG_IGN would be inherited by programs, which could then not be interrupted any more."""

    def interrupt() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        code = "import signal; print(signal.getsignal(signal.SIGINT).__name__)"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert answer_of(make, interrupt) == "default_int_handler"


@both
def test_a_worker_has_the_masters_blocked_signals(make: Make) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        assert answer_of(make, lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [])) == {signal.SIGUSR2, *before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@both
def test_kept_descriptors_are_open_in_workers_and_in_no_other_child(make: Any) -> None:
    kept, other = (descriptors.Descriptor(descriptors.memfd(name, 1)) for name in ("kept", "other"))
    for thing in (kept, other):
        descriptors.own(thing)

    def open_ones() -> list[bool]:
        names = {os.readlink(f"/proc/self/fd/{fd}").split()[0] for fd in os.listdir("/proc/self/fd") if _there(fd)}
        return [f"/memfd:{name}" in names for name in ("kept", "other")]

    try:
        assert answer_of(lambda body: make(body, keep=[kept]), open_ones) == [True, False]
        assert in_child(open_ones) == [False, False]
        assert open_ones() == [True, True]
    finally:
        for thing in (kept, other):
            descriptors.disown(thing)
            thing.close()


def _there(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_workers_hold_no_end_of_another_pair() -> None:
    """Or EOF would not come while the other worker lives; seen from the workers that came later."""
    with closing(fork_zygote(busy)) as made, ExitStack() as workers:
        first = workers.enter_context(worker_of(made))
        for slot in (1, 2):
            told(workers.enter_context(worker_of(made, slot)).near)
        told(first.near)
        pidfds.send_signal(first.pidfd.fileno(), signal.SIGKILL)
        assert wait_for_end(first.pidfd.fileno())
        first.far.close()
        with pytest.raises(Lost):
            first.near.receive(wait=False)


def test_a_zygote_ends_while_a_later_one_lives() -> None:
    with closing(fork_zygote(echo)) as first, closing(fork_zygote(echo)) as second, worker_of(second) as worker:
        assert isinstance(first, ZygoteProcess)
        first._control.close()
        assert wait_for_end(first.pidfd.fileno())
        assert told(worker.near)[2] == worker.pid


def test_a_worker_of_a_direct_pool_can_fork_workers() -> None:
    """The count of open ones is the master's; in a worker SIGCHLD is back at its default."""

    def nest() -> tuple[bool, bool]:
        nested = DirectZygote(echo)
        ignored = signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        nested.close()
        return ignored, signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL

    assert answer_of(DirectZygote, nest) == (True, True)


def test_a_thread_can_fork_workers() -> None:
    """Such workers do not die with their parent, because PDEATHSIG would fire when the thread ends."""
    answers: list[tuple[Any, Spawned]] = []
    with closing(DirectZygote(echo)) as made:

        def fork() -> None:
            answer = have(made)
            assert isinstance(answer, Spawned)
            answers.append((told(answer.near), answer))

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        ((_slot, _serial, pid, _parent), worker) = answers.pop()
        try:
            assert pid == worker.pid
            worker.near.send(TEXT, b"alive")
            assert bytes(worker.near.receive()[1]) == b"ALIVE"
        finally:
            for thing in (worker.near, worker.far):
                thing.close()
            assert wait_for_end(worker.pidfd.fileno())
            worker.pidfd.close()


# --- deaths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [echo, busy], ids=["idle", "busy"])
def test_workers_die_with_their_zygote(body: Body) -> None:
    with closing(fork_zygote(body)) as made, worker_of(made) as worker:
        assert isinstance(made, ZygoteProcess)
        told(worker.near)
        pidfds.send_signal(made.pidfd.fileno(), signal.SIGKILL)
        assert wait_for_end(worker.pidfd.fileno())
        assert wait_for_end(made.pidfd.fileno())
        with pytest.raises(Lost):
            made.receive()
        with pytest.raises(Lost):
            made.request(1)
        made.reaped(worker.serial)  # is no error then
        made.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, None], ids=["killed", "let go"])
def test_processes_that_a_worker_leaves_end_when_it_is_reaped(end: int | None) -> None:
    with closing(fork_zygote(with_descendants)) as made, worker_of(made) as other, worker_of(made, 1) as worker:
        others, (child, grandchild) = told(other.near), told(worker.near)
        with ExitStack() as stack:
            orphans = [stack.enter_context(watching(pid)) for pid in (child, grandchild)]
            if end:
                pidfds.send_signal(worker.pidfd.fileno(), end)
            else:
                worker.near.close()
                worker.far.close()
            assert wait_for_end(worker.pidfd.fileno())
            assert not any(map(pidfds.has_ended, orphans))
            made.reaped(worker.serial)
            assert all(map(wait_for_end, orphans))
            assert not pidfds.has_ended(other.pidfd.fileno())
            for pid in others:
                os.kill(pid, 0)  # the other worker's are left alone


def test_closing_ends_all_descendants() -> None:
    made = fork_zygote(with_descendants)
    with ExitStack() as stack:
        alive, dead = (stack.enter_context(worker_of(made, slot)) for slot in (0, 1))
        pids = [*told(alive.near), *told(dead.near)]
        watched = [stack.enter_context(watching(pid)) for pid in pids]
        pidfds.send_signal(dead.pidfd.fileno(), signal.SIGKILL)  # what it left is an orphan, and nobody told
        made.close()
        assert all(map(pidfds.has_ended, [*watched, alive.pidfd.fileno(), dead.pidfd.fileno()]))
        assert made.pidfd.fileno() == -1
        made.close()  # twice is harmless


def test_closing_ends_a_busy_worker() -> None:
    made = fork_zygote(busy)
    with worker_of(made) as worker:
        told(worker.near)
        made.close()
        assert pidfds.has_ended(worker.pidfd.fileno())


def test_a_zygote_that_does_not_end_is_killed() -> None:
    with closing(fork_zygote(busy)) as made, worker_of(made) as worker:
        assert isinstance(made, ZygoteProcess)
        told(worker.near)
        pidfds.send_signal(made.pidfd.fileno(), signal.SIGSTOP)
        made.close(patience=0.0)
        assert wait_for_end(worker.pidfd.fileno())


@pytest.mark.parametrize("how", [fork_zygote, _fresh], ids=["forked", "fresh"])
def test_a_stopped_zygote_ends_at_once(how: Callable[[Body], ZygoteProcess]) -> None:
    with ExitStack() as stack:
        made = stack.enter_context(closing(how(with_descendants)))
        worker = stack.enter_context(worker_of(made))
        report = told(worker.near) if how is fork_zygote else ()
        below = [stack.enter_context(watching(pid)) for pid in (*report, worker.pid)]
        assert isinstance(made, ZygoteProcess)
        pidfds.halt(made.pidfd.fileno(), made.pid)
        began = time.monotonic()
        made.close()
        assert time.monotonic() - began < 2.0
        assert all(map(pidfds.has_ended, below))


def test_a_zygote_that_cannot_end_is_killed_with_all_descendants(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        made = stack.enter_context(closing(fork_zygote(with_descendants)))
        worker = stack.enter_context(worker_of(made))
        below = [stack.enter_context(watching(pid)) for pid in (*told(worker.near), worker.pid)]
        assert isinstance(made, ZygoteProcess)
        monkeypatch.setattr(signal, "SIGCONT", signal.SIGSTOP)  # as if another process stopped it again and again
        pidfds.halt(made.pidfd.fileno(), made.pid)
        made.close(patience=0.0)
        assert all(map(pidfds.has_ended, below))


def test_closing_reaps_the_zygote() -> None:
    made = fork_zygote(echo)
    assert made.pid in process_tree.children_of(os.getpid())
    made.close()
    assert made.pid not in process_tree.children_of(os.getpid())


@pytest.mark.parametrize("reaped", [False, True], ids=["a zombie", "reaped"])
@pytest.mark.parametrize("holder", [False, True], ids=["", "though something holds the control pair"])
@pytest.mark.parametrize("how", [fork_zygote, _fresh], ids=["forked", "fresh"])
def test_all_ends_when_the_master_is_killed(how: Callable[[Body], ZygoteProcess], holder: bool, reaped: bool) -> None:
    """The master is a child of the test; `reports` brings the pids of what it made.

    The zygote is stopped until the master is what the test says: a zombie, or altogether gone.
    """
    reports, reporting = Channel.pair()
    hold, letting_go = os.pipe()

    def master() -> None:
        made = how(with_descendants)
        worker = have(made)
        assert isinstance(worker, Spawned)
        report = told(worker.near)
        pids = [made.pid, worker.pid, *(report if how is fork_zygote else ())]
        if holder:  # a copy of the master that knows nothing of pools, and lives on a little
            os.dup(made._control.fileno())
            pid = os.fork()
            if pid == 0:
                reporting.close()
                stay_until_eof(hold)
            pids.append(pid)
        tell(reporting, pids)
        stay_until_eof(hold)

    try:
        pid = forking.fork()
        if pid == 0:
            try:
                os.close(letting_go)
                reports.close()
                master()
            finally:
                os._exit(1)
        reporting.close()
        pids = told(reports)
        with ExitStack() as stack:
            below = [stack.enter_context(watching(one)) for one in pids]
            holding = below.pop() if holder else -1
            killed = stack.enter_context(watching(pid))
            assert not any(map(pidfds.has_ended, below))
            os.kill(pids[0], signal.SIGSTOP)
            os.kill(pid, signal.SIGKILL)
            assert wait_for_end(killed)
            if reaped:
                os.waitpid(pid, 0)
            os.kill(pids[0], signal.SIGCONT)
            try:
                assert all(map(wait_for_end, below))
                assert not holder or not pidfds.has_ended(holding)
            finally:
                if not reaped:
                    os.waitpid(pid, 0)
                os.close(letting_go)
                letting_go = -1
                if holder:
                    wait_for_end(holding)
                for one in below:
                    pidfds.send_signal(one, signal.SIGKILL)
    finally:
        reports.close()
        reporting.close()
        os.close(hold)
        if letting_go >= 0:
            os.close(letting_go)


def stay_until_eof(fd: int) -> None:
    try:
        os.read(fd, 1)
    finally:
        os._exit(0)


def test_a_zygote_whose_master_is_gone_before_it_starts_ends_at_once() -> None:
    """As far as it can be had without chance: the control pair is closed before the zygote reads from it."""
    made = fork_zygote(echo)
    os.kill(made.pid, signal.SIGSTOP)
    made.request(0)
    made._control.close()
    os.kill(made.pid, signal.SIGCONT)
    assert wait_for_end(made.pidfd.fileno())
    made.close()


def test_a_fresh_zygote_whose_master_has_closed_the_pair_exits_silently() -> None:
    """The pool could not be opened, say, by the time that the new interpreter runs."""
    near, far = Channel.pair()
    near.close()
    call = f"run_fresh_zygote({far.fileno()}, {os.getpid()}, 'nothing:', [])"
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        f"from pairpool.worker.forkserver_main import run_fresh_zygote; {call}",
    ]
    done = subprocess.run(command, pass_fds=[far.fileno()], env=environment(), cwd=ROOT, capture_output=True, text=True)
    far.close()
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_reports_about_workers_of_an_old_zygote_do_not_end_those_of_a_new_one(make_pool: Callable[..., Pool]) -> None:
    """A pool whose zygote is killed gets another, and tells it of the deaths of workers that the first had forked."""
    pool = make_pool(8, start_method="fork")
    for killed in range(1, 4):
        zygote: Any = pool._engine.supervisor.zygote
        with ExitStack() as stack:
            workers = [stack.enter_context(watching(worker.pid)) for worker in pool._pool]
            os.kill(zygote.pid, signal.SIGKILL)
            assert len(workers) == 8
            assert all(map(wait_for_end, workers))
        for _ in range(3):
            assert pool.map(abs, range(-160, 0), chunksize=1) == list(range(160, 0, -1))
            pool._repopulate_pool()  # waits until every worker is there
        assert [worker.replaced for worker in pool.status().workers] == [killed] * 8


# --- SIGCHLD ------------------------------------------------------------------------------------------


def _custom(_number: int, _frame: object) -> None: ...


@pytest.fixture(params=[signal.SIG_DFL, signal.SIG_IGN, _custom], ids=["default", "ignored", "handler"])
def disposition(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Set SIGCHLD to each disposition before the test."""
    before = signal.signal(signal.SIGCHLD, request.param)
    yield request.param
    signal.signal(signal.SIGCHLD, before)


def test_sigchld_is_ignored_while_a_direct_pool_is_open(disposition: Any) -> None:
    for _ in range(2):
        made = DirectZygote(echo)
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
        made.close()
        assert signal.getsignal(signal.SIGCHLD) == disposition
        made.close()  # twice is harmless
        assert signal.getsignal(signal.SIGCHLD) == disposition


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_last_close_restores_sigchld(order: tuple[int, ...]) -> None:
    before = signal.signal(signal.SIGCHLD, _custom)
    try:
        made = [DirectZygote(echo) for _ in order]
        for number in order:
            assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
            made[number].close()
            made[number].close()
        assert signal.getsignal(signal.SIGCHLD) == _custom
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_zygote_process_does_not_change_the_masters_signals(disposition: Any) -> None:
    with closing(fork_zygote(echo)) as made, worker_of(made) as worker:
        told(worker.near)
        assert signal.getsignal(signal.SIGCHLD) == disposition
        if disposition != signal.SIG_IGN:
            done = subprocess.run([sys.executable, "-c", "raise SystemExit(3)"])
            assert done.returncode == 3
    assert signal.getsignal(signal.SIGCHLD) == disposition


def test_sigchld_is_restored_if_a_thread_closes_the_last_pool() -> None:
    """Python sets signals from the main thread alone, but a pool may be dropped or closed anywhere."""
    before = signal.getsignal(signal.SIGCHLD)
    made = DirectZygote(echo)
    raised: list[BaseException] = []

    def close() -> None:
        try:
            made.close()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    try:
        assert raised == []
        with closing(DirectZygote(echo)):  # the main thread's next chance, at the latest
            pass
        assert signal.getsignal(signal.SIGCHLD) == before
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_direct_pool_that_cannot_be_opened_does_not_change_sigchld() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    opened = sigchld.users
    raised: list[BaseException] = []

    def make() -> None:
        try:
            DirectZygote(echo)
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert len(raised) == 1
    assert sigchld.users == opened
    assert signal.getsignal(signal.SIGCHLD) == before
