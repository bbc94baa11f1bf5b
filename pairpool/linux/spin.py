"""Whether to look again and again for what is about to come, or to sleep at once: arithmetic only.

To wake a process that sleeps on another core takes some 50 µs; one that looks sees what has come within 1. But where
others compute, the one that looks keeps the core from the very process that it waits for: all of it is in vain then,
and a call took 300 µs for 90. Nothing tells beforehand which it will be, so it is learnt from how it went.
"""

from __future__ import annotations

__all__ = ["SPIN_NS", "Spinning"]

SPIN_NS = 200_000
"""How long to look before sleeping after all."""

PENALTY_FACTOR = 4
"""By how much more waits go by without a look after each that was in vain."""

MAX_SKIPPED_WAITS = 256
"""Waits that go by without a look at most; then it is tried again."""


class Spinning:
    """Learns from the waits of one process; a wait is brief if it takes less than `SPIN_NS`."""

    __slots__ = ("_is_brief", "_passes", "_penalty")

    def __init__(self) -> None:
        self._is_brief = False  # the last wait
        self._passes = 0  # brief waits that are to go by without a look
        self._penalty = 1

    def pays(self) -> bool:
        """Whether to look before this wait; asked once for each."""
        if not self._is_brief:
            return False
        if self._passes:
            self._passes -= 1
            return False
        return True

    def found(self) -> None:
        """It came while this looked."""
        self._penalty = self._penalty // 2 or 1

    def missed(self) -> None:
        """It did not come."""
        self._passes = self._penalty
        self._penalty = min(MAX_SKIPPED_WAITS, PENALTY_FACTOR * self._penalty)

    def slept(self, nanoseconds: int) -> None:
        """The wait took so long, looks included, and ended with a sleep."""
        self._is_brief = nanoseconds < SPIN_NS
