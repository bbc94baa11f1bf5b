"""Pickles: by name what the other side knows, by value what it cannot know, one item's failure never another's.

Four formats for the items of a batch:

- BULK: one pickle of a list of all items, where no item can fail to load: scalars, containers of scalars and
  small arrays, recognised by a pickle that names no class or function but numpy's. The items are pickled together only
  if no object that can change is part of two of them; otherwise the list is put together from their own pickles
  (`items.py`);
- WHOLE: the same with the buffers of arrays behind it, laid out like a single item of
- EACH: a table of lengths, then one pickle per item with its protocol 5 buffers behind it. Whatever an item's class
  does while it is loaded, it does to that item alone, and the board says which one it was;
- SHARING: the number of large objects that several items name, and then a payload like EACH, with the pickles of these
  objects before those of the items (`repeats.py`).

A buffer that is read-only in its array would arrive read-only by protocol 5, where multiprocessing's users get a
writable array: such items go in protocol 4, which copies them into the pickle.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from pairpool.interrupts import is_own
from pairpool.wire import carriers, lanes, rights
from pairpool.wire.channel import Buffer
from pairpool.wire.items import (
    ATOMS,
    PLAIN_KINDS,
    TOLD,
    Failed,
    Part,
    Pickled,
    Pickles,
    PlainWriter,
    Refused,
    are_independent,
    in_a_call,
    joined,
)
from pairpool.wire.numeric import is_array, is_plain
from pairpool.wire.repeats import LARGE, Repeats
from pairpool.wire.rights import Places, Rights
from pairpool.wire.segments import Segment, Shared, closed_error, look_up

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = [
    "BULK",
    "EACH",
    "SHARING",
    "Birth",
    "Codec",
    "Encoded",
    "NamingPickler",
    "each_item",
    "load_item",
    "load_shared",
    "needs_value",
]

BULK, EACH, WHOLE, SHARING = 0, 1, 2, 3

UNMEMOIZED = frozenset({int, float, bool, type(None)})
"""Types whose objects leave nothing in a pickler's memo."""

OUT_OF_BAND_FROM = 32 * 1024
ASIDE_FROM = 512
"""Bytes from which on the buffer of a small array stays out of the pickle of a whole batch."""

FEW = 64
"""Items up to which a look at the type of each is cheaper than a pickler that stops at what is not plain."""

_WORD = struct.Struct("<Q")
_COUNT_BITS = 32
_COUNT = (1 << _COUNT_BITS) - 1
"""A table has the number of an item's buffers in the lower half of a word, and that of its descriptors in the upper."""

_STDLIB = os.path.dirname(os.__file__) + os.sep
_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
"""What the pickle module raises itself for an object that it cannot name or reduce."""


class Encoded(NamedTuple):
    """Pieces of memory that make a payload, one after the other."""

    format: int
    pieces: list[Buffer]
    size: int
    by_value: bool  # something had to go by value that multiprocessing would have refused
    segments: tuple[Segment, ...] = ()  # what a worker has to have mapped to unpickle it
    rights: Rights | None = None  # copies of the descriptors that it names
    fitting: int = -1  # how many of the items it holds, if descriptors do not let it hold them all
    shared: int = 0  # bytes of what several items name, which are sent once


class _Beside:
    """What stays out of a pickle.

    Attributes:
        buffers: out-of-band buffers.
        segments: those of handles that it names.
        cargo: where descriptors are noted, if any may be sent.
        large: the large objects that are named instead of pickled.
        is_sharing: whether one was named.
    """

    __slots__ = ("buffers", "cargo", "is_sharing", "large", "segments")

    def __init__(self, cargo: Rights | Places | None = None, large: _Large | None = None) -> None:
        self.buffers: list[Any] = []
        self.segments: list[Segment] = []
        self.cargo = cargo
        self.large = large
        self.is_sharing = False

    def restart(self) -> None:
        """The object is pickled once more."""
        self.buffers.clear()
        self.segments.clear()
        self.is_sharing = False
        if self.cargo is not None:
            self.cargo.cut(0)

    def number(self, thing: object) -> int | None:
        """The number by which a large object is named; None for an object that is pickled."""
        assert self.large is not None
        number = self.large.number(id(thing))
        self.is_sharing = self.is_sharing or number is not None
        return number


