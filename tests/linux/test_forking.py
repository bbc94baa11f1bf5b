"""Forks without warnings, and copies of pools in forked processes."""

from __future__ import annotations

import os
import threading

import pytest

from pairpool.errors import PoolInherited
from pairpool.linux import forking
from tests.support.children import in_child


def test_fork_beside_threads_does_not_warn() -> None:
    """CPython 3.12 warns about forks in programs with threads, and warnings are errors in these tests."""
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


def test_copy_of_a_pool_in_a_child_is_recognized() -> None:
    identity = forking.Identity()
    forking.require_owner(identity)

    def use() -> str:
        with pytest.raises(PoolInherited) as caught:
            forking.require_owner(identity)
        return str(caught.value)

    text = in_child(use)
    assert f"belongs to process {os.getpid()}" in text
    assert not in_child(identity.is_here)
