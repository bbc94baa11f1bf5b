"""Pickles: by name what the other side knows, by value what it cannot know, one item's failure never another's.

Three formats for the items of a batch:

- BULK: one pickle of the whole sequence, where no item can fail to load: scalars, containers of scalars and
  small arrays, recognised by a pickle that names no class or function but numpy's;
- WHOLE: the same with the buffers of arrays behind it, laid out like a single item of
- EACH: a table of lengths, then a pickle an item with its protocol 5 buffers behind it. Whatever an item's class
  does while it is loaded, it does to that item alone, and the board says which one it was.

A buffer that is read-only in its array would arrive read-only by protocol 5, where multiprocessing's users get a
writable array: such items go in protocol 4, which copies them into the pickle.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from pairpool.interrupts import is_own
from pairpool.wire import carriers, lanes, rights
from pairpool.wire.channel import Buffer
from pairpool.wire.numeric import is_plain
from pairpool.wire.rights import Rights
from pairpool.wire.segments import Segment, Shared

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["EACH", "Birth", "Codec", "Encoded", "NamingPickler", "each_item", "load_item", "needs_value"]

BULK, EACH, WHOLE = 0, 1, 2

SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None)})
CONTAINERS = frozenset({list, tuple, dict, set, frozenset, bytearray})
OUT_OF_BAND_FROM = 32 * 1024
ASIDE_FROM = 512
"""Bytes from which on the buffer of a small array stays out of the pickle of a whole batch."""

FEW = 64
"""Items up to which a look at the type of each is cheaper than a pickler that stops at what is not plain."""

_WORD = struct.Struct("<Q")
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


class _Beside(list[Any]):
    """What stays out of a pickle: the list holds its buffers, and `segments` those that it names.

    Attributes:
        cargo: where copies of descriptors are put, if any may be sent; those of this pickle from place `start` on.
    """

    segments: list[Segment]
    cargo: Rights | None = None
    start = 0

    def restart(self) -> None:
        """The object is pickled once more."""
        self.clear()
        if self.cargo is not None:
            self.cargo.cut(self.start)


def _beside(segments: list[Segment], cargo: Rights | None = None) -> _Beside:
    beside = _Beside()
    beside.segments = segments
    if cargo is not None:
        beside.cargo = cargo
        beside.start = len(cargo.fds)
    return beside


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
        cargo: Rights | None = None,
    ) -> None:
        super().__init__(file, 4 if keep is None else 5, buffer_callback=keep)
        self._birth = birth
        self._segments = segments
        self._cargo = cargo

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Shared:
            return obj.travel(self._segments)
        if isinstance(obj, _NAMEABLE):
            if not self._birth.names(obj):
                raise _Unnamed
        elif issubclass(type(obj), carriers.kinds) and self._cargo is not None:  # isinstance takes twice as long
            return carriers.travel(obj, self._cargo)
        return NotImplemented


class _CarryingPickler(pickle.Pickler):
    """The plain pickler, but sockets and the like go as a place in `cargo`."""

    def __init__(self, file: SupportsWrite[bytes], keep: Callable[[Any], Any] | None, cargo: Rights) -> None:
        super().__init__(file, 4 if keep is None else 5, buffer_callback=keep)
        self._cargo = cargo

    def reducer_override(self, obj: Any) -> Any:
        return carriers.travel(obj, self._cargo) if isinstance(obj, carriers.kinds) else NotImplemented


class _PlainPickler(pickle.Pickler):
    """Stops at the first object that is not plain data; the pickle module asks about those and numpy's."""

    def reducer_override(self, obj: Any) -> Any:
        if is_plain(obj):
            return NotImplemented
        raise _Unnamed


