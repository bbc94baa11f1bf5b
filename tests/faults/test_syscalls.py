"""Make system calls fail with strace: every step gives the right result or a clear error, and none hangs.

1. A program (`syscall_victim.py`) opens its pool.
2. strace is attached to processes of the program, and makes some of their calls fail. Only pairpool makes calls now.
3. The program takes its steps.
4. strace is detached. The program takes its last steps with a complete pool, or with one that reports an error.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from tests.support.scripts import running

VICTIM = Path(__file__).with_name("syscall_victim.py")
LIMIT = 30.0
"""Seconds after which a program counts as hanging."""


MIX = "ints,big,death,slaughter,stream,call,another"
"""The steps that the program takes while calls fail; see `syscall_victim.py`."""

CALLS = {
    "send": "sendto,sendmsg",
    "recv": "recvmsg",
    "epoll": "?epoll_wait,epoll_pwait",
    "poll": "?poll,ppoll",
    "mmap": "mmap",
    "memfd": "memfd_create",
    "clone": "clone,?fork,?vfork,clone3",
    "socketpair": "socketpair",
    "pidfd": "pidfd_open",
}
"""System calls by purpose. A question mark stands before calls that not every machine has."""


class Case(NamedTuple):
    """One way in which calls fail.

    Args:
        where: `master`, `workers`, `zygote`, or `family` for the zygote and all its descendants.
        when: which of the calls fail, as strace writes it: `1`, `1+2` for every second call, `1..20`, `1+` for all.
    """

    method: str
    where: str
    call: str
    error: str
    when: str
    steps: str = MIX

    def __str__(self) -> str:
        steps = "" if self.steps == MIX else f"-{self.steps.replace(',', '-')}"
        return f"{self.method}-{self.where}-{self.call}-{self.error}-{self.when}{steps}"


CASES = [
    # all the kinds of error, in the master
    *(
        Case(method, "master", "send", error, "1..20")
        for method in ("fork", "direct")
        for error in ("EAGAIN", "ENOBUFS")
    ),
    *(
        Case("fork", "master", call, error, when)
        for call, error, when in [
            ("send", "EINTR", "1+2"),
            ("send", "ENOMEM", "1"),
            ("send", "ENOMEM", "4"),
            ("recv", "EAGAIN", "1..20"),
            ("recv", "EINTR", "1+2"),
            ("recv", "ENOMEM", "1"),
            ("recv", "ENOMEM", "1+"),
            ("epoll", "EINTR", "1+2"),
            ("epoll", "ENOMEM", "1"),
            ("epoll", "ENOMEM", "1+3"),
            ("epoll", "ENOMEM", "1+"),
            ("mmap", "ENOMEM", "1"),
            ("mmap", "ENOMEM", "4"),
            ("mmap", "ENOMEM", "1+2"),
            ("mmap", "ENOMEM", "1+"),
            ("memfd", "EMFILE", "1"),
            ("memfd", "EMFILE", "3"),
            ("memfd", "ENFILE", "1+"),
            ("memfd", "ENOMEM", "1+2"),
            ("clone", "EAGAIN", "1"),
            ("clone", "ENOMEM", "1+"),
            ("socketpair", "EMFILE", "1"),
            ("pidfd", "EMFILE", "1"),
            ("pidfd", "EMFILE", "1+"),
        ]
    ),
    *(
        Case("direct", "master", call, error, when)
        for call, error, when in [
            ("send", "ENOMEM", "1+"),
            ("epoll", "ENOMEM", "1+3"),
            ("clone", "EAGAIN", "1"),
            ("clone", "EAGAIN", "1..2"),
            ("clone", "ENOMEM", "1+"),
            ("socketpair", "EMFILE", "1"),
            ("socketpair", "EMFILE", "1+2"),
            ("pidfd", "EMFILE", "1"),
            ("pidfd", "EMFILE", "5"),
            ("memfd", "ENFILE", "1"),
        ]
    ),
    Case("forkserver", "master", "clone", "EAGAIN", "1"),
    Case("forkserver", "master", "socketpair", "EMFILE", "1"),
    # in the workers
    *(
        Case("fork", "workers", call, error, when)
        for call, error, when in [
            ("send", "EINTR", "1+2"),
            ("send", "ENOBUFS", "1"),
            ("send", "ENOBUFS", "1+2"),
            ("send", "ENOMEM", "1"),
            ("send", "ENOMEM", "1+"),
            ("recv", "EAGAIN", "1"),
            ("recv", "EINTR", "1+2"),
            ("recv", "ENOMEM", "1"),
            ("recv", "ENOMEM", "3"),
            ("mmap", "ENOMEM", "1"),
            ("mmap", "ENOMEM", "1+"),
            ("memfd", "EMFILE", "1"),
            ("memfd", "ENFILE", "1+"),
            ("memfd", "ENOMEM", "1"),
        ]
    ),
    Case("direct", "workers", "recv", "ENOMEM", "3"),
    Case("direct", "workers", "send", "ENOMEM", "1+"),
    # in the zygote, and in all that it forks
    *(
        Case("fork", "zygote", call, error, when)
        for call, error, when in [
            ("send", "EINTR", "1+2"),
            ("send", "ENOBUFS", "1"),
            ("send", "ENOMEM", "2"),
            ("recv", "EAGAIN", "1"),
            ("recv", "EINTR", "1+2"),
            ("recv", "ENOMEM", "1"),
            ("recv", "ENOMEM", "3"),
            ("poll", "EINTR", "1+2"),
            ("poll", "ENOMEM", "1"),
            ("clone", "EAGAIN", "1"),
            ("clone", "ENOMEM", "1+"),
            ("socketpair", "EMFILE", "1"),
            ("socketpair", "EMFILE", "1+"),
            ("pidfd", "EMFILE", "1"),
            ("pidfd", "EMFILE", "1+"),
        ]
    ),
    *(
        Case("fork", "family", call, error, when)
        for call, error, when in [
            ("recv", "ENOMEM", "3"),
            ("send", "ENOMEM", "1+3"),
            ("mmap", "ENOMEM", "3"),
            ("memfd", "EMFILE", "1+3"),
        ]
    ),
    # cases that an earlier version did not survive
    Case("fork", "master", "clone", "EAGAIN", "1", "background"),
    Case("fork", "master", "recv", "ENOMEM", "2", "slaughter"),
    Case("direct", "master", "recv", "ENOMEM", "2", "slaughter"),
    Case("fork", "master", "recv", "ENOMEM", "2", "cancelled"),
    Case("fork", "master", "send", "ENOMEM", "1+"),
    Case("fork", "master", "pidfd", "EMFILE", "2", "another"),
    Case("fork", "master", "pidfd", "EMFILE", "3", "another"),
    Case("forkserver", "master", "pidfd", "EMFILE", "2", "another"),
    Case("fork", "workers", "send", "EAGAIN", "1", "ints"),
    Case("fork", "zygote", "send", "EAGAIN", "1"),
]

RECOVERS = [
    Case("fork", "master", "send", "EINTR", "1+2"),
    Case("fork", "zygote", "recv", "ENOMEM", "1"),
    Case("fork", "zygote", "clone", "EAGAIN", "1", "idle_death"),
    Case("direct", "master", "clone", "EAGAIN", "1", "idle_death"),
]
"""Cases after which every step must be right. A clear error is not enough."""


def parameters(cases: list[Case]) -> list[Any]:
    """Return the cases as parameters of pytest."""
    return [pytest.param(case, id=str(case)) for case in cases]


@pytest.fixture(scope="module", autouse=True)
def strace_works() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run(
        ["strace", "-e", "trace=getppid", "-e", "inject=getppid:error=EPERM", "true"], capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"strace cannot trace or inject here: {probe.stderr.strip()}")


def read_line(stream: IO[str] | None, limit: float) -> str:
    """Return the next line of an unbuffered pipe. Raise `TimeoutError` if there is none in time."""
    assert stream is not None
    line = b""
    deadline = time.monotonic() + limit
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"no line within {limit:g} s")
            piece = os.read(stream.fileno(), 1)
            if not piece:
                raise EOFError(f"the end after {line!r}")
            line += piece
    return line.decode()


@contextmanager
def failing(case: Case, pids: dict[str, list[int]], log: Path) -> Iterator[None]:
    """Make calls fail in processes of the program."""
    targets = pids["zygote"] + pids["workers"] if case.where == "family" else pids[case.where]
    calls = CALLS[case.call]
    command = ["strace", *(["-f"] if case.where == "family" else []), "-o", str(log), "-e", f"trace={calls}"]
    command += ["-e", f"inject={calls}:error={case.error}:when={case.when}"]
    for pid in targets:
        command += ["-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        try:
            for _ in targets:
                assert "attached" in read_line(strace.stderr, LIMIT)
            yield
        finally:
            strace.terminate()


def outcomes_of(case: Case, directory: Path) -> dict[str, str]:
    """Return the outcomes of all steps, the last ones included, and check the end of the program."""
    log = directory / "log"
    with tempfile.TemporaryFile("w+") as stderr:
        arguments = (VICTIM, case.method, case.steps, directory / "gate")
        with running(*arguments, stdin=subprocess.PIPE, stderr=stderr) as victim:
            try:
                with failing(case, json.loads(read_line(victim.stdout, LIMIT)), log):
                    go_on(victim)
                    found: dict[str, str] = json.loads(read_line(victim.stdout, LIMIT))
                go_on(victim)
                found |= {f"last {step}": what for step, what in json.loads(read_line(victim.stdout, LIMIT)).items()}
                victim.wait(LIMIT)
            except (TimeoutError, subprocess.TimeoutExpired):
                victim.terminate()  # the program writes its stacks
                victim.wait(LIMIT)
                pytest.fail(f"hangs:\n{text_of(stderr)}")
        assert victim.returncode == 0, text_of(stderr)
        assert "Exception ignored" not in text_of(stderr), text_of(stderr)
        assert "(INJECTED)" in log.read_text(), "no call failed"
    return found


def go_on(victim: subprocess.Popen[str]) -> None:
    assert victim.stdin is not None
    victim.stdin.write("\n")
    victim.stdin.flush()


def text_of(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


@pytest.mark.parametrize("case", parameters(CASES))
def test_every_step_is_right_or_raises_a_clear_error(case: Case, tmp_path: Path) -> None:
    found = outcomes_of(case, tmp_path)
    assert {step: what for step, what in found.items() if not what.startswith(("right", "error: "))} == {}


@pytest.mark.parametrize("case", parameters(RECOVERS))
def test_every_step_is_right(case: Case, tmp_path: Path) -> None:
    found = outcomes_of(case, tmp_path)
    assert {step: what for step, what in found.items() if what != "right"} == {}
