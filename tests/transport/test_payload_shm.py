"""Lanes carry what they were given, are used again by both sides, and let go of everything."""

from __future__ import annotations

import array
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.transport import payload_shm, warm_memory
from pairpool.transport.payload_shm import RECLAIM_OFFSET, PayloadBuffer, PayloadBuffers, PayloadReader
from pairpool.transport.warm_memory import WarmMemory
from pairpool.transport.wire import Buffer

SMALLEST = 1 << 12
HUGE_FROM = 1 << 14
ONE_SHOT = 1 << 16


class Road:
    """Both sides of the lanes in one direction, joined as packets would join them."""

    def __init__(self) -> None:
        self.lanes = PayloadBuffers()
        self.reader = PayloadReader()

    def put(self, *pieces: Buffer) -> PayloadBuffer:
        return self.lanes.put(pieces, sum(memoryview(piece).nbytes for piece in pieces))

    def send(self, lane: PayloadBuffer) -> tuple[bytes, list[int]]:
        """What a packet about this lane says: the reference, and the memfd if the reader does not have it."""
        fds = [] if lane.known else [os.dup(lane.fd.fileno())]
        lane.sent()
        return lane.reference(), fds

    def read(self, packet: tuple[bytes, list[int]], size: int) -> bytes:
        found: list[bytes] = []
        self.reader.read(*packet[:1], size, packet[1], lambda content: found.append(bytes(content)))
        return found[0]

    def pass_on(self, content: Buffer) -> PayloadBuffer:
        """Send and read; the lane that was used."""
        lane = self.put(content)
        assert self.read(self.send(lane), len(content)) == content
        return lane

    def close(self) -> None:
        self.lanes.close()
        self.reader.close()


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes megabytes takes kilobytes here."""
    monkeypatch.setattr(payload_shm, "SMALLEST_CAPACITY_BYTES", SMALLEST)
    monkeypatch.setattr(payload_shm, "KEPT_UP_TO_BYTES", ONE_SHOT)
    monkeypatch.setattr(warm_memory, "HUGE_PAGES_FROM_BYTES", HUGE_FROM)
    monkeypatch.setattr(payload_shm, "_PWRITE_STEP_BYTES", 5000)


@pytest.fixture
def road() -> Iterator[Road]:
    road = Road()
    yield road
    road.close()


class Kept(NamedTuple):
    """What of lanes is in this process: files behind descriptors, and mappings."""

    files: int
    mappings: int


def _lane_files() -> set[int]:
    """The files, for CPython's mappings may hold a second descriptor of each."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:pairpool-payload "):
                found.add(os.stat(int(name)).st_ino)
        except FileNotFoundError:
            continue  # the descriptor that lists the directory
    return found


def _lane_mappings() -> int:
    with open("/proc/self/maps") as file:
        return sum("/memfd:pairpool-payload" in line for line in file)


@pytest.fixture
def kept() -> Callable[[], Kept]:
    """Counts what is there now and was not when the test began."""
    files, mappings = _lane_files(), _lane_mappings()
    return lambda: Kept(len(_lane_files() - files), _lane_mappings() - mappings)


# --- used again ---------------------------------------------------------------------------------------


def test_a_lane_that_was_read_is_used_again_without_its_memfd(road: Road) -> None:
    first = road.put(b"first")
    assert not first.known
    assert road.read(road.send(first), 5) == b"first"
    again = road.put(b"second")
    assert again is first
    assert again.known
    assert road.read((again.reference(), []), 6) == b"second"


def test_the_flag_says_whether_a_lane_is_busy(road: Road) -> None:
    lane = road.put(b"x")
    assert lane.busy
    packet = road.send(lane)
    seen: list[bool] = []
    road.reader.read(packet[0], 1, packet[1], lambda _content: seen.append(lane.busy))
    assert seen == [True]
    assert not lane.busy


def test_a_busy_lane_is_left_alone(road: Road) -> None:
    first, second = road.put(b"first"), road.put(b"second")
    assert first.number != second.number
    packets = road.send(first), road.send(second)
    assert road.read(packets[1], 6) == b"second"
    assert road.put(b"third") is second
    assert road.read(packets[0], 5) == b"first"
    assert road.read(road.send(second), 5) == b"third"


