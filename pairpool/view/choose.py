"""Choose the pool of a command, and turn errors into a message and an exit status."""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
from collections.abc import Callable

from rich.cells import cell_len
from rich.console import Console

from pairpool.view.find import FoundPool, NoPool, NotPermitted, PoolObserver, SeveralPools, find, pools
from pairpool.view.text import clean

__all__ = ["NOT_PERMITTED", "NO_POOL", "OK", "PIPE_CLOSED", "USAGE", "Output", "choose", "conclude"]

OK = 0
NO_POOL = 1
USAGE = 2
NOT_PERMITTED = 3
PIPE_CLOSED = 141
"""The status that a shell shows if SIGPIPE ends a program."""

_READER_GONE = (errno.EPIPE, errno.EIO)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Output(Console):
    """A console on standard output. It leaves a closed pipe to `conclude`, and does not colour texts by guessing.

    Attributes:
        is_ascii: whether only ASCII signs can be shown.
    """

    def __init__(self) -> None:
        super().__init__(file=sys.stdout, highlight=False)
        self.is_ascii = not self.encoding.startswith("utf")

    def on_broken_pipe(self) -> None:
        """Raise the error that rich (from 13.8 on) is handling when it calls this."""
        raise


def conclude(command: str, action: Callable[[], int]) -> int:
    """Run a command and return its exit status. If the command fails, print one line on stderr."""
    if sys.stdout is None:
        return PIPE_CLOSED
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names may have letters that its encoding lacks
    try:
        try:
            return action()
        finally:
            sys.stdout.flush()
    except NoPool as error:
        status = NO_POOL
        text = str(error)
    except NotPermitted as error:
        status = NOT_PERMITTED
        text = str(error)
    except SeveralPools as error:
        status = USAGE
        text = str(error)
        for found in error.pools:
            text += f"\n  pairpool {command} {_shortest(found, error.pools)}  # {clean(found.name)}"
    except OSError as error:
        if error.errno not in (*_READER_GONE, *_DISK_FULL):
            raise
        # The buffered text must not raise again when the interpreter ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if error.errno in _READER_GONE:
            return PIPE_CLOSED
        status = USAGE
        text = f"the output cannot be written: {error.strerror}"
    print(f"pairpool {command}: {text}", file=sys.stderr)
    return status


def choose(what: str | None, *, may_ask: bool) -> FoundPool:
    """Return the named pool, or without a name the only pool. If there are several, let the user choose from a list.

    Raise the errors of `find`, and `SeveralPools` if no user can be asked.
    """
    may_ask = may_ask and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if what is not None:
        try:
            return find(what)
        except SeveralPools as error:
            if not may_ask:
                raise
            return _ask(error.pools)
    everything = pools()
    readable = [one for one in everything if not one.problem]
    for one in everything:
        if one.problem:
            print(f"process {one.pid} is left out: {one.problem}", file=sys.stderr)
    if not readable:
        raise NoPool("no pool that you may look at is open on this machine")
    if len(readable) == 1:
        return readable[0]
    if not may_ask:
        raise SeveralPools("there are several pools, so say which", readable)
    return _ask(readable)


def _shortest(found: FoundPool, among: list[FoundPool]) -> str:
    """Return the shortest name that means only this pool, quoted for a shell."""
    if sum(one.pid == found.pid for one in among) == 1:
        return str(found.pid)
    if sum((one.pid, one.name) == (found.pid, found.name) for one in among) == 1 and found.name.isprintable():
        return shlex.quote(f"{found.pid}:{found.name}")
    return f"{found.pid}:{found.fd}"


def _ask(among: list[FoundPool]) -> FoundPool:
    """Let the user choose a pool by its number."""
    width = max(cell_len(clean(one.name)) for one in among)
    for number, found in enumerate(among, 1):
        name = clean(found.name)
        print(f"{number:3}  {name}{' ' * (width - cell_len(name))}  {_summary(found)}")
    while True:
        try:
            answer = input(f"which one? [1-{len(among)}, q] ").strip()
        except EOFError:
            answer = "q"
        if answer.isdecimal() and 1 <= int(answer) <= len(among):
            return among[int(answer) - 1]
        if answer in ("q", ""):
            raise SeveralPools("none was chosen", among)


def _summary(found: FoundPool) -> str:
    try:
        with PoolObserver(found) as observer:
            status = observer.status()
    except NoPool:
        return f"pid {found.pid}, has just ended"
    text = f"pid {found.pid}, {status.busy} of {status.processes} workers busy, {status.done} done"
    return f"{text} · {status.remark}" if status.remark else text
