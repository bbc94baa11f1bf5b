"""A Dask scheduler and Dask workers on loopback, and programs that use them.

Dask keeps threads for the rest of a process's life, so a test runs each program in its own process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.scripts import environment, python

__all__ = ["COMMON", "PATIENCE", "node", "process", "run", "scheduler", "start", "write_program"]

PATIENCE = 60.0


@contextmanager
def process(*arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process of Dask. At the end, kill the process and remove its files."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            env={**environment(), **variables, "DASK_TEMPORARY_DIRECTORY": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as started,
    ):
        try:
            yield started
        finally:
            started.kill()
            started.wait()


@contextmanager
def scheduler(directory: Path) -> Iterator[str]:
    """Start a scheduler, and give its address."""
    file = directory / "scheduler.json"
    options = ["--port", "0", "--host", "127.0.0.1", "--no-dashboard", "--no-jupyter", "--scheduler-file", str(file)]
    with process("scheduler", *options):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                address: str = json.loads(file.read_text())["address"]
                break
            except (FileNotFoundError, json.JSONDecodeError):
                assert time.monotonic() < deadline, "the scheduler did not start"
                time.sleep(0.05)
        yield address


def node(address: str, threads: int = 2, **variables: str) -> Any:
    return process("worker", address, "--nthreads", str(threads), "--no-nanny", "--no-dashboard", **variables)


COMMON = """
import itertools, json, multiprocessing, os, signal, sys, time, warnings
from pairpool.dask import ClusterPool

def square(x):
    return x * x

def slow_square(x):
    time.sleep(0.01)
    return x * x

def fail_at_three(x):
    if x == 3:
        raise LookupError("three")
    return x

def fail_once(path):
    if not os.path.exists(path):
        open(path, "w").close()
        raise LookupError("once")
    return "done"

def die_at_seven(x):
    if x == 7:
        os.kill(os.getpid(), signal.SIGSEGV)
    return x

class Closed:
    def __reduce__(self):
        raise TypeError("not this one")

def make_closed(x):
    return Closed() if x == 2 else x
"""


def write_program(directory: Path, code: str, before: str = "") -> Path:
    """Write a program of `COMMON`, of `before` at the level of the module, and of this code."""
    script = directory / "program.py"
    body = textwrap.indent(textwrap.dedent(code), "    ")
    script.write_text(f"{COMMON}{textwrap.dedent(before)}\nif __name__ == '__main__':\n{body}")
    return script


def start(script: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a program whose stdout is a pipe. Without further options, it inherits stdin."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, **options)


def run(tmp_path: Path, code: str, *arguments: str, before: str = "") -> Any:
    """Run a program of `COMMON` and this code, and return the JSON value of its last line."""
    script = write_program(tmp_path, code, before)
    done = python("-W", "default", script, *arguments, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
