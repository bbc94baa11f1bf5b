"""The loops over the items of a batch, and the results that they keep.

Each loop stores the index of an item on the scoreboard before it runs the item, and appends its value afterwards.
Most tasks return values of one type. If that is a type of atoms, the loop spends only the comparison on each value.

`scoreboard/stacks.py` recognises the loops by their names (`LOOPS`), to show the frames of a task without them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from pairpool.scoreboard.board import State, Word
from pairpool.scoreboard.stacks import LOOPS, show_threads
from pairpool.transport.failures import describe_failure
from pairpool.transport.items import PICKLED_NONE, Part
from pairpool.transport.keeper import Keeper
from pairpool.transport.protocol import Flag
from pairpool.transport.serializer import Serializer

__all__ = ["ResultKeeper", "is_in_task", "run_limited", "run_short", "run_timed"]


class ResultKeeper(Keeper):
    """Keeps the values of a batch. The item of a value that cannot be pickled fails.

    Attributes:
        stamps: when the items began that were not reported yet, in monotonic ns; filled by `run_timed` alone.

    Args:
        words: the worker's slot of the scoreboard.
        fail: called with the offset of a value that cannot be pickled, the error and the value.
    """

    def __init__(
        self, words: memoryview, serializer: Serializer, fail: Callable[[int, BaseException, Any], None]
    ) -> None:
        super().__init__(serializer)
        self._words = words
        self._fail = fail
        self._flags = 0
        self.stamps: list[int] = []

    def begin_batch(self, values: list[Any], item_count: int, flags: int) -> None:
        """Keep the values of another batch, in the list `values`."""
        self.begin(values, item_count)
        self.stamps.clear()
        self._flags = flags

    def take_stamps(self, count: int) -> list[int]:
        """Remove and return the starts of the first `count` items."""
        starts = self.stamps[:count]
        del self.stamps[:count]
        return starts

    def _pickle(self, thing: Any) -> Part:
        words = self._words
        if self._flags & Flag.TIMED:
            words[Word.STARTED] = time.monotonic_ns()
        words[Word.STATE] = State.KEEPING
        try:
            return self.serializer.dump_other(
                thing, copy_buffers=True, may_go_by_value=bool(self._flags & Flag.BY_VALUE)
            )
        except BaseException as error:
            self._fail(len(self.kept), error, thing)
            return PICKLED_NONE
        finally:
            words[Word.STATE] = State.RUNNING


def run_timed(
    function: Any, remaining: Iterator[Any], words: memoryview, index: int, values: list[Any], keeper: ResultKeeper
) -> None:
    """Run items that take so long that the start of each is stored on the scoreboard, too."""
    item_word, limit, started, clock = Word.ITEM, Word.LIMIT, Word.STARTED, time.monotonic_ns
    stamps, keep = keeper.stamps, keeper.keep
    kind = None
    for item in remaining:
        words[started] = start = clock()  # before the index: no reader may see an item with the start of another
        stamps.append(start)
        words[item_word] = index
        if index >= words[limit]:
            return
        value = function(item)
        if type(value) is not kind:
            kind, value = keep(value)
        values.append(value)
        index += 1


def run_limited(
    function: Any, remaining: Iterator[Any], words: memoryview, index: int, values: list[Any], keeper: ResultKeeper
) -> None:
    """Run items that the master can take back at any time, except the one that runs."""
    item_word, limit = Word.ITEM, Word.LIMIT
    keep = keeper.keep
    kind = None
    for item in remaining:
        words[item_word] = index
        if index >= words[limit]:
            return
        value = function(item)
        if type(value) is not kind:
            kind, value = keep(value)
        values.append(value)
        index += 1


def run_short(
    function: Any, remaining: Iterator[Any], words: memoryview, index: int, values: list[Any], keeper: ResultKeeper
) -> None:
    """Run items that are so short that a look at the limit would cost as much as the item.

    If one of them is long after all, the handler of `REPORT_SIGNAL` moves the iterator to its end.
    """
    item_word = Word.ITEM
    keep = keeper.keep
    kind = None
    for item in remaining:
        words[item_word] = index
        value = function(item)
        if type(value) is not kind:
            kind, value = keep(value)
        values.append(value)
        index += 1


_LOOP_FUNCTIONS = (run_timed, run_limited, run_short)
_LOOP_CODES = frozenset(loop.__code__ for loop in _LOOP_FUNCTIONS)
_NOT_TASKS = (describe_failure.__code__, show_threads.__code__, Keeper.keep.__code__)
assert {loop.__name__ for loop in _LOOP_FUNCTIONS} == set(LOOPS), "scoreboard/stacks.py knows the loops by other names"


def is_in_task(frame: Any) -> bool:
    """Whether a frame belongs to the code of an item, or to what that code has called."""
    inner = None
    while frame is not None and frame.f_code not in _LOOP_CODES:
        inner, frame = frame, frame.f_back
    return frame is not None and inner is not None and inner.f_code not in _NOT_TASKS
