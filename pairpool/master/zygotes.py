"""The master's side of a zygote that is a process of its own. `fresh_zygote.py` has the one in a fresh interpreter.

    supervisor ── request, reaped, want_spare ──► Zygote ── control pair ──► zygote process
               ◄── receive: Spawned, SpawnFailed ──┘

The master never waits for the zygote to read: a packet that finds no room stays in `_outbox` until `flush`.
The code that runs in the zygote is passed in, because the master's side does not import the child's code.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from pairpool.linux import children, descriptors, pidfds, process_tree
from pairpool.linux.sigchld import sigchld
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import (
    HelloPacket,
    Packet,
    ReapedPacket,
    SparePacket,
    SpareRequestPacket,
    SpawnedPacket,
    SpawnFailedPacket,
    SpawnPacket,
)
from pairpool.transport.spawning import Body, Spawned, SpawnFailed
from pairpool.transport.wire import ProtocolError

__all__ = ["ForkedZygote", "Zygote", "serials"]

serials = itertools.count(1)
"""One count for all zygotes of this process: no report about a worker of an old zygote can mean one of a new zygote."""

CLOSE_PATIENCE_S = 10.0
"""Seconds that a zygote has to end before it is killed."""

CONTINUE_EVERY_S = 0.1
"""Seconds after which a zygote that has not ended is continued again, in case another process has stopped it."""


class Zygote(Protocol):
    """The source of workers."""

    @property
    def was_ready(self) -> bool:
        """Whether it has been able to fork."""

    @property
    def main_names(self) -> frozenset[str] | None:
        """The names in the `__main__` of workers if they have imported it anew; None if they inherit it."""

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, and its workers with it."""

    def request(self, slot: int) -> None:
        """Ask for a worker. `receive` returns it later, with a serial number that no other worker has."""

    def receive(self) -> Spawned | SpawnFailed | None:
        """Return the next answer to a request, or None if none is there. Raise `Lost` if the zygote is gone."""

    def flush(self) -> bool:
        """Send the packets that there was no room for; return False if some still wait."""

    def wait(self, timeout: float | None) -> None:
        """Wait until `receive` has something or the zygote has ended."""

    def end_descendants(self, serial: int) -> None:
        """Kill what a worker has started, if that cannot be found after the death of the worker."""

    def reaped(self, serial: int) -> None:
        """Tell that a worker has ended, so that the processes that it left are ended too."""

    def want_spare(self) -> None:
        """Have a second zygote ready, which can take the place of this one."""

    def take_spare(self) -> Zygote | None:
        """Return the spare, which the caller then owns; None if there is none."""

    def wake(self) -> None:
        """Continue the zygote if another process has stopped it."""

    def watched(self) -> list[int]:
        """Return the descriptors that become readable when an answer has come or the zygote has ended."""

    def close(self, patience: float = CLOSE_PATIENCE_S) -> None:
        """End the zygote with all its workers, and close its descriptors."""


