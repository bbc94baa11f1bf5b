"""Fork a child process that runs a function in a clean state, and end it afterwards.

Facts about the kernel (fork(2), pthread_sigmask(2)), and their consequences:

- A child inherits the signal handlers and the mask of its parent: both are reset before the function runs.
- A signal that arrives between fork and the reset would run a handler of the program in the child: all signals are
  blocked during that time.
- Text in a buffer of Python is copied by a fork and would be written twice: the buffers are flushed before.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pairpool.linux import forking, signals

__all__ = ["fork_child", "fork_from_zygote", "flush_output", "ignore_interrupts", "kill_and_reap", "reset_signals"]

_SIGNALS = signal.valid_signals()


def _ignore_interrupt(_number: int, _frame: Any) -> None:
    """Ignore SIGINT, which the master handles. Programs that a task starts would inherit SIG_IGN, but not this."""


def ignore_interrupts() -> None:
    """Leave SIGINT to the master, and unblock it in case it was blocked while this process started."""
    signal.signal(signal.SIGINT, _ignore_interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def reset_signals() -> None:
    """Undo what the program has set."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, _ignore_interrupt)


def flush_output() -> None:
    """Write what waits in the buffers of stdout and stderr. A program can have put any object in their places."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except Exception:
            pass  # The stream is closed, full, absent or no stream. Its owner notices that at the next write.


def _close_stdin() -> None:
    """Replace stdin by /dev/null, as in multiprocessing: tasks read nothing from the program's terminal."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # it lives as long as the process


def _run_child(body: Callable[[], int], *before: Callable[[], object]) -> None:
    """Call `before` and `body` in a child that was just forked, and end the process, whatever happens."""
    status = 1
    try:
        for step in before:
            step()
        status = body()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            flush_output()
        finally:
            os._exit(status)


def fork_child(body: Callable[[], int]) -> int:
    """Fork a child that runs `body` without the program's signal handlers; return its pid."""
    mask = signals.hold_signals(_SIGNALS)
    try:
        pid = forking.fork()
        if pid == 0:
            _run_child(body, reset_signals, _close_stdin, lambda: signals.set_signal_mask(signal.SIG_SETMASK, mask))
    finally:
        signals.set_signal_mask(signal.SIG_SETMASK, mask)
    return pid


def fork_from_zygote(body: Callable[[], int]) -> int:
    """Do the same as `fork_child` in a zygote, whose stdin and signals are already as a worker needs them.

    Only SIGCHLD is reset. To read and to block each other signal would take half of the time of a start.
    """
    pid = os.fork()
    if pid == 0:
        _run_child(body, lambda: signal.signal(signal.SIGCHLD, signal.SIG_DFL))
    return pid


def kill_and_reap(pid: int) -> None:
    """End a child without a pidfd."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # the child has ended by itself, or the kernel has reaped it
