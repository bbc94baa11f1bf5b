"""An event loop that turns a pool's loop: without a thread, and never for long.

    event loop ── descriptor readable, timer, summons ──► Attendant ── visit ──► Loop
    coroutines ◄─ settle, some at a time ◄────────────── Attendant ◄─ tell ──── outcomes, from whoever leads

The pool's epoll descriptor is readable when one of those that it watches is (epoll(7)), its wakeup among them. So the
event loop waits for the pool as for a socket. It is a duplicate that is watched: the number of one that the pool has
closed may be another file's by the time the event loop hears of it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pairpool.linux import descriptors
from pairpool.master.event_loop import EventLoop

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Handle

__all__ = ["AsyncioDriver", "Waiting"]

BUDGET = 0.001
"""Seconds after which a turn begins nothing new: others want the event loop, too."""

AT_ONCE = 100
"""Coroutines that are woken at once: each runs some microseconds before the event loop comes by again."""


class Waiting(Protocol):
    """Something that coroutines wait for."""

    def settle(self) -> None:
        """It is there: let them go on. Called by the event loop."""


class AsyncioDriver:
    """Turns a pool's loop from an event loop, from now until the pool ends.

    Other threads may lead meanwhile, for a call such as `status()`: then it stands back until they leave.

    Args:
        loop: the pool's.
        events: the event loop, which is the caller's.
    """

    def __init__(self, loop: EventLoop, events: AbstractEventLoop) -> None:
        self.events = events
        self._loop = loop
        self._thread = threading.get_ident()
        self._is_visiting = False
        self._is_summoned = False
        self._is_watching = False
        self._timer: Handle | None = None
        self._timer_at = 0.0  # uvloop makes one of less than half a millisecond a call_soon, which has no when()
        self._told: deque[Waiting] = deque()
        self._turned: list[Future[None]] = []
        self._fd = descriptors.Descriptor(os.dup(loop.descriptor))
        descriptors.own(self._fd)
        loop.set_asyncio(self.summon)
        self._watch()
        self.summon()  # what is submitted wakes the event loop only after a first turn

    # --- from any thread ------------------------------------------------------------------------

    def tell(self, waiting: Waiting) -> None:
        """What this is about has happened: have those who wait for it told."""
        self._told.append(waiting)
        self.summon()

    def summon(self) -> None:
        """Have the loop turned soon."""
        is_here = threading.get_ident() == self._thread
        if self._is_summoned or (is_here and self._is_visiting):
            return
        self._is_summoned = True
        try:
            if is_here:
                self.events.call_soon(self._turn)
            else:
                self.events.call_soon_threadsafe(self._turn)
        except RuntimeError:
            pass  # the event loop has closed, and nobody waits any more

    def leave(self) -> None:
        """The pool has ended: watch it no more."""
        self._loop.set_asyncio(None)
        self.summon()  # to tell those who still wait
        if threading.get_ident() == self._thread or self.events.is_closed():
            self._let_go()
            return
        try:
            self.events.call_soon_threadsafe(self._let_go)
        except RuntimeError:
            self._let_go()  # it has closed just now

    # --- in the event loop's thread -------------------------------------------------------------

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`, which is asked after each turn."""
        while not ready():
            turned: Future[None] = self.events.create_future()
            self._turned.append(turned)
            try:
                await turned
            finally:
                self._turned.remove(turned)

    def _turn(self) -> None:
        self._is_summoned = False
        self._thread = threading.get_ident()
        self._is_visiting = True
        left: float | None = 0.0
        try:
            left = self._loop.run_once(time.monotonic() + BUDGET)
        finally:
            self._is_visiting = False
            self._plan(left)
            self._tell_some()

    def _plan(self, left: float | None) -> None:
        """Take the next turn in so many seconds, or before that if there is something to do."""
        if self._loop.ended:
            return
        if left is None:
            self._unwatch()  # it would only be readable again and again, while another thread deals with it
            self._loop.request_turn()
            return
        self._watch()
        if left == 0:
            self.summon()
        elif left > 0:
            self._turn_at(self.events.time() + left)

    def _turn_at(self, when: float) -> None:
        """Take a turn then, or before: one that comes early does no harm, and few timers are made."""
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self.events.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._turn()

    def _tell_some(self) -> None:
        for _ in range(min(len(self._told), AT_ONCE)):
            self._told.popleft().settle()
        if self._told:
            self.summon()
        for turned in self._turned:
            if not turned.done():
                turned.set_result(None)

    def _watch(self) -> None:
        if not self._is_watching and self._fd.fileno() >= 0:
            self.events.add_reader(self._fd.fileno(), self._turn)
            self._is_watching = True

    def _unwatch(self) -> None:
        if self._is_watching:
            self._is_watching = False
            if not self.events.is_closed():
                self.events.remove_reader(self._fd.fileno())

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._unwatch()
        descriptors.disown(self._fd)
        self._fd.close()
