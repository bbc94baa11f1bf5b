"""The calls of a batch of joblib. Each call runs as if it were alone.

1. In the caller's process, `separate` pickles the arguments of each call separately.
2. In the worker, no call sees what another call does to its arguments or to its result.
3. After a call, what it wrote to shared arrays is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pairpool.master.functions import has_state
from pairpool.pool import Pool
from pairpool.transport.items import is_immutable, standalone
from pairpool.transport.segments import Shared, restore
from pairpool.transport.serializer import Serializer

__all__ = ["run_batch", "separate"]

_serializer = Serializer()
"""The serializer of a worker, for results."""


def run_batch(batch: Callable[[], Any]) -> Any:
    """Run a batch of joblib, in a worker. It is an argument of the task, so that it travels as one object."""
    return batch()


def separate(calls: list[tuple[Any, Any, Any]], pool: Pool) -> list[tuple[Any, Any, Any]]:
    """Return the calls of a batch, such that no call sees what another call does to its arguments or its result."""
    found: list[tuple[Any, Any, Any]] = []
    for call, args, kwargs in calls:
        if is_immutable(args) and not kwargs and not has_state(call):
            found.append((_call_plainly, (call, *args), kwargs) if len(calls) > 1 else (call, args, kwargs))
            continue
        shared = tuple(_idents_in((*args, *kwargs.values())))
        if shared or len(calls) > 1:
            alone = pool.taken((call if has_state(call) else None, args, kwargs))
            found.append((_call_alone, (None if has_state(call) else call, alone, shared), {}))
        else:
            found.append((call, args, kwargs))
    return found


def _idents_in(values: Iterable[Any], depth: int = 1) -> Iterator[int]:
    """Yield the numbers of the shared arrays among arguments, or in lists, tuples and dicts that are arguments."""
    for value in values:
        if type(value) is Shared:
            yield value.ident
        elif depth and type(value) in (list, tuple, dict):
            yield from _idents_in(value.values() if type(value) is dict else value, depth - 1)


def _call_alone(call: Any, alone: tuple[Any, Any, Any], shared: tuple[int, ...]) -> Any:
    """Run a call of a batch, in a worker. Undo afterwards what it wrote to shared arrays.

    Args:
        alone: the callable if it has state, and the arguments. They were pickled separately.
        shared: the numbers of the shared arrays among the arguments.
    """
    own, args, kwargs = alone
    try:
        return _call_plainly(call if own is None else own, *args, **kwargs)
    finally:
        for ident in shared:
            restore(ident)


def _call_plainly(call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Return the result of a call, in a worker, or the pickle of the result if the next call may change it."""
    value = call(*args, **kwargs)
    if is_immutable(value):
        return value
    try:
        return standalone(_serializer.dump(value), value)
    except Exception:
        return value  # pickling the batch says why the result cannot be pickled
