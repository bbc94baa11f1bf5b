"""The payload of a batch: put pickles and their buffers together on one side, and take them apart on the other.

| format  | contents                                                                                                 |
| ------- | -------------------------------------------------------------------------------------------------------- |
| BULK    | one pickle of a list of all items                                                                        |
| WHOLE   | the same with the buffers of arrays behind it, laid out like a single item of EACH                       |
| EACH    | a table of lengths, then one pickle per item, each followed by its protocol 5 buffers                    |
| SHARING | the number of large objects that several items name, then a payload like EACH: the pickles of the large  |
|         | objects, then those of the items                                                                         |

The table of EACH is an array of 8-byte words, with its length in front:

    words | item 0: size of pickle, fds << 32 | buffers, size of each buffer | item 1: ...
"""

from __future__ import annotations

import io
import itertools
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pairpool.transport import fd_passing
from pairpool.transport.fd_passing import OutgoingFds
from pairpool.transport.items import Failed, Part, Pickled, Pickles, pickled_list
from pairpool.transport.segments import Segment, closed_error
from pairpool.transport.warm_memory import process_memory
from pairpool.transport.wire import FORMATS, Buffer, ProtocolError

__all__ = [
    "BULK",
    "EACH",
    "SHARING",
    "WHOLE",
    "Encoded",
    "Entry",
    "assembled",
    "bulk",
    "complete_items",
    "each_item",
    "load_all",
    "load_item",
    "load_shared",
    "load_single",
    "single",
    "whole",
]

BULK, EACH, WHOLE, SHARING = range(FORMATS)

_U64 = struct.Struct("<Q")
_COUNT_BITS = 32
_COUNT_MASK = (1 << _COUNT_BITS) - 1
"""Mask for the lower half of a word of the table: the number of an item's buffers. The upper half counts its fds."""


Entry = tuple[memoryview, list[memoryview], int]
"""An item of an EACH payload: views of its pickle and of its buffers, and the place of its first descriptor."""


class Encoded(NamedTuple):
    """A payload, as pieces of memory that follow one another."""

    format: int
    pieces: list[Buffer]
    size: int
    by_value: bool  # whether an object in it travels by value, which multiprocessing would have refused
    segments: tuple[Segment, ...] = ()  # a worker has to map these before it unpickles the payload
    fds: OutgoingFds | None = None  # copies of the descriptors that the pickles name
    fitting: int = -1  # number of items in it if the descriptors leave no room for all of them, else -1
    shared: int = 0  # bytes of the large objects that several items name


# --- putting together -------------------------------------------------------------------------------------


def bulk(data: bytes) -> Encoded:
    """Return the payload that is one pickle of all items."""
    return Encoded(BULK, [data], len(data), False)


def whole(part: Pickled) -> Encoded:
    """Return the payload that is one pickle of all items with its buffers."""
    return single(part)._replace(format=WHOLE)


def single(part: Pickled) -> Encoded:
    """Return the payload that is one item."""
    builder = _PayloadBuilder(to_worker=False)
    error = builder.add(part)
    if error is not None:
        raise error
    return builder.encoded()


def assembled(
    parts: Pickles, fail: Callable[[int, BaseException], None], large: Pickles | None = None, *, to_worker: bool
) -> Encoded:
    """Return the payload of items that were pickled one by one.

    Args:
        parts: the items.
        fail: called with the offset of each item that cannot be sent, and the error.
        large: the large objects that the items name by their indexes here.
        to_worker: whether a worker receives the payload. Then see `_PayloadBuilder`.
    """
    if not large and {bytes}.issuperset(map(type, parts)):
        return bulk(pickled_list(parts))
    builder = _PayloadBuilder(to_worker)
    for part in large or ():
        builder.add(part)
    large_size = builder.size
    builder.begin_items()
    fitting = -1
    for offset, part in enumerate(parts):
        error = builder.add(part)
        if builder.is_full:
            fitting = offset
            break
        if error is not None:
            fail(offset, error)
    encoded = builder.encoded(fitting)
    if not large:
        return encoded
    pieces: list[Buffer] = [_U64.pack(len(large)), *encoded.pieces]
    return encoded._replace(format=SHARING, pieces=pieces, size=encoded.size + _U64.size, shared=large_size)


