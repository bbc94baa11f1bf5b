"""The clients: threads that take slices of the plan, run them by all methods of the pool, and record the outcomes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pairpool.stress import tasks
from pairpool.stress.outcome_log import OutcomeLog
from pairpool.stress.outcomes import index_of
from pairpool.stress.plan import Plan, PlannedCall, Slice, Task, TaskKind, content

if TYPE_CHECKING:
    from pairpool.pool import Pool

__all__ = ["Clients"]

TIMEOUT_S = 0.25
"""`task_timeout` of the tasks that are to time out."""

MAX_BREACHES = 100
"""Breaches after which the clients take no more slices."""

Item = tuple[int, int, int, int, bytes | None]
Outcomes = Iterator[tuple[Task, Any]]


def item_of(task: Task) -> Item:
    """Return the arguments of a task."""
    payload = content(task.number, 0, task.send) if task.send else None
    return task.number, int(task.kind), task.amount, task.reply, payload


def _one_of(function: int) -> Callable[[Item], Any]:
    """Return `tasks.run_item`: by name, as a function that travels by value, or as a partial."""
    if function == 1:
        return lambda item: tasks.run(*item)
    return functools.partial(_apply_to, tasks.run) if function == 2 else tasks.run_item


def _many_of(function: int) -> Callable[..., Any]:
    """Return `tasks.run` in the same three forms."""
    if function == 1:
        return lambda *item: tasks.run(*item)
    return functools.partial(tasks.run) if function == 2 else tasks.run


def _apply_to(function: Callable[..., Any], item: Item) -> Any:
    return function(*item)


class Clients:
    """The threads that call one pool.

    Args:
        chunksize: as for `Pool.map`; None for automatic batches.
    """

    def __init__(self, pool: Pool, plan: Plan, log: OutcomeLog, count: int, chunksize: int | None) -> None:
        self._pool: Any = pool
        self._log = log
        self._chunksize = chunksize
        self._slices = plan.slices()
        self._lock = threading.Lock()
        self._open: dict[int, tuple[int, int]] = {}  # by client: first task of its slice, and first task behind it
        self._takes_slices = True
        self._is_abandoned = False
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"client {number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no more slices."""
        self._takes_slices = False

    def abandon(self) -> None:
        """Take no more slices, and ignore all further outcomes, because the pool ends while it is in use."""
        self._is_abandoned = True
        self.stop()

    def open_slices(self) -> list[tuple[int, int]]:
        """Return for each slice in work its first task, and the first task behind it."""
        return list(self._open.values())

    def are_done(self, timeout: float) -> bool:
        """Return whether all threads have ended. Wait up to `timeout` seconds for the first one that has not."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)
                return False
        return True

    def _take(self, number: int) -> Slice | None:
        """Return the next slice for a client; None if there is none."""
        with self._lock:
            self._open.pop(number, None)
            if not self._takes_slices or self._log.breach_count > MAX_BREACHES:
                return None
            taken = next(self._slices, None)
            if taken is not None:
                is_strict = self._chunksize == 1
                self._log.deal(taken.tasks, strict=is_strict)
                self._open[number] = (taken.tasks[0].number, taken.tasks[-1].number + 1)
            return taken

    def _work(self, number: int) -> None:
        while (taken := self._take(number)) is not None:
            first = taken.tasks[0].number
            try:
                for task, outcome in self._perform(taken):
                    if self._is_abandoned:
                        return
                    self._log.end(task, outcome)
            except BaseException as error:
                if self._is_abandoned:
                    return
                self._log.breach("call failed", f"{taken.call.name} of slice at {first}: {error!r}", first)

    def _perform(self, taken: Slice) -> Outcomes:
        plain = [task for task in taken.tasks if task.kind is not TaskKind.TIMEOUT]
        if plain:
            yield from _METHODS[taken.call](self, taken._replace(tasks=plain))
        if len(plain) < len(taken.tasks):
            late = [task for task in taken.tasks if task.kind is TaskKind.TIMEOUT]
            found = self._pool.map(
                tasks.run_item,
                [item_of(task) for task in late],
                self._chunksize,
                return_exceptions=True,
                task_timeout=TIMEOUT_S,
            )
            yield from self._in_order(late, found)

    # --- the methods of the pool ----------------------------------------------------------------

    def _in_order(self, expected: list[Task], outcomes: list[Any]) -> Outcomes:
        if len(outcomes) != len(expected):
            self._log.breach("wrong outcome", f"{len(outcomes)} results of {len(expected)} tasks")
        for position, (task, outcome) in enumerate(zip(expected, outcomes, strict=False)):
            self._check_position(task, outcome, position)
            yield task, outcome

    def _check_position(self, task: Task, outcome: Any, position: int) -> None:
        if type(outcome).__name__ == "WorkerDied" and outcome.index != position:
            text = f"item {position} ended with a WorkerDied that names item {outcome.index}: {outcome}"
            self._log.breach("wrong outcome", text, task.number)

    def _map(self, taken: Slice) -> Outcomes:
        items = [item_of(task) for task in taken.tasks]
        if len(items) == 1 and taken.bare:
            try:
                found = self._pool.map(_one_of(taken.function), items, self._chunksize)
            except BaseException as error:
                found = [error]
        else:
            found = self._pool.map(_one_of(taken.function), items, self._chunksize, return_exceptions=True)
        return self._in_order(taken.tasks, found)

    def _starmap(self, taken: Slice) -> Outcomes:
        items = [item_of(task) for task in taken.tasks]
        found = self._pool.starmap(_many_of(taken.function), items, self._chunksize, return_exceptions=True)
        return self._in_order(taken.tasks, found)

    def _map_async(self, taken: Slice) -> Outcomes:
        star = taken.call is PlannedCall.STARMAP_ASYNC
        method = self._pool.starmap_async if star else self._pool.map_async
        function = _many_of(taken.function) if star else _one_of(taken.function)
        called: list[int] = []
        result = method(
            function,
            [item_of(task) for task in taken.tasks],
            self._chunksize,
            callback=lambda values: called.append(len(values)),
            return_exceptions=True,
        )
        found = result.get()
        if called != [len(taken.tasks)]:
            text = f"the callback of {taken.call.name} was called with {called} results, not {len(taken.tasks)}"
            self._log.breach("wrong callback", text)
        return self._in_order(taken.tasks, found)

    def _stream(self, taken: Slice) -> Outcomes:
        is_ordered = taken.call is PlannedCall.IMAP
        method = self._pool.imap if is_ordered else self._pool.imap_unordered
        items = (item_of(task) for task in taken.tasks)
        stream = method(_one_of(taken.function), items, self._chunksize, return_exceptions=not taken.bare)
        by_index = {task.number: task for task in taken.tasks}
        for position, outcome in enumerate(_read(stream, len(taken.tasks))):
            if position >= len(taken.tasks):
                self._log.breach("wrong outcome", f"an outcome too many: {outcome!r:.300}")
            elif is_ordered:
                task = taken.tasks[position]
                self._check_position(task, outcome, position)
                yield task, outcome
            else:
                index = self._number_of(outcome, taken)
                if index in by_index:
                    yield by_index[index], outcome
                else:
                    self._log.breach("wrong outcome", f"an outcome of no task of the slice: {outcome!r:.300}")

    def _number_of(self, outcome: Any, taken: Slice) -> int | None:
        """Return the number of the task of an outcome. The outcome itself contains it."""
        if type(outcome).__name__ == "WorkerDied":
            position: int = outcome.index
            return taken.tasks[position].number if position < len(taken.tasks) else None
        return index_of(outcome)

    def _apply(self, taken: Slice) -> Outcomes:
        for task in taken.tasks:
            try:
                outcome = self._pool.apply(_many_of(taken.function), item_of(task))
            except BaseException as error:
                if self._is_abandoned:
                    raise
                outcome = error
            yield task, outcome

    def _apply_async(self, taken: Slice) -> Outcomes:
        called: list[object] = []
        function = _many_of(taken.function)
        results = [
            self._pool.apply_async(function, item_of(task), callback=called.append, error_callback=called.append)
            for task in taken.tasks
        ]
        for task, result in zip(taken.tasks, results, strict=True):
            try:
                outcome = result.get()
            except BaseException as error:
                if self._is_abandoned:
                    raise
                outcome = error
            yield task, outcome
        if len(called) != len(results):
            self._log.breach("wrong callback", f"{len(called)} callbacks of {len(results)} calls of apply_async")


def _read(stream: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield all outcomes of a stream, raised exceptions included. Stop after one outcome too many."""
    for _ in range(count + 1):
        try:
            outcome = next(stream)
        except StopIteration:
            return
        except BaseException as error:
            # a task that raises StopIteration arrives as the cause of a RuntimeError
            outcome = error.__cause__ if isinstance(error.__cause__, StopIteration) else error
        yield outcome


_METHODS: dict[PlannedCall, Callable[[Clients, Slice], Outcomes]] = {
    PlannedCall.MAP: Clients._map,
    PlannedCall.STARMAP: Clients._starmap,
    PlannedCall.IMAP: Clients._stream,
    PlannedCall.IMAP_UNORDERED: Clients._stream,
    PlannedCall.MAP_ASYNC: Clients._map_async,
    PlannedCall.STARMAP_ASYNC: Clients._map_async,
    PlannedCall.APPLY: Clients._apply,
    PlannedCall.APPLY_ASYNC: Clients._apply_async,
}
