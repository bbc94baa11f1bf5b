"""The master's side of a zygote that is a fresh interpreter.

Only `start_method="forkserver"` loads this module, because `subprocess` takes long to load.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from pairpool.linux import cpython_private, signals
from pairpool.master.preparation import send_preparation
from pairpool.master.zygotes import ZygoteProcess
from pairpool.transport.channel import Channel, Lost

__all__ = ["FreshZygote"]


class FreshZygote(ZygoteProcess):
    """`start_method="forkserver"`: the zygote is a fresh interpreter that imports the program's main module.

    Args:
        main: importable name `module:function` of the zygote's main program.
        factory: importable name `module:function` of what makes the workers' body from `fds` and `setup`.
        fds: descriptors that the body needs.
        setup: a pickle for the factory.
    """

    def __init__(self, main: str, factory: str, fds: list[int], setup: bytes) -> None:
        near, far = Channel.pair()
        module, _, function = main.partition(":")
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function}; "
            f"{function}({far.fileno()}, {os.getpid()}, {factory!r}, {fds!r})"
        )
        mask = signals.hold_signals({signal.SIGINT})
        try:
            process = _Unwatched(
                [sys.executable, *cpython_private.interpreter_flags(), "-c", code],
                pass_fds=[far.fileno(), *fds],
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            near.close()
            raise
        finally:
            signals.set_signal_mask(signal.SIG_SETMASK, mask)
            far.close()
        super().__init__(near, process.leave(), is_fresh=True)
        try:
            send_preparation(near, setup)
        except Lost:
            pass  # the zygote could not start; `receive` raises


class _Unwatched(subprocess.Popen[bytes]):
    """A process that others wait for, by its pid."""

    def leave(self) -> int:
        """Return the pid. After that, a copy of this object in a forked child does not complain that it still runs."""
        self.returncode = 0
        return self.pid