class _Unnamed(Exception):
    """A function or class that the workers do not know by name was met."""


needs_value = (_Unnamed, *_UNPICKLABLE)
"""What `NamingPickler` raises for something that may yet go by value."""


class _ReadOnlyBuffer(Exception):
    """A buffer that would arrive read-only was met."""


def resolve(thing: Any) -> object | None:
    """The module-level object under which a function or class is found by name; None if it is not found there."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    qualname = getattr(thing, "__qualname__", None)
    if module is None or not isinstance(qualname, str):
        return None
    first, *rest = qualname.split(".")
    head = found = getattr(module, first, None)
    for name in rest:
        found = getattr(found, name, None)
    return head if found is thing else None


def _is_as_imported(thing: object, module: ModuleType) -> bool:
    """Whether an import of `module` elsewhere would find this there too: it came from the module's own file."""
    if getattr(module, "__spec__", None) is None:
        return False
    while hasattr(thing, "__wrapped__"):
        thing = thing.__wrapped__
    code = getattr(thing, "__code__", None)
    return code is None or code.co_filename in (getattr(module, "__file__", None), f"<frozen {module.__name__}>")


def _is_installed(module: ModuleType) -> bool:
    """Whether a module is part of Python or of a package that was installed: what it defines, nobody redefines.

    To look at every name of these would take longer than all else that opening a pool does.
    """
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    if module is sys.modules.get("__main__"):
        return False
    return isinstance(origin, str) and (
        origin in ("built-in", "frozen")
        or origin.startswith(_STDLIB)
        or "/site-packages/" in origin
        or "/dist-packages/" in origin
    )


class Birth:
    """What the workers were born with: the functions and classes there were, by identity, when the zygote was forked.

    The objects themselves are kept, so that none of their identities can be used again while the pool lives.

    Args:
        main_names: names that the workers' `__main__` has, where it is not the fork of this process's; None for a fork.
    """

    def __init__(self, main_names: frozenset[str] | None = None) -> None:
        self.main_names = main_names
        self._distrusted: set[str] = set()
        self._modules = frozenset(sys.modules)
        self._objects: dict[int, object] = {}
        keep = self._objects
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType):
                if _is_installed(module):
                    continue
                for value in list(vars(module).values()):
                    if isinstance(value, _NAMEABLE):
                        keep[id(value)] = value

    def distrust(self, module_name: str) -> None:
        """Name nothing of this module any more: a worker did not find there what it should."""
        self._distrusted.add(module_name)

    def names(self, thing: Any) -> bool:
        """Whether every worker finds this very function or class under its name."""
        module_name = getattr(thing, "__module__", None)
        if module_name == "builtins":
            return True
        head = resolve(thing)
        if head is None or module_name in self._distrusted:
            return False
        if module_name not in self._modules:
            return _is_as_imported(head, sys.modules[thing.__module__])
        if module_name == "__main__" and self.main_names is not None:
            return thing.__qualname__.partition(".")[0] in self.main_names and id(head) in self._objects
        return id(head) in self._objects or not isinstance(head, _NAMEABLE) or _is_installed(sys.modules[module_name])


class _Home:
    """What a worker may name towards its master: all that it finds by name itself."""

    def names(self, thing: Any) -> bool:
        return getattr(thing, "__module__", None) == "builtins" or resolve(thing) is not None


_NAMEABLE = (FunctionType, type)


