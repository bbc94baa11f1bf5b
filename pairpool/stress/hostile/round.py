"""One round of a hostile campaign: a master with a pool, in a process of its own. `python -m` runs this module.

The campaign gives the order as JSON in the arguments. The report goes to a descriptor as JSON. The process ends with
status 0 even if there are breaches, because another status means that the master died.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import TimeoutError as PoolTimeout
from statistics import median
from typing import Any

from pairpool.errors import TaskTimeout, WorkerDied
from pairpool.pool import Pool
from pairpool.stress import environment
from pairpool.stress.campaign import Hang, limited
from pairpool.stress.checks import GROWTH_ALLOWED_BYTES, GROWTH_ALLOWED_DESCRIPTORS
from pairpool.stress.hostile import attack
from pairpool.stress.hostile.dice import Dice
from pairpool.stress.hostile.innocents import Innocents, Verdicts, describe
from pairpool.stress.hostile.record import MASTER, Record
from pairpool.stress.hostile.reports import RoundOrder, RoundReport

__all__ = ["main"]

ATTACKS_PER_CALL = 40

ATTACK_LIMIT_S = 0.5
"""`task_timeout` of attacks. A task that stops its own process ends by it."""

ADDRESS_SPACE_BYTES = 16 << 30
"""The limit of the address space of a round. A payload that claims to be larger fails, and takes no memory."""

INNOCENT_THREADS = 2


class Round:
    """A round in progress."""

    def __init__(self, order: RoundOrder) -> None:
        self._order = order
        self._record = Record.attach(order.first)
        self._verdicts = Verdicts(self._may_end)
        self._dice = Dice(order.seed, order.first)
        self._outcomes: dict[int, str] = {}
        self._exceptions: Counter[str] = Counter()
        self._misused = 0
        self._memory: list[int] = []
        self._descriptors: list[int] = []

    def run(self) -> RoundReport:
        """Run all attacks, and return the report."""
        began = time.monotonic()
        before = environment.EnvironmentSnapshot.take()
        try:
            self._run_with_pool()
        except Hang:
            pass  # it was recorded
        except Exception as error:
            self._verdicts.breach(f"the pool raised {describe(error)}")
        else:
            excused = {os.getppid()}  # the campaign has the mark, too
            left, _orphans = environment.leftovers(before, self._order.tag, excused)
            for text in left:
                self._verdicts.breach(f"left behind: {text}")
        verdicts = self._verdicts
        _check_growth(verdicts, "memory", self._memory, GROWTH_ALLOWED_BYTES)
        _check_growth(verdicts, "descriptors", self._descriptors, GROWTH_ALLOWED_DESCRIPTORS)
        return RoundReport(
            list(self._outcomes.items()),
            dict(self._exceptions),
            self._misused,
            verdicts.calls,
            verdicts.items,
            dict(verdicts.ended),
            verdicts.breaches,
            time.monotonic() - began,
        )

    def _may_end(self, pid: int) -> bool:
        """Whether an innocent item in this worker may end with an error.

        An attack can leave anything behind in its own process, such as a packet that the master has not read yet. And
        an attack that writes to the words of other workers can make the master believe that they are at fault.
        """
        return self._order.front == "any board" or self._record.has_gone_on(pid)

    def on_stray_error(self, error: BaseException) -> None:
        """Record an exception that reached no caller, such as one in the pool's own thread."""
        self._verdicts.breach(f"no call got the exception {describe(error)}")

    def _options(self) -> dict[str, Any]:
        """Return the options of the pool, which differ from round to round."""
        options: dict[str, Any] = {"start_method": self._order.start_method, "name": "hostile"}
        if self._dice.one_in(2):
            options.update(initializer=attack.work, initargs=(1,))
        if self._dice.one_in(3):
            options.update(capture=_drop_line, log_level="INFO")
        return options

    def _run_with_pool(self) -> None:
        order = self._order
        pool = Pool(order.workers, **self._options())
        innocents = Innocents(pool, self._verdicts, order.seed ^ order.first, INNOCENT_THREADS, order.limit_s)
        innocents.start()
        try:
            numbers = range(order.first, order.first + order.attacks)
            for start in range(0, order.attacks, ATTACKS_PER_CALL):
                if self._verdicts.breaches:
                    break
                self._attack(pool, numbers[start : start + ATTACKS_PER_CALL])
                self._look(pool)
            innocents.stop()
            self._check_after(pool)
            with limited(order.limit_s, "closing the pool"):
                pool.close()
                pool.join()
        except Hang as hang:
            self._verdicts.breach(f"hang: {hang}")
            innocents.abandon()
            faulthandler.dump_traceback(all_threads=True)
            raise
        finally:
            with limited(order.limit_s, "ending the pool"):
                pool.terminate()

    def _attack(self, pool: Pool, numbers: range) -> None:
        """Run some attacks: each in a batch of its own, or among the items of a call."""
        is_mixed = self._dice.one_in(4)
        try:
            outcomes = self._attack_among_others(pool, numbers) if is_mixed else self._attack_alone(pool, numbers)
        except (PoolTimeout, TimeoutError):
            raise Hang(
                f"attacks have not ended after {self._order.limit_s:g} s: {self._open_attacks(numbers)}"
            ) from None
        except Exception as error:
            self._verdicts.breach(f"the call with attacks {numbers} raised {describe(error)}")
            return
        for number, outcome in zip(numbers, outcomes, strict=True):
            self._outcomes[number] = self._name_of(number, outcome)

    def _open_attacks(self, numbers: range) -> str:
        """Return the attacks that have not returned, each with its last deed."""
        rows = [(number, self._record.row(number)) for number in numbers]
        is_open = [
            f"{number} ({row.deed}, pid {row.pid})"
            for number, row in rows
            if row.has_begun and not row.has_returned and os.path.exists(f"/proc/{row.pid}")
        ]
        begun = sum(row.has_begun for _number, row in rows)
        return f"{', '.join(is_open) or 'none'} have not returned; {len(rows) - begun} of {len(rows)} have not begun"

    def _attack_alone(self, pool: Pool, numbers: range) -> list[Any]:
        one = functools.partial(attack.attack, orders=self._orders())
        result = pool.map_async(one, numbers, 1, return_exceptions=True, task_timeout=ATTACK_LIMIT_S)
        return result.get(self._order.limit_s)

    def _attack_among_others(self, pool: Pool, numbers: range) -> list[Any]:
        """Make every fifth item of a call an attack."""
        attacks = {5 * place + self._dice.below(5): number for place, number in enumerate(numbers)}
        one = functools.partial(attack.attack_or_work, orders=self._orders(), attacks=attacks)
        items = range(5 * len(numbers))
        size = self._dice.pick((None, 5, 20))
        result = pool.map_async(one, items, size, return_exceptions=True, task_timeout=ATTACK_LIMIT_S)
        outcomes = result.get(self._order.limit_s)
        others = [item for item in items if item not in attacks]
        self._verdicts.check("mixed map", [outcomes[item] for item in others], map(attack.work, others))
        return [outcomes[item] for item in sorted(attacks)]

    def _orders(self) -> attack.Orders:
        return attack.Orders(self._order.seed, self._order.first, self._order.front)

    def _name_of(self, number: int, outcome: Any) -> str:
        """Return how an attack ended, in one word. An error of the pool's own machinery is a breach."""
        if isinstance(outcome, WorkerDied):
            self._misused += "misused" in str(outcome.cause)
            return "WorkerDied"
        if isinstance(outcome, TaskTimeout):
            return "TaskTimeout"
        if isinstance(outcome, BaseException):
            if type(outcome).__module__.startswith("pairpool."):
                self._verdicts.breach(f"attack {number} ended with {describe(outcome)}")
            self._exceptions[type(outcome).__name__] += 1
            return "exception"
        return "returned" if outcome == f"attack {number} returned" else "forged"

    def _look(self, pool: Pool) -> None:
        """Read what a user reads of a pool meanwhile, and take a sample of the master's memory."""
        looks: list[Callable[[], object]] = [pool.status, pool.report]
        if self._dice.one_in(4):
            looks.append(functools.partial(pool.stacks, 0.05))
        for look in looks:
            try:
                with limited(self._order.limit_s, f"{look}"):
                    look()
            except Exception as error:
                if isinstance(error, Hang):
                    raise
                self._verdicts.breach(f"{look} raised {describe(error)}")
        self._memory.append(environment.resident())
        self._descriptors.append(environment.descriptor_count())

    def _check_after(self, pool: Pool) -> None:
        """Check that the pool still works when all attacks have ended."""
        items = range(200)
        try:
            outcomes = pool.map_async(attack.work, items, 1, return_exceptions=True).get(self._order.limit_s)
        except (PoolTimeout, TimeoutError):
            raise Hang("the pool does not work after the attacks") from None
        except Exception as error:
            self._verdicts.breach(f"after the attacks: {describe(error)}")
        else:
            self._verdicts.check("after the attacks", outcomes, map(attack.work, items))


def _drop_line(_line: object) -> None:
    """Take a line of output, and do nothing with it."""


def _check_growth(verdicts: Verdicts, what: str, samples: list[int], allowed: int) -> None:
    """Record a breach if the last samples of a round are much larger than the early ones."""
    quarter = len(samples) // 4
    if quarter:
        early, late = median(samples[quarter : 2 * quarter]), median(samples[-quarter:])
        if late > early + allowed:
            verdicts.breach(f"{what} of the master grew from {early:,.0f} to {late:,.0f}")


def main(arguments: list[str]) -> int:
    """Run the round that the first argument orders."""
    order = RoundOrder(**json.loads(arguments[0]))
    os.set_inheritable(order.report_fd, False)
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # attacks crash on purpose
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    environment.give_back_memory()
    os.environ[MASTER] = str(os.getpid())
    running = Round(order)
    sys.excepthook = lambda _type, error, _traceback: running.on_stray_error(error)
    report = running.run()
    os.write(order.report_fd, json.dumps(asdict(report)).encode())
    sys.stdout.flush()
    os._exit(0)  # threads that wait for ever were reported


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
