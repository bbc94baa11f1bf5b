"""Payload buffers: contents, reuse by both sides, and the release of memory, descriptors and mappings."""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.linux import descriptors
from pairpool.transport import payload_shm, warm_memory
from pairpool.transport.payload_shm import DATA_OFFSET, RECLAIM_OFFSET, PayloadBuffer, PayloadBuffers, PayloadReader
from pairpool.transport.warm_memory import WarmMemory
from pairpool.transport.wire import Buffer, ProtocolError

SMALLEST_CAPACITY = 1 << 12
HUGE_PAGES_FROM = 1 << 14
KEPT_UP_TO = 1 << 16


class Direction:
    """The payload buffers of one direction, with their writer and their reader in this process."""

    def __init__(self) -> None:
        self.buffers = PayloadBuffers()
        self.reader = PayloadReader()

    def put(self, *pieces: Buffer) -> PayloadBuffer:
        return self.buffers.put(pieces, sum(memoryview(piece).nbytes for piece in pieces))

    def send(self, buffer: PayloadBuffer) -> tuple[bytes, list[int]]:
        """Return the contents of a packet for a buffer: its reference, and its memfd if the reader does not have it."""
        fds = [] if buffer.known else [os.dup(buffer.fd.fileno())]
        buffer.sent()
        return buffer.reference(), fds

    def read(self, packet: tuple[bytes, list[int]], size: int) -> bytes:
        found: list[bytes] = []
        self.reader.read(*packet[:1], size, packet[1], lambda content: found.append(bytes(content)))
        return found[0]

    def put_and_read(self, content: Buffer) -> PayloadBuffer:
        """Write, send and read a payload. Return the buffer that was used."""
        buffer = self.put(content)
        assert self.read(self.send(buffer), len(content)) == content
        return buffer

    def close(self) -> None:
        self.buffers.close()
        self.reader.close()


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use limits of some kilobytes in place of megabytes."""
    monkeypatch.setattr(payload_shm, "SMALLEST_CAPACITY_BYTES", SMALLEST_CAPACITY)
    monkeypatch.setattr(payload_shm, "KEPT_UP_TO_BYTES", KEPT_UP_TO)
    monkeypatch.setattr(warm_memory, "HUGE_PAGES_FROM_BYTES", HUGE_PAGES_FROM)
    monkeypatch.setattr(payload_shm, "_PWRITE_STEP_BYTES", 5000)


@pytest.fixture
def direction() -> Iterator[Direction]:
    direction = Direction()
    yield direction
    direction.close()


class Open(NamedTuple):
    """The memfds of payload buffers that this process has open, and their mappings."""

    files: int
    mappings: int


def _buffer_files() -> set[int]:
    """Return the inodes of the memfds. CPython's mappings may have a second descriptor of each."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:pairpool-payload "):
                found.add(os.stat(int(name)).st_ino)
        except FileNotFoundError:
            continue  # the descriptor that lists the directory
    return found


def _buffer_mappings() -> int:
    with open("/proc/self/maps") as file:
        return sum("/memfd:pairpool-payload" in line for line in file)


@pytest.fixture
def opened() -> Callable[[], Open]:
    """Return a function that counts the memfds and mappings that are new since the test began."""
    files, mappings = _buffer_files(), _buffer_mappings()
    return lambda: Open(len(_buffer_files() - files), _buffer_mappings() - mappings)


# --- reuse -------------------------------------------------------------------------------------------


def test_a_buffer_is_used_again_after_its_payload_was_read(direction: Direction) -> None:
    first = direction.put(b"first")
    assert not first.known
    assert direction.read(direction.send(first), 5) == b"first"
    again = direction.put(b"second")
    assert again is first
    assert again.known
    assert direction.read((again.reference(), []), 6) == b"second"


def test_a_buffer_is_busy_until_its_payload_was_read(direction: Direction) -> None:
    buffer = direction.put(b"x")
    assert buffer.busy
    packet = direction.send(buffer)
    seen: list[bool] = []
    direction.reader.read(packet[0], 1, packet[1], lambda _content: seen.append(buffer.busy))
    assert seen == [True]
    assert not buffer.busy


def test_a_busy_buffer_is_not_used(direction: Direction) -> None:
    first, second = direction.put(b"first"), direction.put(b"second")
    assert first.number != second.number
    packets = direction.send(first), direction.send(second)
    assert direction.read(packets[1], 6) == b"second"
    assert direction.put(b"third") is second
    assert direction.read(packets[0], 5) == b"first"
    assert direction.read(direction.send(second), 5) == b"third"


