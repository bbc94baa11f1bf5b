"""Pickle the items of batches, so that the failure of one item never affects another item.

Functions and classes that the other side knows travel by name; all others travel by value.

| items of a batch                         | how they travel                                                     |
| ---------------------------------------- | ------------------------------------------------------------------- |
| plain data, no mutable object in common  | one pickle of all items (`bulk.py`)                                 |
| plain data that was pickled item by item | one pickle, made of the pickles of the items (`items.py`)           |
| all other items                          | a pickle per item (`payload.py`)                                    |
| with a large object in several items     | a pickle per item that names the large object (`large.py`)          |

Plain data cannot fail to load. It consists of scalars, containers of scalars and small arrays, and its pickle names no
class or function but those of numpy. Every other item has its own pickle for two reasons: an error of its class during
loading fails this item alone, and the scoreboard shows which item it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pairpool.linux.interrupts import is_own
from pairpool.transport import fd_reducers
from pairpool.transport.bulk import dump_bulk
from pairpool.transport.closures import captured
from pairpool.transport.fd_passing import OutgoingFds
from pairpool.transport.inherited_names import InheritedNames
from pairpool.transport.items import (
    ATOMS,
    PICKLER_REUSED_UP_TO_BYTES,
    PLAIN_KINDS,
    REPORTED,
    Failed,
    Part,
    Pickled,
    Pickles,
    PlainWriter,
    pickled_call,
    size_of,
)
from pairpool.transport.large import BatchDumper
from pairpool.transport.numeric import is_array, is_numeric
from pairpool.transport.object_dumper import ObjectDumper
from pairpool.transport.payload import SHARING, Encoded, assembled, bulk, single
from pairpool.transport.picklers import NamingWriter, OutOfBand, load_locally, pickled
from pairpool.transport.repeats import LARGE_OBJECT_BYTES, Repeats
from pairpool.transport.warm_memory import WarmMemory, process_memory

__all__ = ["Serializer"]

Fail = Callable[[int, BaseException], None]
"""Called with the offset of an item that cannot be pickled, and the error."""


class Serializer:
    """Pickle items and functions for the other side.

    Args:
        names: the names that the workers know; None in a worker, because its master knows every name.
        memory: memory for copies of large buffers that the caller may change; None for the memory of this process.
    """

    def __init__(self, names: InheritedNames | None = None, memory: WarmMemory | None = None) -> None:
        self.names = names
        self._dumper = ObjectDumper(names)
        self._memory = memory or process_memory
        self._plain_writers: list[PlainWriter] = []
        self._naming_writers: list[NamingWriter] = []

    def set_inherited_names(self, names: InheritedNames) -> None:
        """Set the names that the workers inherit."""
        self.names = names
        self._dumper = ObjectDumper(names)

    def set_main_names(self, main_names: frozenset[str] | None) -> None:
        """Set the names in the workers' `__main__`; None if it is a fork of this process's."""
        assert self.names is not None
        self.names.set_main_names(main_names)

    @property
    def has_inherited_names(self) -> bool:
        """Whether the names that the workers inherit are known."""
        return self.names is not None

    # --- one item, as soon as it is there -------------------------------------------------------

    def dump(self, item: Any, *, copy_buffers: bool = True, may_go_by_value: bool = True) -> Part:
        """Pickle an item now, because the caller or a task may change it. Raise the exception of its pickling.

        Args:
            copy_buffers: copy large buffers, too. Without a copy, nobody may change them until the item has ended.
            may_go_by_value: whether cloudpickle may be used if plain pickle fails.
        """
        data = self.dump_plain(item)
        if data is not None:
            return data
        return self.dump_other(item, copy_buffers=copy_buffers, may_go_by_value=may_go_by_value)

    def dump_settled(self, items: Sequence[Any]) -> Pickles:
        """Return the pickles of items that cannot change: immutable items, and arrays without another reference."""
        return Pickles([self.dump(item, copy_buffers=False) for item in items])

    def dump_each(self, items: Sequence[Any]) -> Pickles:
        """Return the pickles of items as they are now. An item that cannot be pickled becomes a `Failed`."""
        parts = Pickles()
        for item in items:
            try:
                parts.append(self.dump(item))
            except BaseException as error:
                if not is_own(error):
                    raise
                parts.append(Failed(error))
        return parts

    def dump_plain(self, item: Any) -> bytes | None:
        """Return the pickle of plain data in protocol 3, or None for any other item."""
        if type(item) not in PLAIN_KINDS and not is_numeric(type(item)):
            return None
        writers = self._plain_writers
        try:
            writer = writers.pop()
        except IndexError:
            writer = PlainWriter()  # one per thread that pickles, and one per finalizer that runs meanwhile
        data = writer.dump(item)
        writers.append(writer)
        return data

    def dump_other(self, item: Any, *, copy_buffers: bool, may_go_by_value: bool = True) -> Pickled:
        """Pickle an item that is not plain data. See `dump`."""
        memory = self._memory if copy_buffers else None
        # An array can be loaded again for errors and views. For other items, code of their class would run.
        original = item if self.names is not None and not is_array(item) else None
        part = self._dump_by_name(item, memory, original)
        if part is None:
            out_of_band = self._dumper.out_of_band()
            try:
                dumped = self._dumper.dump(item, out_of_band, may_go_by_value=may_go_by_value)
            except BaseException:
                out_of_band.restart()  # close the copies of descriptors now, because the exception may be kept for long
                raise
            part = pickled(dumped.data, out_of_band, memory, by_value=dumped.by_value)
            part.keep_original(item if part.fds is not None else original)
        return part

    def _dump_by_name(self, item: Any, memory: WarmMemory | None, original: Any) -> Pickled | None:
        """Pickle an item by name as a whole, with a pickler that was used before. Return None if that fails."""
        writers, names = self._naming_writers, self.names
        try:
            writer = writers.pop()
        except IndexError:
            writer = NamingWriter(names)
        if writer.names is not names:
            writer = NamingWriter(names)
        fd_reducers.refresh_kinds()
        if names is None:
            fd_reducers.refuse_plain_connections()
        try:
            data = writer.dump(item)
        except Exception as error:
            if names is not None and not is_own(error):
                raise
            return None
        part = writer.finish(data, memory, original)
        if len(data) <= PICKLER_REUSED_UP_TO_BYTES:
            writers.append(writer)
        return part

    def again_by_value(self, part: Part) -> Part:
        """Pickle an item by value that was pickled by name, as the item was at that time."""
        if type(part) is not Pickled:
            return part
        out_of_band = self._dumper.out_of_band()
        try:
            dumped = self._dumper.dump_by_value(load_locally(part), out_of_band)
            again = pickled(dumped.data, out_of_band, self._memory, by_value=True)
        except Exception as error:
            return Failed(error)
        again.keep_original(part.original)
        return again

    def repeats(self) -> Repeats:
        """Return an empty record of the large objects that several items of one call contain."""
        return Repeats(self._size_of)

    def _size_of(self, thing: Any) -> int:
        part = self.dump(thing, copy_buffers=False)
        if type(part) is Pickled and part.fds is not None:
            raise TypeError("an object with descriptors is not sent once for several items")
        return size_of(part)

    # --- the items of a batch -------------------------------------------------------------------

    def encode(
        self,
        items: Sequence[Any],
        fail: Fail,
        *,
        mark: Callable[[int], None] | None = None,
        may_go_by_value: bool = True,
        are_settled: bool = False,
        by_value: bool = False,
    ) -> Encoded:
        """Pickle the items of a batch, each as if it were alone.

        Args:
            items: the items, or `Pickles`.
            fail: called with the offset of each item that cannot be pickled and the error; the item is left out.
            mark: called with the offset of each item before the item is pickled on its own.
            may_go_by_value: whether cloudpickle may be used if plain pickle fails.
            are_settled: whether each item is immutable, or no other code has a reference to it.
            by_value: whether a worker did not find by name a class or function in the items.
        """
        if isinstance(items, Pickles):
            return self._encode_pickles(items, fail, by_value)
        encoded = dump_bulk(items, are_settled)
        if encoded is not None:
            return encoded
        return self._encode_each(items, fail, mark=mark, may_go_by_value=may_go_by_value)

    def encode_map(
        self,
        items: Sequence[Any],
        fail: Fail,
        *,
        by_value: bool,
        repeats: Repeats | None,
        keep: Callable[[Pickles], object] | None,
    ) -> Encoded:
        """Pickle the items of a batch of a map, whose items often contain the same large objects.

        Args:
            items: the items, or `Pickles`.
            fail: called with the offset of each item that cannot be pickled and the error; the item is left out.
            by_value: whether a worker did not find by name a class or function in the items.
            repeats: the call's record of large objects in several items; None if the items must not share them.
            keep: called with the pickles if each item has its own, so that they can be sent again.
        """
        if isinstance(items, Pickles):
            return self._encode_pickles(items, fail, by_value)
        may_share = repeats is not None and type(items[0]) not in ATOMS
        if not (may_share and (repeats.expects_large or len(items) == 1)):  # type: ignore[union-attr]
            encoded = dump_bulk(items, False)
            if encoded is not None:
                if not may_share or encoded.size < LARGE_OBJECT_BYTES * len(items):
                    return encoded
                repeats.expect_large()  # type: ignore[union-attr]
        batch = None if repeats is None else BatchDumper(repeats, self._dumper, self)
        return self._encode_each(items, fail, keep=keep, batch=batch)

    def encode_calls(self, calls: Sequence[tuple[Any, ...]], fail: Fail, *, by_value: bool = False) -> Encoded:
        """Pickle single calls.

        Args:
            calls: `(function's number, args, kwds)` if the arguments are immutable, else `(number, part)`.
            fail: called with the offset of each call that cannot be pickled and the error.
            by_value: whether a worker did not find by name a class or function in the calls.
        """
        if {3}.issuperset(map(len, calls)):
            return bulk(pickle.dumps(calls, 5))
        parts = Pickles()
        for number, *rest in calls:
            part = rest[0] if len(rest) == 1 else self.dump(tuple(rest), copy_buffers=False)
            if type(part) is Pickled and by_value:
                part = self.again_by_value(part)
            if type(part) is bytes:
                part = pickled_call(number, part)
            elif type(part) is Pickled:
                part = part.with_data(pickled_call(number, part.data))
            parts.append(part)
        return self._assemble(parts, fail)

    def _encode_pickles(self, items: Pickles, fail: Fail, by_value: bool) -> Encoded:
        return self._assemble(Pickles(map(self.again_by_value, items)) if by_value else items, fail)

    def _encode_each(
        self,
        items: Sequence[Any],
        fail: Fail,
        *,
        mark: Callable[[int], None] | None = None,
        may_go_by_value: bool = True,
        keep: Callable[[Pickles], object] | None = None,
        batch: BatchDumper | None = None,
    ) -> Encoded:
        """Pickle each item on its own. If there is a `batch`, the items may name large objects."""
        parts = Pickles()
        failed: dict[int, BaseException] = {}
        for offset, item in enumerate(items):
            if mark is not None:
                mark(offset)
            try:
                if batch is None:
                    parts.append(self.dump(item, copy_buffers=False, may_go_by_value=may_go_by_value))
                else:
                    parts.append(batch.dump(item))
            except BaseException as error:
                if self.names is not None and not is_own(error):
                    raise  # in the master, the error comes from the handler of a signal
                fail(offset, error)
                if keep is not None:
                    failed[offset] = error
                parts.append(REPORTED)
        encoded = self._assemble(parts, fail, None if batch is None else batch.large)
        if keep is not None and encoded.format != SHARING:
            keep(Pickles(Failed(failed[at]) if part is REPORTED else part for at, part in enumerate(parts)))
        failed.clear()  # the traceback of each exception refers to this frame
        return encoded

    def _assemble(self, parts: Pickles, fail: Fail, large: Pickles | None = None) -> Encoded:
        return assembled(parts, fail, large, to_worker=self.names is not None)

    # --- other pickles --------------------------------------------------------------------------

    def dump_alone(self, item: Any) -> bytes:
        """Return one self-contained pickle: a plain one if possible, else by value."""
        return self._dumper.dump_alone(item)

    def encode_function(self, function: Any, *, by_value: bool = False) -> Encoded:
        """Pickle a function by name if every worker knows it, else by value with the values that it captures.

        Raise the exception of its pickling.
        """
        fd_reducers.refresh_kinds()
        out_of_band = OutOfBand(OutgoingFds())
        dump = self._dumper.dump_by_value if by_value else self._dumper.dump
        dumped = dump(function, out_of_band)
        return single(pickled(dumped.data, out_of_band, None, by_value=dumped.by_value))

    def captures(self, function: Any) -> Iterator[tuple[str, int]]:
        """Yield a description and the size in bytes of each value that a function by value carries with it."""
        for name, value in captured(function):
            out_of_band = OutOfBand()
            try:
                size = len(self._dumper.dump_by_value(value, out_of_band).data)
            except Exception:
                continue  # the sizes are hints for a warning, which leaves out values without a size
            yield name, size + sum(buffer.raw().nbytes for buffer in out_of_band.buffers)
