"""Pools for asyncio: `AsyncPool`, whose calls are awaited, and which needs no thread.

await ─► AsyncPool ─► Core ─► Engine            calls, and the pool below
async for ◄─ AsyncStream ◄─ FedJob ◄─ Feed      results out; items in, as there is room
asyncio's event loop ─► AsyncioDriver ─► Engine   short turns (master/asyncio_driver.py)
"""

from __future__ import annotations

from pairpool.aio.pool import AsyncPool
from pairpool.aio.stream import AsyncStream

__all__ = ["AsyncPool", "AsyncStream"]
