"""The killer: a process of its own that signals the workers of one pool, one signal for each `KILL` on its stdin.

1. The killer finds the pool's scoreboard through /proc, as any other process can, and reads the pids of the workers.
2. It opens a pidfd of the victim. Then it checks that the process is a child of the zygote, or of the master if there
   is no zygote. So a pid that the kernel has given to another process is never signalled.
3. It writes one line of JSON to stdout, and then sends the signal through the pidfd.
4. At `STOP` it finishes the kills that are due, and ends. It cannot wait for the end of its stdin instead, because
   workers may have inherited the other end.
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

from pairpool.linux import foreign_memfds, pidfds, process_tree
from pairpool.scoreboard.board import MEMFD, Scoreboard, Word

__all__ = ["KILL", "READY", "STOP", "main"]

VICTIM_LIMIT_S = 20.0
"""Seconds after which a kill is given up because there is no worker."""

MAX_STOP_S = 0.1
"""Seconds for which a worker is stopped by SIGSTOP, at most."""

VICTIM_INTERVAL_S = 0.001
"""Seconds between two searches for a victim. Another process gets no event when a worker starts."""

SIGKILL_SHARE, SIGTERM_SHARE = 0.55, 0.20
"""The probabilities of these signals. The rest is SIGSTOP."""

ZYGOTE_SHARE = 0.03
"""The probability that a kill hits the zygote instead of a worker."""

PIDS_KEPT = 256
"""Killed workers that are remembered, so that a worker is not chosen again before it has ended."""

KILL, STOP = b"k", b"s"

READY = "ready"
"""The first line of the output."""


class Victim(NamedTuple):
    """A process that may be signalled, with its pidfd."""

    pid: int
    pidfd: int


def open_scoreboard(master: int) -> Scoreboard | None:
    """Return the scoreboard of the pool of a process; None if there is none yet."""
    try:
        fd = foreign_memfds.find_memfd(master, MEMFD, writable=False)
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fd < 0:
        return None
    try:
        return Scoreboard.attach(fd, writable=False)
    finally:
        os.close(fd)


def parent_and_state(pid: int) -> tuple[int, str]:
    """Return the parent of a process and its state letter, as in proc(5); `(0, "")` if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, ""
    return int(fields[1]), fields[0]


def scoreboard_inode(pid: int) -> int | None:
    """Return the inode of the scoreboard that a process has mapped; None if it has mapped none."""
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as file:
            for line in file:
                if f"memfd:{MEMFD}" in line:
                    return int(line.split()[4])
    except OSError:
        pass  # the process is gone, or belongs to another user
    return None


class Killer:
    """The killer of one campaign.

    Args:
        master: pid of the process that opened the pool.
        known: children of the master that do not belong to the pool.
        workers: slots of the scoreboard to look at.
        seed: seed of the choice of victims and signals.
        direct: whether the pool has no zygote.
    """

    def __init__(self, master: int, known: set[int], workers: int, seed: int, *, direct: bool) -> None:
        self._master = master
        self._known = known | {os.getpid()}
        self._workers = workers
        self._direct = direct
        self._random = random.Random(seed)
        self._scoreboard: Scoreboard | None = None
        self._stopped: list[tuple[float, Victim]] = []  # with the time at which each is continued
        self._killed: deque[int] = deque(maxlen=PIDS_KEPT)

    def serve(self, commands: int) -> None:
        """Kill once for each `KILL` that arrives on a descriptor, until `STOP`."""
        poller = select.poll()
        poller.register(commands, select.POLLIN)
        while True:
            rest = self._wake_stopped()
            if not poller.poll(None if rest is None else rest * 1000):
                continue
            due = os.read(commands, 4096)
            for _ in range(due.count(KILL)):
                self._kill_once()
            if not due or STOP in due:
                break
        while (rest := self._wake_stopped()) is not None:
            time.sleep(rest)

    def _wake_stopped(self) -> float | None:
        """Continue the stopped workers whose time has come.

        Return the seconds until the next one; None if no worker is stopped.
        """
        now = time.monotonic()
        while self._stopped and self._stopped[0][0] <= now:
            target = heapq.heappop(self._stopped)[1]
            self._send(target, signal.SIGCONT)
            os.close(target.pidfd)
        return self._stopped[0][0] - now if self._stopped else None

    def _kill_once(self) -> None:
        draw = self._random.random()
        if draw < SIGKILL_SHARE:
            number = signal.SIGKILL
        else:
            number = signal.SIGTERM if draw < SIGKILL_SHARE + SIGTERM_SHARE else signal.SIGSTOP
        at_zygote = draw > 1 - ZYGOTE_SHARE and not self._direct
        stop_s = self._random.uniform(0.001, MAX_STOP_S)
        deadline = time.monotonic() + VICTIM_LIMIT_S
        while time.monotonic() < deadline and os.getppid() == self._master:
            self._wake_stopped()
            if at_zygote:
                if self._kill_zygote():
                    return
            else:
                target = self._choose_worker()
                if target is not None:
                    self._signal_worker(target, number, stop_s)
                    return
            time.sleep(VICTIM_INTERVAL_S)
        self._log(signal="none", pid=0)

    def _signal_worker(self, target: Victim, number: signal.Signals, stop_s: float) -> None:
        sent = self._send(target, number)
        if number == signal.SIGSTOP and sent:
            heapq.heappush(self._stopped, (time.monotonic() + stop_s, target))
        else:
            self._killed.append(target.pid)
            os.close(target.pidfd)

    # --- choose a victim ----------------------------------------------------------------------------

    def _take(self, pid: int, parent: int | None = None) -> Victim | None:
        """Return a process as a victim; None if it has ended or does not belong to the pool.

        The pidfd is opened first. So the checks after that are about the process that the pidfd means.

        Args:
            parent: the process whose child it must be; None if it must be a zygote of the pool.
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
        """Return the parents of workers that have mapped the pool's scoreboard.

        A zygote is a child of the master, or of an earlier zygote.
        """
        inode = scoreboard_inode(self._master)
        parents = {parent_and_state(pid)[0] for pid in self._pids()} - {0, 1, self._master} - self._known
        return [pid for pid in sorted(parents) if inode is not None and scoreboard_inode(pid) == inode]

    def _pids(self) -> set[int]:
        """Return the pids on the scoreboard. Some of these processes may have ended."""
        self._scoreboard = self._scoreboard or open_scoreboard(self._master)
        if self._scoreboard is None:
            return set()
        scoreboard = self._scoreboard
        return {scoreboard.slot(number).words[Word.PID] for number in range(self._workers)} - {0}

    def _choose_worker(self) -> Victim | None:
        """Return a worker at random; None if there is none."""
        listed = self._pids()
        parents = [self._master] if self._direct else self._zygotes()
        found = [(pid, parent) for parent in parents for pid in process_tree.children_of(parent) if pid in listed]
        found = [one for one in found if one[0] not in self._known and one[0] not in self._killed]
        return self._take(*self._random.choice(sorted(found))) if found else None

    def _kill_zygote(self) -> bool:
        """Kill a zygote that has workers. Return False if there is none.

        The zygote is stopped first, so that the logged list of its children is complete.
        """
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
        """Log a signal, then send it. Return whether the process still existed."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the master ends this process
    killer = Killer(options.master, set(options.known), options.workers, options.seed, direct=options.direct)
    process_tree.die_with_parent(options.master)
    print(READY, flush=True)
    killer.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main()
