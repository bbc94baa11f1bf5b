"""Births and deaths: workers from the zygote, replacements, and what is left of a worker that died."""

from __future__ import annotations

import errno
import logging
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pairpool.linux import descriptors, pidfds, signals
from pairpool.linux.cgroup import OomCounter
from pairpool.linux.interrupts import allow_signals
from pairpool.master import worker_death
from pairpool.master.dispatcher import Dispatcher, Hooks
from pairpool.master.event_loop import EventLoop
from pairpool.master.jobs.base import Batch
from pairpool.master.jobs.queue import JobQueue
from pairpool.master.metrics import Metrics, arguments_of
from pairpool.master.watchdog import Watchdog
from pairpool.master.workers import WorkerHandle, WorkerSet
from pairpool.scoreboard.board import Scoreboard, State, Word
from pairpool.transport.channel import Lost
from pairpool.transport.inherited_names import InheritedNames
from pairpool.transport.protocol import StartPacket
from pairpool.transport.serializer import Serializer
from pairpool.worker.zygote import Spawned, SpawnFailed, Zygote

if TYPE_CHECKING:
    from pairpool.master.output import Collector

__all__ = ["Supervisor"]

RESPAWN_AFTER = 0.1
"""Seconds after which a fork that the kernel refused is tried again."""

FORK_TRIES = 30
"""Forks in a row that the kernel may refuse while no worker is left before the pool gives up."""

FIRST = 2
"""Workers for each core that a pool starts with; to fork one takes more than a millisecond."""

START_TRIES = 3
"""Times that an initializer may fail in one place's replacements before the pool gives up."""

START_PAUSES = 4
"""By how much the pause before the next try grows."""

FROM_OUTSIDE = 0.25
"""What the death of a worker tells against the function that it was unpickling if somebody may have killed it."""

ZYGOTES = 20
"""Zygotes in a row that may end, with nothing done in between, before the pool gives up."""

STILLBORN = 3
"""Workers in a row that may end before they receive anything, beyond one for each place, before the pool gives up."""

_LIMITS = {errno.EAGAIN: "RLIMIT_NPROC or the cgroup's pids.max", errno.EMFILE: "RLIMIT_NOFILE"}


def _explain(error: OSError, what: str) -> OSError:
    """The error of a fork that the kernel refused, with the limit that it ran into."""
    number = error.errno or errno.EAGAIN
    limit = _LIMITS.get(number, "memory")
    return OSError(number, f"{what} could not be made: {error.strerror} (limit: {limit})")


