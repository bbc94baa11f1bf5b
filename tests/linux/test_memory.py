"""The memory of processes, and sizes as people write them."""

from __future__ import annotations

import os
import subprocess

from pairpool.linux import memory


def test_memory_usage_of_a_process() -> None:
    here = memory.memory_usage_of(os.getpid())
    assert here is not None
    assert 0 < here.private <= here.resident
    done = subprocess.Popen(["true"])
    done.wait()
    assert memory.memory_usage_of(done.pid) is None
