"""A pool that must not keep descriptors that were sent to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pairpool import Pool
from tests.support import descriptor_tasks


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Give a pool of one worker, and check at the end that the worker has as many descriptors open as before."""
    with Pool(1) as pool:
        before = pool.apply(descriptor_tasks.open_here)
        yield pool
        assert pool.apply(descriptor_tasks.open_here) == before
