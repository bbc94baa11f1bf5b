"""The functions of a pool, by number.

A function is pickled once per call, or once per pool if it travels by name. It is sent once to each worker. From then
on packets name the function by its number.
"""

from __future__ import annotations

import copyreg
import functools
import itertools
import operator
import sys
import threading
import warnings
from collections import OrderedDict
from types import (
    BuiltinFunctionType,
    BuiltinMethodType,
    ClassMethodDescriptorType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

from pairpool.transport.closures import own_values
from pairpool.transport.items import is_immutable
from pairpool.transport.payload import Encoded, load_single
from pairpool.transport.segments import Shared
from pairpool.transport.serializer import Serializer

__all__ = ["Function", "Functions"]

MAX_NAMED_FUNCTIONS_KEPT = 64
"""Functions that travel by name and stay known between calls, at most."""

LARGE_CAPTURE_BYTES = 1 << 20
"""A function whose pickle is larger than this causes a `LargeCaptureWarning`."""

MENTIONED_CAPTURE_BYTES = 1 << 16
"""The warning names captured variables that are larger than this."""

_NO_MODULE = ModuleType("none")


def name_of(function: Any) -> str:
    """Return the name of a function for errors and views."""
    inner = function
    while not hasattr(inner, "__qualname__") and hasattr(inner, "func"):
        inner = inner.func
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return name if inner is function else f"partial({name})"


class Stateless:
    """A callable that no task can change, whatever its attributes are."""

    __slots__ = ()


_STATELESS = (
    type,
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
    operator.attrgetter,
    operator.itemgetter,
    operator.methodcaller,
)


def has_state(function: Any) -> bool:
    """Return whether a callable contains objects that a task may change. Then each item gets a copy of its own.

    multiprocessing pickles the callable with each item, too. The objects of a function are the variables that it
    captures and its default values. Its global variables belong to the worker.
    """
    if isinstance(function, Stateless):
        return False
    if isinstance(function, FunctionType):
        return not all(is_constant(value) for value in own_values(function))
    if type(function) is functools.partial:
        own = is_immutable(function.args) and is_immutable(tuple(function.keywords.items()))
        return not own or has_state(function.func)
    if isinstance(function, (MethodType, BuiltinMethodType, MethodWrapperType)):
        owner = function.__self__
        return not (owner is None or isinstance(owner, (type, ModuleType)) or is_immutable(owner))
    return not (isinstance(function, _STATELESS) or _goes_by_name(function))


def _goes_by_name(thing: Any) -> bool:
    """Return whether an object is pickled as its name alone, like a ufunc of numpy or a cached function."""
    kind: Any = type(thing)
    reduce: Any = copyreg.dispatch_table.get(kind) or kind.__reduce__
    if reduce is object.__reduce__:
        return False  # an instance of a class of the user, which is pickled with its contents
    try:
        return isinstance(reduce(thing), str)
    except Exception:
        return False  # the call itself reports why the object cannot be pickled


def is_constant(value: Any) -> bool:
    """Return whether a task cannot change a value that a function contains.

    A `Shared` counts as constant because it stands for an object that the tasks of a worker share.
    """
    if isinstance(value, FunctionType):
        return not has_state(value)
    return is_immutable(value) or isinstance(value, (type, ModuleType, BuiltinFunctionType, Shared))


class Function:
    """A function in the form in which it travels.

    Attributes:
        original: the function itself, to be pickled again if a worker does not find it by name.
        uses: the calls that have not ended and use this number.
        is_kept: whether the number stays known between calls, because the function travels by name.
    """

    __slots__ = ("_namespace", "by_value", "encoded", "has_state", "is_kept", "name", "number", "original", "uses")

    def __init__(self, number: int, name: str, encoded: Encoded, original: Any) -> None:
        self.number = number
        self.name = name
        self.encoded = encoded
        self.by_value = encoded.by_value
        is_named = not encoded.by_value and isinstance(original, FunctionType)  # its defaults belong to the module
        self.has_state = encoded.fds is None and not is_named and has_state(original)
        self.original = original
        self.uses = 0
        self.is_kept = False
        self._namespace: dict[str, Any] = {}  # of the module of the function, if the function is kept

    def add_uses(self, count: int = 1) -> None:
        self.uses += count

    def remove_uses(self, count: int = 1) -> None:
        self.uses -= count

    def keep(self) -> None:
        """Keep the number between calls."""
        self.is_kept = True
        self._namespace = vars(sys.modules.get(self.original.__module__ or "", _NO_MODULE))

    def stop_keeping(self) -> None:
        """Forget the number when its last call ends."""
        self.is_kept = False

    def is_found_by_name(self, function: Any) -> bool:
        """Return whether the module still has `function` under its own name."""
        return self._namespace.get(self.name) is function

    @property
    def is_unused(self) -> bool:
        return self.uses <= 0 and not self.is_kept


class Functions:
    """The functions of one pool that its workers may know.

    Attributes:
        crash_counts: how many workers died in a row while they unpickled a function, by its number.
    """

    def __init__(self, serializer: Serializer) -> None:
        self._serializer = serializer
        self._numbers = itertools.count(1)
        self._by_name: OrderedDict[Any, Function] = OrderedDict()
        self._by_number: dict[int, Function] = {}
        self._warned: set[str] = set()
        self.crash_counts: dict[int, float] = {}
        self._lock = threading.Lock()

    def get(self, function: Any) -> Function:
        """Return the function in the form in which it travels. Callable from any thread.

        The function is pickled now, unless it travels by name alone. Each `get` needs one `release`. Raise the
        exception of the pickling.
        """
        plain = isinstance(function, (FunctionType, BuiltinFunctionType, type))
        with self._lock:
            known = self._by_name.get(function) if plain else None
            if known is not None:
                known.add_uses()
        if known is not None:
            if self._is_still_named(known, function):
                return known
            self._by_name.pop(function, None)  # the name now stands for another function
            known.stop_keeping()
            self.release(known)
        new = self._add(function, self._serializer.encode_function(function))
        with self._lock:
            new.add_uses()
            if plain and not new.by_value:
                new.keep()
                self._by_name[function] = new
        return new

    def _is_still_named(self, known: Function, function: Any) -> bool:
        if known.is_found_by_name(function):
            return True
        inherited = self._serializer.names
        return type(function) is BuiltinFunctionType or (inherited is None or inherited.names(function))

    def _add(self, function: Any, encoded: Encoded) -> Function:
        new = Function(next(self._numbers), name_of(function), encoded, function)
        self._by_number[new.number] = new
        if encoded.by_value and encoded.size > LARGE_CAPTURE_BYTES:
            self._warn(function, new)
        return new

    def _warn(self, function: Any, new: Function) -> None:
        if new.name in self._warned:
            return
        self._warned.add(new.name)
        from pairpool.errors import LargeCaptureWarning

        largest = sorted(self._serializer.captures(function), key=lambda pair: -pair[1])[:3]
        what = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in largest if size > MENTIONED_CAPTURE_BYTES)
        warnings.warn(
            f"{new.name} travels by value and drags {new.encoded.size / 2**20:.1f} MiB along to every worker"
            f"{': ' + what if what else ''}; share large data instead (pool.share), or define it before the pool opens",
            LargeCaptureWarning,
            stacklevel=5,
        )

    def by_number(self, number: int) -> Function:
        return self._by_number[number]

    def find(self, number: int) -> Function | None:
        return self._by_number.get(number)

    def again_by_value(self, function: Function) -> Function:
        """Return the same function under a new number, for workers that did not find it by name."""
        thing = function.original
        if function.has_state and not function.encoded.segments:
            thing = load_single(function.encoded)  # its state when the call was made
        new = self._add(function.original, self._serializer.encode_function(thing, by_value=True))
        if function.is_kept:
            function.stop_keeping()
            self._by_name.pop(function.original, None)
        return new

    def count_crash(self, number: int, weight: float) -> None:
        """Note that a worker died while it unpickled this function.

        Args:
            weight: 1 if only the function can have caused the death, and less if something else may have.
        """
        if number in self._by_number:
            self.crash_counts[number] = self.crash_counts.get(number, 0.0) + weight

    def clear_crash_counts(self, numbers: list[int]) -> None:
        """Note that a worker has run these functions."""
        for number in numbers:
            self.crash_counts.pop(number, None)

    def release(self, function: Function, uses: int = 1) -> list[int]:
        """End some uses of a function. Return the numbers of the functions that workers must forget now."""
        forgotten = []
        with self._lock:
            function.remove_uses(uses)
            if function.is_unused:
                forgotten.append(function.number)
            while len(self._by_name) > MAX_NAMED_FUNCTIONS_KEPT:
                _original, entry = self._by_name.popitem(last=False)
                entry.stop_keeping()
                if entry.is_unused:
                    forgotten.append(entry.number)
        for number in forgotten:
            self._by_number.pop(number, None)
            self.crash_counts.pop(number, None)
        return forgotten
