"""Fork a worker that is connected to its master by a channel.

Facts about the kernel (fork(2), pidfd_open(2), prctl(2)), and their consequences:

- A pidfd can be opened only while its process exists, so a new worker does nothing before its master has sent a packet.
- PDEATHSIG fires when the *thread* that forked ends, so it is set only if the forking thread is the main thread.
- A fork copies every descriptor, so a pair is made where no other pair is open.

`fork_worker` serves all start methods: "fork" (the zygote is a fork of the program), "forkserver" (the zygote is a
fresh interpreter), "direct" (no zygote: the master forks).
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple, Protocol

from pairpool.linux import children, descriptors, process_tree
from pairpool.transport.channel import Channel

__all__ = ["Body", "SpawnFailed", "Spawned", "fork_worker"]


class Body(Protocol):
    """The code of a worker. It is called with the channel, slot and serial number, and returns the exit status."""

    def __call__(self, channel: Channel, slot: int, serial: int, /) -> int: ...


class Spawned(NamedTuple):
    """A new worker as its master receives it. The master owns the three descriptors."""

    slot: int
    serial: int
    pid: int
    near: Channel
    far: Channel
    pidfd: descriptors.Descriptor


class SpawnFailed(NamedTuple):
    """A fork that failed, with the error."""

    slot: int
    error: OSError


def fork_worker(body: Body, slot: int, serial: int, *, own_group: bool = False, by_zygote: bool = False) -> Spawned:
    """Make a pair, fork a child that runs `body` on the far end, and return the master's side.

    The child is killed when its parent ends, if the forking thread is the parent's main thread.

    Args:
        own_group: whether the child leads a process group, by which its descendants can be found when it has ended.
            At the end of `body` the child kills all its descendants.
        by_zygote: whether this process is a zygote.

    Raises:
        OSError: the kernel refused a descriptor or a process; nothing is left behind.
    """
    near, far = Channel.pair()
    parent = os.getpid()
    in_main_thread = threading.current_thread() is threading.main_thread()

    def child() -> int:
        near.close()
        if own_group:
            os.setpgid(0, 0)
        if in_main_thread:
            process_tree.die_with_parent(parent)
        try:
            return body(far, slot, serial)
        finally:
            if own_group:  # the parent may be no subreaper, and then it finds descendants of other groups only now
                process_tree.kill_all_before_exit()

    pid = 0
    try:
        pid = children.fork_from_zygote(child) if by_zygote else children.fork_child(child)
        pidfd = descriptors.Descriptor(os.pidfd_open(pid))
    except BaseException:
        near.close()
        far.close()
        if pid:
            children.kill_and_reap(pid)
        raise
    return Spawned(slot, serial, pid, near, far, pidfd)