class NamingPickler(pickle.Pickler):
    """The plain pickler, but stops with `_Unnamed` at what has to go by value; without `keep`, in protocol 4.

    Handles of `Pool.share` go as a reference to their segments, which are noted in `segments`; sockets and the like
    go as a place in `cargo`, if there is one.
    """

    def __init__(
        self,
        file: SupportsWrite[bytes],
        birth: Birth,
        keep: Callable[[Any], Any] | None,
        segments: list[Segment],
        cargo: Rights | Places | None = None,
    ) -> None:
        super().__init__(file, 4 if keep is None else 5, buffer_callback=keep)
        self._birth = birth
        self._segments = segments
        self.cargo = cargo

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Shared:
            return obj.travel(self._segments)
        if isinstance(obj, _NAMEABLE):
            if not self._birth.names(obj):
                raise _Unnamed
        elif issubclass(type(obj), carriers.kinds) and self.cargo is not None:  # isinstance takes twice as long
            return carriers.travel(obj, self.cargo)
        return NotImplemented


class _CarryingPickler(pickle.Pickler):
    """The plain pickler, but sockets and the like go as a place in `cargo`."""

    def __init__(
        self, file: SupportsWrite[bytes], keep: Callable[[Any], Any] | None, cargo: Rights | Places
    ) -> None:
        super().__init__(file, 4 if keep is None else 5, buffer_callback=keep)
        self._cargo = cargo

    def reducer_override(self, obj: Any) -> Any:
        return carriers.travel(obj, self._cargo) if isinstance(obj, carriers.kinds) else NotImplemented


class _SharingPickler(NamingPickler):
    """Names the large objects that several items contain."""

    beside: _Beside

    def persistent_id(self, obj: Any) -> int | None:
        return self.beside.number(obj)


class _PlainPickler(pickle.Pickler):
    """Stops at the first object that is not plain data; the pickle module asks about those and numpy's."""

    def reducer_override(self, obj: Any) -> Any:
        if is_plain(obj):
            return NotImplemented
        raise Refused


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


def load_all(form: int, content: memoryview) -> Any:
    """The items of a BULK or a WHOLE payload."""
    return pickle.loads(content) if form == BULK else load_item(*next(each_item(content))[:2])


def load_item(pickled: memoryview, buffers: list[memoryview], shared: list[Any] | None = None) -> Any:
    """Unpickle one item of an EACH payload; its arrays are writable and own their memory."""
    own = [lanes.memory.copy(view) for view in buffers]
    if shared is None:
        return pickle.loads(pickled, buffers=own)
    unpickler = _SharingUnpickler(io.BytesIO(pickled), buffers=own)
    unpickler.shared = shared
    return unpickler.load()


def load_shared(content: memoryview) -> tuple[list[Any], Iterator[tuple[memoryview, list[memoryview], int]]]:
    """What several items of a SHARING payload name, loaded; and its items, as `each_item` gives them.

    An object that cannot be loaded is replaced by a `Failed`, which is raised where an item names it.
    """
    count = _WORD.unpack_from(content)[0]
    entries = each_item(content[8:])
    shared: list[Any] = []
    for pickled, buffers, _place in itertools.islice(entries, count):
        try:
            shared.append(load_item(pickled, buffers))
        except BaseException as error:
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