def test_of_several_free_lanes_the_smallest_that_fits_is_taken(road: Road) -> None:
    large, small = road.put(bytes(4 * SMALLEST)), road.put(b"x")
    for lane, size in ((large, 4 * SMALLEST), (small, 1)):
        road.read(road.send(lane), size)
    assert road.put(bytes(SMALLEST)) is small
    assert road.put(bytes(SMALLEST)) is large


def test_a_lane_that_is_too_small_is_replaced_under_its_number(road: Road, kept: Callable[[], Kept]) -> None:
    small = road.pass_on(b"small")
    content = os.urandom(3 * SMALLEST)
    large = road.put(content)
    assert large is not small
    assert large.number == small.number
    assert large.capacity >= len(content) > small.capacity
    assert not large.known, "the reader has another memfd under this number"
    assert road.read(road.send(large), len(content)) == content
    assert road.pass_on(b"warm") is large
    assert kept() == Kept(files=1, mappings=2)


def test_what_is_kept_does_not_grow_with_what_was_sent(road: Road, kept: Callable[[], Kept]) -> None:
    for size in [SMALLEST, ONE_SHOT, 100, 2 * SMALLEST] * 5:
        road.pass_on(bytes(size))
    assert road.lanes.warm_bytes == ONE_SHOT
    assert kept() == Kept(files=1, mappings=2)


def test_a_lane_can_be_taken_back_unread(road: Road) -> None:
    lane = road.put(b"taken back")
    reference, fds = road.send(lane)
    for fd in fds:
        os.close(fd)
    road.lanes.taken_back(memoryview(reference), known=False)
    assert (lane.busy, lane.known) == (False, False)
    assert road.pass_on(b"sent again") is lane
    reference, _fds = road.send(road.put(b"taken back once more"))
    road.lanes.taken_back(reference, known=True)
    assert (lane.busy, lane.known) == (False, True)
    assert road.pass_on(b"and the reader has it already") is lane


def test_what_fails_while_it_reads_frees_the_lane(road: Road) -> None:
    def fail(_content: memoryview) -> None:
        raise ZeroDivisionError

    lane = road.put(b"x")
    packet = road.send(lane)
    with pytest.raises(ZeroDivisionError):
        road.reader.read(packet[0], 1, packet[1], fail)
    assert not lane.busy
    assert road.pass_on(b"next") is lane


# --- once only ----------------------------------------------------------------------------------------


def test_a_lane_of_the_largest_kept_size_is_kept(road: Road) -> None:
    lane = road.pass_on(bytes(ONE_SHOT))
    assert not lane.one_shot
    assert road.pass_on(bytes(ONE_SHOT)) is lane


def test_a_larger_lane_is_used_once(road: Road, kept: Callable[[], Kept]) -> None:
    content = os.urandom(ONE_SHOT + 1)
    lane = road.pass_on(content)
    assert lane.one_shot
    assert kept().mappings == 1, "the reader lets go of it at once"
    number = lane.number
    after = road.pass_on(b"x")
    assert after.number != number or not after.one_shot
    assert road.lanes.warm_bytes == SMALLEST
    assert kept() == Kept(files=1, mappings=2)


def test_the_memory_of_a_larger_lane_is_free_once_it_was_read(road: Road) -> None:
    """ "Lanes above ONE_SHOT bytes are not kept", for the next large payload may never come."""
    lane = road.put(bytes(ONE_SHOT + 1))
    held = os.fstat(lane.fd.fileno()).st_blocks * 512
    assert held > ONE_SHOT
    packet = road.send(lane)
    watch = os.dup(lane.fd.fileno())
    try:
        road.read(packet, ONE_SHOT + 1)
        assert os.fstat(watch).st_blocks * 512 <= SMALLEST
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
def test_whatever_pieces_go_in_come_out_in_a_row(payloads: list[list[Buffer]]) -> None:
    """Over lanes that grow and are warm in part, so that a piece is copied partly and written partly."""
    road = Road()
    try:
        for pieces in payloads:
            expected = b"".join(memoryview(piece).tobytes() for piece in pieces)
            lane = road.put(*pieces)
            assert road.read(road.send(lane), len(expected)) == expected
    finally:
        road.close()


def test_writing_leaves_the_pieces_usable(road: Road) -> None:
    piece = bytearray(b"mine")
    road.pass_on(piece)
    piece += b" still"  # a bytearray that is exported anywhere cannot be resized
    assert piece == b"mine still"


