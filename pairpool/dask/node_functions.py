"""The functions that the workers of a node run: the client's function in a wrapper, and the client's initializer.

Functions of `__main__` travel by value, and each pickle carries global variables of its own. The initializer sets
global variables in its own copy only. So a worker does this:

1. `initialize` runs the client's initializer and keeps the global variables that the initializer has set.
2. Each function of `__main__` that is loaded later gets these variables.
"""

from __future__ import annotations

import pickle
import time
from functools import partial
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]
from typing import Any

from pairpool.dask.messages import ItemMode
from pairpool.dask.opaque import loaded, serializer
from pairpool.dask.packing import FAILED, PLAIN, dumps
from pairpool.master.functions import Stateless
from pairpool.transport.failures import Failure, Fault, describe_failure, describe_result
from pairpool.transport.items import ATOMS, PlainWriter, is_immutable

__all__ = ["GuardedFunction", "RetryableFailure", "StatelessFunction", "initialize"]

MAP = int(ItemMode.MAP)

_writer = PlainWriter()
"""Pickles plain results in a worker."""

_initialized: dict[str, Any] = {}
"""In a worker: the global variables of the program's main module that the initializer has set."""


class RetryableFailure(Exception):
    """The failure of an item that is to run again, as a description. `args` are those of `Failure`."""


class GuardedFunction:
    """A function that is loaded in the workers only. It returns how the result travels, the result, and the seconds.

    An exception becomes a description, because the Dask worker must not load an exception either.

    Args:
        name: the name of the function.
        pickled: the pickle of the function, and of the exceptions after which an item runs again.
        mode: how the function is applied to an item.
        are_pairs: whether items are pairs, which `opaque.loaded` understands.
    """

    def __init__(self, name: str, pickled: bytes, mode: ItemMode, *, are_pairs: bool) -> None:
        self.__qualname__ = name
        self.pickled = pickled
        self.mode = int(mode)
        self.are_pairs = are_pairs

    def __setstate__(self, state: dict[str, Any]) -> None:
        # runs in a worker, when the worker loads the function
        self.__dict__.update(state)
        self.broken: Any = None
        try:
            self.function, self.retry_on = pickle.loads(self.pickled)
        except BaseException as error:
            self.broken = tuple(describe_failure(serializer, 0, Fault.FUNCTION, error))
            return
        variables = _variables_of(self.function)
        if variables.get("__name__") == "__main__":
            variables.update(_initialized)

    def __call__(self, item: Any) -> tuple[int, Any, float]:
        began = time.perf_counter()
        if self.are_pairs:
            kind, item = loaded(item)
            if kind != PLAIN:
                return FAILED, item, 0.0
        if self.broken is not None:
            return FAILED, self.broken, 0.0
        try:
            value = self.function(item) if self.mode == MAP else self._apply(item)
        except BaseException as error:
            failure = describe_failure(serializer, 0, Fault.RAISED, error)
            return self._failed(failure, type(error))
        seconds = time.perf_counter() - began
        if type(value) in ATOMS or is_immutable(value):
            return PLAIN, value, seconds
        try:
            return *dumps(value, _writer), seconds
        except BaseException as error:
            return self._failed(describe_result(serializer, 0, error, value), MaybeEncodingError)

    def _apply(self, item: Any) -> Any:
        if self.mode == ItemMode.STAR:
            return self.function(*item)
        args, kwds = item
        return self.function(*args, **kwds)

    def _failed(self, failure: Failure, kind: type[BaseException]) -> tuple[int, Any, float]:
        if issubclass(kind, self.retry_on):
            raise RetryableFailure(*failure)
        return FAILED, tuple(failure), 0.0


class StatelessFunction(GuardedFunction, Stateless):
    """A `GuardedFunction` whose function contains no object that a task can change."""


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
