"""Tasks that the tests run in workers. The module imports only modules that a fresh interpreter loads quickly.

Tasks never sleep. To run while the test does something, a task waits for a byte from a FIFO (`gates.Gate`).
A task writes what the test has to know to a FIFO (`gates.Reports`), or appends it to a file.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, NoReturn

FragileSpec = tuple[str, str, int]

state: dict[str, Any] = {}
"""The values that the initializer `remember` stored in this process."""


def square(x: int) -> int:
    return x * x


def identity(x: Any) -> Any:
    return x


def add(a: int, b: int = 10, *, c: int = 0) -> int:
    return a + b + c


def process_id(_item: object = None) -> int:
    return os.getpid()


def remember(**what: Any) -> None:
    """Store values for `recall`. Serves as an initializer."""
    state.update(what)


def remember_value(value: Any) -> None:
    remember(value=value)


def recall(name: str) -> Any:
    return state[name]


class Odd(Exception):
    """An exception class that only the tests define."""


def refuse_odd(x: int) -> int:
    if x % 2:
        raise Odd(f"{x} is odd", x)
    return x


def raise_this(error: BaseException) -> NoReturn:
    raise error


class Thing:
    """Count the instances that are alive in this process, unpickled ones included."""

    alive = 0

    def __init__(self) -> None:
        Thing.alive += 1

    def __getstate__(self) -> object:
        return 1

    def __setstate__(self, _state: object) -> None:
        Thing.alive += 1

    def __del__(self) -> None:
        Thing.alive -= 1


def count_things(_item: object) -> int:
    gc.collect()
    return Thing.alive


def raise_any(error: BaseException) -> Any:
    raise error


# --- tasks that wait for the test, and report to it ---------------------------------------------------


def wait_for(gate: str) -> None:
    """Block until the test lets one task through the gate."""
    fd = os.open(gate, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)


def tell(where: str, line: object) -> None:
    """Append a line to a FIFO or a file, in one write."""
    fd = os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def held(gate: str, value: Any) -> Any:
    wait_for(gate)
    return value


def tell_and_hold(reports: str, gate: str, value: Any) -> Any:
    """Report `pid value`, wait for the gate, and return the value."""
    tell(reports, f"{os.getpid()} {value}")
    wait_for(gate)
    return value


def tell_hold_and_tell(reports: str, gate: str) -> None:
    tell(reports, "begun")
    wait_for(gate)
    tell(reports, "ended")


def hold_zero(gate: str, value: int) -> int:
    """Return the item. Only item 0 waits for the gate."""
    if value == 0:
        wait_for(gate)
    return value


def fail_zero_hold_others(gate: str, value: int) -> int:
    if value == 0:
        raise Odd("zero")
    wait_for(gate)
    return value


def tell_pid_and_roll(reports: str, gate: str, _item: object) -> tuple[int, int]:
    """Report the start, wait for the gate, and return the pid and a random number."""
    tell_and_hold(reports, gate, None)
    return os.getpid(), random.getrandbits(64)


def who_am_i(reports: str, gate: str, _item: object) -> tuple[str, bool, int | None]:
    """Report the start, wait for the gate, and return what multiprocessing knows of this process.

    Returns:
        the process's name, whether it is a daemon, and the pid of its parent.
    """
    tell_and_hold(reports, gate, None)
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    return me.name, bool(me.daemon), None if parent is None else parent.pid


# --- pools and programs in tasks ----------------------------------------------------------------------


def nested(start_method: str, items: list[int]) -> list[int]:
    from pairpool import Pool

    with Pool(2, start_method=start_method) as pool:
        return pool.map(square, items)


def status_of_false(_item: object = None) -> int:
    return subprocess.run(["false"]).returncode


# --- ways to die --------------------------------------------------------------------------------------


def exit_now() -> NoReturn:
    os._exit(3)


def kill_self() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not kill")


def segfault() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError("reading address 0 did no harm")


def abort() -> NoReturn:
    os.abort()


def system_exit() -> NoReturn:
    raise SystemExit(7)


def just_raise() -> NoReturn:
    raise Odd("on purpose")


DEATHS = {"exit": exit_now, "kill": kill_self, "segfault": segfault, "abort": abort}
EXITCODES = {"exit": 3, "kill": -signal.SIGKILL, "segfault": -signal.SIGSEGV, "abort": -signal.SIGABRT}
DEATH_REASONS = {
    "exit": "exit status 3",
    "kill": "signal SIGKILL",
    "segfault": "signal SIGSEGV",
    "abort": "signal SIGABRT",
}


def die_at(victim: int, how: str, item: int) -> int:
    if item == victim:
        DEATHS[how]()
    return item * 10


def die_in(victims: frozenset[int], item: int) -> int:
    if item in victims:
        kill_self()
    return item * 10


def count_and_die(counter: str, victims: frozenset[int], item: int) -> int:
    """Append one line per start of an item, and die if the item is a victim."""
    tell(counter, item)
    if item in victims:
        kill_self()
    return item * 10


def report_and_hold_victims(reports: str, gate: str, victims: frozenset[int], item: int) -> int:
    """Return ten times the item. A victim reports `pid item` and waits at the gate, where the test kills the worker."""
    if item in victims:
        tell(reports, f"{os.getpid()} {item}")
        wait_for(gate)
    return item * 10


def log_with_pid(journal: str, item: int) -> int:
    """Append `+ pid item` at the start and `- pid item` at the end, with a short computation between them."""
    tell(journal, f"+ {os.getpid()} {item}")
    total = sum(range(20_000))
    tell(journal, f"- {os.getpid()} {item}")
    return item * 10 + total * 0


def tell_and_swap(reports: str, data: bytes) -> bytes:
    tell(reports, os.getpid())
    return data[::-1]


def swap(data: bytes) -> bytes:
    return data[::-1]


def start_sleeper_and_hold(reports: str, gate: str, _item: object) -> None:
    """Start a child process that outlives the task, report `pid child`, and wait for the gate."""
    child = subprocess.Popen(["sleep", "1000"])
    tell(reports, f"{os.getpid()} {child.pid}")
    wait_for(gate)


def start_sleeper_and_die(reports: str) -> NoReturn:
    """Fork a child that keeps all descriptors of this worker open, report its pid, and die."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    tell(reports, pid)
    kill_self()


