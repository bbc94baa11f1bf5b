"""Root looks with `pairpool top` and `pairpool stack` at processes of another user that try to harm it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hostile import hostile
from tests.support.scripts import ROOT, environment
from tests.support.waiting import PATIENCE
from tests.view.masters import Engine, master, own

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at the processes of another user")

SCAN_WITHIN_S = 10.0
"""Seconds for a command that must not hang. A file that hangs it would do so for ever."""

MEMORY_BYTES = 1 << 30
"""Address space of a command. A picture takes a small part of it."""


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def pairpool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pairpool", *map(str, arguments)],
        env=environment() | {"PYTHONIOENCODING": "utf-8"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SCAN_WITHIN_S,
        preexec_fn=limit_memory,
    )


def has_controls(text: str) -> bool:
    return any(not char.isprintable() and char != "\n" for char in text)


@pytest.fixture(scope="module")
def good() -> Iterator[Engine]:
    """An honest pool, which must be shown whatever the others do."""
    with master(own("good")) as good:
        yield good


PROBLEMS = {
    "fifo_board": "not a scoreboard: the file is not a memfd",
    "file_board": "not a scoreboard: the file is not a memfd",
    "unsealed_board": "not a scoreboard: its size can change",
    "shrinking_board": "not a scoreboard: its size can change",
    "lying_board": "workers do not fit into its",
    "huge_board": "a scoreboard for 8589934592 workers",
    "leased_board": "not a scoreboard: the memfd cannot be opened",
}


@pytest.mark.parametrize("act", PROBLEMS)
def test_a_board_that_cannot_be_read_is_one_line(good: Engine, act: str) -> None:
    with hostile(act) as pid:
        shown = pairpool("top", "--json")
        assert shown.returncode == 0
        names = {one["pid"]: one["name"] for one in json.loads(shown.stdout)}
        assert names[good.pid] == own("good")
        assert pid not in names
        [line] = [line for line in shown.stderr.splitlines() if str(pid) in line]
        assert line.startswith(f"process {pid} is left out: ")
        assert PROBLEMS[act] in line
        assert f"{own('good')}: up" not in pairpool("top", pid, "--once").stdout
        for command in (["top", pid, "--once"], ["stack", pid]):
            ran = pairpool(*command)
            assert (ran.returncode, ran.stdout) == (1, "")
            assert ran.stderr.count("\n") == 1
            assert PROBLEMS[act] in ran.stderr
        assert pairpool("stack", own("good")).returncode == 0


@pytest.mark.parametrize("act", ["large_board", *(f"noisy_board {seed}" for seed in range(3)), "odd_name", "deep_path"])
def test_a_board_with_any_content_is_shown(good: Engine, act: str) -> None:
    name, _, argument = act.partition(" ")
    with hostile(name, argument) as pid:
        shown = pairpool("top", "--json")
        assert shown.returncode == 0, shown.stderr
        names = {one["pid"]: one["name"] for one in json.loads(shown.stdout)}
        assert names[good.pid] == own("good")
        assert pid in names
        for command in (["top", pid, "--once"], ["stack", pid, "--timeout", "0.2"]):
            ran = pairpool(*command)
            assert ran.returncode == 0, ran.stderr
            assert not has_controls(ran.stdout + ran.stderr)


@pytest.fixture
def victim() -> Iterator[Path]:
    """A file of root that everybody may read, in a directory that everybody may enter."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        victim = Path(directory) / "victim"
        victim.write_text("an important file\n" * 10)
        victim.chmod(0o644)
        yield victim


def test_stack_does_not_touch_the_file_of_somebody_else(victim: Path) -> None:
    before = victim.stat()
    with hostile("stack_of_file", str(victim)) as pid:
        ran = pairpool("stack", pid, "--timeout", "0.2")
    assert "(no stack: " in ran.stdout
    after = victim.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_texts_have_no_control_characters() -> None:
    with hostile("sequences") as pid:
        for command in (["top", pid, "--once"], ["stack", pid], ["top", "--json"]):
            ran = pairpool(*command)
            assert ran.returncode == 0, ran.stderr
            assert not has_controls(ran.stdout + ran.stderr)
            assert "evil" in ran.stdout
        assert "row two" not in [line.strip() for line in pairpool("stack", pid).stdout.splitlines()]
        for command in (["top"], ["stack"], ["top", "no such pool"]):
            ran = pairpool(*command)
            assert not has_controls(ran.stdout + ran.stderr)


def test_a_worker_that_never_answers_is_given_up() -> None:
    with hostile("silent_worker") as pid:
        ran = pairpool("stack", pid, "--timeout", "0.2")
    assert ran.returncode == 0
    assert "(no stack: somebody else is asking for it)" in ran.stdout


def test_a_process_without_the_handler_gets_no_signal() -> None:
    with hostile("no_handler") as pid:
        ran = pairpool("stack", pid, "--timeout", "0.2")
        assert "(no stack: the worker is starting, or its task handles the signal itself)" in ran.stdout
        os.kill(pid, 0)


def test_stacks_of_workers_that_dropped_privileges() -> None:
    """The memfd belongs to root, who made it; the process belongs to another user by now."""
    code = """
import os
from pairpool import Pool

def user(_):
    return os.getuid()

if __name__ == "__main__":
    with Pool(2, initializer=os.setuid, initargs=(65534,)) as pool:
        assert pool.map(user, range(4), chunksize=1) == [65534] * 4
        print(pool.stacks())
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert ran.stdout == "{0: 'idle', 1: 'idle'}\n", ran.stderr
