"""For every test: an end after a minute, and a check that nothing is left behind. For some: pools."""

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

HANG_LIMIT = 60.0
"""Seconds for a test, set-up and tear-down included; `@pytest.mark.hang_limit(seconds)` overrides it."""

_tag = pytest.StashKey[Tag]()
_stderr = pytest.StashKey[int]()
_failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"hang_limit(seconds): end the test after so long, not {HANG_LIMIT:g} s")
    config.stash[_tag] = Tag()
    config.stash[_stderr] = os.dup(2)  # during a test, descriptor 2 is pytest's capture file


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


# --- no test hangs ------------------------------------------------------------------------------------
#
# By an alarm signal, because the other ways disturb what is tested here: pytest-timeout's thread method and
# faulthandler's watchdog (which pytest's faulthandler_timeout starts) are threads. With one alive every fork
# is a fork of a threaded process: Python 3.12 warns of it, and a child whose interpreter ends in the normal
# way waits for the watchdog, which it did not inherit, for ever. A timer is not inherited, starts nothing,
# and interrupts whatever call the main thread is blocked in. faulthandler is chained before the handler, so
# that the stacks are shown even if the main thread never comes back to run Python; and the alarm repeats, for
# the exception may be swallowed where it strikes (in a __del__, say).


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if item.config.getoption("usepdb"):
        return (yield)
    marker = item.get_closest_marker("hang_limit")
    limit = float(marker.args[0]) if marker else HANG_LIMIT

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


def pytest_collection_finish() -> None:
    """What is loaded now stays: each test ends with a collection, which would go through all of it, for 40 ms."""
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
    """What marks this run's processes, orphans included."""
    return pytestconfig.stash[_tag]


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, tag: Tag) -> Iterator[None]:
    """Fail the test if a process, descriptor, shared mapping, thread or signal disposition is left behind.

    Being automatic it is set up before the test's other fixtures, and looks after they are torn down.
    """
    before = Snapshot.take()
    yield
    if request.node.stash.get(_failed, False):
        return  # the traceback keeps the frames of a failed test, and so all that it had open
    request.node.funcargs.clear()  # what fixtures gave to the test would outlive it a little
    found = leftovers(before, tag)
    if found:
        pytest.fail("left behind by this test:\n" + "\n".join(f"  {line}" for line in found), pytrace=False)


@pytest.fixture(autouse=True)
def exceptions_are_pickled_as_ever() -> None:
    """Importing distributed has tblib pickle those classes of exceptions that there are by then, in its own way.

    Whatever test had it imported: the others see what a program without it sees, as far as they are run alone.
    """
    table = copyreg.dispatch_table
    for one, reduce in list(table.items()):
        if getattr(reduce, "func", reduce).__module__ == "tblib.pickling_support":
            del table[one]


# --- holding tasks back, and hearing from them --------------------------------------------------------


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
    """It has one for all event loops of a process, from the first on, and keeps it: have it made before the test."""
    if HAS_UVLOOP:
        run_uvloop(asyncio.sleep(0))


@pytest.fixture(
    params=["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="no uvloop here"))]
)
def run(request: pytest.FixtureRequest, _pipe_of_libuv: None) -> Run:
    """Runs a coroutine on asyncio's own event loop, in debug mode, and on uvloop's."""
    return run_debugged if request.param == "asyncio" else run_uvloop


# --- pools --------------------------------------------------------------------------------------------


@pytest.fixture(params=["fork", "forkserver", "direct"])
def start_method(request: pytest.FixtureRequest) -> str:
    """Has the test run once for every way of starting workers."""
    return str(request.param)


@pytest.fixture
def make_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., Pool]]:
    """Makes pools as `Pool` does, of two workers unless told, and ends them with the test.

    In a test that asks for `start_method` too, that is the pools' start method.
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
    while pools:  # and let go of them, for `make` lives until the end of the test's checks
        pools.pop().join()
