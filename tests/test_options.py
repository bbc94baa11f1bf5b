"""The options of pools and calls: every face takes the same ones, with the same defaults."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pairpool import AsyncPool, Executor, Pool, WorkerDied
from pairpool.executor import get_executor
from pairpool.options import (
    DEFAULTS,
    DERIVED_OPTIONS,
    POSITIONAL_OPTIONS,
    CallOptions,
    ExecutorKeywords,
    Limits,
    PoolKeywords,
    PoolOptions,
    names_of_options,
)


def text(annotation: Any) -> str:
    """The annotation as the source has it."""
    return str(getattr(annotation, "__forward_arg__", annotation))


class Option(NamedTuple):
    """One field of the options, as its class declares it."""

    default: Any
    type: str


def options_of(declared: Any) -> dict[str, Option]:
    """Return the options that a class declares, in their order."""
    kinds = declared.__annotations__
    return {name: Option(declared._field_defaults[name], text(kinds[name])) for name in declared._fields}


LISTS = (Pool.map, Pool.starmap, Pool.map_async, Pool.starmap_async)
STREAMS = (Pool.imap, Pool.imap_unordered)
SINGLE = (Pool.apply, Pool.apply_async)
AWAITED = (AsyncPool.map, AsyncPool.starmap)
AWAITED_STREAMS = (AsyncPool.imap, AsyncPool.imap_unordered)


OF_THE_POOL = {name: one for name, one in options_of(PoolOptions).items() if name not in DERIVED_OPTIONS}
OF_A_CALL = options_of(CallOptions)
POSITIONAL = set(POSITIONAL_OPTIONS)


def keywords(function: Callable[..., Any]) -> dict[str, tuple[Any, str]]:
    """The default and the annotation of each option among the parameters of a function."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: (one.default, one.annotation) for one in parameters if one.name in OF_A_CALL}


def expected(*names: str) -> dict[str, tuple[Any, str]]:
    """What `keywords` finds for these options of a call: the limits of the pool are overridden, so None keeps them."""
    limits = Limits.__annotations__
    own = {name: (OF_A_CALL[name].default, str(OF_A_CALL[name].type)) for name in names}
    return {**own, **{name: (None, text(kind)) for name, kind in limits.items()}}


def test_pool_takes_exactly_the_options_of_pools() -> None:
    parameters = dict(inspect.signature(Pool).parameters)
    assert list(parameters) == list(OF_THE_POOL)
    for name, option in OF_THE_POOL.items():
        assert parameters[name].default == option.default, name
        assert parameters[name].annotation == option.type, name
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if name in POSITIONAL else inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].kind is kind, name


@pytest.mark.parametrize(
    ("declared", "left_out"),
    [(PoolKeywords, {"processes", "live"}), (ExecutorKeywords, POSITIONAL)],
    ids=["AsyncPool", "Executor"],
)
def test_keywords_of_other_faces_are_the_options_of_pools(declared: Any, left_out: set[str]) -> None:
    found = {name: text(annotation) for name, annotation in declared.__annotations__.items()}
    assert found == {name: option.type for name, option in OF_THE_POOL.items() if name not in left_out}


@pytest.mark.parametrize(
    ("face", "spelled_out", "declared"),
    [
        (AsyncPool, {"processes", "live"}, "Unpack[PoolKeywords]"),
        (Executor, {"initializer", "initargs"}, "Unpack[ExecutorKeywords]"),
        (get_executor, {"initializer", "initargs"}, "Unpack[ExecutorKeywords]"),
    ],
)
def test_other_faces_take_these_keywords(face: Any, spelled_out: set[str], declared: str) -> None:
    parameters = inspect.signature(face).parameters
    assert parameters["options"].annotation == declared
    assert spelled_out == set(OF_THE_POOL) & set(parameters)
    assert all(parameters[name].default == OF_THE_POOL[name].default for name in spelled_out)


def test_the_limits_are_options_of_pools_and_of_calls() -> None:
    assert set(Limits.__annotations__) == set(OF_THE_POOL) & set(OF_A_CALL) - {"chunksize"}
    assert set(inspect.signature(CallOptions.override).parameters) - {"self"} == set(OF_A_CALL)
    assert set(keywords(AsyncPool.with_options)) == set(Limits.__annotations__)


@pytest.mark.parametrize("method", [*LISTS, *STREAMS, *SINGLE], ids=lambda method: method.__name__)
def test_calls_of_a_pool_take_the_options_of_calls(method: Callable[..., Any]) -> None:
    names = ("chunksize", "return_exceptions") if method in LISTS else tuple(OF_A_CALL) if method in STREAMS else ()
    assert keywords(method) == expected(*names)


@pytest.mark.parametrize("method", [*AWAITED, *AWAITED_STREAMS], ids=lambda method: method.__name__)
def test_calls_of_an_async_pool_take_the_options_of_calls(method: Callable[..., Any]) -> None:
    names = set(OF_A_CALL) - set(Limits.__annotations__) - ({"buffersize"} if method in AWAITED else set())
    found, wanted = keywords(method), expected(*OF_A_CALL)
    assert found == {name: wanted[name] for name in names}


def test_the_backend_of_joblib_takes_the_options_of_pools() -> None:
    joblib = pytest.importorskip("pairpool.joblib")
    assert set(OF_THE_POOL) - {"processes"} == joblib._OPTIONS


def test_names_of_options_are_the_keywords_of_pool() -> None:
    assert names_of_options() == set(OF_THE_POOL)
    assert names_of_options(keyword_only=True) == set(OF_THE_POOL) - POSITIONAL


def test_options_are_frozen() -> None:
    for options in (PoolOptions(1), CallOptions()):
        with pytest.raises(AttributeError):
            options.chunksize = 2  # type: ignore[misc]


def test_a_pool_option_is_checked_and_completed_once() -> None:
    options = PoolOptions(
        2, memory_limit="2GB", log_level="info", live=True, initargs=iter([1, 2]), task_timeout=3
    ).checked()
    assert (options.workers, options.memory_bytes, options.log_number) == (2, 2 * 10**9, 20)
    assert (options.capture, options.initargs) == (True, (1, 2))
    assert options.calls == CallOptions(task_timeout=3.0, retry_on=(WorkerDied,))


def test_a_call_that_asks_for_nothing_uses_the_options_of_the_pool() -> None:
    calls = PoolOptions(1, retries=2).checked().calls
    assert calls.override(None, None, None, None, None, False) is calls
    assert calls.of_single_calls() is calls


def test_a_call_overrides_what_it_asks_for() -> None:
    calls = PoolOptions(1, retries=2, task_timeout=5.0, chunksize=10).checked().calls
    found = calls.override(task_timeout=math.inf, retry_on=OSError, buffersize=7, return_exceptions=True)
    assert found == CallOptions(None, 2, (WorkerDied, OSError), 10, 7, True)
    assert found.of_single_calls() == CallOptions(None, 2, (WorkerDied, OSError))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"task_timeout": 0}, ValueError),
        ({"task_timeout": "1"}, TypeError),
        ({"retries": -1}, ValueError),
        ({"retry_on": int}, TypeError),
        ({"chunksize": 0}, ValueError),
        ({"chunksize": 1.5}, TypeError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": "1"}, TypeError),
    ],
)
def test_a_wrong_option_of_a_call_is_an_error(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        DEFAULTS.override(**wrong)
