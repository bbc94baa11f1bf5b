"""The clients: threads that take slices of the plan, call the pool with them in every way, and note the outcomes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pairpool.stress import tasks
from pairpool.stress.ledger import Ledger
from pairpool.stress.outcomes import index_of
from pairpool.stress.plan import Plan, PlannedCall, Slice, Task, TaskKind, content

if TYPE_CHECKING:
    from pairpool.pool import Pool

__all__ = ["Clients"]

TIMEOUT = 0.25
"""Seconds that tasks have which are to time out."""

TOO_MANY = 100
"""Breaches after which nothing more is dealt."""

Item = tuple[int, int, int, int, bytes | None]
Outcomes = Iterator[tuple[Task, Any]]


def item_of(task: Task) -> Item:
    """A task as its worker gets it."""
    payload = content(task.number, 0, task.send) if task.send else None
    return task.number, int(task.kind), task.amount, task.reply, payload


def _one_of(function: int) -> Callable[[Item], Any]:
    """`tasks.run_item` by name, or as a function that goes by value, or as a partial."""
    if function == 1:
        return lambda item: tasks.run(*item)
    return functools.partial(_apply_to, tasks.run) if function == 2 else tasks.run_item


def _many_of(function: int) -> Callable[..., Any]:
    if function == 1:
        return lambda *item: tasks.run(*item)
    return functools.partial(tasks.run) if function == 2 else tasks.run


def _apply_to(function: Callable[..., Any], item: Item) -> Any:
    return function(*item)


class Clients:
    """The threads that use one pool.

    Args:
        chunksize: as for `Pool.map`; None for automatic batches.
    """

    def __init__(self, pool: Pool, plan: Plan, ledger: Ledger, count: int, chunksize: int | None) -> None:
        self._pool: Any = pool
        self._ledger = ledger
        self._chunksize = chunksize
        self._slices = plan.slices()
        self._lock = threading.Lock()
        self.open: dict[int, tuple[int, int]] = {}
        """First and last index, and one more, of the slice that each thread is at."""
        self._dealing = True
        self.abandoned = False
        """Set when the pool is ended under the clients: what they see from then on counts for nothing."""
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"client {number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Deal no more slices."""
        self._dealing = False

    def are_done(self, timeout: float) -> bool:
        """Whether all have ended; waits up to `timeout` seconds for the first that has not."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)
                return False
        return True

    def _take(self, number: int) -> Slice | None:
        with self._lock:
            self.open.pop(number, None)
            if not self._dealing or self._ledger.breach_count > TOO_MANY:
                return None
            taken = next(self._slices, None)
            if taken is not None:
                is_strict = self._chunksize == 1
                self._ledger.deal(taken.tasks, strict=is_strict)
                self.open[number] = (taken.tasks[0].number, taken.tasks[-1].number + 1)
            return taken

    def _work(self, number: int) -> None:
        while (taken := self._take(number)) is not None:
            first = taken.tasks[0].number
            try:
                for task, outcome in self._perform(taken):
                    if self.abandoned:
                        return
                    self._ledger.end(task, outcome)
            except BaseException as error:
                if self.abandoned:
                    return
                self._ledger.breach("call failed", f"{taken.call.name} of slice at {first}: {error!r}", first)

    def _perform(self, taken: Slice) -> Outcomes:
        plain = [task for task in taken.tasks if task.kind is not TaskKind.TIMEOUT]
        if plain:
            yield from _WAYS[taken.call](self, taken._replace(tasks=plain))
        if len(plain) < len(taken.tasks):
            late = [task for task in taken.tasks if task.kind is TaskKind.TIMEOUT]
            found = self._pool.map(
                tasks.run_item,
                [item_of(task) for task in late],
                self._chunksize,
                return_exceptions=True,
                task_timeout=TIMEOUT,
            )
            yield from self._in_order(late, found)

    # --- the ways to call ---------------------------------------------------------------------------

    def _in_order(self, expected: list[Task], outcomes: list[Any]) -> Outcomes:
        if len(outcomes) != len(expected):
            self._ledger.breach("wrong outcome", f"{len(outcomes)} results of {len(expected)} tasks")
        for position, (task, outcome) in enumerate(zip(expected, outcomes, strict=False)):
            self._check_position(task, outcome, position)
            yield task, outcome

    def _check_position(self, task: Task, outcome: Any, position: int) -> None:
        if type(outcome).__name__ == "WorkerDied" and outcome.index != position:
            text = f"item {position} ended with a WorkerDied that names item {outcome.index}: {outcome}"
            self._ledger.breach("wrong outcome", text, task.number)

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
            self._ledger.breach("wrong callback", text)
        return self._in_order(taken.tasks, found)

    def _stream(self, taken: Slice) -> Outcomes:
        is_ordered = taken.call is PlannedCall.IMAP
        method = self._pool.imap if is_ordered else self._pool.imap_unordered
        items = (item_of(task) for task in taken.tasks)
        stream = method(_one_of(taken.function), items, self._chunksize, return_exceptions=not taken.bare)
        by_index = {task.number: task for task in taken.tasks}
        for position, outcome in enumerate(_read(stream, len(taken.tasks))):
            if position >= len(taken.tasks):
                self._ledger.breach("wrong outcome", f"an outcome too many: {outcome!r:.300}")
            elif is_ordered:
                task = taken.tasks[position]
                self._check_position(task, outcome, position)
                yield task, outcome
            else:
                index = self._whose(outcome, taken)
                if index in by_index:
                    yield by_index[index], outcome
                else:
                    self._ledger.breach("wrong outcome", f"an outcome of no task of the slice: {outcome!r:.300}")

    def _whose(self, outcome: Any, taken: Slice) -> int | None:
        """The index of the task that an outcome is of, by what it says itself."""
        if type(outcome).__name__ == "WorkerDied":
            position: int = outcome.index
            return taken.tasks[position].number if position < len(taken.tasks) else None
        return index_of(outcome)

    def _apply(self, taken: Slice) -> Outcomes:
        for task in taken.tasks:
            try:
                outcome = self._pool.apply(_many_of(taken.function), item_of(task))
            except BaseException as error:
                if self.abandoned:
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
                if self.abandoned:
                    raise
                outcome = error
            yield task, outcome
        if len(called) != len(results):
            self._ledger.breach("wrong callback", f"{len(called)} callbacks of {len(results)} calls of apply_async")


def _read(stream: Iterator[Any], count: int) -> Iterator[Any]:
    """All outcomes of a stream, raised ones included; at most one more than there should be."""
    for _ in range(count + 1):
        try:
            outcome = next(stream)
        except StopIteration:
            return
        except BaseException as error:
            outcome = error.__cause__ if isinstance(error.__cause__, StopIteration) else error  # a task's own
        yield outcome


_WAYS: dict[PlannedCall, Callable[[Clients, Slice], Outcomes]] = {
    PlannedCall.MAP: Clients._map,
    PlannedCall.STARMAP: Clients._starmap,
    PlannedCall.IMAP: Clients._stream,
    PlannedCall.IMAP_UNORDERED: Clients._stream,
    PlannedCall.MAP_ASYNC: Clients._map_async,
    PlannedCall.STARMAP_ASYNC: Clients._map_async,
    PlannedCall.APPLY: Clients._apply,
    PlannedCall.APPLY_ASYNC: Clients._apply_async,
}
