"""The zygote: a process with one thread that forks the workers.

    master ── control pair ──► zygote ── fork ──► worker
       ▲                          │
       └── pid, near end, far end, pidfd (SCM_RIGHTS) ──┘

Facts about the kernel, and their consequences:

- With SIGCHLD ignored, children leave no zombie and no status (sigaction(2)): the zygote ignores it, so that the caller
  need not.
- PDEATHSIG fires when the *thread* that forked ends: the zygote has one thread, which is the process.
- Every fork copies every descriptor: the zygote passes the ends of a pair on and closes them before the next fork.
- Orphans of killed workers become children of the nearest subreaper: the zygote is one, and kills them with the worker.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal

from pairpool.linux import children, descriptors, process_tree
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import (
    HelloPacket,
    ReapedPacket,
    SparePacket,
    SpareRequestPacket,
    SpawnedPacket,
    SpawnFailedPacket,
    SpawnPacket,
)
from pairpool.transport.spawning import Body, fork_worker
from pairpool.transport.wire import ProtocolError

__all__ = ["serve"]


def serve(control: Channel, body: Body, master: int, names: bytes = b"") -> int:
    """Fork a worker for each request until the master is gone, then kill all that is left; return the exit status.

    Args:
        control: the pair to the master.
        body: what workers run.
        master: a pidfd of the master.
        names: the payload of the first packet to the master.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    process_tree.adopt_orphans()
    descriptors.own(control)
    try:
        _Zygote(control, body, master, names).run()
    except Lost:
        pass  # the master has closed the pool, or died
    process_tree.kill_children(keep=set())
    return 0


class _Zygote:
    """The state of the zygote: its workers by serial number, and its spare."""

    def __init__(self, control: Channel, body: Body, master: int, names: bytes) -> None:
        self._control = control
        self._body = body
        self._master = master
        self._names = names
        self._workers: dict[int, int] = {}
        self._spare = 0

    def run(self) -> None:
        """Serve requests until the master ends. Raise `Lost` if it closes the control pair."""
        poller = select.poll()
        poller.register(self._control.fileno(), select.POLLIN)
        poller.register(self._master, select.POLLIN)
        self._control.send(HelloPacket(), self._names)
        is_untidy = False
        while True:
            events = poller.poll(0 if is_untidy else None)
            if not events:  # after the last of several deaths, look once for what all of them have left
                process_tree.kill_children(keep={self._spare, *self._workers.values()})
                is_untidy = False
                continue
            if self._master in [fd for fd, _events in events]:
                return
            is_untidy = self._serve_packet() or is_untidy

    def _serve_packet(self) -> bool:
        """Serve one request; return whether a worker has ended."""
        packet = self._control.receive()[0]
        if isinstance(packet, SpawnPacket):
            self._spawn(packet.slot, packet.serial)
        elif isinstance(packet, ReapedPacket):
            self._workers.pop(packet.serial, None)
            return True
        elif isinstance(packet, SpareRequestPacket):
            self._make_spare()
        else:
            raise ProtocolError(f"the master has sent {packet} to the zygote")
        return False

    def _spawn(self, slot: int, serial: int) -> None:
        try:
            new = fork_worker(self._body, slot, serial, by_zygote=True)
        except OSError as error:
            reason = SpawnFailedPacket(slot, error.errno or errno.EAGAIN)
            self._control.send(reason, (error.strerror or str(error)).encode())
            return
        self._workers[serial] = new.pid
        fds = (new.near.fileno(), new.far.fileno(), new.pidfd.fileno())
        try:
            self._control.send(SpawnedPacket(serial, slot, new.pid), fds=fds)
        finally:
            new.near.close()
            new.far.close()
            new.pidfd.close()

    def _make_spare(self) -> None:
        """Fork a zygote that takes this one's place if this one is killed.

        The master could fork a new one then. But by then it may have threads, and one of them may hold a lock at the
        moment of the fork. Nothing would release that lock in the child, and all workers would wait for it.
        """
        near, far = Channel.pair()

        def child() -> int:
            near.close()
            return serve(far, self._body, self._master, self._names)

        self._spare = pid = 0
        try:
            pid = children.fork_child(child)
            pidfd = os.pidfd_open(pid)
            try:
                self._control.send(SparePacket(pid), fds=(near.fileno(), pidfd))
                self._spare = pid
            finally:
                os.close(pidfd)
        except OSError:
            if pid:
                children.kill_and_reap(pid)
            self._control.send(SparePacket())
        finally:
            near.close()
            far.close()
