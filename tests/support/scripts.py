"""Run Python programs with this checkout's pairpool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "environment", "python", "running", "write_script"]

ROOT = Path(__file__).parent.parent.parent
"""The checkout."""


def write_script(directory: Path, source: str, name: str = "script.py") -> Path:
    """Write `source`, without its common indentation, to a file, and return its path."""
    path = directory / name
    path.write_text(textwrap.dedent(source))
    return path


def environment() -> dict[str, str]:
    """Return this process's environment with this checkout on the path of Python, and buffered output as usual."""
    names = os.environ.keys() - {"PYTHONUNBUFFERED", "PYTHONWARNINGS"}
    return {**{name: os.environ[name] for name in names}, "PYTHONPATH": str(ROOT)}


def python(*arguments: object, stdin: str | None = None, timeout: float = 40.0) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        env=environment(),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@contextmanager
def running(*arguments: object, warnings: str = "error", **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a Python program in its own session, and kill the program at the end if it still runs."""
    command = [sys.executable, *([] if warnings == "default" else ["-W", warnings]), *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with subprocess.Popen(command, env=environment(), start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
