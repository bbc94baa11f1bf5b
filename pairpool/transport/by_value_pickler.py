"""Pickle by value, through cloudpickle, except for the names that the other side knows.

cloudpickle alone sends every function and class of `__main__` by value, with every global that they use. It also makes
a second class of an inherited one. So this pickler asks first which names the other side knows. The module is imported
only when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol

from cloudpickle import cloudpickle

from pairpool.transport import fd_reducers
from pairpool.transport.items import Pickled
from pairpool.transport.numeric import reduce_scattered
from pairpool.transport.segments import Shared

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from pairpool.transport.picklers import OutOfBand

__all__ = ["ByValuePickler", "KnownNames", "SharingByValuePickler"]

HEAP_TYPE_FLAG = 1 << 9
"""Py_TPFLAGS_HEAPTYPE. Only a class with this flag can be taken apart and sent."""


class KnownNames(Protocol):
    """Know which functions and classes the other side finds by name."""

    def names(self, thing: Any) -> bool:
        """Return whether the other side finds a function or class by name."""


class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """A cloudpickle pickler that names the functions and classes which the other side knows.

    Args:
        file: receives the pickle.
        known: knows the names of the other side.
        out_of_band: receives the segments and descriptors.
        keep: a `buffer_callback`, or None to use protocol 4 with all buffers in the pickle.
        allows_handles: whether the pickle may contain handles of `Pool.share`.
    """

    def __init__(
        self,
        file: SupportsWrite[bytes],
        known: KnownNames,
        out_of_band: OutOfBand,
        keep: Callable[[Any], Any] | None,
        *,
        allows_handles: bool,
    ) -> None:
        self._protocol = 4 if keep is None else 5
        super().__init__(file, protocol=self._protocol, buffer_callback=keep)
        self._known = known
        self._out_of_band = out_of_band
        self._allows_handles = allows_handles

    def reducer_override(self, obj: Any) -> Any:
        out_of_band = self._out_of_band
        if self._allows_handles:
            if type(obj) is Shared:
                return obj.reduce_for_worker(out_of_band.segments)
            if type(obj) is Pickled:
                out_of_band.segments.extend(obj.segments)
        if isinstance(obj, fd_reducers.kinds) and out_of_band.fds is not None:
            reduced = fd_reducers.reduce(obj, out_of_band.fds)
            if reduced is not NotImplemented:
                return reduced
        if isinstance(obj, FunctionType):
            if self._known.names(obj):
                return NotImplemented
            return self._dynamic_function_reduce(obj)
        if isinstance(obj, type) and obj.__module__ != "builtins":
            if self._known.names(obj):
                return NotImplemented
            if obj.__flags__ & HEAP_TYPE_FLAG:
                return cloudpickle._dynamic_class_reduce(obj)
        return reduce_scattered(obj, self._protocol) or super().reducer_override(obj)


class SharingByValuePickler(ByValuePickler):
    """Name the large objects that several items of a batch contain."""

    def persistent_id(self, obj: Any) -> int | None:
        number: int | None = self._out_of_band.number(obj)
        return number
