"""`hello_pair.py` prints its two lines with and without a zygote, and leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.scripts import ROOT

WAYS = pytest.mark.parametrize("options", [(), ("--direct",)], ids=["zygote", "direct"])

BREAK_THE_CHILD = """
import os, sys
sys.argv[1:] = {options!r}
sys.path.insert(0, "examples")
import hello_pair
hello_pair.child = lambda channel, slot, serial: channel.receive() and os._exit(3)
sys.exit(hello_pair.main())
"""


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout. Its pipes end only when the last process that holds them has ended."""
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


@WAYS
def test_parent_and_child_say_hello(options: tuple[str, ...]) -> None:
    done = run("examples/hello_pair.py", *options)
    assert done.stderr == ""
    assert done.stdout == "I am Father\nI am Child\n"
    assert done.returncode == 0


@WAYS
def test_a_child_that_dies_is_noticed(options: tuple[str, ...]) -> None:
    done = run("-c", BREAK_THE_CHILD.format(options=options))
    assert done.stdout == ""
    assert done.stderr == "the child ended without a word\n"
    assert done.returncode == 1
