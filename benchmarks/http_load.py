"""Generate load for an HTTP/1.1 server with keep-alive, on machines without wrk or ab.

    python benchmarks/http_load.py http://127.0.0.1:8000/ --connections 64 --seconds 5

One thread drives all connections. Each connection sends its next request when the answer to the last one is complete.
A good answer has status 200 and a body of the announced length. Everything else is an error of one of these kinds:

    dropped      the connection ended before the answer was complete, as when its worker is killed
    closed       the connection had ended before the next request, although the server had kept it alive
    refused      no connection could be made
    wrong        another status, or not HTTP
    slow         no complete answer within `ANSWER_LIMIT_S` seconds
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Load", "run_load"]

ANSWER_LIMIT_S = 10.0


@dataclass
class Load:
    """The result of a run.

    Attributes:
        answers: number of good answers.
        errors: number of errors of each kind.
        seconds: from the first request to the last answer.
        latencies: seconds from each request to its answer.
    """

    answers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        cuts = statistics.quantiles(self.latencies, n=100) if len(self.latencies) > 1 else [0.0] * 99
        return {
            "answers": self.answers,
            "answers_per_second": round(self.answers / self.seconds, 1) if self.seconds else 0.0,
            "errors": dict(self.errors),
            "latency_ms": {"p50": round(cuts[49] * 1e3, 3), "p99": round(cuts[98] * 1e3, 3)},
        }


class _Wrong(Exception):
    """The answer is not HTTP, or does not have status 200."""


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
    """Send a request and read its answer. Return whether the server keeps the connection alive."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if status.split()[1:2] != ["200"]:
        raise _Wrong(status)
    await reader.readexactly(int(fields["content-length"]))
    return fields.get("connection", "").lower() != "close"


async def _leave(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once, and wait for the end."""
    writer.transport.abort()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass  # the error was counted before


async def _client(host: str, port: int, request: bytes, until: float, load: Load) -> None:
    """Use one connection after the other until the time is up."""
    while time.monotonic() < until:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            load.errors["refused"] += 1
            await asyncio.sleep(0.01)
            continue
        try:
            keep = True
            while keep and time.monotonic() < until:
                if reader.at_eof():
                    load.errors["closed"] += 1
                    break
                began = time.monotonic()
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    keep = await _exchange(reader, writer, request)
                load.answers += 1
                load.latencies.append(time.monotonic() - began)
        except (asyncio.IncompleteReadError, ConnectionError):
            load.errors["dropped"] += 1
        except (_Wrong, KeyError, ValueError):
            load.errors["wrong"] += 1
        except TimeoutError:
            load.errors["slow"] += 1
        finally:
            await _leave(writer)


async def run_load(url: str, connections: int, seconds: float) -> Load:
    """Keep connections busy for some seconds, and return the result."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    load = Load()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(_client(host, port, request, began + seconds, load))
    load.seconds = time.monotonic() - began
    return load


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate load for an HTTP server, and count every error.")
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    load = asyncio.run(run_load(options.url, options.connections, options.seconds))
    print(json.dumps(load.summary()))


if __name__ == "__main__":
    main()
