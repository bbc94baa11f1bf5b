"""The Python stack of a worker, asked for from outside and answered without a message, whatever the task is at.

    reader: lock, empty ──signal──► worker: faulthandler appends the stack to a memfd of its own
    reader: read when the signal is neither pending nor at work ◄──┘

- faulthandler's handler is C: it needs no GIL and no step of Python, so it works in endless loops, in native code that
  holds the GIL, and in sleeps. It looks at the thread that it interrupts and at no other: looking at other threads
  while they run reads frames that are on their way (measured: busy threads crash the process within a few signals).
- So the other threads are shown by a handler in Python, which has the GIL, where there are any and Python comes by
  within a moment.
- Both signals are real-time ones in the middle of the upper half, for which neither glibc (the two below SIGRTMIN) nor
  runtimes and tools (those next to SIGRTMIN and SIGRTMAX) have a use. By default they end a process: they are sent by
  pidfd, and only to one that catches them and has the memfd open. exec(2) resets the handlers and closes the memfd;
  what a task forks has both, but nobody signals it.
- System calls of the task are restarted (SA_RESTART), except those that never are (signal(7)): a sleep, a poll or a
  semaphore with a timeout returns early with EINTR. Python's own go on; native code may see it, where a task has
  threads in every call.
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

from pairpool import kernel

__all__ = ["IDLE", "clean", "offer_stack", "read_stack", "read_stacks", "show_threads"]

MEMFD = "pairpool-stack"
STACK = int(signal.SIGRTMAX) - 9
"""Asks for the stack of the main thread, which runs the tasks."""
THREADS = int(signal.SIGRTMAX) - 10
"""Asks for the stacks of all threads."""

LOOK_EVERY = 0.001
"""Seconds between two looks at an answer; the kernel tells nobody that a handler has returned."""
PYTHON_WITHIN = 0.1
"""Seconds in which Python comes by, unless the main thread is in native code for longer; other threads hold the GIL
for 5 ms at a time."""
END = b"\n--\n"
"""What follows the stacks of all threads."""
LONGEST = 1 << 20
"""Bytes of an answer that are read."""

IDLE = "idle"
"""The stack of a worker that waits for work."""

_LINK = f"/memfd:{MEMFD} (deleted)"
_WORKER = '/pairpool/worker.py"'
_LOOPS = ("_run_timed", "_run_limited", "_run_short")
_WAITS = ("_next_packet", "_cool_down")
_BELOW_THREADS = (" in _bootstrap", " in _bootstrap_inner")
_fd = -1


# --- in the worker ----------------------------------------------------------------------------------


def offer_stack() -> None:
    """In a worker, once: answer from now on."""
    global _fd
    _fd = kernel.memfd(MEMFD, 0)
    fcntl.fcntl(_fd, fcntl.F_SETFL, os.O_APPEND)  # so that a reader can empty it
    faulthandler.register(STACK, file=_fd, all_threads=False, chain=False)
    signal.signal(THREADS, show_threads)


def show_threads(_number: int, _frame: object) -> None:
    """Write down the stacks of all threads; with the GIL held, so that none of them moves."""
    os.ftruncate(_fd, 0)
    faulthandler.dump_traceback(_fd, all_threads=True)
    os.write(_fd, END)


# --- outside ----------------------------------------------------------------------------------------


def read_stack(pid: int, timeout: float = 1.0) -> str:
    """The stack of one worker's task; see `read_stacks`."""
    return read_stacks([pid], timeout)[pid]


def read_stacks(pids: Iterable[int], timeout: float = 1.0) -> dict[int, str]:
    """The Python stacks of these workers' tasks, the most recent call first, none of which ends or fails by it.

    A worker without a task is `idle`; where there is no stack within `timeout` seconds, a text in brackets says why.
    Raises `PermissionError` for processes of other users.
    """
    inquiries = [_Inquiry(pid) for pid in pids]
    deadline = time.monotonic() + timeout
    try:
        waiting = inquiries
        while True:
            waiting = [one for one in waiting if not one.advance(time.monotonic())]
            if not waiting or time.monotonic() >= deadline:
                break
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
        self._since = 0.0  # when
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
            if self._others and self._asked == STACK and not self._content.startswith(b"Thread"):
                stack += f"\n  (other threads, which cannot be looked at meanwhile: {self._others})"
            return stack
        return f"(no stack: {self._reason or self._excuse()})"

    def advance(self, now: float) -> bool:
        """Take the step that can be taken now; True when there is no further one."""
        seen = _signals_of(self.pid)
        if seen is None:
            self._reason = "the worker has ended"
            return True
        if self._file < 0 and not self._open():
            return True
        if self._asked:
            return self._look(seen, now)
        if seen.state in "Tt":
            self._reason = "the worker is stopped"
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # somebody else is asking
        return not self._ask(seen, now)

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

    def _ask(self, seen: _Signals, now: float) -> bool:
        """Send the signal; False if that cannot be done."""
        self._others = seen.threads - 1
        number = THREADS if self._others and not self._asked else STACK
        if not seen.has(seen.caught, number):
            self._reason = "the worker is starting, or its task handles the signal itself"
            return False
        if self._asked == 0:
            os.ftruncate(self._file, 0)
        self._asked, self._since = number, now
        if not seen.has(seen.pending, number) and not _send(self._pidfd, number):
            self._reason = "the worker has ended"
            return False
        return True

    def _look(self, seen: _Signals, now: float) -> bool:
        """Whether the answer is complete; if Python does not come by to give it, ask for less."""
        content = os.pread(self._file, LONGEST, 0)
        if content.endswith(END):
            self._content = content.removesuffix(END)
            return True
        if self._asked == STACK:
            if content.startswith(b"Stack") and not seen.is_answering(STACK):
                self._content = content
                return True
            return False
        return now - self._since > PYTHON_WITHIN and not self._ask(seen, now)

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


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""  # closed since it was listed


def _send(pidfd: int, number: int) -> bool:
    """Signal the main thread of a process; False if it has ended."""
    try:
        try:
            signal.pidfd_send_signal(pidfd, number, None, kernel.PIDFD_SIGNAL_THREAD)
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
    while frames and '/pairpool/wire/stacks.py"' in frames[0]:
        frames = frames[1:]
    own = [number for number, frame in enumerate(frames) if _WORKER in frame]
    if not own:
        return "\n".join(frames)
    loop = next((number for number in own if frames[number].endswith(_LOOPS)), None)
    if loop is None:
        if frames[own[0]].endswith(_WAITS):
            return IDLE
        return "\n".join(frames[: own[0]] or frames[:1])
    end = loop
    while end and _WORKER in frames[end - 1]:
        end -= 1
    return "\n".join(frames[:end]) or "  in native code: the function is not one of Python's"
