"""A node ends its processes soon after its client has vanished, or after a call was cancelled."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

pytest.importorskip("distributed")

from tests.support.dask_cluster import PATIENCE, node, scheduler, start, write_program
from tests.support.scripts import environment

SETTINGS = """
def end_idle_pools_soon():
    from pairpool.dask import node_pools
    node_pools.IDLE_LIMIT_S = 1.0

def open_late(begun, ended):
    # a pool of this node makes the file `begun` when it begins to open, and then waits for the file `ended`
    from pairpool.dask import node_pools

    class Late(node_pools.Pool):
        def __init__(self, *args, **kwargs):
            open(begun, "w").close()
            while not os.path.exists(ended):
                time.sleep(0.01)
            super().__init__(*args, **kwargs)
            open(ended + " and opened", "w").close()

    node_pools.Pool = Late
"""


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that a Dask worker has started, directly or indirectly."""
    return psutil.Process(process.pid).children(recursive=True)


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_node_ends_the_pool_of_a_client_that_was_killed(tmp_path: Path) -> None:
    code = """
        pool = ClusterPool(sys.argv[1], timeout=30)
        pool._client.run(end_idle_pools_soon)
        pool.map_async(time.sleep, [100_000.0] * 2, 1)
        time.sleep(100_000.0)
    """
    script = write_program(tmp_path, code, SETTINGS)
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path))
        there = stack.enter_context(node(address))
        running = stack.enter_context(start(script, address))
        stack.callback(running.kill)
        until(lambda: len(children(there)) > 2, "no workers on the node")
        running.kill()
        until(lambda: not children(there), "the pool of a client that has ended is still on the node")
        assert there.poll() is None


def test_a_cancelled_call_ends_its_tasks_on_the_nodes(tmp_path: Path) -> None:
    code = """
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            result = pool.map_async(time.sleep, [100_000.0] * 2, 1)
            input()
            result.cancel()
            print(json.dumps(pool.map(square, range(8))), flush=True)
    """
    script = write_program(tmp_path, code, SETTINGS)
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path))
        there = stack.enter_context(node(address))
        running = stack.enter_context(start(script, address, stdin=subprocess.PIPE))
        stack.callback(running.kill)
        until(lambda: len(children(there)) > 2, "no workers on the node")
        out, _ = running.communicate("\n", timeout=PATIENCE)
        assert json.loads(out) == [x * x for x in range(8)]


def test_a_pool_that_opens_while_its_client_ends_is_ended(tmp_path: Path) -> None:
    code = """
        begun, ended = sys.argv[2:]
        with ClusterPool(sys.argv[1], timeout=30) as pool:
            pool._client.run(open_late, begun, ended)
            pool.apply_async(square, (2,))
            while not os.path.exists(begun):
                time.sleep(0.01)
        open(ended, "w").close()
    """
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path))
        there = stack.enter_context(node(address))
        command = [sys.executable, str(write_program(tmp_path, code, SETTINGS)), address, str(begun), str(ended)]
        subprocess.run(command, env=environment(), check=True, timeout=PATIENCE)
        until((tmp_path / "ended and opened").exists, "the node has not opened its pool")
        before = time.monotonic()
        until(lambda: not children(there), "the pool of a client that has ended is still on the node")
        assert time.monotonic() - before < 30, "the pool was found idle, but the end of the client should have ended it"


def test_a_program_exits_although_calls_are_in_flight(tmp_path: Path) -> None:
    code = """
        pool = ClusterPool(sys.argv[1], timeout=30)
        half_read = pool.imap(square, itertools.count())
        sleeping = pool.map_async(time.sleep, [100_000.0])
        print(next(half_read), next(half_read))
        sys.exit(3)
    """
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path))
        there = stack.enter_context(node(address))
        command = [sys.executable, str(write_program(tmp_path, code)), address]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stdout, done.stderr) == (3, "0 1\n", "")
        before = time.monotonic()
        until(lambda: not children(there), "the pool of a client that has ended is still on the node")
        assert time.monotonic() - before < 30, "the pool was found idle, but the end of the client should have ended it"
