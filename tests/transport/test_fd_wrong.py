"""What cannot be sent: closed, full, of a kind that does not travel. Each item fails for itself."""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import pytest

import pairpool
from pairpool import Fd, Pool
from tests.support import descriptor_tasks as work
from tests.support.descriptors import socket_pairs
from tests.support.scripts import python, write_script


def closed_pair() -> Connection:
    near, far = Pipe()
    near.close()
    far.close()
    return near


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fd(9999), r"<pairpool.Fd 9999> cannot be sent: its descriptor 9999 is not open"),
        (lambda: work.closed_socket(None), r"<socket.socket \[closed\].* cannot be sent: it is closed"),
        (closed_pair, r"Connection.* cannot be sent: it is closed"),
    ],
)
def test_a_closed_socket_fails_its_own_item(pool: Pool, make: Callable[[], Any], words: str) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    found = pool.map(work.use, [1, make(), Fd(null), "last"], return_exceptions=True)
    os.close(null)
    assert (found[0], found[3]) == (1, "last")
    assert isinstance(found[1], OSError)
    assert found[1].errno == errno.EBADF
    with pytest.raises(OSError, match=words):
        raise found[1]


def test_a_closed_file_and_a_closed_fd(pool: Pool) -> None:
    with open("/dev/null") as file:
        pass
    with pytest.raises(OSError, match=r"/dev/null.* cannot be sent: it is closed"):
        pool.apply(work.use, (file,))
    fd = Fd(os.open("/dev/null", os.O_RDONLY), close=True)
    pool.map(work.ignore, [fd])
    with pytest.raises(ValueError, match="handed over"):
        pool.map(work.ignore, [fd])


def test_fd_refuses_values_that_are_no_descriptors() -> None:
    for wrong in ("3", 3.0, None, True, sys.stdin):
        with pytest.raises(TypeError, match=r"Fd\(\) takes the number of a descriptor"):
            Fd(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not -1"):
        Fd(-1)


def test_an_ssl_socket_is_refused_with_a_reason(pool: Pool) -> None:
    near, far = socket.socketpair()
    with (
        near,
        far,
        ssl.create_default_context().wrap_socket(far, do_handshake_on_connect=False, server_hostname="x") as wrapped,
        pytest.raises(TypeError, match="send the plain socket before the handshake"),
    ):
        pool.apply(work.use, (wrapped,))


def test_a_closed_socket_as_a_result(pool: Pool) -> None:
    with pytest.raises(Exception, match="cannot be sent: it is closed"):
        pool.apply(work.closed_socket, (None,))


def test_plain_pickles_refuse_them(pool: Pool) -> None:
    import pickle

    null = Fd(os.open("/dev/null", os.O_RDONLY), close=True)
    with null:
        with pytest.raises(TypeError, match=r"understood by the tasks of a pairpool\.Pool"):
            pickle.dumps(null)
        with pytest.raises(TypeError, match=r"understood by the tasks of a pairpool\.Pool"):
            pool.share([null])
        with socket.socket() as sock, pytest.raises(TypeError, match="cannot pickle 'socket' object"):
            pool.share([sock])


def test_the_table_of_the_sender_is_full(pool: Pool) -> None:
    """Items before the one that finds no room go out, and that one then: its room is free again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        ends = socket_pairs(opened, 40)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 9, hard))
        try:
            assert pool.map(work.sign, [far for _near, far in ends], 40) == [pool._pool[0].pid] * 40
            with pytest.raises(OSError, match=rf"RLIMIT_NOFILE is {lowest + 9}") as caught:
                pool.apply(work.count_distinct, ([Fd(0) for _ in range(20)],))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EMFILE


LEAN = """
import sys
import pairpool
assert "multiprocessing" not in sys.modules and "socket" not in sys.modules
with pairpool.Pool(1) as pool:
    assert pool.map(len, ["ab"]) == [2]
    assert "multiprocessing.connection" not in sys.modules and "tempfile" not in sys.modules
    print("lean", flush=True)
    pool.apply(print, ("by name",), {"file": sys.stdout, "flush": True})
    assert pool.apply(lambda: sys.stderr) is sys.stderr
"""


def test_passing_descriptors_imports_nothing(tmp_path: Path) -> None:
    done = python(write_script(tmp_path, LEAN))
    assert (done.stdout, done.stderr) == ("lean\nby name\n", "")
    assert pairpool.Fd is Fd
