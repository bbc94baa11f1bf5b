"""Arrays and scalars of numpy as plain data: they run no code of the caller when they are loaded.

So they may travel in the pickle of a whole batch. A batch of 8 KiB arrays in one pickle, with the buffers behind it,
takes a third of the time of a pickle per array.
"""

from __future__ import annotations

import functools
import sys
from types import BuiltinFunctionType, FunctionType
from typing import Any

__all__ = ["is_array", "is_numeric", "is_plain", "is_scalar", "is_small_array", "own_array", "reduce_scattered"]

SMALL_ARRAY_BELOW_BYTES = 32 * 1024
"""An array of this size and above has its own pickle, whose cost is small beside that of the copies."""

KINDS_REMEMBERED = 256
"""Number of types whose kind is remembered."""

_NOT_NUMERIC, _OTHER, _SCALAR = range(3)
_kinds: dict[type, int] = {}
"""The kind of each type: not of numpy; an array or an unusual scalar; a number or bool of numpy."""

_NAMEABLE_TYPES = (type, FunctionType, BuiltinFunctionType)
_BUILTIN_TYPES = frozenset({complex, set, frozenset, bytearray})


def is_plain(thing: Any) -> bool:
    """Return whether an object about which the C pickler asks is plain data, or is named by pickles of plain data.

    Complex numbers, small arrays and scalars of numpy are plain data. In protocol 3, pickles of plain data name the
    types of sets and bytearrays.
    """
    kind = type(thing)
    if kind is type and thing in _BUILTIN_TYPES:
        return True
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if kind is numpy.ndarray:
            return thing.nbytes < SMALL_ARRAY_BELOW_BYTES and not thing.dtype.hasobject
        if isinstance(thing, numpy.dtype):
            return thing.isbuiltin == 1 and not thing.hasobject
        if isinstance(thing, numpy.generic):
            return kind.__module__ == "numpy" and thing.dtype.isbuiltin == 1 and not thing.dtype.hasobject
        if isinstance(thing, _NAMEABLE_TYPES) and thing in _named_by_pickles(numpy):
            return True
    return kind is complex


def is_numeric(kind: type) -> bool:
    """Return whether objects of a type may be plain data: complex numbers, and arrays and scalars of numpy."""
    return kind is complex or _kind_of(kind) > _NOT_NUMERIC


def is_scalar(kind: type) -> bool:
    """Return whether a type is a scalar type of numpy whose objects never change."""
    return _kind_of(kind) == _SCALAR


def _kind_of(kind: type) -> int:
    known = _kinds.get(kind)
    if known is None:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return _NOT_NUMERIC
        known = _NOT_NUMERIC
        if kind is numpy.ndarray or issubclass(kind, numpy.generic):
            is_fixed = kind.__module__ == "numpy" and issubclass(kind, (numpy.number, numpy.bool_))
            known = _SCALAR if is_fixed else _OTHER
        if len(_kinds) > KINDS_REMEMBERED:
            _kinds.clear()
        _kinds[kind] = known
    return known


def is_array(thing: Any) -> bool:
    """Return whether an object is an array of numpy (no subclass) that holds no Python objects."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(thing) is numpy.ndarray and not thing.dtype.hasobject


def is_small_array(thing: Any) -> bool:
    """Return whether an object is an array that may travel in one pickle with other items."""
    return is_array(thing) and thing.nbytes < SMALL_ARRAY_BELOW_BYTES and thing.dtype.isbuiltin == 1


def reduce_scattered(thing: Any, protocol: int) -> Any:
    """Return the reduced form of an array with gaps between its elements, or None for any other object.

    The array arrives in C order, as from multiprocessing. numpy itself keeps the order of the axes in protocol 5 only.
    """
    if is_array(thing) and not thing.flags.forc:
        return thing.copy("C").__reduce_ex__(protocol)
    return None


def own_array(array: Any) -> Any:
    """Return a copy of an array, with the memory layout that the array would have after a pickle."""
    return array.copy("F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C")


@functools.cache
def _named_by_pickles(numpy: Any) -> frozenset[Any]:
    """Return the functions and classes that pickles of plain data name. Their names depend on the version of numpy."""
    samples = (numpy.zeros(1), numpy.zeros((2, 2), order="F"), numpy.float64(0), numpy.dtype("u1"))
    named = {sample.__reduce_ex__(protocol)[0] for sample in samples for protocol in (3, 5)}
    return frozenset({*named, numpy.ndarray})
