"""The verdict: the checks at the end of a campaign, and the report as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from pairpool.stress.ledger import Ledger
from pairpool.stress.plan import LETHAL, TaskKind

__all__ = ["Evidence", "Kill", "Breach", "Sample", "excused", "pass_verdict"]

FEWEST_SAMPLES = 60
"""Seconds that a campaign must last for its memory to be judged."""

SLACK_BYTES = 64 << 20
SLACK_SHARE = 0.05
SLACK_DESCRIPTORS = 32


@dataclass(frozen=True)
class Kill:
    """One entry of the assassin's log.

    Attributes:
        time: monotonic seconds.
        signal: its name; `none` for an order that found no victim.
        pid: the victim.
        children: of a zygote, the processes that died with it; else None.
    """

    time: float
    signal: str
    pid: int
    children: list[int] | None = None


@dataclass(frozen=True)
class Sample:
    """The master at one moment: seconds since the start, bytes, descriptors, tasks ended."""

    seconds: float
    rss: int
    fds: int
    ended: int


@dataclass
class Evidence:
    """All that was seen beside the outcomes.

    Args:
        starts: how often each task started, one byte each.
        left: what was left behind, in words.
        orphans: processes that tasks left behind and no pool could end.
    """

    starts: bytes
    kills: list[Kill] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    orphans: int = 0
    seconds: float = 0.0


@dataclass
class Breach:
    """What `--json` writes; its keys are stable."""

    verdict: str
    order: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    tasks_dealt: int
    tasks_ended: int
    tasks_per_second: float
    kinds: dict[str, dict[str, int]]
    kills: dict[str, int]
    died_by_own_hand: int
    died_by_kill: int
    started_twice: int
    memory: dict[str, int]
    descriptors: dict[str, int]
    orphans: int
    breach_count: int
    breaches: list[dict[str, Any]]
    kill_log: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def excused(kills: list[Kill], start_method: str) -> set[int]:
    """Whose tasks' children no pool can end: those of workers that died with their zygote; without one, everybody's."""
    if start_method == "direct":
        return {-1}
    return {pid for kill in kills for pid in kill.children or ()}


def _victims(kills: list[Kill]) -> dict[int, set[int]]:
    """The exit statuses that kills explain, by pid."""
    codes = {"SIGKILL": -9, "SIGTERM": -15}
    found: dict[int, set[int]] = {}
    for kill in kills:
        if kill.signal in codes:
            found.setdefault(kill.pid, set()).add(codes[kill.signal])
        for pid in kill.children or ():
            found.setdefault(pid, set()).add(codes["SIGKILL"])
    return found


def _check_deaths(ledger: Ledger, kills: list[Kill]) -> int:
    """Returns how many deaths a kill explains."""
    unexplained = 0
    victims = _victims(kills)
    for died in ledger.died:
        codes = victims.get(died.pid)
        unexplained += 1
        if codes is None:
            ledger.breach("unexplained death", f"{died.kind} task {died.task}: {died.text}", died.task)
        elif died.exitcode is not None and died.exitcode not in codes:
            sent = ", ".join(str(-code) for code in sorted(codes))
            text = f"{died.kind} task {died.task}: {died.text}; but signal {sent} was sent"
            ledger.breach("unexplained death", text, died.task)
        else:
            unexplained -= 1
    return len(ledger.died) - unexplained


def _check_starts(ledger: Ledger, starts: bytes) -> int:
    """Returns how many tasks started more than once; a breach only for those that must not."""
    twice = len(starts) - starts.count(0) - starts.count(1)
    if twice and 1 in ledger.strict:
        for index, times in enumerate(starts[: ledger.dealt]):
            if times > 1 and ledger.strict[index]:
                ledger.breach("started twice", f"task {index} started {times} times", index)
    return twice


def _check_never_started(ledger: Ledger, starts: bytes) -> None:
    """Who has ended must have started, unless its worker died before it could."""
    died = {one.task for one in ledger.died}
    missing = set(ledger.unended())
    at = starts.find(0, 0, ledger.dealt)
    while at >= 0:
        if at not in died and at not in missing:
            ledger.breach("wrong outcome", f"task {at} ended and was never started", at)
        at = starts.find(0, at + 1, ledger.dealt)


def _check_growth(ledger: Ledger, samples: list[Sample]) -> tuple[dict[str, int], dict[str, int]]:
    """Compare the second quarter with the last; returns the figures of memory and of descriptors."""
    if not samples:
        return {}, {}
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]

    def figures(name: str) -> dict[str, int]:
        return {
            "first": getattr(samples[0], name),
            "second_quarter": int(median(getattr(one, name) for one in early)),
            "last_quarter": int(median(getattr(one, name) for one in late)),
            "most": max(getattr(one, name) for one in samples),
            "samples": len(samples),
        }

    memory, descriptors = figures("rss"), figures("fds")
    if len(samples) >= FEWEST_SAMPLES:
        before, after = memory["second_quarter"], memory["last_quarter"]
        if after > before * (1 + SLACK_SHARE) + SLACK_BYTES:
            ledger.breach("memory grew", f"from {before >> 20} MiB in the second quarter to {after >> 20} in the last")
        before, after = descriptors["second_quarter"], descriptors["last_quarter"]
        if after > before + SLACK_DESCRIPTORS:
            ledger.breach("descriptors grew", f"from {before} in the second quarter to {after} in the last")
    return memory, descriptors


def _kinds(ledger: Ledger) -> dict[str, dict[str, int]]:
    columns = ("count", "foretold", "died", "breaches")
    return {
        kind.name.lower(): {column: ledger.counts[kind][column] for column in columns}
        for kind in TaskKind
        if ledger.counts[kind]
    }


def pass_verdict(ledger: Ledger, evidence: Evidence, order: dict[str, Any], versions: dict[str, str]) -> Breach:
    """Make all checks that need the whole campaign, and sum up."""
    for index in ledger.unended():
        ledger.breach("never ended", f"task {index} was dealt and has no outcome", index)
    by_kill = _check_deaths(ledger, evidence.kills)
    twice = _check_starts(ledger, evidence.starts)
    _check_never_started(ledger, evidence.starts)
    for text in evidence.left:
        ledger.breach("left behind", text)
    unsent = order["kills"] - sum(kill.signal not in ("SIGCONT", "none") for kill in evidence.kills)
    if unsent > 0 and ledger.dealt == order["tasks"]:
        ledger.breach("kills missing", f"{unsent} of {order['kills']} kills found no victim")
    memory, descriptors = _check_growth(ledger, evidence.samples)
    kills = Counter(kill.signal if kill.children is None else "zygote" for kill in evidence.kills)
    return Breach(
        verdict="failed" if ledger.breach_count else "passed",
        order=order,
        versions=versions,
        seconds=round(evidence.seconds, 3),
        tasks_dealt=ledger.dealt,
        tasks_ended=ledger.ended,
        tasks_per_second=round(ledger.ended / evidence.seconds, 1) if evidence.seconds else 0.0,
        kinds=_kinds(ledger),
        kills=dict(sorted(kills.items())),
        died_by_own_hand=sum(ledger.counts[kind]["foretold"] for kind in LETHAL),
        died_by_kill=by_kill,
        started_twice=twice,
        memory=memory,
        descriptors=descriptors,
        orphans=evidence.orphans,
        breach_count=ledger.breach_count,
        breaches=[breach._asdict() for breach in ledger.breaches],
        kill_log=[asdict(kill) for kill in evidence.kills],
    )
