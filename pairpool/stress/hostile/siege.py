"""Run a hostile campaign: rounds of attacks, each with a master of its own, until there were enough of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pairpool.stress import environment
from pairpool.stress.hostile import tables
from pairpool.stress.hostile.record import HOSTILE_MARK, Record
from pairpool.stress.hostile.reports import RoundOrder, RoundReport, SiegeReport
from pairpool.stress.report import progress

__all__ = ["HostileOptions", "besiege"]

ROUND_ATTACKS = {"packets": 1200, "own board": 600, "any board": 600}
"""Attacks of one round, by front, at most."""

LEAST_ATTACKS = 20
"""Attacks of one round, at least."""

DEEDS_PER_ATTACK = 3
"""About how many packets an attack sends, and how often it scribbles on a scoreboard."""

BREACHES_ALLOWED = 20
"""Breaches after which no further round begins."""

ROUND_LIMIT_FACTOR = 20
"""How many times the limit of a call a round may take, before its master counts as hung."""

LOOK_S = 0.05
"""Seconds between two looks at the progress of a round."""

LAST_WORDS = 1500
"""Characters of a master's error output that are shown if it dies."""


@dataclass(frozen=True)
class HostileOptions:
    """The options of the command line.

    Attributes:
        packets, boards: the number of packets and of scribbles after which the campaign ends.
        seconds: no round begins after this time.
        hang: seconds in which each call must end.
    """

    workers: int = 4
    packets: int = 100_000
    boards: int = 10_000
    seed: int = 1
    start_method: str = "fork"
    seconds: float | None = None
    hang: float = 60.0


class _Siege:
    """A campaign in progress.

    Args:
        show: called several times per second with the number of packets and boards so far, and with their final number.
    """

    def __init__(self, options: HostileOptions, show: Callable[[int, int], object]) -> None:
        self._options = options
        self._show = show
        self._tag = f"hostile-{os.getpid()}-{time.monotonic_ns()}"
        self._began_s = time.monotonic()
        self.report = SiegeReport(order=asdict(options))

    def run(self) -> None:
        """Run rounds until there were enough packets and boards."""
        first = 0
        for front in self._fronts():
            order = self._order(first, front)
            self._run_round(order)
            first += order.attacks
        self.report.end(time.monotonic() - self._began_s)

    def _fronts(self) -> Iterator[str]:
        """Yield what the next round attacks, until nothing is left to do."""
        report, options = self.report, self._options
        boards = 0
        while len(report.breaches) < BREACHES_ALLOWED:
            if options.seconds is not None and time.monotonic() - self._began_s > options.seconds and report.rounds:
                return
            wants = report.packets < options.packets, report.boards < options.boards
            if wants[0] and (not wants[1] or report.packets * options.boards <= report.boards * options.packets):
                yield "packets"
            elif wants[1]:
                boards += 1
                yield "own board" if boards % 2 else "any board"
            else:
                return

    def _order(self, first: int, front: str) -> RoundOrder:
        options = self._options
        report = self.report
        left = options.packets - report.packets if front == "packets" else options.boards - report.boards
        attacks = min(ROUND_ATTACKS[front], LEAST_ATTACKS + left // DEEDS_PER_ATTACK)
        return RoundOrder(
            options.seed, first, attacks, front, options.start_method, options.workers, options.hang, -1, self._tag
        )

    def _run_round(self, order: RoundOrder) -> None:
        record = Record.create(self._tag, order.first, order.attacks)
        try:
            found, death = self._run_master(order, record)
            self.report.add(order, record, found, death)
        finally:
            environment.end_all(self._tag)
            record.close()

    def _run_master(self, order: RoundOrder, record: Record) -> tuple[RoundReport, str]:
        """Run the master of a round. Return its report, and in words how it died, if it did."""
        report_fd, words_fd = os.memfd_create("report"), os.memfd_create("words")
        try:
            described = json.dumps({**asdict(order), "report_fd": report_fd})
            environ = {**os.environ, HOSTILE_MARK: f"{self._tag}:{os.getpid()}:{record.fileno()}"}
            environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
            process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "pairpool.stress.hostile.round", described],
                stdin=subprocess.DEVNULL,
                stdout=words_fd,
                stderr=words_fd,
                env=environ,
                pass_fds=[report_fd],
            )
            death = self._await_end(process, order, record)
            text = _content(report_fd).decode()
            found = RoundReport(**json.loads(text)) if text else RoundReport()
            death = death or ("" if text else "the master left no report")
            if death:
                death += "; the end of its output:\n" + _content(words_fd)[-LAST_WORDS:].decode(errors="replace")
            return found, death
        finally:
            os.close(report_fd)
            os.close(words_fd)

    def _await_end(self, process: subprocess.Popen[bytes], order: RoundOrder, record: Record) -> str:
        """Wait for the end of a master. Return how it died; empty if it ended as it should."""
        limit_s = ROUND_LIMIT_FACTOR * order.limit_s
        deadline = time.monotonic() + limit_s
        try:
            while (status := self._await_step(process)) is None:
                self._show_progress(order, record)
                if time.monotonic() > deadline:
                    process.send_signal(signal.SIGABRT)  # shows its stacks
                    process.wait()
                    return f"the master had not ended after {limit_s:g} s"
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status == 0:
            return ""
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the master died: {reason}"

    def _await_step(self, process: subprocess.Popen[bytes]) -> int | None:
        """Wait for a moment. Return the exit status of a process if it has ended, else None."""
        try:
            return process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            return None

    def _show_progress(self, order: RoundOrder, record: Record) -> None:
        rows = [record.row(number) for number in range(order.first, order.first + order.attacks)]
        options, report = self._options, self.report
        packets = min(options.packets, report.packets + sum(row.packets for row in rows))
        boards = min(options.boards, report.boards + sum(row.boards for row in rows))
        self._show(packets + boards, options.packets + options.boards)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def besiege(options: HostileOptions, json_file: str | None = None) -> int:
    """Run a campaign and print its report. Return the exit status: 0 passed, 1 failed."""
    with progress(options.packets + options.boards, is_wanted=True) as show:
        siege = _Siege(options, show)
        siege.run()
    if json_file is not None:
        Path(json_file).write_text(json.dumps(asdict(siege.report), indent=2) + "\n")
    tables.show_siege(siege.report)
    return 0 if siege.report.passed else 1
