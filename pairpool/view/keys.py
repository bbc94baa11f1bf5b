"""Read single keys of a terminal while a view is shown, and restore the settings of the terminal in any case."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import termios
import threading
import tty
from types import FrameType
from typing import Any

__all__ = ["Keys"]

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Keys:
    """Reads keys in its `with` block, without Return and without echo. A new size of the terminal ends a wait.

    In the block SIGTERM and SIGHUP raise `SystemExit`, so that everything is restored. Ctrl-Z does nothing, because it
    would leave the screen unrestored. If standard input is not a terminal, there are no keys.
    """

    def __enter__(self) -> Keys:
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._before: dict[int, Any] = {}
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = -1
        if self._fd >= 0:
            self._settings = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd, termios.TCSANOW)
            changed = termios.tcgetattr(self._fd)
            changed[6][termios.VSUSP] = b"\0"  # no key sends this
            termios.tcsetattr(self._fd, termios.TCSANOW, changed)
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            for number in (signal.SIGWINCH, *_ENDING):
                self._before[number] = signal.signal(number, _leave if number in _ENDING else _do_nothing)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)
        if self._fd >= 0:
            try:
                termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._settings)
            except termios.error as error:
                if error.args[0] != errno.EIO:
                    raise  # with EIO the terminal is gone, and needs no settings

    def wait(self, timeout: float) -> str:
        """Return the keys that are pressed within `timeout` seconds. Return none if the terminal gets another size.

        Return `q` if the terminal is gone.
        """
        watched = [self._reader] if self._fd < 0 else [self._reader, self._fd]
        ready, _, _ = select.select(watched, [], [], timeout)
        if self._reader in ready:
            os.read(self._reader, 4096)
        if self._fd not in ready:
            return ""
        try:
            return os.read(self._fd, 64).decode("ascii", "replace") or "q"
        except OSError:
            return "q"


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Ignore the signal, because the wakeup descriptor has ended the wait."""