def run_thread(value: int) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(value * 2))
    thread.start()
    thread.join()
    return found[0]


def children() -> list[int]:
    """Return the pids of this process's children."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


# --- objects that break while they are pickled or unpickled -------------------------------------------


class Fragile:
    """An object that fails when it is pickled or unpickled, in the master or in a worker.

    Args:
        how: a key of `BREAKS`; empty for an object that does not fail.
        when: `pickle` or `unpickle`.
        master: the pid of the master.
        in_master: whether the object fails in the master instead of in a worker.
    """

    def __init__(self, how: str, when: str, master: int, in_master: bool = False) -> None:
        self.how, self.when, self.master, self.in_master = how, when, master, in_master

    def _strike(self, when: str) -> None:
        if self.how and self.when == when and (os.getpid() == self.master) == self.in_master:
            BREAKS[self.how]()

    def __getstate__(self) -> dict[str, Any]:
        self._strike("pickle")
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._strike("unpickle")


class FragileFunction(Fragile):
    """A fragile object that can be called."""

    def __call__(self, x: int) -> int:
        return x * 10


class FragileError(Exception):
    """An exception that holds a fragile object."""

    def __init__(self, fragile: Fragile) -> None:
        super().__init__(fragile)
        self.fragile = fragile


BREAKS = {"raise": just_raise, "system_exit": system_exit, "exit": exit_now, "segfault": segfault}


def ten_times(item: int | Fragile) -> int:
    return item * 10 if isinstance(item, int) else -1


def return_fragile_at(victim: int, fragile: FragileSpec, item: int) -> Any:
    return Fragile(*fragile) if item == victim else item * 10


def raise_fragile_at(victim: int, fragile: FragileSpec, item: int) -> int:
    if item == victim:
        raise FragileError(Fragile(*fragile))
    return item * 10


class NeedsTwo(Exception):
    """An exception whose `args` lack required arguments of its constructor."""

    def __init__(self, one: int, *, two: str) -> None:
        super().__init__(f"{one} and {two}")
        self.one, self.two = one, two


class NeedsTwoPositional(Exception):
    def __init__(self, one: int, two: str) -> None:
        super().__init__("a text of its own")
        self.one, self.two = one, two


class NoText(Exception):
    """An exception whose `str` and `repr` raise."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Slotted(Exception):
    """An exception with `__slots__`."""

    __slots__ = ("extra",)

    def __init__(self, extra: int) -> None:
        super().__init__(extra)
        self.extra = extra


def raise_needs_two() -> NoReturn:
    raise NeedsTwo(1, two="zwei")


def raise_needs_two_positional() -> NoReturn:
    raise NeedsTwoPositional(1, "zwei")


def raise_no_text() -> NoReturn:
    raise NoText(5)


def raise_slotted() -> NoReturn:
    raise Slotted(5)


def raise_with_notes() -> NoReturn:
    error = Odd("with notes")
    error.add_note("first note")
    error.add_note("second note")
    raise error


def raise_group() -> NoReturn:
    inner = ExceptionGroup("inner", [KeyError("k"), Odd("o", 1)])
    raise ExceptionGroup("outer", [ValueError("v"), inner])


def raise_huge() -> NoReturn:
    raise Odd("x" * (1 << 20))


def raise_from() -> NoReturn:
    missing = KeyError("missing")
    raise Odd("the consequence") from missing


def raise_deep() -> NoReturn:
    """Raise an exception with a chain of a thousand causes."""
    error: BaseException = Odd("the first of all")
    for number in range(1000):
        last = Odd(f"consequence {number}")
        last.__cause__ = error
        error = last
    raise error


