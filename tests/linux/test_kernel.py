"""What the kernel is asked: statuses, children, limits, cores; and what no child keeps."""

from __future__ import annotations

import builtins
import errno
import faulthandler
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pairpool.errors import PoolInherited
from pairpool.linux import cgroup, descriptors, forking, pidfds, process_tree, requirements
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import TextPacket
from pairpool.transport.spawning import Body
from tests.support.children import forked, in_child, sigchld_ignored, wait_for_end
from tests.support.kernel import KERNEL_TELLS_STATUS
from tests.support.scripts import ROOT

GO = TextPacket()

tells_status = pytest.mark.skipif(
    not KERNEL_TELLS_STATUS,
    reason=f"the kernel tells the exit status from Linux 6.15 on, and this is {platform.release()}",
)


def when_told(body: Callable[[], int]) -> Body:
    """Run `body` in a child once a packet comes, so that its pidfd is open before it can end."""

    def run(channel: Channel, _slot: int, _serial: int) -> int:
        channel.receive()
        return body()

    return run


def until_eof(channel: Channel, _slot: int, _serial: int) -> int:
    """Tell that this child runs, and stay until the test lets go."""
    channel.send(GO)
    try:
        channel.receive()
    except Lost:
        pass
    return 0


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


# --- how a process ended ------------------------------------------------------------------------------


def status_of(body: Callable[[], int]) -> int | None:
    """What `exit_status` tells of a child that nobody can wait for."""
    with sigchld_ignored(), forked(when_told(body)) as child:
        child.near.send(GO)
        assert wait_for_end(child.pidfd.fileno())
        return pidfds.exit_status(child.pidfd.fileno())


def die_by(number: int) -> int:
    """End by a signal, without the handlers and core files of this test run."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError("it did not die")


@tells_status
@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_the_exit_code_is_told_though_nobody_waits(code: int) -> None:
    status = status_of(lambda: code)
    assert status is not None
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == code


@tells_status
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN + 3])
def test_the_signal_is_told_though_nobody_waits(number: int) -> None:
    status = status_of(lambda: die_by(number))
    assert status is not None
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == number


@pytest.mark.skipif(KERNEL_TELLS_STATUS, reason="this kernel tells")
def test_an_older_kernel_tells_nothing_and_says_so() -> None:
    status = status_of(lambda: 3)
    assert status is None
    assert "6.15" in pidfds.describe_status(status)


def test_a_living_process_has_no_status() -> None:
    with forked(until_eof) as child:
        child.near.receive()
        assert pidfds.exit_status(child.pidfd.fileno(), patience=0.0) is None
        assert not pidfds.has_ended(child.pidfd.fileno())


def test_what_is_no_pidfd_has_no_status() -> None:
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


def test_an_unknown_status_says_why() -> None:
    assert "unknown" in pidfds.describe_status(None)
    assert "6.15" in pidfds.describe_status(None)


# --- signals, ends ------------------------------------------------------------------------------------


def test_a_signal_reaches_the_process_and_no_later_one() -> None:
    with sigchld_ignored(), forked(until_eof) as child:
        child.near.receive()
        pidfd = child.pidfd.fileno()
        assert not pidfds.wait_ended(pidfd, 0.0)
        assert pidfds.send_signal(pidfd, signal.SIGKILL)
        assert pidfds.wait_ended(pidfd, None)
        assert pidfds.has_ended(pidfd)
        assert not pidfds.send_signal(pidfd, signal.SIGKILL)


def test_a_process_dies_with_its_parent() -> None:
    """test ── parent ── child, which has asked to die with the parent; `told` has an end in the child alone."""
    told, telling = Channel.pair()

    def child_of(parent: int) -> Body:
        def child(_channel: Channel, _slot: int, _serial: int) -> int:
            process_tree.die_with_parent(parent)
            telling.send(TextPacket(os.getpid()))
            signal.pause()
            return 0

        return child

    def parent(channel: Channel, _slot: int, _serial: int) -> int:
        if forking.fork() == 0:
            try:
                child_of(os.getppid())(channel, 0, 0)
            finally:
                os._exit(0)
        channel.receive()
        return 0

    try:
        with forked(parent) as middle:
            telling.close()
            packet = told.receive()[0]
            assert isinstance(packet, TextPacket)
            pidfd = os.pidfd_open(packet.number)
            try:
                assert not pidfds.wait_ended(pidfd, 0.0)
                middle.near.send(GO)
                assert wait_for_end(pidfd)
            finally:
                os.close(pidfd)
            with pytest.raises(Lost):
                told.receive()
    finally:
        told.close()
        telling.close()


def test_a_process_whose_parent_is_gone_already_exits_at_once() -> None:
    pid = forking.fork()
    if pid == 0:
        try:
            process_tree.die_with_parent(os.getpid())  # which is not its parent
        finally:
            os._exit(77)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_orphans_come_to_the_one_that_adopts() -> None:
    def adopt() -> tuple[int, int]:
        process_tree.adopt_orphans()
        reading, writing = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.close(writing)
                os.read(reading, 1)  # until the test's child lets go
                os._exit(5)
            os._exit(0)
        os.waitpid(middle, 0)
        (orphan,) = process_tree.children_of(os.getpid())
        os.close(writing)
        return orphan, os.waitstatus_to_exitcode(os.waitpid(orphan, 0)[1])

    orphan, code = in_child(adopt)
    assert orphan > 0
    assert code == 5


# --- children -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("find", [process_tree.children_of, process_tree._children_by_scan])
def test_children_are_found(find: Callable[[int], list[int]]) -> None:
    with forked(until_eof) as first, forked(until_eof) as second:
        assert {first.pid, second.pid} <= set(find(os.getpid()))
        assert find(first.pid) == []
    assert not {first.pid, second.pid} & set(find(os.getpid()))


def test_children_of_all_threads_are_found() -> None:
    found: list[set[int]] = []

    def run() -> None:
        with forked(until_eof) as child:
            found.append({child.pid} & set(process_tree.children_of(os.getpid())))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [len(pids) for pids in found] == [1]


def test_a_process_that_is_gone_has_no_children() -> None:
    with forked(until_eof) as child:
        pass
    assert process_tree.children_of(child.pid) == []


def test_all_children_but_some_are_killed_and_so_is_what_they_leave() -> None:
    """Children that fork on: their children are orphans then, and come in the next round."""

    def family(depth: int, ready: int) -> int:
        pid = os.fork()
        if pid == 0:
            for _ in range(depth):
                if os.fork():
                    break  # the parent of the next stays, too
            os.write(ready, b"x")
            signal.pause()
        return pid

    def reap_all() -> tuple[bool, list[int], list[int]]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        process_tree.adopt_orphans()
        reading, writing = os.pipe()
        kept = family(0, writing)
        for depth in (0, 1, 3):
            family(depth, writing)
        running = b""
        while len(running) < 1 + 1 + 2 + 4:
            running += os.read(reading, 100)
        process_tree.kill_children(keep={kept})
        after_first = process_tree.children_of(os.getpid())
        process_tree.kill_children(keep=set())
        return after_first == [kept], after_first, process_tree.children_of(os.getpid())

    only_kept, after_first, after_second = in_child(reap_all)
    assert only_kept, after_first
    assert after_second == []


def test_children_that_stay_are_given_up_in_time() -> None:
    def impatient() -> list[int]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        patch = pytest.MonkeyPatch()
        patch.setattr(process_tree, "send_signal", lambda _pidfd, _number: True)
        pid = os.fork()
        if pid == 0:
            signal.pause()
        process_tree.kill_children(keep=set(), patience=0.05)
        left = process_tree.children_of(os.getpid())
        patch.undo()
        process_tree.kill_children(keep=set())
        return [pid, *left]

    pid, *left = in_child(impatient)
    assert left == [pid]


# --- descriptors that no child keeps ------------------------------------------------------------------


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


def test_a_child_owns_nothing_of_its_parents(pipe: Ends) -> None:
    """A number that the child uses again must not be closed in the grandchild on the parent's account."""
    descriptors.own(pipe[0])
    number = pipe[0].fileno()

    def child() -> bool:
        fd = os.open(os.devnull, os.O_RDONLY)
        os.dup2(fd, number)
        return in_child(lambda: is_open(number))

    assert in_child(child)


