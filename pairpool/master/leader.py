"""Leader and followers: which of the waiting threads drives the event loop.

    thread that waits ── nobody leads ──► leader: runs turns until its own result is there
                      ── somebody leads ► follower: sleeps until it is told
    DriverThread ─────── nobody leads ──► leader, for calls that no thread waits for
    asyncio's loop ───── nobody leads ──► leader for one short turn (`run_once(deadline)`)

Only the leader touches jobs and workers. So no lock guards them, and none is held while the caller's code runs:
iterators, pickling, callbacks. That code may use the pool in the leader's own thread. Then it drives as well, in a turn
inside the turn.

The handler of a signal can raise an exception between any two steps of the main thread:

1. The lead is one entry of a dict. Single steps of the interpreter put it there and take it away.
2. A thread that an exception throws out of a wait checks whether it has left its own entry there.
3. A turn that an exception cut short is recovered, at the latest by the next turn.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from pairpool.linux import interrupts

T = TypeVar("T")

__all__ = ["LeaderFollowers", "shorten_wait"]

_LEADER = 0

SIGNAL_CHECK_EVERY_S = 1.0
"""Seconds after which a wait of the main thread looks for signals. A signal whose handler in C ran just before the
wait, or in another thread, does not end the wait."""

DEFER_LEAD_S = 0.01
"""Seconds for which a thread that only asks something leaves the lead to waiting threads or to asyncio's event loop."""


