"""Run one campaign: open the pool, start the killer and the clients, and check the result.

The main thread looks at the campaign every `LOOK_INTERVAL_S`: at its progress, the kills that are due, and the memory.
It also notices if nothing happens any more. The threads of the clients do the rest.
"""

from __future__ import annotations

import csv
import faulthandler
import json
import mmap
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pairpool import errors
from pairpool.pool import Pool
from pairpool.stress import environment, report
from pairpool.stress.checks import CampaignReport, Kill, Observations, Sample, check_campaign, excused
from pairpool.stress.clients import Clients
from pairpool.stress.killer_process import KillerProcess
from pairpool.stress.outcome_log import Died, OutcomeLog
from pairpool.stress.plan import Plan
from pairpool.stress.tasks import MARK

__all__ = ["CampaignOptions", "run"]

LOOK_INTERVAL_S = 0.01
"""Seconds between two looks at a campaign. Progress is a count in shared memory, which no thread can wait for."""

CLOSE_LIMIT_S = 60.0
"""Seconds that the pool has to close, or to end."""

CLIENTS_LIMIT_S = 5.0
"""Seconds that the clients have to end after the pool has ended."""

ALARM_INTERVAL_S = 5.0
"""Seconds after which SIGALRM comes again, if the first one did not end the main thread's work."""


@dataclass(frozen=True)
class CampaignOptions:
    """The options of the command line."""

    workers: int = 8
    tasks: int = 200_000
    kills: int = 500
    seed: int = 1
    start_method: str = "fork"
    chunksize: int | None = None
    clients: int = 3
    seconds: float | None = None
    hang: float = 60.0
    live: bool = False


class Hang(Exception):
    """The campaign makes no progress any more."""


@contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """Raise `Hang` in the main thread if the body takes longer. A timer is not inherited and starts no thread."""

    def end(_number: int, _frame: object) -> None:
        raise Hang(f"{what} took more than {seconds:g} s")

    old = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, ALARM_INTERVAL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


class StartCounts:
    """The memfd in which tasks count their starts. Its name marks every process of the campaign."""

    def __init__(self, tasks: int) -> None:
        self.tag = f"pairpool-stress-{os.getpid()}-{time.monotonic_ns()}"
        self._fd = os.memfd_create(self.tag)
        os.set_inheritable(self._fd, False)
        os.posix_fallocate(self._fd, 0, tasks)
        self._map = mmap.mmap(self._fd, tasks)
        os.environ[MARK] = f"{self.tag}:{os.getpid()}:{self._fd}"

    def started(self, first: int, end: int) -> int:
        """Return how many of the tasks from `first` up to, but without `end` have started."""
        return end - first - self._map[first:end].count(0)

    def counts(self) -> bytes:
        """Return how often each task has started, one byte per task."""
        return self._map[:]

    def close(self) -> None:
        """Remove the mark, and close the memfd."""
        os.environ.pop(MARK, None)
        self._map.close()
        os.close(self._fd)


class Campaign:
    """A campaign in progress.

    Args:
        show: called several times per second with the number of ended tasks and of all tasks.
        memory_log: a text file for samples of the memory; None for no log.
    """

    def __init__(
        self, options: CampaignOptions, starts: StartCounts, show: Callable[[int, int], object], memory_log: Any
    ) -> None:
        self.options = options
        self.log = OutcomeLog(options.tasks)
        self.samples: list[Sample] = []
        self._starts = starts
        self._show = show
        self._memory_log = memory_log
        self._began_s = time.monotonic()
        self._progress = 0
        self._progressed_s = self._began_s
        self._clients: Clients | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began_s

    def run(self, pool: Pool, killer: KillerProcess) -> None:
        """Run all tasks to their ends, and close the pool. Raises `Hang`."""
        options = self.options
        plan = Plan(options.seed, options.tasks, timeouts=hasattr(errors, "TaskTimeout"))
        self._clients = clients = Clients(pool, plan, self.log, options.clients, options.chunksize)
        clients.start()
        try:
            while not clients.are_done(LOOK_INTERVAL_S):
                self._look(clients, killer)
            with limited(options.hang + LOOK_INTERVAL_S * options.kills, "the end of the killer"):
                while killer.has_more and killer.is_alive():
                    killer.advance(1.0)
                    self._keep_replacing(pool)
                killer.finish()
                while killer.is_alive():
                    self._keep_replacing(pool)
            with limited(CLOSE_LIMIT_S, "closing the pool"):
                pool.close()
                pool.join()
        except BaseException:
            clients.abandon()
            raise

    def _keep_replacing(self, pool: Pool) -> None:
        """Give the killer something to kill: the pool replaces workers only while a thread waits for the pool."""
        try:
            pool.apply(time.sleep, (LOOK_INTERVAL_S,))
        except errors.WorkerDied as died:
            self.log.death(Died(-1, "last", died.pid, died.exitcode, str(died)))
        except Exception as error:
            self.log.breach("call failed", f"apply, after the last task: {error!r}")
            raise Hang("the pool is broken") from error

    def _look(self, clients: Clients, killer: KillerProcess) -> None:
        """Request the kills that are due, take a sample, and check that the campaign makes progress."""
        options, now, seconds = self.options, time.monotonic(), self.seconds
        if options.seconds is not None and seconds > options.seconds:
            clients.stop()
        slices = clients.open_slices()
        started = sum(self._starts.started(first, end) for first, end in slices)
        in_work = sum(end - first for first, end in slices)
        progress = min(options.tasks, max(self.log.ended, self.log.dealt - in_work + started))
        share = progress / options.tasks
        if options.seconds is not None:
            share = max(share, min(1.0, seconds / options.seconds))
        killer.advance(share)
        if progress + self.log.ended != self._progress:
            self._progress, self._progressed_s = progress + self.log.ended, now
        elif now - self._progressed_s > options.hang:
            raise Hang(f"no task has started or ended for {options.hang:g} s")
        if seconds >= len(self.samples):
            self._sample(seconds)
        self._show(self.log.ended, options.tasks)

    def _sample(self, seconds: float) -> None:
        sample = Sample(round(seconds, 3), environment.resident(), environment.descriptor_count(), self.log.ended)
        self.samples.append(sample)
        if self._memory_log is not None:
            csv.writer(self._memory_log).writerow(asdict(sample).values())
            self._memory_log.flush()

    def wait_for_clients(self) -> None:
        """Wait for the end of the clients. After the end of the pool they need little time."""
        deadline = time.monotonic() + CLIENTS_LIMIT_S
        while self._clients is not None and time.monotonic() < deadline:
            if self._clients.are_done(LOOK_INTERVAL_S):
                break

    def on_hang(self, hang: Hang, pool: Pool) -> None:
        """Print the stacks of all threads and the status of the pool, and record the breach."""
        faulthandler.dump_traceback(all_threads=True)
        print(pool.status(), file=sys.stderr, flush=True)
        self.log.breach("hang", str(hang))


