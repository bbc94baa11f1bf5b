"""The values that a function carries with it if it travels by value."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType
from typing import Any

__all__ = ["captured", "own_values"]


def captured(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield a description and the value of each global, captured variable and default that a callable carries.

    The arguments of a partial and the object of a bound method belong to them, too.
    """
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
        yield from _described_own_values(function)


def own_values(function: FunctionType) -> Iterator[Any]:
    """Yield the values that belong to one function only: its captured variables and its defaults."""
    return (value for _name, value in _described_own_values(function))


def _described_own_values(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"captured variable {name!r}", cell.cell_contents
        except ValueError:
            pass  # the variable has no value yet
    yield from (("a default value", value) for value in function.__defaults__ or ())
    yield from ((f"the default of {name!r}", value) for name, value in (function.__kwdefaults__ or {}).items())


def _names_used(code: Any) -> list[str]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if type(constant) is type(code):
            names.update(dict.fromkeys(_names_used(constant)))
    return list(names)
