"""The arguments of pools and calls: checked, with errors that say what is wrong, and in the form the engine takes."""

from __future__ import annotations

import logging
import math
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from pairpool.errors import WorkerDied
from pairpool.master.jobs.base import Policy

if TYPE_CHECKING:
    from pairpool.output_lines import OutputLine

__all__ = [
    "CommonOptions",
    "ExecutorOptions",
    "Limits",
    "PoolOptions",
    "RetryOn",
    "check_buffersize",
    "check_capture",
    "check_chunksize",
    "check_log_level",
    "check_processes",
    "check_seconds",
    "gather",
    "length_of",
    "make_policy",
]

RetryOn: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...]"


class Limits(TypedDict, total=False):
    """What each call may have of its own, as `Pool` describes it."""

    task_timeout: float | None
    retries: int | None
    retry_on: RetryOn | None


class CommonOptions(TypedDict, total=False):
    """Options of `Pool` that it describes, and that all who open one take."""

    start_method: str
    name: str | None
    task_timeout: float | None
    retries: int
    retry_on: RetryOn
    memory_limit: int | str | None
    start_timeout: float | None
    chunksize: int | None
    trace: str | os.PathLike[str] | None
    capture: bool | Callable[[OutputLine], object]
    log_level: int | str | None


class ExecutorOptions(CommonOptions, total=False):
    """Those that an executor takes beside its own."""

    live: bool


class PoolOptions(CommonOptions, total=False):
    """The options of `Pool`, which describes them."""

    initializer: Callable[..., object] | None
    initargs: Iterable[Any]
    maxtasksperchild: int | None


def make_policy(base: Policy, task_timeout: float | None, retries: int | None, retry_on: RetryOn | None) -> Policy:
    """`base` with what is not None, checked."""
    timeout = check_seconds(task_timeout, "task_timeout")
    timeout = base.timeout if timeout is None else timeout
    retries = base.retries if retries is None else operator.index(retries)
    if retries < 0:
        raise ValueError(f"retries must be 0 or more, not {retries}")
    kinds = base.retry_on
    if retry_on is not None:
        kinds = (WorkerDied, *(retry_on if isinstance(retry_on, tuple) else (retry_on,)))
        given: Iterable[Any] = kinds
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in given):
            raise TypeError(f"retry_on must be a type of exceptions or a tuple of such types, not {retry_on!r}")
    return Policy(None if timeout == math.inf else timeout, retries, kinds)


def check_seconds(seconds: float | None, name: str) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {seconds!r}")
    if not seconds > 0:
        raise ValueError(f"{name} must be positive, not {seconds!r}")
    return float(seconds)


def check_processes(processes: int) -> int:
    try:
        number = operator.index(processes)
    except TypeError:
        raise TypeError(f"processes must be a positive int, not {processes!r}") from None
    if number < 1:
        raise ValueError("Number of processes must be at least 1")
    return number


def check_chunksize(chunksize: int | None) -> int | None:
    if chunksize is None:
        return None
    try:
        number = operator.index(chunksize)
    except TypeError:
        raise TypeError(f"chunksize must be an int or None, not {chunksize!r}") from None
    if number < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
    return number


def check_buffersize(buffersize: int | None) -> int | None:
    if buffersize is None:
        return None
    if not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    return buffersize


def check_capture(capture: bool | Callable[..., object]) -> bool | Callable[..., object]:
    if not isinstance(capture, bool) and not callable(capture):
        raise TypeError(f"capture must be True, False or a function of one line, not {capture!r}")
    return capture


def check_log_level(level: int | str | None) -> int | None:
    """The number of a level of logging, given by number or name."""
    if level is None:
        return None
    if isinstance(level, str):
        names = logging.getLevelNamesMapping()
        if level.upper() not in names:
            known = ", ".join(sorted(names, key=names.__getitem__))
            raise ValueError(f"log_level must be one of {known}, not {level!r}")
        return names[level.upper()]
    if isinstance(level, bool) or not isinstance(level, int):
        raise TypeError(f"log_level must be a level's number or name or None, not {level!r}")
    if level < 0:
        raise ValueError(f"log_level must be 0 or more, not {level}")
    return level


def gather(iterable: Iterable[Any], *, is_left: bool = False) -> tuple[Sequence[Any], BaseException | None]:
    """The items as something that can be sliced, and what the input raised after them, if it did.

    Args:
        is_left: whether the caller goes on before the items are used, and may change a list.
    """
    if type(iterable) in (tuple, range) or (type(iterable) is list and not is_left):
        return iterable, None  # type: ignore[return-value]
    items: list[Any] = []
    iterator = iter(iterable)
    try:
        items.extend(iterator)
    except Exception as error:
        return items, error
    return items, None


def length_of(iterable: Iterable[Any]) -> int | None:
    """How many items there are, of types that know it without running anybody's code."""
    known = type(iterable) in (list, tuple, range, dict, set, frozenset, str, bytes, deque)
    return len(iterable) if known else None  # type: ignore[arg-type]
