"""Send signals, whose handlers raise, at arbitrary moments."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable


class Struck(Exception):
    """Raised by the signal handler.

    It is an `Exception` and no mere `BaseException`, because more code catches those.
    """


def strike(number: int = signal.SIGUSR1) -> None:
    """Send the main thread a signal. Any thread may call this."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)


STRIKER = """
import ctypes, os, random, select, sys, time
number, seed, at_most, again = sys.argv[1:]
chance = random.Random(seed)
parent, tgkill = os.getppid(), ctypes.CDLL(None).tgkill
while os.read(0, 1) == b"1":
    time.sleep(chance.uniform(0, float(at_most)))
    tgkill(parent, parent, int(number))
    while not select.select([0], [], [], float(again))[0]:  # the interpreter drops exceptions in finalizers
        tgkill(parent, parent, int(number))
    os.read(0, 1)
"""
"""A program that sends signals from the time it reads a `1` until it reads a `0`.

It is a process, because a thread would have to wait for the GIL. It sends the signals to the main thread. While the
main thread blocks a signal, a signal to the process would go to another thread, such as the one of pytest-xdist.
"""


class Striker:
    """Send this process a signal at a random moment, while it repeats a call.

    Python drops an exception that the handler raises inside a finalizer or a callback of the garbage collector.
    The striker then sends the signal again. It hides these exceptions from pytest's hook for unraisable exceptions,
    because a signal can interrupt the hook as well, and pytest would report an error.

    Args:
        seed: the seed of the random moments.
        at_most: the latest moment of the first signal, in seconds.
        again: the time between further signals, in seconds.
    """

    def __init__(
        self,
        seed: str,
        at_most: float,
        again: float,
        *,
        number: signal.Signals = signal.SIGUSR1,
        raises: type[BaseException] = Struck,
    ) -> None:
        self._command = [sys.executable, "-c", STRIKER, str(int(number)), seed, str(at_most), str(again)]
        self._number = number
        self._raises = raises
        self._is_armed = False

    def __enter__(self) -> Striker:
        self._hook, sys.unraisablehook = sys.unraisablehook, self._look_at_unraisable
        self._old = signal.signal(self._number, self.handle)
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, bufsize=0)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"00")  # no EOF: workers that started meanwhile keep the pipe open
        self._process.__exit__(None, None, None)
        signal.signal(self._number, self._old)
        sys.unraisablehook = self._hook

    def _look_at_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, self._raises):
            self._hook(unraisable)

    def handle(self, _number: int, _frame: object) -> None:
        if self._is_armed:
            raise self._raises

    def strike(self, use: Callable[[], object]) -> None:
        """Call `use` until a signal interrupts it."""
        assert self._process.stdin is not None
        with contextlib.suppress(self._raises):  # raised by a further signal, while the first is handled
            try:
                self._is_armed = True
                self._process.stdin.write(b"1")
                while True:
                    use()
            finally:
                self._is_armed = False
        self._is_armed = False  # the further signal may have come before the line in `finally`
        self._process.stdin.write(b"0")
