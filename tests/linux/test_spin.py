"""Whether to look before sleeping: learnt from how it went."""

from __future__ import annotations

from pairpool.linux.spin import MAX_SKIPPED_WAITS, SPIN_NS, Spinning

BRIEF, LONG = SPIN_NS // 4, SPIN_NS * 10


def looks_in(spinning: Spinning, waits: int, *, succeeds: bool) -> int:
    """How many of so many brief waits begin with a look, if all looks succeed, or none does."""
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


def test_nothing_is_looked_for_before_a_wait_was_brief() -> None:
    spinning = Spinning()
    assert not spinning.pays()
    spinning.slept(LONG)
    assert not spinning.pays()
    spinning.slept(BRIEF)
    assert spinning.pays()


def test_looks_that_find_something_go_on() -> None:
    spinning = Spinning()
    spinning.slept(BRIEF)
    assert looks_in(spinning, 1000, succeeds=True) == 1000


def test_looks_in_vain_become_rare() -> None:
    """As on a machine where others compute: what each costs is nothing, spread over so many waits."""
    spinning = Spinning()
    spinning.slept(BRIEF)
    assert looks_in(spinning, 10 * MAX_SKIPPED_WAITS, succeeds=False) < 20


def test_it_is_tried_again_and_goes_on_when_the_machine_is_quiet() -> None:
    spinning = Spinning()
    spinning.slept(BRIEF)
    looks_in(spinning, 10 * MAX_SKIPPED_WAITS, succeeds=False)
    assert looks_in(spinning, 2 * MAX_SKIPPED_WAITS, succeeds=True) >= MAX_SKIPPED_WAITS


def test_one_look_in_vain_among_many_costs_one_wait() -> None:
    spinning = Spinning()
    spinning.slept(BRIEF)
    looks_in(spinning, 10, succeeds=True)
    spinning.missed()
    spinning.slept(BRIEF)
    assert not spinning.pays()
    assert spinning.pays()
