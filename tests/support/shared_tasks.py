"""Tasks for the tests of `Pool.share`. The module does not import numpy, although arguments are arrays."""

from __future__ import annotations

import os
import resource
from typing import Any

from tests.support.tasks import Odd, tell, wait_for

kept: list[Any] = []
inherited: Any = None


class Box:
    """An object that contains another one."""

    def __init__(self, name: str, content: Any) -> None:
        self.name = name
        self.content = content


class Loads:
    """Count the unpicklings in this process."""

    times = 0

    def __getstate__(self) -> object:
        return 1

    def __setstate__(self, _state: object) -> None:
        Loads.times += 1


class Unwilling:
    """An object that raises when it is unpickled."""

    def __getstate__(self) -> object:
        return 1

    def __setstate__(self, _state: object) -> None:
        raise LookupError("not here")


class Circle:
    """An object that refers to itself."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.me = self


def total(array: Any, _item: object = None) -> float:
    return float(array.sum())


def count_loads(_thing: Loads, _item: object = None) -> tuple[int, int]:
    return os.getpid(), Loads.times


def total_within(structure: dict[str, Any]) -> float:
    return float(structure["deep"][0].sum())


def total_of_box(box: Box) -> tuple[str, float]:
    return box.name, float(box.content.sum())


def increment(array: Any, _item: object = None) -> tuple[int, float]:
    """Write to the array. Later tasks of the same worker see the new value."""
    array[0] += 1
    return os.getpid(), float(array[0])


def identity_of(thing: Any, _item: object = None) -> tuple[int, int]:
    return os.getpid(), id(thing)


def same(one: Any, other: Any) -> bool:
    return one is other


def describe(array: Any) -> tuple[str, tuple[int, ...], str, bool, bool, bool]:
    flags = array.flags
    return type(array).__name__, array.shape, array.dtype.str, flags.writeable, flags.c_contiguous, flags.f_contiguous


def listed(array: Any) -> Any:
    return array.tolist()


def keyword(*, array: Any) -> float:
    return float(array.sum())


def of_view(view: memoryview) -> tuple[str, str, tuple[int, ...] | None, bool, int]:
    return type(view).__name__, view.format, view.shape, view.readonly, sum(view.cast("B")[:10])


def length_and_type(data: Any) -> tuple[int, str]:
    return len(data), type(data).__name__


def hold(reports: str, gate: str, array: Any, _item: object = None) -> float:
    """Read every page, report the pid, wait for the gate, and read every page again."""
    array.sum()
    tell(reports, os.getpid())
    wait_for(gate)
    return float(array.sum())


def keep(thing: Any) -> None:
    kept.append(thing)


def use_kept() -> float:
    return float(kept[-1].sum())


def shared_mappings(_item: object = None) -> int:
    with open("/proc/self/maps") as file:
        return sum("memfd:pairpool-share" in line for line in file)


def tell_and_total(reports: str, gate: str, array: Any, item: int) -> float:
    """Return the sum of the array. Item 0 reports and waits for the gate instead."""
    if item == 0:
        tell(reports, "running")
        wait_for(gate)
        return 0.0
    return float(array.sum())


def tell_or_measure(reports: str, gate: str, thing: Any, item: int) -> float:
    """Return the length of bytes, or `tell_and_total` of an array."""
    return float(len(thing)) if isinstance(thing, bytes) else tell_and_total(reports, gate, thing, item)


def star(function: Any, arguments: Any) -> Any:
    return function(*arguments)


def kind_of(thing: Any, _item: object = None) -> str:
    return type(thing).__name__


class Refuses:
    def __reduce__(self) -> Any:
        raise Odd("no")


def limit_address_space() -> int:
    """Limit the address space of this process to its present size and 32 MiB."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), resource.RLIM_INFINITY))
    return os.getpid()


def kind_of_inherited() -> str:
    return type(inherited).__name__


def return_inherited() -> Any:
    return inherited
