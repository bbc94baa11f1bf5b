"""The cases, limits and curves, and the arithmetic on their results. No clocks and no files.

All figures are costs: less is better.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.peers import Peer

Values = dict[str, float]
"""The figures of one run of a case, by field, in the unit of the field. The main field is `VALUE`."""

VALUE = "value"
OURS = "pairpool"
STANDARD = "multiprocessing"

SLOW_TO_START = {"ray": "the start takes seconds"}
"""For `Case.without`: libraries whose figure is not worth the time."""


@dataclass(frozen=True)
class Aim:
    """A bound on the cost of pairpool: `factor` times the median of another library or limit, or `factor` itself."""

    factor: float
    of: str = ""
    """A library, `"limit"` for the limit of the case, or empty for a bound in the unit of the field."""

    field: str = VALUE

    def __str__(self) -> str:
        return f"≤ {self.factor:g} × {self.of}" if self.of else f"≤ {self.factor:g}"


@dataclass(frozen=True)
class Case:
    """One measurement, done in the same way with each library.

    `size` scales the measurement and is mostly a number of tasks. `caps` has smaller sizes for slow libraries.
    """

    name: str
    title: str
    unit: str
    run: Callable[[Peer, int], Values]
    size: int = 1
    group: str = ""
    aims: tuple[Aim, ...] = ()
    limit: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    """Further fields, each with its title, which includes the unit."""

    caps: Mapping[str, int] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    """The libraries that are left out, with the reasons."""

    remarks: tuple[str, ...] = ()
    is_total: bool = False
    """Whether the figure grows with the size. Then libraries with a cap cannot be compared."""

    is_left_open: bool = False
    """Whether the pool is not closed. Then its process ends without waiting for the pool."""

    @property
    def apart(self) -> frozenset[str]:
        """The libraries whose figures cannot be compared with those of other libraries."""
        return frozenset(self.caps) if self.is_total else frozenset()

    def size_for(self, library: str, scale: float = 1.0) -> int:
        """Return the size for one library. Tests use a `scale` below 1."""
        return max(1, round(self.caps.get(library, self.size) * scale))


@dataclass(frozen=True)
class Limit:
    """The time that the machine, or one process, needs for the least work of a case."""

    name: str
    title: str
    unit: str
    run: Callable[[], Values]


@dataclass(frozen=True)
class Curve:
    """The growth of a cost. `run` yields points until it has all of them or becomes too slow."""

    name: str
    title: str
    x: str
    y: str
    run: Callable[[Peer, list[int]], Iterable[tuple[float, Values]]]
    xs: tuple[int, ...]
    caps: Mapping[str, int] = field(default_factory=dict)
    """The largest x of a library."""

    without: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """The median and the extremes of some measurements."""

    middle: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of some values. Raises `ValueError` if there are none."""
        found = sorted(values)
        if not found:
            raise ValueError("no measurements")
        return cls(median(found), found[0], found[-1], len(found))


@dataclass(frozen=True)
class Verdict:
    """An aim, and the figure of pairpool in the terms of the aim."""

    aim: Aim
    reached: float

    @property
    def is_met(self) -> bool:
        return self.reached <= self.aim.factor


class Results:
    """The measurements of one run of the suite, as results.json contains them."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.meta: Mapping[str, Any] = data["meta"]
        self.curves: list[Mapping[str, Any]] = list(data.get("curves", ()))
        self._runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for run in data["runs"]:
            self._runs.setdefault((run["case"], run["library"]), []).append(run)

    def libraries(self) -> list[str]:
        """Return the libraries that ran, in the order of the run."""
        return list(dict.fromkeys(library for _, library in self._runs if library != "limit"))

    def has(self, case: str) -> bool:
        return any(name == case for name, _ in self._runs)

    def curves_of(self, name: str) -> list[Mapping[str, Any]]:
        """Return the curves with this name, one per library."""
        return [curve for curve in self.curves if curve["curve"] == name]

    def spread(self, case: str, library: str, field: str = VALUE) -> Spread | None:
        """Return the spread of a figure; None if there is no figure."""
        runs = self._runs.get((case, library), ())
        values = [run["values"][field] for run in runs if field in run.get("values", {})]
        return Spread.of(values) if values else None

    def trouble(self, case: str, library: str) -> str:
        """Return why figures are missing; empty if none is missing."""
        told = [run["trouble"] for run in self._runs.get((case, library), ()) if run.get("trouble")]
        return "; ".join(dict.fromkeys(told))

    def ranking(self, case: str) -> list[tuple[str, Spread]]:
        """Return all libraries that have a figure, the cheapest first."""
        found = [(library, self.spread(case, library)) for library in self.libraries()]
        return sorted(((name, one) for name, one in found if one), key=lambda pair: pair[1].middle)

    def best_peer(self, case: str, apart: Collection[str] = ()) -> tuple[str, Spread] | None:
        """Return the cheapest library besides pairpool and those in `apart`."""
        return next(((name, one) for name, one in self.ranking(case) if name != OURS and name not in apart), None)

    def ratio(self, case: str, of: str, field: str = VALUE) -> float | None:
        """Return the median of pairpool divided by that of another library, or of a limit (`"limit:NAME"`)."""
        ours = self.spread(case, OURS, field)
        kind, _, limit = of.partition(":")
        other = self.spread(limit, "limit") if kind == "limit" else self.spread(case, of, field)
        if ours is None or other is None or other.middle == 0:
            return None
        return ours.middle / other.middle

    def verdicts(self, case: Case) -> list[Verdict]:
        """Return a verdict for each aim that the measurements can judge."""
        found = []
        for aim in case.aims:
            if aim.of:
                reached = self.ratio(case.name, f"limit:{case.limit}" if aim.of == "limit" else aim.of, aim.field)
            else:
                ours = self.spread(case.name, OURS, aim.field)
                reached = ours.middle if ours else None
            if reached is not None:
                found.append(Verdict(aim, reached))
        return found
