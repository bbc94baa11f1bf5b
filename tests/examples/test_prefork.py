"""The prefork web server of the examples, under load while its workers are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.http_load import Load, run_load
from pairpool.linux import pidfds, process_tree
from tests.support.scripts import ROOT, running

SERVER = ROOT / "examples" / "prefork_http.py"
KILL_EVERY = 0.1


class Running:
    """A server in its own process."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid
        self.lost = -1
        self.complaints = ""

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rstrip("/").partition(":")
        return host, int(port)

    def workers(self) -> list[int]:
        return [worker for zygote in process_tree.children_of(self.pid) for worker in process_tree.children_of(zygote)]


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Running]:
    """Run the server, end it by SIGTERM, and record its last output."""
    with running(SERVER, "--port", 0, "--processes", 2, "--directory", directory) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        server = Running(line.partition(" ")[0], process.pid)
        yield server
        process.send_signal(signal.SIGTERM)
        rest, server.complaints = process.communicate(timeout=20)
        assert process.returncode == 0, server.complaints
        server.lost = int(rest.partition(" ")[0])


def exchange(server: Running, request: bytes) -> bytes:
    """Return everything that arrives until the server closes the connection."""
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_server_answers(tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("from a file\n")
    with serving(tmp_path) as server:
        found = exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 200 OK\r\n")
        assert found.endswith(b"\r\n\r\nhello\n")
        assert b"\r\nConnection: close\r\n" in found
        found = exchange(server, b"GET /file/hello.txt HTTP/1.0\r\n\r\n")
        assert found.endswith(b"from a file\n")
        # a client of HTTP/1.0 that asks for keep-alive, such as ab, needs a header that confirms it
        staying = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
        found = exchange(server, staying + b"GET / HTTP/1.0\r\n\r\n")
        assert re.findall(rb"\r\nConnection: (.*)\r\n", found) == [b"keep-alive", b"close"]
        assert exchange(server, b"GET /none HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 404")
        assert b"Error code: 400" in exchange(server, b"nonsense of no sort\r\n\r\n")
        # one worker answers requests that arrive together, one after the other
        pipelined = b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n" * 3 + b"GET / HTTP/1.0\r\n\r\n"
        assert exchange(server, pipelined).count(b"200 OK") == 4
    assert (server.lost, server.complaints) == (0, "")


def test_waiting_connections_survive_the_death_of_every_worker(tmp_path: Path) -> None:
    """There are more connections than workers. The master holds them, so each works after all workers were killed."""
    request = b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(tmp_path) as server:
        clients = [socket.create_connection(server.address, timeout=20) for _ in range(20)]
        first = [_ask(client, request) for client in clients]
        doomed = server.workers()
        handles = [os.pidfd_open(pid) for pid in doomed]
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        for handle in handles:
            pidfds.wait_ended(handle, None)
            os.close(handle)
        second = [_ask(client, request) for client in clients]
        for client in clients:
            client.close()
        assert set(first) <= set(doomed)
        assert not set(second) & set(doomed)
    assert server.lost == second.count(None) <= 2  # per worker at most the last connection, if it was not yet returned


def _ask(client: socket.socket, request: bytes) -> int | None:
    """Return the answer; None if the connection is dropped."""
    found = b""
    try:
        client.sendall(request)
        while not re.search(rb"\r\n\r\n\d+\n", found):
            part = client.recv(65536)
            if not part:
                return None
            found += part
    except ConnectionError:
        return None
    return int(found.rpartition(b"\r\n\r\n")[2])


def test_the_server_survives_more_connections_than_descriptors(tmp_path: Path) -> None:
    """The surplus connections wait in the kernel until others end. None is lost, and the master does not spin."""
    request = b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (110, before[1]))
        try:
            server = stack.enter_context(serving(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        clients = [socket.create_connection(server.address, timeout=20) for _ in range(100)]
        for client in clients:
            assert _ask(client, request) is not None
            client.close()
    assert (server.lost, server.complaints) == (0, "")


async def load_and_kill(server: Running, seconds: float) -> tuple[Load, int]:
    """Generate load while workers are killed. Return the result and the number of kills."""
    task = asyncio.create_task(run_load(server.url, 16, seconds))
    kills = 0
    until = time.monotonic() + seconds - KILL_EVERY
    while time.monotonic() < until:
        await asyncio.sleep(KILL_EVERY)
        for pid in server.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            kills += 1
    return await task, kills


@pytest.mark.hang_limit(90)
def test_a_killed_worker_costs_only_the_connection_that_it_serves(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        load, kills = asyncio.run(load_and_kill(server, 4.0))
    assert load.answers > 100
    assert kills > 10
    errors = sum(load.errors.values())
    # If the answer had gone out before the kill, the client notices the loss at its next request, if it sends one.
    assert load.errors.keys() <= {"dropped", "closed"}
    assert 0 < errors <= server.lost <= kills
    assert server.complaints.count("a connection was lost: worker") == server.lost
