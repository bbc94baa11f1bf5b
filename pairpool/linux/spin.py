"""Decide whether a process spins before it sleeps, from the results of earlier waits. Arithmetic only, no I/O.

1. To wake a process that sleeps on another core takes about 50 µs. A spinning process sees an event within 1 µs.
2. On a busy machine a spinning process takes the core from the process that it waits for. Then spinning is in vain: a
   call took 300 µs instead of 90 µs.
3. The machine does not tell in advance which case applies. So spinning stops for some waits after each failure, and is
   tried again later.
"""

from __future__ import annotations

__all__ = ["SPIN_NS", "Spinning"]

SPIN_NS = 200_000
"""Time to spin before sleeping."""

PENALTY_FACTOR = 4
"""Each failure multiplies the number of waits without spinning by this factor."""

MAX_SKIPPED_WAITS = 256
"""Spinning is tried again after at most this number of waits."""


class Spinning:
    """Learns from the waits of one process. A wait is brief if it takes less than `SPIN_NS`."""

    __slots__ = ("_penalty", "_skips", "_was_brief")

    def __init__(self) -> None:
        self._was_brief = False  # the last wait
        self._skips = 0  # number of brief waits that follow without spinning
        self._penalty = 1

    def pays(self) -> bool:
        """Tell whether to spin in this wait. Call it once per wait."""
        if not self._was_brief:
            return False
        if self._skips:
            self._skips -= 1
            return False
        return True

    def found(self) -> None:
        """Note that the event came while the process was spinning."""
        self._penalty = self._penalty // 2 or 1

    def missed(self) -> None:
        """Note that the event did not come while the process was spinning."""
        self._skips = self._penalty
        self._penalty = min(MAX_SKIPPED_WAITS, PENALTY_FACTOR * self._penalty)

    def slept(self, nanoseconds: int) -> None:
        """Note that the wait ended with a sleep, and how long it took, including the spinning."""
        self._was_brief = nanoseconds < SPIN_NS
