"""Drive a pool from an asyncio event loop: without a thread, and never for long.

    asyncio ── descriptor readable, timer, `summon` ──► AsyncioDriver ── run_once(deadline) ──► EventLoop
    coroutines ◄── settle, some at a time ──────────── AsyncioDriver ◄── tell ── outcomes, from the leader

The pool's epoll descriptor is readable when one of the descriptors that it watches is readable (epoll(7)); its wakeup
is one of them. So asyncio waits for the pool as for a socket. It watches a duplicate of the descriptor, because the
number of a closed descriptor may belong to another file before asyncio stops watching it.
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

TURN_BUDGET_S = 0.001
"""Seconds after which a turn starts nothing new, because other coroutines need the event loop, too."""

WAKEUPS_PER_TURN = 100
"""Coroutines that one turn wakes. Each runs some microseconds before the next turn."""


class Waiting(Protocol):
    """Something that coroutines wait for."""

    def settle(self) -> None:
        """Let the coroutines go on, because the thing is there. Called in the event loop."""


class AsyncioDriver:
    """Drive a pool from an event loop, from now until the pool ends.

    Other threads may lead meanwhile, in a call such as `status()`. Then the driver waits until they leave.

    Args:
        loop: the event loop of the pool.
        events: the event loop of the caller.
    """

    def __init__(self, loop: EventLoop, events: AbstractEventLoop) -> None:
        self.events = events
        self._loop = loop
        self._thread = threading.get_ident()
        self._is_in_turn = False
        self._is_summoned = False
        self._is_watching = False
        self._timer: Handle | None = None
        self._timer_at = 0.0  # not from the timer: uvloop's has no when() below 0.5 ms
        self._told: deque[Waiting] = deque()
        self._turned: list[Future[None]] = []
        self._fd = descriptors.Descriptor(os.dup(loop.descriptor))
        descriptors.own(self._fd)
        loop.set_asyncio(self.summon)
        self._watch()
        self.summon()  # only after a first turn do submissions wake the event loop

    # --- from any thread ------------------------------------------------------------------------

    def tell(self, waiting: Waiting) -> None:
        """Wake the coroutines that wait for this, because it has happened."""
        self._told.append(waiting)
        self.summon()

    def summon(self) -> None:
        """Run a turn soon."""
        is_here = threading.get_ident() == self._thread
        if self._is_summoned or (is_here and self._is_in_turn):
            return
        self._is_summoned = True
        try:
            if is_here:
                self.events.call_soon(self._turn)
            else:
                self.events.call_soon_threadsafe(self._turn)
        except RuntimeError:
            pass  # the event loop has closed, and no coroutine waits any more

    def leave(self) -> None:
        """Stop watching the pool, because it has ended."""
        self._loop.set_asyncio(None)
        self.summon()  # to wake coroutines that still wait
        if threading.get_ident() == self._thread or self.events.is_closed():
            self._release()
            return
        try:
            self.events.call_soon_threadsafe(self._release)
        except RuntimeError:
            self._release()  # the event loop has closed just now

    # --- in the event loop's thread -------------------------------------------------------------

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`. It is asked after each turn."""
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
        self._is_in_turn = True
        left: float | None = 0.0
        try:
            left = self._loop.run_once(time.monotonic() + TURN_BUDGET_S)
        finally:
            self._is_in_turn = False
            self._plan(left)
            self._wake_some()

    def _plan(self, left: float | None) -> None:
        """Run the next turn after `left` seconds, or earlier if there is something to do."""
        if self._loop.ended:
            return
        if left is None:
            self._unwatch()  # it would stay readable while another thread handles the events
            self._loop.request_turn()
            return
        self._watch()
        if left == 0:
            self.summon()
        elif left > 0:
            self._turn_at(self.events.time() + left)

    def _turn_at(self, when: float) -> None:
        """Run a turn at `when` or earlier. An early turn does no harm, and saves timers."""
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self.events.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._turn()

    def _wake_some(self) -> None:
        for _ in range(min(len(self._told), WAKEUPS_PER_TURN)):
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

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._unwatch()
        descriptors.disown(self._fd)
        self._fd.close()
