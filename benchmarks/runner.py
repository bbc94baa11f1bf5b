"""Run fresh processes in turns: each round measures every case with every library, one after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.model import Case, Curve, Limit

ROOT = Path(__file__).parent.parent
KILL_AFTER_S = 120.0
"""Seconds after which a measurement is killed."""

ONCE_IF_LONGER_S = 60.0
"""A measurement that took more seconds than this is not repeated."""

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One planned process: a case or a curve with a library, or a limit, whose library is `limit`."""

    kind: str
    name: str
    library: str
    repetition: int


def measure(turn: Turn, scale: float = 1.0, patience: float = KILL_AFTER_S) -> Outcome:
    """Run one turn in its own process. Return `values`, `points` or `trouble`, and the `seconds` that it took."""
    command = [sys.executable, "-m", "benchmarks.child", turn.kind, turn.name, turn.library, str(scale)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            child.wait(patience)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end_group(child)
        seconds = time.monotonic() - start
        for file in (out, err):
            file.seek(0)
        found = _read(out.read().decode(), err.read().decode(errors="replace"), child.returncode)
    if late:
        found = {"trouble": f"killed after {patience:g} s"}
    return {**found, "seconds": round(seconds, 2)}


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the child, and all processes of its group."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def _read(out: str, err: str, status: int) -> Outcome:
    """Return the outcome in the last line of stdout; if there is none, the last line of stderr as `trouble`."""
    lines = out.strip().splitlines()
    if status == 0 and lines:
        found: Outcome = json.loads(lines[-1])
        return found
    told = err.strip().splitlines()
    return {"trouble": f"failed with status {status}: {told[-1] if told else 'no output'}"[:200]}


def turns(
    cases: Sequence[Case], limits: Sequence[Limit], curves: Sequence[Curve], libraries: Sequence[str], repeat: int
) -> Iterator[Turn]:
    """Yield all turns in order: in each round case by case, and each round begins with another library.

    The libraries of a case follow one another closely, so that other load of the machine affects all of them. Curves
    are measured once, after the first round.
    """
    for repetition in range(repeat):
        shift = repetition % len(libraries) if libraries else 0
        order = [*libraries[shift:], *libraries[:shift]]
        for limit in limits:
            yield Turn("limit", limit.name, "limit", repetition)
        for case in cases:
            for library in order:
                if library not in case.without:
                    yield Turn("case", case.name, library, repetition)
        if repetition == 0:
            for curve in curves:
                for library in order:
                    if library not in curve.without:
                        yield Turn("curve", curve.name, library, repetition)


def run(
    planned: Iterable[Turn], tell: Callable[[str], None], measure_one: Callable[[Turn], Outcome] = measure
) -> tuple[list[Outcome], list[Outcome]]:
    """Measure all turns, but repeat none that took too long. Return the runs of cases and limits, and the curves."""
    runs: list[Outcome] = []
    curves: list[Outcome] = []
    slow: set[tuple[str, str]] = set()
    for turn in planned:
        if (turn.name, turn.library) in slow:
            continue
        found = measure_one(turn)
        tell(_line(turn, found))
        if found["seconds"] > ONCE_IF_LONGER_S:
            slow.add((turn.name, turn.library))
            found["trouble"] = found.get("trouble") or "took over a minute: measured once"
        if turn.kind == "curve":
            curves.append({"curve": turn.name, "library": turn.library, **found})
        else:
            runs.append({"case": turn.name, "library": turn.library, **found})
    return runs, curves


def _line(turn: Turn, found: Outcome) -> str:
    values = found.get("values", {})
    told = found.get("trouble") or ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    told = told or f"{len(found.get('points', ()))} points"
    return f"{turn.repetition + 1}  {turn.name:24} {turn.library:20} {told}  ({found['seconds']:.1f} s)"
