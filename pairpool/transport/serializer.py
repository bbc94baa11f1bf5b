"""Pickles: by name what the other side knows, by value what it cannot know, one item's failure never another's.

Plain data cannot fail to load: scalars, containers of scalars and small arrays. Its pickle names no class or function
but those of numpy. Plain items go in one pickle. They are pickled together only if no object that can change is part of
two of them; otherwise the list is put together from their own pickles (`items.py`). Every other item has its own pickle
(`payload.py`): an error of its class while it is loaded fails that item alone, and the board shows which item it is.

A large object that several items of a map contain is sent once per batch (`repeats.py`, `large.py`).
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pairpool.linux.interrupts import is_own
from pairpool.transport import fd_reducers, payload_shm
from pairpool.transport.closures import captured
from pairpool.transport.fd_passing import ChildFds, OutgoingFds
from pairpool.transport.inherited_names import Home, InheritedNames
from pairpool.transport.items import (
    ATOMS,
    PLAIN_KINDS,
    REUSED_UP_TO,
    TOLD,
    Failed,
    Part,
    Pickled,
    Pickles,
    PlainPickler,
    PlainWriter,
    are_independent,
    in_a_call,
    size_of,
)
from pairpool.transport.large import Large
from pairpool.transport.numeric import is_array, is_numeric, is_plain
from pairpool.transport.payload import SHARING, WHOLE, Encoded, assembled, bulk, single
from pairpool.transport.picklers import (
    UNPICKLABLE,
    Beside,
    CarryingPickler,
    NamingPickler,
    ReadOnlyBuffer,
    SharingPickler,
    Writer,
    dump_plainly,
    dump_to_memory,
    load_here,
    needs_value,
    pickled,
)
from pairpool.transport.repeats import LARGE, Repeats

__all__ = ["Serializer"]

UNMEMOIZED = frozenset({int, float, bool, type(None)})
"""Types whose objects leave nothing in a pickler's memo."""

ASIDE_FROM = 512
"""Bytes from which on the buffer of a small array stays out of the pickle of a whole batch."""

FEW = 64
"""Items up to which a look at the type of each is cheaper than a pickler that stops at what is not plain."""


