"""A prefork web server: one process accepts, workers answer, and a worker that is killed takes one connection with it.

    python examples/prefork_http.py [--port 8000] [--processes N] [--directory D]

Routes: `/` greets, `/pid` names the worker, `/file/NAME` serves a file below the directory, `/crash` kills the worker.
Try it with `wrk -c 64 http://127.0.0.1:8000/` or `ab -k -c 64 -n 10000 http://127.0.0.1:8000/`, and `kill -9` workers.

    client ──► listener ─► master ── Fd ──► worker: one request, and those that have come already
                  epoll ◄─ master ◄── Fd ── worker: "it is to be kept alive"

The master holds every connection that waits for its next request, and watches all of them at once: they need no worker.
One that has something to read goes to a worker, which reads, answers, and gives it back. From then on nobody but that
worker has it; if it is killed, the kernel closes the connection, and no other one is touched.
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

PATIENCE = 5.0
"""Seconds that a worker waits for the rest of a request that has begun."""

BACKLOG = 4096

RESERVE = 64
"""Descriptors that are left to the pool, for workers that replace others, say."""


# --- in a worker --------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers requests; the protocol is `http.server`'s."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece

    def handle(self) -> None:
        """Answer one request, and those behind it that have arrived: nobody else could see what was read ahead."""
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
            self.connection.settimeout(PATIENCE)

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
        """Say whether the connection stays open, too: a client of HTTP/1.0, such as ab, expects that it does not."""
        super().send_response(code, message)
        if code < 400:  # `send_error` says so itself
            self.send_header("Connection", "close" if self.close_connection else "keep-alive")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for each request would be most of the work."""


def serve(directory: str, fd: Fd) -> Fd | None:
    """Answer what a connection asks; it is returned if it is to be kept alive."""
    connection = socket.socket(fileno=fd.detach())
    connection.settimeout(PATIENCE)
    try:
        handler = Handler(connection, ("", 0), None, directory=directory)  # type: ignore[arg-type]  # it asks no server
    except OSError:  # the client is gone
        connection.close()
        return None
    if handler.close_connection:
        connection.close()
        return None
    return Fd(connection.detach(), close=True)


# --- in the master ------------------------------------------------------------------------------------


class Server:
    """Accepts, watches what waits, and hands on what has something to read.

    Attributes:
        lost: connections that were being served by a worker that died.
        room: connections that are open at most; others wait in the kernel's backlog. Each may take two descriptors
            for a moment, for one that is handed on is copied.
    """

    def __init__(self, listener: socket.socket, pool: Pool, directory: str) -> None:
        self._listener = listener
        self._pool = pool
        self._serve = partial(serve, directory)
        self._waiting: dict[int, Fd] = {}
        self._epoll = select.epoll()
        self.lost = 0
        limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.room = max(1, (limit - len(os.listdir("/proc/self/fd")) - RESERVE) // 2)
        self._open = 0
        self._is_full = False
        self._lock = threading.Lock()  # for these two, for connections end in pairpool's thread
        listener.setblocking(False)
        self._epoll.register(listener, select.EPOLLIN)
        # a signal that comes just before epoll_wait would not end it, and its handler not run: a byte does, here
        self._signals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._epoll.register(self._signals, select.EPOLLIN)
        signal.set_wakeup_fd(self._wakeup.fileno())

    def run(self) -> None:
        """Serve until an exception ends it."""
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
            except OSError as error:  # the client has left again, or the machine has no more descriptors
                print(f"not accepted: {error}", file=sys.stderr)
                self._on_end()
                return
            self._watch(Fd(connection.detach(), close=True))

    def _has_room(self) -> bool:
        """Take a place for one more connection; if there is none, the listener is left alone until one ends."""
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
        """Wait for a connection's next request. Called by pairpool's thread, too: epoll allows that."""
        if fd is None:
            self._on_end()
            return
        self._waiting[fd.fileno()] = fd  # first, for the event may come at once
        self._epoll.register(fd.fileno(), select.EPOLLIN)

    def _hand_on(self, fd: Fd) -> None:
        self._pool.apply_async(self._serve, (fd,), callback=self._watch, error_callback=self._on_error)

    def _on_error(self, error: BaseException) -> None:
        if isinstance(error, CancelledError):
            return  # the server ends
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
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--processes", type=int, default=None, help="workers; as many as cores by default")
    parser.add_argument("--directory", type=Path, default=Path(), help="where /file/ leads to")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    with (
        Pool(options.processes) as pool,  # first: workers have what is open when they are forked
        socket.create_server((options.host, options.port), backlog=BACKLOG) as listener,
    ):
        host, port = listener.getsockname()
        server = Server(listener, pool, str(options.directory.resolve()))
        workers = ", ".join(str(worker.pid) for worker in pool.status().workers)
        print(f"http://{host}:{port}/ by workers {workers}", flush=True)
        try:
            server.run()
        except KeyboardInterrupt:
            pass  # the way to end it
        finally:
            pool.terminate()
            server.close()
            print(f"{server.lost} connections were lost with their workers")


if __name__ == "__main__":
    main()
