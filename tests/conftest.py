"""Fixtures and hooks of all tests.

Every test is ended after a minute, and fails if it leaves a process, a descriptor or anything else behind.
"""

from __future__ import annotations

import asyncio
import copyreg
import faulthandler
import gc
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.asynchronous import HAS_UVLOOP, Run, run_debugged, run_uvloop
from tests.support.gates import Gate, Reports
from tests.support.leftovers import Snapshot, Tag, leftovers

if TYPE_CHECKING:
    from pairpool import Pool

HANG_LIMIT_S = 60.0
"""Seconds for one test with its setup and teardown. `@pytest.mark.hang_limit(seconds)` sets another limit."""

_tag = pytest.StashKey[Tag]()
_stderr = pytest.StashKey[int]()
_failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"hang_limit(seconds): the time limit, instead of {HANG_LIMIT_S:g} s")
    config.stash[_tag] = Tag()
    config.stash[_stderr] = os.dup(2)  # during a test, descriptor 2 is pytest's capture file


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


# --- no test hangs ------------------------------------------------------------------------------------
#
# The limit is an alarm signal, because pytest-timeout's thread method and faulthandler's watchdog
# (`faulthandler_timeout`) need a thread. While such a thread runs, Python 3.12 warns of each fork. A forked child
# whose interpreter ends in the normal way waits forever for the watchdog, which the child did not inherit.
#
# 1. A timer is not inherited by children and needs no thread. It interrupts every call that blocks the main thread.
# 2. faulthandler runs before the handler, so the stacks are shown even if the main thread never runs Python again.
# 3. The alarm repeats, because the code that it interrupts may swallow the exception, for example in a `__del__`.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if item.config.getoption("usepdb"):
        return (yield)
    marker = item.get_closest_marker("hang_limit")
    limit = float(marker.args[0]) if marker else HANG_LIMIT_S

    def end(_number: int, _frame: object) -> None:
        pytest.fail(f"still running after {limit:g} s: ended (the stacks of all threads are on stderr)")

    old = signal.signal(signal.SIGALRM, end)
    faulthandler.register(signal.SIGALRM, file=item.config.stash[_stderr], all_threads=True, chain=True)
    signal.setitimer(signal.ITIMER_REAL, limit, limit)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)
        signal.signal(signal.SIGALRM, old)


# --- no test leaves anything behind -------------------------------------------------------------------
#
# `make pytest` runs the tests in several processes (pytest-xdist). They do not disturb each other's checks:
#
# 1. Each process looks at its own descendants, and at orphans with its own tag.
# 2. Descriptors, mappings, threads and signals belong to one process. xdist's own ones exist before the first test.
# 3. xdist runs the tests in the main thread of each process, which the alarm needs.


def pytest_collection_finish() -> None:
    """Take all objects that exist now out of the garbage collector.

    Each test ends with a collection, which takes 40 ms with these objects.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(scope="session")
def tag(pytestconfig: pytest.Config) -> Tag:
    """Return the mark of all processes that this run starts, orphans included."""
    return pytestconfig.stash[_tag]


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, tag: Tag) -> Iterator[None]:
    """Fail the test if it leaves a process, descriptor, shared mapping, thread or signal disposition behind.

    An automatic fixture is set up before the other fixtures, so it checks after their teardown.
    """
    before = Snapshot.take()
    yield
    if request.node.stash.get(_failed, False):
        return  # the traceback of a failed test keeps its frames, and thereby its open pools and files
    request.node.funcargs.clear()  # these references keep the values of fixtures alive after the test
    found = leftovers(before, tag)
    if found:
        pytest.fail("left behind by this test:\n" + "\n".join(f"  {line}" for line in found), pytrace=False)


@pytest.fixture(autouse=True)
def exceptions_are_pickled_as_usual() -> None:
    """Undo what the import of distributed does to the pickling of exceptions.

    The import makes tblib pickle all exception classes that exist at that time. Without this fixture, the result of a
    test would depend on whether an earlier test has imported distributed.
    """
    table = copyreg.dispatch_table
    for one, reduce in list(table.items()):
        if getattr(reduce, "func", reduce).__module__ == "tblib.pickling_support":
            del table[one]


# --- holding tasks, and receiving their reports -------------------------------------------------------


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Reports]:
    with Reports(tmp_path / "reports") as reports:
        yield reports


# --- event loops --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _pipe_of_libuv() -> None:
    """Let uvloop open its pipe before the test. The first event loop opens it, and the process keeps it open."""
    if HAS_UVLOOP:
        run_uvloop(asyncio.sleep(0))


@pytest.fixture(
    params=["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="no uvloop here"))]
)
def run(request: pytest.FixtureRequest, _pipe_of_libuv: None) -> Run:
    """Return a function that runs a coroutine: on asyncio's event loop in debug mode, then on uvloop's."""
    return run_debugged if request.param == "asyncio" else run_uvloop


# --- pools --------------------------------------------------------------------------------------------


@pytest.fixture(params=["fork", "forkserver", "direct"])
def start_method(request: pytest.FixtureRequest) -> str:
    """Run the test once per start method."""
    return str(request.param)


@pytest.fixture
def make_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., Pool]]:
    """Return a function that makes pools of two workers by default, and terminate the pools after the test.

    If the test also asks for `start_method`, the pools use that start method.
    """
    from pairpool import Pool

    pools: list[Pool] = []
    defaults: dict[str, Any] = {}
    if "start_method" in request.fixturenames:
        defaults["start_method"] = request.getfixturevalue("start_method")

    def make(processes: int = 2, **options: Any) -> Pool:
        pools.append(Pool(processes, **{**defaults, **options}))
        return pools[-1]

    yield make
    for pool in reversed(pools):
        pool.terminate()
    while pools:  # drop the references, because `make` lives until the test's last checks
        pools.pop().join()
