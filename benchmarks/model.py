"""What is measured, what it is held against, and the arithmetic between: no clocks and no files here.

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
"""What one run of a case gives: figures by field, each in its field's unit. The main one is `VALUE`."""

VALUE = "value"
OURS = "pairpool"
STANDARD = "multiprocessing"

SLOW_TO_START = {"ray": "left out, for it takes seconds to start"}
"""What `Case.without` says where a figure would not be worth the time."""


@dataclass(frozen=True)
class Aim:
    """A bound on what pairpool may cost: `factor` times the median of another, or `factor` itself."""

    factor: float
    of: str = ""
    """A library, `"limit"` for the case's own limit, or nothing for a bound in the field's own unit."""

    field: str = VALUE

    def __str__(self) -> str:
        return f"≤ {self.factor:g} × {self.of}" if self.of else f"≤ {self.factor:g}"


@dataclass(frozen=True)
class Case:
    """One thing that a pool does, measured the same way on each library.

    `size` is what scales it, mostly a number of tasks; `caps` has smaller ones for libraries that would take too long.
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
    """Further fields, each with its title, unit included."""

    caps: Mapping[str, int] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    """Libraries that are left out, and why."""

    remark: str = ""
    is_total: bool = False
    """Whether the figure grows with the size, so that libraries with a cap cannot be compared."""

    is_left_open: bool = False
    """Whether the pool is not closed, so that its process has to end without waiting for it."""

    @property
    def apart(self) -> frozenset[str]:
        """The libraries whose figure cannot be compared with the others'."""
        return frozenset(self.caps) if self.is_total else frozenset()

    def size_for(self, library: str, scale: float = 1.0) -> int:
        """The size for one library; `scale` below 1 is for tests."""
        return max(1, round(self.caps.get(library, self.size) * scale))


@dataclass(frozen=True)
class Limit:
    """What the machine, or one process, takes for the least that a case needs."""

    name: str
    title: str
    unit: str
    run: Callable[[], Values]


@dataclass(frozen=True)
class Curve:
    """How a cost grows: `run` gives points until it has enough or is too slow."""

    name: str
    title: str
    x: str
    y: str
    run: Callable[[Peer, list[int]], Iterable[tuple[float, Values]]]
    xs: tuple[int, ...]
    caps: Mapping[str, int] = field(default_factory=dict)
    """The largest x for a library."""

    without: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of a few measurements, all in one unit."""

    middle: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises `ValueError` if there are no values."""
        found = sorted(values)
        if not found:
            raise ValueError("no measurements")
        return cls(median(found), found[0], found[-1], len(found))


@dataclass(frozen=True)
class Verdict:
    """An aim, what pairpool came to in the aim's own terms, and whether that is within it."""

    aim: Aim
    reached: float

    @property
    def is_met(self) -> bool:
        return self.reached <= self.aim.factor


class Results:
    """The measurements of one run of the suite, as they stand in results.json."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.meta: Mapping[str, Any] = data["meta"]
        self.curves: list[Mapping[str, Any]] = list(data.get("curves", ()))
        self._runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for run in data["runs"]:
            self._runs.setdefault((run["case"], run["library"]), []).append(run)

    def libraries(self) -> list[str]:
        """Those that ran at all, in the order of the run."""
        return list(dict.fromkeys(library for _, library in self._runs if library != "limit"))

    def has(self, case: str) -> bool:
        return any(name == case for name, _ in self._runs)

    def curves_of(self, name: str) -> list[Mapping[str, Any]]:
        """One for each library."""
        return [curve for curve in self.curves if curve["curve"] == name]

    def spread(self, case: str, library: str, field: str = VALUE) -> Spread | None:
        """None if there is no figure."""
        runs = self._runs.get((case, library), ())
        values = [run["values"][field] for run in runs if field in run.get("values", {})]
        return Spread.of(values) if values else None

    def trouble(self, case: str, library: str) -> str:
        """Why there is no figure, or fewer than there should be; empty if all went well."""
        told = [run["trouble"] for run in self._runs.get((case, library), ()) if run.get("trouble")]
        return "; ".join(dict.fromkeys(told))

    def ranking(self, case: str) -> list[tuple[str, Spread]]:
        """All libraries that have a figure, the cheapest first."""
        found = [(library, self.spread(case, library)) for library in self.libraries()]
        return sorted(((name, one) for name, one in found if one), key=lambda pair: pair[1].middle)

    def best_peer(self, case: str, apart: Collection[str] = ()) -> tuple[str, Spread] | None:
        """The cheapest other library, but for those that stand apart."""
        return next(((name, one) for name, one in self.ranking(case) if name != OURS and name not in apart), None)

    def ratio(self, case: str, of: str, field: str = VALUE) -> float | None:
        """pairpool's median over that of another library, or of a limit (as `"limit:NAME"`)."""
        ours = self.spread(case, OURS, field)
        kind, _, limit = of.partition(":")
        other = self.spread(limit, "limit") if kind == "limit" else self.spread(case, of, field)
        if ours is None or other is None or other.middle == 0:
            return None
        return ours.middle / other.middle

    def verdicts(self, case: Case) -> list[Verdict]:
        """One for each aim that can be judged by what was measured."""
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
