"""Pools for asyncio: `AsyncPool`, whose calls are awaited, and which needs no thread.

await ─► AsyncPool ─► Core ─► Master            the calls, and the pool beneath
async for ◄─ AsyncStream ◄─ Feed ─► FedJob      items in, as there is room; results out
               Attendant ─► Loop                the event loop turns the pool's own (master/attendant.py)
"""

from __future__ import annotations

from pairpool.aio.pool import AsyncPool
from pairpool.aio.stream import AsyncStream

__all__ = ["AsyncPool", "AsyncStream"]