def raise_with_lambda() -> NoReturn:
    error = Odd("holds a lambda")
    error.function = lambda: 5  # type: ignore[attr-defined]
    raise error


def raise_with_lock() -> NoReturn:
    raise Odd("holds a lock", threading.Lock())


def return_lambda(x: int) -> Any:
    return lambda: x


def return_lock_at(victim: int, item: int) -> Any:
    return threading.Lock() if item == victim else item * 10


def recurse(x: int) -> int:
    return recurse(x + 1)


# --- limits -------------------------------------------------------------------------------------------

kept: list[bytearray] = []


def tell_pid_and_wait(where: tuple[str, str]) -> None:
    """Report the pid, and wait for the gate."""
    reports, gate = where
    tell(reports, os.getpid())
    wait_for(gate)


def hold_on(how: str) -> NoReturn:
    """Run forever, in one of the ways that make a task hard to end."""
    if how == "ignores SIGTERM":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGABRT):
            signal.signal(number, signal.SIG_IGN)
    elif how == "holds the GIL":
        ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the GIL, unlike CDLL
    elif how == "is stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "blocks all signals":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        signal.pause()


def busy_for(seconds: float) -> float:
    """Compute for `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(100))
    return seconds


def fail_first(journal: str, how: str, times: int, item: int) -> int:
    """Fail at the first `times` tries of an item. The tries are counted in the file `journal`."""
    with open(journal, "a") as file:
        file.write(f"{item}\n")
    with open(journal) as file:
        tries = file.read().split().count(str(item))
    if tries <= times:
        if how == "exit":
            os._exit(3)
        if how == "abort":
            os.abort()
        if how == "hang":
            hold_on("plainly")
        raise ValueError(f"try {tries}")
    return item


def fail_at(journal: str, numbers: Iterable[int]) -> None:
    """Fail at the starts with these numbers, counted from 0 in the file `journal`. Serves as an initializer."""
    with open(journal, "a") as file:
        file.write("x")
        number = file.tell() - 1
    if number in numbers:
        raise ValueError(f"start {number}")


def use_memory(gate: str, megabytes: int) -> int:
    """Allocate memory, and wait for the gate if it is more than one megabyte."""
    block = bytearray(megabytes * 2**20)
    block[::4096] = bytes([1]) * len(block[::4096])
    if megabytes > 1:
        wait_for(gate)
    return megabytes


def keep_memory(megabytes: int) -> int:
    """Allocate memory that this process never frees, and return the pid."""
    block = bytearray(megabytes * 2**20)
    block[::4096] = bytes([1]) * len(block[::4096])
    kept.append(block)
    return os.getpid()


def exit_with(what: tuple[int, str, bytes, list[int]]) -> NoReturn:
    os._exit(what[0])


# --- corners ------------------------------------------------------------------------------------------


class BreaksAtItsEnd:
    """Fail in a worker when the last reference to the object is dropped."""

    def __init__(self, how: str, number: int) -> None:
        self.how = how
        self.number = number
        self.home = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.home:
            if self.how == "exit":
                os._exit(3)
            if self.how == "segfault":
                segfault()
            sys.stderr = None  # the interpreter would print the exception there
            raise ValueError("in __del__")


def take_and_drop(thing: BreaksAtItsEnd) -> int:
    return thing.number


def turn_all_around() -> str:
    """Change every setting that a process has only once: signals, streams, environment and so on."""
    os.chdir("/")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    sys.stdout = sys.stderr = sys.stdin = None
    sys.setrecursionlimit(500)
    os.environ.clear()
    os.umask(0o777)
    gc.disable()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return "done"


def close_all_if(chosen: bool, item: int) -> int:
    if chosen:
        os.closerange(3, 256)
    return item


def write_to_full() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def signals_of_a_program() -> str:
    return subprocess.run(["grep", "Sig[IB]", "/proc/self/status"], capture_output=True, text=True, check=True).stdout


class LoadsAtTheGate:
    """A function that reports the worker's pid while it is unpickled, and then waits for the gate."""

    def __init__(self, reports: str, gate: str) -> None:
        self.where = reports, gate

    def __call__(self, item: int) -> int:
        return abs(item)

    def __reduce__(self) -> Any:
        return load_at_the_gate, self.where


def load_at_the_gate(reports: str, gate: str) -> Any:
    tell_pid_and_wait((reports, gate))
    return abs


# --- progress -----------------------------------------------------------------------------------------


def tell_progress(reports: str, gate: str, steps: Iterable[tuple[Any, Any, str]]) -> None:
    """For each step, call `pairpool.progress`, report it, and wait for the gate."""
    import pairpool

    for done, total, note in steps:
        pairpool.progress(done, total, note)
        tell(reports, "told")
        wait_for(gate)


class Unprintable:
    """An object whose `repr` raises."""

    def __repr__(self) -> str:
        raise ValueError("no repr")