class Codec:
    """How one side pickles.

    Args:
        birth: what the other side knows; None in a worker, whose master knows all it may name.
    """

    def __init__(self, birth: Birth | None = None) -> None:
        self.birth = birth
        self._writers: list[PlainWriter] = []
        self._by_name: list[_Writer] = []

    # --- one item, as soon as it is there -------------------------------------------------------

    def take(self, item: Any, *, own: bool = True, may_go_by_value: bool = True) -> Part:
        """Pickle an item now, because somebody may change it.

        Args:
            own: copy large buffers, too; without it, nobody changes them until the item has ended.

        Raises whatever says that it cannot be pickled.
        """
        data = self.take_plain(item)
        return self.take_other(item, own=own, may_go_by_value=may_go_by_value) if data is None else data

    def as_parts(self, items: Sequence[Any]) -> Pickles:
        """The pickles of items that nobody can change: immutable ones, and arrays that nobody else has."""
        return Pickles([self.take(item, own=False) for item in items])

    def taken(self, items: Sequence[Any]) -> Pickles:
        """The pickles of items as they are now; those that cannot be pickled are `Failed`."""
        parts = Pickles()
        for item in items:
            try:
                parts.append(self.take(item))
            except BaseException as error:
                if not is_own(error):
                    raise
                parts.append(Failed(error))
        return parts

    def take_plain(self, item: Any) -> bytes | None:
        """The pickle of plain data in protocol 3; None for anything else."""
        if type(item) not in PLAIN_KINDS and not is_plain(item):
            return None
        writers = self._writers
        try:
            writer = writers.pop()
        except IndexError:
            writer = PlainWriter()  # for each thread that is at it, and for finalizers that strike meanwhile
        data = writer.dump(item)
        writers.append(writer)
        return data

    def take_other(
        self, item: Any, *, own: bool, may_go_by_value: bool = True, large: _Large | None = None
    ) -> Pickled:
        """`take` for what is not plain data."""
        taken = self._take_by_name(item, own) if large is None else None
        if taken is None:
            beside = _Beside(self._cargo(), large)
            try:
                data, by_value = self._dump(item, beside, may_go_by_value)
            except BaseException:
                beside.restart()  # the copies of descriptors are closed now, whoever keeps the exception
                raise
            taken = _pickled(data, beside, own, by_value)
        if taken.cargo is not None or (self.birth is not None and not is_array(item)):
            taken.shown = item  # an array can be loaded again for that; other classes may do anything then
        return taken

    def _take_by_name(self, item: Any, own: bool) -> Pickled | None:
        """An item that goes by name as a whole, by a pickler that was used before; None where that does not do."""
        writers, birth = self._by_name, self.birth
        writer = writers.pop() if writers else None
        if writer is None or writer.birth is not birth:
            writer = _Writer(birth)
        carriers.notice()
        if birth is None:
            carriers.guard()
        try:
            data = writer.dump(item)
        except Exception as error:
            if birth is not None and not is_own(error):
                raise
            return None
        taken = writer.take(data, own)
        writers.append(writer)
        return taken

    def again_by_value(self, part: Part) -> Part:
        """An item that went by name: by value now, and as it was when it was taken."""
        if type(part) is not Pickled:
            return part
        beside = _Beside(self._cargo())
        try:
            taken = _pickled(self._dump_by_value(_load_here(part), beside), beside, True, True)
        except Exception as error:
            return Failed(error)
        taken.shown = part.shown
        return taken

    def repeats(self) -> Repeats:
        """What has to be known of the items of one call, to send a large object once that several contain."""
        return Repeats(self._size_of)

    def _size_of(self, thing: Any) -> int:
        part = self.take(thing, own=False)
        if type(part) is bytes:
            return len(part)
        assert type(part) is Pickled
        if part.cargo is not None:
            raise TypeError("what has descriptors is not sent once for several items")
        return part.size

    # --- the items of a batch -------------------------------------------------------------------

    def encode(
        self,
        items: Sequence[Any],
        fail: Callable[[int, BaseException], None],
        *,
        mark: Callable[[int], None] | None = None,
        may_go_by_value: bool = True,
        are_settled: bool = False,
        by_value: bool = False,
        repeats: Repeats | None = None,
    ) -> Encoded:
        """Pickle the items of a batch, each as if it were alone.

        Args:
            items: the items, or `Pickles`.
            fail: called with the offset of each item that cannot be pickled and the error; the item is left out.
            mark: called with the offset of each item before it is pickled on its own.
            may_go_by_value: whether cloudpickle may be used where plain pickle fails.
            are_settled: whether each item is immutable, or nobody else has it.
            by_value: whether a worker did not find by name what is in them.
            repeats: what is known of large objects that several items contain; None if they must not share them.
        """
        if isinstance(items, Pickles):
            return self._assemble(Pickles(map(self.again_by_value, items)) if by_value else items, fail)
        encoded = self._bulk(items, are_settled)
        if encoded is not None:
            return encoded
        return self._each(items, fail, mark, may_go_by_value, repeats)

    def encode_calls(
        self, calls: Sequence[tuple[Any, ...]], fail: Callable[[int, BaseException], None], *, by_value: bool = False
    ) -> Encoded:
        """Pickle single calls: `(function's number, args, kwds)` if the arguments are immutable, else `(number, part)`.

        Args:
            by_value: the worker did not find by name what is in it.
        """
        if {3}.issuperset(map(len, calls)):
            return _bulk_payload(pickle.dumps(calls, 5))
        parts = Pickles()
        for number, *rest in calls:
            part = rest[0] if len(rest) == 1 else self.take(tuple(rest), own=False)
            if type(part) is bytes:
                part = in_a_call(number, part)
            elif type(part) is Pickled:
                part = self._in_a_call(number, part, by_value)
            parts.append(part)
        return self._assemble(parts, fail)

    def _in_a_call(self, number: int, part: Pickled, by_value: bool) -> Part:
        taken = self.again_by_value(part) if by_value else part
        if type(taken) is not Pickled:
            return taken
        call = Pickled(in_a_call(number, taken.data), taken.buffers, by_value=taken.by_value)
        call.segments, call.cargo = taken.segments, taken.cargo
        return call

    def _bulk(self, items: Sequence[Any], are_settled: bool) -> Encoded | None:
        """One pickle of all items; None if one may fail, or if two may have something in common that can change."""
        if type(items) is range:
            return _bulk_payload(pickle.dumps(items, 5))
        first = type(items[0])
        if first not in PLAIN_KINDS and not is_plain(items[0]):
            return None
        if len(items) <= FEW and ATOMS.issuperset(map(type, items)):
            return _bulk_payload(pickle.dumps(items, 5))
        is_safe = are_settled or len(items) == 1
        if not (is_safe or first in UNMEMOIZED or are_independent(items)):
            return None
        file = io.BytesIO()
        raws: list[memoryview] = []
        pickler = _PlainPickler(file, 5, buffer_callback=functools.partial(_set_aside, raws))
        try:
            pickler.dump(items)
        except Exception:
            return None  # item by item, to tell which one it was
        if first in UNMEMOIZED and not is_safe and len(pickler.memo.copy()) > 1 and not are_independent(items):
            return None  # there is more than numbers in it
        data = file.getvalue()
        if not raws:
            return _bulk_payload(data)
        return _each_payload([len(data), len(raws), *map(len, raws)], [data, *raws], False, [])._replace(format=WHOLE)

    def _each(
        self,
        items: Sequence[Any],
        fail: Callable[[int, BaseException], None],
        mark: Callable[[int], None] | None,
        may_go_by_value: bool,
        repeats: Repeats | None,
    ) -> Encoded:
        """A pickle for each item."""
        parts = Pickles()
        large = None if repeats is None else _Large(repeats)
        for offset, item in enumerate(items):
            if mark is not None:
                mark(offset)
            try:
                if large is None:
                    parts.append(self.take(item, own=False, may_go_by_value=may_go_by_value))
                else:
                    parts.append(self._take_repeated(item, large))
            except BaseException as error:
                if self.birth is not None and not is_own(error):
                    raise  # of a signal's handler, in the master
                fail(offset, error)
                parts.append(TOLD)
        if large is None or not large.numbers:
            return self._assemble(parts, fail)
        try:
            shared = Pickles([self.take(large.repeats.large[identity], own=False) for identity in large.numbers])
        except Exception:
            return self._each(items, fail, mark, may_go_by_value, None)  # it has changed since it was met first
        return self._assemble(parts, fail, shared)

    def _take_repeated(self, item: Any, large: _Large) -> Part:
        """An item that may contain large objects which others contain, too."""
        repeats = large.repeats
        known: Part | None = repeats.find(item)
        if known is not None:
            return known
        part: Part = self.take_other(item, own=False, large=large) if repeats.large else self.take(item, own=False)
        size = len(part) if type(part) is bytes else part.size if type(part) is Pickled else 0
        if size >= LARGE:
            if repeats.look(item):
                return self.take_other(item, own=False, large=large)
            if not (type(part) is Pickled and part.is_sharing):
                repeats.keep(item, part)
        return part

    def _assemble(
        self, parts: Pickles, fail: Callable[[int, BaseException], None], shared: Pickles | None = None
    ) -> Encoded:
        """Put the payload of a batch together, with what its items share in front."""
        if shared is None and {bytes}.issuperset(map(type, parts)):
            return _bulk_payload(joined(parts))
        payload = _Payload(self.birth is not None)
        for part in shared or ():
            payload.add(part)
        size = payload.size
        for offset, part in enumerate(parts):
            error = payload.add(part)
            if payload.is_full:
                break
            if error is not None:
                fail(offset, error)
        encoded = _each_payload(payload.table, payload.pieces, payload.by_value, payload.segments)
        encoded = _with_cargo(encoded, payload.rights, offset if payload.is_full else -1)
        if shared is None:
            return encoded
        pieces: list[Buffer] = [_WORD.pack(len(shared)), *encoded.pieces]
        return encoded._replace(format=SHARING, pieces=pieces, size=encoded.size + _WORD.size, shared=size)

    def _cargo(self) -> Rights | Places:
        """Where the descriptors of an item are noted: a worker copies them at once, for its task may close them."""
        carriers.notice()
        if self.birth is None:
            carriers.guard()
            return Rights()
        return Places()

    def _dump(self, item: Any, beside: _Beside, may_go_by_value: bool) -> tuple[bytes, bool]:
        """One item's pickle, and whether something in it went by value; fills `beside`."""
        try:
            return self._dump_by_name(item, beside), False
        except needs_value:
            if not may_go_by_value:
                raise
        beside.restart()
        return self._dump_by_value(item, beside), True

    def _dump_by_value(self, item: Any, beside: _Beside | None) -> bytes:
        from pairpool.wire import byvalue

        knowledge = self.birth or _Home()
        if beside is None:
            file = io.BytesIO()
            byvalue.ByValuePickler(file, knowledge, None, None).dump(item)
            return file.getvalue()
        segments = None if self.birth is None else beside.segments
        kind = byvalue.ByValuePickler if beside.large is None else byvalue.SharingPickler
        return _dump_to_memory(
            beside, item, lambda file, keep: kind(file, knowledge, keep, segments, beside.cargo)
        )

    def dump_alone(self, item: Any) -> bytes:
        """One self-contained pickle: plainly if that works, else by value."""
        try:
            return pickle.dumps(item, 5)
        except _UNPICKLABLE:
            return self._dump_by_value(item, None)

    def encode_function(self, function: Any, *, by_value: bool = False) -> Encoded:
        """Pickle a function: by name where every worker knows it, else by value with what it captures.

        Raises whatever says that it cannot be pickled.
        """
        carriers.notice()
        rights = Rights()
        beside = _Beside(rights)
        if by_value:
            data, went_by_value = self._dump_by_value(function, beside), True
        else:
            data, went_by_value = self._dump(function, beside, may_go_by_value=True)
        raws = [buffer.raw() for buffer in beside.buffers]
        table = [len(data), len(raws) | len(rights) << _COUNT_BITS, *map(len, raws)]
        return _with_cargo(_each_payload(table, [data, *raws], went_by_value, beside.segments), rights)

    def _dump_by_name(self, item: Any, beside: _Beside) -> bytes:
        """A pickle that names every function and class; raises `_Unnamed` if the other side does not know one."""
        birth = self.birth
        if birth is None:
            try:
                return _dumps(item, beside)
            except _UNPICKLABLE:
                if beside.cargo is None:
                    raise
            cargo = beside.cargo
            beside.restart()
            return _dump_to_memory(beside, item, lambda file, keep: _CarryingPickler(file, keep, cargo))
        kind = NamingPickler if beside.large is None else _SharingPickler
        return _dump_to_memory(beside, item, lambda file, keep: kind(file, birth, keep, beside.segments, beside.cargo))

    def captures(self, function: Any) -> Iterator[tuple[str, int]]:
        """What a function that goes by value drags along: a name for each captured value, and its size in bytes."""
        for name, value in _captured(function):
            beside = _Beside()
            try:
                size = len(self._dump_by_value(value, beside))
            except Exception:
                continue  # only a hint for a warning: what has no size of its own is not named in it
            yield name, size + sum(buffer.raw().nbytes for buffer in beside.buffers)


