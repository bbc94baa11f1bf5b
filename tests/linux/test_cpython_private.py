"""CPython still has each private name that pairpool uses, and the name still does what it is used for."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import atexit
import concurrent.futures.process
import concurrent.futures.thread
import multiprocessing.context
import multiprocessing.pool
import multiprocessing.process
import multiprocessing.spawn
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pairpool.linux import cpython_private
from tests.support.children import in_child

NAMES: dict[str, tuple[Any, str]] = {
    f"{getattr(owner, '__name__', owner)}.{name}": (owner, name)
    for owner, names in (
        (_signal, ("pthread_sigmask", "getsignal", "signal", "SIG_DFL")),
        (multiprocessing.util, ("_args_from_interpreter_flags", "_exit_function", "_run_after_forkers")),
        (multiprocessing.util, ("_finalizer_registry",)),
        (multiprocessing.process, ("_current_process", "_parent_process", "_process_counter", "_children")),
        (multiprocessing.process, ("_ParentProcess",)),
        (multiprocessing.process.current_process(), ("_identity", "_name", "_parent_pid")),
        (multiprocessing.context, ("ForkProcess", "set_spawning_popen", "get_spawning_popen")),
        (multiprocessing.spawn, ("prepare", "get_preparation_data")),
        (concurrent.futures.process, ("_RemoteTraceback",)),
        (concurrent.futures.thread, ("_threads_queues",)),
        (threading, ("_shutdown",)),
        (atexit, ("_clear", "_run_exitfuncs")),
    )
    for name in names
}


@pytest.mark.parametrize("name", NAMES)
def test_cpython_has_the_name(name: str) -> None:
    owner, attribute = NAMES[name]
    if not hasattr(owner, attribute):
        pytest.fail(f"CPython {sys.version.split()[0]} has no {name}: change pairpool/linux/cpython_private.py")


def test_pthread_sigmask_takes_and_returns_plain_numbers() -> None:
    before = cpython_private.set_signal_mask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        during = cpython_private.set_signal_mask(signal.SIG_BLOCK, ())
    finally:
        cpython_private.set_signal_mask(signal.SIG_SETMASK, before)
    assert during == before | {int(signal.SIGUSR1)}
    assert {type(number) for number in during} == {int}


def test_getsignal_returns_the_handler() -> None:
    assert cpython_private.signal_module.getsignal(signal.SIGUSR2) == signal.getsignal(signal.SIGUSR2)


def test_interpreter_flags_repeat_those_of_this_interpreter() -> None:
    code = "from pairpool.linux.cpython_private import interpreter_flags; print(interpreter_flags())"
    done = subprocess.run([sys.executable, "-B", "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "'-B'" in done.stdout
    assert "-Werror" in done.stdout


def test_a_remote_traceback_shows_its_text() -> None:
    assert "raised over there" in str(cpython_private.remote_traceback("raised over there"))


def test_threads_of_executors_are_forgotten_in_a_child() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()

        def child() -> tuple[int, int]:
            names: Any = concurrent.futures.thread
            before = len(names._threads_queues)
            cpython_private.forget_executor_threads()
            return before, len(names._threads_queues)

        assert in_child(child) == (1, 0)


def _describe() -> tuple[Any, ...]:
    me, parent = multiprocessing.process.current_process(), multiprocessing.process.parent_process()
    assert parent is not None
    return me.name, me.daemon, me.pid == os.getpid(), parent.pid == os.getppid(), parent.is_alive()


@pytest.mark.parametrize("daemon", [False, True])
def test_the_current_process_becomes_a_pool_worker(daemon: bool) -> None:
    def child() -> tuple[Any, ...]:
        cpython_private.set_current_process(7, os.getppid(), daemon=daemon)
        return (*_describe(), multiprocessing.process.active_children())

    assert in_child(child) == ("ForkPoolWorker-7", daemon, True, True, True, [])


def test_a_master_that_has_ended_is_told() -> None:
    def child() -> str:
        gone = os.fork()
        if gone == 0:
            os._exit(0)
        os.waitpid(gone, 0)
        try:
            cpython_private.set_current_process(7, gone, daemon=False)
        except ProcessLookupError:
            return "gone"
        return "there"

    assert in_child(child) == "gone"


def _register(told: list[str]) -> None:
    atexit.register(told.append, "atexit")
    multiprocessing.util.Finalize(None, told.append, args=("finalizer",), exitpriority=1)
    threading.Thread(target=told.append, args=("thread",)).start()


def test_the_end_runs_what_was_registered() -> None:
    def child() -> list[str]:
        cpython_private.clear_exit_functions()
        cpython_private.set_current_process(1, os.getppid(), daemon=False)
        told: list[str] = []
        _register(told)
        cpython_private.finish_process()
        return told

    expected = ["thread", "finalizer", *(["atexit"] if cpython_private.RUNS_EXIT_FUNCTIONS else [])]
    assert in_child(child) == expected


def test_inherited_exit_functions_do_not_run() -> None:
    def child(told: list[str]) -> Callable[[], list[str]]:
        def run() -> list[str]:
            atexit.register(told.append, "inherited")
            cpython_private.clear_exit_functions()
            cpython_private.finish_process()
            return told

        return run

    assert in_child(child([])) == []


def test_a_process_cannot_be_started_while_main_is_imported() -> None:
    with cpython_private.importing_main(), pytest.raises(RuntimeError, match="bootstrapping phase"):
        multiprocessing.spawn.get_preparation_data("a child")
    assert multiprocessing.spawn.get_preparation_data("a child")["name"] == "a child"


def test_the_main_process_has_its_name() -> None:
    def child() -> str:
        multiprocessing.process.current_process().name = "another"
        cpython_private.name_main_process()
        return multiprocessing.process.current_process().name

    assert in_child(child) == "MainProcess"
