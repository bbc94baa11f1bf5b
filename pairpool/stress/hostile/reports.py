"""The order of a round, the report of a round, and the report of a whole hostile campaign."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pairpool.stress.hostile.record import Record

__all__ = ["RoundOrder", "RoundReport", "SiegeReport"]


@dataclass(frozen=True)
class RoundOrder:
    """The order of a round.

    Attributes:
        seed: determines all attacks.
        first: the number of the first attack.
        attacks: how many attacks there are.
        front: as in `attack.Orders`.
        limit_s: seconds in which each call must end.
        report_fd: the descriptor for the report.
        tag: the mark of the campaign.
    """

    seed: int
    first: int
    attacks: int
    front: str
    start_method: str
    workers: int
    limit_s: float
    report_fd: int
    tag: str


@dataclass(frozen=True)
class RoundReport:
    """The report of a round.

    Attributes:
        outcomes: number and end of each attack.
        exceptions: exceptions of other types that attacks ended with.
        misused: attacks whose `WorkerDied` says that the channel was misused.
        calls: calls of others that were checked.
        items: their items.
        ended: innocent items that ended with `WorkerDied` or `TaskTimeout`.
    """

    outcomes: list[tuple[int, str]] = field(default_factory=list)
    exceptions: dict[str, int] = field(default_factory=dict)
    misused: int = 0
    calls: int = 0
    items: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class SiegeReport:
    """The report of a campaign. `--json` writes it; the keys are stable.

    Attributes:
        deeds: for each last deed of an attack, how many of these attacks ended in which way.
        exceptions: exceptions of other types that attacks ended with.
        misused: attacks that ended with `WorkerDied` because the channel was misused.
        calls, items: calls of others that were checked, and their items.
        ended: items of others that ended with `WorkerDied` or `TaskTimeout` after an attack.
        masters_died: masters that died or hung.
        breaches: what must not happen, with the numbers of the attacks of the round.
    """

    order: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    rounds: int = 0
    attacks: int = 0
    packets: int = 0
    boards: int = 0
    deeds: dict[str, dict[str, int]] = field(default_factory=dict)
    exceptions: dict[str, int] = field(default_factory=dict)
    misused: int = 0
    calls: int = 0
    items: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    masters_died: int = 0
    breaches: list[str] = field(default_factory=list)

    def end(self, seconds: float) -> None:
        """Note how long the campaign took."""
        self.seconds = round(seconds, 3)

    @property
    def passed(self) -> bool:
        """Whether nothing happened that must not."""
        return not self.breaches

    def add(self, order: RoundOrder, record: Record, found: RoundReport, death: str) -> None:
        """Add a round. `death` says how its master died; empty if it lives."""
        self.rounds += 1
        self.misused += found.misused
        self.calls += found.calls
        self.items += found.items
        self.exceptions = dict(Counter(self.exceptions) + Counter(found.exceptions))
        self.ended = dict(Counter(self.ended) + Counter(found.ended))
        self.masters_died += death != ""
        self.breaches += [f"{_where(order)}: {text}" for text in [*found.breaches, death] if text]
        outcomes = dict(found.outcomes)
        for number in range(order.first, order.first + order.attacks):
            row = record.row(number)
            self.attacks += row.has_begun
            self.packets += row.packets
            self.boards += row.boards
            outcome = outcomes.get(number)
            if outcome is not None:
                ways = self.deeds.setdefault(row.deed or "not begun", {})
                ways[outcome] = ways.get(outcome, 0) + 1


def _where(order: RoundOrder) -> str:
    return f"{order.front}, attacks {order.first} to {order.first + order.attacks - 1}"