def test_the_smallest_free_buffer_that_fits_is_used(direction: Direction) -> None:
    large, small = direction.put(bytes(4 * SMALLEST_CAPACITY)), direction.put(b"x")
    for buffer, size in ((large, 4 * SMALLEST_CAPACITY), (small, 1)):
        direction.read(direction.send(buffer), size)
    assert direction.put(bytes(SMALLEST_CAPACITY)) is small
    assert direction.put(bytes(SMALLEST_CAPACITY)) is large


def test_a_buffer_that_is_too_small_is_replaced_under_its_number(
    direction: Direction, opened: Callable[[], Open]
) -> None:
    small = direction.put_and_read(b"small")
    content = os.urandom(3 * SMALLEST_CAPACITY)
    large = direction.put(content)
    assert large is not small
    assert large.number == small.number
    assert large.capacity >= len(content) > small.capacity
    assert not large.known, "the reader has the memfd of another buffer under this number"
    assert direction.read(direction.send(large), len(content)) == content
    assert direction.put_and_read(b"warm") is large
    assert opened() == Open(files=1, mappings=2)


def test_warm_memory_does_not_grow_with_the_number_of_payloads(
    direction: Direction, opened: Callable[[], Open]
) -> None:
    for size in [SMALLEST_CAPACITY, KEPT_UP_TO, 100, 2 * SMALLEST_CAPACITY] * 5:
        direction.put_and_read(bytes(size))
    assert direction.buffers.warm_bytes == KEPT_UP_TO
    assert opened() == Open(files=1, mappings=2)


def test_an_unread_buffer_can_be_taken_back(direction: Direction) -> None:
    buffer = direction.put(b"taken back")
    reference, fds = direction.send(buffer)
    for fd in fds:
        os.close(fd)
    direction.buffers.taken_back(memoryview(reference), known=False)
    assert (buffer.busy, buffer.known) == (False, False)
    assert direction.put_and_read(b"sent again") is buffer
    reference, _fds = direction.send(direction.put(b"taken back once more"))
    direction.buffers.taken_back(reference, known=True)
    assert (buffer.busy, buffer.known) == (False, True)
    assert direction.put_and_read(b"and the reader has it already") is buffer


def test_a_failure_during_reading_frees_the_buffer(direction: Direction) -> None:
    def fail(_content: memoryview) -> None:
        raise ZeroDivisionError

    buffer = direction.put(b"x")
    packet = direction.send(buffer)
    with pytest.raises(ZeroDivisionError):
        direction.reader.read(packet[0], 1, packet[1], fail)
    assert not buffer.busy
    assert direction.put_and_read(b"next") is buffer


# --- single use ---------------------------------------------------------------------------------------


def test_a_buffer_of_the_largest_kept_size_is_kept(direction: Direction) -> None:
    buffer = direction.put_and_read(bytes(KEPT_UP_TO))
    assert not buffer.one_shot
    assert direction.put_and_read(bytes(KEPT_UP_TO)) is buffer


def test_a_larger_buffer_is_used_once(direction: Direction, opened: Callable[[], Open]) -> None:
    content = os.urandom(KEPT_UP_TO + 1)
    buffer = direction.put_and_read(content)
    assert buffer.one_shot
    assert opened().mappings == 1, "the reader unmaps the buffer at once"
    number = buffer.number
    after = direction.put_and_read(b"x")
    assert after.number != number or not after.one_shot
    assert direction.buffers.warm_bytes == SMALLEST_CAPACITY
    assert opened() == Open(files=1, mappings=2)


def test_the_memory_of_a_larger_buffer_is_freed_after_reading(direction: Direction) -> None:
    """The reader frees the memory, because the writer may never send another large payload."""
    buffer = direction.put(bytes(KEPT_UP_TO + 1))
    held = os.fstat(buffer.fd.fileno()).st_blocks * 512
    assert held > KEPT_UP_TO
    packet = direction.send(buffer)
    watch = os.dup(buffer.fd.fileno())
    try:
        direction.read(packet, KEPT_UP_TO + 1)
        assert os.fstat(watch).st_blocks * 512 <= SMALLEST_CAPACITY
    finally:
        os.close(watch)


# --- contents -----------------------------------------------------------------------------------------


