"""Processes of another user that show themselves as pools, with files and contents of their own making.

    python -m tests.support.hostile USER ACT [ARGUMENT]

The process becomes the user, does the act, prints its pid, and waits for the end of its input.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pairpool.linux import descriptors
from pairpool.scoreboard import board as board_module
from pairpool.scoreboard.board import (
    BOARD_HEADER_SIZE,
    MAGIC,
    SLOT_SIZE,
    TEXT_SIZE,
    VERSION,
    PoolWord,
    Scoreboard,
    Word,
)
from pairpool.scoreboard.stacks import ALL, MAIN, STACK_MEMFD
from tests.support.scripts import ROOT, environment

NOBODY = 65534

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_PRIVATE_REC, MS_BIND = 0x44000, 0x1000
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]

libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def hostile(act: str, argument: str = "", user: int = NOBODY) -> Iterator[int]:
    """Run a hostile process, and return its pid."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.hostile", str(user), act, argument],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == f"{process.pid}\n"
            yield process.pid
        finally:
            process.kill()


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


def disguise(path: str, name: str) -> int:
    """Return a descriptor of a file that /proc shows as the memfd `name`. A new mount namespace has the file there."""
    user, group = os.getuid(), os.getgid()
    _check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    root = "/dev/shm"
    _check(libc.mount(None, b"/", None, MS_PRIVATE_REC, None), "mount /")
    _check(libc.mount(b"tmpfs", root.encode(), b"tmpfs", 0, None), "mount tmpfs")
    place = f"{root}/memfd:{name} (deleted)"
    if path == "FIFO":
        os.mkfifo(place, 0o666)
    elif path == "NEW":
        Path(place).write_bytes(bytes(1 << 20))
    else:
        Path(place).touch()
        _check(libc.mount(path.encode(), place.encode(), None, MS_BIND, None), f"mount {path}")
    os.mkdir(f"{root}/old")
    _check(libc.syscall(SYS_PIVOT_ROOT, root.encode(), f"{root}/old".encode()), "pivot_root")
    return os.open(f"/memfd:{name} (deleted)", os.O_RDONLY | os.O_NONBLOCK)


def forge(name: str, slots: int, *, claimed: int | None = None, sealed: bool = True) -> int:
    """Return a memfd with the head of a scoreboard that has room for `claimed` workers, if its head is right."""
    claimed = slots if claimed is None else claimed
    size = BOARD_HEADER_SIZE + slots * (SLOT_SIZE + TEXT_SIZE)
    fd = (descriptors.fixed_memfd if sealed else descriptors.memfd)(board_module.MEMFD, size)
    os.pwrite(fd, struct.pack("<8sQQQQ", MAGIC, VERSION, claimed, os.getpid(), time.monotonic_ns()) + name.encode(), 0)
    return fd


# --- acts ---------------------------------------------------------------------------------------------


def fifo_board(_argument: str) -> None:
    disguise("FIFO", board_module.MEMFD)


def file_board(_argument: str) -> None:
    disguise("NEW", board_module.MEMFD)


def _show_worker(board: Scoreboard) -> None:
    board.pool[PoolWord.PROCESSES] = board.pool[PoolWord.PLACES] = 1
    words = board.slot(0).words
    words[Word.PID], words[Word.STATE], words[Word.BATCH], words[Word.STARTED] = os.getpid(), 4, 1, time.monotonic_ns()
    words[Word.SHOWN_BATCH] = words[Word.TOLD_BATCH] = 1


def stack_of_file(path: str) -> None:
    """Show a board whose worker is this process, and the file of somebody else as the memfd of its stack."""
    catch()
    _fd, board = Scoreboard.create(8, "innocent", time.monotonic_ns())
    _show_worker(board)
    disguise(path, STACK_MEMFD)


def catch() -> None:
    for number in (ALL, MAIN):
        signal.signal(number, lambda *_: None)


