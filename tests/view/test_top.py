"""`pairpool top` and `pairpool stack` as commands: on pipes, in ptys, on pools that are stuck, ended or not there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pairpool.linux import descriptors
from pairpool.scoreboard.board import MAGIC, MEMFD, VERSION
from pairpool.status import FailureStatus, PoolStatus, WorkerStatus
from pairpool.view.top import as_json, farewell
from tests.support.gates import Gate
from tests.support.pools import MakePool
from tests.support.scripts import ROOT, environment
from tests.support.waiting import PATIENCE
from tests.view.masters import Engine, master, own


def pairpool(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output on pipes."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pairpool", *map(str, arguments)],
        env=environment() | variables,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
    )


class Terminal:
    """The command in its own terminal."""

    def __init__(
        self,
        *arguments: object,
        columns: int = 100,
        lines: int = 30,
        term: str = "xterm-256color",
        encoding: str = "utf-8",
    ) -> None:
        self.fd, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.settings = termios.tcgetattr(self._slave)
        variables = {name: text for name, text in environment().items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "pairpool", *map(str, arguments)],
            env=variables | {"TERM": term, "PYTHONIOENCODING": encoding},
            cwd=ROOT,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )
        self.output = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def _read(self, timeout: float) -> bool:
        """Read new output. Return False at its end."""
        if not select.select([self.fd], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False  # nobody has the other end any more
        self.output += data.decode("utf-8", "replace")
        return bool(data)

    def expect(self, pattern: str) -> str:
        """Read until the output since the last call matches, and return it."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.output, re.DOTALL)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.output!r}"
            assert self.process.poll() is None or self._read(0.0), f"no {pattern!r} in {self.output!r}"
            self._read(0.1)
        seen, self.output = self.output[: match.end()], self.output[match.end() :]
        return seen

    def end(self) -> int:
        """Wait for the end of the command, and return its exit status. Check that the terminal is restored."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still there: {self.output!r}"
            self._read(0.05)
        while select.select([self.fd], [], [], 0)[0]:
            self._read(0)
        assert termios.tcgetattr(self._slave) == self.settings
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        os.close(self.fd)


@contextlib.contextmanager
def terminal(*arguments: object, **options: Any) -> Iterator[Terminal]:
    opened = Terminal(*arguments, **options)
    try:
        yield opened
    finally:
        opened.close()


SCREEN_ON, SCREEN_OFF = "\x1b[?1049h", "\x1b[?1049l"
CURSOR_ON = "\x1b[?25h"


HELD = own("held")
"""The name of a pool. It is unique, because another run of these tests may use this machine."""


@pytest.fixture
def held(gate: Gate) -> Iterator[Engine]:
    """Run a pool of three busy workers with the name `HELD`."""
    with master(HELD, 3, gate=gate.path) as held:
        deadline = time.monotonic() + PATIENCE
        while json.loads(pairpool("top", held.pid, "--json").stdout)["busy"] < 3:
            assert time.monotonic() < deadline
        yield held


# --- once ---------------------------------------------------------------------------------------------


def test_once(held: Engine) -> None:
    ran = pairpool("top", HELD, "--once")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert HELD in ran.stdout
    assert ran.stdout.count("wait_for") >= 3
    assert "\x1b" not in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_once_shows_all_workers_where_nothing_limits_it() -> None:
    with master(own("many"), 40) as many:
        ran = pairpool("top", many.pid, "--once")
        pids = [str(worker["pid"]) for worker in json.loads(pairpool("top", many.pid, "--json").stdout)["workers"]]
        assert len(pids) == 40
        assert all(pid in ran.stdout for pid in pids)


def test_json(held: Engine) -> None:
    ran = pairpool("top", held.pid, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    shown = json.loads(ran.stdout)
    assert (shown["name"], shown["pid"], shown["state"]) == (HELD, held.pid, "RUN")
    assert (shown["done"], shown["failed"], shown["busy"], shown["idle"]) == (21, 1, 3, 0)
    assert shown["is_over"] is False
    assert shown["failures"][0]["error"] == "Odd: ('1 is odd', 1)"
    assert len(shown["rates"]) == 60
    for worker in shown["workers"]:
        assert worker["function"] == "wait_for"
        assert worker["cpu"] is not None
        assert worker["rss"] > 1_000_000
    assert shown["rss"] == sum(worker["rss"] for worker in shown["workers"])


def test_json_of_all(held: Engine) -> None:
    with master(own("second"), 1) as second:
        shown = json.loads(pairpool("top", "--json").stdout)
        assert {(HELD, held.pid), (own("second"), second.pid)} <= {(one["name"], one["pid"]) for one in shown}


def test_status_fits_json() -> None:
    worker = WorkerStatus(0, 1, "running", "f", 0, 1.0, 2, 0, 0, progress=float("nan"), total=float("inf"))
    failure = FailureStatus(1.0, None, "f", 3, "ValueError: \udcff")
    status = PoolStatus("n", 1, "RUN", "fork", 1, 2.0, 1, (worker,), failures=(failure,))
    shown = json.loads(json.dumps(as_json(status), allow_nan=False))
    assert shown["workers"][0]["progress"] is shown["workers"][0]["total"] is None
    assert shown["cpu"] is None
    assert set(shown) > set(PoolStatus.__dataclass_fields__)
    assert set(shown["workers"][0]) == set(WorkerStatus.__dataclass_fields__)


@pytest.mark.parametrize("command", [["top", "--once"], ["top"], ["top", "--json"], ["stack"]])
def test_stopped_master(held: Engine, command: list[str]) -> None:
    with held.stopped():
        if command == ["top"]:
            with terminal("top", HELD) as shown:
                shown.expect("the master is stopped")
                shown.type("q")
                assert shown.end() == 0
        else:
            ran = pairpool(command[0], HELD, *command[1:])
            assert ran.returncode == 0
            assert "the master is stopped" in ran.stdout


# --- in a terminal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["q", "Q", "\x03"])
def test_keys_that_end(held: Engine, key: str) -> None:
    with terminal("top", HELD, "--interval", 5) as shown:
        before = shown.expect("wait_for")
        assert SCREEN_ON in before
        shown.type("x")  # which is no key
        shown.type(key)
        assert shown.end() == 0
        assert SCREEN_OFF in shown.output
        assert CURSOR_ON in shown.output
        assert "Traceback" not in shown.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end(held: Engine, number: int) -> None:
    with terminal("top", HELD, "--interval", 5) as shown:
        shown.expect("wait_for")
        shown.process.send_signal(number)
        assert shown.end() == 128 + number
        assert SCREEN_OFF in shown.output
        assert "Traceback" not in shown.output


def test_resize(held: Engine) -> None:
    with terminal("top", HELD, "--interval", 30, columns=100, lines=30) as shown:
        shown.expect("wait_for")
        for columns, lines in ((40, 10), (200, 50), (60, 12)):
            shown.resize(columns, lines)
            shown.expect(f"{held.pid}|held")
        shown.type("q")
        assert shown.end() == 0


def test_pool_ends_meanwhile() -> None:
    with master(own("ending"), 2) as ending, terminal("top", own("ending"), "--interval", 0.1) as shown:
        shown.expect("ending")
        ending.tell("close")
        assert shown.end() == 0
        assert re.search(rf"pool {own('ending')} ended after \d+\.\d s: 21 done, 1 failed\r\n$", shown.output)


def test_master_killed_meanwhile() -> None:
    with master(own("killed"), 2) as killed, terminal("top", own("killed"), "--interval", 0.1) as shown:
        shown.expect("killed")
        killed.process.kill()
        killed.process.wait()
        assert shown.end() == 0
        assert re.search(rf"pool {own('killed')} ended after .*: 21 done, 1 failed \(the master is gone", shown.output)


def test_terminal_that_goes_away(held: Engine) -> None:
    with terminal("top", HELD, "--interval", 0.1) as shown:
        shown.expect("wait_for")
        os.close(shown.fd)
        assert shown.process.wait(PATIENCE) in (0, 128 + signal.SIGHUP, 141)
        shown.fd = os.open(os.devnull, os.O_RDONLY)


def test_choose_from_a_list(held: Engine) -> None:
    with master(own("first"), 1), terminal("top") as shown:
        listed = shown.expect(r"which one\? \[1-(\d+), q\] ")
        number = re.search(rf"(\d+)  {HELD} +pid", listed)
        assert number is not None
        shown.type("99\n")
        shown.expect("which one")
        shown.type(f"{number[1]}\n")
        shown.expect("wait_for")
        shown.type("q")
        assert shown.end() == 0


def test_choose_none(held: Engine) -> None:
    with master(own("first"), 1):
        for keys in ("q\n", "\x04"):
            with terminal("top") as shown:
                shown.expect("which one")
                shown.type(keys)
                assert shown.end() == 2


def test_dumb_terminal(held: Engine) -> None:
    with terminal("top", HELD, "--interval", 0.1, term="dumb") as shown:
        lines = shown.expect("held.*\n.*held.*\n.*held")
        assert "\x1b" not in lines
        shown.type("\x03")
        assert shown.end() == 0
        assert "Traceback" not in shown.output


def test_no_color(held: Engine) -> None:
    assert "\x1b" not in pairpool("top", HELD, "--once", NO_COLOR="1").stdout
    assert "\x1b" not in pairpool("stack", HELD).stdout


# --- pipes --------------------------------------------------------------------------------------------


def test_lines_until_the_pool_ends() -> None:
    with (
        master(own("lines"), 2) as lines,
        subprocess.Popen(
            [sys.executable, "-m", "pairpool", "top", own("lines"), "--interval", "0.05"],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert "lines" in process.stdout.readline()
        assert "lines" in process.stdout.readline()
        lines.tell("close")
        assert process.stdout.read().splitlines()[-1].startswith(f"pool {own('lines')} ended after")
        assert process.wait() == 0


@pytest.mark.parametrize("command", [["top", "--once"], ["top", "--json"], ["top", "--interval", "0.05"], ["stack"]])
def test_output_closed_early(held: Engine, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "pairpool", command[0], HELD, *command[1:]],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.parametrize("command", [["top", "--once"], ["top", "--json"], ["top"], ["stack"]])
def test_output_that_is_not_there_or_full(held: Engine, command: list[str]) -> None:
    line = [sys.executable, "-m", "pairpool", command[0], HELD, *command[1:]]
    run = partial(subprocess.run, env=environment(), stdin=subprocess.DEVNULL, text=True, timeout=PATIENCE)
    closed = run(["sh", "-c", 'exec "$@" >&-', "sh", *line], stderr=subprocess.PIPE)
    assert (closed.returncode, closed.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        ran = run(line, stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 2
    assert ran.stderr == f"pairpool {command[0]}: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_without_our_signs(encoding: str) -> None:
    with master(own("字"), 1) as odd:
        for command in (["top", "--once"], ["stack"]):
            ran = pairpool(command[0], odd.pid, *command[1:], PYTHONIOENCODING=encoding)
            assert (ran.returncode, ran.stderr) == (0, "")
            assert ran.stdout.isascii()
            assert own("?") in ran.stdout
        with terminal("top", odd.pid, encoding=encoding) as shown:
            shown.expect("busy")
            shown.type("q")
            assert shown.end() == 0


# --- nothing to show ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["top", "stack"])
@pytest.mark.parametrize("what", ["no-such-pool", "0", "999999999999", "", "1:x", "-"])
def test_no_such_pool(command: str, what: str) -> None:
    ran = pairpool(command, what)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(rf"pairpool {command}: .+\n", ran.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["top", "--interval", "0"],
        ["top", "--interval", "x"],
        ["top", "a", "b"],
        ["stack", "a", "-1"],
        ["stack", "a", "b"],
        ["stack", "--timeout", "-1"],
        [],
        ["nothing"],
    ],
)
def test_bad_usage(arguments: list[str]) -> None:
    ran = pairpool(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("usage: pairpool")


@pytest.mark.parametrize("command", [["top"], ["top", "--once"], ["stack"]])
def test_several_pools_and_nobody_to_ask(held: Engine, command: list[str]) -> None:
    with master(own("second"), 1) as second:
        ran = pairpool(*command)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert f"pairpool {command[0]} {second.pid}  # {own('second')}\n" in ran.stderr
        assert f"pairpool {command[0]} {held.pid}  # {HELD}\n" in ran.stderr


def test_several_pools_of_one_process(make_pool: MakePool) -> None:
    make_pool(1, name="a")
    make_pool(1, name="b")
    ran = pairpool("top", os.getpid(), "--once")
    assert ran.returncode == 2
    assert f"  pairpool top {os.getpid()}:a  # a\n" in ran.stderr
    assert pairpool("top", f"{os.getpid()}:a", "--once").returncode == 0


def test_what_is_said_of_several_pools_can_be_typed(make_pool: MakePool) -> None:
    """The names may be equal, need quotes in a shell, or contain control sequences."""
    for name in ("twin", "twin", "a b;c", "\x1b[2J\n"):
        make_pool(1, name=name)
    ran = pairpool("top", os.getpid(), "--once")
    assert "\x1b" not in ran.stderr
    head, *lines = ran.stderr.splitlines()
    assert head == f"pairpool top: process {os.getpid()} means several pools"
    found = set()
    for line in lines:
        command, what = shlex.split(line, comments=True)[1:]
        (one,) = [json.loads(pairpool(command, what, "--json").stdout)]
        found.add((what, one["name"]))
    assert len(found) == len({what for what, _ in found}) == 4
    assert sorted(name for _, name in found) == sorted(["twin", "twin", "a b;c", "\x1b[2J\n"])


def test_one_of_several_that_have_the_same_name_is_chosen_from_a_list() -> None:
    name = own("字字")
    with master(name, 1), master(name, 2), terminal("top", name) as shown:
        listed = shown.expect(r"which one\? \[1-2, q\] ")
        number = re.search(r"(\d)  \S+  pid \d+, 0 of 2", listed)
        assert number is not None
        shown.type(f"{number[1]}\n")
        shown.expect("2 idle")
        shown.type("q")
        assert shown.end() == 0


def test_board_of_another_version() -> None:
    fd = descriptors.memfd(MEMFD, 1 << 16)
    try:
        os.pwrite(fd, struct.pack("<8sQQQQ", MAGIC, VERSION + 1, 8, os.getpid(), 0), 0)
        ran = pairpool("top", os.getpid(), "--once")
        assert ran.returncode == 1
        assert f"a scoreboard of version {VERSION + 1}" in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
        ran = pairpool("top", "--json")
        assert ran.returncode == 0
        assert f"process {os.getpid()} is left out" in ran.stderr
        command = [sys.executable, "-W", "error", "-m", "pairpool", "top", "--json"]
        silent = subprocess.run(
            ["sh", "-c", 'exec "$@" 2>&-', "sh", *command], env=environment(), stdout=subprocess.PIPE, timeout=PATIENCE
        )
        json.loads(silent.stdout)  # and nothing else: it is not told there instead
    finally:
        os.close(fd)


AS_NOBODY = """
import os, sys
import pairpool.cli
pairpool.cli.main([sys.argv[1], "0"])  # so that all is loaded, for this interpreter may be out of reach to others
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(pairpool.cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("command", ["top", "stack"])
def test_pool_of_another_user(held: Engine, command: str) -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}\n{AS_NOBODY}"
    ran = subprocess.run([sys.executable, "-c", code, command, str(held.pid)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (3, ""), ran.stderr
    assert re.search(rf"\npairpool {command}: process \d+ belongs to another user \(0, root\): .*\n$", ran.stderr)


# --- stacks -------------------------------------------------------------------------------------------


def test_stack_of_all_workers(held: Engine) -> None:
    ran = pairpool("stack", held.pid)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(re.findall(r"(?m)^worker \d \(pid \d+\): running wait_for\[\d\] .* for \d+\.\d s$", ran.stdout)) == 3
    assert len(re.findall(r'(?m)^    File ".*tasks.py", line \d+ in wait_for$', ran.stdout)) == 3


def test_stack_of_one_worker(held: Engine) -> None:
    workers = json.loads(pairpool("top", held.pid, "--json").stdout)["workers"]
    assert re.findall(r"(?m)^worker (\d)", pairpool("stack", HELD, 1).stdout) == ["1"]
    assert re.findall(r"(?m)^worker (\d)", pairpool("stack", workers[2]["pid"]).stdout) == ["2"]
    ran = pairpool("stack", HELD, 3)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "has no worker 3; it has 0 to 2" in ran.stderr


def test_stack_of_a_stopped_worker(held: Engine) -> None:
    worker = json.loads(pairpool("top", held.pid, "--json").stdout)["workers"][0]
    os.kill(worker["pid"], signal.SIGSTOP)
    try:
        ran = pairpool("stack", HELD, 0)
        assert ran.returncode == 0
        assert "\n  (no stack: the worker is stopped)\n" in ran.stdout
    finally:
        os.kill(worker["pid"], signal.SIGCONT)


def test_stack_of_idle_workers() -> None:
    with master(own("lazy"), 2):
        ran = pairpool("stack", own("lazy"))
        assert re.findall(r"(?m)^worker \d \(pid \d+\): (\w+)$", ran.stdout) == ["idle", "idle"]


# --- words --------------------------------------------------------------------------------------------


def test_farewell() -> None:
    status = PoolStatus("n", 1, "TERMINATE", "fork", 1, 12.34, 0, (), done=5, failed=2)
    assert farewell(status) == "pool n ended after 12.3 s: 5 done, 2 failed"


def test_help_and_version() -> None:
    assert re.fullmatch(r"pairpool \d\S+, Python 3\.\S+\n", pairpool("--version").stdout)
    for command in ("top", "stack"):
        text = pairpool(command, "--help").stdout
        assert "examples:" in text
        assert "exit status:" in text
        assert max(map(len, text.splitlines())) <= 80
