"""Functions by number: pickled once a call, sent once a worker, named by a number from then on."""

from __future__ import annotations

import copyreg
import functools
import itertools
import operator
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
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

KEPT = 64
LARGE_CAPTURE = 1 << 20
_NOWHERE = ModuleType("nowhere")


def name_of(function: Any) -> str:
    """What a function is called in errors and views."""
    inner = function
    while not hasattr(inner, "__qualname__") and hasattr(inner, "func"):
        inner = inner.func
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return name if inner is function else f"partial({name})"


class Wrapper:
    """A callable whose only state is that of the callable in `function`."""

    function: Callable[..., Any]


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
    """Whether a callable contains objects that a task may change: then each item gets a copy of its own.

    multiprocessing pickles the callable with each item, too. Of a function these are the variables that it captures and
    its default values; its global variables belong to the worker.
    """
    while isinstance(function, Wrapper):
        function = function.function
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
    """Whether the pickle of an object is its name alone, as that of a ufunc of numpy or of a cached function."""
    kind: Any = type(thing)
    reduce: Any = copyreg.dispatch_table.get(kind) or kind.__reduce__
    if reduce is object.__reduce__:
        return False  # an object of a class of the user's, which is pickled with what it contains
    try:
        return isinstance(reduce(thing), str)
    except Exception:
        return False  # the call says why it cannot be pickled


def is_constant(value: Any) -> bool:
    """Whether a task cannot change a value that a function has; a handle stands for an object that workers share."""
    if isinstance(value, FunctionType):
        return not has_state(value)
    return is_immutable(value) or isinstance(value, (type, ModuleType, BuiltinFunctionType, Shared))


class Function:
    """A function as it travels."""

    __slots__ = ("by_value", "encoded", "has_state", "keep", "name", "number", "original", "space", "uses")

    def __init__(self, number: int, name: str, encoded: Encoded, original: Any) -> None:
        self.number = number
        self.name = name
        self.encoded = encoded
        self.by_value = encoded.by_value
        is_named = not encoded.by_value and isinstance(original, FunctionType)  # its defaults belong to the module
        self.has_state = encoded.fds is None and not is_named and has_state(original)
        self.original = original  # to pickle it again where a worker did not find it by name
        self.uses = 0
        self.keep = False
        self.space: dict[str, Any] = {}  # the names of its module, where it is found under its own


class Functions:
    """The functions of one pool that its workers may know."""

    def __init__(self, codec: Serializer) -> None:
        self._codec = codec
        self._numbers = itertools.count(1)
        self._by_name: OrderedDict[Any, Function] = OrderedDict()
        self._by_number: dict[int, Function] = {}
        self._warned: set[str] = set()
        self.suspects: dict[int, float] = {}
        """Workers that died, one after the other, while they unpickled a function, by its number."""
        self._lock = threading.Lock()

    def get(self, function: Any) -> Function:
        """The function, pickled now unless it travels by name alone; from any thread. Each `get` wants one `release`.

        Raises whatever says that it cannot be pickled.
        """
        plain = isinstance(function, (FunctionType, BuiltinFunctionType, type))
        with self._lock:
            known = self._by_name.get(function) if plain else None
            if known is not None:
                known.uses += 1
        if known is not None:
            if self._still_named(known, function):
                return known
            self._by_name.pop(function, None)  # it is not what the name means any more
            known.keep = False
            self.release(known)
        new = self._add(function, self._codec.encode_function(function))
        with self._lock:
            new.uses += 1
            if plain and not new.by_value:
                new.keep = True
                new.space = vars(sys.modules.get(function.__module__ or "", _NOWHERE))
                self._by_name[function] = new
        return new

    def _still_named(self, known: Function, function: Any) -> bool:
        if known.space.get(known.name) is function:
            return True
        return type(function) is BuiltinFunctionType or (self._codec.names is None or self._codec.names.names(function))

    def _add(self, function: Any, encoded: Encoded) -> Function:
        new = Function(next(self._numbers), name_of(function), encoded, function)
        self._by_number[new.number] = new
        if encoded.by_value and encoded.size > LARGE_CAPTURE:
            self._warn(function, new)
        return new

    def _warn(self, function: Any, new: Function) -> None:
        if new.name in self._warned:
            return
        self._warned.add(new.name)
        from pairpool.errors import LargeCaptureWarning

        culprits = sorted(self._codec.captures(function), key=lambda pair: -pair[1])
        what = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in culprits[:3] if size > 1 << 16)
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
        """The same function under a new number, for workers that did not find it by name."""
        thing = function.original
        if function.has_state and not function.encoded.segments:
            thing = load_single(function.encoded)  # as it was when the call was made
        new = self._add(function.original, self._codec.encode_function(thing, by_value=True))
        if function.keep:
            function.keep = False
            self._by_name.pop(function.original, None)
        return new

    def suspect(self, number: int, weight: float) -> None:
        """A worker died while it unpickled this function; `weight` is 1 where nothing else can have ended it."""
        if number in self._by_number:
            self.suspects[number] = self.suspects.get(number, 0.0) + weight

    def acquit(self, numbers: list[int]) -> None:
        """A worker has run these functions."""
        for number in numbers:
            self.suspects.pop(number, None)

    def release(self, function: Function, uses: int = 1) -> list[int]:
        """Give back some uses; returns the numbers of functions that workers should forget now."""
        forgotten = []
        with self._lock:
            function.uses -= uses
            if function.uses <= 0 and not function.keep:
                forgotten.append(function.number)
            while len(self._by_name) > KEPT:
                _original, entry = self._by_name.popitem(last=False)
                entry.keep = False
                if entry.uses <= 0:
                    forgotten.append(entry.number)
        for number in forgotten:
            self._by_number.pop(number, None)
            self.suspects.pop(number, None)
        return forgotten