def sequences(_argument: str) -> None:
    """Put control sequences into all texts."""
    evil = "\x1b]0;evil\x07\x1b[2J\x9b1A\u202egnp\nrow two\r"
    _fd, board = Scoreboard.create(8, evil, time.monotonic_ns())
    _show_worker(board)
    for number in range(2):
        board.name_function(number, evil)
    board.show_argument(0, 1, 0, evil)
    board.write_note(0, evil)
    board.add_failure(board_module.FailureRecord(time.monotonic_ns(), 0, 0, evil, evil))
    stack = descriptors.memfd(STACK_MEMFD, 0)

    def answer(*_: object) -> None:
        os.ftruncate(stack, 0)
        os.pwrite(stack, f"Stack (most recent call first):\n  File {evil}\n--\n".encode(), 0)

    signal.signal(ALL, answer)
    signal.signal(MAIN, signal.SIG_IGN)


def silent_worker(_argument: str) -> None:
    """Hold the lock of the stack, and never answer."""
    catch()
    _fd, board = Scoreboard.create(8, "silent", time.monotonic_ns())
    _show_worker(board)
    stack = descriptors.memfd(STACK_MEMFD, 1 << 50)
    fcntl.flock(os.open(f"/proc/self/fd/{stack}", os.O_RDWR), fcntl.LOCK_EX)


def no_handler(_argument: str) -> None:
    """Show the memfd of a stack without a handler: the signal would end the process."""
    _fd, board = Scoreboard.create(8, "bare", time.monotonic_ns())
    _show_worker(board)
    descriptors.memfd(STACK_MEMFD, 0)


def shrinking_board(_argument: str) -> None:
    os.ftruncate(forge("shrinks", 8, sealed=False), 100)


def unsealed_board(_argument: str) -> None:
    forge("unsealed", 8, sealed=False)


def huge_board(_argument: str) -> None:
    """Show a sparse board that fits its claim of very many workers."""
    board = forge("huge", 1 << 33)
    os.pwrite(board, struct.pack("<Q", 1 << 33) * 2, board_module.POOL_AT + 8 * PoolWord.PROCESSES)


def large_board(_argument: str) -> None:
    """Show a board of as many workers as `top` shows, all of which claim to exist."""
    fd = forge("large", 1 << 14)
    os.pwrite(fd, struct.pack("<Q", (1 << 64) - 1) * 2, board_module.POOL_AT + 8 * PoolWord.PROCESSES)


def lying_board(_argument: str) -> None:
    forge("lying", 8, claimed=1 << 33)


def noisy_board(seed: str) -> None:
    """Fill a board with noise."""
    fd, board = Scoreboard.create(8, "noise", time.monotonic_ns())
    with mmap.mmap(fd, 0) as memory:
        memory[48:] = random.Random(int(seed)).randbytes(len(memory) - 48)
    board.pool[PoolWord.ENDED] = 0


def odd_name(_argument: str) -> None:
    """Give this process a name that is not UTF-8."""
    _fd, board = Scoreboard.create(8, "odd", time.monotonic_ns())
    _show_worker(board)
    catch()
    descriptors.memfd(STACK_MEMFD, 0)
    libc.prctl(15, b"\xff\xfe: (x) R\n")


def deep_path(_argument: str) -> None:
    """Show a pool, and a file whose path is too long for readlink(2)."""
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for _ in range(30):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        os.dup2(os.open(".", os.O_RDONLY), 40)
        os.chdir("/")
    _show_worker(Scoreboard.create(8, "deep", time.monotonic_ns())[1])


def leased_board(_argument: str) -> None:
    """Hold a lease on a board, so that opening it waits."""
    fd = os.open(f"/proc/self/fd/{forge('leased', 8)}", os.O_RDONLY)
    for number in os.listdir("/proc/self/fd"):
        if int(number) > 2 and int(number) != fd:
            try:
                os.close(int(number))
            except OSError:
                continue
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def main() -> None:
    user, act, argument = sys.argv[1:4]
    keep: list[object] = []
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    libc.prctl(4, 1)  # dumpable again, so that the process may write to its uid_map
    acts: dict[str, Callable[[str], None]] = {name: one for name, one in globals().items() if callable(one)}
    keep.append(acts[act](argument))
    print(os.getpid(), flush=True)
    while sys.stdin.buffer.read(1):
        pass


if __name__ == "__main__":
    main()
