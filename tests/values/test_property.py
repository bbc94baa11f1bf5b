"""One property of every way to call pairpool: batches change the time that a call takes, and never its values.

Hypothesis draws a program (`programs.Program`) and a way to call. The outcomes are compared with those of a plain loop
that pickles each item and each result at its time, and with those of `multiprocessing.Pool` with `chunksize=1`.

`PAIRPOOL_VALUES_SECONDS=300 pytest tests/values/test_property.py` draws new programs for 300 seconds per start method.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("numpy")
pytest.importorskip("joblib")

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.values import programs
from tests.values.kinds import KINDS
from tests.values.programs import Program, Step
from tests.values.ways import WAYS, Faces, Way, outcomes_of

SECONDS = float(os.environ.get("PAIRPOOL_VALUES_SECONDS", "0"))
"""Seconds per start method in which new programs are drawn. 0 means the same few programs in every run."""

pytestmark = pytest.mark.hang_limit(180 + 2 * SECONDS)

EXAMPLES = 300

CI = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

BY_HAND = settings(CI, derandomize=False, phases=[Phase.generate, Phase.shrink])


# --- the programs -------------------------------------------------------------------------------------


@st.composite
def some_programs(draw: st.DrawFn) -> Program:
    """Draw a program with few kinds, so that objects are used again and plain data is often alone."""
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3, unique=True))
    action = draw(st.none() | st.sampled_from(list(programs.ACTIONS)))
    steps = st.builds(
        Step,
        kind=st.sampled_from(kinds),
        source=st.sampled_from(programs.SOURCES),
        shape=st.sampled_from(programs.SHAPES),
        action=st.just("") if action else st.sampled_from([*programs.ACTIONS, *programs.GIVES]),
        is_spoiled=st.booleans(),
    )
    found = draw(st.lists(steps, min_size=1, max_size=8))
    return Program(tuple(found), draw(st.sampled_from([1, 4, 12])), action)


def is_possible(program: Program, way: Way) -> bool:
    """Return whether a way can run a program to its end. Some ways end at the first exception."""
    return way.keeps_errors or not program.fails


def chunksize_for(program: Program, way: Way) -> int | None:
    """Return 1 if items of one batch might share a large object; else None."""
    return 1 if program.has_large and not way.is_stream else None


# --- the property -------------------------------------------------------------------------------------


def inputs_for(program: Program, way: Way) -> Any:
    """Return the items: an iterator that changes them while it is read, or the list of its items."""
    return program.inputs() if way.is_stream else list(program.inputs())


@contextmanager
def multiprocessing_pool() -> Iterator[list[Any]]:
    """Open a pool of multiprocessing, in a list that is emptied at the end, because hypothesis keeps the variables."""
    peer = [multiprocessing.get_context("fork").Pool(2)]
    try:
        yield peer
    finally:
        peer[0].terminate()
        peer.pop().join()


def with_multiprocessing(peer: list[Any], program: Program, way: Way) -> list[Any]:
    """Return the outcomes of `multiprocessing.Pool`, one item at a time."""
    return outcomes_of(peer[0].imap(program.function, inputs_for(program, way), chunksize=1))


def check(faces: Faces, peer: list[Any], program: Program, way: Way, victim: int) -> None:
    """Check that the outcomes of one program are right and independent of one another."""
    expected = programs.run_one_by_one(program.function, inputs_for(program, way))
    assert programs.wrong_ones(with_multiprocessing(peer, program, way), expected) == [], "multiprocessing differs"
    items = inputs_for(program, way)
    found = way.call(faces, program.function, items, chunksize_for(program, way))
    assert programs.wrong_ones(found, expected, is_ordered=way.is_ordered) == []
    assert programs.shared_ones(found) == []
    assert programs.changed_by(found, victim % len(found)) == []


def test_values_are_those_of_one_item_at_a_time(start_method: str) -> None:
    with multiprocessing_pool() as peer, Faces(start_method) as faces:

        def prepared(profile: settings) -> Callable[[], None]:
            @profile
            @given(program=some_programs(), way=st.sampled_from(WAYS), victim=st.integers(0, 1000))
            def check_one(program: Program, way: Way, victim: int) -> None:
                if is_possible(program, way):
                    check(faces, peer, program, way, victim)

            return check_one

        if not SECONDS:
            prepared(CI)()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            seed(random.getrandbits(64))(prepared(BY_HAND))()
