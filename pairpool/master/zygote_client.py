"""Request workers from the zygote, and replace a zygote that was killed.

request(place) ──► zygote ──► receive(): Spawned or SpawnFailed
                   zygote killed ──► receive() raises Lost ──► replace(): requests are sent to the new zygote
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable

from pairpool.linux import pidfds
from pairpool.master.event_loop import EventLoop
from pairpool.master.zygotes import Zygote
from pairpool.transport.channel import Lost
from pairpool.transport.inherited_names import InheritedNames
from pairpool.transport.serializer import Serializer
from pairpool.transport.spawning import Spawned, SpawnFailed

__all__ = ["ZygoteClient", "explain_fork_error", "fork_zygote"]

ZYGOTE_LOSSES_ALLOWED = 20
"""Zygotes in a row that may end, without a task result in between, before the pool gives up."""

UNREADY_ZYGOTE_LOSSES_ALLOWED = 3
"""The same for zygotes that end before they were ready to fork."""

_LIMITS = {errno.EAGAIN: "RLIMIT_NPROC or the cgroup's pids.max", errno.EMFILE: "RLIMIT_NOFILE"}


def explain_fork_error(error: OSError, what: str) -> OSError:
    """Return the error of a fork that the kernel refused, with the name of the exceeded limit."""
    number = error.errno or errno.EAGAIN
    limit = _LIMITS.get(number, "memory")
    return OSError(number, f"{what} could not be made: {error.strerror} (limit: {limit})")


def fork_zygote(make_zygote: Callable[[], Zygote]) -> Zygote:
    """Make the first zygote of a pool. Raise `OSError` with an explanation if the kernel refuses."""
    try:
        return make_zygote()
    except OSError as error:
        raise explain_fork_error(error, "the zygote, which forks the workers,") from None


class ZygoteClient:
    """Talk to the zygote of a pool.

    Args:
        zygote: the first zygote.
        make_zygote: makes another zygote after the present one was killed.
        loop: watches the descriptors of the zygote.
        serializer: is told the names that workers inherit.

    Attributes:
        zygote: the present zygote.
        requested: places for which a worker was requested and has not arrived.
    """

    def __init__(
        self, zygote: Zygote, make_zygote: Callable[[], Zygote], loop: EventLoop, serializer: Serializer
    ) -> None:
        self.zygote = zygote
        self.requested: set[int] = set()
        self._make_zygote = make_zygote
        self._loop = loop
        self._serializer = serializer
        self._losses = 0  # zygotes that have ended since the last result of a task
        self._on_event: Callable[[int], None] = _ignore

    def watch(self, on_event: Callable[[int], None]) -> None:
        """Have the loop call `on_event` when the zygote has sent something or has ended."""
        self._on_event = on_event
        for fd in self.zygote.watched():
            self._loop.watch(fd, on_event)

    def note_inherited_names(self) -> None:
        """Note the names that workers inherit.

        Call this after the first request: the zygote forks meanwhile, which takes about as long.
        """
        self._serializer.set_inherited_names(InheritedNames(self.zygote.main_names))

    def note_main_names(self) -> None:
        """Note the names in the workers' `__main__`, which a fresh interpreter reports when it is ready."""
        self._serializer.set_main_names(self.zygote.main_names)

    def request(self, number: int) -> None:
        """Request a worker for a place. Raise `OSError` if the kernel refuses to fork it.

        If the zygote has ended, the loop reports that, and `replace` requests the worker again.
        """
        self.requested.add(number)
        try:
            self.zygote.request(number)
        except Lost:
            return
        except OSError:
            self.requested.discard(number)
            raise

    def receive(self) -> Spawned | SpawnFailed | None:
        """Return the next answer of the zygote, or None if there is none. Raise `Lost` if the zygote has ended."""
        answer = self.zygote.receive()
        if answer is not None:
            self.requested.discard(answer.slot)
        return answer

    def on_result(self) -> None:
        """Note that a task has ended: the zygotes lost until now have not kept the pool from its work."""
        self._losses = 0

    def replace(self, *, is_first_start: bool) -> OSError | None:
        """Put another zygote in the place of one that was killed. Its workers died with it.

        Return the reason if that is impossible or hopeless. The requests of the old zygote are not repeated.
        """
        for fd in self.zygote.watched():
            self._loop.unwatch(fd)
        spare = self.zygote.take_spare()
        self.zygote.close()
        self._losses += 1
        allowed = ZYGOTE_LOSSES_ALLOWED if self.zygote.was_ready else UNREADY_ZYGOTE_LOSSES_ALLOWED
        if self._losses > allowed or is_first_start or not self._serializer.has_inherited_names:
            if spare is not None:
                spare.close()
            text = "the zygote, which forks the workers, ended"
            if not self.zygote.was_ready:
                text += " before it was ready; its error output says why"
            return OSError(errno.ECHILD, text)
        if spare is not None:
            self.zygote = spare
        else:
            try:
                self.zygote = self._make_zygote()
            except OSError as error:
                return error
            self.note_inherited_names()
        self.watch(self._on_event)
        return None

    def close(self) -> None:
        """End the zygote, and the workers that it forked and that arrive too late."""
        while True:
            try:
                answer = self.zygote.receive()
            except (Lost, OSError):
                break  # the zygote has ended; if it had ended before, it is closed already
            if answer is None:
                break
            if isinstance(answer, Spawned):
                pidfds.send_signal(answer.pidfd.fileno(), signal.SIGKILL)
                for end in (answer.near, answer.far, answer.pidfd):
                    end.close()
        self.zygote.close()


def _ignore(_events: int) -> None:
    """Ignore events until `watch` is called."""
