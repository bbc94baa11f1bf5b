"""The one epoll loop, and who drives it: whoever waits.

There is no thread but the callers'. Whoever waits takes the lead if nobody has it, and turns the loop until its own
result is there; others wait to be told, and one of them takes over. Only the leader touches jobs and crew, so no
lock guards them, and none is held while the caller's code runs: iterators, pickling, callbacks. That code may use
the pool, in the leader's own thread: then it drives too, from within. `DriverThread` is a daemon thread that waits like
everybody else, for calls that nobody waits for. An event loop does not wait here: it watches `descriptor`, and comes by
for a moment whenever there is something to do (`visit`).

An exception may strike between any two steps, as handlers of signals raise them. So the lead is one entry of a dict,
put there and taken away by single steps of the interpreter, and whoever is thrown out of a wait looks whether it left
its own there. A turn that was cut short is mended, at the latest by the next one.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from pairpool.linux import descriptors, interrupts
from pairpool.linux.spin import SPIN_NS, Spinning

T = TypeVar("T")

__all__ = ["EventLoop", "LoopWork"]

_LEADER = 0

FINEST = 0.001
"""The shortest time in seconds that epoll_wait(2) can wait."""

LOOK_UP = 1.0
"""Seconds after which a wait of the main thread looks for signals: one whose handler in C has run just before a wait,
or in another thread, does not end it."""

DEFERENCE = 0.01
"""Seconds for which a thread that only looks leaves the lead to those who wait, or to the event loop that comes by."""

EVENTS = 64
"""Events that one look may give; epoll(7) hands out the others at the next."""


class LoopWork(Protocol):
    """What the loop turns."""

    def prepare(self, stays: bool) -> float:
        """Before the loop waits: send what can be sent. Returns the longest time to wait in seconds, -1 for any.

        Args:
            stays: the leader waits for something, and will be back; else nobody may come for long.
        """

    def has_a_core_free(self) -> bool:
        """Whether the loop may look for events without sleeping, for no worker needs the core that this takes."""

    def tend(self) -> None:
        """After events were dealt with, or the time was up."""

    def mend(self) -> None:
        """After an exception struck somewhere in a turn."""


class EventLoop:
    """An epoll loop that is driven by the threads that wait for something.

    Attributes:
        inbox: actions for the leader, from any thread; to run one twice does no harm.
        later: callbacks, run between two packets.
        finished: pools of calls that have ended. The last reference to a pool ends it, so it is let go of where
            callbacks are run, and not in the midst of a packet.
        ended: set when the pool is to end; no turn does anything after that.
        over: set when it has ended.
        attendant: called, in any thread, when something may be left to do and nobody waits here who would do it; for
            those who `visit`.
        standby: the same for those who `stand_in`.
    """

    def __init__(self, work: LoopWork) -> None:
        self._work = work
        self.inbox: deque[Callable[[], object]] = deque()
        self.later: deque[Callable[[], object]] = deque()
        self.finished: list[object] = []
        self.ended = False
        self.over = threading.Event()
        self.attendant: Callable[[], None] | None = None
        self.standby: Callable[[], None] | None = None
        self._lead: dict[int, int] = {}
        self._depth = 0
        self._is_torn = False
        self._focus: object = None
        self._followers: dict[Any, Callable[[], bool]] = {}
        self._deferring: set[Any] = set()
        self._visitor = 0
        self._polling = False
        self._spinning = Spinning()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._epoll = select.epoll()
        self._wakeup = descriptors.Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        for thing in (self._epoll, self._wakeup):
            descriptors.own(thing)
        self.watch(self._wakeup.fileno(), self._on_wakeup)

    # --- descriptors ----------------------------------------------------------------------------

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with the events whenever the descriptor is readable."""
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def watch_for_room(self, fd: int, wanted: bool) -> None:
        """Whether the handler is to be called also when the descriptor can be written."""
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    @property
    def descriptor(self) -> int:
        """Readable when there is something to do that no turn has done."""
        return self._epoll.fileno()

    # --- who drives -----------------------------------------------------------------------------

    def submit(self, action: Callable[[], object]) -> None:
        """Have the leader run `action`; from any thread, at any time."""
        self.inbox.append(action)
        self.wake()

    def slip_in(self, action: Callable[[], object]) -> None:
        """Run `action` now if nobody leads, else have the leader do it; from any thread, and from a `__del__`.

        Nothing but the action is run here: it must be short, and none of the caller's code.
        """
        if self._lead:  # by this thread, perhaps, whose `_take_lead` would succeed
            self.submit(action)
            return
        try:
            if self._take_lead() and not self.ended:
                action()
            else:
                self.submit(action)
        finally:
            self._leave_lead()

    def wake(self) -> None:
        """Make a waiting leader look at the inbox."""
        if self._polling:
            self._polling = False
            os.eventfd_write(self._wakeup.fileno(), 1)

    @property
    def is_mine(self) -> bool:
        """Whether this thread is the leader, and has been called back by the loop."""
        return self._lead.get(_LEADER) == threading.get_ident() and self._depth > 0

    def wait(self, ready: Callable[[], bool], timeout: float | None = None, focus: object = None) -> bool:
        """Drive the loop, or be told, until `ready()` or `timeout` seconds have passed; returns `ready()`.

        Args:
            focus: what is waited for, where it matters (see `is_in_the_way`).

        Raises:
            KeyboardInterrupt, and whatever else a signal's handler raises: between two turns (see `interrupts`).
        """
        if ready():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            guard = interrupts.hold(self._look_up)
            if guard is None:
                return self._wait(ready, deadline, focus)
            found = self._wait_guarded(guard, ready, deadline, focus)
            if found is not None:
                return found

    def _wait_guarded(
        self, guard: interrupts.Guard, ready: Callable[[], bool], deadline: float | None, focus: object
    ) -> bool | None:
        """`_wait`, and then call the handlers that were held back; None if that was all it ended for."""
        pending = guard.pending
        try:
            found = self._wait(lambda: bool(pending) or ready(), deadline, focus)
            return found if not (found and pending) or ready() else None
        finally:
            guard.release()

    def stand_in(self, ready: Callable[[], bool]) -> None:
        """Drive until `ready()`, for those who do not wait here; if somebody leads, return: `standby` tells when not.

        Not to be among the followers means not to be woken, twice, by each call that somebody submits and waits for.
        """
        try:
            if not (self.ended or ready()) and self._take_lead():
                self._drive(ready, None)
        finally:
            self._leave_lead()

    def undisturbed(self, function: Callable[[], T]) -> T:
        """Call a function that drives; handlers of signals are held back meanwhile."""
        guard = interrupts.hold(self._look_up)
        if guard is None:
            return function()
        try:
            return function()
        finally:
            guard.release()

    def _look_up(self) -> None:
        """Called by a signal handler of a thread that waits here: have it see whether it still has to."""
        if not self.ended:
            os.eventfd_write(self._wakeup.fileno(), 1)
        for told in list(self._followers):
            _release(told)

    def _wait(self, ready: Callable[[], bool], deadline: float | None, focus: object) -> bool:
        defers = self._is_visited_elsewhere()
        try:
            while not ready():
                if self.is_mine:
                    return self._drive_within(ready, deadline, focus)
                if self.ended:
                    self.over.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
                    return ready()
                if defers:
                    defers = False
                    self._defer(ready, deadline)
                elif self._take_lead():
                    done = self._drive(ready, deadline)
                    self._leave_lead()
                    if done or not self.ended:
                        return done
                elif not self._follow(ready, deadline):
                    return ready()
        finally:
            self._leave_lead()
        return True

    def is_in_the_way(self, thing: object) -> bool:
        """Whether the caller's code for `thing` must not be run now, as other such code is further out on the stack.

        Say that a stream's input reads a second stream, and that one's a third. While the second waits for the third,
        running the first one's input would wait for the second, which cannot go on below it. So, inside of such code,
        only that is run which it waits for.
        """
        return self._depth > 1 and self._focus is not thing

    def _drive_within(self, ready: Callable[[], bool], deadline: float | None, focus: object) -> bool:
        """Drive from within the caller's code that this loop has called."""
        before, self._focus = self._focus, focus
        try:
            return self._drive(ready, deadline)
        finally:
            self._focus = before

    def remind(self) -> None:
        """There is something to do that no event tells of: have the leader take a turn, if it is another thread."""
        if self._lead.get(_LEADER, threading.get_ident()) != threading.get_ident():
            self.submit(_nothing)

    def glance(self, action: Callable[[], object]) -> None:
        """Have `action` run, by now as a rule: by whoever leads or is about to, in a moment, else by this thread."""
        done: list[None] = []

        def act() -> None:
            action()
            done.append(None)

        self.submit(act)
        others = self._lead or len(self._followers) > len(self._deferring) or self._is_visited_elsewhere()
        if others and not self.is_mine:
            self._defer(lambda: bool(done) or self.ended, None)
        if not done:
            self.poke()

    def poke(self) -> None:
        """Do what can be done now without waiting, if nobody else is at it."""
        if not (self.ended or self.is_mine or self._lead):
            self.undisturbed(self._poke)

    def _poke(self) -> None:
        try:
            if self._take_lead():
                self._turn(0.0, _never)
        finally:
            self._leave_lead()

    def visit(self, until: float) -> float | None:
        """Take a turn without waiting, as far as there is time; what is submitted later makes `descriptor` readable.

        Args:
            until: monotonic seconds after which nothing new is begun.

        Returns:
            Seconds after which to come back even if the descriptor is not readable: 0 if time was up, -1 for never.
            None if another thread leads: then `attendant` is called when it leaves.
        """
        self._visitor = threading.get_ident()
        if self.ended or self.is_mine or self._lead:
            return None
        return self.undisturbed(lambda: self._visit(until))

    def _visit(self, until: float) -> float | None:
        try:
            return self._turn_briefly(until) if self._take_lead() else None
        finally:
            self._leave_lead()

    def seize(self) -> bool:
        """Take the lead for good, to end the pool; False if this thread has it already, further out on its stack."""
        self.ended = True
        if self.is_mine:
            return False
        while not self._take_lead():
            self.wake()
            self._follow(_never, None)
        return True

    def release(self) -> None:
        """Give back what `seize` took, and tell everybody."""
        self.over.set()
        self._leave_lead()
        for told in list(self._followers):
            _release(told)

    def _take_lead(self) -> bool:
        me = threading.get_ident()
        return self._lead.setdefault(_LEADER, me) == me

    def _leave_lead(self) -> None:
        """Leave the lead, if this thread has it and is not further out on its own stack.

        Where nobody has it, another who waits is told to take it: this thread, too, may have been told so before its
        own wait was over.
        """
        if self._lead.get(_LEADER) == threading.get_ident() and self._depth == 0:
            del self._lead[_LEADER]
        if not self._lead:
            taken = bool(self._followers) and self._tell_followers(hand_over=True)
            if self.standby is not None and not taken:
                self.standby()
            if self.attendant is not None:
                self.attendant()

    def _follow(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Wait to be told; False if the time is up."""
        told = threading.Lock()
        told.acquire()
        self._followers[told] = ready
        try:
            if ready() or _LEADER not in self._lead:
                return True
            while True:
                left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
                if told.acquire(timeout=_briefly(left)):
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                if ready():
                    return True
        finally:
            self._followers.pop(told, None)

    def _is_visited_elsewhere(self) -> bool:
        return self._visitor not in (0, threading.get_ident())

    def _defer(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Leave it to others for a moment.

        A thread that looks at the pool again and again would have the lead nearly always, and the GIL too: whoever lets
        go of that for a moment only, as around a system call, has it back before a thread that waits for it has woken.
        """
        until = time.monotonic() + DEFERENCE
        told = threading.Lock()
        told.acquire()
        self._deferring.add(told)
        self._followers[told] = ready
        try:
            if not ready():
                told.acquire(timeout=max(0.0, (until if deadline is None else min(until, deadline)) - time.monotonic()))
        finally:
            self._followers.pop(told, None)
            self._deferring.discard(told)

    def _tell_followers(self, *, hand_over: bool) -> bool:
        """Wake those whose wait is over, and one more if somebody has to take the lead; all if the pool ends.

        Returns whether somebody was woken to take the lead.
        """
        handed_over = False
        for told, ready in list(self._followers.items()):
            if self.ended or ready():
                _release(told)
            elif hand_over and not handed_over and told not in self._deferring:
                handed_over = True
                _release(told)
        return handed_over

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

    # --- one turn -------------------------------------------------------------------------------

    def _turn(self, timeout: float, ready: Callable[[], bool]) -> None:
        """Send what can be sent, wait for something to happen, deal with it."""
        self._begin_turn()
        try:
            while self.inbox:
                self._take_action(self.inbox[0])
            at_most = self._work.prepare(timeout != 0)
            self.run_later()
            if self._followers:
                self._tell_followers(hand_over=False)
            if self.ended or ready():
                self._is_torn = self._depth > 1
                return
            if at_most >= 0 and not 0 <= timeout < at_most:
                timeout = at_most
            for fd, events in self._poll(timeout):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            if not self.ended:
                self._work.tend()
            self.run_later()
            self._is_torn = self._depth > 1
        except BaseException:
            self._mend()
            raise
        finally:
            self._depth -= 1
        if self._followers:
            self._tell_followers(hand_over=False)

    def _begin_turn(self) -> None:
        """Mend first what the last turn has left, if a second exception struck while it was being mended."""
        self._depth += 1
        if self._depth == 1:
            if self._is_torn:
                try:
                    self._mend()
                except BaseException:
                    self._depth -= 1
                    raise
            self._is_torn = True

    def _mend(self) -> None:
        if not self.ended:
            self._work.mend()
        self._is_torn = False

    def _turn_briefly(self, until: float) -> float:
        """A turn the other way round: deal with what has happened, then send, for nobody stays to wait for more."""
        self._begin_turn()
        try:
            self._polling = False
            while self.inbox and time.monotonic() < until:
                self._take_action(self.inbox[0])
            is_late = self._deal_with_events(until)
            left = -1.0
            if not self.ended:
                self._work.tend()
                left = self._work.prepare(True)
            self.run_later()
            self._polling = True
            self._is_torn = self._depth > 1
            return 0.0 if is_late or self.inbox else left
        except BaseException:
            self._mend()
            raise
        finally:
            self._depth -= 1

    def _deal_with_events(self, until: float) -> bool:
        """One after the other, until there are none or time is up; returns whether there may be more."""
        while not self.ended:
            events = self._epoll.poll(0, 1)
            if not events:
                break
            fd, happened = events[0]
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(happened)
            if time.monotonic() >= until:
                return True
        return False

    def _take_action(self, action: Callable[[], object]) -> None:
        """Run the first action of the inbox, and take it out; one that an interrupt cuts short is run once more."""
        try:
            action()
        except Exception:
            self.inbox.popleft()
            raise
        if self.inbox and self.inbox[0] is action:
            self.inbox.popleft()

    def _poll(self, timeout: float) -> list[tuple[int, int]]:
        """The events there are, or the first to come; looks without sleeping where that pays."""
        look = self._epoll.poll
        self._polling = True
        try:
            if self.inbox or self.ended or not timeout:
                return look(0, EVENTS)
            began, spinning = time.monotonic_ns(), self._spinning
            if (0 < timeout < FINEST or spinning.pays()) and self._work.has_a_core_free():
                at_most = SPIN_NS if timeout < 0 else min(SPIN_NS, int(timeout * 1e9))
                while time.monotonic_ns() - began < at_most:
                    events = look(0, EVENTS)
                    if events:
                        spinning.found()
                        return events
                if 0 < timeout < FINEST:
                    return []
                spinning.missed()
            events = look(_briefly(timeout), EVENTS)
            spinning.slept(time.monotonic_ns() - began)
            return events
        finally:
            self._polling = False

    def _on_wakeup(self, _events: int) -> None:
        try:
            os.eventfd_read(self._wakeup.fileno())
        except BlockingIOError:
            pass  # another turn, further out on this stack, has read it

    def run_later(self) -> None:
        """Run the callbacks that have come up."""
        while self.later:
            self.later.popleft()()
        if self.finished:
            finished, self.finished = self.finished, []
            finished.clear()

    def close(self) -> None:
        """Let go of the descriptors."""
        self._polling = False
        self._handlers.clear()
        for thing in (self._epoll, self._wakeup):
            descriptors.disown(thing)
            thing.close()


def _briefly(timeout: float) -> float:
    """The timeout of a wait (-1: none), cut short where handlers of signals may be due."""
    return LOOK_UP if not 0 <= timeout <= LOOK_UP and interrupts.is_in_force() else timeout


def _never() -> bool:
    return False


def _nothing() -> None:
    """A turn is wanted, and nothing else."""


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:
        pass  # told twice: once is enough
