"""The checks at the end of a campaign, and the report that contains their results."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from pairpool.stress.outcome_log import OutcomeLog
from pairpool.stress.plan import LETHAL, TaskKind

__all__ = ["CampaignReport", "Kill", "Observations", "Sample", "check_campaign", "excused"]

MIN_SAMPLES = 60
"""Samples, one per second, that are needed to judge the growth of memory and descriptors."""

GROWTH_ALLOWED_BYTES = 64 << 20
GROWTH_ALLOWED_SHARE = 0.05
GROWTH_ALLOWED_DESCRIPTORS = 32


@dataclass(frozen=True)
class Kill:
    """One entry of the killer's log.

    Attributes:
        time: monotonic seconds.
        signal: the name of the signal; `none` if there was no victim.
        pid: the victim.
        children: if the victim is a zygote, its children, which die with it. None for a worker.
    """

    time: float
    signal: str
    pid: int
    children: list[int] | None = None


@dataclass(frozen=True)
class Sample:
    """The master at one moment: seconds since the start, resident bytes, descriptors, tasks that have ended."""

    seconds: float
    rss: int
    fds: int
    ended: int


@dataclass(frozen=True)
class Observations:
    """The observations of a campaign, except the outcomes.

    Attributes:
        starts: how often each task started, one byte per task.
        left: what was left behind, in words.
        orphans: the number of processes that tasks left behind and that no pool can end.
        seconds: the duration of the campaign.
    """

    starts: bytes
    kills: list[Kill] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    orphans: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class CampaignReport:
    """The report, as `--json` writes it. The keys are stable."""

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
    """Return the workers whose orphans no pool can end.

    These are the workers that died with their zygote. Without a zygote it is every worker, which is -1.
    """
    if start_method == "direct":
        return {-1}
    return {pid for kill in kills for pid in kill.children or ()}


def _explained(kills: list[Kill]) -> dict[int, set[int]]:
    """Return by pid the exit statuses that kills explain."""
    codes = {"SIGKILL": -9, "SIGTERM": -15}
    found: dict[int, set[int]] = {}
    for kill in kills:
        if kill.signal in codes:
            found.setdefault(kill.pid, set()).add(codes[kill.signal])
        for pid in kill.children or ():
            found.setdefault(pid, set()).add(codes["SIGKILL"])
    return found


def _check_deaths(log: OutcomeLog, kills: list[Kill]) -> int:
    """Record deaths that no kill explains. Return how many deaths a kill explains."""
    unexplained = 0
    explained = _explained(kills)
    for died in log.died:
        codes = explained.get(died.pid)
        unexplained += 1
        if codes is None:
            log.breach("unexplained death", f"{died.kind} task {died.task}: {died.text}", died.task)
        elif died.exitcode is not None and died.exitcode not in codes:
            sent = ", ".join(str(-code) for code in sorted(codes))
            text = f"{died.kind} task {died.task}: {died.text}; but signal {sent} was sent"
            log.breach("unexplained death", text, died.task)
        else:
            unexplained -= 1
    return len(log.died) - unexplained


def _check_starts(log: OutcomeLog, starts: bytes) -> int:
    """Return how many tasks started more than once. Record a breach if a task must not."""
    twice = len(starts) - starts.count(0) - starts.count(1)
    if twice and 1 in log.strict:
        for index, times in enumerate(starts[: log.dealt]):
            if times > 1 and log.strict[index]:
                log.breach("started twice", f"task {index} started {times} times", index)
    return twice


def _check_never_started(log: OutcomeLog, starts: bytes) -> None:
    """Record tasks that ended without a start, except those whose worker died."""
    died = {one.task for one in log.died}
    missing = set(log.unended())
    at = starts.find(0, 0, log.dealt)
    while at >= 0:
        if at not in died and at not in missing:
            log.breach("wrong outcome", f"task {at} ended and was never started", at)
        at = starts.find(0, at + 1, log.dealt)


def _check_growth(log: OutcomeLog, samples: list[Sample]) -> tuple[dict[str, int], dict[str, int]]:
    """Compare the last quarter with the second. Return the figures of memory and of descriptors."""
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
    if len(samples) >= MIN_SAMPLES:
        before, after = memory["second_quarter"], memory["last_quarter"]
        if after > before * (1 + GROWTH_ALLOWED_SHARE) + GROWTH_ALLOWED_BYTES:
            log.breach("memory grew", f"from {before >> 20} MiB in the second quarter to {after >> 20} in the last")
        before, after = descriptors["second_quarter"], descriptors["last_quarter"]
        if after > before + GROWTH_ALLOWED_DESCRIPTORS:
            log.breach("descriptors grew", f"from {before} in the second quarter to {after} in the last")
    return memory, descriptors


_KEYS = {"predicted": "foretold"}
"""Keys of the report that differ from the names in the program, because the keys are stable."""


def _kinds(log: OutcomeLog) -> dict[str, dict[str, int]]:
    columns = ("count", "predicted", "died", "breaches")
    return {
        kind.name.lower(): {_KEYS.get(column, column): log.counts[kind][column] for column in columns}
        for kind in TaskKind
        if log.counts[kind]
    }


def check_campaign(
    log: OutcomeLog, seen: Observations, options: dict[str, Any], versions: dict[str, str]
) -> CampaignReport:
    """Make the checks that need the whole campaign, and return the report."""
    for index in log.unended():
        log.breach("never ended", f"task {index} was dealt and has no outcome", index)
    by_kill = _check_deaths(log, seen.kills)
    twice = _check_starts(log, seen.starts)
    _check_never_started(log, seen.starts)
    for text in seen.left:
        log.breach("left behind", text)
    unsent = options["kills"] - sum(kill.signal not in ("SIGCONT", "none") for kill in seen.kills)
    if unsent > 0 and log.dealt == options["tasks"]:
        log.breach("kills missing", f"{unsent} of {options['kills']} kills found no victim")
    memory, descriptors = _check_growth(log, seen.samples)
    kills = Counter(kill.signal if kill.children is None else "zygote" for kill in seen.kills)
    return CampaignReport(
        verdict="failed" if log.breach_count else "passed",
        order=options,
        versions=versions,
        seconds=round(seen.seconds, 3),
        tasks_dealt=log.dealt,
        tasks_ended=log.ended,
        tasks_per_second=round(log.ended / seen.seconds, 1) if seen.seconds else 0.0,
        kinds=_kinds(log),
        kills=dict(sorted(kills.items())),
        died_by_own_hand=sum(log.counts[kind]["predicted"] for kind in LETHAL),
        died_by_kill=by_kill,
        started_twice=twice,
        memory=memory,
        descriptors=descriptors,
        orphans=seen.orphans,
        breach_count=log.breach_count,
        breaches=[breach._asdict() for breach in log.breaches],
        kill_log=[asdict(kill) for kill in seen.kills],
    )
