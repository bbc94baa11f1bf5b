"""The options of pools and calls: declared once, checked once, passed whole.

    keywords of a face ─► PoolOptions ─► open_pool          every option of a pool
                              │ .calls
                              ▼
                          CallOptions ─► job                what each call may override

To add an option of a pool, add a field to `PoolOptions`, a line to the keywords below, and a parameter to `Pool`, which
type checkers and `help` need. To add an option of a call, do the same with `CallOptions`, `Limits` and the methods of
`Pool`. `tests/test_options.py` compares the signatures of all faces with these classes, and names what is missing.
"""

from __future__ import annotations

import errno
import logging
import operator
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from pairpool.linux import cgroup
from pairpool.linux.memory import memory_usage_of, parse_size
from pairpool.master.jobs.call_options import (
    DEFAULTS,
    CallOptions,
    RetryOn,
    check_buffersize,
    check_chunksize,
    check_seconds,
)
from pairpool.scoreboard.board import PoolWord

if TYPE_CHECKING:
    from pairpool.output_lines import OutputLine

__all__ = [
    "DEFAULTS",
    "DERIVED_OPTIONS",
    "POSITIONAL_OPTIONS",
    "START_METHODS",
    "CallOptions",
    "ExecutorKeywords",
    "ItemKeywords",
    "Limits",
    "PoolKeywords",
    "PoolOptions",
    "RetryOn",
    "SharedKeywords",
    "WorkerKeywords",
    "check_buffersize",
    "check_chunksize",
    "check_processes",
    "check_seconds",
    "names_of_options",
]

START_METHODS = PoolWord.METHODS


class Limits(TypedDict, total=False):
    """The keywords of each call that override those of `Pool`, which describes them. None keeps the pool's."""

    task_timeout: float | None
    retries: int | None
    retry_on: RetryOn | None


class WorkerKeywords(TypedDict, total=False):
    """The keywords about a worker's life. `Pool` describes them."""

    initializer: Callable[..., object] | None
    initargs: Iterable[Any]
    maxtasksperchild: int | None


class ItemKeywords(TypedDict, total=False):
    """The keywords that limit what an item may use. `Pool` describes them."""

    task_timeout: float | None
    retries: int
    retry_on: RetryOn
    memory_limit: int | str | None
    start_timeout: float | None


class SharedKeywords(ItemKeywords, total=False):
    """The keywords that all faces of a pool on this machine take. `Pool` describes them."""

    start_method: str
    name: str | None
    chunksize: int | None
    trace: str | os.PathLike[str] | None
    capture: bool | Callable[[OutputLine], object]
    log_level: int | str | None


class ExecutorKeywords(SharedKeywords, total=False):
    """The keywords that `Executor` takes in addition to those of `concurrent.futures`."""

    live: bool


class PoolKeywords(SharedKeywords, WorkerKeywords, total=False):
    """The keywords that `AsyncPool` takes in addition to `processes` and `live`."""


class PoolOptions(NamedTuple):
    """All options of a pool, as `Pool` describes them; and behind them what `checked` derives from them.

    A NamedTuple and not a dataclass, because the import of `dataclasses` takes longer than a pool takes to open.

    Args:
        workers: the number of workers that the pool keeps at first.
        calls: the options of calls that override nothing.
        memory_bytes: `memory_limit` as a number of bytes.
        log_number: `log_level` as a number.
    """

    processes: int | None = None
    initializer: Callable[..., object] | None = None
    initargs: Iterable[Any] = ()
    maxtasksperchild: int | None = None
    start_method: str = "fork"
    name: str | None = None
    task_timeout: float | None = None
    retries: int = 0
    retry_on: RetryOn = ()
    memory_limit: int | str | None = None
    start_timeout: float | None = None
    chunksize: int | None = None
    live: bool = False
    trace: str | os.PathLike[str] | None = None
    capture: bool | Callable[[OutputLine], object] = False
    log_level: int | str | None = None

    workers: int = 0
    calls: CallOptions = DEFAULTS
    memory_bytes: int | None = None
    log_number: int | None = None

    def checked(self) -> PoolOptions:
        """Return these options with the derived ones.

        Raises:
            TypeError, ValueError: an option is of the wrong type or out of range.
            OSError: the platform does not offer what an option needs.
        """
        workers = check_processes(cgroup.cpu_allowance() if self.processes is None else self.processes)
        tasks: Any = self.maxtasksperchild
        if tasks is not None and (not isinstance(tasks, int) or tasks <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if self.initializer is not None and not callable(self.initializer):
            raise TypeError("initializer must be a callable")
        if self.start_method not in START_METHODS:
            raise ValueError(f"start_method must be one of {', '.join(START_METHODS)}, not {self.start_method!r}")
        calls = DEFAULTS.override(self.task_timeout, self.retries, self.retry_on, self.chunksize)
        memory_bytes = None if self.memory_limit is None else parse_size(self.memory_limit)
        if memory_bytes is not None and memory_usage_of(os.getpid()) is None:
            raise OSError(errno.ENOENT, "memory_limit needs /proc")
        return self._replace(
            workers=workers,
            calls=calls,
            memory_bytes=memory_bytes,
            start_timeout=check_seconds(self.start_timeout, "start_timeout"),
            capture=_check_capture(self.capture) or bool(self.live),
            log_number=_check_log_level(self.log_level),
            initargs=tuple(self.initargs),
        )


_OPTION_NAMES = tuple(PoolOptions.__annotations__)

POSITIONAL_OPTIONS = _OPTION_NAMES[:4]
"""The options of a pool that may be positional, as those of `multiprocessing.Pool`."""

DERIVED_OPTIONS = _OPTION_NAMES[-4:]
"""What `PoolOptions.checked` adds to the options."""


def names_of_options(*, keyword_only: bool = False) -> frozenset[str]:
    """Return the names of the parameters of `Pool`, or of those that cannot be positional."""
    left_out = DERIVED_OPTIONS + (POSITIONAL_OPTIONS if keyword_only else ())
    return frozenset(_OPTION_NAMES).difference(left_out)


def check_processes(processes: int) -> int:
    """Return a number of workers. The error texts are those of `multiprocessing`."""
    try:
        number = operator.index(processes)
    except TypeError:
        raise TypeError(f"processes must be a positive int, not {processes!r}") from None
    if number < 1:
        raise ValueError("Number of processes must be at least 1")
    return number


def _check_capture(capture: bool | Callable[..., object]) -> bool | Callable[..., object]:
    if not isinstance(capture, bool) and not callable(capture):
        raise TypeError(f"capture must be True, False or a function of one line, not {capture!r}")
    return capture


def _check_log_level(level: int | str | None) -> int | None:
    """Return the number of a level of logging that is given by number or name."""
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