# --- from the pool to the report ----------------------------------------------------------------------


def _versions() -> dict[str, str]:
    return {
        "pairpool": sys.modules["pairpool"].__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "timeouts": "yes" if hasattr(errors, "TaskTimeout") else "no",
    }


def _start_killer(options: CampaignOptions, known: frozenset[int]) -> KillerProcess:
    """Start the killer. `known` are the children of this process that do not belong to the pool."""
    arguments = [f"--seed={options.seed}", f"--workers={options.workers}"]
    arguments += ["--direct"] if options.start_method == "direct" else []
    return KillerProcess(options.kills, [*arguments, "--known", *map(str, known)])


def _run_with_pool(campaign: Campaign, known: frozenset[int]) -> tuple[bool, list[Kill], float]:
    """Run a campaign with a pool and a killer.

    Returns:
        Whether it ended without a hang, the log of the killer, and the seconds that it took.
    """
    options = campaign.options
    pool = Pool(
        options.workers,
        start_method=options.start_method,
        name="stress",
        chunksize=options.chunksize,
        live=options.live,
    )
    is_complete = False
    try:
        killer = _start_killer(options, known)
        try:
            campaign.run(pool, killer)
            is_complete = True
        except Hang as hang:
            campaign.on_hang(hang, pool)
        finally:
            killer.end()
            kills = killer.kills()
            killer.close()
    finally:
        seconds = campaign.seconds
        _terminate(campaign, pool)
    return is_complete, kills, seconds


def _terminate(campaign: Campaign, pool: Pool) -> None:
    try:
        with limited(CLOSE_LIMIT_S, "ending the pool"):
            pool.terminate()
            campaign.wait_for_clients()
    except Hang as hang:
        campaign.on_hang(hang, pool)


def _conduct(options: CampaignOptions, starts: StartCounts, log: Any) -> CampaignReport:
    """Run a campaign and check it. `log` is a text file for samples of the memory, or None."""
    before = environment.EnvironmentSnapshot.take()
    if log is not None:
        csv.writer(log).writerow(["seconds", "rss", "fds", "ended"])
    with report.progress(options.tasks, is_wanted=not options.live) as show:
        campaign = Campaign(options, starts, show, log)
        is_complete, kills, seconds = _run_with_pool(campaign, before.children)
        left: list[str] = []
        orphans: list[environment.Leftover] = []
        if is_complete:
            left, orphans = environment.leftovers(before, starts.tag, excused(kills, options.start_method))
    seen = Observations(starts.counts(), kills, campaign.samples, left, len(orphans), seconds)
    return check_campaign(campaign.log, seen, asdict(options), _versions())


def run(options: CampaignOptions, json_file: str | None = None, memory_log: str | None = None) -> int:
    """Run a campaign and print its report. Return the exit status: 0 passed, 1 failed."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # tasks crash on purpose
    environment.give_back_memory()
    starts = StartCounts(options.tasks)
    try:
        with nullcontext() if memory_log is None else open(memory_log, "w", newline="") as log:
            made = _conduct(options, starts, log)
    finally:
        environment.end_all(starts.tag)
        starts.close()
    if json_file is not None:
        Path(json_file).write_text(json.dumps(made.as_json(), indent=2) + "\n")
    report.show(made)
    return 0 if made.verdict == "passed" else 1
