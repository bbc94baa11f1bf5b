"""Code of users, for type checkers. It never runs. Each `assert_type` states the type that checkers must infer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import assert_type

import pairpool
from pairpool import (
    AsyncPool,
    AsyncResult,
    AsyncStream,
    Executor,
    IMapIterator,
    MapResult,
    OutputLine,
    Pool,
    PoolStatus,
    Shared,
    TaskTimeout,
    WorkerDied,
    get_executor,
)
from pairpool.dask import ClusterMismatch, ClusterPool, ClusterStream


def length(text: str) -> int:
    return len(text)


def join(left: str, right: str, *, sep: str = "") -> str:
    return left + sep + right


def pools(words: list[str]) -> None:
    with Pool(2, task_timeout=5.0, retries=1, retry_on=OSError, memory_limit="1GB") as pool:
        assert_type(pool, Pool)
        assert_type(pool.map(length, words), list[int])
        assert_type(pool.map(length, iter(words), 4, return_exceptions=False), list[int])
        assert_type(pool.starmap(join, zip(words, words, strict=True)), list[str])
        assert_type(pool.apply(length, ("word",)), int)
        assert_type(pool.apply_async(length, ("word",)), AsyncResult[int])
        assert_type(pool.apply_async(length, ("word",)).get(), int)
        assert_type(pool.map_async(length, words), MapResult[list[int]])
        assert_type(pool.map_async(length, words).get(1.0), list[int])
        assert_type(pool.imap(length, words), IMapIterator[int])
        for number in pool.imap_unordered(length, words, buffersize=10):
            assert_type(number, int)
        assert_type(pool.submit(join, "a", "b", sep="-").result(), str)
        assert_type(pool.share(words), Shared[list[str]])
        status = pool.status()
        assert_type(status, PoolStatus)
        assert_type(status.workers[0].item, int | None)
        assert_type(pool.stacks(), dict[int, str])
        pool.map(lambda word: len(word), words)


def with_exceptions_in_the_places_of_results(pool: Pool, words: list[str], keep: bool) -> None:
    outcomes = pool.map(length, words, return_exceptions=True)
    assert_type(outcomes, list[int | BaseException])
    for outcome in outcomes:
        if isinstance(outcome, WorkerDied):
            print(outcome.pid, outcome.signal)
        elif isinstance(outcome, TaskTimeout):
            print(outcome.limit)
        elif not isinstance(outcome, BaseException):
            assert_type(outcome, int)
    assert_type(pool.map(length, words, return_exceptions=keep, task_timeout=1), list[int | BaseException])
    assert_type(pool.starmap(join, [("a", "b")], return_exceptions=True, retries=1), list[str | BaseException])
    assert_type(pool.imap(length, words, return_exceptions=True), IMapIterator[int | BaseException])
    assert_type(pool.imap_unordered(length, words, 2, return_exceptions=True), IMapIterator[int | BaseException])
    assert_type(pool.map_async(length, words, return_exceptions=True), MapResult[list[int | BaseException]])
    assert_type(pool.starmap_async(join, [("a", "b")], return_exceptions=True).get(), list[str | BaseException])


async def awaited(words: list[str]) -> None:
    async def lines() -> AsyncIterator[str]:
        for word in words:
            yield word

    async with AsyncPool(2, task_timeout=1.0) as pool:
        assert_type(await pool.run(join, "a", "b", sep="-"), str)
        assert_type(await pool.map(length, words), list[int])
        assert_type(await pool.map(length, lines(), return_exceptions=True), list[int | BaseException])
        assert_type(await pool.starmap(join, [("a", "b")]), list[str])
        assert_type(await asyncio.gather(pool.run(length, "a"), pool.run(str, 1)), tuple[int, str])
        assert_type(await pool.with_options(retries=1).run(length, "a"), int)
        assert_type(pool.imap(length, lines()), AsyncStream[int])
        async for number in pool.imap_unordered(length, lines(), buffersize=10):
            assert_type(number, int)
        async for outcome in pool.imap(length, words, return_exceptions=True):
            assert_type(outcome, int | BaseException)


def far_away(words: list[str]) -> None:
    with ClusterPool("tcp://scheduler:8786", timeout=3, task_timeout=2.0, retry_on=OSError) as pool, pool.live():
        assert_type(pool.nodes, dict[str, int])
        assert_type(pool.map(length, words), list[int])
        assert_type(pool.map(length, words, return_exceptions=True), list[int | BaseException])
        assert_type(pool.starmap(join, [("a", "b")], retries=1), list[str])
        assert_type(pool.imap(length, words), ClusterStream[int])
        assert_type(pool.imap_unordered(length, words).next(1.0), int)
        assert_type(pool.apply(join, ("a", "b"), {"sep": "-"}, task_timeout=1), str)
        assert_type(pool.map_async(length, words).get(1.0), list[int])
        future: Future[str] = pool.submit(join, "a", "b", sep="-")
        assert_type(future.result(), str)
    try:
        ClusterPool("tcp://scheduler:8786")
    except (ConnectionError, ClusterMismatch) as error:
        print(error)


def lengths_to(pool: Pool) -> None:
    def take(lines: OutputLine) -> None:
        assert_type(lines.text, str)

    with Pool(capture=take, log_level="INFO") as other:
        assert_type(other.map(length, ["a"]), list[int])
    results = pool.map_async(length, ["a"], callback=print, error_callback=print)
    assert_type(results.ready(), bool)


def executors(words: list[str]) -> list[int]:
    with Executor(max_workers=2, max_tasks_per_child=10) as executor:
        futures = [executor.submit(length, word) for word in words]
        for future in as_completed(futures):
            assert_type(future.result(), int)
        standard: Future[int] = executor.submit(length, "word")
        assert_type(standard.exception(), BaseException | None)
        results: Iterator[int] = executor.map(length, words)
        return list(results)


def either(parallel: bool) -> None:
    executor = get_executor(2) if parallel else ProcessPoolExecutor()
    future: Future[int] = executor.submit(length, "word")
    try:
        print(future.result(timeout=1.0))
    except WorkerDied as died:
        assert_type(died.pid, int)
        assert_type(died.exitcode, int | None)


async def in_a_loop(executor: Executor) -> int:
    return await asyncio.get_running_loop().run_in_executor(executor, length, "word")


def in_a_task(steps: int) -> None:
    for step in range(steps):
        pairpool.progress(step, steps, note="so far")
