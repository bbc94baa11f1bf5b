"""numpy's arrays and scalars as plain data: nothing of the caller's runs when they are loaded, so they may go in bulk.

A batch of 8 KiB arrays in one pickle, with their buffers behind it, takes a third of the time of a pickle each.
"""

from __future__ import annotations

import functools
import sys
from types import BuiltinFunctionType, FunctionType
from typing import Any

__all__ = ["is_plain"]

SMALL = 32 * 1024
"""Bytes from which on an array goes by itself: to pickle it is little work beside the copies."""

_NAMEABLE = (type, FunctionType, BuiltinFunctionType)


def is_plain(thing: Any) -> bool:
    """Whether this is a small array or a scalar of numpy, or what their pickles name."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    kind = type(thing)
    if kind is numpy.ndarray:
        return thing.nbytes < SMALL and not thing.dtype.hasobject
    if isinstance(thing, numpy.dtype):
        return thing.isbuiltin == 1 and not thing.hasobject
    if isinstance(thing, numpy.generic):
        return kind.__module__ == "numpy" and thing.dtype.isbuiltin == 1 and not thing.dtype.hasobject
    return isinstance(thing, _NAMEABLE) and thing in _named(numpy)


@functools.cache
def _named(numpy: Any) -> frozenset[Any]:
    """The functions and classes that such pickles name, whatever this version of numpy calls them."""
    samples = (numpy.zeros(1), numpy.zeros((2, 2), order="F"), numpy.float64(0), numpy.dtype("u1"))
    return frozenset(sample.__reduce_ex__(5)[0] for sample in samples)