def test_reading_gives_no_view_to_keep(road: Road) -> None:
    kept: list[memoryview] = []
    packet = road.send(road.put(b"secret"))
    road.reader.read(packet[0], 6, packet[1], kept.append)
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


@pytest.mark.parametrize("size", [0, 1, (1 << 14) - 1, 1 << 14, (1 << 14) + 1])
def test_a_private_copy_is_the_callers_own(size: int) -> None:
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
    assert isinstance(copied, memoryview) == (size >= HUGE_FROM)


# --- the end, and failures ----------------------------------------------------------------------------


def test_closing_frees_descriptors_and_mappings(kept: Callable[[], Kept]) -> None:
    road = Road()
    for size in (10, 2 * SMALLEST, ONE_SHOT + 1):
        lane = road.put(bytes(size))
        road.reader.read(*_with_size(road.send(lane), size), lambda _content: None)
        road.put(b"left unread")
    assert kept().files > 1
    road.reader.close()
    road.lanes.close()
    assert kept() == Kept(0, 0)
    road.lanes.close()  # twice is harmless
    road.reader.close()


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
def test_a_lane_that_cannot_be_made_leaves_nothing(
    road: Road, kept: Callable[[], Kept], module: Any, name: str, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, refuse(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            road.put(b"x")
    assert kept() == Kept(0, 0)
    road.pass_on(b"it works again")


def test_an_interrupted_write_leaves_nothing(road: Road, kept: Callable[[], Kept]) -> None:
    def interrupted(_fd: int, _data: Sequence[int], _at: int) -> int:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            road.put(b"x")
    assert kept() == Kept(0, 0)
    road.pass_on(b"it works again")


def test_a_short_write_is_continued(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
    road.pass_on(os.urandom(12_345))


def test_private_memory_is_used_again_once_nobody_holds_it() -> None:
    memory = WarmMemory(4 * HUGE_FROM)
    source = memoryview(bytes(HUGE_FROM))
    first = memory.copy(source)
    assert isinstance(first, memoryview)
    held, part = first.obj, first[5:]
    assert isinstance(other := memory.copy(source), memoryview)
    assert other.obj is not held
    del first
    assert isinstance(other := memory.copy(source), memoryview)
    assert other.obj is not held, "a view of it is left"
    address = id(held)
    del held, part
    found = {id(view.obj) for view in (memory.copy(source), memory.copy(source)) if isinstance(view, memoryview)}
    assert address in found


def test_no_more_private_memory_is_kept_than_allowed() -> None:
    memory = WarmMemory(2 * HUGE_FROM)
    views = [memory.copy(memoryview(bytes([number]) * HUGE_FROM)) for number in range(5)]
    assert [view[-1] for view in views] == list(range(5))
    assert sum(map(len, memory._kept)) <= 2 * HUGE_FROM
    memory.give_back()
    assert not memory.is_warm
    assert [view[0] for view in views] == list(range(5))


def test_a_reader_that_idles_frees_the_memory_of_a_lane(road: Road) -> None:
    lane = road.pass_on(bytes(HUGE_FROM))
    assert os.stat(f"/proc/self/fd/{lane.fd.fileno()}").st_blocks * 512 >= HUGE_FROM
    road.reader.give_back()
    assert os.stat(f"/proc/self/fd/{lane.fd.fileno()}").st_blocks * 512 <= 8192
    assert road.pass_on(b"after") is lane


def test_a_lane_that_is_being_written_keeps_its_memory(road: Road) -> None:
    lane = road.pass_on(bytes(HUGE_FROM))
    assert lane.begin_writing()
    road.reader.give_back()
    assert os.stat(f"/proc/self/fd/{lane.fd.fileno()}").st_blocks * 512 >= HUGE_FROM


def test_a_lane_that_is_being_freed_is_not_written(road: Road) -> None:
    lane = road.pass_on(bytes(HUGE_FROM))
    struct.pack_into("<Q", lane._map, RECLAIM_OFFSET, 1)
    assert road.pass_on(b"meanwhile") is not lane
    struct.pack_into("<Q", lane._map, RECLAIM_OFFSET, 0)


def test_a_writer_that_idles_frees_the_memory_of_its_lanes(road: Road) -> None:
    lane = road.pass_on(bytes(HUGE_FROM))
    road.lanes.give_back()
    assert os.stat(f"/proc/self/fd/{lane.fd.fileno()}").st_blocks * 512 <= 8192
    assert road.pass_on(b"after") is lane