def each_item(payload: memoryview) -> Iterator[tuple[memoryview, list[memoryview]]]:
    """The items of an EACH payload: pickle and buffers as views of it; an empty pickle stands for a missing item."""
    words = _WORD.unpack_from(payload)[0]
    table = payload[8 : 8 + 8 * words].cast("Q")
    at = 8 + 8 * words
    index = 0
    while index < words:
        size, buffers = table[index], table[index + 1]
        pickled = payload[at : at + size]
        at += size
        views = []
        for length in table[index + 2 : index + 2 + buffers]:
            views.append(payload[at : at + length])
            at += length
        index += 2 + buffers
        yield pickled, views


def load_all(form: int, content: memoryview) -> Any:
    """The items of a BULK or a WHOLE payload."""
    return pickle.loads(content) if form == BULK else load_item(*next(each_item(content)))


def load_item(pickled: memoryview, buffers: list[memoryview]) -> Any:
    """Unpickle one item of an EACH payload; its arrays are writable and own their memory."""
    if buffers:
        return pickle.loads(pickled, buffers=[lanes.memory.copy(view) for view in buffers])
    return pickle.loads(pickled)


class Codec:
    """How one side pickles.

    Args:
        birth: what the other side knows; None in a worker, whose master knows all it may name.
    """

    def __init__(self, birth: Birth | None = None) -> None:
        self.birth = birth

    def encode(
        self,
        items: Sequence[Any],
        fail: Callable[[int, BaseException], None],
        *,
        mark: Callable[[int], None] | None = None,
        may_go_by_value: bool = True,
    ) -> Encoded:
        """Pickle the items of a batch.

        Args:
            fail: called with the offset of each item that cannot be pickled and the error; the item is left out.
            mark: called with the offset of each item before it is pickled on its own.
            may_go_by_value: whether cloudpickle may be used where plain pickle fails.
        """
        return self._bulk(items) or self._each(items, fail, mark, may_go_by_value)

    def _bulk(self, items: Sequence[Any]) -> Encoded | None:
        if type(items) is range:
            return _bulk_payload(pickle.dumps(items, 5))
        first = type(items[0])
        if first not in SCALARS and first not in CONTAINERS and not is_plain(items[0]):
            return None
        if len(items) <= FEW and SCALARS.issuperset(map(type, items)):
            return _bulk_payload(pickle.dumps(items, 5))
        file = io.BytesIO()
        raws: list[memoryview] = []
        try:
            _PlainPickler(file, 5, buffer_callback=functools.partial(_set_aside, raws)).dump(items)
        except Exception:
            return None  # item by item, to tell which one it was
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
    ) -> Encoded:
        table: list[int] = []
        pieces: list[Buffer] = []
        went_by_value = False
        segments: list[Segment] = []
        cargo = self._cargo()
        fitting = -1
        buffers = _beside(segments, cargo)
        for offset, item in enumerate(items):
            buffers.clear()
            if cargo.fds:
                buffers.start = len(cargo.fds)
            if mark is not None:
                mark(offset)
            try:
                data, valued = self._dump(item, buffers, may_go_by_value)
            except BaseException as error:
                if self.birth is not None and not is_own(error):
                    raise  # of a signal's handler, in the master
                cargo.cut(buffers.start)
                if self._may_end(error, buffers.start):
                    fitting = offset
                    break
                fail(offset, error)
                table += (0, 0)
                continue
            if cargo.fds and self._is_too_much(cargo, offset, buffers.start):
                cargo.cut(buffers.start)
                fitting = offset
                break
            went_by_value |= valued
            pieces.append(data)
            if buffers:
                raws = [buffer.raw() for buffer in buffers]
                table += (len(data), len(raws), *(raw.nbytes for raw in raws))
                pieces += raws
            else:
                table += (len(data), 0)
        return _with_cargo(_each_payload(table, pieces, went_by_value, segments), cargo, fitting)

    def _cargo(self) -> Rights:
        """Where the descriptors of a pickle are put."""
        carriers.notice()
        if self.birth is None:
            carriers.guard()
        return Rights()

    def _may_end(self, error: BaseException, descriptors: int) -> bool:
        """Whether a batch ends before an item that failed: for want of room, which those before it take."""
        return descriptors > 0 and self.birth is not None and isinstance(error, rights.NoRoom)

    def _is_too_much(self, cargo: Rights, offset: int, start: int) -> bool:
        """Whether an item must not go with those before it: there are many descriptors, or one that moves.

        A worker that dies takes with it the descriptors that have moved there: those of the item that it ran, and of
        none behind that.
        """
        return offset > 0 and self.birth is not None and (bool(cargo.movers) or start >= rights.BATCH_LIMIT)

    def _dump(self, item: Any, buffers: _Beside, may_go_by_value: bool) -> tuple[bytes, bool]:
        """One item's pickle, and whether something in it went by value; fills `buffers`."""
        try:
            return self._dump_by_name(item, buffers), False
        except needs_value:
            if not may_go_by_value:
                raise
        buffers.restart()
        return self._dump_by_value(item, buffers), True

    def _dump_by_value(self, item: Any, buffers: _Beside | None) -> bytes:
        from pairpool.wire.byvalue import ByValuePickler

        knowledge = self.birth or _Home()
        segments = None if self.birth is None or buffers is None else buffers.segments
        cargo = None if buffers is None else buffers.cargo
        if buffers is not None:
            file = io.BytesIO()
            try:
                ByValuePickler(file, knowledge, _keeper(buffers), segments, cargo).dump(item)
                return file.getvalue()
            except _ReadOnlyBuffer:
                buffers.restart()
        file = io.BytesIO()
        ByValuePickler(file, knowledge, None, segments, cargo).dump(item)
        return file.getvalue()

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
        cargo = self._cargo()
        buffers = _beside([], cargo)
        if by_value:
            data, went_by_value = self._dump_by_value(function, buffers), True
        else:
            data, went_by_value = self._dump(function, buffers, may_go_by_value=True)
        raws = [buffer.raw() for buffer in buffers]
        table = [len(data), len(raws), *(raw.nbytes for raw in raws)]
        return _with_cargo(_each_payload(table, [data, *raws], went_by_value, buffers.segments), cargo)

    def _dump_by_name(self, item: Any, buffers: _Beside) -> bytes:
        """A pickle that names every function and class; raises `_Unnamed` if the other side does not know one."""
        if self.birth is None:
            try:
                return _dumps(item, buffers)
            except _UNPICKLABLE:
                if buffers.cargo is None:
                    raise
            buffers.clear()
            return _dump_carrying(item, buffers, buffers.cargo)
        file = io.BytesIO()
        try:
            NamingPickler(file, self.birth, _keeper(buffers), buffers.segments, buffers.cargo).dump(item)
        except _ReadOnlyBuffer:
            buffers.restart()
            file = io.BytesIO()
            NamingPickler(file, self.birth, None, buffers.segments, buffers.cargo).dump(item)
        return file.getvalue()

    def captures(self, function: Any) -> Iterator[tuple[str, int]]:
        """What a function that goes by value drags along: a name for each captured value, and its size in bytes."""
        for name, value in _captured(function):
            buffers = _beside([])
            try:
                size = len(self._dump_by_value(value, buffers))
            except Exception:
                continue  # only a hint for a warning: what has no size of its own is not named in it
            yield name, size + sum(buffer.raw().nbytes for buffer in buffers)


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


def _dump_carrying(item: Any, buffers: _Beside, cargo: Rights) -> bytes:
    file = io.BytesIO()
    try:
        _CarryingPickler(file, _keeper(buffers), cargo).dump(item)
    except _ReadOnlyBuffer:
        buffers.restart()
        file = io.BytesIO()
        _CarryingPickler(file, None, cargo).dump(item)
    return file.getvalue()


def _dumps(item: Any, buffers: list[Any]) -> bytes:
    try:
        return pickle.dumps(item, 5, buffer_callback=_keeper(buffers))
    except _ReadOnlyBuffer:
        buffers.clear()
        return pickle.dumps(item, 4)
