"""Failures that are too large for a report arrive without the objects of their exceptions."""

from __future__ import annotations

import pickle

import pytest

from pairpool.transport import failures
from pairpool.transport.failures import Failure, pack_failures
from tests.support.pools import MakePool, mp_pool
from tests.support.waiting import PATIENCE


def failure(offset: int, size: int) -> Failure:
    return Failure(offset, 0, b"x" * size, "ValueError", "ä" * size, "Traceback " + "y" * size)


@pytest.mark.parametrize("sizes", [[10, 20_000, 30], [20_000] * 5, [3_000] * 50])
def test_large_failures_are_cut_to_the_limit(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    monkeypatch.setattr(failures, "MAX_FAILURES_BYTES", 50_000)
    packed = pack_failures([failure(offset, size) for offset, size in enumerate(sizes)])
    assert len(packed) <= 50_000
    found = [Failure(*fields) for fields in pickle.loads(packed)]
    assert [one.offset for one in found] == list(range(len(sizes)))
    for one, size in zip(found, sizes, strict=True):
        assert one == failure(one.offset, size) or (one.pickled is None and "too large" in one.text)


def raise_large(x: int) -> int:
    if x == 3:
        raise ValueError("large " + "x" * 100_000)
    return x


@pytest.mark.parametrize("chunksize", [1, 8])
def test_an_item_with_a_too_large_exception_fails_alone(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, chunksize: int
) -> None:
    monkeypatch.setattr(failures, "MAX_FAILURES_BYTES", 50_000)
    pool = make_pool(1, start_method="fork")
    results = pool.map_async(raise_large, range(8), chunksize=chunksize, return_exceptions=True).get(PATIENCE)
    assert [x for x in results if isinstance(x, int)] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(results[3], mp_pool.MaybeEncodingError)
    assert "ValueError: large xxx" in str(results[3])
    assert "too large to be sent" in str(results[3])