def test_one_that_cannot_be_closed_keeps_no_other_open(pipe: Ends) -> None:
    """It is printed by the interpreter, for nobody is there to be told."""

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


def test_a_fork_beside_threads_warns_of_nothing() -> None:
    """CPython 3.12 warns, and warnings are errors here; and it still does for the program's own forks."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        for _ in range(2):
            pid = forking.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
    finally:
        go.set()
        thread.join()


def test_a_copy_of_a_pool_knows_that_it_is_one() -> None:
    identity = forking.Identity()
    forking.require_owner(identity)

    def use() -> str:
        with pytest.raises(PoolInherited) as caught:
            forking.require_owner(identity)
        return str(caught.value)

    text = in_child(use)
    assert f"belongs to process {os.getpid()}" in text
    assert not in_child(identity.is_here)


# --- memory and limits --------------------------------------------------------------------------------


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


def limit_to(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, resource.RLIM_INFINITY))


def test_too_few_descriptors_are_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_to(monkeypatch, 100)
    with pytest.raises(OSError, match="descriptors") as caught:
        requirements.require_descriptors(500, "a pool of 160 workers")
    assert caught.value.errno == errno.EMFILE
    text = str(caught.value)
    assert "a pool of 160 workers needs about 500 descriptors" in text
    assert "RLIMIT_NOFILE allows 100" in text
    assert "fewer processes" in text
    advice = int(text.partition("ulimit -n ")[2].partition(")")[0])
    limit_to(monkeypatch, advice)
    requirements.require_descriptors(500, "a pool of 160 workers")  # the advice helps
    limit_to(monkeypatch, 500)
    with pytest.raises(OSError, match="RLIMIT_NOFILE allows 500"):  # what is open counts
        requirements.require_descriptors(500, "a pool of 160 workers")


def test_no_limit_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_to(monkeypatch, resource.RLIM_INFINITY)
    requirements.require_descriptors(10**9, "a very large pool")


def test_this_platform_will_do() -> None:
    requirements.require_linux()


@pytest.mark.parametrize(
    ("where", "name", "value", "words"),
    [
        (sys, "platform", "darwin", "this platform is darwin"),
        (os, "pidfd_open", None, "this Python was built without"),
        (os, "pidfd_open", OSError(errno.ENOSYS, "Function not implemented"), "this kernel refuses pidfd_open"),
        (os, "pidfd_open", OSError(errno.EPERM, "Operation not permitted"), "Operation not permitted"),
    ],
    ids=["macOS", "old Python", "old kernel", "seccomp"],
)
def test_another_platform_is_told_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, value: Any, words: str
) -> None:
    if value is None:
        monkeypatch.delattr(where, name)
    elif isinstance(value, OSError):

        def refuse(_pid: int) -> int:
            raise value

        monkeypatch.setattr(where, name, refuse)
    else:
        monkeypatch.setattr(where, name, value)
    with pytest.raises(OSError, match=words) as caught:
        requirements.require_linux()
    assert "Linux 5.4" in str(caught.value)


# --- cores --------------------------------------------------------------------------------------------


def test_the_allowance_follows_the_affinity() -> None:
    """In a process of its own, for an affinity is kept."""
    code = """