class ZygoteProcess:
    """The master's side of a zygote that is a process of its own.

    Args:
        control: the master's end of the control pair.
        pid: of the zygote.
        pidfd: of the zygote; opened here if it is negative.
        is_fresh: whether the zygote has imported the program's main module anew.
        main_names: the names in its `__main__`, if they are known already.
    """

    def __init__(
        self,
        control: Channel,
        pid: int,
        pidfd: int = -1,
        *,
        is_fresh: bool = False,
        main_names: frozenset[str] | None = None,
    ) -> None:
        self._control = control
        self.pid = pid
        self._is_fresh = is_fresh
        self._spare: ZygoteProcess | None = None
        self._is_spare_due = False
        self._outbox: deque[Packet] = deque()
        try:
            self.pidfd = descriptors.Descriptor(os.pidfd_open(pid) if pidfd < 0 else pidfd)
        except BaseException:
            control.close()
            children.kill_and_reap(pid)
            raise
        self.main_names = main_names
        self.was_ready = False
        descriptors.own(control)
        descriptors.own(self.pidfd)

    @property
    def is_gone(self) -> bool:
        return self.pidfd.fileno() < 0 or pidfds.has_ended(self.pidfd.fileno())

    def request(self, slot: int) -> None:
        self._post(SpawnPacket(next(serials), slot))

    def wake(self) -> None:
        if pidfds.state_of(self.pid) == "T":
            pidfds.send_signal(self.pidfd.fileno(), signal.SIGCONT)

    def end_descendants(self, serial: int) -> None:
        """Do nothing: the zygote adopts them when the worker has ended."""

    def reaped(self, serial: int) -> None:
        try:
            self._post(ReapedPacket(serial))
        except Lost:
            pass  # the zygote died with its workers, and `receive` raises
        except OSError:
            pass  # there is no memory for a packet: the next report ends what this worker left, too

    def _post(self, packet: Packet) -> None:
        """Send a packet, or keep it until there is room: the zygote may wait until the master reads its answers."""
        if self._outbox or not self._control.send(packet, wait=False):
            self._outbox.append(packet)

    def flush(self) -> bool:
        try:
            while self._outbox and self._control.send(self._outbox[0], wait=False):
                self._outbox.popleft()
        except (Lost, OSError):
            pass  # the zygote is gone, and `receive` raises; or there is no memory now
        return not self._outbox

    def want_spare(self) -> None:
        """Have the zygote fork a spare of itself, unless there is one or one is on its way."""
        if self._spare is not None and self._spare.is_gone:
            self._spare.close()
            self._spare = None
        if self._spare is None and not self._is_spare_due and self.was_ready:
            try:
                self._post(SpareRequestPacket())
            except (Lost, OSError):
                return  # the zygote is gone, and `receive` raises; or there is no memory now, and a later call tries
            self._is_spare_due = True

    def take_spare(self) -> Zygote | None:
        spare, self._spare = self._spare, None
        if spare is not None and spare.is_gone:
            spare.close()
            return None
        return spare

    def receive(self) -> Spawned | SpawnFailed | None:
        if self._outbox:
            self.flush()
        while True:
            try:
                packet, payload, fds = self._control.receive(wait=False)
            except BlockingIOError:
                return None
            if isinstance(packet, SpawnedPacket):
                near, far = Channel.from_fd(fds[0]), Channel.from_fd(fds[1])
                return Spawned(packet.slot, packet.serial, packet.pid, near, far, descriptors.Descriptor(fds[2]))
            if isinstance(packet, SpawnFailedPacket):
                return SpawnFailed(packet.slot, OSError(packet.errno, bytes(payload).decode()))
            if isinstance(packet, SparePacket):
                self._is_spare_due = False
                if fds:
                    end = Channel.from_fd(fds[0])
                    self._spare = ZygoteProcess(end, packet.pid, fds[1], main_names=self.main_names)
            elif isinstance(packet, HelloPacket):
                self.was_ready = True
                if self._is_fresh:
                    self.main_names = frozenset(bytes(payload).decode().split())
            else:
                raise ProtocolError(f"the zygote has sent {packet}")

    def wait(self, timeout: float | None) -> None:
        poller = select.poll()
        for fd in self.watched():
            poller.register(fd, select.POLLIN)
        poller.poll(None if timeout is None else timeout * 1000)

    def watched(self) -> list[int]:
        return [self._control.fileno(), self.pidfd.fileno()]

    def close(self, patience: float = CLOSE_PATIENCE_S) -> None:
        descriptors.disown(self._control)
        descriptors.disown(self.pidfd)
        if self.pidfd.fileno() < 0:
            return
        if self._spare is not None:
            self._spare.close(patience)
            self._spare = None
        self._control.close()
        if not self._await_end(time.monotonic() + patience):
            pidfds.halt(self.pidfd.fileno(), self.pid)
            process_tree.kill_descendants_of(self.pid)
            pidfds.send_signal(self.pidfd.fileno(), signal.SIGKILL)
        _wait_for_child(self.pid)
        self.pidfd.close()

    def _await_end(self, deadline: float) -> bool:
        """Wait for the end of the zygote, and continue it whenever it is stopped; return whether it has ended."""
        pidfds.send_signal(self.pidfd.fileno(), signal.SIGCONT)
        while not pidfds.wait_ended(self.pidfd.fileno(), min(CONTINUE_EVERY_S, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                return False
            pidfds.send_signal(self.pidfd.fileno(), signal.SIGCONT)
        return True


def _wait_for_child(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # the caller ignores SIGCHLD, or has waited for all its children


class ForkedZygote(ZygoteProcess):
    """`start_method="fork"`: the zygote is a fork of this process as it is now.

    Args:
        serve: runs in the zygote, with the control pair, the body and a pidfd of this process.
        body: what workers run.
        keep: what is closed in other children of this process, but not in the zygote.
    """

    def __init__(
        self,
        serve: Callable[[Channel, Body, int], int],
        body: Body,
        keep: Sequence[descriptors.Closable] = (),
    ) -> None:
        near, far = Channel.pair()
        try:
            master = os.pidfd_open(os.getpid())
        except BaseException:
            near.close()
            far.close()
            raise

        def child() -> int:
            near.close()
            sigchld.forget()
            return serve(far, body, master)

        try:
            children.flush_output()
            for thing in keep:
                descriptors.disown(thing)
            pid = children.fork_child(child)
        except BaseException:
            near.close()
            raise
        finally:
            for thing in keep:
                descriptors.own(thing)
            far.close()
            os.close(master)
        super().__init__(near, pid)
