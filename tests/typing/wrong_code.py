"""Mistakes of users. A type checker must report each line that is marked."""

from __future__ import annotations

from pairpool import Executor, Pool


def length(text: str) -> int:
    return len(text)


def wrong(pool: Pool, executor: Executor) -> None:
    pool.map(length, [1, 2])  # wrong
    pool.imap(length, [1, 2])  # wrong
    pool.submit(length, 1)  # wrong
    executor.submit(length, "a", "b")  # wrong
    texts: list[str] = pool.map(length, ["a"])  # wrong
    Pool("2")  # wrong
    Pool(2, task_timeout="5")  # wrong
    pool.report().seconds.upper()  # wrong
    print(texts)
