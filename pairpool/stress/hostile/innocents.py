"""Calls whose results are known, made by threads while other tasks attack the pool."""

from __future__ import annotations

import functools
import os
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing import TimeoutError as PoolTimeout
from typing import Any

from pairpool.errors import TaskTimeout, WorkerDied
from pairpool.pool import Pool
from pairpool.stress.hostile.attack import echo, open_file, tell, work
from pairpool.stress.hostile.dice import Dice
from pairpool.transport.fd import Fd

__all__ = ["Innocents", "Verdicts"]

LARGE_BYTES = 300_000

PAUSE_S = 0.003
"""Seconds between two calls of one thread. They leave most of the time to the attacks."""

BREACHES_NOTED = 40

LIKENESS = 200
"""Characters of a breach that are compared."""

_SHARED = bytes(range(256)) * 1000


def slow(item: int) -> tuple[int, int]:
    """Work for some milliseconds."""
    time.sleep(0.003)
    return work(item)


def uneven(item: int) -> tuple[int, int]:
    """Work for a time that makes the pool ask for partial reports."""
    if item % 97 == 0:
        time.sleep(0.03)
    return work(item)


def take_shared(data: bytes, item: int) -> tuple[int, int]:
    """Return the length of a shared object and one of its bytes."""
    return len(data), data[item % len(data)]


class Verdicts:
    """The results of checking the innocent calls of a round. Any thread may call the methods.

    Args:
        may_end: whether an innocent item may end with `WorkerDied` or `TaskTimeout` in this worker, given by its pid.

    Attributes:
        calls: the number of calls that were checked.
        items: their items.
        ended: innocent items that ended with `WorkerDied` or `TaskTimeout`, by the name of the exception.
        breaches: what must not happen, in words.
    """

    def __init__(self, may_end: Callable[[int], bool]) -> None:
        self._lock = threading.Lock()
        self._may_end = may_end
        self._seen: set[str] = set()
        self._is_closed = False
        self.calls = 0
        self.items = 0
        self.ended: Counter[str] = Counter()
        self.breaches: list[str] = []

    def breach(self, text: str) -> None:
        """Record a breach, unless one like it was recorded. Breaches are alike if they differ in numbers only."""
        with self._lock:
            if self._is_closed:
                return
            likeness = re.sub(r"\d+", "N", text)[:LIKENESS]
            if likeness not in self._seen and len(self.breaches) < BREACHES_NOTED:
                self._seen.add(likeness)
                self.breaches.append(text)

    def close(self) -> None:
        """Ignore what follows."""
        with self._lock:
            self._is_closed = True

    def check(self, call: str, got: Iterable[Any], expected: Iterable[Any]) -> None:
        """Compare the outcomes of a call with those that are right."""
        got, expected = list(got), list(expected)
        if len(got) != len(expected):
            self.breach(f"{call}: {len(got)} outcomes of {len(expected)} items")
        for position, (one, right) in enumerate(zip(got, expected, strict=False)):
            if isinstance(one, WorkerDied | TaskTimeout) and self._may_end(one.pid):
                with self._lock:
                    self.ended[type(one).__name__] += 1
            elif isinstance(one, BaseException):
                self.breach(f"{call}: item {position} of others ended with {_in_short(one)}")
            elif one != right:
                self.breach(f"{call}: item {position} of others is {one!r:.200}, and not {right!r:.200}")
        with self._lock:
            self.calls += 1
            self.items += len(expected)


def _in_short(error: BaseException) -> str:
    """Return an exception with the places in pairpool that it came through."""
    places = [
        f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)[-8:]
    ]
    return f"{error!r:.400} at {' > '.join(places)}"


def describe(error: BaseException) -> str:
    """Return an exception, and those that caused it, in one line."""
    text = _in_short(error)
    cause = error.__cause__ or error.__context__
    return text if cause is None else f"{text}; because of {_in_short(cause)}"


