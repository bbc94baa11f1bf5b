"""The master's loop: who waits, drives.

    submit ─► inbox ─► jobs ─take─► batch ─encode─► worker's socket        (`_dispatch`)
    result object ◄─deliver─ job ◄─decode─ packet ◄─ worker's socket       (`_on_packet`)
                                   blame, put back ◄─ pidfd: it died       (`_on_death`)

There is no thread but the callers'. Whoever waits takes the lead if nobody has it (`wait`), and drives the loop until its own
result is there; others wait to be told, and one of them takes over. Only the leader touches jobs and crew, so no lock guards
them, and none is held while the caller's code runs: iterators, pickling, callbacks. That code may use the pool, in the leader's
own thread: then it drives too, from within. `Driver` is a daemon thread that waits like everybody else, for calls that nobody waits for.

An exception may strike between any two steps (a KeyboardInterrupt does). A batch is always in its job's `open`, and there
found again by `_mend`; the worker that was being dealt with is replaced.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pairpool import kernel
from pairpool.master import blame
from pairpool.master.crew import Member
from pairpool.master.functions import Function, Functions
from pairpool.master.jobs import Batch, Calls, Job, StreamJob
from pairpool.wire.board import NOTHING, Board, State, Word
from pairpool.wire.channel import Header, Kind, Lost
from pairpool.wire.codec import Birth, Codec
from pairpool.worker import Failure, Fault, Flag, Mode
from pairpool.zygote import SpawnFailed, Spawned, Zygote

__all__ = ["Master"]

WATCH_EVERY = 0.010
"""Seconds that a batch of several items may run before its worker is told to hand back the rest."""

SETTLE = 0.002
"""Seconds after which a store to the board has surely reached the other core."""

LETHAL_FUNCTION = 3
"""Workers that may die while unpickling one function before it is held to be the cause."""

RESPAWN_AFTER = 0.1
"""Seconds after which a fork that the kernel refused is tried again."""

STILLBORN = 3
"""Workers in a row that may end before they did anything, beyond one for each place, before the pool gives up."""

GRACE = 1.0
"""Seconds that workers without a task get to exit by themselves before they are killed."""


class Master:
    """The engine of one pool. `Pool` and the results are its faces.

    Args:
        make_zygote: makes what workers come from; called again if that is killed.
        board, board_fd, stacks: the status board, its memfd, and the memfd for stacks at a fault; owned from here on.
        processes: how many workers to keep.
        maxtasksperchild: tasks after which a worker is replaced; None for never.
        has_initializer: whether workers report when they are ready.
    """

    def __init__(
        self,
        make_zygote: Callable[[], Zygote],
        board: Board,
        board_fd: kernel.Descriptor,
        stacks: kernel.Descriptor,
        processes: int,
        maxtasksperchild: int | None,
        has_initializer: bool,
    ) -> None:
        self.identity = kernel.Identity()
        self._make_zygote = make_zygote
        self.board = board
        self._board_fd = board_fd
        self._stacks = stacks
        self.processes = processes
        self._maxtasks = maxtasksperchild
        self._has_initializer = has_initializer
        self.codec = Codec()
        self.functions = Functions(self.codec)
        self.members: dict[int, Member] = {}
        self.leaving: list[Member] = []
        self._expected: set[int] = set()
        self._lacking: dict[int, float] = {}
        self._watched: dict[int, Callable[[int], None]] = {}
        self._multi: dict[Member, None] = {}
        self._empty: dict[Member, None] = {}
        self._single: dict[Member, None] = {}
        self.inbox: deque[Callable[[], None]] = deque()
        self.jobs: deque[Job] = deque()
        self.unfinished: dict[Job, None] = {}
        self.later: deque[Callable[[], None]] = deque()
        self.broken: BaseException | None = None
        self.ended = False
        self._closing = False
        self.created = board.created
        self._over = threading.Event()
        self._lead = threading.Lock()
        self._leader = 0
        self._depth = 0
        self._followers: dict[Any, Callable[[], bool]] = {}
        self._polling = False
        self._touching: Member | None = None
        self._stillborn = 0
        self._last_look = 0.0
        self.driver: Driver | None = None
        self._epoll = select.epoll()
        self._wakeup = kernel.Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        for thing in (self._epoll, self._wakeup):
            kernel.own(thing)
        self._watch(self._wakeup.fileno(), self._on_wakeup)
        self.zygote = make_zygote()
        for fd in self.zygote.watched():
            self._watch(fd, self._on_zygote)

    # --- being born -----------------------------------------------------------------------------

    def start(self) -> None:
        """Ask for all workers and wait until they are there. Raises `OSError` if one cannot be made."""
        for number in range(self.processes):
            self._request(number)
        self._take_stock()
        while self._expected and self.broken is None:
            self.zygote.wait(None)
            self._on_zygote(0)
        if self.broken is not None:
            raise self.broken
        assert self.codec.birth is not None
        self.codec.birth.main_names = self.zygote.main_names

    def _take_stock(self) -> None:
        """Note what the workers inherit; done while the zygote forks, for it takes about as long."""
        self.codec.birth = Birth(self.zygote.main_names)

    def _request(self, number: int) -> None:
        self._expected.add(number)
        try:
            self.zygote.request(number)
        except Lost:
            return  # `_on_zygote` is told as well
        if not self.zygote.watched():
            self._on_zygote(0)

    def _on_zygote(self, _events: int) -> None:
        """Take what the zygote has sent; if it has ended, make another."""
        while True:
            try:
                answer = self.zygote.receive()
            except Lost:
                self._on_zygote_lost()
                return
            if answer is None:
                return
            self._expected.discard(answer.slot)
            if isinstance(answer, SpawnFailed):
                self._on_spawn_failed(answer)
            else:
                self._enlist(answer)

    def _on_spawn_failed(self, answer: SpawnFailed) -> None:
        """A fork that failed is tried again later while other workers go on; without any, it is the end."""
        error = answer.error
        limits = {errno.EAGAIN: "RLIMIT_NPROC or the cgroup's pids.max", errno.EMFILE: "RLIMIT_NOFILE"}
        limit = limits.get(error.errno or 0, "memory")
        if self.codec.birth is not None and self.unfinished and (self.members or self._expected):
            self._lacking[answer.slot] = time.monotonic() + RESPAWN_AFTER
            return
        number = error.errno or errno.EAGAIN
        text = f"worker {answer.slot} of {self.processes} could not be made: {error.strerror} (limit: {limit})"
        self._break(OSError(number, text))

    def _on_zygote_lost(self) -> None:
        """The zygote was killed: its workers die with it, a new one is made, and the pool goes on."""
        for fd in self.zygote.watched():
            self._unwatch(fd)
        self.zygote.close()
        self._stillborn += 1
        if self._stillborn > STILLBORN:
            self._break(OSError(errno.ECHILD, "the zygote, which forks the workers, was killed again and again"))
            return
        try:
            self.zygote = self._make_zygote()
        except OSError as error:
            self._break(error)
            return
        self._take_stock()
        for fd in self.zygote.watched():
            self._watch(fd, self._on_zygote)
        for number in sorted(self._expected):
            self.zygote.request(number)

    def _request_lacking(self) -> None:
        now = time.monotonic()
        for number in [number for number, at in self._lacking.items() if at <= now]:
            del self._lacking[number]
            if number not in self.members and number < self.processes:
                self._request(number)

    def _enlist(self, spawned: Spawned) -> None:
        member = Member(spawned, self.board.slot(spawned.slot))
        self.members[member.number] = member
        self._watch(member.channel.fileno(), lambda events: self._on_packets(member, events))
        self._watch(member.pidfd.fileno(), lambda _events: self._on_death(member))
        if self._has_initializer:
            member.post(Header(Kind.START))
        else:
            member.started = True
        if spawned.slot >= self.processes:
            self._retire(member)
        self._place(member)

    def _watch(self, fd: int, handler: Callable[[int], None]) -> None:
        self._watched[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._watched[fd]
        self._epoll.unregister(fd)

    # --- who drives -----------------------------------------------------------------------------

    def submit(self, action: Callable[[], None]) -> None:
        """Have the leader run `action`, which may add jobs; from any thread, at any time."""
        self.inbox.append(action)
        self.wake()

    def wake(self) -> None:
        """Make a waiting leader look at the inbox."""
        if self._polling:
            self._polling = False
            os.eventfd_write(self._wakeup.fileno(), 1)

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Drive the loop, or be told, until `ready()` or `timeout` seconds have passed; returns `ready()`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        me = threading.get_ident()
        while not ready():
            if self._leader == me:
                return self._drive(ready, deadline)  # the caller's code, called by this very loop
            if self.ended:
                self._over.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
                return ready()
            if self._lead.acquire(blocking=False):
                if self._lead_until(ready, deadline, me) or not self.ended:
                    return ready()
            elif not self._follow(ready, deadline):
                return ready()
        return True

    def _lead_until(self, ready: Callable[[], bool], deadline: float | None, me: int) -> bool:
        self._leader = me
        try:
            return self._drive(ready, deadline)
        finally:
            self._leader = 0
            self._lead.release()
            self._tell_followers(hand_over=True)

    def _follow(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Wait to be told; False if the time is up."""
        told = threading.Lock()
        told.acquire()
        self._followers[told] = ready
        try:
            if ready() or not self._lead.locked():
                return True
            if deadline is None:
                return told.acquire()
            return told.acquire(timeout=max(0.0, deadline - time.monotonic()))
        finally:
            del self._followers[told]

    def _tell_followers(self, *, hand_over: bool) -> None:
        if not self._followers:
            return
        for told, ready in list(self._followers.items()):
            if hand_over or ready():
                _release(told)
                if hand_over:
                    return

    def _drive(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        while not ready():
            timeout = -1.0
            if deadline is not None:
                timeout = deadline - time.monotonic()
                if timeout <= 0:
                    return False
            self._turn(timeout, ready)
            if self.ended:
                return ready()
        return True

    def poke(self) -> None:
        """Do what can be done now without waiting, if nobody else is at it."""
        me = threading.get_ident()
        if not self.ended and self._leader != me and self._lead.acquire(blocking=False):
            self._leader = me
            try:
                self._turn(0.0, _never)
            finally:
                self._leader = 0
                self._lead.release()
                self._tell_followers(hand_over=True)

    # --- one turn -------------------------------------------------------------------------------

    def _turn(self, timeout: float, ready: Callable[[], bool]) -> None:
        """Send what can be sent, wait for something to happen, deal with it."""
        self._depth += 1
        try:
            while self.inbox:
                self.inbox.popleft()()
            if self._lacking:
                self._request_lacking()
            self._dispatch()
            self._run_later()
            if self.ended or ready():
                return
            if (self._multi or self._lacking) and not 0 <= timeout < WATCH_EVERY:
                timeout = WATCH_EVERY
            for fd, events in self._poll(timeout):
                handler = self._watched.get(fd)
                if handler is not None:
                    handler(events)
            if self._multi:
                self._look_after_batches()
            self._run_later()
        except BaseException:
            self._mend()
            raise
        finally:
            self._depth -= 1
        if self._followers:
            self._tell_followers(hand_over=False)

    def _poll(self, timeout: float) -> list[tuple[int, int]]:
        self._polling = True
        try:
            return self._epoll.poll(0 if self.inbox else timeout)
        finally:
            self._polling = False

    def _on_wakeup(self, _events: int) -> None:
        try:
            os.eventfd_read(self._wakeup.fileno())
        except BlockingIOError:
            pass  # another turn, further out on this stack, has read it

    def _run_later(self) -> None:
        while self.later:
            self.later.popleft()()

    def _mend(self) -> None:
        """After an exception struck somewhere: no batch may be lost, no worker in an unknown state."""
        member, self._touching = self._touching, None
        if member is not None and not member.dismissed:
            kernel.send_signal(member.pidfd.fileno(), signal.SIGKILL)
        held = {batch.number for one in [*self.members.values(), *self.leaving] for batch in one.held}
        for job in list(self.unfinished):
            waiting = {batch.number for batch in job.again}
            for batch in list(job.open.values()):
                if batch.number not in held and batch.number not in waiting:
                    job.put_back(batch)
            self._requeue(job)

    # --- work out -------------------------------------------------------------------------------

    def add_job(self, job: Job) -> None:
        """Append a job; called by the leader, from the inbox."""
        if self.broken is not None or self.ended:
            job.cancel(self.broken or blame.terminated())
            return
        self.unfinished[job] = None
        if job.done:
            job.end()
            self._finish(job)
        else:
            self.jobs.append(job)

    def add_call(self, target: Any, number: int, args: Any, kwds: Any) -> None:
        """Append a single call, to those before it if nothing stands between; called by the leader, from the inbox."""
        last = self.jobs[-1] if self.jobs else None
        if isinstance(last, Calls):
            last.add(target, number, args, kwds)
            return
        job = Calls(Mode.CALL)
        job.add(target, number, args, kwds)
        self.add_job(job)

    def abandon(self, job: StreamJob, *, half_used: bool) -> None:
        """Nobody will read a stream any more; from any thread."""
        if half_used:
            self.submit(lambda: self.cancel_job(job, blame.abandoned()))
        else:
            self.submit(job.discard)
        if not self._depth:
            self.poke()

    def expect_no_reader(self) -> None:
        """Let streams run ahead of their readers, who come after the end of the pool."""
        for job in self.unfinished:
            if isinstance(job, StreamJob):
                job.unbounded = True

    def close(self) -> None:
        """Let the workers exit if nothing is left to do; called by the leader, from the inbox."""
        self._closing = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._closing and not self.unfinished:
            for member in list(self.members.values()):
                self._retire(member)

    def _requeue(self, job: Job) -> None:
        """Have a job whose batches came back looked at first."""
        if (job.again or job.has_more) and job not in self.jobs:
            self.jobs.appendleft(job)

    def _dispatch(self) -> None:
        while self.jobs and self._find_room() is not None:
            batch = self._next_batch()
            if batch is None:
                break
            self._prepare_and_send(batch)
        if self._empty and self.unfinished:
            self._balance()

    def _place(self, member: Member) -> None:
        """Note how much room a worker has, after what it holds or may hold has changed."""
        self._empty.pop(member, None)
        self._single.pop(member, None)
        if member.retiring or self.members.get(member.number) is not member:
            return
        if not member.held:
            self._empty[member] = None
        elif len(member.held) == 1:
            self._single[member] = None

    def _find_room(self) -> Member | None:
        """A worker that can take a batch: one that has none, else one whose only batch is short."""
        if self._empty:
            return next(iter(self._empty))
        for member in itertools.islice(self._single, 8):
            if member.held[0].job.sizer.is_short():
                return member
        return None

    def _next_batch(self) -> Batch | None:
        workers = max(1, len(self.members))
        for job in list(self.jobs):
            batch = job.take(workers)
            if batch is not None:
                return batch
            if not job.has_more:
                if job in self.jobs:
                    self.jobs.remove(job)
                self._finish(job)
        return None

    def _prepare_and_send(self, batch: Batch) -> None:
        """Pickle a batch (the caller's code) and give it to a worker that still has room."""
        job = batch.job
        batch.function = job.function
        if job.function is not None and job.function.deaths >= LETHAL_FUNCTION:
            self._fail_all(batch, blame.lethal_function(job.function))
            return
        if batch.encoded is None:
            batch.failed = {}
            try:
                batch.encoded = self.codec.encode(
                    batch.items, batch.failed.__setitem__, by_value=batch.by_value
                )
            except Exception as error:
                self._fail_all(batch, error)
                return
        if len(batch.failed) == batch.count:
            self._deliver(batch, [None] * batch.count, batch.failed)
            return
        member = self._find_room()
        if member is None:
            job.put_back(batch)
            self._requeue(job)
            return
        self._touching = member
        self._give(member, batch)
        self._touching = None

    def _give(self, member: Member, batch: Batch) -> None:
        job, encoded = batch.job, batch.encoded
        assert encoded is not None
        functions = [batch.function] if batch.function is not None else self._functions_of(batch)
        if not member.held:
            self._began(member, batch)
        member.held.append(batch)
        flags = Flag.BY_VALUE if encoded.by_value or any(one.by_value for one in functions) else 0
        header = Header(
            Kind.BATCH,
            flags=flags,
            mode=job.mode,
            format=encoded.format,
            function=functions[0].number,
            batch=batch.number,
            first=batch.first,
            count=batch.count,
        )
        try:
            for function in functions:
                if function.number not in member.knows:
                    self._teach(member, function)
            member.post(header, encoded.pieces, encoded.size)
        except OSError as error:
            member.held.remove(batch)
            self._multi.pop(member, None)
            self._place(member)
            self._fail_all(batch, error)
            return
        job.sizer.learn_bytes(batch.count, encoded.size)
        batch.encoded = None
        self._after_giving(member, job, batch)

    def _after_giving(self, member: Member, job: Job, batch: Batch) -> None:
        if self._maxtasks is not None:
            member.given += 1 if job.sizer.chunksize is not None else batch.count
            member.retiring = member.retiring or member.given >= self._maxtasks
        if member.wants_room:
            self._epoll.modify(member.channel.fileno(), select.EPOLLIN | select.EPOLLOUT)
        self._place(member)

    def _functions_of(self, batch: Batch) -> list[Function]:
        numbers = dict.fromkeys(item[0] for item in batch.items)
        return [self.functions.by_number(number) for number in numbers]

    def _teach(self, member: Member, function: Function) -> None:
        member.knows.add(function.number)
        self.board.name_function(function.number, function.name)
        member.post(
            Header(Kind.FUNCTION, function=function.number), function.encoded.pieces, function.encoded.size
        )

    def forget(self, numbers: list[int]) -> None:
        """Have every worker drop functions that no call needs any more."""
        for member in list(self.members.values()):
            for number in numbers:
                if number in member.knows and not member.dismissed:
                    member.knows.discard(number)
                    member.post(Header(Kind.FORGET, function=number))

    # --- work back ------------------------------------------------------------------------------

    def _on_packets(self, member: Member, events: int) -> None:
        if events & select.EPOLLOUT and not member.dismissed:
            member.flush()
            if not member.wants_room:
                self._epoll.modify(member.channel.fileno(), select.EPOLLIN)
        if events & ~select.EPOLLOUT:
            self._drain(member, everything=False)

    def _drain(self, member: Member, *, everything: bool) -> None:
        """Deal with the packets from one worker: as many as it owes, or all that are there."""
        while not member.dismissed:
            self._touching = member
            packet = member.receive()
            if packet is None:
                break
            header, payload, fds = packet
            if header.kind == Kind.RESULT:
                self._on_result(member, header, payload, fds)
            elif header.kind == Kind.READY:
                member.started = True
                self._stillborn = 0
            elif header.kind == Kind.INIT_FAILED:
                self._break(blame.initializer_failed(bytes(payload).decode("utf-8", "replace")))
                break
            self._touching = None
            if not member.held and not everything:
                break
        self._touching = None

    def _on_result(self, member: Member, header: Header, payload: memoryview, fds: list[int]) -> None:
        batch = member.held[0]
        assert batch.number == header.batch, "a worker reported a batch that it does not hold"
        job = batch.job
        self._stillborn = 0
        outcome: tuple[list[Any], dict[int, BaseException], list[Failure]] = ([], {}, [])

        def use(content: memoryview) -> None:
            nonlocal outcome
            outcome = blame.read_outcome(header, content)

        member.content(header, payload, fds, use)
        if self.ended:
            return  # by the caller's own code, while it was unpickled
        values, failed, missing = outcome
        count = header.count
        if count:
            job.sizer.learn(count, header.nanoseconds)
            job.sizer.learn_bytes(count, header.size)
        if count < batch.count:
            job.put_back(batch.keep(count))
            self._requeue(job)
        elif count > batch.count:
            del values[batch.count :]
        if missing:
            self._try_by_value(batch, values, failed, missing)
        else:
            failed.update(batch.failed)
            self._deliver(batch, values, failed)
        member.held.popleft()
        self._after_result(member, batch)

    def _after_result(self, member: Member, batch: Batch) -> None:
        if batch.limit:
            member.slot.words[Word.LIMIT] = NOTHING
        self._multi.pop(member, None)
        if member.held:
            self._began(member, member.held[0])
        if member.retiring and not member.held:
            self._retire(member)
        self._place(member)

    def _began(self, member: Member, batch: Batch) -> None:
        """A batch is now the one that its worker runs."""
        if batch.count > 1 and batch.job.sizer.chunksize is None:
            batch.since = time.monotonic()
            self._multi[member] = None

    def _deliver(self, batch: Batch, values: list[Any], failed: dict[int, BaseException]) -> None:
        job = batch.job
        if job.function is None and batch.number in job.open:
            for item in batch.items:
                self.forget(self.functions.release(self.functions.by_number(item[0])))
        job.deliver(batch, values, failed)
        if not job.open:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        """Let go of a job if all its items have ended."""
        if job.done and job in self.unfinished:
            del self.unfinished[job]
            if job in self.jobs:
                self.jobs.remove(job)
            if job.function is not None:
                self.forget(self.functions.release(job.function))
            self._close_if_idle()

    def _fail_all(self, batch: Batch, error: BaseException) -> None:
        failed = dict.fromkeys(range(batch.count), error)
        self._deliver(batch, [None] * batch.count, failed)

    def _try_by_value(
        self,
        batch: Batch,
        values: list[Any],
        failed: dict[int, BaseException],
        missing: list[Failure],
    ) -> None:
        """A worker did not find something by name: send what needs it again, by value, once."""
        job = batch.job
        assert self.codec.birth is not None
        again = set()
        for failure in missing:
            assert failure.missing is not None
            self.codec.birth.distrust(failure.missing)
            if not batch.by_value:
                again.add(failure.offset)
        if any(failure.fault == Fault.FUNCTION for failure in missing) and not batch.by_value:
            try:
                self._renew_functions(job, batch)
            except Exception:
                again.clear()  # it cannot go by value either: the worker's own error stands
        parts = []
        start = 0
        failed.update(batch.failed)
        for offset in [*sorted(again), batch.count]:
            if offset > start:
                done = batch.part(start, offset)
                picked = {key - start: failed[key] for key in failed if start <= key < offset}
                parts.append((done, values[start:offset], picked))
            start = offset + 1
        retried = [batch.part(offset, offset + 1) for offset in sorted(again)]
        job.open.pop(batch.number, None)
        for part in retried:
            part.by_value = True
            job.put_back(part)
        self._requeue(job)
        for done, some_values, some_failed in parts:
            self._deliver(done, some_values, some_failed)

    def _renew_functions(self, job: Job, batch: Batch) -> None:
        if job.function is not None:
            if batch.function is job.function:
                job.function = self.functions.again_by_value(job.function)
                job.function.uses = 1
            return
        renewed: dict[int, int] = {}
        for position, (number, args, kwds) in enumerate(batch.items):
            old = self.functions.by_number(number)
            if number not in renewed:
                renewed[number] = self.functions.again_by_value(old).number
            self.functions.by_number(renewed[number]).uses += 1
            old.uses -= 1
            batch.items[position] = (renewed[number], args, kwds)  # type: ignore[index]

    # --- balance --------------------------------------------------------------------------------

    def _balance(self) -> None:
        """Workers have room and no work is left to give: take unread batches from behind long ones."""
        idle = len(self._empty)
        loaded = [member for member in self.members.values() if len(member.held) > 1]
        for member in loaded[:idle]:
            recalled = member.recall()
            for batch in recalled:
                batch.job.put_back(batch)
                self._requeue(batch.job)
            self._place(member)
        if self.jobs and any(job.again for job in self.jobs):
            self._dispatch()

    def _look_after_batches(self) -> None:
        """Tell workers whose batch of several items takes long to hand back what they have not begun.

        The worker stores the index of an item on the board and then reads the limit; here the limit is stored, and the index read
        once that store has surely arrived. If the index is still below the limit, the worker cannot begin an item
        behind it any more, and those are given to others at once, even while a long item runs.
        """
        now = time.monotonic()
        if now - self._last_look < WATCH_EVERY / 5:
            return
        self._last_look = now
        for member in list(self._multi):
            batch = member.held[0]
            words = member.slot.words
            item = words[Word.ITEM]
            if words[Word.BATCH] != batch.number or words[Word.STATE] != State.RUNNING or item == NOTHING:
                continue
            if not batch.limit:
                if now - batch.since > WATCH_EVERY and item + 1 < batch.first + batch.count:
                    batch.limit, batch.limited_at = item + 1, now
                    words[Word.LIMIT] = batch.limit
            elif now - batch.limited_at > SETTLE and item < batch.limit:
                self._multi.pop(member)
                if batch.limit < batch.first + batch.count:
                    batch.job.put_back(batch.keep(batch.limit - batch.first))
                    self._requeue(batch.job)

    # --- death ----------------------------------------------------------------------------------

    def _on_death(self, member: Member) -> None:
        """A worker has ended: read what it had sent, take back what it had not read, blame what it was running."""
        self._drain(member, everything=True)
        if self.ended:
            return
        self._touching = member
        self._unwatch(member.pidfd.fileno())
        if not member.dismissed:
            self._unwatch(member.channel.fileno())
        self._multi.pop(member, None)
        if self.members.get(member.number) is member:
            del self.members[member.number]
        else:
            self.leaving.remove(member)
        self._place(member)
        was_dismissed = member.dismissed
        if not was_dismissed:
            recalled = member.recall()
            unfinished = list(member.held)
            member.held.clear()
            self._settle_accounts(member, unfinished, recalled)
        self.zygote.reaped(member.pid)
        member.close()
        self._touching = None
        if not was_dismissed:
            self._replace(member)

    def _settle_accounts(self, member: Member, unfinished: list[Batch], recalled: list[Batch]) -> None:
        death = blame.Death(member, self._stacks.fileno(), self.board)
        if not member.started and self._has_initializer:
            self._break(blame.initializer_died(death))
            return
        suspect = death.function_being_loaded
        if suspect is not None:
            for function in self._known_functions(recalled, suspect):
                function.deaths += 1
        for batch in recalled:
            batch.job.put_back(batch)
            self._requeue(batch.job)
        for batch in unfinished:
            job = batch.job
            culprit = death.culprit(batch, unfinished)
            parts: list[Batch] = []
            if culprit is None:
                batch.solo = batch.solo or death.is_in_doubt(batch)
                parts.append(batch.part(0, batch.count))
            else:
                name = job.function.name if job.function is not None else self._call_name(batch, culprit)
                error = death.error(name, batch.first + culprit if batch.targets is None else 0)
                parts += [batch.part(0, culprit)] if culprit else []
                parts += [batch.part(culprit + 1, batch.count)] if culprit + 1 < batch.count else []
                victim = batch.part(culprit, culprit + 1)
                job.replace(batch, parts)
                self._requeue(job)
                self._fail_all(victim, error)
                continue
            job.replace(batch, parts)
            self._requeue(job)

    def _known_functions(self, batches: list[Batch], number: int) -> list[Function]:
        for batch in batches:
            functions = [batch.function] if batch.function is not None else self._functions_of(batch)
            found = [function for function in functions if function.number == number]
            if found:
                return found
        return []

    def _call_name(self, batch: Batch, offset: int) -> str:
        function = self.functions.find(batch.items[offset][0])
        return "a call" if function is None else function.name

    def _replace(self, member: Member) -> None:
        """Have a new worker in the place of one that ended, unless the pool is at its end or has no use for it."""
        if self.broken is not None or member.number >= self.processes or member.number in self.members:
            return
        if self._closing_down:
            return
        words = member.slot.words
        if words[Word.DONE] == 0 and words[Word.BATCH] == 0 and not member.retiring:
            self._stillborn += 1
            if self._stillborn > STILLBORN + self.processes:
                self._break(blame.stillborn(self._stillborn))
                return
        words[Word.REPLACED] += 1
        self._request(member.number)

    def _retire(self, member: Member) -> None:
        """Let a worker exit and put another in its place at once."""
        if self.members.get(member.number) is not member:
            return
        member.retiring = True
        del self.members[member.number]
        self.leaving.append(member)
        self._place(member)
        self._unwatch(member.channel.fileno())
        member.dismiss()
        if member.number < self.processes and not self.ended and not self._closing_down:
            member.slot.words[Word.REPLACED] += 1
            self._request(member.number)

    def _break(self, reason: BaseException) -> None:
        """The pool cannot work any more: every call ends with `reason`."""
        if self.broken is None:
            self.broken = reason
        for job in list(self.unfinished):
            job.cancel(reason)
            self._finish(job)
            self.unfinished.pop(job, None)
        self.jobs.clear()

    # --- sizes and ends -------------------------------------------------------------------------

    def resize(self, processes: int) -> None:
        """Keep this many workers from now on; called by the leader, from the inbox."""
        before, self.processes = self.processes, processes
        for number in range(before, processes):
            if number not in self.members and number not in self._expected:
                self._request(number)
        for number in range(processes, before):
            member = self.members.get(number)
            if member is not None:
                member.retiring = True
                self._place(member)
                if not member.held:
                    self._retire(member)

    def cancel_job(self, job: Job, reason: BaseException) -> None:
        """End a call: take back what is queued, kill the workers that run its items; called by the leader."""
        if job not in self.unfinished:
            return
        job.cancel(reason)
        for member in list(self.members.values()):
            if any(batch.job is job for batch in member.held):
                for batch in member.recall():
                    batch.job.put_back(batch)
                    self._requeue(batch.job)
                if any(batch.job is job for batch in member.held):
                    kernel.send_signal(member.pidfd.fileno(), signal.SIGKILL)
                self._place(member)
        self._finish(job)

    @property
    def _closing_down(self) -> bool:
        return self._closing and not self.unfinished

    @property
    def is_waiting_for_workers(self) -> bool:
        """Whether workers that were asked for are not there yet."""
        return bool(self._expected)

    @property
    def is_idle(self) -> bool:
        return not self.unfinished and not self.inbox and not self.later

    def terminate(self, *, patient: bool = False) -> None:
        """End everything now: workers with a task are killed, others exit; every call that has not ended is cancelled.

        With `patient`, workers may take all the time they need to exit; else they have `GRACE`.
        """
        me = threading.get_ident()
        self.ended = True
        if self._leader != me:
            self.wake()
            self._lead.acquire()
            self._leader = me
        try:
            self._end(None if patient else GRACE)
        finally:
            self._leader = 0 if self._depth == 0 else me
            if self._depth == 0:
                self._lead.release()
            self._tell_followers(hand_over=False)
        self._run_later()
        driver = self.driver
        if driver is not None and driver is not threading.current_thread():
            driver.stop()

    def _end(self, grace: float | None) -> None:
        if self._over.is_set():
            return
        reason = self.broken or blame.terminated()
        while self.inbox:
            self.inbox.popleft()()
        for job in list(self.unfinished):
            job.cancel(reason)
        self.unfinished.clear()
        self.jobs.clear()
        crew = [*self.members.values(), *self.leaving]
        for member in crew:
            if member.held or (not member.started and self._has_initializer):
                kernel.send_signal(member.pidfd.fileno(), signal.SIGKILL)
            elif not member.dismissed:
                member.dismiss()
        deadline = None if grace is None else time.monotonic() + grace
        for member in crew:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not kernel.wait_ended(member.pidfd.fileno(), left):
                kernel.send_signal(member.pidfd.fileno(), signal.SIGKILL)
                kernel.wait_ended(member.pidfd.fileno(), GRACE)
            member.held.clear()
            member.close()
        self.members.clear()
        self.leaving.clear()
        self._empty.clear()
        self._single.clear()
        self._multi.clear()
        self._drop_latecomers()
        self.zygote.close()
        self._watched.clear()
        for thing in (self._epoll, self._wakeup, self._board_fd, self._stacks):
            kernel.disown(thing)
            thing.close()
        self.board.close()
        self._over.set()

    def _drop_latecomers(self) -> None:
        """Workers that were asked for and arrived too late to be enlisted."""
        while True:
            try:
                answer = self.zygote.receive()
            except Lost:
                return
            if answer is None:
                return
            if isinstance(answer, Spawned):
                kernel.send_signal(answer.pidfd.fileno(), signal.SIGKILL)
                for thing in (answer.near, answer.far, answer.pidfd):
                    thing.close()

    def drive_in_background(self) -> None:
        """Have a daemon thread wait for what nobody waits for."""
        if self.driver is None:
            self.driver = Driver(self)
            self.driver.start()
        else:
            self.driver.nudge()


class Driver(threading.Thread):
    """A daemon thread that waits until no call is left, and then sleeps until there is one again."""

    def __init__(self, master: Master) -> None:
        super().__init__(name="pairpool-driver", daemon=True)
        self._master = master
        self._work = threading.Semaphore(1)
        self._stopped = False

    def run(self) -> None:
        master = self._master
        while not (self._stopped or master.ended):
            self._work.acquire()
            try:
                master.wait(lambda: master.is_idle or master.ended)
            except BaseException:
                sys.excepthook(*sys.exc_info())

    def nudge(self) -> None:
        """There is work: wake the thread if it sleeps."""
        if not self._work._value:
            self._work.release()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopped = True
        self._work.release()
        self.join()


def _never() -> bool:
    return False


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:
        pass  # told twice: once is enough
