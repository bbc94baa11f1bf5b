"""Describe the failure of an item to the master, so that the description arrives whatever the exception is."""

from __future__ import annotations

import io
import pickle
import reprlib
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from pairpool.transport.fd_reducers import BUILDERS
from pairpool.transport.serializer import Serializer
from pairpool.transport.wire import Buffer, ProtocolError

__all__ = [
    "Failure",
    "Fault",
    "describe_failure",
    "describe_result",
    "error_for_each",
    "missing_module",
    "pack_failures",
    "rebuild_exception",
    "safe",
    "short_call",
    "short_repr",
    "unpack_failures",
]


class Fault:
    """The kinds of failures."""

    RAISED = 0
    RESULT = 1  # the result could not be pickled
    ARGUMENT = 2  # the argument could not be unpickled
    FUNCTION = 3  # the function could not be unpickled
    ROOM = 4  # its descriptors did not fit into the worker's table


class Failure(NamedTuple):
    """The failure of one item, as plain data.

    Attributes:
        offset: the item's place in its batch.
        fault: one of the constants of `Fault`.
        pickled: the exception; None if it cannot be pickled or unpickled.
        kind: the name of the exception's type. If the result could not be pickled: the repr of the exception.
        text: the text of the exception. If the result could not be pickled: the repr of the result.
        remote: the formatted traceback.
        missing: the module in which an unpickler did not find a name; None if that is not the reason.
    """

    offset: int
    fault: int
    pickled: bytes | None
    kind: str
    text: str
    remote: str
    missing: str | None = None


MAX_FAILURES_BYTES = (1 << 32) - 1
"""Bytes of the pickled failures of one report: the header counts them in 4 bytes."""

CUT_TEXT_CHARS = 10_000
"""Characters that are left of each text of a failure that is too large."""


def pack_failures(failures: list[Failure]) -> bytes:
    """Return the failures as bytes. If they are too many bytes, the largest arrive without the exception's object."""
    packed = pickle.dumps([tuple(failure) for failure in failures], 5)
    if len(packed) <= MAX_FAILURES_BYTES:
        return packed
    share = MAX_FAILURES_BYTES // len(failures)
    return pickle.dumps([tuple(_without_bulk(failure, share)) for failure in failures], 5)


