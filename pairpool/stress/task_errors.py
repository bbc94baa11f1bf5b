"""The exceptions that tasks raise, by flavour."""

from __future__ import annotations

import threading

__all__ = ["FLAVOURS", "make", "token"]


class Attributed(Exception):
    """Carries attributes beside its arguments."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.details = {"text": text, "numbers": [1, 2, 3]}


class Demanding(Exception):
    """Its constructor wants other arguments than `args` holds."""

    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(f"{text} with code {code}")
        self.code = code


class Wilful(BaseException):
    """Is no `Exception`."""


class Attached(Exception):
    """Holds a lock, and so cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Inconstant(Exception):
    """Can be pickled, but not unpickled; it must arrive all the same."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("not a number",)


FLAVOURS = 16


def token(index: int) -> str:
    """What the text of every exception of a task has in it."""
    return f"<task {index}>"


def make(index: int, flavour: int) -> BaseException:
    """The exception of task `index`."""
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
    error = LookupError(text)
    error.__cause__ = ArithmeticError(f"the cause of {text}")
    return error
