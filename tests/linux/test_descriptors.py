"""Descriptors: one owner each, closed in every child; and memfds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pairpool.linux import descriptors, forking
from tests.support.children import in_child


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.fixture
def pipe() -> Iterator[tuple[descriptors.Descriptor, descriptors.Descriptor]]:
    reading, writing = map(descriptors.Descriptor, os.pipe())
    yield reading, writing
    for end in (reading, writing):
        descriptors.disown(end)
        end.close()


Ends = tuple[descriptors.Descriptor, descriptors.Descriptor]


@pytest.mark.parametrize("fork", [os.fork, forking.fork], ids=["os.fork", "forking.fork"])
def test_owned_descriptors_are_closed_in_every_child(pipe: Ends, fork: Callable[[], int]) -> None:
    reading, writing = pipe
    descriptors.own(writing)
    numbers = reading.fileno(), writing.fileno()
    pid = fork()
    if pid == 0:
        os._exit(is_open(numbers[0]) * 2 + is_open(numbers[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert is_open(numbers[1])
    assert writing.fileno() == numbers[1]


def test_disowned_descriptors_are_kept(pipe: Ends) -> None:
    for end in pipe:
        descriptors.own(end)
    descriptors.disown(pipe[0])
    descriptors.disown(pipe[0])  # twice is harmless
    assert in_child(lambda: [is_open(end.fd) if end.fd >= 0 else False for end in pipe]) == [True, False]


def test_child_does_not_own_descriptors_of_its_parent(pipe: Ends) -> None:
    """The child reuses the number of a descriptor that the parent owns. The grandchild must not close it."""
    descriptors.own(pipe[0])
    number = pipe[0].fileno()

    def child() -> bool:
        fd = os.open(os.devnull, os.O_RDONLY)
        os.dup2(fd, number)
        return in_child(lambda: is_open(number))

    assert in_child(child)


def test_failing_close_does_not_keep_others_open(pipe: Ends) -> None:
    """The interpreter prints the error of the failing `close`, because no caller can get it."""

    class Stubborn:
        def close(self) -> None:
            raise OSError("stubborn")

    stubborn = Stubborn()
    descriptors.own(stubborn)
    descriptors.own(pipe[0])
    number = pipe[0].fileno()
    try:
        pid = os.fork()
        if pid == 0:
            os._exit(is_open(number))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        descriptors.disown(stubborn)


def test_sockets_can_be_owned() -> None:
    near, far = socket.socketpair()
    try:
        descriptors.own(near)
        assert in_child(lambda: near.fileno()) == -1
        assert near.fileno() >= 0
    finally:
        descriptors.disown(near)
        near.close()
        far.close()


def test_closing_a_descriptor_twice_closes_no_other(pipe: Ends) -> None:
    reading, writing = pipe
    number = reading.fileno()
    reading.close()
    fd = os.dup(writing.fileno())
    try:
        assert fd == number, "the number is in use again"
        reading.close()
        assert is_open(fd)
        assert reading.fileno() == -1
    finally:
        os.close(fd)


def test_a_memfd_has_its_size_and_closes_on_exec() -> None:
    fd = descriptors.memfd("a-name", 12_345)
    try:
        assert os.fstat(fd).st_size == 12_345
        assert not os.get_inheritable(fd)
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:a-name")
    finally:
        os.close(fd)


def test_a_memfd_that_cannot_grow_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "ftruncate", _no_memory)
    with pytest.raises(MemoryError):
        descriptors.memfd("too-large", 1)
    assert os.listdir("/proc/self/fd") == before


def _no_memory(_fd: int, _size: int) -> None:
    raise MemoryError


def test_the_size_of_a_fixed_memfd_is_fixed() -> None:
    fd = descriptors.fixed_memfd("a-name", 12_345)
    try:
        assert descriptors.fixed_size(fd) == 12_345
        for size in (0, 12_346):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    finally:
        os.close(fd)


def test_other_files_have_no_fixed_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    for fd in (descriptors.memfd("a-name", 100), os.open(path, os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)):
        try:
            assert descriptors.fixed_size(fd) == -1
        finally:
            os.close(fd)


def test_a_memfd_that_cannot_be_sealed_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(descriptors, "_FIXED_SEALS", -1)
    with pytest.raises(OSError, match="Invalid argument"):
        descriptors.fixed_memfd("a-name", 1)
    assert os.listdir("/proc/self/fd") == before
