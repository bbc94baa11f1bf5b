"""The event loop: one epoll object, driven by the threads that wait for something.

    any thread ── submit ──► inbox ──┐
    kernel ────── epoll ─────────────┤ one turn of the leader
                                     └─► actions ► prepare: send ► poll ► handlers ► tend ► callbacks (`call_later`)

`leader.py` says which thread drives. An asyncio event loop does not wait here: it watches `descriptor`, and runs one
short turn whenever there is something to do.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pairpool.linux import descriptors
from pairpool.linux.spin import SPIN_NS, Spinning
from pairpool.master.leader import LeaderFollowers, shorten_wait

__all__ = ["EventLoop", "LoopWork"]

SHORTEST_SLEEP_S = 0.001
"""The shortest time in seconds that epoll_wait(2) can wait."""

EVENTS_PER_POLL = 64
"""Events that one poll may return; epoll(7) hands out the others at the next."""


class LoopWork(Protocol):
    """The work that the loop does in each turn."""

    def prepare(self, stays: bool) -> float:
        """Send what can be sent, before the loop waits. Return the longest time to wait in seconds, -1 for any.

        Args:
            stays: whether the leader comes back after the wait. If not, no thread may come for long.
        """

    def has_a_core_free(self) -> bool:
        """Whether the loop may look for events without sleeping, because no worker needs the core that this takes."""

    def tend(self) -> None:
        """Do what is due after events were handled, or after the time was up."""

    def recover(self) -> None:
        """Restore a consistent state after an exception was raised somewhere in a turn."""


class EventLoop(LeaderFollowers):
    """An epoll loop that the waiting threads drive.

    Args:
        work: what each turn runs.
    """

    def __init__(self, work: LoopWork) -> None:
        super().__init__()
        self._work = work
        self._inbox: deque[Callable[[], object]] = deque()
        self._later: deque[Callable[[], object]] = deque()
        self._released: list[object] = []
        self._is_inconsistent = False
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
        """Set whether the handler is also called when the descriptor becomes writable."""
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop watching a descriptor. It may be one that is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    @property
    def descriptor(self) -> int:
        """The descriptor that is readable when there is something to do that no turn has done."""
        return self._epoll.fileno()

    # --- from any thread ------------------------------------------------------------------------

    def submit(self, action: Callable[[], object]) -> None:
        """Have the leader run `action`; from any thread, at any time.

        An exception may cut an action short. Then it runs again, so running it twice must do no harm.
        """
        self._inbox.append(action)
        self.wake()

    def wake(self) -> None:
        """Make a waiting leader look for new actions."""
        if self._polling:
            self._polling = False
            self._interrupt_poll()

    def _interrupt_poll(self) -> None:
        os.eventfd_write(self._wakeup.fileno(), 1)

    def call_later(self, callback: Callable[[], object]) -> None:
        """Run a callback of the caller between two packets."""
        self._later.append(callback)

    def release_later(self, thing: object) -> None:
        """Drop the last reference to a pool where callbacks run, because that may end the pool."""
        self._released.append(thing)

    @property
    def has_actions(self) -> bool:
        """Whether actions or callbacks wait."""
        return bool(self._inbox or self._later)

    # --- one turn -------------------------------------------------------------------------------

    def _turn(self, timeout: float, ready: Callable[[], bool]) -> None:
        self._begin_turn()
        try:
            while self._inbox:
                self._take_action(self._inbox[0])
            at_most = self._work.prepare(timeout != 0)
            self.run_callbacks()
            if self._followers:
                self._tell_followers(hand_over=False)
            if self.ended or ready():
                self._is_inconsistent = self._depth > 1
                return
            if at_most >= 0 and not 0 <= timeout < at_most:
                timeout = at_most
            for fd, events in self._poll(timeout):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            if not self.ended:
                self._work.tend()
            self.run_callbacks()
            self._is_inconsistent = self._depth > 1
        except BaseException:
            self._recover()
            raise
        finally:
            self._depth -= 1
        if self._followers:
            self._tell_followers(hand_over=False)

    def _turn_briefly(self, deadline: float) -> float:
        """Run a turn in the other order, because nobody stays to wait: handle what has happened, then send."""
        self._begin_turn()
        try:
            self._polling = False
            while self._inbox and time.monotonic() < deadline:
                self._take_action(self._inbox[0])
            is_late = self._handle_events(deadline)
            left = -1.0
            if not self.ended:
                self._work.tend()
                left = self._work.prepare(True)
            self.run_callbacks()
            self._polling = True
            self._is_inconsistent = self._depth > 1
            return 0.0 if is_late or self._inbox else left
        except BaseException:
            self._recover()
            raise
        finally:
            self._depth -= 1

    def _begin_turn(self) -> None:
        """Start a turn. Recover first if a second exception was raised while the last turn was being recovered."""
        self._depth += 1
        if self._depth == 1:
            if self._is_inconsistent:
                try:
                    self._recover()
                except BaseException:
                    self._depth -= 1
                    raise
            self._is_inconsistent = True

    def _recover(self) -> None:
        if not self.ended:
            self._work.recover()
        self._is_inconsistent = False

    def _handle_events(self, deadline: float) -> bool:
        """Handle one event after the other until none is left or time is up. Return whether there may be more."""
        while not self.ended:
            events = self._epoll.poll(0, 1)
            if not events:
                break
            fd, happened = events[0]
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(happened)
            if time.monotonic() >= deadline:
                return True
        return False

    def _take_action(self, action: Callable[[], object]) -> None:
        """Run the first action of the inbox, then take it out. An action that an interrupt cuts short runs again."""
        try:
            action()
        except Exception:
            self._inbox.popleft()
            raise
        if self._inbox and self._inbox[0] is action:
            self._inbox.popleft()

    def _poll(self, timeout: float) -> list[tuple[int, int]]:
        """Return the events that are there, or wait for the first. Look without sleeping if that pays."""
        poll = self._epoll.poll
        self._polling = True
        try:
            if self._inbox or self.ended or not timeout:
                return poll(0, EVENTS_PER_POLL)
            began, spinning = time.monotonic_ns(), self._spinning
            is_short = 0 < timeout < SHORTEST_SLEEP_S
            if (is_short or spinning.pays()) and self._work.has_a_core_free():
                at_most = SPIN_NS if timeout < 0 else min(SPIN_NS, int(timeout * 1e9))
                while time.monotonic_ns() - began < at_most:
                    events = poll(0, EVENTS_PER_POLL)
                    if events:
                        spinning.found()
                        return events
                if is_short:
                    return []
                spinning.missed()
            events = poll(shorten_wait(timeout), EVENTS_PER_POLL)
            spinning.slept(time.monotonic_ns() - began)
            return events
        finally:
            self._polling = False

    def _on_wakeup(self, _events: int) -> None:
        try:
            os.eventfd_read(self._wakeup.fileno())
        except BlockingIOError:
            pass  # another turn, lower on this stack, has read it

    def run_actions(self) -> None:
        """Run all actions that were submitted, as the pool ends."""
        while self._inbox:
            self._inbox.popleft()()

    def run_callbacks(self) -> None:
        """Run the callbacks that are due."""
        while self._later:
            self._later.popleft()()
        if self._released:
            released, self._released = self._released, []
            released.clear()

    def close(self) -> None:
        """Close the descriptors."""
        self._polling = False
        self._handlers.clear()
        for thing in (self._epoll, self._wakeup):
            descriptors.disown(thing)
            thing.close()