def _doubles(values: list[float]) -> memoryview:
    return memoryview(array.array("d", values))


def _table(data: bytes) -> memoryview:
    rows = len(data) // 6 + 1
    return memoryview(data.ljust(rows * 6)).cast("B", (rows, 2, 3))


DATA = st.builds(lambda seed, size: (seed * size)[:size], st.binary(min_size=7, max_size=7), st.integers(0, 9000))
PIECES: st.SearchStrategy[Buffer] = st.one_of(
    DATA,
    DATA.map(bytearray),
    DATA.map(lambda data: memoryview(data)),
    DATA.map(lambda data: memoryview(data)[1:-1]),
    DATA.map(_table),
    st.lists(st.floats(), max_size=50).map(_doubles),
)


@given(payloads=st.lists(st.lists(PIECES, max_size=6), min_size=1, max_size=6))
def test_pieces_arrive_one_after_the_other(payloads: list[list[Buffer]]) -> None:
    """The buffers grow and are partly warm, so that a piece is copied in part and written by pwrite in part."""
    direction = Direction()
    try:
        for pieces in payloads:
            expected = b"".join(memoryview(piece).tobytes() for piece in pieces)
            buffer = direction.put(*pieces)
            assert direction.read(direction.send(buffer), len(expected)) == expected
    finally:
        direction.close()


def test_pieces_stay_usable_after_writing(direction: Direction) -> None:
    piece = bytearray(b"mine")
    direction.put_and_read(piece)
    piece += b" still"  # a bytearray with an exported buffer cannot be resized
    assert piece == b"mine still"


def test_the_view_is_released_after_reading(direction: Direction) -> None:
    kept: list[memoryview] = []
    packet = direction.send(direction.put(b"secret"))
    direction.reader.read(packet[0], 6, packet[1], kept.append)
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


@pytest.mark.parametrize("size", [0, 1, (1 << 14) - 1, 1 << 14, (1 << 14) + 1])
def test_a_private_copy_belongs_to_the_caller(size: int) -> None:
    source = bytearray(os.urandom(size))
    with memoryview(source) as view:
        copied = WarmMemory(0).copy(view)
    before = bytes(source)
    source[:] = bytes(size)
    with memoryview(copied) as view:
        assert bytes(view) == before
        assert not view.readonly
        view[:] = b"w" * size
    assert bytes(source) == bytes(size)
    assert isinstance(copied, memoryview) == (size >= HUGE_PAGES_FROM)


# --- closing, and failures ----------------------------------------------------------------------------


def test_closing_frees_descriptors_and_mappings(opened: Callable[[], Open]) -> None:
    direction = Direction()
    for size in (10, 2 * SMALLEST_CAPACITY, KEPT_UP_TO + 1):
        buffer = direction.put(bytes(size))
        direction.reader.read(*_with_size(direction.send(buffer), size), lambda _content: None)
        direction.put(b"left unread")
    assert opened().files > 1
    direction.reader.close()
    direction.buffers.close()
    assert opened() == Open(0, 0)
    direction.buffers.close()  # twice is harmless
    direction.reader.close()


def _with_size(packet: tuple[bytes, list[int]], size: int) -> tuple[bytes, int, list[int]]:
    return packet[0], size, packet[1]


