"""The Python stack of a worker, asked for from outside and answered without a message, whatever the task is at.

    reader: lock, empty ──ALL──► worker: a handler in Python writes the stacks of all threads to a memfd of its own
              no answer ──MAIN─► worker: faulthandler's handler in C appends the main thread's
    reader: read ◄───────────────┘

- A handler in Python runs between two steps of the main thread with the GIL held: no frame is on its way. Python's own
  sleeps and waits let it in and go on (PEP 475). It does not run while other native code computes or sleeps.
- faulthandler's handler is C and runs at once. Frames that are on their way crash it: measured, a busy loop of short
  calls within some thousand signals on CPython 3.13, other threads at work within ten on 3.11. So it is asked only of a
  main thread that has not come back to Python for a while, whose frames stand still; and only for its own stack.
- Both signals are real-time ones in the middle of the upper half, for which neither glibc (the two below SIGRTMIN) nor
  runtimes and tools (those next to SIGRTMIN and SIGRTMAX) have a use. By default they end a process: they are sent by
  pidfd, and only to one that catches them and has the memfd open. exec(2) resets the handlers and closes the memfd;
  what a task forks has both, but nobody signals it.
- The price, as of any signal that Python handles: a system call in native code may return early, with EINTR.
"""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import os
import signal
import time
from collections.abc import Iterable
from typing import NamedTuple

from pairpool.linux import descriptors, pidfds
from pairpool.linux.interrupts import allow_signals, defer_signals

__all__ = [
    "IDLE",
    "LOOPS",
    "WAITS",
    "WORKER_FILES",
    "clean",
    "offer_stack",
    "read_stack",
    "read_stacks",
    "show_threads",
]

MEMFD = "pairpool-stack"
ALL = int(signal.SIGRTMAX) - 10
"""Asks for the stacks of all threads, if Python comes by."""
MAIN = int(signal.SIGRTMAX) - 9
"""Asks for the stack of the main thread, which runs the tasks, wherever it is."""

LOOK_EVERY = 0.001
"""Seconds between two looks at an answer; the kernel tells nobody that a handler has returned."""
COMPUTES = 20_000_000
"""Nanoseconds of computing without a step of Python after which the main thread is in native code for longer."""
SLEEPS = 3
"""Looks in a row at which it sleeps after which native code does so: had it woken, Python would have come by."""
SLEEPS_WITH_OTHERS = 100
"""The same where there are other threads: it may wait for the GIL, which each of them holds for 5 ms at a time."""
END = b"\n--\n"
"""What follows the stacks of all threads."""
LONGEST = 1 << 20
"""Bytes of an answer that are read."""

IDLE = "idle"
"""The stack of a worker that waits for work."""

WORKER_FILES = "/pairpool/worker/"
"""In the path of each file whose frames are the worker's own, below those of a task."""

_LINK = f"/memfd:{MEMFD} (deleted)"
LOOPS = ("run_timed", "run_limited", "run_short")
"""The functions of `worker/loops.py` that run the items of a batch; the frames above them belong to a task."""
WAITS = ("next_packet", "_await_packet", "_cool_down", "_receive")
"""The functions of a worker that wait for a packet."""
_LOOP_ENDS = tuple(f" in {name}" for name in LOOPS)
_WAIT_ENDS = tuple(f" in {name}" for name in WAITS)
_BELOW_THREADS = (" in _bootstrap", " in _bootstrap_inner")
_fd = -1
_file = (0, 0)


# --- in the worker ----------------------------------------------------------------------------------


def offer_stack() -> None:
    """In a worker, once: answer from now on."""
    global _fd, _file
    _fd = descriptors.memfd(MEMFD, 0)
    _file = _identity(_fd)
    fcntl.fcntl(_fd, fcntl.F_SETFL, os.O_APPEND)  # so that a reader can empty it
    faulthandler.register(MAIN, file=_fd, all_threads=False, chain=False)
    signal.signal(ALL, show_threads)


