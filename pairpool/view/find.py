"""Find the pools of this machine from outside, without any help of their masters, which may be stuck.

- The scoreboard of a pool is a memfd that its master holds. /proc/PID/fd shows it by name. Opening it there maps the
  same memory, read-only, whatever the master does.
- A process that inherited or received the descriptor shows it too. The pid in the header of the scoreboard says which
  process owns the pool.
- Workers and zygotes have the scoreboard mapped. /proc/PID/maps names its inode, which leads to the master.
- The kernel lets users look at their own processes only, and root at all processes (ptrace(2), "access mode checking").
- The mapping here stays readable after the end of the pool, and does not delay the pool.

The processes are not trusted, because root can look at the processes of all users. A process can show any file with any
content. So a file is checked before it is opened (`foreign_memfds`), its size must be sealed, and its numbers have
bounds. A scoreboard that cannot be read is a `FoundPool` with a problem. It does not disturb the search for others.
"""

from __future__ import annotations

import itertools
import os
import pwd
import threading
import time
from dataclasses import dataclass, replace

from pairpool.linux import foreign_memfds, pidfds
from pairpool.linux.foreign_memfds import NotTrusted
from pairpool.scoreboard import snapshot
from pairpool.scoreboard.board import MEMFD, BoardVersionError, PoolWord, Scoreboard, owner_of
from pairpool.status import PoolStatus
from pairpool.view.text import clean

__all__ = ["FoundPool", "NoPool", "NotPermitted", "SeveralPools", "PoolObserver", "find", "pools"]

MAX_WORKERS = 1 << 14
"""A pool with more room for workers is not shown."""

MAX_POOLS_PER_PROCESS = 64
"""Scoreboards of one process that are looked at."""

MAPS_WITHIN_S = 2.0
"""Seconds for the kernel to list the mappings of a process. It waits for a page fault that does not end."""

_BOARD_LINK = f"/memfd:{MEMFD} (deleted)"


class NoPool(LookupError):
    """There is no such pool, or this version cannot read it. The text says which is the case."""


class NotPermitted(PermissionError):
    """The process belongs to another user."""


class SeveralPools(LookupError):
    """The name could mean several pools.

    Attributes:
        pools: the pools that it could mean.
    """

    def __init__(self, text: str, pools: list[FoundPool]) -> None:
        super().__init__(text)
        self.pools = pools


@dataclass(frozen=True, slots=True)
class FoundPool:
    """A pool that was open when the search ran.

    Attributes:
        pid: the process id of its master.
        name: the name of the pool; empty if it cannot be read.
        fd: the number of the scoreboard's descriptor in the master.
        file: device and inode of the scoreboard.
        problem: why the scoreboard cannot be read; empty if it can.
        worker: the number of the worker, if the search was for the pid of a worker.
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
    """Return all pools whose scoreboards this user may read, by pid and name, including pools of other versions."""
    found: list[FoundPool] = []
    for pid in _processes():
        try:
            found += _pools_of(pid)
        except OSError:
            continue  # the process has ended, belongs to another user, or cannot be looked at for another reason
    return sorted(found, key=lambda one: (one.pid, one.name))


def find(what: str) -> FoundPool:
    """Return the pool with this name, or with this pid of its master, worker or zygote, or with this `PID:NAME`.

    `PID:FD` means the pool whose scoreboard has this descriptor in the master. It distinguishes pools of one process
    with the same name. Raise `NoPool`, `SeveralPools` or `NotPermitted`, each with one line to show.
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
    found = [one for one in found if not one.problem] or found
    if len(found) > 1:
        raise SeveralPools(f"{what} means several pools", found)
    if found[0].problem:
        raise NoPool(f"process {found[0].pid}: {found[0].problem}")
    return found[0]


def _find_by_pid(pid: int) -> list[FoundPool]:
    """Return the pools of a process, or else the pools that it works for."""
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
        owner = foreign_memfds.users_of(pid)[1]
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
    """Return the pools whose master this process is."""
    found: list[FoundPool] = []
    for number in itertools.islice(foreign_memfds.numbers_named(pid, MEMFD), MAX_POOLS_PER_PROCESS):
        try:
            fd = foreign_memfds.open_memfd(pid, number, MEMFD)
        except FileNotFoundError:
            continue  # the descriptor was closed since it was listed
        except NotTrusted as error:
            pool: FoundPool | None = FoundPool(pid, "", number, (0, 0), f"not a scoreboard: {error}")
        else:
            try:
                pool = _read_header(pid, number, fd)
            finally:
                os.close(fd)
        if pool is not None and pool.file not in [one.file for one in found]:
            found.append(pool)
    return found


