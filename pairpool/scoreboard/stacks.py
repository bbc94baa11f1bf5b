"""Read the Python stack of a worker from another process, whatever its task does.

    reader: lock and empty the memfd ──ALL──► worker: a handler in Python writes the stacks of all threads to the memfd
            no answer ─────────────── MAIN ─► worker: faulthandler's handler in C appends the stack of the main thread
    reader: read the memfd ◄─────────────────┘

- A handler in Python runs between two steps of the main thread with the GIL held, so no frame is about to change.
  Python's own sleeps and waits run the handler and continue (PEP 475). Other native code does not run it.
- The handler of faulthandler is C code and runs at once. It crashes if a frame is about to change. Measured: after some
  thousand signals in a busy loop of short calls on CPython 3.13, and within ten signals on 3.11 if other threads run.
  So MAIN is sent only if the main thread has been in native code for a while, and asks only for the main thread.
- Both signals are real-time signals in the middle of the upper half. glibc uses the two below SIGRTMIN; runtimes and
  tools use those next to SIGRTMIN and SIGRTMAX. By default these signals end a process. So they are sent by pidfd, and
  only to a process that catches them and has the memfd open. exec(2) resets the handlers and closes the memfd. A
  process that a task forks has both, but no reader signals it.
- As with any signal that Python handles, a system call in native code can return early, with EINTR.

The reader can be root, and the process can be hostile:

- The reader empties the memfd, so it must be a memfd of the process (`foreign_memfds`). The reader reads it with pread,
  up to a limit. A file that shrinks does not disturb pread.
- The pidfd is opened first. If the process is still there after the checks, they were about the process that the pidfd
  means. A process that calls exec between the check and the signal gets the signal without a handler, and ends.
- The lock, the answer and the signal can fail or stay away. Each is tried until the deadline, and none is waited for.
- All texts can be forged, so they are printed without control characters.
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

from pairpool.linux import descriptors, foreign_memfds, pidfds
from pairpool.linux.interrupts import allow_signals, defer_signals

__all__ = [
    "IDLE",
    "LOOPS",
    "WAITS",
    "WORKER_FILES",
    "clean",
    "offer_stack",
    "printable",
    "read_stack",
    "read_stacks",
    "show_threads",
]

STACK_MEMFD = "pairpool-stack"
ALL = int(signal.SIGRTMAX) - 10
"""The signal that asks for the stacks of all threads. Python must run to answer it."""
MAIN = int(signal.SIGRTMAX) - 9
"""The signal that asks for the stack of the main thread, which runs the tasks. Native code does not delay it."""

CHECK_EVERY_S = 0.001
"""Seconds between two checks for an answer. The kernel does not tell that a handler has returned."""
NATIVE_AFTER_NS = 20_000_000
"""Nanoseconds of CPU time without a step of Python after which the main thread counts as being in native code."""
ASLEEP_CHECKS = 3
"""Checks in a row that find the main thread asleep after which it counts as asleep in native code."""
ASLEEP_CHECKS_WITH_THREADS = 100
"""The same with other threads: the main thread can wait for the GIL, which each of them holds for 5 ms at a time."""
END = b"\n--\n"
"""The end of an answer with the stacks of all threads."""
ANSWER_LIMIT_BYTES = 1 << 20
"""Bytes of an answer that are read."""

IDLE = "idle"
"""The stack of a worker that waits for work."""

WORKER_FILES = "/pairpool/worker/"
"""In the path of each file whose frames are the worker's own, below those of a task."""

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
    """Answer readers from now on. A worker calls this once."""
    global _fd, _file
    _fd = descriptors.memfd(STACK_MEMFD, 0)
    _file = descriptors.identity(_fd)
    fcntl.fcntl(_fd, fcntl.F_SETFL, os.O_APPEND)  # because a reader truncates the file
    faulthandler.register(MAIN, file=_fd, all_threads=False, chain=False)
    signal.signal(ALL, show_threads)


def show_threads(_number: int, _frame: object) -> None:
    """Write the stacks of all threads. The GIL is held, so no frame changes meanwhile."""
    try:
        if descriptors.identity(_fd) == _file:  # a task can have closed the memfd and opened another file
            os.ftruncate(_fd, 0)
            faulthandler.dump_traceback(_fd, all_threads=True)
            os.write(_fd, END)
    except OSError:
        pass  # the memfd is closed, or there is no memory; the interrupted task must not see this error


# --- outside ----------------------------------------------------------------------------------------


def read_stack(pid: int, timeout: float = 1.0) -> str:
    """Return the stack of one worker's task; see `read_stacks`."""
    return read_stacks([pid], timeout)[pid]


