"""Pidfds: signals, ends and exit statuses of real processes."""

from __future__ import annotations

import faulthandler
import os
import platform
import resource
import signal
from collections.abc import Callable

import pytest

from pairpool.linux import pidfds
from pairpool.transport.channel import Channel
from pairpool.transport.protocol import TextPacket
from pairpool.transport.spawning import Body
from tests.support.children import forked, sigchld_ignored, until_eof, wait_for_end
from tests.support.kernel import KERNEL_TELLS_STATUS

GO = TextPacket()


tells_status = pytest.mark.skipif(
    not KERNEL_TELLS_STATUS,
    reason=f"the kernel tells the exit status from Linux 6.15 on, and this is {platform.release()}",
)


def when_told(body: Callable[[], int]) -> Body:
    """Return code for a child that runs `body` after a packet, so that its pidfd is open before it can end."""

    def run(channel: Channel, _slot: int, _serial: int) -> int:
        channel.receive()
        return body()

    return run


def status_of(body: Callable[[], int]) -> int | None:
    """Return the result of `exit_status` for a child that nobody can wait for."""
    with sigchld_ignored(), forked(when_told(body)) as child:
        child.near.send(GO)
        assert wait_for_end(child.pidfd.fileno())
        return pidfds.exit_status(child.pidfd.fileno())


def die_by(number: int) -> int:
    """End this process by a signal, without the handlers and core files of the test run."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError("it did not die")


@tells_status
@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_code_is_reported_without_wait(code: int) -> None:
    status = status_of(lambda: code)
    assert status is not None
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == code


@tells_status
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN + 3])
def test_signal_is_reported_without_wait(number: int) -> None:
    status = status_of(lambda: die_by(number))
    assert status is not None
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == number


@pytest.mark.skipif(KERNEL_TELLS_STATUS, reason="this kernel tells")
def test_older_kernel_reports_no_status() -> None:
    status = status_of(lambda: 3)
    assert status is None
    assert "6.15" in pidfds.describe_status(status)


def test_living_process_has_no_status() -> None:
    with forked(until_eof) as child:
        child.near.receive()
        assert pidfds.exit_status(child.pidfd.fileno(), patience=0.0) is None
        assert not pidfds.has_ended(child.pidfd.fileno())


def test_descriptor_that_is_not_a_pidfd_has_no_status() -> None:
    reading, writing = os.pipe()
    try:
        assert pidfds.exit_status(reading) is None
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (3 << 8, "exit status 3"),
        (255 << 8, "exit status 255"),
        (signal.SIGKILL, "signal SIGKILL"),
        (signal.SIGSEGV | 0x80, "signal SIGSEGV"),  # with a core file
        (signal.SIGRTMIN + 3, f"signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_status_in_words(status: int, words: str) -> None:
    assert pidfds.describe_status(status) == words


def test_unknown_status_gives_the_reason() -> None:
    assert "unknown" in pidfds.describe_status(None)
    assert "6.15" in pidfds.describe_status(None)


def test_signal_reaches_only_the_process_of_the_pidfd() -> None:
    with sigchld_ignored(), forked(until_eof) as child:
        child.near.receive()
        pidfd = child.pidfd.fileno()
        assert not pidfds.wait_ended(pidfd, 0.0)
        assert pidfds.send_signal(pidfd, signal.SIGKILL)
        assert pidfds.wait_ended(pidfd, None)
        assert pidfds.has_ended(pidfd)
        assert not pidfds.send_signal(pidfd, signal.SIGKILL)
