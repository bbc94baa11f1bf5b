"""Decide whether the items of a batch can go in one pickle, and make this pickle.

items ─► range? ───────────────────────────────────────────────► one pickle
         few items, all of them atoms? ────────────────────────► one pickle
         plain data, and no mutable object is part of two items? ► one pickle, with larger buffers out of band
         anything else ────────────────────────────────────────► None: each item needs its own pickle
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Sequence
from typing import Any

from pairpool.transport.items import ATOMS, PLAIN_KINDS, Pickled, PlainPickler, are_independent
from pairpool.transport.numeric import is_plain
from pairpool.transport.payload import Encoded, bulk, whole
from pairpool.transport.picklers import ReadOnlyBuffer

__all__ = ["dump_bulk"]

_NOT_IN_MEMO = frozenset({int, float, bool, type(None)})
"""Types whose objects leave no entry in a pickler's memo."""

BULK_OUT_OF_BAND_FROM_BYTES = 512
"""The buffer of a small array stays out of the pickle of a whole batch if it has at least this size."""

TYPES_CHECKED_UP_TO_ITEMS = 64
"""Up to this number of items, a check of each type costs less than a pickler that stops at other objects."""


def dump_bulk(items: Sequence[Any], are_settled: bool) -> Encoded | None:
    """Return one pickle of all items. Return None if an item may fail, or if two may share a mutable object.

    Args:
        are_settled: whether each item is immutable, or no other code has a reference to it.
    """
    if type(items) is range:
        return bulk(pickle.dumps(items, 5))
    first = type(items[0])
    if first not in PLAIN_KINDS and not is_plain(items[0]):
        return None
    if len(items) <= TYPES_CHECKED_UP_TO_ITEMS and ATOMS.issuperset(map(type, items)):
        return bulk(pickle.dumps(items, 5))
    is_safe = are_settled or len(items) == 1
    if not (is_safe or first in _NOT_IN_MEMO or are_independent(items)):
        return None
    file = io.BytesIO()
    raws: list[memoryview] = []
    pickler = PlainPickler(file, 5, buffer_callback=functools.partial(_set_aside, raws))
    try:
        pickler.dump(items)
    except Exception:
        return None  # the pickles of the single items show which item failed
    if first in _NOT_IN_MEMO and not is_safe and len(pickler.memo.copy()) > 1 and not are_independent(items):
        return None  # the batch contains more than numbers
    data = file.getvalue()
    return whole(Pickled(data, list(raws))) if raws else bulk(data)


def _set_aside(raws: list[memoryview], buffer: Any) -> bool:
    """Keep the buffers of all but the smallest arrays out of the pickle. This is a `buffer_callback`."""
    raw = buffer.raw()
    if raw.readonly:
        raise ReadOnlyBuffer
    if raw.nbytes < BULK_OUT_OF_BAND_FROM_BYTES:
        return True
    raws.append(raw)
    return False
