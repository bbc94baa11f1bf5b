"""Failures of items on their way to the master: exceptions taken apart so that they always arrive."""

from __future__ import annotations

import io
import pickle
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from pairpool.wire.channel import Buffer
from pairpool.wire.codec import Codec

__all__ = ["Failure", "Fault", "describe_failure", "missing_module", "rebuild_exception", "safe"]


class Fault:
    """What kind of failure an item had."""

    RAISED = 0
    RESULT = 1  # the result could not be pickled
    ARGUMENT = 2  # the argument could not be unpickled
    FUNCTION = 3  # the function could not be unpickled


class Failure(NamedTuple):
    """One item's failure on its way to the master; plain data, so that it always arrives."""

    offset: int
    fault: int
    pickled: bytes | None  # the exception, if it can travel
    kind: str  # its type's name
    text: str
    remote: str  # the formatted traceback
    missing: str | None = None  # module in which something was not found


def safe(text: Callable[[], str]) -> str:
    """`repr` or `str` of something that may raise."""
    try:
        return text()
    except BaseException as error:
        return f"<unprintable: {type(error).__name__}>"


def describe_failure(
    codec: Codec, offset: int, fault: int, error: BaseException, missing: str | None = None
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


def _dump_exception(codec: Codec, error: BaseException) -> bytes:
    return codec.dump_alone(error)


def _dump_taken_apart(codec: Codec, error: BaseException) -> bytes:
    """For exceptions whose constructor does not take what they hold in `args`: without the constructor."""
    return codec.dump_alone(_TakenApart(type(error), error.args, dict(error.__dict__)))


class _TakenApart:
    def __init__(self, cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> None:
        self.parts = (cls, args, attributes)

    def __reduce__(self) -> Any:
        return rebuild_exception, self.parts


def rebuild_exception(
    cls: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
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
            return super().find_class(module, name)
        except (AttributeError, ImportError):
            self.missing = module
            raise


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
