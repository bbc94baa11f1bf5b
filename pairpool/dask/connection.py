"""Connect to a Dask scheduler within a time limit."""

from __future__ import annotations

import asyncio
from typing import Any

try:
    from distributed import Client
except ImportError as missing:
    raise ImportError("pairpool.dask needs Dask's distributed: pip install 'pairpool[dask]'") from missing

__all__ = ["Client", "connect"]


class _PunctualClient(Client):  # type: ignore[misc]  # it is Any to mypy
    """A client whose time limit includes the wait for the scheduler's greeting. Dask's own limit does not."""

    async def _start(self, timeout: float, **kwargs: Any) -> Any:
        try:
            return await asyncio.wait_for(super()._start(timeout=timeout, **kwargs), timeout)
        except TimeoutError:
            await self._close(fast=True)
            raise


def connect(address: str, timeout: float) -> Client:
    """Return a client of the scheduler at this address.

    Raises `ConnectionError` if no scheduler answers there within `timeout` seconds.
    """
    try:
        return _PunctualClient(address, timeout=timeout, set_as_default=False, name="pairpool")
    except (OSError, TimeoutError, ValueError, TypeError) as error:  # TypeError: another kind of Dask server answers
        reason = str(error) or "nothing there speaks as one"
        raise ConnectionError(f"there is no Dask scheduler at {address} within {timeout:g} s ({reason})") from None
