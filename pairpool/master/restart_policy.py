"""Decide when a failed start of a worker is tried again, and when the pool gives up.

The module does no I/O, and takes the clock as an argument.
"""

from __future__ import annotations

__all__ = ["RestartPolicy"]

FORK_RETRY_AFTER_S = 0.1
"""Seconds after which a fork that the kernel refused is tried again."""

FORK_REFUSALS_ALLOWED = 30
"""Forks in a row that the kernel may refuse, while no worker is left, before the pool gives up."""

INITIALIZER_TRIES = 3
"""Workers in a row that may end in their initializer in one place before the pool gives up."""

INITIALIZER_PAUSE_FACTOR = 4
"""Factor by which the pause before the next of these tries grows."""

STARTUP_DEATHS_ALLOWED = 3
"""Workers in a row, beyond one per place, that may end before they receive anything, before the pool gives up."""


class RestartPolicy:
    """Count failures in a row, and plan the next tries.

    Attributes:
        fork_refusals: forks in a row that the kernel refused.
        startup_deaths: workers in a row that ended before they received anything.
        retry_at: places for which another try is planned, with its time (monotonic seconds).
    """

    def __init__(self) -> None:
        self.fork_refusals = 0
        self.startup_deaths = 0
        self._initializer_failures: dict[int, int] = {}  # failures in a row, by place
        self.retry_at: dict[int, float] = {}

    # --- planned tries --------------------------------------------------------------------------

    def plan_fork(self, number: int, now: float) -> None:
        """Plan another try for a place after the kernel refused a fork."""
        self.retry_at[number] = now + FORK_RETRY_AFTER_S

    def plan_initializer(self, number: int, now: float) -> None:
        """Plan another try for a place after its initializer failed. The pauses grow."""
        tries = self._initializer_failures[number]
        self.retry_at[number] = now + FORK_RETRY_AFTER_S * INITIALIZER_PAUSE_FACTOR ** (tries - 1)

    def take_due(self, now: float) -> list[int]:
        """Return the places whose next try is due, and forget these plans."""
        due = [number for number, at in self.retry_at.items() if at <= now]
        for number in due:
            del self.retry_at[number]
        return due

    # --- failures in a row ----------------------------------------------------------------------

    def fork_refused(self, *, has_workers: bool) -> bool:
        """Count a fork that the kernel refused; return whether to give up."""
        self.fork_refusals += 1
        return not has_workers and self.fork_refusals >= FORK_REFUSALS_ALLOWED

    def fork_succeeded(self) -> None:
        """Begin to count refused forks anew."""
        self.fork_refusals = 0

    def initializer_failed(self, number: int) -> bool:
        """Count a worker that ended in its initializer; return whether to give up."""
        tries = self._initializer_failures[number] = self._initializer_failures.get(number, 0) + 1
        return tries >= INITIALIZER_TRIES

    def initializer_succeeded(self, number: int) -> None:
        """Begin to count the failed initializers of a place anew."""
        self._initializer_failures.pop(number, None)

    def died_at_startup(self, processes: int) -> bool:
        """Count a worker that ended before it received anything; return whether to give up."""
        self.startup_deaths += 1
        return self.startup_deaths > STARTUP_DEATHS_ALLOWED + processes

    def worker_succeeded(self) -> None:
        """Begin to count workers that end before they receive anything anew."""
        self.startup_deaths = 0
