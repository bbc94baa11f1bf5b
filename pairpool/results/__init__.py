"""The results of calls: of single calls and maps, streams, and futures."""

from pairpool.results.async_result import AsyncResult, MapResult

__all__ = ["AsyncResult", "MapResult"]
