"""The killer as the campaign sees it: a subprocess that gets one byte per kill and writes a log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from pairpool.stress.checks import Kill
from pairpool.stress.killer import KILL, STOP
from pairpool.stress.tasks import MARK

__all__ = ["KillerProcess"]

START_INTERVAL_S = 0.01
"""Seconds between two looks at the log while the killer starts."""


class KillerProcess:
    """Start the killer, and wait until it is ready.

    Args:
        kills: how many kills there will be.
        arguments: arguments of the program `pairpool.stress.killer`.
    """

    def __init__(self, kills: int, arguments: list[str]) -> None:
        self._kills = kills
        self._sent = 0
        self._log = os.memfd_create("killer-log")
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-m", "pairpool.stress.killer", f"--master={os.getpid()}", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._log, env=environment, bufsize=0)
        while self.is_alive() and not os.fstat(self._log).st_size:
            time.sleep(START_INTERVAL_S)

    def is_alive(self) -> bool:
        """Return whether the killer still runs."""
        return self._process.poll() is None

    @property
    def has_more(self) -> bool:
        """Whether there are kills that were not requested yet."""
        return self._sent < self._kills

    def advance(self, share: float) -> None:
        """Request one kill if fewer were requested than belong to this share (0 to 1) of the campaign.

        The pool gives up, rightly, if many new workers die at the same time. So there is one kill per call.
        """
        if self._sent < min(self._kills, int(share * self._kills + 0.5)) and self._process.stdin is not None:
            self._process.stdin.write(KILL)
            self._sent += 1

    def finish(self) -> None:
        """Request no more kills. The killer ends when all requested kills are done."""
        if self._process.stdin is not None:
            self._process.stdin.write(STOP)

    def end(self) -> None:
        """End the killer at once."""
        self._process.kill()
        self._process.wait()

    def kills(self) -> list[Kill]:
        """Return the log."""
        text = os.pread(self._log, os.fstat(self._log).st_size, 0).decode()
        return [Kill(**json.loads(line)) for line in text.splitlines() if line.endswith("}")]

    def close(self) -> None:
        """Close the pipe and the log."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        os.close(self._log)
