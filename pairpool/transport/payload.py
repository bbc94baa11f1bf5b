"""The payload of a batch: pickles and their buffers, put together on one side and taken apart on the other.

- BULK: one pickle of a list of all items;
- WHOLE: the same with the buffers of arrays behind it, laid out like a single item of
- EACH: a table of lengths, then one pickle per item with its protocol 5 buffers behind it;
- SHARING: the number of large objects that several items name, and then a payload like EACH, with the pickles of these
  objects before those of the items.
"""

from __future__ import annotations

import io
import itertools
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pairpool.transport import fd_passing, payload_shm
from pairpool.transport.fd_passing import OutgoingFds
from pairpool.transport.items import Failed, Part, Pickled, Pickles, joined
from pairpool.transport.segments import Segment, closed_error
from pairpool.transport.wire import FORMATS, Buffer

__all__ = [
    "BULK",
    "EACH",
    "SHARING",
    "WHOLE",
    "Encoded",
    "assembled",
    "bulk",
    "each_item",
    "load_all",
    "load_item",
    "load_shared",
    "load_single",
    "single",
]

BULK, EACH, WHOLE, SHARING = range(FORMATS)

_WORD = struct.Struct("<Q")
_COUNT_BITS = 32
_COUNT = (1 << _COUNT_BITS) - 1
"""A table has the number of an item's buffers in the lower half of a word, and that of its descriptors in the upper."""


class Encoded(NamedTuple):
    """Pieces of memory that make a payload, one after the other."""

    format: int
    pieces: list[Buffer]
    size: int
    by_value: bool  # an object in it travels by value, which multiprocessing would have refused
    segments: tuple[Segment, ...] = ()  # a worker has to have these mapped to unpickle it
    rights: OutgoingFds | None = None  # copies of the descriptors that it names
    fitting: int = -1  # number of items that it holds, if descriptors do not let it hold them all; else -1
    shared: int = 0  # bytes of the large objects that several items name


# --- putting together -------------------------------------------------------------------------------------


def bulk(data: bytes) -> Encoded:
    """Return the payload that is one pickle of all items."""
    return Encoded(BULK, [data], len(data), False)


def single(part: Pickled) -> Encoded:
    """Return the payload that is one item."""
    payload = _Payload(is_going_out=False)
    error = payload.add(part)
    if error is not None:
        raise error
    return payload.encoded()


def assembled(
    parts: Pickles,
    fail: Callable[[int, BaseException], None],
    shared: Pickles | None = None,
    *,
    is_going_out: bool,
) -> Encoded:
    """Return the payload of items that were pickled one by one.

    Args:
        fail: called with the offset of each item that cannot be sent and the error.
        shared: large objects that the items name by their places here.
        is_going_out: whether it is for a worker. A batch then ends before an item for which descriptors are lacking, or
            which must not go with those before it.
    """
    if not shared and {bytes}.issuperset(map(type, parts)):
        return bulk(joined(parts))
    payload = _Payload(is_going_out)
    for part in shared or ():
        payload.add(part)
    size = payload.size
    payload.begin_items()
    fitting = -1
    for offset, part in enumerate(parts):
        error = payload.add(part)
        if payload.is_full:
            fitting = offset
            break
        if error is not None:
            fail(offset, error)
    encoded = payload.encoded(fitting)
    if not shared:
        return encoded
    pieces: list[Buffer] = [_WORD.pack(len(shared)), *encoded.pieces]
    return encoded._replace(format=SHARING, pieces=pieces, size=encoded.size + _WORD.size, shared=size)