class LeaderFollowers(ABC):
    """The lead of an event loop, and the threads that wait for something.

    Attributes:
        ended: set when the pool is to end. No turn does anything after that.
        over: set when the pool has ended.
    """

    def __init__(self) -> None:
        self.ended = False
        self.over = threading.Event()
        self._lead: dict[int, int] = {}
        self._depth = 0  # turns that run inside each other on the leader's stack
        self._focus: object = None
        self._followers: dict[Any, Callable[[], bool]] = {}
        self._deferring: set[Any] = set()
        self._asyncio_thread = 0
        self._call_asyncio: Callable[[], None] | None = None
        self._call_standby: Callable[[], None] | None = None

    # --- what the event loop does ---------------------------------------------------------------

    @abstractmethod
    def submit(self, action: Callable[[], object]) -> None:
        """Have the leader run `action`; from any thread, at any time."""

    @abstractmethod
    def wake(self) -> None:
        """Make a waiting leader look for new actions."""

    @abstractmethod
    def _interrupt_poll(self) -> None:
        """End a wait for events, or the next one."""

    @abstractmethod
    def _turn(self, timeout: float, ready: Callable[[], bool]) -> None:
        """Send what can be sent, wait for events for at most `timeout` seconds (-1: no limit), and handle them."""

    @abstractmethod
    def _turn_briefly(self, deadline: float) -> float:
        """Handle events until `deadline` without waiting; return the seconds until the next turn, -1 for any."""

    # --- waiting --------------------------------------------------------------------------------

    def wait(self, ready: Callable[[], bool], timeout: float | None = None, focus: object = None) -> bool:
        """Drive the loop, or sleep until told, until `ready()` or until `timeout` seconds have passed.

        Args:
            focus: the job that the caller waits for, if it matters (see `would_deadlock`).

        Returns:
            `ready()`.

        Raises:
            KeyboardInterrupt, and whatever else the handler of a signal raises: between two turns (see `interrupts`).
        """
        if ready():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            guard = interrupts.start_deferring(self._check_signals)
            if guard is None:
                return self._wait(ready, deadline, focus)
            found = self._wait_guarded(guard, ready, deadline, focus)
            if found is not None:
                return found

    def _wait_guarded(
        self, guard: interrupts.Guard, ready: Callable[[], bool], deadline: float | None, focus: object
    ) -> bool | None:
        """Wait, then call the deferred handlers. Return None if the wait ended only because of a signal."""
        pending = guard.pending
        try:
            found = self._wait(lambda: bool(pending) or ready(), deadline, focus)
            return found if not (found and pending) or ready() else None
        finally:
            guard.release()

    def _wait(self, ready: Callable[[], bool], deadline: float | None, focus: object) -> bool:
        defers = self._is_driven_by_asyncio_elsewhere()
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

    def drive_if_free(self, ready: Callable[[], bool]) -> None:
        """Drive until `ready()` if nobody leads; else return at once. For a thread that does not wait for a result.

        Such a thread does not become a follower, because each call that another thread submits and waits for would wake
        it twice. The function given to `set_standby` tells it when the lead is free.
        """
        try:
            if not (self.ended or ready()) and self._take_lead():
                self._drive(ready, None)
        finally:
            self._leave_lead()

    def run_once(self, deadline: float | None = None) -> float | None:
        """Run one turn without waiting, if nobody leads.

        Args:
            deadline: monotonic seconds after which the turn starts nothing new; for asyncio's event loop. Later
                submissions make `descriptor` readable. None: the whole turn.

        Returns:
            With a deadline, the seconds until the next turn even if `descriptor` does not become readable: 0 if time
            was up, -1 for never. None if another thread leads: the function given to `set_asyncio` tells when it
            leaves.
        """
        if deadline is not None:
            self._asyncio_thread = threading.get_ident()
        if self.ended or self.is_mine or self._lead:
            return None
        if deadline is None:
            return self.defer_signals_in(self._run_turn)
        return self.defer_signals_in(lambda: self._run_brief_turn(deadline))

    def _run_turn(self) -> None:
        try:
            if self._take_lead():
                self._turn(0.0, _never)
        finally:
            self._leave_lead()

    def _run_brief_turn(self, deadline: float) -> float | None:
        try:
            return self._turn_briefly(deadline) if self._take_lead() else None
        finally:
            self._leave_lead()

    def query(self, action: Callable[[], object]) -> None:
        """Have `action` run, normally before this returns: soon by the leader, if there is one; else by this thread."""
        done: list[None] = []

        def act() -> None:
            action()
            done.append(None)

        self.submit(act)
        others = self._lead or len(self._followers) > len(self._deferring) or self._is_driven_by_asyncio_elsewhere()
        if others and not self.is_mine:
            self._defer(lambda: bool(done) or self.ended, None)
        if not done:
            self.run_once()

    def call_or_submit(self, action: Callable[[], object]) -> None:
        """Run `action` now if nobody leads; else have the leader run it. From any thread, and from a `__del__`.

        Nothing else runs here. The action must be short, and must not run the caller's code.
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

    def defer_signals_in(self, function: Callable[[], T]) -> T:
        """Call a function that drives, with the handlers of signals deferred."""
        guard = interrupts.start_deferring(self._check_signals)
        if guard is None:
            return function()
        try:
            return function()
        finally:
            guard.release()

    def _check_signals(self) -> None:
        """End all waits, so that a thread whose handler was deferred looks at it."""
        if not self.ended:
            self._interrupt_poll()
        for told in list(self._followers):
            _release(told)

    # --- code of the caller inside a turn -------------------------------------------------------

    @property
    def is_mine(self) -> bool:
        """Whether this thread is the leader, and the loop has called it back."""
        return self._lead.get(_LEADER) == threading.get_ident() and self._depth > 0

    def would_deadlock(self, job: object) -> bool:
        """Whether the caller's code for `job` must not run now, because such code already runs on this stack.

        1. The input of stream A reads stream B, and the input of B reads stream C.
        2. While B waits for C, running A's input again would wait for B.
        3. B cannot go on below that wait. So, inside such code, only that runs which the code waits for.
        """
        return self._depth > 1 and self._focus is not job

    def _drive_within(self, ready: Callable[[], bool], deadline: float | None, focus: object) -> bool:
        """Drive from within the caller's code that this loop has called."""
        before, self._focus = self._focus, focus
        try:
            return self._drive(ready, deadline)
        finally:
            self._focus = before

    def request_turn(self) -> None:
        """Have the leader run a turn, if it is another thread: there is work that no event announces."""
        if self._lead.get(_LEADER, threading.get_ident()) != threading.get_ident():
            self.submit(_never)  # only a turn is wanted

    # --- the lead -------------------------------------------------------------------------------

    def set_asyncio(self, call: Callable[[], None] | None) -> None:
        """Call this, in any thread, when the lead is free, for asyncio's event loop; None for no more."""
        self._call_asyncio = call

    def set_standby(self, call: Callable[[], None]) -> None:
        """Call this, in any thread, when the lead is free and no follower has taken it; for `DriverThread`."""
        self._call_standby = call

    def acquire_exclusive(self) -> bool:
        """Take the lead for good, to end the pool. Return False if this thread has it already, lower on its stack."""
        self.ended = True
        if self.is_mine:
            return False
        while not self._take_lead():
            self.wake()
            self._follow(_never, None)
        return True

    def release_exclusive(self) -> None:
        """Give back what `acquire_exclusive` took, and tell all followers that the pool has ended."""
        self.over.set()
        self._leave_lead()
        for told in list(self._followers):
            _release(told)

    def _take_lead(self) -> bool:
        me = threading.get_ident()
        return self._lead.setdefault(_LEADER, me) == me

    def _leave_lead(self) -> None:
        """Leave the lead, unless another thread has it or this thread still drives lower on its stack.

        If nobody has it then, tell another waiting thread to take it: this thread, too, may have been told to take it
        just before its own wait was over.
        """
        if self._lead.get(_LEADER) == threading.get_ident() and self._depth == 0:
            del self._lead[_LEADER]
        if not self._lead:
            taken = bool(self._followers) and self._tell_followers(hand_over=True)
            if self._call_standby is not None and not taken:
                self._call_standby()
            if self._call_asyncio is not None:
                self._call_asyncio()

    def _follow(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Sleep until told. Return False if the time is up."""
        told = threading.Lock()
        told.acquire()
        self._followers[told] = ready
        try:
            if ready() or _LEADER not in self._lead:
                return True
            while True:
                left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
                if told.acquire(timeout=shorten_wait(left)):
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                if ready():
                    return True
        finally:
            self._followers.pop(told, None)

    def _is_driven_by_asyncio_elsewhere(self) -> bool:
        return self._asyncio_thread not in (0, threading.get_ident())

    def _defer(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Leave the lead to other threads for a moment.

        A thread that asks for the status of the pool again and again would hold the lead nearly always. It would hold
        the GIL, too: it drops the GIL only for a system call, and has it back before a waiting thread has woken up.
        """
        until = time.monotonic() + DEFER_LEAD_S
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
        """Wake the followers whose wait is over; all of them if the pool ends.

        Args:
            hand_over: wake one more, to take the lead.

        Returns:
            Whether a follower was woken to take the lead.
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


def shorten_wait(timeout: float) -> float:
    """Return the timeout of a wait (-1: none), cut short if a signal may have to be looked for."""
    if not 0 <= timeout <= SIGNAL_CHECK_EVERY_S and interrupts.is_in_force():
        return SIGNAL_CHECK_EVERY_S
    return timeout


def _never() -> bool:
    return False


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:
        pass  # told twice: once is enough
