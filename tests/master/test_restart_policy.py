"""Test when failed starts are tried again, and when the pool gives up. The clock is made up."""

from __future__ import annotations

from pairpool.master.restart_policy import (
    FORK_REFUSALS_ALLOWED,
    FORK_RETRY_AFTER_S,
    INITIALIZER_PAUSE_FACTOR,
    INITIALIZER_TRIES,
    STARTUP_DEATHS_ALLOWED,
    RestartPolicy,
)


def test_a_refused_fork_is_tried_again_after_a_pause() -> None:
    policy = RestartPolicy()
    policy.plan_fork(3, now=100.0)
    assert 3 in policy.retry_at
    assert policy.take_due(100.0) == []
    assert policy.take_due(100.0 + FORK_RETRY_AFTER_S) == [3]
    assert policy.retry_at == {}


def test_refused_forks_are_hopeless_only_without_workers() -> None:
    policy = RestartPolicy()
    verdicts = [policy.fork_refused(has_workers=True) for _ in range(FORK_REFUSALS_ALLOWED + 1)]
    assert not any(verdicts)
    assert policy.fork_refused(has_workers=False)
    policy.fork_succeeded()
    assert not policy.fork_refused(has_workers=False)


def test_the_pauses_of_a_failing_initializer_grow() -> None:
    policy = RestartPolicy()
    pause = FORK_RETRY_AFTER_S
    for tries in range(1, INITIALIZER_TRIES + 1):
        assert policy.initializer_failed(0) == (tries == INITIALIZER_TRIES)
        policy.plan_initializer(0, now=0.0)
        assert policy.take_due(pause * 0.99) == []
        assert policy.take_due(pause * 1.01) == [0]
        pause *= INITIALIZER_PAUSE_FACTOR


def test_an_initializer_that_returns_ends_the_count_of_its_place() -> None:
    policy = RestartPolicy()
    policy.initializer_failed(0)
    policy.initializer_succeeded(0)
    assert [policy.initializer_failed(0) for _ in range(INITIALIZER_TRIES)][-2:] == [False, True]


def test_the_pool_gives_up_after_startup_deaths_in_a_row() -> None:
    policy = RestartPolicy()
    verdicts = [policy.died_at_startup(processes=2) for _ in range(STARTUP_DEATHS_ALLOWED + 3)]
    assert verdicts == [False] * (STARTUP_DEATHS_ALLOWED + 2) + [True]
    policy.worker_succeeded()
    assert not policy.died_at_startup(processes=2)