class Innocents:
    """Threads that make calls until they are told to stop.

    Args:
        limit_s: seconds in which each call must end.
    """

    def __init__(self, pool: Pool, verdicts: Verdicts, seed: int, threads: int, limit_s: float) -> None:
        self._pool = pool
        self._verdicts = verdicts
        self._limit_s = limit_s
        self._shared = pool.share(_SHARED)
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(Dice(seed, number),), name=f"innocent {number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the threads finish the calls that they wait for, and wait for the threads."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * self._limit_s)
            if thread.is_alive():
                self._verdicts.breach(f"{thread.name} waits for ever")

    def abandon(self) -> None:
        """Ignore all further outcomes, because the pool ends while it is in use."""
        self._is_over.set()
        self._verdicts.close()

    def _work(self, dice: Dice) -> None:
        while not self._is_over.is_set():
            self.call(dice)
            time.sleep(PAUSE_S)

    def call(self, dice: Dice) -> None:
        """Make one call, and check its results."""
        make = dice.pick(_KINDS_OF_CALLS)
        name = make.__name__.strip("_")
        try:
            make(self, dice, functools.partial(self._verdicts.check, name))
        except (PoolTimeout, TimeoutError) as error:
            if isinstance(error, TaskTimeout):
                self._verdicts.check(name, [error], [None])
            else:
                self._verdicts.breach(f"{name}: no outcome after {self._limit_s:g} s")
                self._is_over.set()
        except WorkerDied as error:
            self._verdicts.check(name, [error], [None])
        except BaseException as error:
            self._verdicts.breach(f"{name}: the call of others raised {describe(error)}")

    # --- the calls ------------------------------------------------------------------------------

    def _map_many(self, dice: Dice, check: Callable[..., None]) -> None:
        first = dice.below(1 << 40)
        items = range(first, first + dice.pick((1, 10, 300, 3000)))
        result = self._pool.map_async(work, items, return_exceptions=True)
        check(result.get(self._limit_s), map(work, items))

    def _map_slow(self, dice: Dice, check: Callable[..., None]) -> None:
        items = range(dice.below(1000), 1004)
        result = self._pool.map_async(slow, list(items)[-12:], dice.pick((None, 1, 3)), return_exceptions=True)
        check(result.get(self._limit_s), map(work, list(items)[-12:]))

    def _map_uneven(self, dice: Dice, check: Callable[..., None]) -> None:
        first = dice.below(1 << 40)
        items = range(first, first + 200)
        result = self._pool.map_async(uneven, items, return_exceptions=True)
        check(result.get(self._limit_s), map(work, items))

    def _imap(self, dice: Dice, check: Callable[..., None]) -> None:
        first = dice.below(1 << 40)
        items = range(first, first + 150)
        stream = self._pool.imap(uneven, iter(items), return_exceptions=True)
        check([stream.next(self._limit_s) for _ in items], map(work, items))

    def _imap_unordered(self, dice: Dice, check: Callable[..., None]) -> None:
        first = dice.below(1 << 40)
        items = range(first, first + 150)
        stream = self._pool.imap_unordered(work, iter(items), dice.pick((1, 10)), return_exceptions=True)
        got = [stream.next(self._limit_s) for _ in items]
        values = sorted(one for one in got if isinstance(one, tuple))
        errors = [one for one in got if not isinstance(one, tuple)]
        seen = {item for item, _value in values}
        check(values + errors, [*map(work, sorted(seen)), *errors])
        if len(seen) + len(errors) != len(items) or not seen <= set(items):
            self._verdicts.breach(f"imap_unordered: {len(values)} values of {len(items)} items are wrong")

    def _singles(self, dice: Dice, check: Callable[..., None]) -> None:
        items = [dice.below(1 << 30) for _ in range(20)]
        results = [self._pool.apply_async(work, (item,)) for item in items]
        for item, result in zip(items, results, strict=True):
            try:
                check([result.get(self._limit_s)], [work(item)])
            except WorkerDied as error:
                check([error], [None])

    def _large(self, dice: Dice, check: Callable[..., None]) -> None:
        items = [dice.data(64) * (LARGE_BYTES // 64) for _ in range(3)]
        result = self._pool.map_async(echo, items, 1, return_exceptions=True)
        check(result.get(self._limit_s), map(echo, items))

    def _shared_object(self, dice: Dice, check: Callable[..., None]) -> None:
        items = [(self._shared, dice.below(1 << 20)) for _ in range(20)]
        result = self._pool.starmap_async(take_shared, items, return_exceptions=True)
        check(result.get(self._limit_s), [take_shared(_SHARED, item) for _shared, item in items])

    def _descriptors_in(self, dice: Dice, check: Callable[..., None]) -> None:
        item = dice.below(1 << 30)
        with os.fdopen(os.memfd_create("innocent"), "w+b") as file:
            result = self._pool.apply_async(tell, (Fd(file.fileno()), item))
            check([result.get(self._limit_s), file.seek(0), file.read()], [item, 0, b"%d" % item])

    def _descriptors_out(self, dice: Dice, check: Callable[..., None]) -> None:
        items = [dice.below(1 << 30) for _ in range(3)]
        got = self._pool.map_async(open_file, items, return_exceptions=True).get(self._limit_s)
        content = []
        for one in got:
            if isinstance(one, BaseException):
                content.append(one)
            else:
                with one:
                    one.seek(0)
                    content.append(one.read())
        check(content, [b"%d" % item for item in items])


_KINDS_OF_CALLS: tuple[Callable[[Innocents, Dice, Callable[..., None]], None], ...] = (
    Innocents._map_many, Innocents._map_many, Innocents._map_slow, Innocents._map_uneven, Innocents._imap,
    Innocents._imap_unordered, Innocents._singles, Innocents._large, Innocents._shared_object,
    Innocents._descriptors_in, Innocents._descriptors_out,
)  # fmt: skip
