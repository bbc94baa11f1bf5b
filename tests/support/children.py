"""Run code in child processes, in tests that must not change or end the test's process."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pairpool.linux import forking, pidfds
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import TextPacket
from pairpool.transport.spawning import Body, Spawned, fork_worker
from tests.support.waiting import PATIENCE

__all__ = ["forked", "in_child", "sigchld_ignored", "until_eof", "wait_for_end"]

T = TypeVar("T")


def in_child(body: Callable[[], T]) -> T:
    """Call `body` in a forked child, wait for the child, and return the result.

    Raises:
        AssertionError: `body` raised. The text is the child's traceback.
    """
    reading, writing = os.pipe()
    pid = forking.fork()
    if pid == 0:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                outcome: tuple[bool, object] = True, body()
            except BaseException:
                outcome = False, traceback.format_exc()
            with os.fdopen(writing, "wb") as file:
                file.write(pickle.dumps(outcome))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        message = file.read()
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # SIGCHLD is ignored
    assert message, "the child ended without an outcome"
    good, value = pickle.loads(message)
    assert good, f"in the child:\n{value}"
    return value  # type: ignore[no-any-return]


@contextmanager
def forked(body: Body) -> Iterator[Spawned]:
    """Fork a child by `fork_worker`. At the end, kill the child if it still runs, and wait for it."""
    child = fork_worker(body, 0, 1)
    try:
        yield child
    finally:
        child.near.close()
        child.far.close()
        pidfds.send_signal(child.pidfd.fileno(), signal.SIGKILL)
        pidfds.wait_ended(child.pidfd.fileno(), PATIENCE)
        child.pidfd.close()
        try:
            os.waitpid(child.pid, 0)
        except ChildProcessError:
            pass  # SIGCHLD is ignored


@contextmanager
def sigchld_ignored() -> Iterator[None]:
    """Ignore SIGCHLD, as a zygote does: ended children leave no zombie and no status."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def wait_for_end(pidfd: int) -> bool:
    """Return whether the process ends within `PATIENCE` seconds."""
    return pidfds.wait_ended(pidfd, PATIENCE)


def until_eof(channel: Channel, _slot: int, _serial: int) -> int:
    """Report that this child runs, and stay until the test closes the channel."""
    channel.send(TextPacket())
    try:
        channel.receive()
    except Lost:
        pass
    return 0
