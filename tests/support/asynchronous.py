"""Run coroutines in tests, and wait inside them while the event loop goes on and drives the pool."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from tests.support.gates import Reports
from tests.support.waiting import PATIENCE

__all__ = ["HAS_UVLOOP", "Run", "next_of", "run_debugged", "run_uvloop", "soon"]

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None


def run_debugged(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine by `asyncio.run` in debug mode, which reports calls from a wrong thread."""
    asyncio.run(main, debug=True)


def run_uvloop(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    uvloop.run(main)


async def soon(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, while the event loop goes on."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def next_of(reports: Reports) -> str:
    """Wait for the next report of a task, while the event loop goes on."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return reports.next(timeout=0)
            except TimeoutError:
                await asyncio.sleep(0.001)
