"""Tasks that misuse the memory that they share with the master: they harm themselves only."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pairpool.transport import payload_shm
from pairpool.transport.payload_shm import BUSY_OFFSET, PayloadReader
from tests.support.pools import MakePool

LARGE = 300_000
"""Bytes of a payload that travels in shared memory."""


def memfds(pid: int | str, name: str) -> Iterator[str]:
    """Yield the paths of the memfds of a process that have this name."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        try:
            if os.readlink(path) == f"/memfd:{name} (deleted)":
                yield path
        except FileNotFoundError:
            continue  # the descriptor that lists the directory


def cut_off(pid: int | str, name: str) -> list[str]:
    """Try to make the memfds of a process shorter, and return the errors."""
    errors = []
    for path in memfds(pid, name):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, 0)
        except PermissionError as error:
            errors.append(str(error))
        finally:
            os.close(fd)
    return errors


def large_result(_item: object) -> bytes:
    return bytes(LARGE)


def size_of(data: bytes) -> int:
    return len(data)


@pytest.mark.parametrize("name", ["pairpool-board", "pairpool-payload"])
def test_memory_of_the_pool_cannot_be_cut_off_by_a_task(make_pool: MakePool, start_method: str, name: str) -> None:
    pool = make_pool(2)
    pool.map(large_result, range(4), chunksize=1)
    pool.map(size_of, [bytes(LARGE)] * 4, chunksize=1)
    errors = [error for part in pool.map(cut_off_both, [(os.getpid(), name)] * 4, chunksize=1) for error in part]
    assert errors
    assert all("not permitted" in error for error in errors)
    assert pool.map(size_of, pool.map(large_result, range(4), chunksize=1), chunksize=1) == [LARGE] * 4
    assert pool.status().done >= 20


def cut_off_both(where: tuple[int, str]) -> list[str]:
    master, name = where
    return cut_off("self", name) + cut_off(master, name)


class _NeverFree:
    """In place of the layout of a word: stores nothing."""

    def __init__(self, word: Any) -> None:
        self.unpack_from = word.unpack_from

    def pack_into(self, *_arguments: object) -> None:
        pass


def keep_busy(data: bytes) -> int:
    """Let the payload buffers of the master seem to be unread, now and later."""
    word = payload_shm._WORD
    for one in gc.get_objects():
        if isinstance(one, PayloadReader):
            for mapped in one._maps.values():
                word.pack_into(mapped, BUSY_OFFSET, 1)
    payload_shm._WORD = _NeverFree(word)  # type: ignore[assignment]
    return len(data)


def test_a_worker_that_does_not_free_payloads_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool(1)
    assert pool.map(keep_busy, [bytes(LARGE)] * 20, chunksize=1) == [LARGE] * 20
    assert len(list(memfds("self", "pairpool-payload"))) <= 8
    assert pool.status().workers[0].replaced >= 5