import os
from pairpool.linux.cgroup import cpu_allowance
cores = sorted(os.sched_getaffinity(0))
before = cpu_allowance()
os.sched_setaffinity(0, cores[-1:])
print(len(cores), before, cpu_allowance())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    cores, before, after = map(int, done.stdout.split())
    assert 1 <= before <= cores
    assert after == 1


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Writes cgroup files, and tells the allowance of a process with 64 cores among them.

    The paths are fixed in the code, so what it opens under /sys/fs/cgroup is opened below `tmp_path` here.
    """

    def opened(path: str, *args: Any, **options: Any) -> Any:
        assert path.startswith(("/sys/fs/cgroup", "/proc/self/cgroup"))
        return builtins.open(f"{tmp_path}{path}", *args, **options)

    monkeypatch.setattr(cgroup, "open", opened, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)))

    def allowance(membership: str, **files: str) -> int:
        (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/cgroup").write_text(membership)
        for path, content in files.items():
            file = tmp_path / "sys/fs/cgroup" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return cgroup.cpu_allowance()

    return allowance


Cgroups = Callable[..., int]


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 64),
        ("800000 100000", 8),
        ("200001 100000", 3),
        ("100000 100000", 1),
        ("1000 100000", 1),
        ("5000000 50000", 64),
        ("nonsense", 64),
        ("", 64),
    ],
)
def test_version_2_quota(cgroups: Cgroups, quota: str, cores: int) -> None:
    assert cgroups("0::/mine\n", **{"mine/cpu.max": quota}) == cores


def test_the_tightest_quota_above_counts(cgroups: Cgroups) -> None:
    quotas = {"": "max", "a/": "300000", "a/b/": "max", "a/b/c/": "500000"}
    files = {f"{path}cpu.max": f"{quota} 100000" for path, quota in quotas.items()}
    assert cgroups("0::/a/b/c\n", **files) == 3
    assert cgroups("0::/a/b\n", **files) == 3
    assert cgroups("0::/other\n", **files) == 64


def test_the_quota_of_a_container_is_at_its_root(cgroups: Cgroups) -> None:
    """A container sees its own cgroup at the top, whatever the host calls it."""
    assert cgroups("0::/\n", **{"cpu.max": "400000 100000"}) == 4
    assert cgroups("0::/docker/0123\n", **{"cpu.max": "400000 100000"}) == 4


VERSION_1 = "12:pids:/mine\n4:cpu,cpuacct:/mine\n3:cpuset:/mine\n1:name=systemd:/mine\n"


@pytest.mark.parametrize(("quota", "cores"), [("-1", 64), ("600000", 6), ("0", 64), ("nonsense", 64)])
def test_version_1_quota(cgroups: Cgroups, quota: str, cores: int) -> None:
    files = {
        "cpu,cpuacct/mine/cpu.cfs_quota_us": quota,
        "cpu,cpuacct/mine/cpu.cfs_period_us": "100000",
        "cpuset/mine/cpu.cfs_quota_us": "100000",
        "cpuset/mine/cpu.cfs_period_us": "100000",
    }
    assert cgroups(VERSION_1, **files) == cores


def test_both_versions_at_once(cgroups: Cgroups) -> None:
    files = {
        "cpu/mine/cpu.cfs_quota_us": "700000",
        "cpu/mine/cpu.cfs_period_us": "100000",
        "mine/cpu.max": "900000 100000",
    }
    assert cgroups("2:cpu:/mine\n0::/mine\n", **files) == 7


def test_without_cgroups_the_affinity_counts(cgroups: Cgroups, tmp_path: Path) -> None:
    assert cgroups("") == 64
    (tmp_path / "proc/self/cgroup").unlink()
    assert cgroup.cpu_allowance() == 64
