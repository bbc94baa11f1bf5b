"""The functions that a worker knows, by number."""

from __future__ import annotations

import time
import warnings
from typing import Any, NamedTuple

from pairpool.scoreboard.board import State, Word
from pairpool.transport import fd_passing, received_fds, segments
from pairpool.transport.failures import Failure, Fault, describe_failure, missing_module
from pairpool.transport.payload import each_item, load_item
from pairpool.transport.protocol import Flag, FunctionPacket
from pairpool.transport.repeats import LARGE_OBJECT_BYTES
from pairpool.transport.serializer import Serializer
from pairpool.worker.payloads import Payloads

__all__ = ["BrokenFunction", "FunctionFailed", "FunctionTable", "StatefulFunction", "release"]


class BrokenFunction(NamedTuple):
    """Stands in the table for a function that could not be unpickled."""

    failure: Failure

    def __call__(self, /, *_args: Any, **_kwds: Any) -> Any:
        raise FunctionFailed(self.failure)


class FunctionFailed(BaseException):
    """Carries the failure of a function that could not be unpickled to the item that needs the function."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class StatefulFunction:
    """A callable that contains objects which a task can change.

    Each item gets its own copy. If the callable is large, each batch does.

    Args:
        first: the copy that was loaded when the callable arrived.
    """

    def __init__(self, pickled: memoryview, buffers: list[memoryview], first: Any) -> None:
        self._pickled = bytes(pickled)
        self._buffers = [memoryview(bytes(buffer)) for buffer in buffers]
        self._first = [first]
        self._current: Any = None
        self.is_large = len(self._pickled) + sum(map(len, self._buffers)) >= LARGE_OBJECT_BYTES

    def load(self) -> Any:
        """Return a copy that no task has used."""
        return self._first.pop() if self._first else load_item(memoryview(self._pickled), self._buffers)

    def __call__(self, /, *args: Any, **kwds: Any) -> Any:
        self._current = self.load()  # the result can contain a part of it, so it stays until the result is pickled
        return self._current(*args, **kwds)


class FunctionTable:
    """Learns and forgets functions as the master says.

    Args:
        words: the worker's slot of the scoreboard.
    """

    def __init__(self, words: memoryview, serializer: Serializer, payloads: Payloads) -> None:
        self._words = words
        self._serializer = serializer
        self._payloads = payloads
        self._functions: dict[int, Any] = {}
        self._with_descriptors: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number in self._functions

    def __getitem__(self, number: int) -> Any:
        return self._functions[number]

    def learn(self, packet: FunctionPacket, payload: memoryview, fds: list[int]) -> None:
        """Unpickle a function; if that fails, keep the reason in its place."""
        words = self._words
        words[Word.FUNCTION] = packet.function
        words[Word.STARTED] = time.monotonic_ns()
        words[Word.STATE] = State.FUNCTION
        if not self._payloads.use(packet, payload, fds, lambda content: self._load(packet, content)):
            segments.take_missing()
            self.lose(packet)
        words[Word.STATE] = State.IDLE

    def _load(self, packet: FunctionPacket, content: memoryview) -> None:
        pickled, buffers, _place = next(each_item(content))
        number = packet.function
        try:
            function = load_item(pickled, buffers)
            if packet.flags & Flag.HAS_STATE:
                function = StatefulFunction(pickled, buffers, function)
            self._functions[number] = function
        except BaseException as error:
            received_fds.undo()
            missing = missing_module(pickled, error)
            failure = describe_failure(self._serializer, 0, Fault.FUNCTION, error, missing)
            self._functions[number] = BrokenFunction(failure)
        if packet.descriptors:
            self._with_descriptors.add(number)
        if segments.take_missing():
            self._functions.pop(number, None)

    def lose(self, packet: FunctionPacket) -> None:
        """Note that the descriptors of a function were lost because this process can open no more files."""
        error = fd_passing.table_is_full("the descriptors of the task could not be received")
        failure = describe_failure(self._serializer, 0, Fault.ROOM, error)
        self._functions[packet.function] = BrokenFunction(failure)

    def forget(self, number: int) -> None:
        """Drop a function."""
        function = [self._functions.pop(number, None)]
        if number in self._with_descriptors:
            self._with_descriptors.discard(number)
            release(function)


def release(things: list[Any]) -> None:
    """Drop objects that can hold sockets and files.

    This closes them without a ResourceWarning, because it is not the task that forgot to close them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        things.clear()
