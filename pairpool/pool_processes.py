"""Workers as `multiprocessing.Process` shows them, for programs that list `pool._pool`."""

from __future__ import annotations

import os
import signal

from pairpool.linux import pidfds

__all__ = ["PoolProcess"]


class PoolProcess:
    """One worker, with the methods of `multiprocessing.Process` that such programs use."""

    daemon = True

    def __init__(self, pid: int) -> None:
        self.pid = self.ident = pid

    def is_alive(self) -> bool:
        """Return whether the process exists."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def join(self, timeout: float | None = None) -> None:
        """Wait until the process has ended, or for `timeout` seconds."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            pidfds.wait_ended(pidfd, timeout)
        finally:
            os.close(pidfd)

    def terminate(self) -> None:
        """Send SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
