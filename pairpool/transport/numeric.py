"""numpy's arrays and scalars as plain data: nothing of the caller's runs when they are loaded, so they may go in bulk.

A batch of 8 KiB arrays in one pickle, with their buffers behind it, takes a third of the time of a pickle each.
"""

from __future__ import annotations

import functools
import sys
from types import BuiltinFunctionType, FunctionType
from typing import Any

__all__ = ["is_array", "is_numeric", "is_plain", "is_scalar", "is_small_array", "own_array", "reduce_scattered"]

SMALL = 32 * 1024
"""Bytes from which on an array goes by itself: to pickle it is little work beside the copies."""

KINDS_KEPT = 256
_NEITHER, _OTHER, _SCALAR = range(3)
_kinds: dict[type, int] = {}
"""Types that were asked about, and what they are of numpy's: nothing, an array or an odd scalar, a number or bool."""

_NAMEABLE = (type, FunctionType, BuiltinFunctionType)
_BUILTIN = frozenset({complex, set, frozenset, bytearray})


def is_plain(thing: Any) -> bool:
    """Whether this is plain data that the C pickler asks about, or what the pickles of such data name.

    That is a complex number, a small array or a scalar of numpy; in protocol 3 also the types of sets and bytearrays.
    """
    kind = type(thing)
    if kind is type and thing in _BUILTIN:
        return True
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if kind is numpy.ndarray:
            return thing.nbytes < SMALL and not thing.dtype.hasobject
        if isinstance(thing, numpy.dtype):
            return thing.isbuiltin == 1 and not thing.hasobject
        if isinstance(thing, numpy.generic):
            return kind.__module__ == "numpy" and thing.dtype.isbuiltin == 1 and not thing.dtype.hasobject
        if isinstance(thing, _NAMEABLE) and thing in _named(numpy):
            return True
    return kind is complex


def is_numeric(kind: type) -> bool:
    """Return whether objects of a type may be plain data: complex numbers, and numpy's arrays and scalars."""
    return kind is complex or _about(kind) > _NEITHER


def is_scalar(kind: type) -> bool:
    """Return whether a type is that of numpy's scalars which never change."""
    return _about(kind) == _SCALAR


def _about(kind: type) -> int:
    known = _kinds.get(kind)
    if known is None:
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return _NEITHER
        known = _NEITHER
        if kind is numpy.ndarray or issubclass(kind, numpy.generic):
            is_fixed = kind.__module__ == "numpy" and issubclass(kind, (numpy.number, numpy.bool_))
            known = _SCALAR if is_fixed else _OTHER
        if len(_kinds) > KINDS_KEPT:
            _kinds.clear()
        _kinds[kind] = known
    return known


def is_array(thing: Any) -> bool:
    """Whether this is an array of numpy, no subclass, that holds no Python objects."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(thing) is numpy.ndarray and not thing.dtype.hasobject


def is_small_array(thing: Any) -> bool:
    """Whether this is an array that goes in one pickle with its neighbours."""
    return is_array(thing) and thing.nbytes < SMALL and thing.dtype.isbuiltin == 1


def reduce_scattered(thing: Any, protocol: int) -> Any:
    """Return how to pickle an array whose elements do not lie one after the other; None for anything else.

    It arrives in C order, as from multiprocessing. Left alone, numpy keeps the order of the axes in protocol 5 only.
    """
    if is_array(thing) and not thing.flags.forc:
        return thing.copy("C").__reduce_ex__(protocol)
    return None


def own_array(array: Any) -> Any:
    """A copy of an array, laid out as the array would be after a pickle and back."""
    return array.copy("F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C")


@functools.cache
def _named(numpy: Any) -> frozenset[Any]:
    """The functions and classes that such pickles name, whatever this version of numpy calls them."""
    samples = (numpy.zeros(1), numpy.zeros((2, 2), order="F"), numpy.float64(0), numpy.dtype("u1"))
    named = {sample.__reduce_ex__(protocol)[0] for sample in samples for protocol in (3, 5)}
    return frozenset({*named, numpy.ndarray})
