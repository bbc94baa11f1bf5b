"""Fetch and parse pages at the same time: the event loop waits for servers, and workers parse the pages.

    python examples/async_fetch.py [http://host:port/path ...]

Without addresses, the program starts its own server with 200 pages. Only a few pages wait for a worker at any time,
however many addresses there are.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from html.parser import HTMLParser
from urllib.parse import urlsplit

from pairpool import AsyncPool

AT_ONCE = 8
"""Pages that are fetched at the same time."""

PAGES = 200
"""Pages of the program's own server."""


class Page(HTMLParser):
    """A parser that counts the words and links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: Counter[str] = Counter()
        self.links = 0

    def handle_data(self, data: str) -> None:
        self.words.update(word.strip(".,;").lower() for word in data.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += tag == "a" and "href" in dict(attrs)


def parse(page: tuple[str, str]) -> tuple[str, int, Counter[str]]:
    """Return the address, the number of links, and the words of a page. Runs in a worker."""
    address, text = page
    parser = Page()
    parser.feed(text)
    return address, parser.links, parser.words


async def fetch(address: str) -> tuple[str, str]:
    """Fetch a page by HTTP/1.0, where the end of the connection is the end of the page."""
    url = urlsplit(address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 80)
    try:
        writer.write(f"GET {url.path or '/'} HTTP/1.0\r\nHost: {url.netloc}\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status = head.split(b"\r\n")[0].decode()
    if " 200 " not in f"{status} ":
        raise OSError(f"{address}: {status}")
    return address, body.decode("utf-8", "replace")


async def fetch_all(addresses: Iterable[str]) -> AsyncIterator[tuple[str, str]]:
    """Yield pages as they arrive. A few of them are fetched at the same time."""
    left = iter(addresses)
    waiting = {asyncio.create_task(fetch(address)) for _, address in zip(range(AT_ONCE), left, strict=False)}
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting |= {asyncio.create_task(fetch(address)) for _, address in zip(done, left, strict=False)}
            for task in done:
                try:
                    yield task.result()
                except OSError as error:
                    print(error, file=sys.stderr)
    finally:
        for task in waiting:
            task.cancel()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with a page of about 15 kB, whose content depends on its number."""
    request = await reader.readuntil(b"\r\n\r\n")
    number = int(request.split()[1].strip(b"/") or 0)
    rows = "".join(f"<p>row {row} of <a href='/{row}'>page {number}</a></p>" for row in range(300))
    writer.write(f"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>{rows}</html>".encode())
    await writer.drain()
    writer.close()


async def main(addresses: list[str]) -> None:
    server = None
    if not addresses:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        addresses = [f"http://127.0.0.1:{port}/{number}" for number in range(PAGES)]
    begin = time.perf_counter()
    pages = links = 0
    words: Counter[str] = Counter()
    async with AsyncPool() as pool:
        async for _address, found, counted in pool.imap_unordered(parse, fetch_all(addresses)):
            pages, links = pages + 1, links + found
            words += counted
    seconds = time.perf_counter() - begin
    print(f"{pages} pages, {links:,} links, {words.total():,} words in {seconds:.2f} s")
    print("most frequent:", ", ".join(f"{word} ({count:,})" for word, count in words.most_common(4)))
    if server is not None:
        server.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
