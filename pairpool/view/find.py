"""Pools of this machine, found from outside: no message, no cooperation of their masters, which may be stuck.

- A pool's status board is a memfd that its master holds: /proc/PID/fd shows it by name, and opening it there maps the
  same memory, read-only, whatever the master is at.
- Whoever inherited or was handed the descriptor shows it, too: the pid in the board's header says whose it is.
- Workers and zygotes have it mapped: /proc/PID/maps names the inode, by which their master's is found.
- The kernel lets a user look at the user's own processes (ptrace(2), "access mode checking"); root at all.
- What is mapped here stays readable when the pool has ended, and delays nothing there.
"""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import dataclass, replace

from pairpool.linux import pidfds
from pairpool.scoreboard import snapshot
from pairpool.scoreboard.board import MEMFD, BoardVersionError, PoolWord, Scoreboard, owner_of
from pairpool.status import PoolStatus
from pairpool.view.text import clean

__all__ = ["FoundPool", "NoPool", "NotPermitted", "SeveralPools", "PoolObserver", "find", "pools"]

_BOARD_LINK = f"/memfd:{MEMFD} (deleted)"


class NoPool(LookupError):
    """There is no such pool, or none that this version can read; the text says which is the case."""


class NotPermitted(PermissionError):
    """The process belongs to somebody else."""


class SeveralPools(LookupError):
    """It could mean several pools.

    Attributes:
        pools: these.
    """

    def __init__(self, text: str, pools: list[FoundPool]) -> None:
        super().__init__(text)
        self.pools = pools


@dataclass(frozen=True, slots=True)
class FoundPool:
    """A pool that was there when it was looked for.

    Attributes:
        pid: of its master.
        name: its name; empty where it cannot be read.
        fd: the number of the board's descriptor in the master.
        file: device and inode of the board.
        problem: why it cannot be read; else empty.
        worker: number of the worker that was asked for by its pid, if it was one.
    """

    pid: int
    name: str
    fd: int
    file: tuple[int, int]
    problem: str = ""
    worker: int | None = None

    def __str__(self) -> str:
        return f"{clean(self.name) or '?'} (pid {self.pid})"


def pools() -> list[FoundPool]:
    """All pools whose boards this user may read, by pid and name, those of other versions included."""
    found: list[FoundPool] = []
    for pid in _processes():
        try:
            found += _pools_of(pid)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is somebody else's
    return sorted(found, key=lambda one: (one.pid, one.name))


def find(what: str) -> FoundPool:
    """The pool that is meant by a name, the pid of its master, of a worker or of a zygote, or `PID:NAME`.

    `PID:FD` is the one whose board the master has as this descriptor, for pools of one process and the same name.
    Raises `NoPool`, `SeveralPools` or `NotPermitted`, each with one line to show.
    """
    if what.isdigit() and os.path.exists(f"/proc/{what}/stat"):
        return _one(f"process {what}", _find_by_pid(int(what)))
    everything = pools()
    pid, _, name = what.partition(":")
    named = [one for one in everything if not one.problem]
    matching = [one for one in named if one.name == what or (one.name == name and str(one.pid) == pid)]
    matching = matching or [one for one in everything if what == f"{one.pid}:{one.fd}"]
    if matching:
        return _one(f"{what!r}", matching)
    if what.isdigit():
        raise NoPool(f"there is no process {what}")
    there = ", ".join(map(str, everything)) or "none that you may look at"
    raise NoPool(f"no pool is called {what!r}; there is: {there}")


def _one(what: str, found: list[FoundPool]) -> FoundPool:
    if len(found) > 1:
        raise SeveralPools(f"{what} means several pools", found)
    if found[0].problem:
        raise NoPool(f"process {found[0].pid}: {found[0].problem}")
    return found[0]


def _find_by_pid(pid: int) -> list[FoundPool]:
    """The pools that a process has, or else the one that it works for."""
    try:
        found = _pools_of(pid) or _pools_around(pid)
    except PermissionError:
        raise NotPermitted(_not_yours(pid)) from None
    except (FileNotFoundError, ProcessLookupError):
        raise NoPool(f"process {pid} has just ended") from None
    if not found:
        raise NoPool(f"process {pid} has no pool, and works for none")
    return found


def _not_yours(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/status") as file:
            owner = next(int(line.split()[2]) for line in file if line.startswith("Uid:"))
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid} has just ended"
    if owner == os.geteuid():
        return f"the kernel does not let you look at process {pid}, though it is yours: it is protected"
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = "without a name"
    return f"process {pid} belongs to another user ({owner}, {name}): the kernel does not let you look"


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:
        raise NoPool("there is no /proc here to look for pools in") from None


