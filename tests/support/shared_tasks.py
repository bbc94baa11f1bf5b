"""What the tests of `Pool.share` have workers do; numpy is met only in what they are given."""

from __future__ import annotations

import os
import resource
from typing import Any

from tests.support.tasks import Odd, tell, wait_for

kept: list[Any] = []
inherited: Any = None


class Box:
    """Holds something beside a name."""

    def __init__(self, name: str, content: Any) -> None:
        self.name = name
        self.content = content


class Loads:
    """Counts how often it was unpickled in its process."""

    times = 0

    def __getstate__(self) -> object:
        return 1

    def __setstate__(self, _state: object) -> None:
        Loads.times += 1


class Unwilling:
    """Cannot be unpickled."""

    def __getstate__(self) -> object:
        return 1

    def __setstate__(self, _state: object) -> None:
        raise LookupError("not here")


class Circle:
    """Refers to itself."""

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
    """Write to the array; what is there now is seen by later tasks of the same worker."""
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
    """Touch every page, report it, wait for the gate, and touch every page again."""
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
    """Item 0 reports and waits for the gate; the others do not."""
    if item == 0:
        tell(reports, "running")
        wait_for(gate)
        return 0.0
    return float(array.sum())


def tell_or_measure(reports: str, gate: str, thing: Any, item: int) -> float:
    """`tell_and_total`, with the length of what is bytes."""
    return float(len(thing)) if isinstance(thing, bytes) else tell_and_total(reports, gate, thing, item)


def star(function: Any, arguments: Any) -> Any:
    return function(*arguments)


def kind_of(thing: Any, _item: object = None) -> str:
    return type(thing).__name__


class Refuses:
    def __reduce__(self) -> Any:
        raise Odd("no")


def limit_address_space() -> int:
    """Let this process have 32 MiB more than it has now."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), resource.RLIM_INFINITY))
    return os.getpid()


def kind_of_inherited() -> str:
    return type(inherited).__name__


def return_inherited() -> Any:
    return inherited
