"""Work out and work back: batches to the workers, what became of them to the jobs, and the balance between workers.

agenda ─next_batch─► encode ─► worker's socket
agenda ◄─deliver──── decode ◄─ worker's socket
"""

from __future__ import annotations

import functools
import select
import time
from collections.abc import Callable
from typing import Any

from pairpool.master import call_errors
from pairpool.master.functions import Function
from pairpool.master.jobs.base import MANY, Batch, Job, MapJob
from pairpool.master.jobs.batch_size import MANY_FROM, PATIENCE_NS
from pairpool.master.jobs.stream import StreamJob
from pairpool.master.outcome import BatchOutcome, read_outcome, truncated_outcome, without_first
from pairpool.master.parts import EngineParts
from pairpool.master.shared_objects import SharedObjects
from pairpool.master.workers import LATELY, WorkerHandle
from pairpool.scoreboard.board import NOTHING, State, Word
from pairpool.transport.channel import Cut
from pairpool.transport.failures import Failure, Fault
from pairpool.transport.fd_passing import OutgoingFds
from pairpool.transport.payload import Encoded
from pairpool.transport.protocol import (
    BatchPacket,
    DescriptorsPacket,
    DiscardDescriptorsPacket,
    Flag,
    ForgetPacket,
    FunctionPacket,
    InitFailedPacket,
    Packet,
    ReadyPacket,
    ReceivedPacket,
    ResultPacket,
)
from pairpool.transport.segments import Segment, SegmentClosed
from pairpool.transport.wire import ProtocolError

__all__ = ["Dispatcher"]

WATCH_EVERY = 0.010
"""Seconds that a batch of several items may run before its worker is told to hand back the rest."""

STARVED_FOR = 0.002
"""Seconds between two tries to send descriptors while too many are under way: no event tells when others are read."""

SETTLE = 0.002
"""Seconds after which a store to the board has surely reached the other core."""

AHEAD = 6
"""Batches that a worker may hold for a stream whose reader is busy."""

AHEAD_AT_FIRST = 2
"""How many while batches grow: the next will do more with one packet."""

AHEAD_UNREAD = 4
"""How many then if nobody waits for the first."""

LETHAL_FUNCTION = 3
"""Workers that may die one after the other while they unpickle a function before it is held to be the cause."""


