"""Packets arrive whole or not at all, each at one reader; the end and every loss are told."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.transport import channel as channel_module
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import Packet, TextPacket, encode
from pairpool.transport.wire import HEADER_SIZE, INLINE_LIMIT, MAX_DESCRIPTORS, Buffer, ProtocolError
from tests.support.children import forked

TEXT = TextPacket()

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = Channel.pair()
    yield near, far
    near.close()
    far.close()


def numbered(number: int) -> TextPacket:
    return TextPacket(number)


def number_of(packet: Packet) -> int:
    assert isinstance(packet, TextPacket)
    return packet.number


def take_all(channel: Channel) -> list[int]:
    """The numbers of all packets that are there now."""
    found = []
    while True:
        try:
            found.append(number_of(channel.receive(wait=False)[0]))
        except BlockingIOError:
            return found


def fill(channel: Channel) -> int:
    """Send numbered packets until there is no room; how many went in."""
    count = 0
    while channel.send(numbered(count), wait=False):
        count += 1
    return count


# --- packets ------------------------------------------------------------------------------------------


@given(payloads=st.lists(st.binary(max_size=3000), max_size=8))
def test_packets_keep_their_boundaries_and_their_order(payloads: list[bytes]) -> None:
    near, far = Channel.pair()
    try:
        for payload in payloads:
            assert near.send(TEXT, payload)
        for payload in payloads:
            packet, received, fds = far.receive()
            assert bytes(received) == payload
            assert packet == TEXT
            assert fds == []
        with pytest.raises(BlockingIOError):
            far.receive(wait=False)
    finally:
        near.close()
        far.close()


def test_both_directions_are_apart(pair: Pair) -> None:
    near, far = pair
    near.send(TEXT, b"out")
    far.send(TEXT, b"back")
    assert bytes(near.receive()[1]) == b"back"
    assert bytes(far.receive()[1]) == b"out"


def test_the_largest_inline_payload_fits(pair: Pair) -> None:
    near, far = pair
    payload = os.urandom(INLINE_LIMIT)
    assert near.send(TEXT, payload, wait=False)
    assert bytes(far.receive()[1]) == payload


def test_pieces_make_one_packet(pair: Pair) -> None:
    near, far = pair
    pieces: list[Buffer] = [encode(numbered(6)), b"ab", bytearray(b"cd"), memoryview(b"ef")]
    assert near.send_packet(pieces)
    packet, payload, _fds = far.receive()
    assert (packet, bytes(payload)) == (numbered(6), b"abcdef")


@pytest.mark.parametrize("wait", [True, False])
def test_a_packet_above_the_kernels_limit_is_refused(pair: Pair, wait: bool) -> None:
    near, far = pair
    limit = near.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32
    with pytest.raises(OSError, match="too long") as caught:
        near.send(TEXT, bytes(limit - HEADER_SIZE + 1), wait=wait)
    assert caught.value.errno == errno.EMSGSIZE
    assert near.send(TEXT, bytes(limit - HEADER_SIZE), wait=wait)
    assert len(far.receive()[1]) == limit - HEADER_SIZE


# --- the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
def test_eof_raises_lost_after_the_last_packet(pair: Pair, wait: bool) -> None:
    near, far = pair
    near.send(numbered(1))
    near.send(numbered(2))
    near.close()
    assert [number_of(far.receive(wait=wait)[0]) for _ in range(2)] == [1, 2]
    for _ in range(2):
        with pytest.raises(Lost):
            far.receive(wait=wait)


@pytest.mark.parametrize("fds", [(), (0,)], ids=["plain", "with a descriptor"])
def test_sending_to_a_closed_end_raises_lost(pair: Pair, fds: tuple[int, ...]) -> None:
    near, far = pair
    far.close()
    with pytest.raises(Lost):
        near.send(TEXT, b"x", fds)


def test_packets_sent_before_the_end_arrive_although_others_were_left_unread(pair: Pair) -> None:
    """`Lost` says that nothing will arrive any more, so it must come after the last packet.

    The kernel reports ECONNRESET, ahead of what is queued, when an end is closed that had unread packets.
    """
    near, far = pair
    near.send(TEXT, b"not read by the other side")
    far.send(numbered(7))
    far.close()
    assert number_of(near.receive()[0]) == 7
    with pytest.raises(Lost):
        near.receive()


def test_a_dead_process_shows_no_eof_while_a_second_handle_is_open() -> None:
    with forked(lambda channel, _slot, _serial: int(not channel.send(numbered(5)))) as child:
        assert select.select([child.pidfd], [], [], 20.0)[0], "the child did not end"
        assert number_of(child.near.receive()[0]) == 5
        with pytest.raises(BlockingIOError):
            child.near.receive(wait=False)
        child.far.close()
        with pytest.raises(Lost):
            child.near.receive(wait=False)


# --- losses -------------------------------------------------------------------------------------------


def test_a_truncated_packet_raises(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = pair
    monkeypatch.setattr(channel_module, "PACKET_LIMIT", HEADER_SIZE + 100)
    near.send(TEXT, bytes(100))
    near.send(TEXT, bytes(101), [near.fileno()])  # the descriptor arrives, and must be closed
    near.send(numbered(3))
    assert len(far.receive()[1]) == 100
    with pytest.raises(ProtocolError, match="a packet did not fit"):
        far.receive()
    assert number_of(far.receive()[0]) == 3


def test_a_packet_takes_at_most_max_descriptors(pair: Pair) -> None:
    near, far = pair
    most = MAX_DESCRIPTORS
    with ExitStack() as opened:
        near.send(TEXT, b"", [near.fileno()] * most)
        fds = far.receive()[2]
        for fd in fds:
            opened.callback(os.close, fd)
        assert len(fds) == most
        with pytest.raises(OSError, match="Invalid argument"):
            near.send(TEXT, b"", [near.fileno()] * (most + 1))


@pytest.mark.parametrize("room", [0, 1])
def test_descriptors_that_do_not_fit_the_process_raise(pair: Pair, room: int) -> None:
    near, far = pair
    near.send(TEXT, b"two", [near.fileno(), near.fileno()])
    near.send(numbered(3))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(near.fileno())
    next_to_it = os.dup(near.fileno())
    os.close(lowest)
    os.close(next_to_it)
    resource.setrlimit(resource.RLIMIT_NOFILE, ((next_to_it if room else lowest), hard))
    try:
        with pytest.raises(OSError, match="the descriptors of a packet did not fit") as caught:
            far.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert number_of(far.receive()[0]) == 3


# --- descriptors --------------------------------------------------------------------------------------


def test_descriptors_pass_in_order_and_close_on_exec(pair: Pair) -> None:
    near, far = pair
    reading, writing = os.pipe()
    try:
        os.set_inheritable(reading, True)
        near.send(TEXT, b"both ends", [reading, writing])
        _packet, payload, fds = far.receive()
    finally:
        os.close(reading)
        os.close(writing)
    assert bytes(payload) == b"both ends"
    try:
        assert [fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds] == [fcntl.FD_CLOEXEC] * 2
        os.write(fds[1], b"through")
        assert os.read(fds[0], 100) == b"through"
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("option", [socket.SO_PASSCRED, 76, 35])  # SO_PASSPIDFD, SO_TIMESTAMPNS
def test_data_that_the_kernel_adds_are_no_descriptors(pair: Pair, option: int) -> None:
    """A task can set options of its socket. Credentials taken for descriptors would close files of the reader."""
    near, far = pair
    try:
        far.sock.setsockopt(socket.SOL_SOCKET, option, 1)
    except OSError:
        pytest.skip("this kernel does not have the option")
    reader, writer = os.pipe()
    before = os.listdir("/proc/self/fd")
    near.send(TEXT, b"plain")
    packet, payload, fds = far.receive()
    assert (packet, bytes(payload), fds) == (TEXT, b"plain", [])
    near.send(TEXT, b"with a descriptor", [writer])
    packet, payload, fds = far.receive()
    assert (packet, bytes(payload), len(fds)) == (TEXT, b"with a descriptor", 1)
    for fd in fds:
        os.close(fd)
    assert os.listdir("/proc/self/fd") == before
    os.close(reader)
    os.close(writer)


def test_both_ends_close_on_exec(pair: Pair) -> None:
    assert [os.get_inheritable(end.fileno()) for end in pair] == [False, False]


def test_a_channel_owns_the_descriptor_that_it_was_made_from(pair: Pair) -> None:
    near, far = pair
    other = Channel.from_fd(os.dup(near.fileno()))
    number = other.fileno()
    other.send(TEXT, b"over the copy")
    assert bytes(far.receive()[1]) == b"over the copy"
    other.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


# --- without waiting ----------------------------------------------------------------------------------


def test_a_full_channel_takes_no_more_and_loses_nothing(pair: Pair) -> None:
    near, far = pair
    count = fill(near)
    assert count > 10
    assert not near.send(numbered(count), wait=False)
    assert not near.send(numbered(count), b"", [near.fileno()], wait=False)
    assert take_all(far) == list(range(count))
    assert near.send(numbered(count), wait=False)
    assert take_all(far) == [count]


def test_there_is_room_again_when_the_socket_says_so(pair: Pair) -> None:
    near, far = pair
    fill(near)
    poller = select.poll()
    poller.register(near.fileno(), select.POLLOUT)
    assert poller.poll(0) == []
    take_all(far)
    assert poller.poll(0) == [(near.fileno(), select.POLLOUT)]
    assert near.send(TEXT, bytes(INLINE_LIMIT), wait=False)


def test_no_call_changes_the_open_file(pair: Pair) -> None:
    """O_NONBLOCK would be shared with whoever holds another handle on it."""
    near, far = pair
    with pytest.raises(BlockingIOError):
        far.receive(wait=False)
    fill(near)
    assert [os.get_blocking(end.fileno()) for end in pair] == [True, True]


# --- a second handle ----------------------------------------------------------------------------------


def test_unread_packets_can_be_recalled(pair: Pair) -> None:
    near, far = pair
    second = Channel.from_fd(os.dup(far.fileno()))
    try:
        for number in range(10):
            near.send(numbered(number))
        assert [number_of(far.receive()[0]) for _ in range(3)] == [0, 1, 2]
        assert take_all(second) == [3, 4, 5, 6, 7, 8, 9]
        assert take_all(far) == []
        near.send(numbered(10))
        assert number_of(far.receive()[0]) == 10
    finally:
        second.close()


def test_a_recalled_packet_brings_its_descriptor_back(pair: Pair) -> None:
    near, far = pair
    reading, writing = os.pipe()
    near.send(TEXT, b"", [writing])
    os.close(writing)
    second = Channel.from_fd(os.dup(far.fileno()))
    far.close()
    near.close()
    (fd,) = second.receive(wait=False)[2]
    second.close()
    os.write(fd, b"still open")
    os.close(fd)
    assert os.read(reading, 100) == b"still open"
    assert os.read(reading, 100) == b""
    os.close(reading)


def test_each_packet_reaches_exactly_one_of_two_processes() -> None:
    rounds, packets = 20, 50
    report, reports = Channel.pair()

    def child(channel: Channel, _slot: int, _serial: int) -> int:
        report.close()
        taken = array.array("i")
        while True:
            try:
                taken.append(number_of(channel.receive()[0]))
            except Lost:
                reports.send(TEXT, taken.tobytes())
                return 0

    try:
        with forked(child) as reader:
            reports.close()
            mine: list[int] = []
            for start in range(0, rounds * packets, packets):
                for number in range(start, start + packets):
                    reader.near.send(numbered(number))
                mine += take_all(reader.far)
            reader.near.close()
            reader.far.close()
            theirs = array.array("i", bytes(report.receive()[1])).tolist()
    finally:
        report.close()
        reports.close()
    assert sorted(mine + theirs) == list(range(rounds * packets))
    assert mine == sorted(mine)
    assert theirs == sorted(theirs)


def test_a_default_timeout_of_the_program_does_not_reach_channels() -> None:
    socket.setdefaulttimeout(0.01)
    try:
        ends = [*Channel.pair(), *(Channel.from_fd(end.detach()) for end in socket.socketpair())]
    finally:
        socket.setdefaulttimeout(None)
    for end in ends:
        assert end.sock.gettimeout() is None
        assert os.get_blocking(end.fileno())
        end.close()


def test_a_channel_that_a_task_has_made_non_blocking_waits_for_a_packet(pair: Pair) -> None:
    near, far = pair
    os.set_blocking(far.fileno(), False)
    sender = threading.Timer(0.05, near.send, (numbered(7),))
    sender.start()
    assert number_of(far.receive()[0]) == 7
    sender.join()
    near.close()
    with pytest.raises(Lost):
        far.receive()