def refuse(number: int) -> Callable[..., Any]:
    def refused(*_args: object, **_options: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        (os, "pwrite", errno.ENOSPC),
        (os, "ftruncate", errno.ENOSPC),
        (os, "memfd_create", errno.EMFILE),
        (mmap, "mmap", errno.ENOMEM),
    ],
    ids=["no memory to write", "no memory for the file", "no descriptor", "no memory to map"],
)
def test_a_buffer_that_cannot_be_made_leaves_nothing_open(
    direction: Direction, opened: Callable[[], Open], module: Any, name: str, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, refuse(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            direction.put(b"x")
    assert opened() == Open(0, 0)
    direction.put_and_read(b"it works again")


def test_an_interrupted_write_leaves_nothing_open(direction: Direction, opened: Callable[[], Open]) -> None:
    def interrupted(_fd: int, _data: Sequence[int], _at: int) -> int:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            direction.put(b"x")
    assert opened() == Open(0, 0)
    direction.put_and_read(b"it works again")


def test_a_short_write_is_continued(direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
    direction.put_and_read(os.urandom(12_345))


def test_private_memory_is_used_again_after_its_last_reference() -> None:
    memory = WarmMemory(4 * HUGE_PAGES_FROM)
    source = memoryview(bytes(HUGE_PAGES_FROM))
    first = memory.copy(source)
    assert isinstance(first, memoryview)
    held, part = first.obj, first[5:]
    assert isinstance(other := memory.copy(source), memoryview)
    assert other.obj is not held
    del first
    assert isinstance(other := memory.copy(source), memoryview)
    assert other.obj is not held, "a view of the memory still exists"
    address = id(held)
    del held, part
    found = {id(view.obj) for view in (memory.copy(source), memory.copy(source)) if isinstance(view, memoryview)}
    assert address in found


def test_no_more_private_memory_is_kept_than_allowed() -> None:
    memory = WarmMemory(2 * HUGE_PAGES_FROM)
    views = [memory.copy(memoryview(bytes([number]) * HUGE_PAGES_FROM)) for number in range(5)]
    assert [view[-1] for view in views] == list(range(5))
    assert sum(map(len, memory._kept)) <= 2 * HUGE_PAGES_FROM
    memory.give_back()
    assert not memory.is_warm
    assert [view[0] for view in views] == list(range(5))


def test_an_idle_reader_frees_the_memory_of_a_buffer(direction: Direction) -> None:
    buffer = direction.put_and_read(bytes(HUGE_PAGES_FROM))
    assert os.stat(f"/proc/self/fd/{buffer.fd.fileno()}").st_blocks * 512 >= HUGE_PAGES_FROM
    direction.reader.give_back()
    assert os.stat(f"/proc/self/fd/{buffer.fd.fileno()}").st_blocks * 512 <= 8192
    assert direction.put_and_read(b"after") is buffer


def test_a_buffer_keeps_its_memory_while_it_is_written(direction: Direction) -> None:
    buffer = direction.put_and_read(bytes(HUGE_PAGES_FROM))
    assert buffer.begin_writing()
    direction.reader.give_back()
    assert os.stat(f"/proc/self/fd/{buffer.fd.fileno()}").st_blocks * 512 >= HUGE_PAGES_FROM


def test_a_buffer_is_not_written_while_it_is_freed(direction: Direction) -> None:
    buffer = direction.put_and_read(bytes(HUGE_PAGES_FROM))
    struct.pack_into("<Q", buffer._map, RECLAIM_OFFSET, 1)
    assert direction.put_and_read(b"meanwhile") is not buffer


def test_a_reader_that_always_frees_memory_does_not_make_buffers_pile_up(
    direction: Direction, opened: Callable[[], Open]
) -> None:
    for _ in range(10):
        buffer = direction.put_and_read(b"x")
        struct.pack_into("<Q", buffer._map, RECLAIM_OFFSET, 1)
    assert opened().files == 1


# --- a writer that is not to be trusted ---------------------------------------------------------------

REFERENCE = struct.Struct("<IIQ")
KEEP, USE_ONCE = 0, 1


def sealed(size: int, seals: int) -> int:
    fd = descriptors.memfd("pairpool-payload", size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def read_by_force(direction: Direction, reference: bytes, size: int, fds: list[int]) -> None:
    """Read a payload that must be refused, and check that its memfd is closed."""
    number = fds[0] if fds else -1
    with pytest.raises(ProtocolError):
        direction.reader.read(reference, size, fds, lambda _content: pytest.fail("the payload was used"))
    assert not fds
    if number >= 0:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
GOOD = DATA_OFFSET + SMALLEST_CAPACITY


@pytest.mark.parametrize("use", [KEEP, USE_ONCE])
@pytest.mark.parametrize(
    ("size", "seals"),
    [
        (GOOD, 0),
        (GOOD, fcntl.F_SEAL_GROW),
        (GOOD, fcntl.F_SEAL_SHRINK),
        (GOOD, ALL_SEALS | fcntl.F_SEAL_WRITE),
        (GOOD - 1, ALL_SEALS),
        (GOOD + 1, ALL_SEALS),
        (0, ALL_SEALS),
    ],
)
def test_a_memfd_that_can_be_resized_or_has_another_size_is_refused(
    direction: Direction, opened: Callable[[], Open], size: int, seals: int, use: int
) -> None:
    read_by_force(direction, REFERENCE.pack(0, use, SMALLEST_CAPACITY), 10, [sealed(size, seals)])
    assert opened() == Open(0, 0)
    direction.put_and_read(b"it works again")


def test_a_memfd_that_is_open_for_reading_only_is_refused(direction: Direction) -> None:
    buffer = direction.put(b"x")
    read_only = os.open(f"/proc/self/fd/{buffer.fd.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    read_by_force(direction, buffer.reference(), 1, [read_only])


def test_other_files_are_refused(direction: Direction, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(GOOD))
    for fd in (os.open(path, os.O_RDWR | os.O_CLOEXEC), os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)):
        read_by_force(direction, REFERENCE.pack(0, KEEP, SMALLEST_CAPACITY), 10, [fd])
    assert path.read_bytes() == bytes(GOOD)


@pytest.mark.parametrize(
    ("number", "use", "capacity", "size"),
    [
        (0, KEEP, SMALLEST_CAPACITY, SMALLEST_CAPACITY + 1),
        (0, KEEP, SMALLEST_CAPACITY, (1 << 64) - 1),
        (0, KEEP, SMALLEST_CAPACITY - 1, 1),
        (0, KEEP, (1 << 64) - 1, 1),
        (0, KEEP, 0, 0),
        (0, 2, SMALLEST_CAPACITY, 1),
        (payload_shm.KEPT_BUFFERS, KEEP, SMALLEST_CAPACITY, 1),
        ((1 << 32) - 1, KEEP, SMALLEST_CAPACITY, 1),
    ],
)
@pytest.mark.parametrize("is_known", [False, True])
def test_a_wrong_reference_is_refused(
    direction: Direction, number: int, use: int, capacity: int, size: int, is_known: bool
) -> None:
    buffer = direction.put_and_read(b"x")
    fds = [] if is_known else [os.dup(buffer.fd.fileno())]
    read_by_force(direction, REFERENCE.pack(number, use, capacity), size, fds)


def test_a_buffer_above_the_limit_is_not_kept(direction: Direction) -> None:
    fd = sealed(DATA_OFFSET + KEPT_UP_TO + 1, ALL_SEALS)
    read_by_force(direction, REFERENCE.pack(0, KEEP, KEPT_UP_TO + 1), 1, [fd])


def test_a_buffer_that_was_used_once_is_unknown(direction: Direction) -> None:
    buffer = direction.put_and_read(bytes(KEPT_UP_TO + 1))
    read_by_force(direction, buffer.reference(), 1, [])


def test_buffers_beyond_those_that_are_kept_are_used_once(direction: Direction, opened: Callable[[], Open]) -> None:
    payloads = [str(number).encode() for number in range(payload_shm.KEPT_BUFFERS + 3)]
    packets = [direction.send(direction.put(payload)) for payload in payloads]
    assert [direction.read(packet, len(payload)) for packet, payload in zip(packets, payloads, strict=True)] == payloads
    assert len(direction.reader._maps) == payload_shm.KEPT_BUFFERS
    direction.put_and_read(b"free buffers that are used once are closed")
    assert opened().files == payload_shm.KEPT_BUFFERS


def test_a_buffer_with_holes_is_read(direction: Direction) -> None:
    """A task can take the pages away from its own payload: the reader finds zeros."""
    buffer = direction.put(b"x" * SMALLEST_CAPACITY)
    buffer._map.madvise(mmap.MADV_REMOVE)
    assert direction.read(direction.send(buffer), SMALLEST_CAPACITY) == bytes(SMALLEST_CAPACITY)


def test_the_memfd_of_a_buffer_cannot_be_resized(direction: Direction) -> None:
    buffer = direction.put(b"x")
    for size in (0, DATA_OFFSET + buffer.capacity + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(buffer.fd.fileno(), size)


def test_an_idle_writer_frees_the_memory_of_its_buffers(direction: Direction) -> None:
    buffer = direction.put_and_read(bytes(HUGE_PAGES_FROM))
    direction.buffers.give_back()
    assert os.stat(f"/proc/self/fd/{buffer.fd.fileno()}").st_blocks * 512 <= 8192
    assert direction.put_and_read(b"after") is buffer


def test_a_buffer_tells_whether_it_holds_a_certain_payload(direction: Direction) -> None:
    buffer = direction.put(b"first")
    first = buffer.payloads
    assert buffer.holds(first)
    direction.read(direction.send(buffer), 5)
    assert not buffer.holds(first)
    assert direction.put(b"second") is buffer
    assert not buffer.holds(first), "the payload is another one"
    direction.buffers.close()
    assert not buffer.holds(first + 1)
