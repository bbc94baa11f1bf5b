"""The assassin: a process of its own that signals the workers of one pool, one signal for each `KILL` on its stdin.

It learns the workers' pids from the pool's status board, which it opens through /proc as any outsider can, and
signals only through a pidfd, after it has seen that the process behind it is a child of the zygote (of the master
where there is no zygote). Everything goes to stdout as one line of JSON before the signal is sent. At `STOP` it
does what is still due, and ends; it cannot wait for the end of its stdin, which workers may have inherited.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import select
import signal
import sys
import time
from collections import deque
from typing import NamedTuple

from pairpool.linux import pidfds, process_tree
from pairpool.scoreboard.board import Scoreboard, Word

__all__ = ["KILL", "READY", "STOP", "main"]

PATIENCE = 20.0
"""Seconds after which an order is given up for want of a worker."""

LONGEST_STOP = 0.1

KILL, STOP = b"k", b"s"

READY = "ready"
"""The first line of its output."""


class Victim(NamedTuple):
    """A process that may be signalled, and the pidfd that means it and no other."""

    pid: int
    pidfd: int


def open_board(master: int) -> Scoreboard | None:
    """The status board of the pool of a process; None if there is none (yet)."""
    try:
        for name in os.listdir(f"/proc/{master}/fd"):
            path = f"/proc/{master}/fd/{name}"
            try:
                if os.readlink(path).startswith("/memfd:pairpool-board"):
                    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                    try:
                        return Scoreboard.attach(fd)
                    finally:
                        os.close(fd)
            except FileNotFoundError:
                continue
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def parent_and_state(pid: int) -> tuple[int, str]:
    """The parent of a process and its state as in /proc; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, ""
    return int(fields[1]), fields[0]


def board_inode(pid: int) -> int | None:
    """The inode of the status board that a process has mapped; None if it has none."""
    try:
        with open(f"/proc/{pid}/maps") as file:
            for line in file:
                if "memfd:pairpool-board" in line:
                    return int(line.split()[4])
    except OSError:
        pass  # it is gone, or another user's
    return None


class Assassin:
    """One campaign's.

    Args:
        master: pid of the process that has the pool.
        known: children of the master that are none of the pool's.
        workers: places on the board to look at.
    """

    def __init__(self, master: int, known: set[int], workers: int, seed: int, *, direct: bool) -> None:
        self.master = master
        self.known = known | {os.getpid()}
        self.workers = workers
        self.direct = direct
        self.random = random.Random(seed)
        self.board: Scoreboard | None = None
        self.stopped: list[tuple[float, Victim]] = []
        self.struck: deque[int] = deque(maxlen=256)

    def serve(self, orders: int) -> None:
        """Do one deed for each `KILL` that comes, until `STOP`."""
        poller = select.poll()
        poller.register(orders, select.POLLIN)
        while True:
            rest = self._wake_stopped()
            if not poller.poll(None if rest is None else rest * 1000):
                continue
            due = os.read(orders, 4096)
            for _ in range(due.count(KILL)):
                self._do()
            if not due or STOP in due:
                break
        while (rest := self._wake_stopped()) is not None:
            time.sleep(rest)

    def _wake_stopped(self) -> float | None:
        """Continue those whose time has come; the seconds until the next one's."""
        now = time.monotonic()
        while self.stopped and self.stopped[0][0] <= now:
            target = heapq.heappop(self.stopped)[1]
            self._send(target, signal.SIGCONT)
            os.close(target.pidfd)
        return self.stopped[0][0] - now if self.stopped else None

    def _do(self) -> None:
        draw = self.random.random()
        number = signal.SIGKILL if draw < 0.55 else signal.SIGTERM if draw < 0.75 else signal.SIGSTOP
        at_zygote = draw > 0.97 and not self.direct
        stop = self.random.uniform(0.001, LONGEST_STOP)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and os.getppid() == self.master:
            self._wake_stopped()
            if at_zygote:
                if self._kill_zygote():
                    return
            else:
                target = self._worker()
                if target is not None:
                    self._strike(target, number, stop)
                    return
            time.sleep(0.001)  # workers come and go without a sign to outsiders
        self._log(signal="none", pid=0)

    def _strike(self, target: Victim, number: signal.Signals, stop: float) -> None:
        sent = self._send(target, number)
        if number == signal.SIGSTOP and sent:
            heapq.heappush(self.stopped, (time.monotonic() + stop, target))
        else:
            self.struck.append(target.pid)  # it is as good as dead
            os.close(target.pidfd)

    # --- finding them -------------------------------------------------------------------------------

    def _take(self, pid: int, parent: int | None = None) -> Victim | None:
        """A pidfd of `pid` if that lives and is a child of `parent`, or of None, a process of the pool.

        The pidfd comes first, then the look.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, OSError):
            return None
        found, state = parent_and_state(pid)
        is_right = pid in self._zygotes() if parent is None else found == parent
        if is_right and state not in ("Z", "X") and not pidfds.has_ended(pidfd):
            return Victim(pid, pidfd)
        os.close(pidfd)
        return None

    def _zygotes(self) -> list[int]:
        """The parents of workers that have the pool's board mapped: children of the master, or of a zygote before."""
        inode = board_inode(self.master)
        parents = {parent_and_state(pid)[0] for pid in self._pids()} - {0, 1, self.master} - self.known
        return [pid for pid in sorted(parents) if inode is not None and board_inode(pid) == inode]

    def _pids(self) -> set[int]:
        """The pids on the board; some may have ended."""
        self.board = self.board or open_board(self.master)
        if self.board is None:
            return set()
        board = self.board
        return {board.slot(number).words[Word.PID] for number in range(self.workers)} - {0}

    def _worker(self) -> Victim | None:
        listed = self._pids()
        parents = [self.master] if self.direct else self._zygotes()
        found = [(pid, parent) for parent in parents for pid in process_tree.children_of(parent) if pid in listed]
        found = [one for one in found if one[0] not in self.known and one[0] not in self.struck]
        return self._take(*self.random.choice(sorted(found))) if found else None

    def _kill_zygote(self) -> bool:
        """SIGKILL a zygote that has workers; it is stopped first, so that the list of its children is complete."""
        for pid in self._zygotes():
            target = self._take(pid)
            if target is None:
                continue
            try:
                if not self._pids() & set(process_tree.children_of(pid)):
                    continue
                pidfds.send_signal(target.pidfd, signal.SIGSTOP)
                while parent_and_state(pid)[1] not in ("T", "Z", "X", ""):
                    os.sched_yield()
                self._send(target, signal.SIGKILL, children=process_tree.children_of(pid))
                return True
            finally:
                os.close(target.pidfd)
        return False

    # --- signals ------------------------------------------------------------------------------------

    def _send(self, target: Victim, number: signal.Signals, children: list[int] | None = None) -> bool:
        """Log, then send; whether the process was still there."""
        self._log(signal=number.name, pid=target.pid, children=children)
        return pidfds.send_signal(target.pidfd, number)

    def _log(self, **entry: object) -> None:
        print(json.dumps({"time": time.monotonic(), **entry}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--master", type=int, required=True)
    parser.add_argument("--known", type=int, nargs="*", default=[])
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--direct", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the master tells when it is over
    assassin = Assassin(options.master, set(options.known), options.workers, options.seed, direct=options.direct)
    process_tree.die_with_parent(options.master)
    print(READY, flush=True)
    assassin.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main()