def _captured(function: Any) -> Iterator[tuple[str, Any]]:
    """The values that a callable carries: globals, closure, defaults, arguments of a partial, a method's object."""
    while isinstance(function, functools.partial):
        yield from ((f"argument {position} of the partial", value) for position, value in enumerate(function.args))
        yield from ((f"argument {name!r} of the partial", value) for name, value in function.keywords.items())
        function = function.func
    if getattr(function, "__self__", None) is not None:
        yield "the object that the method is bound to", function.__self__
    function = getattr(function, "__func__", function)
    if isinstance(function, FunctionType):
        code, space = function.__code__, function.__globals__
        yield from ((f"global {name!r}", space[name]) for name in _names_used(code) if name in space)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            yield f"captured variable {name!r}", cell.cell_contents
        yield from (("a default value", value) for value in function.__defaults__ or ())
        yield from ((f"the default of {name!r}", value) for name, value in (function.__kwdefaults__ or {}).items())


def _each_payload(table: list[int], pieces: list[Buffer], by_value: bool, segments: list[Segment]) -> Encoded:
    head = struct.pack(f"<{len(table) + 1}Q", len(table), *table)
    size = len(head) + sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)
    if segments:
        by_value = by_value or any(segment.by_value for segment in segments)
        return Encoded(EACH, [head, *pieces], size, by_value, tuple(dict.fromkeys(segments)))
    return Encoded(EACH, [head, *pieces], size, by_value)


