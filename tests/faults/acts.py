"""The tasks of `test_state_machine.py`. The module imports little, because fresh interpreters import it often."""

from __future__ import annotations

import os

from tests.support.tasks import DEATHS, Odd, tell, wait_for

Act = tuple[str, int]
"""The way an item ends (`return`, `raise`, a key of `DEATHS`, or `hold`), and its index in its call."""


def act(item: Act) -> int:
    how, index = item
    if how == "raise":
        raise Odd(index)
    if how in DEATHS:
        DEATHS[how]()
    return index * 10


def act_apart(how: str, index: int) -> int:
    return act((how, index))


def act_and_count(journal: str, item: Act) -> int:
    tell(journal, item[1])
    return act(item)


def act_or_hold(reports: str, gate: str, key: int, item: Act) -> int:
    """Run an item. An item to be held reports `pid key` first, and waits for its gate."""
    if item[0] == "hold":
        tell(reports, f"{os.getpid()} {key}")
        wait_for(gate)
    return act(item)
