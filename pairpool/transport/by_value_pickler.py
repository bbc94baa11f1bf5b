"""Pickling by value, through cloudpickle, except for what the other side knows by name.

cloudpickle alone would send every function and class of `__main__` by value, with every global that they touch, and
would make of an inherited class a second one. Here the knowledge of what was inherited comes first. Imported only
when needed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol

from cloudpickle import cloudpickle

from pairpool.transport import fd_reducers
from pairpool.transport.items import Pickled
from pairpool.transport.numeric import reduce_scattered
from pairpool.transport.segments import Segment, Shared

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from pairpool.transport.fd_passing import ChildFds, OutgoingFds
    from pairpool.transport.picklers import Numbering

__all__ = ["ByValuePickler", "Knowledge", "SegmentPickler"]

HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: only such classes can be taken apart and sent


class Knowledge(Protocol):
    """Something that tells which functions and classes the other side finds by name."""

    def names(self, thing: Any) -> bool: ...


class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """A cloudpickle pickler that asks `knowledge` before it sends a function or class by value.

    Args:
        file: where the pickle goes.
        knowledge: what the other side knows.
        keep: a `buffer_callback`, or None for protocol 4 with all buffers in the pickle.
        segments: where those of handles are noted; None where no handle may go.
        cargo: where copies of descriptors are put; None where none may go.
    """

    def __init__(
        self,
        file: SupportsWrite[bytes],
        knowledge: Knowledge,
        keep: Callable[[Any], Any] | None,
        segments: list[Segment] | None,
        cargo: OutgoingFds | ChildFds | None = None,
    ) -> None:
        self._protocol = 4 if keep is None else 5
        super().__init__(file, protocol=self._protocol, buffer_callback=keep)
        self._knowledge = knowledge
        self._segments = segments
        self._cargo = cargo

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Shared and self._segments is not None:
            return obj.travel(self._segments)
        if type(obj) is Pickled and self._segments is not None:
            self._segments += obj.segments
        if isinstance(obj, fd_reducers.kinds) and self._cargo is not None:
            way = fd_reducers.travel(obj, self._cargo)
            if way is not NotImplemented:
                return way
        if isinstance(obj, FunctionType):
            if self._knowledge.names(obj):
                return NotImplemented
            return self._dynamic_function_reduce(obj)
        if isinstance(obj, type) and obj.__module__ != "builtins":
            if self._knowledge.names(obj):
                return NotImplemented
            if obj.__flags__ & HEAP_TYPE:
                return cloudpickle._dynamic_class_reduce(obj)
        return reduce_scattered(obj, self._protocol) or super().reducer_override(obj)


class SegmentPickler(ByValuePickler):
    """Names the large objects that several items of a batch contain."""

    beside: Numbering

    def persistent_id(self, obj: Any) -> int | None:
        return self.beside.number(obj)
