"""Run pools in other processes, for tests that observe them from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.scripts import ROOT, environment

SCRIPT = """
import os, sys
from pairpool import Pool
from tests.support import tasks

name, processes, method, gate = sys.argv[1:5]
if __name__ == "__main__":
    with Pool(int(processes), name=name, start_method=method) as pool:
        pool.resize(int(processes))
        pool.map(tasks.square, range(20))
        pool.map(tasks.refuse_odd, [1], return_exceptions=True)
        result = pool.map_async(tasks.wait_for, [gate] * int(processes)) if gate else None
        print("ready", flush=True)
        for line in sys.stdin:
            if line == "close\\n":
                pool.terminate()
            if line == "exit\\n":
                break
            if line == "exec\\n":
                os.execvp("sh", ["sh", "-c", "echo exec; exec cat"])
            print(line, end="", flush=True)
"""


def own(name: str) -> str:
    """Return a name for a pool that no other run of these tests on this machine uses."""
    return f"{name}-{os.getpid()}"


class Engine:
    """A process with a pool. Its workers wait at the gate, if there is one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def tell(self, line: str) -> None:
        """Send a command, `close`, `exec` or `exit`, and wait until the process has executed it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        if line == "exit":
            assert self.process.wait(20) == 0
        else:
            assert self.process.stdout.readline() == f"{line}\n"

    def workers(self) -> list[int]:
        """Return the pids of the zygote and the workers."""
        found: list[int] = []
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            found += map(int, children)
            waiting += map(int, children)
        return found

    @contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@contextmanager
def master(name: str, processes: int = 2, *, method: str = "fork", gate: str = "") -> Iterator[Engine]:
    """Run a pool with this name in a separate process."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name, str(processes), method, gate],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Engine(process)
        finally:
            process.kill()