def show_threads(_number: int, _frame: object) -> None:
    """Write down the stacks of all threads; with the GIL held, so that none of them moves."""
    try:
        if _identity(_fd) == _file:  # a task may have closed it and opened something else
            os.ftruncate(_fd, 0)
            faulthandler.dump_traceback(_fd, all_threads=True)
            os.write(_fd, END)
    except OSError:
        pass  # it is closed, or there is no memory now: that is no matter of the task that this interrupts


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


# --- outside ----------------------------------------------------------------------------------------


def read_stack(pid: int, timeout: float = 1.0) -> str:
    """The stack of one worker's task; see `read_stacks`."""
    return read_stacks([pid], timeout)[pid]


def read_stacks(pids: Iterable[int], timeout: float = 1.0) -> dict[int, str]:
    """The Python stacks of these workers' tasks, the most recent call first, none of which ends or fails by it.

    A worker without a task is `idle`; where there is no stack within `timeout` seconds, a text in brackets says why.
    Raises `PermissionError` for processes of other users.
    """
    with defer_signals():
        inquiries = [_Inquiry(pid) for pid in pids]
        deadline = time.monotonic() + timeout
        try:
            waiting = inquiries
            while True:
                waiting = [one for one in waiting if not one.advance()]
                if not waiting or time.monotonic() >= deadline:
                    break
                with allow_signals():
                    time.sleep(LOOK_EVERY)
            return {one.pid: one.text() for one in inquiries}
        finally:
            for one in inquiries:
                one.close()


class _Signals(NamedTuple):
    """What /proc/PID/status says of a process's main thread."""

    state: str
    threads: int
    pending: int
    blocked: int
    caught: int

    def has(self, mask: int, number: int) -> bool:
        return bool(mask >> (number - 1) & 1)

    def is_answering(self, number: int) -> bool:
        """Whether the handler of a signal has not run yet, or runs: it blocks its own signal meanwhile."""
        return self.has(self.pending, number) or self.has(self.blocked, number)


def _signals_of(pid: int) -> _Signals | None:
    """None if the process has ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":", 1) for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return None
    state = fields["State"].split()[0]
    if state in "ZX":
        return None
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return _Signals(state, int(fields["Threads"]), pending, int(fields["SigBlk"], 16), int(fields["SigCgt"], 16))


class _Inquiry:
    """A worker that is asked for its stack."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = -1
        self._file = -1
        self._asked = 0  # the signal that was sent
        self._computed = -1  # CPU time in ns when the signal had been delivered
        self._slept = 0  # looks in a row
        self._others = 0
        self._content = b""
        self._reason = ""

    def close(self) -> None:
        """Let go of everything, the lock included."""
        for fd in (self._pidfd, self._file):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._file = -1

    def text(self) -> str:
        """What came of it."""
        if self._content:
            stack = clean(self._content.decode("utf-8", "replace"))
            if self._others and self._asked == MAIN and self._content.startswith(b"Stack"):
                stack += f"\n  (other threads, which cannot be looked at meanwhile: {self._others})"
            return stack
        return f"(no stack: {self._reason or self._excuse()})"

    def advance(self) -> bool:
        """Take the step that can be taken now; True when there is no further one."""
        seen = _signals_of(self.pid)
        if seen is None:
            self._reason = "the worker has ended"
            return True
        if self._file < 0 and not self._open():
            return True
        if self._asked:
            return self._look(seen)
        if seen.state in "Tt":
            self._reason = "the worker is stopped"
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # somebody else is asking
        return not self._ask(seen)

    def _open(self) -> bool:
        """Find the memfd that the worker answers into."""
        directory = f"/proc/{self.pid}/fd"
        try:
            self._pidfd = os.pidfd_open(self.pid)
            for name in os.listdir(directory):
                if _link(f"{directory}/{name}") == _LINK:
                    self._file = os.open(f"{directory}/{name}", os.O_RDWR | os.O_CLOEXEC)
                    return True
        except (FileNotFoundError, ProcessLookupError):
            self._reason = "the worker has ended"
            return False
        self._reason = "the worker is starting, or its task has closed what it answers with"
        return False

    def _ask(self, seen: _Signals) -> bool:
        """Send the signal; False if that cannot be done."""
        self._others = seen.threads - 1
        number = MAIN if self._asked else ALL
        if not seen.has(seen.caught, number):
            self._reason = "the worker is starting, or its task handles the signal itself"
            return False
        if self._asked == 0:
            os.ftruncate(self._file, 0)
        self._asked = number
        if not seen.has(seen.pending, number) and not _send(self._pidfd, number):
            self._reason = "the worker has ended"
            return False
        return True

    def _look(self, seen: _Signals) -> bool:
        """Whether the answer is complete; if Python does not come by to give it, ask for less."""
        content = os.pread(self._file, LONGEST, 0)
        if content.endswith(END):
            self._content = content.removesuffix(END)
            return True
        if self._asked == MAIN:
            if content.startswith(b"Stack") and not seen.is_answering(MAIN):
                self._content = content
                return True
            return False
        return self._is_in_native_code(seen) and not self._ask(seen)

    def _is_in_native_code(self, seen: _Signals) -> bool:
        """Whether Python has not come by for so long after the signal that it will not soon."""
        if seen.has(seen.pending, ALL):
            return False
        computed = _cpu_time_of(self.pid)
        if self._computed < 0:
            self._computed = computed
        self._slept = self._slept + 1 if seen.state in "SD" else 0
        enough = SLEEPS_WITH_OTHERS if self._others else SLEEPS
        return self._slept >= enough or computed - self._computed > COMPUTES

    def _excuse(self) -> str:
        """Why there is no answer yet."""
        seen = _signals_of(self.pid)
        if seen is None:
            return "the worker has ended"
        if not self._asked:
            return "somebody else is asking for it"
        if seen.state in "Tt":
            return "the worker is stopped"
        if seen.state == "D":
            return "the worker waits in the kernel, where no signal reaches it"
        if seen.has(seen.pending, self._asked) and seen.has(seen.blocked, self._asked):
            return "the task blocks the signal that asks for it"
        return "the worker did not come to answer in time"