class _Payload:
    """The items of an EACH payload, while they are put together.

    Args:
        is_going_out: whether it is for a worker. A batch then ends before an item for which descriptors are lacking, or
            which must not go with those before it.
    """

    def __init__(self, is_going_out: bool) -> None:
        self._is_going_out = is_going_out
        self._count = 0
        self.table: list[int] = []
        self.pieces: list[Buffer] = []
        self.size = 0
        self.by_value = False
        self.segments: list[Segment] = []
        self.rights = OutgoingFds()
        self.is_full = False

    def begin_items(self) -> None:
        """Count items from now on: what was added before is in front of them."""
        self._count = 0

    def add(self, part: Part) -> BaseException | None:
        """Add an item. Return the error if it cannot be sent. If `is_full` is set, it goes with the next batch."""
        self._count += 1
        if type(part) is bytes:
            self._put(part)
            return None
        if type(part) is not Pickled:
            self.table += (0, 0)
            return part.error  # type: ignore[union-attr]
        descriptors = 0
        if part.segments or part.cargo is not None:
            start = len(self.rights)
            error = self._add_beside(part, start)
            if self.is_full:
                return None
            if error is not None:
                self.table += (0, 0)
                return error
            descriptors = len(self.rights) - start
        self.by_value |= part.by_value
        self._put(part.data, part.buffers, descriptors)
        return None

    def _put(self, data: bytes, buffers: Sequence[Buffer] = (), descriptors: int = 0) -> None:
        table, pieces = self.table, self.pieces
        table.append(len(data))
        table.append(len(buffers) | descriptors << _COUNT_BITS)
        pieces.append(data)
        self.size += len(data)
        if buffers:
            sizes = list(map(len, buffers))
            table += sizes
            pieces += buffers
            self.size += sum(sizes)

    def _add_beside(self, part: Pickled, start: int) -> BaseException | None:
        """Segments and descriptors of an item."""
        if any(segment.is_closed for segment in part.segments):
            return closed_error()
        if part.cargo is not None:
            try:
                part.cargo.add_to(self.rights)
            except OSError as error:
                self.rights.cut(start)
                self.is_full = start > 0 and self._is_going_out and isinstance(error, fd_passing.NoRoom)
                return error.with_traceback(None)  # its frames have the descriptors that come before
            if self._is_too_much(start):
                self.rights.cut(start)
                self.is_full = True
                return None
        self.segments += part.segments
        return None

    def _is_too_much(self, start: int) -> bool:
        """Whether an item must not go with those before it: there are many descriptors, or one that moves.

        A worker that dies takes with it the descriptors that have moved there: those of the item that it ran, and of
        none behind that.
        """
        if self._count == 1 or not self._is_going_out:
            return False
        return bool(self.rights.movers) or start >= fd_passing.BATCH_LIMIT

    def encoded(self, fitting: int = -1) -> Encoded:
        """Return the payload of the items that were added."""
        head = struct.pack(f"<{len(self.table) + 1}Q", len(self.table), *self.table)
        by_value = self.by_value or any(segment.by_value for segment in self.segments)
        cargo = self.rights if self.rights.fds else None
        segments = tuple(dict.fromkeys(self.segments))
        return Encoded(EACH, [head, *self.pieces], len(head) + self.size, by_value, segments, cargo, fitting)


# --- taking apart -----------------------------------------------------------------------------------------


def each_item(payload: memoryview) -> Iterator[tuple[memoryview, list[memoryview], int]]:
    """The items of an EACH payload: pickle and buffers as views of it, and the place of its first descriptor.

    An empty pickle stands for a missing item.
    """
    words = _WORD.unpack_from(payload)[0]
    table = payload[8 : 8 + 8 * words].cast("Q")
    at = 8 + 8 * words
    index = place = 0
    while index < words:
        size, counts = table[index], table[index + 1]
        buffers = counts & _COUNT
        pickled = payload[at : at + size]
        at += size
        views = []
        for length in table[index + 2 : index + 2 + buffers]:
            views.append(payload[at : at + length])
            at += length
        index += 2 + buffers
        yield pickled, views, place
        place += counts >> _COUNT_BITS


def load_single(encoded: Encoded) -> Any:
    """Load the item of a payload that is one item."""
    pickled, buffers, _place = next(each_item(memoryview(b"".join(encoded.pieces))))
    return load_item(pickled, buffers)


def load_all(form: int, content: memoryview) -> Any:
    """The items of a BULK or a WHOLE payload."""
    return pickle.loads(content) if form == BULK else load_item(*next(each_item(content))[:2])


def load_item(pickled: memoryview, buffers: list[memoryview], shared: list[Any] | None = None) -> Any:
    """Unpickle one item of an EACH payload; its arrays are writable and own their memory."""
    own = [payload_shm.memory.copy(view) for view in buffers]
    if shared is None:
        return pickle.loads(pickled, buffers=own)
    unpickler = _SharingUnpickler(io.BytesIO(pickled), buffers=own)
    unpickler.shared = shared
    return unpickler.load()


def load_shared(
    content: memoryview, tell: Callable[[memoryview, BaseException], object]
) -> tuple[list[Any], Iterator[tuple[memoryview, list[memoryview], int]]]:
    """Return the large objects of a SHARING payload, loaded, and its items, as `each_item` returns them.

    A `Failed` stands for an object that cannot be loaded. Its error is raised for each item that names the object.

    Args:
        tell: called with the pickle of such an object and the error.
    """
    count = _WORD.unpack_from(content)[0]
    entries = each_item(content[8:])
    shared: list[Any] = []
    for pickled, buffers, _place in itertools.islice(entries, count):
        try:
            shared.append(load_item(pickled, buffers))
        except BaseException as error:
            tell(pickled, error)
            shared.append(Failed(error))
    return shared, entries


class _SharingUnpickler(pickle.Unpickler):
    shared: list[Any]

    def persistent_load(self, number: int) -> Any:
        found = self.shared[number]
        if type(found) is Failed:
            assert found.error is not None
            raise found.error.with_traceback(None)
        return found
