"""Whether a process spins before it sleeps, from the results of earlier waits."""

from __future__ import annotations

from pairpool.linux.spin import MAX_SKIPPED_WAITS, SPIN_NS, Spinning

BRIEF, LONG = SPIN_NS // 4, SPIN_NS * 10


def spins_in(spinning: Spinning, waits: int, *, succeeds: bool) -> int:
    """Return how many of `waits` brief waits begin with spinning, if it always succeeds, or never."""
    looks = 0
    for _ in range(waits):
        if spinning.pays():
            looks += 1
            if succeeds:
                spinning.found()
                continue
            spinning.missed()
        spinning.slept(BRIEF)
    return looks


def test_no_spinning_before_the_first_brief_wait() -> None:
    spinning = Spinning()
    assert not spinning.pays()
    spinning.slept(LONG)
    assert not spinning.pays()
    spinning.slept(BRIEF)
    assert spinning.pays()


def test_successful_spinning_goes_on() -> None:
    spinning = Spinning()
    spinning.slept(BRIEF)
    assert spins_in(spinning, 1000, succeeds=True) == 1000


def test_spinning_in_vain_becomes_rare() -> None:
    """On a busy machine spinning fails. Spread over many waits, its cost is negligible."""
    spinning = Spinning()
    spinning.slept(BRIEF)
    assert spins_in(spinning, 10 * MAX_SKIPPED_WAITS, succeeds=False) < 20


def test_spinning_is_tried_again_and_goes_on_when_the_machine_is_quiet() -> None:
    spinning = Spinning()
    spinning.slept(BRIEF)
    spins_in(spinning, 10 * MAX_SKIPPED_WAITS, succeeds=False)
    assert spins_in(spinning, 2 * MAX_SKIPPED_WAITS, succeeds=True) >= MAX_SKIPPED_WAITS


def test_one_failure_among_many_successes_skips_one_wait() -> None:
    spinning = Spinning()
    spinning.slept(BRIEF)
    spins_in(spinning, 10, succeeds=True)
    spinning.missed()
    spinning.slept(BRIEF)
    assert not spinning.pays()
    assert spinning.pays()