def read_stacks(pids: Iterable[int], timeout: float = 1.0) -> dict[int, str]:
    """Return the Python stacks of these workers' tasks, by pid, the most recent call first. The tasks go on.

    The stack of a worker without a task is `idle`. If there is no stack within `timeout` seconds, a text in brackets
    says why. Raise `PermissionError` if the kernel lets this user look at none of the processes.
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
                    time.sleep(CHECK_EVERY_S)
            if inquiries and all(one.is_forbidden for one in inquiries):
                raise PermissionError(errno.EPERM, "the kernel does not let you look at these processes")
            return {one.pid: one.text() for one in inquiries}
        finally:
            for one in inquiries:
                one.close()


class _Signals(NamedTuple):
    """The part of /proc/PID/status about the main thread of a process."""

    state: str
    threads: int
    pending: int
    blocked: int
    caught: int

    def has(self, mask: int, number: int) -> bool:
        return bool(mask >> (number - 1) & 1)

    def is_answering(self, number: int) -> bool:
        """Whether the handler of a signal has not returned yet. While it runs, it blocks its own signal."""
        return self.has(self.pending, number) or self.has(self.blocked, number)


def _signals_of(pid: int) -> _Signals | None:
    """Return the signals of a process, or None if it has ended."""
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return None
    state = fields["State"].split()[0]
    if state in "ZX":
        return None
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return _Signals(state, int(fields["Threads"]), pending, int(fields["SigBlk"], 16), int(fields["SigCgt"], 16))


class _Inquiry:
    """A request to one worker for its stack."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = -1
        self._file = -1
        self._asked = 0  # the signal that was sent
        self._computed = -1  # CPU time in ns when the signal had been delivered
        self._slept = 0  # checks in a row that found it asleep
        self._others = 0
        self._content = b""
        self._reason = ""
        self.is_forbidden = False

    def close(self) -> None:
        """Close all descriptors, which releases the lock."""
        for fd in (self._pidfd, self._file):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._file = -1

    def text(self) -> str:
        """Return the stack, or the reason why there is none."""
        if self._content:
            stack = clean(printable(self._content.decode("utf-8", "replace")))
            if self._others and self._asked == MAIN and self._content.startswith(b"Stack"):
                stack += f"\n  (other threads, which cannot be looked at meanwhile: {self._others})"
            return stack
        return f"(no stack: {self._reason or self._excuse()})"

    def advance(self) -> bool:
        """Take the next step if it is possible now. Return True after the last step."""
        try:
            return self._advance()
        except (FileNotFoundError, ProcessLookupError):
            self._reason = "the worker has ended"
        except PermissionError:
            self.is_forbidden = not self._asked
            self._reason = "the kernel does not let you look at the worker"
        except OSError as error:
            self._reason = f"the worker cannot be asked: {error.strerror}"
        return True

    def _advance(self) -> bool:
        if self._file < 0 and not self._open():
            return True
        seen = _signals_of(self.pid)
        if seen is None:
            self._reason = "the worker has ended"
            return True
        if self._asked:
            return self._look(seen)
        if seen.state in "Tt":
            self._reason = "the worker is stopped"
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # another reader holds the lock
        return not self._ask(seen)

    def _open(self) -> bool:
        """Open the memfd that the worker writes its answers to; return False if that is impossible."""
        self._pidfd = os.pidfd_open(self.pid)
        if _signals_of(self.pid) is None:
            self._reason = "the worker has ended"
            return False
        self._file = foreign_memfds.find_memfd(self.pid, STACK_MEMFD, writable=True)
        if pidfds.has_ended(self._pidfd):
            self._reason = "the worker has ended"
        elif self._file < 0:
            self._reason = "the worker is starting, or its task has closed what it answers with"
        return not self._reason

    def _ask(self, seen: _Signals) -> bool:
        """Send the signal; return False if that is impossible."""
        self._others = seen.threads - 1
        number = MAIN if self._asked else ALL
        if not seen.has(seen.caught, number):
            self._reason = "the worker is starting, or its task handles the signal itself"
            return False
        if self._asked == 0:
            os.ftruncate(self._file, 0)
        self._asked = number
        if not seen.has(seen.pending, number):
            _send(self._pidfd, number)
        return True

    def _look(self, seen: _Signals) -> bool:
        """Return True after the last step. If Python does not answer, ask for the main thread alone."""
        content = os.pread(self._file, ANSWER_LIMIT_BYTES, 0)
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
        """Whether Python has not run for so long after the signal that it will probably not run soon."""
        if seen.has(seen.pending, ALL):
            return False
        computed = _cpu_time_of(self.pid)
        if self._computed < 0:
            self._computed = computed
        self._slept = self._slept + 1 if seen.state in "SD" else 0
        enough = ASLEEP_CHECKS_WITH_THREADS if self._others else ASLEEP_CHECKS
        return self._slept >= enough or computed - self._computed > NATIVE_AFTER_NS

    def _excuse(self) -> str:
        """Return the reason why there is no answer yet."""
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
    """Return the CPU time of the main thread in ns, or the monotonic clock if the kernel does not count it."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            return int(file.read().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return time.monotonic_ns()


def _send(pidfd: int, number: int) -> None:
    """Signal the main thread of a process. Raise `OSError` if the process has ended, or if its queue is full."""
    try:
        signal.pidfd_send_signal(pidfd, number, None, pidfds.PIDFD_SIGNAL_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before Linux 6.9 only to the process. Its main thread nearly always receives the signal.
        signal.pidfd_send_signal(pidfd, number)


# --- from a dump to the frames of a task ------------------------------------------------------------


def printable(text: str) -> str:
    """Return a text without control characters except line ends. A process can write any text in place of its stack."""
    return "\n".join(
        line if line.isprintable() else "".join(char if char.isprintable() else "?" for char in line)
        for line in text.split("\n")
    )


def clean(dump: str) -> str:
    """Return a dump of faulthandler without the frames of the worker, below the task or waiting for work."""
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
    """Return the frames of the main thread that belong to the task."""
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
