"""Failures of items on their way to the master: exceptions taken apart so that they always arrive."""

from __future__ import annotations

import io
import pickle
import reprlib
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from pairpool.transport.fd_reducers import BUILDERS
from pairpool.transport.serializer import Serializer
from pairpool.transport.wire import Buffer

__all__ = [
    "Failure",
    "Fault",
    "describe_failure",
    "error_for_each",
    "missing_module",
    "rebuild_exception",
    "safe",
    "short_call",
    "short_repr",
]


class Fault:
    """What kind of failure an item had."""

    RAISED = 0
    RESULT = 1  # the result could not be pickled
    ARGUMENT = 2  # the argument could not be unpickled
    FUNCTION = 3  # the function could not be unpickled
    ROOM = 4  # its descriptors did not fit into the worker's table


class Failure(NamedTuple):
    """One item's failure on its way to the master; plain data, so that it always arrives."""

    offset: int
    fault: int
    pickled: bytes | None  # the exception, if it can travel
    kind: str  # its type's name; of a result, its repr
    text: str  # of a result, the repr of that
    remote: str  # the formatted traceback
    missing: str | None = None  # module in which something was not found


def safe(text: Callable[[], str]) -> str:
    """`repr` or `str` of something that may raise."""
    try:
        return text()
    except BaseException as error:
        return f"<unprintable: {type(error).__name__}>"


def error_for_each(error: BaseException, count: int) -> list[BaseException]:
    """Return an exception for each of several items that fail for the same reason: equal, but not the same object."""
    from cloudpickle import cloudpickle

    errors = [error]
    try:
        pickled = cloudpickle.dumps(error) if count > 1 else b""
        while len(errors) < count:
            errors.append(pickle.loads(pickled))
    except Exception:  # it cannot be copied
        text = f"{type(error).__name__}: {safe(lambda: str(error))}"
        errors += [RuntimeError(text) for _ in range(count - len(errors))]
    for one in errors[1:]:
        one.__traceback__, one.__cause__ = error.__traceback__, error.__cause__
    return errors[:count]


REPR_LENGTH = 120
"""Characters that the repr of an argument may have in errors and views."""


class _ShortRepr(reprlib.Repr):
    """Reprs that cost little, however large the object is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 60
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = 4
        self.maxlevel = 3

    def repr_bytes(self, data: Any, _level: int) -> str:
        return repr(data) if len(data) <= 24 else f"<{type(data).__name__}, {len(data):,} bytes>"

    repr_bytearray = repr_bytes

    def repr_memoryview(self, view: memoryview, _level: int) -> str:
        return f"<memoryview, {view.nbytes:,} bytes>"

    def repr_int(self, number: int, level: int) -> str:
        return f"<int of {number.bit_length()} bits>" if number.bit_length() > 256 else super().repr_int(number, level)

    def repr_ndarray(self, array: Any, _level: int) -> str:
        return f"<array {array.dtype} {array.shape}>" if array.size > 8 else " ".join(repr(array).split())

    def repr_DataFrame(self, frame: Any, _level: int) -> str:
        return f"<DataFrame {frame.shape}>"


_short = _ShortRepr()


def short_repr(thing: Any) -> str:
    """A repr of one line and at most `REPR_LENGTH` characters; never raises."""
    text = " ".join(safe(lambda: _short.repr(thing)).split())
    return text if len(text) <= REPR_LENGTH else text[: REPR_LENGTH - 1] + "…"


def short_call(args: Any, kwds: Any = None) -> str:
    """The arguments of a call as they would be written, cut like `short_repr`."""
    shown = [short_repr(one) for one in list(args)[:4]] + (["…"] if len(args) > 4 else [])
    shown += [f"{name}={short_repr(value)}" for name, value in list((kwds or {}).items())[:4]]
    text = ", ".join(shown)
    return f"({text if len(text) <= REPR_LENGTH else text[: REPR_LENGTH - 1] + '…'})"


def describe_failure(
    codec: Serializer, offset: int, fault: int, error: BaseException, missing: str | None = None
) -> Failure:
    """Take an exception apart for its journey; keeps no reference to it or its frames."""
    inner = error.__traceback__
    if inner is not None and inner.tb_next is not None:
        inner = inner.tb_next  # the first frame is this module's own
    remote = safe(lambda: "".join(traceback.format_exception(type(error), error, inner)))
    pickled = None
    for attempt in (_dump_exception, _dump_taken_apart):
        try:
            pickled = attempt(codec, error)
            pickle.loads(pickled)
            break
        except BaseException:
            pickled = None  # it cannot travel this way: try the next, or go as text
    cls = type(error)
    return Failure(offset, fault, pickled, cls.__qualname__, safe(lambda: str(error)), remote, missing)


def _dump_exception(codec: Serializer, error: BaseException) -> bytes:
    return codec.dump_alone(error)


def _dump_taken_apart(codec: Serializer, error: BaseException) -> bytes:
    """For exceptions whose constructor does not take what they hold in `args`: without the constructor."""
    return codec.dump_alone(_TakenApart(type(error), error.args, dict(error.__dict__)))


class _TakenApart:
    def __init__(self, cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> None:
        self.parts = (cls, args, attributes)

    def __reduce__(self) -> Any:
        return rebuild_exception, self.parts


def rebuild_exception(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    """An exception as it was, without calling its own constructor."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class _Finder(pickle.Unpickler):
    """Repeats an unpickling that failed to learn in which module something was missing."""

    missing: str | None = None

    def find_class(self, module: str, name: str) -> Any:
        try:
            found = super().find_class(module, name)
        except (AttributeError, ImportError):
            self.missing = module
            raise
        return found if found not in BUILDERS else lambda *_: None  # the descriptors were taken the first time


def missing_module(pickled: Buffer, error: BaseException) -> str | None:
    """The module in which an unpickling did not find something, if that is why it failed."""
    if not isinstance(error, (AttributeError, ImportError)):
        return None
    finder = _Finder(io.BytesIO(bytes(pickled)), buffers=())
    try:
        finder.load()
    except BaseException:
        return finder.missing
    return None