class Supervisor(Hooks):
    """Keeps a pool's places filled.

    Args:
        make_zygote: makes what workers come from; called again if that is killed.
        processes: how many workers to keep.
        has_initializer: whether workers report when they are ready.
    """

    dealer: Dispatcher

    def __init__(
        self,
        make_zygote: Callable[[], Zygote],
        processes: int,
        has_initializer: bool,
        board: Scoreboard,
        stacks: descriptors.Descriptor,
    ) -> None:
        self._make_zygote = make_zygote
        try:
            self.zygote = make_zygote()
        except OSError as error:
            raise _explain(error, "the zygote, which forks the workers,") from None
        self.processes = processes
        self.has_initializer = has_initializer
        self._board = board
        self._stacks = stacks
        self._expected: set[int] = set()
        self._lacking: dict[int, float] = {}
        self._stillborn = 0
        self._refused = 0
        self._zygotes_lost = 0
        self.is_starting = True
        self._filled: set[int] = set()  # places that have had a worker
        self._tries: dict[int, int] = {}
        self._oom = OomCounter()
        self.is_closing = False
        self.collector: Collector | None = None  # of the output of workers, if it is wanted

    def join(
        self,
        agenda: JobQueue,
        crew: WorkerSet,
        overseer: Watchdog,
        loop: EventLoop,
        codec: Serializer,
        dealer: Dispatcher,
        accounts: Metrics,
    ) -> None:
        """Learn who else there is."""
        self._accounts = accounts
        accounts.keeps(self.processes)
        self._agenda = agenda
        self._crew = crew
        self._overseer = overseer
        self._loop = loop
        self._codec = codec
        self.dealer = dealer
        self._watch_zygote()

    # --- births ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Ask for all workers and wait for the first; the others come while those work.

        Raises `OSError` if one of the first cannot be made.
        """
        self.begin()
        while not self.has_begun:
            with allow_signals():  # a handler that raises may end the wait
                self.zygote.wait(None)
            self._on_zygote(0)
        self.go()

    def begin(self) -> None:
        """Ask for all workers; `go` comes when the loop has been turned until `has_begun`."""
        for number in range(self.processes):
            self._request(number)
        self._take_stock()

    @property
    def has_begun(self) -> bool:
        """Whether the first workers are there, or none will come."""
        is_enough = len(self._crew.members) >= self._crew.cores * FIRST
        return is_enough or not self._expected or self._agenda.broken is not None

    def go(self) -> None:
        """The first workers are there. Raises `OSError` if one of them could not be made."""
        self.is_starting = False
        if self._agenda.broken is not None:
            raise self._agenda.broken
        assert self._codec.birth is not None
        self._codec.birth.main_names = self.zygote.main_names

    def _take_stock(self) -> None:
        """Note what the workers inherit; done while the zygote forks, for it takes about as long."""
        self._codec.birth = InheritedNames(self.zygote.main_names)

    @property
    def awaited(self) -> int:
        """How many workers were asked for and are not there yet."""
        return len(self._expected)

    @property
    def is_waiting(self) -> bool:
        """Whether workers that were asked for are not there yet."""
        return bool(self._expected)

    def _request(self, number: int) -> None:
        self._expected.add(number)
        self._clear(number)
        self._accounts.asked(number)
        try:
            self.zygote.request(number)
        except Lost:
            return  # its end has been noticed by `_on_zygote`, or will be
        except OSError as error:
            self._expected.discard(number)
            self._on_refused(number, error)
            return
        if not self.zygote.watched():
            self._on_zygote(0)

    def _clear(self, number: int) -> None:
        """Nobody is in this place now.

        A worker that was let go before it had begun may yet write its state here: it is the pid that counts.
        """
        self._board.slot(number).clear()

    def _watch_zygote(self) -> None:
        for fd in self.zygote.watched():
            self._loop.watch(fd, self._on_zygote)

    def _on_zygote(self, _events: int) -> None:
        """Take what the zygote has sent; if it has ended, make another."""
        while not self._loop.ended:
            try:
                before = signals.hold_signals()
                try:
                    answer = self.zygote.receive()
                    if answer is not None:
                        self._expected.discard(answer.slot)
                    if isinstance(answer, Spawned):
                        self._enlist(answer)
                finally:
                    signals.set_signal_mask(signal.SIG_SETMASK, before)
            except Lost:
                self._on_zygote_lost()
                return
            if answer is None:
                return
            if isinstance(answer, SpawnFailed):
                self._on_refused(answer.slot, answer.error)
            elif answer.slot >= self.processes or self._is_done:
                self.retire(self._crew.members[answer.slot])

    def _on_refused(self, number: int, error: OSError) -> None:
        """A fork that failed is tried again later; with no worker left it is the end, after some tries."""
        self._refused += 1
        reason = _explain(error, f"worker {number} of {self.processes}")
        if self.is_starting or not (self._crew.members or self._refused < FORK_TRIES):
            self.break_down(reason)
            return
        if self._refused == 1:
            logging.getLogger("pairpool").warning("%s; the pool goes on without, and tries again", reason)
        self._lacking[number] = time.monotonic() + RESPAWN_AFTER

    def _on_zygote_lost(self) -> None:
        """The zygote was killed: its workers die with it, a new one is made, and the pool goes on."""
        for fd in self.zygote.watched():
            self._loop.unwatch(fd)
        spare = self.zygote.take_spare()
        self.zygote.close()
        self._zygotes_lost += 1
        is_hopeless = self._zygotes_lost > (ZYGOTES if self.zygote.was_ready else STILLBORN)
        if is_hopeless or self.is_starting or self._codec.birth is None:
            if spare is not None:
                spare.close()
            text = "the zygote, which forks the workers, ended"
            if not self.zygote.was_ready:
                text += " before it was ready; its error output says why"
            self.break_down(OSError(errno.ECHILD, text))
            return
        if spare is not None:
            self.zygote = spare
        else:
            try:
                self.zygote = self._make_zygote()
            except OSError as error:
                self.break_down(error)
                return
            self._take_stock()
        self._watch_zygote()
        for number in sorted(self._expected):
            self._request(number)

    def want_spare(self) -> None:
        """See to it that there is a zygote in reserve."""
        self.zygote.want_spare()

    def request_lacking(self) -> bool:
        """Try again what the kernel refused, when it is time; returns whether something is still lacking."""
        if self._lacking:
            now = time.monotonic()
            for number in [number for number, at in self._lacking.items() if at <= now]:
                del self._lacking[number]
                if number not in self._crew.members and number < self.processes:
                    self._request(number)
        if len(self._crew.members) + len(self._expected) + len(self._lacking) < self.processes:
            self._fill_gaps()
        return not self.zygote.flush() or bool(self._lacking)

    def _fill_gaps(self) -> None:
        """Ask for workers in places that nobody has asked for: an exception struck between a death and that."""
        if self.is_starting or self._agenda.broken is not None or self._is_done:
            return
        for number in range(self.processes):
            if not (number in self._crew.members or number in self._expected or number in self._lacking):
                self._request(number)

    def _enlist(self, spawned: Spawned) -> None:
        crew = self._crew
        self._refused = 0
        member = WorkerHandle(spawned, self._board.slot(spawned.slot), self.zygote, crew.starved)
        crew.members[member.number] = member
        self._loop.watch(member.channel.fileno(), lambda events: self.dealer.on_packets(member, events))
        self._loop.watch(member.pidfd.fileno(), lambda _events: self._on_death(member))
        member.slot.words[Word.PID] = member.pid
        member.started = not self.has_initializer
        member.is_first = member.number not in self._filled
        self._filled.add(member.number)
        self._overseer.enlist(member)
        self._accounts.enlisted(member)
        if self.collector is not None:
            self.capture(member, streams=self.collector.streams, log=True)
        if self.has_initializer:
            member.post(StartPacket())
        crew.place_newborn(member)

    def capture(self, member: WorkerHandle, *, streams: bool, log: bool) -> None:
        """Have a worker's output sent to the collector; if the kernel has nothing left for that, it stays as it is."""
        assert self.collector is not None
        before = signals.hold_signals()
        try:
            for header, outlet in self.collector.attach(member.number, member.pid, streams=streams, log=log):
                member.capture(header, outlet)
        except OSError as error:
            logging.getLogger("pairpool").warning(
                "the output of worker %d (pid %d) cannot be captured: %s", member.number, member.pid, error
            )
        finally:
            signals.set_signal_mask(signal.SIG_SETMASK, before)
        if member.wants_room:
            self._loop.watch_for_room(member.channel.fileno(), True)

    # --- life -----------------------------------------------------------------------------------

    def on_ready(self, member: WorkerHandle) -> None:
        member.started = True
        self._tries.pop(member.number, None)
        self._stillborn = 0

    def on_result(self) -> None:
        self._stillborn = self._zygotes_lost = 0

    def on_initializer_failed(self, member: WorkerHandle, traceback: str) -> None:
        member.init_error = traceback  # the worker ends, and that is when it counts

    @property
    def _is_done(self) -> bool:
        return self.is_closing and not self._agenda.unfinished

    def retire(self, member: WorkerHandle) -> None:
        """Let a worker exit, and have another in its place at once."""
        if not self._crew.is_on_duty(member):
            return
        self._loop.unwatch(member.channel.fileno())
        self._crew.dismiss(member)
        self._accounts.left(member, "")
        if member.number < self.processes and not self._is_done:
            member.slot.words[Word.REPLACED] += 1
            self._request(member.number)
        else:
            self._clear(member.number)

    def retire_all(self) -> None:
        """Let every worker exit if the pool is closing and nothing is left to do, once its initializer has returned."""
        if self._is_done:
            for member in list(self._crew.members.values()):
                if member.started:
                    self.retire(member)

    def resize(self, processes: int) -> None:
        """Keep this many workers from now on."""
        before, self.processes = self.processes, processes
        self._accounts.keeps(processes)
        members = self._crew.members
        for number in range(before, processes):
            if number not in members and number not in self._expected:
                self._request(number)
        for number in range(processes, before):
            member = members.get(number)
            if member is not None:
                member.retiring = True
                self._crew.place(member)
                if not member.held:
                    self.retire(member)

    # --- deaths ---------------------------------------------------------------------------------

    def _on_death(self, member: WorkerHandle) -> None:
        """A worker has ended: read what it had sent, take back what it had not read, blame what it was running."""
        if not pidfds.has_ended(member.pidfd.fileno()):
            return  # the event was for another descriptor, closed in this turn, whose number this one has got
        self.dealer.drain(member, everything=True)
        if self._loop.ended:
            return
        was_dismissed = member.dismissed
        before = signals.hold_signals()
        try:
            self._bury(member)
        finally:
            signals.set_signal_mask(signal.SIG_SETMASK, before)
        if not was_dismissed:
            self._replace(member)

    def _bury(self, member: WorkerHandle) -> None:
        """Settle what it leaves. Its pidfd is watched to the last: if an exception strikes, it is done once more."""
        self._crew.touching = member
        if not member.dismissed:
            self._loop.unwatch(member.channel.fileno())
        recalled = [] if member.dismissed else member.recall()
        unfinished = list(member.held)
        member.held.clear()
        if not member.dismissed:
            self._settle_accounts(member, unfinished, recalled)
            member.slot.words[Word.PID] = 0
        self._overseer.forget(member)
        self.zygote.reaped(member.serial)
        self._loop.unwatch(member.pidfd.fileno())
        self._crew.remove(member)
        member.close()
        self._crew.touching = None

    def _settle_accounts(self, member: WorkerHandle, unfinished: list[Batch], recalled: list[Batch]) -> None:
        death = worker_death.Death(member, self._stacks.fileno(), self._oom)
        if not member.started:
            self._accounts.left(member, death.reason)
            self._agenda.put_back(recalled)
            self._agenda.put_back(unfinished)
            self._on_start_failed(member, death)
            return
        if death.function_being_loaded is not None:
            weight = FROM_OUTSIDE if death.is_from_outside else 1.0
            if not death.went_with_zygote:
                self._agenda.functions.suspect(death.function_being_loaded, weight)
        self._agenda.put_back(recalled)
        for batch in unfinished:
            self._settle_batch(death, batch, unfinished)
        self._accounts.left(member, death.reason)  # a trace has what was lost before the death that it was lost by

    def _on_start_failed(self, member: WorkerHandle, death: worker_death.Death) -> None:
        """An initializer that fails at the start of the pool is wrong; one that fails later may have had bad luck.

        So may a worker that somebody killed meanwhile: these are tried again, with growing pauses.
        """
        number = member.number
        tries = self._tries[number] = self._tries.get(number, 0) + 1
        is_wrong = member.is_first and (member.init_error is not None or not death.is_from_outside or member.doom)
        if is_wrong or tries >= START_TRIES:
            if member.init_error is not None:
                self.break_down(worker_death.initializer_failed(member.init_error))
            else:
                self.break_down(worker_death.initializer_died(death))
        elif number < self.processes:
            self._lacking[number] = time.monotonic() + RESPAWN_AFTER * START_PAUSES ** (tries - 1)

    def _settle_batch(self, death: worker_death.Death, batch: Batch, unfinished: list[Batch]) -> None:
        job = batch.job
        culprit = death.culprit(batch, unfinished)
        if culprit is None and batch.handed_over:
            culprit = 0  # it was about to run the only item, whose descriptors have gone with it
        if culprit is None:
            batch.solo = batch.solo or death.is_in_doubt(batch)
            self._agenda.put_back([batch])
            return
        index = batch.first + culprit if batch.targets is None else 0
        error = death.error(self._accounts.name_of(batch, culprit), index, arguments_of(batch, culprit))
        victim = batch.part(culprit, culprit + 1)
        job.replace(batch, batch.without(culprit))
        self._agenda.requeue(job)
        self._accounts.lost(death.member, victim, 0, error)
        self._agenda.fail(victim, error)

    def _replace(self, member: WorkerHandle) -> None:
        """Have a new worker in the place of one that died, unless the pool is at its end or has no use for it."""
        number = member.number
        if self._agenda.broken is not None or self._is_done:
            return
        if number >= self.processes or number in self._crew.members or number in self._expected:
            return
        if number in self._lacking:
            return
        words = member.slot.words
        if words[Word.STATE] == State.EMPTY and not member.zygote.is_gone:
            self._stillborn += 1
            if self._stillborn > STILLBORN + self.processes:
                self.break_down(worker_death.stillborn(self._stillborn))
                return
        words[Word.REPLACED] += 1
        self._request(number)

    # --- the end --------------------------------------------------------------------------------

    def break_down(self, reason: BaseException) -> None:
        """The pool cannot work any more: every call, now and later, ends with `reason`."""
        if self._agenda.broken is None:
            self._agenda.broken = reason
        self._agenda.cancel_all(reason)

    def close(self) -> None:
        """End the zygote, and workers that it had made and that came too late."""
        while True:
            try:
                answer = self.zygote.receive()
            except (Lost, OSError):
                break  # it has ended, and was closed already if it had ended before
            if answer is None:
                break
            if isinstance(answer, Spawned):
                pidfds.send_signal(answer.pidfd.fileno(), 9)
                for thing in (answer.near, answer.far, answer.pidfd):
                    thing.close()
        self.zygote.close()