def _cpu_time_of(pid: int) -> int:
    """CPU time of the main thread in ns; where the kernel does not count it, the clock's."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            return int(file.read().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return time.monotonic_ns()


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""  # closed since it was listed


def _send(pidfd: int, number: int) -> bool:
    """Signal the main thread of a process; False if it has ended."""
    try:
        try:
            signal.pidfd_send_signal(pidfd, number, None, pidfds.PIDFD_SIGNAL_THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            signal.pidfd_send_signal(pidfd, number)  # before Linux 6.9: to the process, which is nearly always the same
    except ProcessLookupError:
        return False
    return True


# --- from a dump to what people want to see ---------------------------------------------------------


def clean(dump: str) -> str:
    """A dump of faulthandler without what is the worker's own: the frames below the task, its wait for work."""
    threads: list[tuple[str, list[str]]] = []
    for line in dump.splitlines():
        if line.startswith("  ") and threads:
            threads[-1][1].append(line)
        elif line.startswith(("Thread ", "Current thread ", "Stack ")):
            threads.append((line, []))
    main = next((number for number, (title, _) in enumerate(threads) if not title.startswith("Thread ")), None)
    if main is None:
        return dump.strip("\n")
    text = _task_frames(threads.pop(main)[1])
    if not threads:
        return text
    for title, frames in threads:
        text += f"\n{title.partition(' (')[0].lower()}:"
        text += "".join(f"\n{frame}" for frame in frames if not frame.endswith(_BELOW_THREADS))
    return f"main thread:\n{text}"


def _task_frames(frames: list[str]) -> str:
    """The frames of the main thread that belong to the task."""
    while frames and '/pairpool/scoreboard/stacks.py"' in frames[0]:
        frames = frames[1:]
    own = [number for number, frame in enumerate(frames) if WORKER_FILES in frame]
    if not own:
        return "\n".join(frames)
    loop = next((number for number in own if frames[number].endswith(_LOOP_ENDS)), None)
    if loop is None:
        if frames[own[0]].endswith(_WAIT_ENDS):
            return IDLE
        return "\n".join(frames[: own[0]] or frames[:1])
    end = loop
    while end and WORKER_FILES in frames[end - 1]:
        end -= 1
    return "\n".join(frames[:end]) or "  in native code: the function is not one of Python's"