def _with_cargo(encoded: Encoded, cargo: Rights, fitting: int = -1) -> Encoded:
    return encoded._replace(rights=cargo, fitting=fitting) if cargo.fds or fitting >= 0 else encoded


def _bulk_payload(data: bytes) -> Encoded:
    return Encoded(BULK, [data], len(data), False)


def _set_aside(raws: list[memoryview], buffer: Any) -> bool:
    """A buffer_callback that keeps the buffers of all but the smallest arrays out of the pickle."""
    raw = buffer.raw()
    if raw.readonly:
        raise _ReadOnlyBuffer
    if raw.nbytes < ASIDE_FROM:
        return True
    raws.append(raw)
    return False


def _names_used(code: Any) -> list[str]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if type(constant) is type(code):
            names.update(dict.fromkeys(_names_used(constant)))
    return list(names)


def _keeper(buffers: list[Any]) -> Callable[[Any], bool]:
    """A buffer_callback that keeps large buffers out of the pickle, and refuses read-only ones."""

    def keep(buffer: Any) -> bool:
        with buffer.raw() as raw:
            if raw.readonly:
                raise _ReadOnlyBuffer
            if raw.nbytes < OUT_OF_BAND_FROM:
                return True
        buffers.append(buffer)
        return False

    return keep


def _dump_to_memory(
    beside: _Beside, item: Any, make: Callable[[io.BytesIO, Callable[[Any], bool] | None], pickle.Pickler]
) -> bytes:
    """The pickle that a pickler makes, with large buffers beside it; in protocol 4 if one is read-only."""
    for keep in (_keeper(beside.buffers), None):
        file = io.BytesIO()
        pickler = make(file, keep)
        if beside.large is not None:
            pickler.beside = beside  # type: ignore[attr-defined]
        try:
            pickler.dump(item)
            break
        except _ReadOnlyBuffer:
            beside.restart()
    return file.getvalue()


