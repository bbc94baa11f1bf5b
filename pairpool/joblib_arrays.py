"""Arrays among the arguments of one call of `joblib.Parallel`: shared in memory, or mapped from their file."""

from __future__ import annotations

import mmap
import operator
import os
import sys
import weakref
from typing import Any, NamedTuple

from pairpool.executor import Executor
from pairpool.transport.segments import Shared

__all__ = ["JoblibArrays"]


class JoblibArrays:
    """Prepare the arrays among the arguments of one call of `Parallel`.

    Args:
        executor: its workers get the arrays.
        least: bytes from which an array is shared when it comes for the second time; None for never.
    """

    def __init__(self, executor: Executor, least: float | None) -> None:
        self._executor = executor
        self._least = least
        self._seen: dict[int, tuple[weakref.ref[Any], Shared[Any] | None]] = {}
        """Large arrays by id, as long as they exist. So the memory is bounded by what the program itself keeps."""

    def prepare(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> list[tuple[Any, Any, Any]]:
        """Return the calls of a batch in the form in which they travel."""
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return calls
        kinds = {numpy.ndarray, numpy.memmap}

        def found(value: Any) -> Any:
            kind = type(value)
            if kind in kinds:
                return self._prepare(value)
            if kind not in (dict, list, tuple):
                return value
            values = list(value.values() if kind is dict else value)
            ready = [self._prepare(one) if type(one) in kinds else one for one in values]
            if all(map(operator.is_, values, ready)):
                return value  # the same object, because it may contain itself
            return dict(zip(value, ready, strict=True)) if kind is dict else kind(ready)

        return [
            (call, tuple(map(found, args)), {name: found(value) for name, value in kwargs.items()})
            for call, args, kwargs in calls
        ]

    def _prepare(self, array: Any) -> Any:
        if array.base is not None:
            in_file = _in_file(array)
            if in_file is not None:
                return in_file
        if self._least is None or array.nbytes < max(self._least, 1) or array.dtype.hasobject:
            return array
        key = id(array)
        reference, shared = self._seen.get(key, (None, None))
        if reference is None:
            seen = self._seen
            self._seen[key] = weakref.ref(array, lambda _gone: seen.pop(key, None)), None
            return array  # this may be its only use
        if shared is None:
            shared = self._executor.pool.share(array)
            self._seen[key] = reference, shared
        return shared

    def close(self) -> None:
        """Free the shared memory."""
        seen, self._seen = self._seen, {}
        for _reference, shared in seen.values():
            if shared is not None:
                shared.close()


class _Place(NamedTuple):
    """Where an array lies in a file.

    Attributes:
        order: `"C"` or `"F"`; None for an array with gaps.
        length: bytes from its first to its last byte in the file.
        before: bytes of these in front of the first element.
        strides: of an array with gaps; None for others.
    """

    name: str
    mode: Any
    offset: int
    dtype: Any
    shape: tuple[int, ...]
    order: Any
    length: int
    before: int
    strides: tuple[int, ...] | None


class _InFile:
    """An array that lies in a file, on its way to a worker, which maps the file."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    def __reduce__(self) -> Any:
        return _map_file, (self._place,)


def _in_file(array: Any) -> _InFile | None:
    """Return the form in which a `numpy.memmap`, or a view of one, travels. None for other arrays, and private maps."""
    whole = array
    while not isinstance(whole.base, mmap.mmap):
        whole = whole.base
        if not hasattr(whole, "base"):
            return None
    name = getattr(whole, "filename", None)
    if name is None or whole.mode == "c" or not array.size or not os.path.exists(name):
        return None
    steps = [(count - 1) * stride for count, stride in zip(array.shape, array.strides, strict=True)]
    before = -sum(step for step in steps if step < 0)
    length = before + sum(step for step in steps if step > 0) + array.itemsize
    at = whole.offset + _address(array) - _address(whole) - before
    mode = "r" if whole.mode == "r" or not array.flags.writeable else "r+"
    order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else None
    strides = None if order is not None else array.strides
    return _InFile(_Place(str(name), mode, at, array.dtype, array.shape, order, length, before, strides))


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def _map_file(place: _Place) -> Any:
    """Return the array, in a worker. An array with gaps lies over a map of the bytes from its first to its last one."""
    import numpy as np

    name, mode, offset, dtype, shape, order, length, before, strides = place
    if strides is None:
        return np.memmap(name, dtype, mode, offset, shape, order)
    return np.ndarray(shape, dtype, np.memmap(name, np.uint8, mode, offset, (length,)), before, strides)
