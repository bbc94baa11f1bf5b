"""The checks that run around every test find each kind of thing that a test can leave behind."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.leftovers import Snapshot, Tag, leftovers
from tests.support.processes import all_ended
from tests.support.scripts import ROOT

PAUSE = "import signal; signal.pause()"
ORPHAN = """
import os, signal
pid = os.fork()
if pid == 0:
    signal.pause()
print(pid)
"""


@contextmanager
def killed_at_the_end(pid: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        assert all_ended([pid])


def assert_finds_orphan(before: Snapshot, tag: Tag, reader: int, writer: int) -> None:
    """Read the pid of an orphan from a pipe, and check that the orphan is found."""
    pid = int(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    with killed_at_the_end(pid):
        (found,) = leftovers(before, tag, grace=0)
    assert f"process {pid} " in found


def test_finds_nothing_if_nothing_is_left(tag: Tag) -> None:
    before = Snapshot.take()
    with open(os.devnull), mmap.mmap(-1, 4096):
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert leftovers(before, tag) == []


def test_finds_a_child() -> None:
    before = Snapshot.take()
    child = subprocess.Popen([sys.executable, "-c", PAUSE])
    with child, killed_at_the_end(child.pid):
        (found,) = leftovers(before, grace=0)
    assert f"process {child.pid} " in found
    assert PAUSE in found


def test_finds_a_zombie() -> None:
    before = Snapshot.take()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert all_ended([pid])
    (found,) = leftovers(before)
    os.waitpid(pid, 0)
    assert f"zombie {pid} " in found


def test_finds_a_forked_orphan(tag: Tag) -> None:
    before = Snapshot.take()
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.close(writer)
            signal.pause()
        os.write(writer, str(pid).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    assert_finds_orphan(before, tag, reader, writer)


def test_finds_an_orphan_of_an_executed_program(tag: Tag) -> None:
    before = Snapshot.take()
    reader, writer = os.pipe()  # the orphan keeps its end open, so a read until EOF would block
    child = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=writer)
    child.wait()
    assert_finds_orphan(before, tag, reader, writer)


def test_waits_for_a_child_that_is_about_to_end() -> None:
    before = Snapshot.take()
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that the kernel reaps the child
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    os.close(writer)
    found = leftovers(before)
    signal.signal(signal.SIGCHLD, old)
    assert found == [f"the disposition of SIGCHLD was {old} and is {signal.SIG_IGN}"]


def test_finds_descriptors() -> None:
    before = Snapshot.take()
    memory = os.memfd_create("forgotten")
    copy = os.dup(memory)
    found = leftovers(before)
    os.close(memory)
    os.close(copy)
    target = "/memfd:forgotten (deleted)"
    assert found == [f"descriptor {copy}: {target}", f"descriptor {memory}: {target}"]


def test_lets_a_file_be_reopened_elsewhere() -> None:
    first = os.open(os.devnull, os.O_RDONLY)
    before = Snapshot.take()
    second = os.open(os.devnull, os.O_RDONLY)
    os.close(first)
    found = leftovers(before)
    os.close(second)
    assert found == []


def test_finds_a_shared_mapping() -> None:
    before = Snapshot.take()
    with mmap.mmap(-1, 8192):
        (found,) = leftovers(before)
    assert "mapping 8192 bytes" in found


def test_finds_a_thread() -> None:
    before = Snapshot.take()
    told = threading.Event()
    thread = threading.Thread(target=told.wait, name="forgotten")
    thread.start()
    (found,) = leftovers(before, grace=0)
    told.set()
    thread.join()
    assert "thread 'forgotten'" in found


def test_waits_for_a_thread_that_is_about_to_end() -> None:
    before = Snapshot.take()
    told = threading.Event()
    threading.Thread(target=told.wait).start()
    told.set()
    assert leftovers(before) == []


def test_finds_a_signal_disposition_and_a_blocked_signal() -> None:
    before = Snapshot.take()
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    found = leftovers(before)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    signal.signal(signal.SIGUSR1, old)
    disposition, blocked = found
    assert "SIGUSR1" in disposition
    assert "SIGUSR2" in blocked


def test_collects_garbage_first() -> None:
    class Holder:
        def __init__(self) -> None:
            self.itself = self  # a cycle, which only the garbage collector frees
            self.fd = os.memfd_create("dropped")

        def __del__(self) -> None:
            os.close(self.fd)

    before = Snapshot.take()
    Holder()
    assert leftovers(before) == []


def run_under_this_conftest(pytester: pytest.Pytester, test: str) -> pytest.RunResult:
    pytester.makepyfile(test)
    return pytester.runpytest_subprocess("-p", "tests.conftest")


@pytest.fixture
def _import_from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.usefixtures("_import_from_the_checkout")
def test_every_test_is_checked(pytester: pytest.Pytester) -> None:
    result = run_under_this_conftest(
        pytester,
        """
        import os

        def test_good():
            os.close(os.memfd_create("closed"))

        def test_leaves_a_descriptor():
            os.memfd_create("forgotten")

        def test_leaves_a_zombie():
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        def test_good_again():
            pass

        def test_fails_and_leaves_a_descriptor():
            os.memfd_create("excused")
            assert False
        """,
    )
    result.assert_outcomes(passed=4, failed=1, errors=2)
    result.stdout.fnmatch_lines_random(["*descriptor *: /memfd:forgotten*", "*zombie *", "*left behind by this test:"])
    result.stdout.no_fnmatch_line("*/memfd:excused*")


@pytest.mark.usefixtures("_import_from_the_checkout")
def test_a_test_that_hangs_is_ended(pytester: pytest.Pytester) -> None:
    result = run_under_this_conftest(
        pytester,
        """
        import os, threading
        import pytest

        @pytest.mark.hang_limit(1.5)
        def test_hangs():
            with open(os.devnull):
                threading.Event().wait()

        @pytest.mark.hang_limit(1.5)
        def test_hangs_and_swallows():
            for _ in range(2):
                try:
                    threading.Event().wait()
                except BaseException as error:
                    last = error
            raise last

        def test_next():
            pass
        """,
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*still running after 1.5 s*"])
    result.stderr.fnmatch_lines(["*most recent call first*", "*test_hangs*"])