class _PayloadBuilder:
    """Put the items of an EACH payload together.

    Args:
        to_worker: whether a worker receives the payload. A batch for a worker ends before an item that needs more
            descriptors than this process may open, or that must not travel with the items before it.

    Attributes:
        size: bytes of all pickles and buffers so far.
        is_full: whether the batch ends before the item that was added last.
    """

    def __init__(self, to_worker: bool) -> None:
        self.size = 0
        self.is_full = False
        self._to_worker = to_worker
        self._count = 0
        self._table: list[int] = []
        self._pieces: list[Buffer] = []
        self._by_value = False
        self._segments: list[Segment] = []
        self._fds = OutgoingFds()

    def begin_items(self) -> None:
        """Count items from now on. The objects that were added before are the large objects."""
        self._count = 0

    def add(self, part: Part) -> BaseException | None:
        """Add an item. Return the error if it cannot be sent. If `is_full` is set, it travels with the next batch."""
        self._count += 1
        if type(part) is bytes:
            self._put(part)
            return None
        if type(part) is not Pickled:
            self._table += (0, 0)
            return part.error  # type: ignore[union-attr]
        fd_count = 0
        if part.segments or part.fds is not None:
            start = len(self._fds)
            error = self._add_out_of_band(part, start)
            if self.is_full:
                return None
            if error is not None:
                self._table += (0, 0)
                return error
            fd_count = len(self._fds) - start
        self._by_value |= part.by_value
        self._put(part.data, part.buffers, fd_count)
        return None

    def _put(self, data: bytes, buffers: Sequence[Buffer] = (), fd_count: int = 0) -> None:
        table, pieces = self._table, self._pieces
        table.append(len(data))
        table.append(len(buffers) | fd_count << _COUNT_BITS)
        pieces.append(data)
        self.size += len(data)
        if buffers:
            sizes = list(map(len, buffers))
            table += sizes
            pieces += buffers
            self.size += sum(sizes)

    def _add_out_of_band(self, part: Pickled, start: int) -> BaseException | None:
        """Add the segments and descriptors of an item. Return the error if it cannot be sent.

        Args:
            part: the item.
            start: the number of descriptors of the items before.
        """
        if any(segment.is_closed for segment in part.segments):
            return closed_error()
        if part.fds is not None:
            try:
                part.fds.add_to(self._fds)
            except OSError as error:
                self._fds.cut(start)
                self.is_full = start > 0 and self._to_worker and isinstance(error, fd_passing.NoRoom)
                return error.with_traceback(None)  # its frames refer to the descriptors of the items before
            if self._must_end_before(start):
                self._fds.cut(start)
                self.is_full = True
                return None
        self._segments += part.segments
        return None

    def _must_end_before(self, start: int) -> bool:
        """Return whether the item must not travel with the items before it.

        The reason is the number of descriptors, or a descriptor that this process closes once it has arrived. A worker
        that dies takes such descriptors with it. In a batch of one item, they belong to the item that the worker ran.
        """
        if self._count == 1 or not self._to_worker:
            return False
        return bool(self._fds.close_after_send) or start >= fd_passing.BATCH_LIMIT

    def encoded(self, fitting: int = -1) -> Encoded:
        """Return the payload of the items that were added."""
        head = struct.pack(f"<{len(self._table) + 1}Q", len(self._table), *self._table)
        by_value = self._by_value or any(segment.by_value for segment in self._segments)
        fds = self._fds if len(self._fds) else None
        segments = tuple(dict.fromkeys(self._segments))
        return Encoded(EACH, [head, *self._pieces], len(head) + self.size, by_value, segments, fds, fitting)


# --- taking apart -----------------------------------------------------------------------------------------


def each_item(payload: memoryview) -> Iterator[Entry]:
    """Yield each item of an EACH payload: views of its pickle and buffers, and the place of its first descriptor.

    An empty pickle takes the place of a missing item.
    """
    words = _U64.unpack_from(payload)[0]
    table = payload[8 : 8 + 8 * words].cast("Q")
    at = 8 + 8 * words
    index = place = 0
    while index < words:
        size, counts = table[index], table[index + 1]
        buffers = counts & _COUNT_MASK
        pickled = payload[at : at + size]
        at += size
        views = []
        for length in table[index + 2 : index + 2 + buffers]:
            views.append(payload[at : at + length])
            at += length
        index += 2 + buffers
        yield pickled, views, place
        place += counts >> _COUNT_BITS


def complete_items(payload: memoryview, count: int) -> list[Entry]:
    """Return the items of an EACH payload that has exactly `count` items. Raise `ProtocolError` if it has not."""
    try:
        words = _U64.unpack_from(payload)[0]
        if words > len(payload) // 8:
            raise ValueError(f"a table of {words} words")
        entries = list(each_item(payload))
    except (IndexError, ValueError, struct.error, TypeError) as error:
        raise ProtocolError(f"a payload has no table of lengths: {error}") from None
    if len(entries) != count:
        raise ProtocolError(f"a payload has {len(entries)} items, and not {count}")
    return entries


def load_single(encoded: Encoded) -> Any:
    """Load the item of a payload that is one item."""
    pickled, buffers, _place = next(each_item(memoryview(b"".join(encoded.pieces))))
    return load_item(pickled, buffers)


def load_all(form: int, content: memoryview) -> Any:
    """Load the items of a BULK or a WHOLE payload."""
    return pickle.loads(content) if form == BULK else load_item(*next(each_item(content))[:2])


def load_item(pickled: memoryview, buffers: list[memoryview], large: list[Any] | None = None) -> Any:
    """Load one item of an EACH payload. Its arrays are writable and own their memory.

    Args:
        pickled: the pickle.
        buffers: its buffers, which are copied.
        large: the large objects that the pickle may name.
    """
    own = [process_memory.copy(view) for view in buffers]
    if large is None:
        return pickle.loads(pickled, buffers=own)
    return _SharingUnpickler(pickled, own, large).load()


def load_shared(
    content: memoryview, report: Callable[[memoryview, BaseException], object]
) -> tuple[list[Any], Iterator[tuple[memoryview, list[memoryview], int]]]:
    """Load the large objects of a SHARING payload. Return them, and the items as `each_item` yields them.

    A `Failed` takes the place of an object that cannot be loaded. Its error is raised for each item that names it.

    Args:
        content: the payload.
        report: called with the pickle of each object that cannot be loaded, and the error.
    """
    count = _U64.unpack_from(content)[0]
    entries = each_item(content[8:])
    large: list[Any] = []
    for pickled, buffers, _place in itertools.islice(entries, count):
        try:
            large.append(load_item(pickled, buffers))
        except BaseException as error:
            report(pickled, error)
            large.append(Failed(error))
    return large, entries


class _SharingUnpickler(pickle.Unpickler):
    """Load an item that names large objects."""

    def __init__(self, pickled: memoryview, buffers: list[Any], large: list[Any]) -> None:
        super().__init__(io.BytesIO(pickled), buffers=buffers)
        self._large = large

    def persistent_load(self, number: int) -> Any:
        found = self._large[number]
        if type(found) is Failed:
            assert found.error is not None
            raise found.error.with_traceback(None)
        return found