class Dispatcher:
    """Deals batches to workers and takes in what comes back.

    Args:
        maxtasks: tasks after which a worker is replaced; None for never.

    Attributes:
        reports_handled: reports of whole batches that were handled.
        initializers_returned: workers whose initializer returned.
        holds_back: work waits although workers idle, in the hope that others are done with theirs at once.
    """

    def __init__(self, parts: EngineParts, shares: SharedObjects, maxtasks: int | None) -> None:
        self._shares = shares
        self._accounts = parts.metrics
        self._agenda = parts.queue
        self._crew = parts.workers
        self._overseer = parts.watchdog
        self._loop = parts.loop
        self._codec = parts.serializer
        self._board = parts.scoreboard
        self._maxtasks = maxtasks
        self.reports_handled = 0
        self.initializers_returned = 0
        self._last_look = 0.0
        self.holds_back = False
        self._stays = True

    # --- work out -------------------------------------------------------------------------------

    def deal(self, stays: bool) -> None:
        """Send what can be sent; if nobody `stays` who would send the rest later, to whoever has room."""
        agenda, crew = self._agenda, self._crew
        for starved in list(crew.starved):
            self._flush(starved)
        self.holds_back = False
        self._stays = stays
        idle = len(crew.members) + 1
        while True:
            while agenda.queue and (member := self._with_room(agenda.queue[0])) is not None:
                batch = agenda.next_batch(min(crew.size, self._spread(agenda.queue[0])), self._allowance(member))
                if batch is None or not self._send(batch, self._with_room):
                    break
            self._run_ahead()
            if not (0 < len(crew.empty) < idle and agenda.unfinished):
                return
            idle = len(crew.empty)  # once more only if what is taken back now finds one of them
            if not self._recall_for_idle():
                return

    def _spread(self, job: Job) -> int:
        if not self._stays:
            return MANY
        return job.sizer.spread(self._crew.cores, time.monotonic_ns(), many=job.has_at_least(MANY_FROM))

    def _with_room(self, job: Job) -> WorkerHandle | None:
        member = self._crew.with_room(self._spread(job), time.monotonic())
        self.holds_back = member is None and bool(self._crew.empty)
        return member

    def patience(self) -> float:
        """Seconds after which what is held back is looked at again."""
        sizer = self._agenda.queue[0].sizer if self._agenda.queue else None
        return LATELY if sizer is None or sizer.is_known else PATIENCE_NS / 1e9

    def _least_loaded(self, job: Job) -> WorkerHandle | None:
        ahead = AHEAD
        if job.sizer.grows:
            ahead = AHEAD_AT_FIRST if self._stays else AHEAD_UNREAD
        return self._crew.least_loaded(self._spread(job), time.monotonic(), ahead)

    def _run_ahead(self) -> None:
        """Queue what streams may be ahead of their readers in the workers' sockets.

        A reader that computes between two results drives nothing meanwhile; the workers go on with what they have.
        """
        for job in list(self._agenda.queue):
            while isinstance(job, StreamJob) and (member := self._least_loaded(job)) is not None:
                batch = job.take(min(self._crew.size, self._spread(job)), self._allowance(member))
                if batch is None or not self._send(batch, self._least_loaded):
                    break

    def _allowance(self, member: WorkerHandle) -> int:
        """How many items a worker may still be given before it is replaced."""
        return MANY if self._maxtasks is None else max(1, self._maxtasks - member.given)

    def _send(self, batch: Batch, choose: Callable[[Job], WorkerHandle | None]) -> bool:
        """Pickle a batch (the caller's code) and give it to a worker that has room then; False if none has."""
        job = batch.job
        batch.function = job.function
        if self._refuse_lethal(batch):
            return True
        if Segment.closures and self._shares.refuse_closed(batch, self.functions_of):
            return True
        if batch.encoded is None:
            batch.failed = {}
            try:
                batch.encoded = job.encode(batch, self._codec)
            except Exception as error:
                self._agenda.fail(batch, error)
                return True
            if batch.encoded.fds is not None:
                self._fit(batch, batch.encoded, batch.encoded.fds)
        if len(batch.failed) == batch.count:
            self._agenda.deliver(batch, [None] * batch.count, batch.failed)
            return True
        is_held_up = batch.encoded.fds is not None and bool(self._crew.starved)
        member = None if is_held_up else choose(job)  # of what waits, no more copies are kept than need be
        if member is None:
            if isinstance(job, MapJob) and any(type(piece) is memoryview for piece in batch.encoded.pieces):
                batch.encoded = None  # it shows the caller's arrays, which may change before the batch goes out
            self._agenda.put_back([batch])
            return False
        self._crew.touching = member
        self._give(member, batch)
        self._crew.touching = None
        return True

    def _fit(self, batch: Batch, encoded: Encoded, cargo: OutgoingFds) -> None:
        """Cut a batch down to the items that could be pickled together with their descriptors."""
        if encoded.fitting >= 0:
            self._agenda.put_back([batch.keep(encoded.fitting)])
        batch.movers = tuple(mover for _place, mover in cargo.close_after_send)

    def _refuse_lethal(self, batch: Batch) -> bool:
        """Fail what needs a function that kills every worker which unpickles it; the rest comes by again."""
        suspects = self._agenda.functions.suspects
        if not suspects:
            return False
        lethal = {one.number: one for one in self.functions_of(batch) if suspects.get(one.number, 0) >= LETHAL_FUNCTION}
        if not lethal:
            return False
        if batch.function is not None:
            self._agenda.fail(batch, call_errors.lethal_function(batch.function.name, batch.first))
            return True
        offset = next(at for at, item in enumerate(batch.items) if item[0] in lethal)
        victim = batch.part(offset, offset + 1)
        batch.job.replace(batch, batch.without(offset))
        self._agenda.requeue(batch.job)
        self._agenda.fail(victim, call_errors.lethal_function(lethal[victim.items[0][0]].name, 0))
        return True

    def _give(self, member: WorkerHandle, batch: Batch) -> None:
        job, encoded, crew = batch.job, batch.encoded, self._crew
        assert encoded is not None
        functions = self.functions_of(batch)
        if not member.held:
            self._begin(member, batch)
        member.held.append(batch)
        batch.worker = member.number
        flags = (Flag.SPIN if crew.has_a_core_free() else 0) | (Flag.STAMPED if self._accounts.trace else 0)
        by_value = encoded.by_value or any(function.by_value for function in functions)
        timeout = job.options.task_timeout
        if timeout is not None:
            self._overseer.expect(timeout / 2)
        if batch.movers and not job.options.retries:
            flags |= Flag.CONFIRM
        packet = BatchPacket(
            flags=flags | (Flag.BY_VALUE if by_value else 0) | (Flag.TIMED if timeout is not None else 0),
            mode=job.mode,
            format=encoded.format,
            function=functions[0].number,
            batch=batch.number,
            first=batch.first,
            item_count=batch.count,
            descriptors=0 if encoded.fds is None else len(encoded.fds.fds),
            size=encoded.size,
        )
        try:
            if encoded.segments:
                self._shares.bring(member, encoded.segments)
            for function in functions:
                if function.number not in member.knows:
                    self._teach(member, function)
            member.post(packet, encoded.pieces, encoded.fds)
        except (OSError, SegmentClosed) as error:  # no memory or descriptor for a payload buffer, or a closed segment
            member.held.remove(batch)
            crew.watched.pop(member, None)
            crew.place(member)
            if isinstance(error, OSError):
                self._agenda.fail(batch, error)
            else:
                self._agenda.put_back([batch])  # and it comes by `refuse_closed` again
            return
        job.sizer.learn_bytes(batch.count, encoded.size - encoded.shared)
        batch.encoded = None
        if self._maxtasks is not None:
            member.given += 1 if job.sizer.chunksize is not None else batch.count
            member.retiring = member.retiring or member.given >= self._maxtasks
        if member.wants_room:
            self._loop.watch_for_room(member.channel.fileno(), True)
        crew.place(member)

    def _begin(self, member: WorkerHandle, batch: Batch) -> None:
        """A batch is now the one that its worker runs."""
        self._crew.begin(member, batch, time.monotonic())
        self._accounts.batch_began(member, batch)

    def functions_of(self, batch: Batch) -> list[Function]:
        """The functions that a batch needs."""
        if batch.function is not None:
            return [batch.function]
        return [self._agenda.functions.by_number(number) for number in self._numbers_of(batch)]

    def _numbers_of(self, batch: Batch) -> list[int]:
        if batch.function is not None:
            return [batch.function.number]
        return list(dict.fromkeys(item[0] for item in batch.items))

    def _teach(self, member: WorkerHandle, function: Function) -> None:
        self._board.name_function(function.number, function.name)
        self._shares.bring(member, function.encoded.segments, function.number)
        encoded = function.encoded
        packet = FunctionPacket(
            flags=Flag.HAS_STATE if function.has_state else 0,
            function=function.number,
            descriptors=0 if encoded.fds is None else len(encoded.fds.fds),
            size=encoded.size,
        )
        member.post(packet, encoded.pieces, encoded.fds)
        member.knows.add(function.number)

    def forget(self, numbers: list[int]) -> None:
        """Have every worker drop functions that no call needs any more."""
        if not numbers:
            return
        for member in self._crew:
            for number in numbers:
                if number in member.knows and not member.dismissed:
                    member.knows.discard(number)
                    member.post(ForgetPacket(number))

    # --- work back ------------------------------------------------------------------------------

    def on_packets(self, member: WorkerHandle, events: int) -> None:
        """A worker's socket has packets, or room for some."""
        if events & select.EPOLLOUT and not member.dismissed:
            self._flush(member)
        if events & ~select.EPOLLOUT:
            self.drain(member, everything=False)

    def _flush(self, member: WorkerHandle) -> None:
        member.flush()
        self._loop.watch_for_room(member.channel.fileno(), member.wants_room)

    def drain(self, member: WorkerHandle, *, everything: bool) -> None:
        """Deal with the packets from one worker: as many as it owes, or all that are there."""
        crew = self._crew
        while not (member.dismissed or self._loop.ended):  # by another thread, say
            crew.touching = member
            try:
                received = member.receive()
            except Cut as cut:
                self._on_cut(member, cut.packet)
                received = None
                continue
            if received is None:
                break
            packet, payload, fds = received
            if type(packet) is ResultPacket:
                if member.inconsistent and (not member.held or member.held[0].number != packet.batch):
                    break  # an exception struck between the arrival of an earlier result and what was to become of it
                self._on_result(member, packet, self._read(member, packet, payload, fds))
            elif isinstance(packet, DescriptorsPacket):
                member.inbox.keep(packet, fds)
            elif isinstance(packet, DiscardDescriptorsPacket):
                member.inbox.discard(packet)
            elif isinstance(packet, ReceivedPacket):
                self._on_received(member, packet)
            elif isinstance(packet, ReadyPacket):
                member.on_ready()
                self.initializers_returned += 1
            elif isinstance(packet, InitFailedPacket):
                member.on_initializer_failed(bytes(payload).decode("utf-8", "replace"))
                break
            else:
                raise ProtocolError(f"worker {member.number} (pid {member.pid}) has sent {packet}")
            crew.touching = None
            if not member.held and not everything:
                break
        crew.touching = None

    def _on_received(self, member: WorkerHandle, packet: ReceivedPacket) -> None:
        """A worker is about to run an item with descriptors that are its own from now on."""
        for batch in member.held:
            if batch.number == packet.batch:
                batch.hand_over()

    def _on_cut(self, member: WorkerHandle, packet: Packet) -> None:
        """A worker has sent descriptors, and this process has no room for them: they are lost."""
        if isinstance(packet, DescriptorsPacket):
            member.inbox.lose(packet)
        elif isinstance(packet, ResultPacket):
            member.give_no_more()  # the worker's handle counts a payload buffer as sent that may have been lost
            self._on_result(member, packet, truncated_outcome(packet))

    def _read(self, member: WorkerHandle, packet: ResultPacket, payload: memoryview, fds: list[int]) -> BatchOutcome:
        outcome = BatchOutcome([], {}, [], None)
        if not packet.descriptors:

            def use(content: memoryview) -> None:
                nonlocal outcome
                outcome = read_outcome(packet, content)

            member.content(packet, payload, fds, use)
            return outcome

        batch = member.held[0]

        def use_with_descriptors(content: memoryview) -> None:
            nonlocal outcome
            outcome = read_outcome(packet, content, functools.partial(batch.job.has_a_reader, batch))

        with member.inbox.gather(packet, fds) as arrival:
            member.content(packet, payload, fds, use_with_descriptors)
        return truncated_outcome(packet) if arrival.is_cut else outcome

    def _on_result(self, member: WorkerHandle, packet: ResultPacket, outcome: BatchOutcome) -> None:
        batch = member.held[0]
        assert batch.number == packet.batch, "a worker reported a batch that it does not hold"
        job, count = batch.job, packet.item_count
        if self._loop.ended:
            return  # by the caller's own code, while it was unpickled
        known = batch.first - packet.first
        if known:  # the item's own signal handler raised between a report and the note that it was sent
            outcome, count = without_first(outcome, known), count - known
            packet = packet._replace(item_count=count)
        values, failed, missing, stamps = outcome
        self._accounts.batch_ran(member, batch, packet, stamps, failed)
        if packet.flags & Flag.PARTIAL:
            self._on_partial(batch, count, values, failed, missing)
            return
        job.sizer.learn(count, packet.took_ns, 1000 * packet.sharing_took_us)
        job.sizer.learn_bytes(max(1, count), packet.size)
        if count < batch.count:
            self._agenda.put_back([batch.keep(count)])
        elif count > batch.count:
            del values[batch.count :]
        failed.update(batch.failed)
        if missing and missing[0].fault == Fault.ROOM:
            self._on_crowded(member, batch, values, failed)
        elif missing and not batch.by_value:
            self._try_by_value(batch, values, failed, missing)
        elif batch.count:
            self._agenda.deliver(batch, values, failed)
        else:
            job.open.pop(batch.number, None)  # nothing of it was begun, and all of it has gone back
        if self._loop.over.is_set():
            return  # by a callback
        member.held.popleft()
        self._after_result(member, batch)

    def _on_partial(
        self, batch: Batch, count: int, values: list[Any], failed: dict[int, BaseException], missing: list[Failure]
    ) -> None:
        """The first items of a batch are finished, and a later one runs."""
        front = batch.cut(count)
        failed.update(front.failed)
        if missing and not front.by_value:
            self._try_by_value(front, values, failed, missing)
        else:
            self._agenda.deliver(front, values, failed)

    def _after_result(self, member: WorkerHandle, batch: Batch) -> None:
        crew = self._crew
        self.reports_handled += 1
        if self._agenda.functions.suspects:
            self._agenda.functions.acquit(self._numbers_of(batch))
        if batch.limit:
            member.slot.words[Word.LIMIT] = NOTHING
        crew.watched.pop(member, None)
        if self._overseer.is_too_large(member):
            member.give_no_more()
        if member.held:
            self._begin(member, member.held[0])
        elif member.retiring:
            crew.finish(member)
        crew.place(member)

    def _on_crowded(
        self, member: WorkerHandle, batch: Batch, values: list[Any], failed: dict[int, BaseException]
    ) -> None:
        """A worker had no room for the descriptors of a batch: each item is tried alone, by others if there are any."""
        member.give_no_more()
        if batch.count > 1:
            self._agenda.deliver_but(batch, sorted(failed.keys() - batch.failed.keys()), values, failed, solo=True)
        else:
            self._agenda.deliver(batch, values, failed)

    # --- by value after all ---------------------------------------------------------------------

    def _try_by_value(
        self, batch: Batch, values: list[Any], failed: dict[int, BaseException], missing: list[Failure]
    ) -> None:
        """A worker did not find something by name: send the items that need it once more, by value."""
        assert self._codec.names is not None
        for failure in missing:
            self._codec.names.distrust(failure.missing or "")
        again = sorted({failure.offset for failure in missing} - batch.failed.keys())
        if any(failure.fault == Fault.FUNCTION for failure in missing):
            try:
                self._renew_functions(batch.job, batch)
            except Exception:
                again = []  # it cannot go by value either: the worker's own error stands
        self._agenda.deliver_but(batch, again, values, failed, by_value=True)

    def _renew_functions(self, job: Job, batch: Batch) -> None:
        functions = self._agenda.functions
        if job.function is not None:
            if batch.function is job.function:
                job.function = functions.again_by_value(job.function)
                job.function.uses = 1
            return
        renewed: dict[int, Function] = {}
        items = list(batch.items)
        for position, (number, *arguments) in enumerate(items):
            old = functions.by_number(number)
            if number not in renewed:
                renewed[number] = functions.again_by_value(old)
            renewed[number].uses += 1
            old.uses -= 1
            items[position] = (renewed[number].number, *arguments)
        batch.renew(items)

    # --- balance --------------------------------------------------------------------------------

    def _recall_for_idle(self) -> bool:
        """Workers have room and no work is left to give: take unread batches from behind long ones."""
        loaded = [member for member in self._crew.members.values() if len(member.held) > 1]
        loaded.sort(key=lambda member: member.held[0].since)
        found = False
        now = time.monotonic()
        for member in loaded[: len(self._crew.empty)]:
            if not self._crew.may_wake(self._spread(member.held[-1].job), now):
                self.holds_back = True
                continue
            recalled = member.recall()
            self._agenda.put_back(recalled)
            self._crew.place(member)
            found = found or any(batch.number in batch.job.open for batch in recalled)
        return found

    def look_after_batches(self) -> None:
        """Tell workers whose batch of several items takes long to hand back what they have not begun.

        The worker stores the index of an item on the board and then reads the limit; here the limit is stored, and
        the index read once that store has surely arrived. If the index is still below the limit, the worker cannot
        begin an item behind it any more, and those are given to others at once, even while a long item runs. In a
        batch of many short items it does not read the limit, and up to `Word.BOUND` they are its own: then it is
        signalled, and lowers that.
        """
        now = time.monotonic()
        if now - self._last_look < WATCH_EVERY / 5:
            return
        self._last_look = now
        for member in list(self._crew.watched):
            batch = member.held[0]
            words = member.slot.words
            item = words[Word.ITEM]
            is_running = words[Word.STATE] in (State.RUNNING, State.KEEPING)
            if words[Word.BATCH] != batch.number or not is_running or item == NOTHING:
                continue
            end, bound = batch.first + batch.count, words[Word.BOUND]
            if now - batch.since <= WATCH_EVERY:
                continue
            if not batch.limit and item + 1 < end:
                batch.limit, batch.limited_at = item + 1, now
                words[Word.LIMIT] = batch.limit
            elif batch.limit and now - batch.limited_at > SETTLE and item < max(batch.limit, bound) < end:
                self._agenda.put_back([batch.keep(max(batch.limit, bound) - batch.first)])
            elif item + 1 == end and (item == batch.first or isinstance(batch.job, MapJob)):
                del self._crew.watched[member]
            # somebody may wait for what is finished before all can go on; of a batch of short ones no more is begun
            is_wanted = bound >= end > item + 1 or (item > batch.first and not isinstance(batch.job, MapJob))
            if is_wanted and now >= batch.hurry_at:
                member.hurry(batch, now)
