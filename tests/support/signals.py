"""Signals that strike at any moment, and whose handlers raise."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable


class Struck(Exception):
    """Raised by a signal's handler. An Exception: those are the harder ones, for more code catches them."""


def strike(number: int = signal.SIGUSR1) -> None:
    """Have the main thread be struck; from any thread."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)


STRIKER = """
import os, random, select, sys, time
number, seed, at_most, again = sys.argv[1:]
chance = random.Random(seed)
while os.read(0, 1) == b"1":
    time.sleep(chance.uniform(0, float(at_most)))
    os.kill(os.getppid(), int(number))
    while not select.select([0], [], [], float(again))[0]:  # a finalizer, say, may have swallowed it
        os.kill(os.getppid(), int(number))
    os.read(0, 1)
"""
"""Strikes when it reads a 1, and until it reads a 0. A process: a thread would have to wait for the GIL."""


class Striker:
    """Has this program be struck, at some moment within `at_most` seconds, while it does something again and again.

    What strikes in a finalizer, or in what else the garbage collector calls, Python swallows: it strikes again then.
    pytest must not hear of it, for its hook may be struck as well, and takes that for an error of its own.
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
        self._process.stdin.write(b"00")  # its end is not seen as long as workers that began since have it, too
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
        """Call this until it is struck."""
        assert self._process.stdin is not None
        with contextlib.suppress(self._raises):  # by one that comes as the first is through
            try:
                self._is_armed = True
                self._process.stdin.write(b"1")
                while True:
                    use()
            finally:
                self._is_armed = False
        self._is_armed = False  # that may have been where it came
        self._process.stdin.write(b"0")
