"""The functions that the workers of a node run: the client's function in a wrapper, and the client's initializer.

Functions of `__main__` travel by value, and each pickle carries global variables of its own. The initializer sets
global variables in its own copy only. So a worker does this:

1. `initialize` runs the client's initializer and keeps the global variables that the initializer has set.
2. Each function of `__main__` that is loaded later gets these variables.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pairpool.dask.messages import ItemMode
from pairpool.master.functions import Wrapper

__all__ = ["GuardedFunction", "initialize"]

_initialized: dict[str, Any] = {}
"""In a worker: the global variables of the program's main module that the initializer has set."""


class GuardedFunction(Wrapper):
    """A function that returns `(value, seconds)`, so that a value which is an exception differs from a failure."""

    def __init__(self, function: Callable[..., Any], mode: ItemMode) -> None:
        self.function = function
        self.mode = int(mode)
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # runs in a worker, when the worker loads the function
        self.__dict__.update(state)
        variables = _variables_of(self.function)
        if variables.get("__name__") == "__main__":
            variables.update(_initialized)

    def __call__(self, *args: Any, **kwds: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        value = self.function(*args[0]) if self.mode == ItemMode.STAR else self.function(*args, **kwds)
        return value, time.perf_counter() - began


def initialize(pickled: bytes) -> None:
    """Run the client's initializer in a worker. It arrives pickled by value, with its arguments."""
    initializer, arguments = pickle.loads(pickled)
    variables = _variables_of(initializer)
    before = dict(variables)
    initializer(*arguments)
    if variables.get("__name__") == "__main__":
        missing = object()
        _initialized.update({name: one for name, one in variables.items() if before.get(name, missing) is not one})


def _variables_of(function: Any) -> dict[str, Any]:
    """Return the global variables that a function, a method or a partial of one refers to."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    variables: dict[str, Any] | None = getattr(function, "__globals__", None)
    return {} if variables is None else variables