def _pools_of(pid: int) -> list[FoundPool]:
    """The pools whose master this process is."""
    found: list[FoundPool] = []
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        try:
            if os.readlink(f"{directory}/{name}") != _BOARD_LINK:
                continue
            fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # closed since it was listed
        try:
            pool = _look(pid, int(name), fd)
        finally:
            os.close(fd)
        if pool is not None and pool.file not in [one.file for one in found]:
            found.append(pool)
    return found


def _look(pid: int, number: int, fd: int) -> FoundPool | None:
    """What a board says of itself; None if it is another process's, or no board."""
    status = os.fstat(fd)
    file = status.st_dev, status.st_ino
    try:
        if owner_of(fd) != pid:
            return None
    except BoardVersionError:
        return None  # not ready yet, or something else of the same name
    try:
        board = Scoreboard.attach(fd, writable=False)
    except BoardVersionError as error:
        return FoundPool(pid, "", number, file, str(error))
    try:
        return None if board.pool[PoolWord.ENDED] else FoundPool(pid, board.name, number, file)
    finally:
        board.close()


def _pools_around(pid: int) -> list[FoundPool]:
    """The pools whose board this process has mapped: it works for one, or was forked by its master."""
    files = set()
    with open(f"/proc/{pid}/maps") as lines:
        for line in lines:
            if line.rstrip().endswith(_BOARD_LINK):
                _addresses, _modes, _offset, device, inode = line.split()[:5]
                major, minor = (int(part, 16) for part in device.split(":"))
                files.add((os.makedev(major, minor), int(inode)))
    return [replace(one, worker=_worker_number(one, pid)) for one in pools() if one.file in files]


def _worker_number(found: FoundPool, pid: int) -> int | None:
    """The worker of the pool that has this pid, if one has."""
    if found.problem:
        return None
    with PoolObserver(found) as sight:
        return next((worker.number for worker in sight.status().workers if worker.pid == pid), None)


class PoolObserver:
    """A pool that is looked at from outside; to be closed, or used in a `with` block.

    Args:
        found: the pool. Raises `NoPool` if it has ended meanwhile, and `NotPermitted`.
    """

    def __init__(self, found: FoundPool) -> None:
        self.found = found
        self._last: PoolStatus | None = None
        try:
            pidfd = os.pidfd_open(found.pid)
        except ProcessLookupError:
            raise NoPool(f"pool {found} has just ended") from None
        try:
            self._board = self._map()
        except BaseException:
            os.close(pidfd)
            raise
        self._pidfd = pidfd

    def _map(self) -> Scoreboard:
        found = self.found
        try:
            fd = os.open(f"/proc/{found.pid}/fd/{found.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise NoPool(f"pool {found} has just ended") from None
        except PermissionError:
            raise NotPermitted(_not_yours(found.pid)) from None
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != found.file:
                raise NoPool(f"pool {found} has just ended")
            return Scoreboard.attach(fd, writable=False)
        finally:
            os.close(fd)

    def status(self) -> PoolStatus:
        """What its board shows now, with a remark if the master is stopped; from its end on, always the last status."""
        if self._last is not None:
            return self._last
        is_gone = pidfds.has_ended(self._pidfd)  # asked first: what the board says then is the last that it will say
        status = snapshot.take(self._board, time.monotonic_ns())
        if self._board.pool[PoolWord.ENDED]:
            self._last = replace(status, state="TERMINATE", workers=())
        elif is_gone:
            how = _how_it_ended(self._pidfd)
            self._last = replace(status, state="TERMINATE", workers=(), remark=f"the master is gone: {how}")
        elif not self._is_held():
            remark = "the master has become another program"
            self._last = replace(status, state="TERMINATE", workers=(), remark=remark)
        else:
            return replace(status, remark=_remark_on(self.found.pid))
        return self._last

    def _is_held(self) -> bool:
        """Whether the master still has the board, which execve(2) closes and a pool only when it has ended."""
        try:
            return os.readlink(f"/proc/{self.found.pid}/fd/{self.found.fd}") == _BOARD_LINK
        except (FileNotFoundError, ProcessLookupError):
            return bool(self._board.pool[PoolWord.ENDED]) or pidfds.has_ended(self._pidfd)

    def close(self) -> None:
        """Let go of the pool."""
        self._board.close()
        os.close(self._pidfd)

    def __enter__(self) -> PoolObserver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _how_it_ended(pidfd: int) -> str:
    status = pidfds.exit_status(pidfd, 0.0)
    return "it ended or was killed" if status is None else pidfds.describe_status(status)


def _remark_on(pid: int) -> str:
    state = pidfds.state_of(pid)
    if state == "T":
        return "the master is stopped (SIGSTOP, or Ctrl-Z in its terminal)"
    return "the master is held by a debugger" if state == "t" else ""
