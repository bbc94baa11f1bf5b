"""The values of `ClusterPool` are those of one item at a time, on two nodes of two threads each.

One program does all checks with one pool (`cluster_program.py`); each test here looks at the errors of one check.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("distributed")
pytest.importorskip("numpy")

from tests.support.dask_cluster import node, scheduler
from tests.support.scripts import python

CHECKS = [
    "the same object as every item",
    "an object with a new content for each item",
    "a kept object as every result",
    "objects inside items",
    "exceptions",
    "items that cannot be pickled",
    "retries",
    "a large object inside many items",
    "look-ahead",
]
"""The checks of the program, by name. They are not imported from it, because that would import Dask here."""

pytestmark = pytest.mark.hang_limit(150)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the program, and return the cases that are wrong, by check."""
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path_factory.mktemp("dask")))
        for _ in range(2):
            stack.enter_context(node(address))
        done = python("-W", "default", "-m", "tests.values.cluster_program", address, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == CHECKS
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_values_are_those_of_one_item_at_a_time(found: dict[str, Any], check: str) -> None:
    assert found[check] == {}
