"""The process tree: the death of parents, orphans, lists of children, and their ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from pairpool.linux import forking, pidfds, process_tree
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import TextPacket
from pairpool.transport.spawning import Body
from tests.support.children import forked, in_child, until_eof, wait_for_end

GO = TextPacket()


def test_a_process_dies_with_its_parent() -> None:
    """Fork test ── parent ── child. The child asks to die with it. Only the child has the other end of `told`."""
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


def test_process_without_its_parent_exits_at_once() -> None:
    pid = forking.fork()
    if pid == 0:
        try:
            process_tree.die_with_parent(os.getpid())  # its own pid is not its parent's
        finally:
            os._exit(77)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_subreaper_becomes_the_parent_of_orphans() -> None:
    def adopt() -> tuple[int, int]:
        process_tree.adopt_orphans()
        reading, writing = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.close(writing)
                os.read(reading, 1)  # until the parent closes its end
                os._exit(5)
            os._exit(0)
        os.waitpid(middle, 0)
        (orphan,) = process_tree.children_of(os.getpid())
        os.close(writing)
        return orphan, os.waitstatus_to_exitcode(os.waitpid(orphan, 0)[1])

    orphan, code = in_child(adopt)
    assert orphan > 0
    assert code == 5


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


def test_ended_process_has_no_children() -> None:
    with forked(until_eof) as child:
        pass
    assert process_tree.children_of(child.pid) == []


def test_kill_children_spares_some_and_kills_orphans_too() -> None:
    """Kill children that have children of their own. These become orphans, and are killed in the next round."""

    def family(depth: int, ready: int) -> int:
        pid = os.fork()
        if pid == 0:
            for _ in range(depth):
                if os.fork():
                    break  # the parent stays alive, too
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


def test_kill_children_gives_up_after_its_patience() -> None:
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


def test_kill_children_finds_a_process_that_an_incomplete_list_left_out() -> None:
    """A child that ends during a read of the list can hide another child. Two reads in a row count."""

    def kill() -> tuple[list[int], list[int]]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        pid = os.fork()
        if pid == 0:
            signal.pause()
        gone = os.fork()
        if gone == 0:
            os._exit(0)
        handle = os.pidfd_open(pid)
        complete, lists = process_tree.children_of, iter([[gone]])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process_tree, "children_of", lambda parent: next(lists, None) or complete(parent))
            process_tree.kill_children(keep=set())
        return [pid] if not pidfds.has_ended(handle) else [], process_tree.children_of(os.getpid())

    assert in_child(kill) == ([], [])


def test_a_process_that_is_no_descendant_any_more_is_not_signalled() -> None:
    """A list can name a pid that another process has by now."""

    def kill() -> bool:
        with forked(until_eof) as stranger:  # a child, but not of the process whose descendants end
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(process_tree, "children_of", lambda parent: [stranger.pid] if parent == 1 else [])
                process_tree.kill_descendants_of(1)
            return not pidfds.wait_ended(stranger.pidfd.fileno(), 0.1)

    assert in_child(kill)


def test_descendants_of_another_process_are_killed_without_the_process() -> None:
    def kill() -> tuple[list[bool], bool]:
        reading, writing = os.pipe()
        root = os.fork()
        if root == 0:
            for _ in range(3):
                if os.fork():
                    break
            os.setpgid(0, 0)
            os.write(writing, b"%d " % os.getpid())
            signal.pause()
        pids = b""
        while pids.count(b" ") < 4:
            pids += os.read(reading, 100)
        handles = {pid: os.pidfd_open(pid) for pid in map(int, pids.split())}
        pidfds.halt(handles[root], root)
        process_tree.kill_descendants_of(root)
        ended = [pidfds.has_ended(handle) for pid, handle in handles.items() if pid != root]
        lives = not pidfds.has_ended(handles[root])
        os.kill(root, signal.SIGKILL)
        os.waitpid(root, 0)
        return ended, lives

    assert in_child(kill) == ([True] * 3, True)


def test_a_process_that_ends_kills_its_descendants_and_leaves_no_zombie() -> None:
    def end() -> list[int]:
        if os.fork() == 0:
            os._exit(0)  # a zombie, perhaps already
        if os.fork() == 0:
            if os.fork() == 0:
                os.setsid()
            signal.pause()
        process_tree.kill_all_before_exit()
        # The kernel lists a child for a moment in which no wait can find it any more: state X.
        return [pid for pid in process_tree.children_of(os.getpid()) if pidfds.state_of(pid) != "X"]

    assert in_child(end) == []