def _dumps(item: Any, beside: _Beside) -> bytes:
    try:
        return pickle.dumps(item, 5, buffer_callback=_keeper(beside.buffers))
    except _ReadOnlyBuffer:
        beside.restart()
        return pickle.dumps(item, 4)


def _pickled(data: bytes, beside: _Beside, own: bool, by_value: bool) -> Pickled:
    """The item whose pickle this is; what is beside it goes over to the item."""
    buffers: list[Buffer] = []
    if beside.buffers:
        raws = [buffer.raw() for buffer in beside.buffers]
        buffers = [lanes.memory.copy(raw) for raw in raws] if own else raws
    taken = Pickled(data, buffers, by_value=by_value)
    if beside.segments:
        taken.segments = tuple(beside.segments)
    if beside.cargo:
        taken.cargo = beside.cargo
    taken.is_sharing = beside.is_sharing
    return taken


class _Writer:
    """Pickles one item after the other, by name, with the same pickler: to make one takes longer than most items do."""

    __slots__ = ("_beside", "_clear", "_dump", "_pickler", "_pieces", "birth")

    def __init__(self, birth: Birth | None) -> None:
        self.birth = birth
        self._pieces: list[bytes] = []
        self._beside = beside = _Beside()
        file: Any = SimpleNamespace(write=self._pieces.append)
        keep = _keeper(beside.buffers)
        if birth is None:  # what has descriptors is refused
            self._pickler = pickle.Pickler(file, 5, buffer_callback=keep)
        else:
            beside.cargo = Places()
            self._pickler = NamingPickler(file, birth, keep, beside.segments, beside.cargo)
        self._dump = self._pickler.dump
        self._clear = self._pickler.clear_memo

    def dump(self, item: Any) -> bytes:
        """The pickle. If it raises, this cannot be used again."""
        pieces = self._pieces
        self._dump(item)
        self._clear()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    def take(self, data: bytes, own: bool) -> Pickled:
        """The item that was pickled last."""
        beside = self._beside
        taken = _pickled(data, beside, own, by_value=False)
        beside.buffers.clear()
        beside.segments.clear()
        if taken.cargo is not None:
            beside.cargo = Places()
            self._pickler.cargo = beside.cargo  # type: ignore[attr-defined]
        return taken


