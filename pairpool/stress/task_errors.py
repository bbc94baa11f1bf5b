"""The exceptions that tasks raise. The plan chooses one by its number."""

from __future__ import annotations

import threading

from pairpool.errors import with_cause

__all__ = ["FLAVOURS", "make", "token"]


class Attributed(Exception):
    """An exception with attributes in addition to its arguments."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.details = {"text": text, "numbers": [1, 2, 3]}


class Demanding(Exception):
    """An exception whose constructor takes other arguments than `args` contains."""

    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(f"{text} with code {code}")
        self.code = code


class Wilful(BaseException):
    """An exception that is not an `Exception`."""


class Attached(Exception):
    """An exception that contains a lock, and so cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Inconstant(Exception):
    """An exception that can be pickled but not unpickled. It must arrive nevertheless."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("not a number",)


FLAVOURS = 16
"""Number of different exceptions that `make` returns."""


def token(index: int) -> str:
    """Return a text that every exception of a task contains."""
    return f"<task {index}>"


def make(index: int, flavour: int) -> BaseException:
    """Return the exception of a task."""
    text = token(index)
    plain: tuple[type[BaseException], ...] = (
        ValueError, KeyError, RuntimeError, SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, Wilful,
        Attributed, Attached, Inconstant,
    )  # fmt: skip
    if flavour < len(plain):
        return plain[flavour](text)
    if flavour == 11:
        return FileNotFoundError(2, text, f"/nowhere/{index}")
    if flavour == 12:
        return UnicodeDecodeError("utf-8", b"\xff\xfe", 0, 1, text)
    if flavour == 13:
        return Demanding(text, code=index)
    if flavour == 14:
        return BaseExceptionGroup(text, [ValueError(index), ExceptionGroup("inner", [KeyError(text), OSError(5, "x")])])
    return with_cause(LookupError(text), ArithmeticError(f"the cause of {text}"))