def _read_header(pid: int, number: int, fd: int) -> FoundPool | None:
    """Return the pool of a scoreboard; None if another process owns it, or if it is not a scoreboard."""
    status = os.fstat(fd)
    file = status.st_dev, status.st_ino
    try:
        if owner_of(fd) != pid:
            return None
    except BoardVersionError:
        return None  # the scoreboard is not ready yet, or it is another file of the same name
    try:
        board = Scoreboard.attach(fd, writable=False, max_slots=MAX_WORKERS)
    except BoardVersionError as error:
        return FoundPool(pid, "", number, file, str(error))
    try:
        return None if board.pool[PoolWord.ENDED] else FoundPool(pid, board.name, number, file)
    finally:
        board.close()


def _pools_around(pid: int) -> list[FoundPool]:
    """Return the pools whose scoreboard this process has mapped. It works for them, or was forked by their master."""
    files = _mapped_boards(pid)
    return [replace(one, worker=_worker_number(one, pid)) for one in pools() if one.file in files]


def _mapped_boards(pid: int) -> set[tuple[int, int]]:
    """Return device and inode of the scoreboards that a process has mapped.

    A thread reads the list, because the kernel waits while a page fault of the process does not end. A process can
    cause that with a file system of its own. The thread ends with this program.
    """
    files: set[tuple[int, int]] = set()
    errors: list[OSError] = []

    def read() -> None:
        try:
            with open(f"/proc/{pid}/maps", errors="replace") as lines:
                for line in lines:
                    if line.rstrip().endswith(_BOARD_LINK):
                        _addresses, _modes, _offset, device, inode = line.split()[:5]
                        major, minor = (int(part, 16) for part in device.split(":"))
                        files.add((os.makedev(major, minor), int(inode)))
        except OSError as error:
            errors.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(MAPS_WITHIN_S)
    if errors:
        raise errors[0]
    if reader.is_alive():
        raise NoPool(f"the kernel has not listed the mappings of process {pid} within {MAPS_WITHIN_S:g} s")
    return files


def _worker_number(found: FoundPool, pid: int) -> int | None:
    """Return the number of the worker with this pid; None if no worker has it."""
    if found.problem:
        return None
    with PoolObserver(found) as observer:
        return next((worker.number for worker in observer.status().workers if worker.pid == pid), None)


class PoolObserver:
    """Reads the status of a pool from outside. Close it, or use it in a `with` block.

    Args:
        found: the pool.

    Raises:
        NoPool: the pool has ended in the meantime.
        NotPermitted: the pool belongs to another user.
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
            fd = foreign_memfds.open_memfd(found.pid, found.fd, MEMFD)
        except (FileNotFoundError, ProcessLookupError, NotTrusted):
            raise NoPool(f"pool {found} has just ended") from None
        except PermissionError:
            raise NotPermitted(_not_yours(found.pid)) from None
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != found.file:
                raise NoPool(f"pool {found} has just ended")
            return Scoreboard.attach(fd, writable=False, max_slots=MAX_WORKERS)
        except BoardVersionError as error:
            raise NoPool(f"pool {found} cannot be read: {error}") from None
        finally:
            os.close(fd)

    def status(self) -> PoolStatus:
        """Return the current status, with a remark if the master is stopped. After the end, return the last status."""
        if self._last is not None:
            return self._last
        is_gone = pidfds.has_ended(self._pidfd)  # asked first, so that the status of an ended master is its last
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
        """Tell whether the master still has the scoreboard. execve(2) closes it, and a pool closes it at its end."""
        try:
            return foreign_memfds.is_named(self.found.pid, self.found.fd, MEMFD)
        except (FileNotFoundError, ProcessLookupError):
            return bool(self._board.pool[PoolWord.ENDED]) or pidfds.has_ended(self._pidfd)

    def close(self) -> None:
        """Stop reading the pool."""
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
