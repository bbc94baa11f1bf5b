"""Items that pass through the Dask worker of a node as bytes, and are loaded in a worker of the pool.

    package ─► Dask worker: `for_workers` ─► Opaque ─► worker: `load` ─► (how, value) ─► GuardedFunction

1. A Dask worker never loads the pickle of an item, because a pickle can end the process that loads it.
2. Inside the batches of the pool, an `Opaque` reduces to a call of `load` with the pickle of its item.
3. So the item is loaded by itself in a worker of the pool. If that ends the worker, exactly this item fails.
4. If the loading raises, `load` returns a description of the exception, because exceptions stay unopened, too.

In a package without a pickle, the items travel as they are.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, SupportsIndex

from pairpool.dask.packing import DATA, FAILED, MISSING, PICKLED, PLAIN, SHARING, ItemUnpickler
from pairpool.transport.failures import Fault, describe_failure, short_repr
from pairpool.transport.picklers import OUT_OF_BAND_FROM_BYTES
from pairpool.transport.serializer import Serializer

__all__ = ["Opaque", "display", "for_workers", "loaded", "serializer"]

serializer = Serializer()
"""The serializer of a worker, for exceptions."""


class LargeObject:
    """A large object that several items name. The first item that needs it in a worker loads it.

    Args:
        data: its pickle.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self._loaded: list[Any] = []

    def get(self) -> Any:
        """Return the object. Raise the exception of its loading."""
        if not self._loaded:
            self._loaded.append(self.load_copy())
        return self._loaded[0]

    def load_copy(self) -> Any:
        """Return the object, loaded for one item alone. Raise the exception of its loading."""
        return pickle.loads(self.data)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return LargeObject, (_outgoing(self.data, protocol),)


class _LargeObjects(dict[int, LargeObject]):
    """The large objects that an item names, by place."""

    def __getitem__(self, place: int) -> Any:
        return super().__getitem__(place).get()


class Opaque:
    """An item that only a worker of the pool loads. It arrives as the result of `load`.

    Args:
        data: the pickle of the item.
        places: of the large objects that the item names.
        large: these large objects. It is a field, so that the pool finds the objects that items have in common.
    """

    def __init__(self, data: bytes, places: tuple[int, ...] = (), large: tuple[LargeObject, ...] = ()) -> None:
        self.data = data
        self.places = places
        self.large = large

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        data = _outgoing(self.data, protocol)
        return load, ((data, self.places, self.large) if self.places else (data,))

    def __repr__(self) -> str:
        return f"<pickle of {len(self.data):,} bytes>"


def _outgoing(data: Any, protocol: SupportsIndex) -> Any:
    if int(protocol) >= 5 and len(data) >= OUT_OF_BAND_FROM_BYTES:
        return pickle.PickleBuffer(data)
    return bytes(data)


def load(data: Any, places: tuple[int, ...] = (), large: tuple[LargeObject, ...] = ()) -> tuple[int, Any]:
    """Load an item in a worker: return `PLAIN` and the item, or `FAILED` and the description of the exception."""
    try:
        if not places:
            return PLAIN, pickle.loads(data)
        item = ItemUnpickler(data, _LargeObjects(zip(places, large, strict=True))).load()
        if len(large) == 1 and item is large[0].get():
            item = large[0].load_copy()  # an item that is itself the large object is not shared
        return PLAIN, item
    except BaseException as error:
        return FAILED, tuple(describe_failure(serializer, 0, Fault.ARGUMENT, error))


def for_workers(kinds: bytes, values: list[Any], large: Sequence[bytes]) -> tuple[bool, list[Any]]:
    """Return the items of a package for the pool of a node, without those that are missing.

    The first value is whether the items are pairs, which `loaded` understands.
    """
    if not any(kinds):  # all are `PLAIN`
        return False, values
    objects = [LargeObject(data) for data in large]
    return True, [
        _for_worker(kind, value, objects) for kind, value in zip(kinds, values, strict=True) if kind != MISSING
    ]


def _for_worker(kind: int, value: Any, objects: list[LargeObject]) -> Any:
    if kind == PICKLED:
        return Opaque(value)
    if kind == SHARING:
        data, places = value
        return Opaque(data, places, tuple(objects[place] for place in places))
    return kind, value


def loaded(item: tuple[int, Any]) -> tuple[int, Any]:
    """Return `PLAIN` and the item, or `FAILED` and the description of a failure, in a worker."""
    kind, value = item
    return (PLAIN, pickle.loads(value)) if kind == DATA else item


def display(kind: int, value: Any) -> str:
    """Return a short repr of an item, without code of its class."""
    if kind == PLAIN:
        return short_repr(value)
    if kind == DATA:
        return short_repr(pickle.loads(value))
    return short_repr(Opaque(value[0] if kind == SHARING else value))