def _without_bulk(failure: Failure, share: int) -> Failure:
    """Return a failure that takes at most `share` bytes. Texts of the larger ones are cut to fit."""
    size = len(failure.pickled or b"") + 4 * (len(failure.kind) + len(failure.text) + len(failure.remote)) + 200
    if size <= share:
        return failure
    left = min(CUT_TEXT_CHARS, share // 16)
    text = f"{failure.text[:left]} [the exception is too large to be sent: about {size:,} bytes]"
    return failure._replace(pickled=None, kind=failure.kind[:left], text=text, remote=failure.remote[-left:])


def unpack_failures(content: Buffer, count: int) -> list[Failure]:
    """Return the failures of a report on `count` items. Raise `ProtocolError` if it cannot have such failures."""
    try:
        entries = list(pickle.loads(content))
    except Exception as error:
        raise ProtocolError(f"the failures of a report cannot be read: {type(error).__name__}") from None
    if not all(_is_failure(entry, count) for entry in entries):
        raise ProtocolError("a report has impossible failures")
    return [Failure(*entry) for entry in entries]


def _is_failure(entry: Any, count: int) -> bool:
    """Return whether these are the fields of a `Failure` in a report on `count` items."""
    kinds: tuple[Any, ...] = (int, int, (bytes, type(None)), str, str, str, (str, type(None)))
    return (
        type(entry) is tuple
        and len(entry) == len(kinds)
        and all(isinstance(field, kind) for field, kind in zip(entry, kinds, strict=True))
        and 0 <= entry[0] < count
    )


def safe(text: Callable[[], str]) -> str:
    """Return the text that a function returns, or a placeholder if the function raises."""
    try:
        return text()
    except BaseException as error:
        return f"<unprintable: {type(error).__name__}>"


def error_for_each(error: BaseException, count: int) -> list[BaseException]:
    """Return `count` exceptions for items that fail for the same reason. They are copies, not the same object."""
    from cloudpickle import cloudpickle

    errors = [error]
    try:
        pickled = cloudpickle.dumps(error) if count > 1 else b""
        while len(errors) < count:
            errors.append(pickle.loads(pickled))
    except Exception:  # the exception cannot be copied
        text = f"{type(error).__name__}: {safe(lambda: str(error))}"
        errors += [RuntimeError(text) for _ in range(count - len(errors))]
    if count > 1:
        from pairpool.errors import with_cause

        for one in errors[1:]:
            with_cause(one.with_traceback(error.__traceback__), error.__cause__)
    return errors[:count]


REPR_CHARACTERS = 120
"""Characters of the repr of an argument in errors and views."""


class _ShortRepr(reprlib.Repr):
    """Make reprs at little cost, however large the object is."""

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
    """Return a repr of one line and at most `REPR_CHARACTERS` characters. Never raise."""
    text = " ".join(safe(lambda: _short.repr(thing)).split())
    return text if len(text) <= REPR_CHARACTERS else text[: REPR_CHARACTERS - 1] + "…"


def short_call(args: Any, kwds: Any = None) -> str:
    """Return the arguments of a call as they are written in code, as short as `short_repr` makes them."""
    shown = [short_repr(one) for one in list(args)[:4]] + (["…"] if len(args) > 4 else [])
    shown += [f"{name}={short_repr(value)}" for name, value in list((kwds or {}).items())[:4]]
    text = ", ".join(shown)
    return f"({text if len(text) <= REPR_CHARACTERS else text[: REPR_CHARACTERS - 1] + '…'})"


def describe_failure(
    serializer: Serializer, offset: int, fault: int, error: BaseException, missing: str | None = None
) -> Failure:
    """Describe an exception, without a reference to it or to its frames."""
    inner = error.__traceback__
    if inner is not None and inner.tb_next is not None:
        inner = inner.tb_next  # the first frame belongs to the worker's own code
    remote = safe(lambda: "".join(traceback.format_exception(type(error), error, inner)))
    pickled = None
    for attempt in (_dump_exception, _dump_taken_apart):
        try:
            pickled = attempt(serializer, error)
            pickle.loads(pickled)
            break
        except BaseException:
            pickled = None  # the exception cannot be pickled this way: try the next way, or send the texts alone
    cls = type(error)
    return Failure(offset, fault, pickled, cls.__qualname__, safe(lambda: str(error)), remote, missing)


def describe_result(serializer: Serializer, offset: int, error: BaseException, value: Any) -> Failure:
    """Describe the exception that was raised while a result was pickled."""
    described = describe_failure(serializer, offset, Fault.RESULT, error)
    remote = safe(lambda: "".join(traceback.format_exception(error)))
    return described._replace(kind=safe(lambda: repr(error)), text=safe(lambda: repr(value)), remote=remote)


def _dump_exception(serializer: Serializer, error: BaseException) -> bytes:
    return serializer.dump_alone(error)


def _dump_taken_apart(serializer: Serializer, error: BaseException) -> bytes:
    """Pickle an exception so that it is rebuilt without its constructor, which may not accept `args`."""
    return serializer.dump_alone(_TakenApart(type(error), error.args, dict(error.__dict__)))


class _TakenApart:
    def __init__(self, cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> None:
        self.parts = (cls, args, attributes)

    def __reduce__(self) -> Any:
        return rebuild_exception, self.parts


def rebuild_exception(cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    """Return an exception with these contents, without a call of its class's constructor."""
    error = cls.__new__(cls, *args)
    BaseException.__init__(error, *args)
    error.__dict__.update(attributes)
    return error


class _Finder(pickle.Unpickler):
    """Repeat an unpickling that failed, to learn in which module a name was missing."""

    missing: str | None = None

    def find_class(self, module: str, name: str) -> Any:
        try:
            found = super().find_class(module, name)
        except (AttributeError, ImportError):
            self.missing = module
            raise
        return found if found not in BUILDERS else lambda *_: None  # the first unpickling has taken the descriptors


def missing_module(pickled: Buffer, error: BaseException) -> str | None:
    """Return the module in which an unpickler did not find a name; None if it failed for another reason."""
    if not isinstance(error, (AttributeError, ImportError)):
        return None
    finder = _Finder(io.BytesIO(bytes(pickled)), buffers=())
    try:
        finder.load()
    except BaseException:
        return finder.missing
    return None
