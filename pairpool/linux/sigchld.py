"""Ignore SIGCHLD in this process while something needs that.

Facts about the kernel and Python (sigaction(2), signal(7)), and their consequences:

- With SIGCHLD ignored, children leave no zombie and no exit status.
- The disposition belongs to the process, so its users are counted.
- Python sets a disposition only from the main thread, so another thread asks the main thread to restore it.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from typing import Any

__all__ = ["sigchld"]


class SigchldUse:
    """Counts the pools that need SIGCHLD ignored, and restores its disposition after the last of them."""

    def __init__(self) -> None:
        self.users = 0
        self._is_ignoring = False
        self._before: Any = None
        self._pending: dict[int, Any] = {}  # callbacks that the interpreter has not made yet: it keeps no reference

    def ignore(self) -> None:
        """Ignore SIGCHLD. Raise `ValueError` in another thread than the main one."""
        if not self._is_ignoring:
            self._before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            self._is_ignoring = True
        self.users += 1

    def release(self) -> None:
        """Restore the disposition if this was the last user; from any thread."""
        self.users -= 1
        if threading.current_thread() is threading.main_thread():
            self._restore()
        else:
            self._restore_in_main_thread()

    def forget(self) -> None:
        """In a forked child, forget the pools of the parent."""
        self.users = 0
        self._is_ignoring = False

    def _restore(self) -> None:
        if self.users == 0 and self._is_ignoring:
            self._is_ignoring = False
            signal.signal(signal.SIGCHLD, self._before)

    def _restore_in_main_thread(self) -> None:
        """Have the main thread restore it at its next step in Python, by a pending call."""

        def restore(_argument: Any) -> int:
            self._pending.pop(id(callback), None)
            self._restore()
            return 0

        callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(restore)
        self._pending[id(callback)] = callback
        ctypes.pythonapi.Py_AddPendingCall(callback, None)


sigchld = SigchldUse()
