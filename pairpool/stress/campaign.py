"""One campaign, from the pool to the verdict.

The main thread watches, ten times a second and more: how far the campaign is, which kills are due, what memory is in
use, whether anything still moves. The clients' threads do the rest.
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
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pairpool import errors
from pairpool.pool import Pool
from pairpool.stress import report, surroundings
from pairpool.stress.assassin import KILL, STOP
from pairpool.stress.clients import Clients
from pairpool.stress.ledger import Died, Ledger
from pairpool.stress.plan import Plan
from pairpool.stress.tasks import MARK
from pairpool.stress.verdict import Breach, Evidence, Kill, Sample, excused, pass_verdict

__all__ = ["CampaignOrder", "run"]

TICK = 0.01
"""Seconds between two looks at a campaign. Progress is a count in shared memory, which nobody can wait for."""

CLOSE_LIMIT = 60.0

PATIENCE = 5.0


@dataclass(frozen=True)
class CampaignOrder:
    """What was asked for on the command line."""

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
    """Nothing moves any more."""


@contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """Raise `Hang` in the main thread if the body takes longer; a timer is not inherited and starts no thread."""

    def end(_number: int, _frame: object) -> None:
        raise Hang(f"{what} took more than {seconds:g} s")

    old = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


class Starts:
    """The memfd in which tasks count their starts; its name marks every process of the campaign."""

    def __init__(self, tasks: int) -> None:
        self.tag = f"pairpool-stress-{os.getpid()}-{time.monotonic_ns()}"
        self.fd = os.memfd_create(self.tag)
        os.set_inheritable(self.fd, False)
        os.posix_fallocate(self.fd, 0, tasks)
        self.map = mmap.mmap(self.fd, tasks)
        os.environ[MARK] = f"{self.tag}:{os.getpid()}:{self.fd}"

    def started(self, first: int, last: int) -> int:
        return last - first - self.map[first:last].count(0)

    def close(self) -> None:
        os.environ.pop(MARK, None)
        self.map.close()
        os.close(self.fd)


class Killer:
    """The assassin as the campaign sees it.

    Args:
        known: children of this process that are none of the pool's.
    """

    def __init__(self, order: CampaignOrder, known: frozenset[int]) -> None:
        self._kills = order.kills
        self._sent = 0
        self._log = os.memfd_create("assassin-log")
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-m", "pairpool.stress.assassin", f"--master={os.getpid()}", f"--seed={order.seed}"]
        command += [f"--workers={order.workers}", *(["--direct"] if order.start_method == "direct" else [])]
        command += ["--known", *map(str, known)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._log, env=environment, bufsize=0)
        while self.is_alive() and not os.fstat(self._log).st_size:
            time.sleep(TICK)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def advance(self, share: float) -> None:
        """Have one kill done if fewer were than belong to this share (0 to 1) of the campaign.

        One at a time: a volley at workers that have just begun is what makes a pool rightly give up.
        """
        if self._sent < min(self._kills, int(share * self._kills + 0.5)) and self._process.stdin is not None:
            self._process.stdin.write(KILL)
            self._sent += 1

    @property
    def has_more(self) -> bool:
        return self._sent < self._kills

    def finish(self) -> None:
        """No more kills are to come: it ends when all that is due is done."""
        if self._process.stdin is not None:
            self._process.stdin.write(STOP)

    def end(self) -> None:
        """Have it end at once."""
        self._process.kill()
        self._process.wait()

    def kills(self) -> list[Kill]:
        text = os.pread(self._log, os.fstat(self._log).st_size, 0).decode()
        return [Kill(**json.loads(line)) for line in text.splitlines() if line.endswith("}")]

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        os.close(self._log)


class Campaign:
    """A campaign under way.

    Args:
        show: told the tasks ended and how many there are, some times a second.
    """

    def __init__(
        self, order: CampaignOrder, starts: Starts, show: Callable[[int, int], object], memory_log: Any
    ) -> None:
        self.order = order
        self.starts = starts
        self.show = show
        self.ledger = Ledger(order.tasks)
        self.samples: list[Sample] = []
        self.began = time.monotonic()
        self._memory_log = memory_log
        self._moved = (self.began, 0)
        self._clients: Clients | None = None

    def run(self, pool: Any, killer: Killer) -> None:
        """Deal all tasks and wait for their ends; the pool is closed then. Raises `Hang`."""
        order = self.order
        plan = Plan(order.seed, order.tasks, timeouts=hasattr(errors, "TaskTimeout"))
        self._clients = clients = Clients(pool, plan, self.ledger, order.clients, order.chunksize)
        clients.start()
        try:
            while not clients.are_done(TICK):
                self._look(clients, killer)
            with limited(order.hang + TICK * order.kills, "the end of the assassin"):
                while killer.has_more and killer.is_alive():
                    killer.advance(1.0)
                    self._keep_replacing(pool)
                killer.finish()
                while killer.is_alive():
                    self._keep_replacing(pool)
            with limited(CLOSE_LIMIT, "closing the pool"):
                pool.close()
                pool.join()
        except BaseException:
            clients.abandoned = True
            clients.stop()
            raise

    def _keep_replacing(self, pool: Any) -> None:
        """Workers are replaced while somebody waits for the pool: give the assassin something to kill."""
        try:
            pool.apply(time.sleep, (TICK,))
        except errors.WorkerDied as died:
            self.ledger.died.append(Died(-1, "last", died.pid, died.exitcode, str(died)))
        except Exception as error:
            self.ledger.breach("call failed", f"apply, after the last task: {error!r}")
            raise Hang("the pool is broken") from error

    def _look(self, clients: Clients, killer: Killer) -> None:
        order, now = self.order, time.monotonic()
        seconds = now - self.began
        if order.seconds is not None and seconds > order.seconds:
            clients.stop()
        started = sum(self.starts.started(*span) for span in list(clients.open.values()))
        progress = min(order.tasks, max(self.ledger.ended, self.ledger.dealt - self._open(clients) + started))
        share = progress / order.tasks
        if order.seconds is not None:
            share = max(share, min(1.0, seconds / order.seconds))
        killer.advance(share)
        if progress + self.ledger.ended != self._moved[1]:
            self._moved = (now, progress + self.ledger.ended)
        elif now - self._moved[0] > order.hang:
            raise Hang(f"no task has started or ended for {order.hang:g} s")
        if seconds >= len(self.samples):
            self._sample(seconds)
        self.show(self.ledger.ended, order.tasks)

    @staticmethod
    def _open(clients: Clients) -> int:
        return sum(last - first for first, last in list(clients.open.values()))

    def _sample(self, seconds: float) -> None:
        sample = Sample(round(seconds, 3), surroundings.resident(), surroundings.descriptor_count(), self.ledger.ended)
        self.samples.append(sample)
        if self._memory_log is not None:
            writer = csv.writer(self._memory_log)
            writer.writerow(asdict(sample).values())
            self._memory_log.flush()

    def wait_for_clients(self) -> None:
        """Once the pool is ended, nothing can hold them back for long."""
        deadline = time.monotonic() + PATIENCE
        while self._clients is not None and not self._clients.are_done(TICK) and time.monotonic() < deadline:
            pass

    def on_hang(self, hang: Hang, pool: Any) -> None:
        """Show where everybody is, and note the breach."""
        faulthandler.dump_traceback(all_threads=True)
        print(pool.status(), file=sys.stderr, flush=True)
        self.ledger.breach("hang", str(hang))


def _versions() -> dict[str, str]:
    return {
        "pairpool": sys.modules["pairpool"].__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "timeouts": "yes" if hasattr(errors, "TaskTimeout") else "no",
    }


def _fight(campaign: Campaign, before: surroundings.Snapshot, evidence: Evidence) -> bool:
    """Pool, assassin, clients; whether all came to its end without a hang."""
    order = campaign.order
    pool = Pool(
        order.workers, start_method=order.start_method, name="stress", chunksize=order.chunksize, live=order.live
    )
    try:
        killer = Killer(order, before.children)
        try:
            campaign.run(pool, killer)
        except Hang as hang:
            campaign.on_hang(hang, pool)
            return False
        finally:
            killer.end()
            evidence.kills = killer.kills()
            killer.close()
    finally:
        evidence.seconds = time.monotonic() - campaign.began
        _terminate(campaign, pool)
    return True


def _terminate(campaign: Campaign, pool: Any) -> None:
    try:
        with limited(CLOSE_LIMIT, "ending the pool"):
            pool.terminate()
            campaign.wait_for_clients()
    except Hang as hang:
        campaign.on_hang(hang, pool)


def _conduct(order: CampaignOrder, starts: Starts, stack: ExitStack, memory_log: str | None) -> Breach:
    before = surroundings.Snapshot.take()
    log: Any = None
    if memory_log is not None:
        log = stack.enter_context(open(memory_log, "w", newline=""))  # noqa: SIM115  # the stack closes it
        before.descriptors[os.path.realpath(memory_log)] += 1
        csv.writer(log).writerow(["seconds", "rss", "fds", "ended"])
    evidence = Evidence(b"")
    with report.progress(order.tasks, is_wanted=not order.live) as show:
        campaign = Campaign(order, starts, show, log)
        whole = _fight(campaign, before, evidence)
        evidence.samples = campaign.samples
        evidence.starts = starts.map[:]
        if whole:
            allowed = excused(evidence.kills, order.start_method)
            evidence.left, orphans = surroundings.leftovers(before, starts.tag, allowed)
            evidence.orphans = len(orphans)
    return pass_verdict(campaign.ledger, evidence, asdict(order), _versions())


def run(order: CampaignOrder, json_file: str | None = None, memory_log: str | None = None) -> int:
    """Run a campaign and print its report; returns the exit status: 0 passed, 1 failed."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # tasks crash on purpose
    surroundings.give_back_memory()
    starts = Starts(order.tasks)
    try:
        with ExitStack() as stack:
            made = _conduct(order, starts, stack, memory_log)
    finally:
        surroundings.end_all(starts.tag)
        starts.close()
    if json_file is not None:
        Path(json_file).write_text(json.dumps(made.as_json(), indent=2) + "\n")
    report.show(made)
    return 0 if made.verdict == "passed" else 1
