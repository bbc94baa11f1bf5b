"""The overseer: time limits, memory limits, and how much memory busy workers use.

It looks at the status board when half of the next limit may be up, and not before: an item that begins after a look
cannot be at half of its limit earlier than that much later. At half of it the worker is asked to report what it has
finished of its batch, which would be run once more otherwise. One that is over a limit is stopped, looked at again
while it cannot move, and only then ended: a neighbour that it had just begun is not touched. It ends by SIGABRT, for
which faulthandler writes down where it was, and where that does not help, by SIGKILL.
"""

from __future__ import annotations

import math
import signal
import time
from typing import NamedTuple

from pairpool.linux import pidfds
from pairpool.linux.memory import format_size, memory_usage_of
from pairpool.master.jobs.base import Batch
from pairpool.master.kill_reason import KillReason
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.scoreboard.board import State, Word

__all__ = ["Watchdog"]

SAMPLE = 0.25
"""Seconds between two looks at the memory of busy workers."""

SAMPLE_LIMITED = 0.025
"""The same where there is a memory limit."""

PICKLING = 10.0
"""Seconds that unpickling a batch's arguments, and pickling its results, may take at least, whatever the time limit."""

DYING = 0.030
"""Seconds that a worker gets to write down its stack and end, before SIGKILL."""

REPORTING = 0.020
"""Seconds that a worker gets at least to report what is finished of its batch, before it is ended over a limit."""

REPORTING_AT_EASE = 0.250
"""The same for one that runs something cancelled, for which nobody waits any more."""

REPORTED = 0.005
"""Seconds after which one that runs Python has, and is back at its item, whose stack will be written down."""

_AT_WORK = (State.LOADING, State.RUNNING, State.KEEPING, State.SAVING)


class _Sight(NamedTuple):
    """What the board shows of one worker's item."""

    batch: int
    item: int
    state: int
    started: int


