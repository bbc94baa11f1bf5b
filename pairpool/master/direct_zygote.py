"""`start_method="direct"`: no zygote. The master forks the workers, and ignores SIGCHLD while any such pool is open.

The price:

- `subprocess.run(["false"]).returncode` is 0 in the master meanwhile.
- A worker that is replaced is forked from the program as it is then, with its threads.
- The master is no subreaper. A worker that exits kills its descendants before. If the master kills a worker, it kills
  the worker's descendants first. Orphans among them are found by the worker's process group.
- A process in a session of its own outlives a worker that crashes, or a worker that is killed after the parent of the
  process has ended. All programs that tasks have started outlive a master that is killed by SIGKILL.
- Only the main thread can set SIGCHLD (signal(7)).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence

from pairpool.linux import children, descriptors, pidfds, process_tree
from pairpool.linux.sigchld import sigchld
from pairpool.master.zygotes import CLOSE_PATIENCE_S, Zygote, serials
from pairpool.transport.channel import Channel
from pairpool.transport.spawning import Body, Spawned, SpawnFailed, fork_worker

__all__ = ["DirectZygote"]

GROUPS_GONE_WITHIN_S = 0.1
"""Seconds to wait for the ends of killed processes that workers left, because the process that adopts them is slow."""

STILL_LISTED = 64
"""Workers that may have ended so recently that the kernel still lists them among the children."""


class DirectZygote:
    """Forks the workers in this process.

    Args:
        body: what workers run.
        keep: what is closed in other children of this process, but not in workers.
    """

    was_ready = True
    is_gone = False
    main_names: frozenset[str] | None = None

    def __init__(self, body: Body, keep: Sequence[descriptors.Closable] = ()) -> None:
        self._body = body
        self._keep = keep
        self._answers: deque[Spawned | SpawnFailed] = deque()
        self._children: dict[int, tuple[int, descriptors.Descriptor]] = {}
        self._ended: deque[int] = deque(maxlen=STILL_LISTED)
        self._closed = False
        sigchld.ignore()

    def request(self, slot: int) -> None:
        """Fork a worker at once; `receive` returns it."""
        children.flush_output()
        for thing in self._keep:
            descriptors.disown(thing)
        try:
            new = fork_worker(self._run_body, slot, next(serials), own_group=True)
            handle = descriptors.Descriptor(os.dup(new.pidfd.fileno()))
            descriptors.own(handle)
            self._children[new.serial] = new.pid, handle
            self._answers.append(new)
        except OSError as error:
            self._answers.append(SpawnFailed(slot, error))
        finally:
            for thing in self._keep:
                descriptors.own(thing)

    def _run_body(self, channel: Channel, slot: int, serial: int) -> int:
        sigchld.forget()
        return self._body(channel, slot, serial)

    def receive(self) -> Spawned | SpawnFailed | None:
        return self._answers.popleft() if self._answers else None

    def flush(self) -> bool:
        return True

    def wait(self, timeout: float | None) -> None:
        """Return at once: every request was answered at once."""

    def end_descendants(self, serial: int) -> None:
        """Stop a worker that is about to be killed, and kill its descendants while their parents identify them."""
        pid, handle = self._children.get(serial, (0, None))
        if handle is not None and not pidfds.has_ended(handle.fileno()):
            pidfds.halt(handle.fileno(), pid)
            process_tree.kill_descendants_of(pid)

    def reaped(self, serial: int) -> None:
        """Kill what a worker left running, which is in its process group."""
        pid, handle = self._children.pop(serial, (0, None))
        if handle is not None:
            pidfds.kill_group(pid, handle.fileno())
            self._ended.append(pid)
            descriptors.disown(handle)
            handle.close()

    def want_spare(self) -> None:
        """Do nothing: this process needs no replacement."""

    def take_spare(self) -> Zygote | None:
        return None

    def wake(self) -> None:
        """Do nothing: the zygote is this process."""

    def watched(self) -> list[int]:
        return []

    def close(self, patience: float = CLOSE_PATIENCE_S) -> None:
        """Kill what workers left running, and restore SIGCHLD after the last pool. A second call does nothing."""
        if not self._closed:
            self._closed = True
            for serial in list(self._children):
                self.reaped(serial)
            deadline = time.monotonic() + GROUPS_GONE_WITHIN_S
            for pid in self._ended:
                pidfds.wait_released(pid)
                pidfds.wait_group_gone(pid, deadline)
            sigchld.release()