class Serializer:
    """How one side pickles.

    Args:
        birth: the names that the other side knows; None in a worker, because its master knows every name.
        memory: memory for copies of large buffers that the caller may change; None for the memory of this process.
    """

    def __init__(self, birth: InheritedNames | None = None, memory: payload_shm.WarmMemory | None = None) -> None:
        self.birth = birth
        self.memory = memory
        self._writers: list[PlainWriter] = []
        self._by_name: list[Writer] = []

    def set_inherited_names(self, names: InheritedNames) -> None:
        """Set the names that workers inherit."""
        self.birth = names

    def set_main_names(self, names: frozenset[str] | None) -> None:
        """Set the names that the workers' `__main__` has; None if it is a fork of this process's."""
        assert self.birth is not None
        self.birth.set_main_names(names)

    @property
    def has_inherited_names(self) -> bool:
        """Whether the names that workers inherit are known."""
        return self.birth is not None

    # --- one item, as soon as it is there -------------------------------------------------------

    def take(self, item: Any, *, own: bool = True, may_go_by_value: bool = True) -> Part:
        """Pickle an item now, because the caller or a task may change it.

        Args:
            own: copy large buffers, too. Without it, nobody may change them until the item has ended.

        Raises the exception of its pickling.
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
        if type(item) not in PLAIN_KINDS and not is_numeric(type(item)):
            return None
        writers = self._writers
        try:
            writer = writers.pop()
        except IndexError:
            writer = PlainWriter()  # for each thread that is at it, and for finalizers that strike meanwhile
        data = writer.dump(item)
        writers.append(writer)
        return data

    def take_other(self, item: Any, *, own: bool, may_go_by_value: bool = True) -> Pickled:
        """`take` for what is not plain data."""
        taken = self._take_by_name(item, own)
        if taken is None:
            beside = Beside(self._cargo())
            try:
                data, by_value = self._dump(item, beside, may_go_by_value)
            except BaseException:
                beside.restart()  # close the copies of descriptors now: the exception may be kept for long
                raise
            taken = pickled(data, beside, self._own(own), by_value=by_value)
        if taken.cargo is not None or (self.birth is not None and not is_array(item)):
            taken.shown = item  # an array can be loaded again for that; other classes may do anything then
        return taken

    def _take_by_name(self, item: Any, own: bool) -> Pickled | None:
        """An item that goes by name as a whole, by a pickler that was used before; None where that does not do."""
        writers, birth = self._by_name, self.birth
        try:
            writer = writers.pop()
        except IndexError:
            writer = Writer(birth)
        if writer.birth is not birth:
            writer = Writer(birth)
        fd_reducers.notice()
        if birth is None:
            fd_reducers.guard()
        try:
            data = writer.dump(item)
        except Exception as error:
            if birth is not None and not is_own(error):
                raise
            return None
        taken = writer.take(data, self._own(own))
        if len(data) <= REUSED_UP_TO:
            writers.append(writer)
        return taken

    def _own(self, is_wanted: bool) -> payload_shm.WarmMemory | None:
        return (self.memory or payload_shm.memory) if is_wanted else None

    def again_by_value(self, part: Part) -> Part:
        """An item that went by name: by value now, and as it was when it was taken."""
        if type(part) is not Pickled:
            return part
        beside = Beside(self._cargo())
        try:
            taken = pickled(self._dump_by_value(load_here(part), beside), beside, self._own(True), by_value=True)
        except Exception as error:
            return Failed(error)
        taken.shown = part.shown
        return taken

    def repeats(self) -> Repeats:
        """Return the memory of one call for large objects that several of its items contain."""
        return Repeats(self._size_of)

    def _size_of(self, thing: Any) -> int:
        part = self.take(thing, own=False)
        if type(part) is Pickled and part.cargo is not None:
            raise TypeError("what has descriptors is not sent once for several items")
        return size_of(part)

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
        keep: Callable[[Pickles], object] | None = None,
    ) -> Encoded:
        """Pickle the items of a batch, each as if it were alone.

        Args:
            items: the items, or `Pickles`.
            fail: called with the offset of each item that cannot be pickled and the error; the item is left out.
            mark: called with the offset of each item before it is pickled on its own.
            may_go_by_value: whether cloudpickle may be used where plain pickle fails.
            are_settled: whether each item is immutable, or no other code has a reference to it.
            by_value: whether a worker did not find by name a class or function in the items.
            keep: called with the pickles if each item has one of its own, so that they can be sent once more.
            repeats: the call's memory for large objects that several items contain; None if they must not share them.
        """
        if isinstance(items, Pickles):
            return self._assemble(Pickles(map(self.again_by_value, items)) if by_value else items, fail)
        are_atoms = type(items[0]) in ATOMS
        if repeats is None or are_atoms or not (repeats.expects_large or len(items) == 1):
            encoded = self._bulk(items, are_settled)
            if encoded is not None and (repeats is None or are_atoms or encoded.size < LARGE * len(items)):
                return encoded
            if encoded is not None and repeats is not None:
                repeats.expects_large = True  # so that no item is pickled in vain any more
        return self._each(items, fail, mark, may_go_by_value, repeats, keep)

    def encode_calls(
        self, calls: Sequence[tuple[Any, ...]], fail: Callable[[int, BaseException], None], *, by_value: bool = False
    ) -> Encoded:
        """Pickle single calls: `(function's number, args, kwds)` if the arguments are immutable, else `(number, part)`.

        Args:
            by_value: the worker did not find by name what is in it.
        """
        if {3}.issuperset(map(len, calls)):
            return bulk(pickle.dumps(calls, 5))
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
            return bulk(pickle.dumps(items, 5))
        first = type(items[0])
        if first not in PLAIN_KINDS and not is_plain(items[0]):
            return None
        if len(items) <= FEW and ATOMS.issuperset(map(type, items)):
            return bulk(pickle.dumps(items, 5))
        is_safe = are_settled or len(items) == 1
        if not (is_safe or first in UNMEMOIZED or are_independent(items)):
            return None
        file = io.BytesIO()
        raws: list[memoryview] = []
        pickler = PlainPickler(file, 5, buffer_callback=functools.partial(_set_aside, raws))
        try:
            pickler.dump(items)
        except Exception:
            return None  # item by item, to tell which one it was
        if first in UNMEMOIZED and not is_safe and len(pickler.memo.copy()) > 1 and not are_independent(items):
            return None  # there is more than numbers in it
        data = file.getvalue()
        if not raws:
            return bulk(data)
        return single(Pickled(data, list(raws)))._replace(format=WHOLE)

    def _each(
        self,
        items: Sequence[Any],
        fail: Callable[[int, BaseException], None],
        mark: Callable[[int], None] | None,
        may_go_by_value: bool,
        repeats: Repeats | None,
        keep: Callable[[Pickles], object] | None,
    ) -> Encoded:
        """A pickle for each item."""
        parts = Pickles()
        failed: dict[int, BaseException] = {}
        large = None if repeats is None else Large(repeats, self._pickle_alone)
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
                if keep is not None:
                    failed[offset] = error
                parts.append(TOLD)
        encoded = self._assemble(parts, fail, None if large is None else large.parts)
        if keep is not None and encoded.format != SHARING:
            keep(Pickles(Failed(failed[at]) if part is TOLD else part for at, part in enumerate(parts)))
        failed.clear()  # the traceback of each leads to this frame
        return encoded

    def _take_repeated(self, item: Any, large: Large) -> Part:
        """An item that may contain large objects which others contain, too."""
        repeats = large.repeats
        known: Part | None = repeats.find(item)
        if known is not None:
            return known
        part: Part = (repeats.large and self._take_sharing(item, large)) or self.take(item, own=False)
        if size_of(part) >= LARGE:
            if repeats.look(item):
                part = self._take_sharing(item, large) or part
            if not (type(part) is Pickled and part.is_sharing):
                repeats.keep(item, part)
        return part

    def _take_sharing(self, item: Any, large: Large) -> Pickled | None:
        """An item that names large objects; None if it has none, or if they must not travel apart from it."""
        if id(item) in large.repeats.large:
            return None
        beside = Beside(self._cargo(), large)
        try:
            data, by_value = self._dump(item, beside, may_go_by_value=True)
            if not beside.used or not large.may_travel_apart(beside):
                return None
        except Exception as error:
            if not is_own(error):
                raise
            return None  # if it is the item that cannot be pickled, its own pickle raises this again
        taken = pickled(data, beside, None, by_value=by_value)
        taken.shown = item
        return taken

    def _pickle_alone(self, thing: Any) -> tuple[Pickled, Beside]:
        beside = Beside(self._cargo())
        data, by_value = self._dump(thing, beside, may_go_by_value=True)
        return pickled(data, beside, None, by_value=by_value), beside

    def _assemble(
        self, parts: Pickles, fail: Callable[[int, BaseException], None], shared: Pickles | None = None
    ) -> Encoded:
        return assembled(parts, fail, shared, is_going_out=self.birth is not None)

    def _cargo(self) -> OutgoingFds | ChildFds:
        """Where the descriptors of an item are noted: a worker copies them at once, for its task may close them."""
        fd_reducers.notice()
        if self.birth is None:
            fd_reducers.guard()
            return OutgoingFds()
        return ChildFds()

    def _dump(self, item: Any, beside: Beside, may_go_by_value: bool) -> tuple[bytes, bool]:
        """One item's pickle, and whether something in it went by value; fills `beside`."""
        try:
            return self._dump_by_name(item, beside), False
        except needs_value:
            if not may_go_by_value:
                raise
        beside.restart()
        return self._dump_by_value(item, beside), True

    def _dump_by_value(self, item: Any, beside: Beside | None) -> bytes:
        from pairpool.transport import by_value_pickler

        knowledge = self.birth or Home()
        if beside is None:
            file = io.BytesIO()
            by_value_pickler.ByValuePickler(file, knowledge, None, None).dump(item)
            return file.getvalue()
        segments = None if self.birth is None else beside.segments
        kind = by_value_pickler.ByValuePickler if beside.large is None else by_value_pickler.SegmentPickler
        return dump_to_memory(beside, item, lambda file, keep: kind(file, knowledge, keep, segments, beside.cargo))

    def dump_alone(self, item: Any) -> bytes:
        """One self-contained pickle: plainly if that works, else by value."""
        try:
            return pickle.dumps(item, 5)
        except UNPICKLABLE:
            return self._dump_by_value(item, None)

    def encode_function(self, function: Any, *, by_value: bool = False) -> Encoded:
        """Pickle a function: by name where every worker knows it, else by value with what it captures.

        Raises whatever says that it cannot be pickled.
        """
        fd_reducers.notice()
        beside = Beside(OutgoingFds())
        if by_value:
            data, went_by_value = self._dump_by_value(function, beside), True
        else:
            data, went_by_value = self._dump(function, beside, may_go_by_value=True)
        return single(pickled(data, beside, None, by_value=went_by_value))

    def _dump_by_name(self, item: Any, beside: Beside) -> bytes:
        """A pickle that names every function and class; raises `_Unnamed` if the other side does not know one."""
        birth = self.birth
        if birth is None:
            try:
                return dump_plainly(item, beside)
            except UNPICKLABLE:
                if beside.cargo is None:
                    raise
            cargo = beside.cargo
            beside.restart()
            return dump_to_memory(beside, item, lambda file, keep: CarryingPickler(file, keep, cargo))
        kind = NamingPickler if beside.large is None else SharingPickler
        return dump_to_memory(beside, item, lambda file, keep: kind(file, birth, keep, beside.segments, beside.cargo))

    def captures(self, function: Any) -> Iterator[tuple[str, int]]:
        """What a function that goes by value drags along: a name for each captured value, and its size in bytes."""
        for name, value in captured(function):
            beside = Beside()
            try:
                size = len(self._dump_by_value(value, beside))
            except Exception:
                continue  # only a hint for a warning: what has no size of its own is not named in it
            yield name, size + sum(buffer.raw().nbytes for buffer in beside.buffers)


def _set_aside(raws: list[memoryview], buffer: Any) -> bool:
    """A buffer_callback that keeps the buffers of all but the smallest arrays out of the pickle."""
    raw = buffer.raw()
    if raw.readonly:
        raise ReadOnlyBuffer
    if raw.nbytes < ASIDE_FROM:
        return True
    raws.append(raw)
    return False