class Watchdog:
    """Looks after workers that are at work; used by the leader alone.

    Args:
        memory_limit: private bytes that a worker may have beyond what it inherited; None for any number.
        start_timeout: seconds that an initializer may take; None for any time.
    """

    def __init__(self, crew: WorkerSet, memory_limit: int | None, start_timeout: float | None) -> None:
        self._crew = crew
        self.memory_limit = memory_limit
        self.start_timeout = start_timeout
        self._sample = SAMPLE if memory_limit is None else SAMPLE_LIMITED
        self._next_sample = 0.0
        self._dying: dict[WorkerHandle, float] = {}
        self.at = math.inf
        """When to look next (monotonic seconds)."""

    # --- when -----------------------------------------------------------------------------------

    def expect_work(self) -> None:
        """There is something to do: the memory of whoever does it will be looked at."""
        if self.at == math.inf:
            self.at = self._next_sample = time.monotonic() + self._sample

    def expect(self, seconds: float) -> None:
        """Something began that is to be looked at in so many seconds."""
        self.at = min(self.at, time.monotonic() + seconds)

    def enlist(self, member: WorkerHandle) -> None:
        """A worker was born."""
        member.born = time.monotonic()
        if self.memory_limit is not None:
            usage = memory_usage_of(member.pid)
            member.private_at_birth = usage.private if usage is not None else 0
        if self.start_timeout is not None and not member.started:
            self.expect(self.start_timeout)

    def forget(self, member: WorkerHandle) -> None:
        """A worker has ended."""
        self._dying.pop(member, None)

    # --- looking --------------------------------------------------------------------------------

    def look(self) -> None:
        """End who is over a limit, and find out when to look next."""
        now = time.monotonic()
        busy = False
        self.at = math.inf
        samples = now >= self._next_sample
        for member in list(self._crew.members.values()):
            if member.doom is not None:
                self._finish(member, now)
            elif not member.started:
                self._look_at_start(member, now)
            elif member.held:
                busy = True
                self._look_at_time(member, now)
                if samples:
                    self._look_at_memory(member)
        if busy:
            if samples:
                self._next_sample = now + max(self._sample, len(self._crew.members) * 0.001)
            self.at = min(self.at, self._next_sample)

    def _finish(self, member: WorkerHandle, now: float) -> None:
        at = self._dying.get(member, now)
        if at <= now:
            pidfds.send_signal(member.pidfd.fileno(), signal.SIGKILL)
        else:
            self.at = min(self.at, at)

    def _look_at_start(self, member: WorkerHandle, now: float) -> None:
        limit = self.start_timeout
        if limit is None:
            return
        if now < member.born + limit:
            self.at = min(self.at, member.born + limit)
        elif not member.has_packet():
            cause = f" had not returned within {limit:g} s (start_timeout)"
            self._end(member, KillReason(0, 0, limit, cause, ""))

    def _look_at_time(self, member: WorkerHandle, now: float) -> None:
        sight = _look(member)
        batch = next((one for one in member.held if one.number == sight.batch), None)
        limits = [one.job.options.task_timeout for one in member.held]
        if batch is None or sight.state not in _AT_WORK or batch.job.options.task_timeout is None:
            soonest = min((limit for limit in limits if limit is not None), default=math.inf)
            self.at = min(self.at, now + soonest / 2)
            return
        limit = batch.job.options.task_timeout
        due = sight.started / 1e9 + (limit if sight.state == State.RUNNING else max(limit, PICKLING))
        half = due - limit / 2
        if now < half:
            self.at = min(self.at, half)
            return
        owes = self._ask_to_report(member, batch, sight, now)
        if now < due:
            self.at = min(self.at, due, max(batch.hurry_at, now + REPORTED) if owes else due)
        elif now < batch.hurried_since + (REPORTING if owes else REPORTED):
            self.at = min(self.at, now + REPORTED)
        elif not self._strike(member, sight, KillReason(batch.number, sight.item, limit, "", "")):
            self.at = min(self.at, now + limit)

    def _look_at_memory(self, member: WorkerHandle) -> None:
        usage = memory_usage_of(member.pid)
        if usage is None:
            return
        member.slot.words[Word.RSS] = usage.resident
        used = usage.private - member.private_at_birth
        if self.memory_limit is None or used <= self.memory_limit:
            return
        sight = _look(member)
        if sight.state in _AT_WORK and any(one.number == sight.batch for one in member.held):
            self._strike(member, sight, self._over_memory(sight, used))

    def _over_memory(self, sight: _Sight, used: int) -> KillReason:
        assert self.memory_limit is not None
        limit = format_size(self.memory_limit)
        cause = f"memory_limit: it used {format_size(used)} of its own, and the limit is {limit}"
        return KillReason(sight.batch, sight.item, 0.0, cause, "raise memory_limit=, or give it smaller items")

    def is_too_large(self, member: WorkerHandle) -> bool:
        """Whether a worker that has ended a batch is above the memory limit."""
        if self.memory_limit is None:
            return False
        usage = memory_usage_of(member.pid)
        return usage is not None and usage.private - member.private_at_birth > self.memory_limit

    # --- what is finished -----------------------------------------------------------------------

    def _ask_to_report(self, member: WorkerHandle, batch: Batch, sight: _Sight, now: float) -> bool:
        """Ask a worker that may be ended soon to report first; False if nothing would be lost with it.

        For what is finished and not reported would have to be run once more.
        """
        if not batch.hurried:
            ended = batch.count if sight.state == State.SAVING else sight.item - batch.first
            if sight.state == State.LOADING or ended > batch.count or not batch.has_waiting(ended):
                return False
        # once asked, it does not count where it is: while it pickles a report, it is seen at the items in that
        if not batch.hurried or now >= batch.hurry_at:
            member.hurry(batch, now)
        return True

    # --- striking -------------------------------------------------------------------------------

    def _strike(self, member: WorkerHandle, sight: _Sight, doom: KillReason) -> bool:
        """End a worker if it is still where it was seen; False if it has gone on."""
        ran = pidfds.halt(member.pidfd.fileno(), member.pid)
        if _look(member) != sight:
            if ran:
                pidfds.send_signal(member.pidfd.fileno(), signal.SIGCONT)
            return False
        self._end(member, doom)
        return True

    def _end(self, member: WorkerHandle, doom: KillReason) -> None:
        member.doom = doom
        pidfds.abort(member.pidfd.fileno(), member.pid)
        self._dying[member] = time.monotonic() + DYING
        self.expect(DYING)

    def kill(self, member: WorkerHandle, batch: Batch, item: int | None) -> bool:
        """End a worker by SIGKILL if it is at `item` of `batch` (None: at any); False if it is not, any more."""
        sight = _look(member)
        if item is not None and sight.batch == batch.number:
            now = time.monotonic()
            if self._ask_to_report(member, batch, sight, now) and now < batch.hurried_since + REPORTING_AT_EASE:
                return False
        ran = pidfds.halt(member.pidfd.fileno(), member.pid)
        sight = _look(member)
        if sight.batch == batch.number and sight.state in _AT_WORK and item in (None, sight.item):
            pidfds.send_signal(member.pidfd.fileno(), signal.SIGKILL)
            return True
        if ran:
            pidfds.send_signal(member.pidfd.fileno(), signal.SIGCONT)
        return False


def _look(member: WorkerHandle) -> _Sight:
    """Read in the order that fits the worker's: it stores the start before the index, and a batch's number last."""
    words = member.slot.words
    return _Sight(words[Word.BATCH], words[Word.ITEM], words[Word.STATE], words[Word.STARTED])