def _load_here(part: Pickled) -> Any:
    """An item that was pickled in this process, as it was; handles and what has descriptors are the very same ones."""
    buffers = [lanes.memory.copy(memoryview(one)) for one in part.buffers]
    unpickler = _UnpicklerHere(io.BytesIO(part.data), buffers=buffers)
    unpickler.part = part
    return unpickler.load()


class _UnpicklerHere(pickle.Unpickler):
    part: Pickled

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        cargo = self.part.cargo
        if isinstance(cargo, Places) and any(found is builder for builder in carriers.BUILDERS):
            things = cargo.things
            return lambda place, *_: things[place]
        if found is look_up:
            return lambda ident: Shared(next(one for one in self.part.segments if one.ident == ident), "object")
        return found


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
        self.rights = Rights()
        self.is_full = False

    def add(self, part: Part) -> BaseException | None:
        """Add an item; returns why it cannot be sent, if so. If `is_full` is set then, it goes with the next batch."""
        self._count += 1
        if type(part) is bytes:
            self._put(part, [], 0)
            return None
        start = len(self.rights)
        error = part.error if type(part) is Failed else self._add_Beside(part, start)  # type: ignore[arg-type]
        if self.is_full:
            return None
        if error is not None or type(part) is not Pickled:
            self.table += (0, 0)
            return error
        self.by_value |= part.by_value
        self._put(part.data, part.buffers, len(self.rights) - start)
        return None

    def _put(self, data: bytes, buffers: list[Buffer], descriptors: int) -> None:
        self.table += (len(data), len(buffers) | descriptors << _COUNT_BITS, *map(len, buffers))
        self.pieces += (data, *buffers)
        self.size += len(data) + sum(map(len, buffers))

    def _add_Beside(self, part: Pickled, start: int) -> BaseException | None:
        """Segments and descriptors of an item."""
        if any(segment.is_closed for segment in part.segments):
            return closed_error()
        if part.cargo is not None:
            try:
                part.cargo.add_to(self.rights)
            except OSError as error:
                self.rights.cut(start)
                self.is_full = start > 0 and self._is_going_out and isinstance(error, rights.NoRoom)
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
        return bool(self.rights.movers) or start >= rights.BATCH_LIMIT


class _Large:
    """The large objects that the items of one batch name, by identity, each with its number there."""

    def __init__(self, repeats: Repeats) -> None:
        self.repeats = repeats
        self.numbers: dict[int, int] = {}

    def number(self, identity: int) -> int | None:
        """The number of a large object; None for others."""
        if identity not in self.repeats.large:
            return None
        return self.numbers.setdefault(identity, len(self.numbers))
