"""A prefork web server: one process accepts, workers answer. A killed worker costs one connection.

    python examples/prefork_http.py [--port 8000] [--processes N] [--directory D]

Routes: `/` greets, `/pid` names the worker, `/file/NAME` serves a file below the directory, `/crash` kills the worker.
Try it with `wrk -c 64 http://127.0.0.1:8000/` or `ab -k -c 64 -n 10000 http://127.0.0.1:8000/`, and `kill -9` workers.

    client ──► listener ─► master ── Fd ──► worker: answers one request, and those that have arrived behind it
                  epoll ◄─ master ◄── Fd ── worker: returns the connection if it is kept alive

1. The master watches all connections that wait for their next request. They need no worker.
2. A connection with a request goes to a worker. The worker reads, answers, and returns the connection.
3. Meanwhile no other process has the connection. If the worker is killed, the kernel closes this connection only.
"""

from __future__ import annotations

import argparse
import http.server
import os
import resource
import select
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from pairpool import CancelledError, Fd, Pool

REQUEST_LIMIT_S = 5.0
"""Seconds that a worker waits for the rest of a request."""

BACKLOG = 4096
"""Connections that wait in the kernel until the master accepts them."""

RESERVED_DESCRIPTORS = 64
"""Descriptors that are left to the pool, for example for replacements of workers."""


# --- in a worker --------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answer requests. `http.server` implements the protocol."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece

    def handle(self) -> None:
        """Answer one request, and those behind it that were read ahead: no other process can see these bytes."""
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.close_connection = True
        self.handle_one_request()
        while not self.close_connection and self._has_more():
            self.handle_one_request()

    def _has_more(self) -> bool:
        self.connection.settimeout(0)
        try:
            return bool(self.rfile.peek(1))  # type: ignore[attr-defined]  # it is a BufferedReader
        finally:
            self.connection.settimeout(REQUEST_LIMIT_S)

    def do_GET(self) -> None:
        if self.path == "/crash":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.path.startswith("/file/"):
            self.path = self.path.removeprefix("/file")
            super().do_GET()
        elif self.path in ("/", "/pid"):
            self._answer(b"hello\n" if self.path == "/" else b"%d\n" % os.getpid())
        else:
            self.send_error(404)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_response(self, code: int, message: str | None = None) -> None:
        """Add whether the connection stays open, because a client of HTTP/1.0 such as ab expects the opposite."""
        super().send_response(code, message)
        if code < 400:  # `send_error` adds this header itself
            self.send_header("Connection", "close" if self.close_connection else "keep-alive")

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because a line per request would be most of the work."""


def serve(directory: str, fd: Fd) -> Fd | None:
    """Answer the requests of a connection. Return the connection if it is kept alive."""
    connection = socket.socket(fileno=fd.detach())
    connection.settimeout(REQUEST_LIMIT_S)
    try:
        handler = Handler(connection, ("", 0), None, directory=directory)  # type: ignore[arg-type]  # the handler uses no server
    except OSError:  # the client is gone
        connection.close()
        return None
    if handler.close_connection:
        connection.close()
        return None
    return Fd(connection.detach(), close=True)


# --- in the master ------------------------------------------------------------------------------------


class Server:
    """Accept connections, watch those that wait, and hand those with a request to the pool.

    Attributes:
        lost: number of connections whose worker died.
        room: connections that may be open. Further ones wait in the kernel's backlog. A connection may take two
            descriptors for a moment, because the descriptor is copied for the worker.
    """

    def __init__(self, listener: socket.socket, pool: Pool, directory: str) -> None:
        self._listener = listener
        self._pool = pool
        self._serve = partial(serve, directory)
        self._waiting: dict[int, Fd] = {}
        self._epoll = select.epoll()
        self.lost = 0
        limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.room = max(1, (limit - len(os.listdir("/proc/self/fd")) - RESERVED_DESCRIPTORS) // 2)
        self._open = 0
        self._is_full = False
        self._lock = threading.Lock()  # for the two fields above: connections end in a thread of pairpool
        listener.setblocking(False)
        self._epoll.register(listener, select.EPOLLIN)
        # A signal just before epoll_wait would not end the wait, and its handler would not run. So a signal sends a
        # byte, which ends the wait.
        self._signals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._epoll.register(self._signals, select.EPOLLIN)
        signal.set_wakeup_fd(self._wakeup.fileno())

    def run(self) -> None:
        """Serve until an exception, such as KeyboardInterrupt."""
        while True:
            for number, _events in self._epoll.poll():
                if number == self._listener.fileno():
                    self._accept()
                elif number == self._signals.fileno():
                    self._signals.recv(64)
                else:
                    self._epoll.unregister(number)
                    self._hand_on(self._waiting.pop(number))

    def _accept(self) -> None:
        while self._has_room():
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                self._on_end()
                return
            except OSError as error:  # the client has closed the connection, or there are no more descriptors
                print(f"not accepted: {error}", file=sys.stderr)
                self._on_end()
                return
            self._watch(Fd(connection.detach(), close=True))

    def _has_room(self) -> bool:
        """Reserve room for one more connection. If there is none, ignore the listener until a connection ends."""
        with self._lock:
            self._is_full = self._open >= self.room
            if self._is_full:
                self._epoll.modify(self._listener, 0)
            else:
                self._open += 1
            return not self._is_full

    def _on_end(self) -> None:
        with self._lock:
            self._open -= 1
            if self._is_full:
                self._is_full = False
                self._epoll.modify(self._listener, select.EPOLLIN)

    def _watch(self, fd: Fd | None) -> None:
        """Wait for the next request of a connection. A thread of pairpool calls this, too, which epoll allows."""
        if fd is None:
            self._on_end()
            return
        self._waiting[fd.fileno()] = fd  # before the next line, because the event may come at once
        self._epoll.register(fd.fileno(), select.EPOLLIN)

    def _hand_on(self, fd: Fd) -> None:
        self._pool.apply_async(self._serve, (fd,), callback=self._watch, error_callback=self._on_error)

    def _on_error(self, error: BaseException) -> None:
        if isinstance(error, CancelledError):
            return  # the server is closing
        self._on_end()
        self.lost += 1
        print(f"a connection was lost: {error}".partition("\n")[0], file=sys.stderr)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        for thing in (self._epoll, self._signals, self._wakeup):
            thing.close()
        while self._waiting:
            self._waiting.popitem()[1].close()


def stop(*_: object) -> None:
    raise SystemExit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="A prefork web server whose workers may be killed.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    parser.add_argument("--processes", type=int, default=None, help="workers; as many as cores by default")
    parser.add_argument("--directory", type=Path, default=Path(), help="the directory of /file/")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    with (
        Pool(options.processes) as pool,  # before the listener, because workers inherit open descriptors
        socket.create_server((options.host, options.port), backlog=BACKLOG) as listener,
    ):
        host, port = listener.getsockname()
        server = Server(listener, pool, str(options.directory.resolve()))
        workers = ", ".join(str(worker.pid) for worker in pool.status().workers)
        print(f"http://{host}:{port}/ by workers {workers}", flush=True)
        try:
            server.run()
        except KeyboardInterrupt:
            pass  # Ctrl-C ends the server
        finally:
            pool.terminate()
            server.close()
            print(f"{server.lost} connections were lost with their workers")


if __name__ == "__main__":
    main()
