"""Tasks for the tests of captured output and of logging."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import signal
import subprocess
import sys
import threading
from typing import Any, NoReturn

from tests.support.tasks import tell, wait_for


def write_every_way(x: int) -> int:
    """Write to both streams, and from Python, from C, by descriptor, from a program, a thread and a child."""
    print("print", x)
    print("stderr", x, file=sys.stderr)
    os.write(1, f"os.write {x}\n".encode())
    subprocess.run(["sh", "-c", f"echo program {x}; echo program error {x} >&2"], check=True)
    ctypes.CDLL(None).puts(f"puts {x}".encode())
    thread = threading.Thread(target=print, args=("thread", x))
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        print("fork", x)
        os._exit(0)
    os.waitpid(child, 0)
    return x


def say(text: str) -> int:
    print(text)
    return os.getpid()


def say_at_start(text: str) -> None:
    """Print to both streams. Serves as an initializer."""
    print(text)
    print(text, file=sys.stderr)


def say_and_fail(text: str) -> NoReturn:
    """Print, and raise. Serves as an initializer."""
    say_at_start(text)
    raise RuntimeError("on purpose")


def write_bytes(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def write_c(text: bytes) -> None:
    ctypes.CDLL(None).printf(b"%s", text)


def say_and_die(how: str, text: str, end: str) -> NoReturn:
    print(text, end=end)
    if not end:
        sys.stdout.flush()
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    ctypes.string_at(0)
    raise AssertionError("it lives")


def put_c_and_die(text: str) -> NoReturn:
    ctypes.CDLL(None).puts(text.encode())
    os._exit(3)


def say_and_hold(reports: str, gate: str, text: str) -> None:
    print(text)
    tell(reports, os.getpid())
    wait_for(gate)


def say_much_and_tell(reports: str, lines: int) -> int:
    """Print lines of 100 bytes, and report at the end. The report comes only if no write blocks."""
    for number in range(lines):
        print(f"{number:06d} {'x' * 92}")
    tell(reports, "done")
    return lines


def say_numbers(who: int) -> None:
    for number in range(2000):
        print(f"{who} says {number} {'=' * (number % 60)}")


def say_from_threads(count: int) -> None:
    """Print lines from several threads at once."""
    threads = [threading.Thread(target=say_numbers, args=(who,)) for who in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def leave_a_daemon(reports: str, gate: str, text: str) -> None:
    """Start a daemon that keeps this process's stdout open, in its own session, until the gate lets it end."""
    print(text, end="", flush=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            tell(reports, os.getpid())
            wait_for(gate)
        os._exit(0)


def pipes(_item: object = None) -> set[str]:
    """Return the kernel's names of the pipes that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself is closed by now
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {name for name in found if name.startswith("pipe:")}


def pipes_and_hold(reports: str, gate: str) -> set[str]:
    tell(reports, os.getpid())
    wait_for(gate)
    return pipes()


kept: list[Any] = []


def put_own_stream() -> None:
    """Replace `sys.stdout` by another stream. Serves as an initializer."""
    kept.append(io.StringIO())
    sys.stdout = kept[-1]


def print_to_own_stream(text: str) -> str:
    print(text)
    value: str = kept[-1].getvalue()
    return value


def print_redirected(text: str) -> str:
    memory = io.StringIO()
    with contextlib.redirect_stdout(memory):
        print(text)
    return memory.getvalue()


def stream_settings(_item: object = None) -> list[tuple[str, bool]]:
    streams: list[Any] = [sys.stdout, sys.stderr]
    return [(stream.encoding, stream.line_buffering) for stream in streams]


# --- logging ------------------------------------------------------------------------------------------


class Peculiar:
    """An object with a `str`, which cannot be pickled."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("not to be pickled")

    def __str__(self) -> str:
        return "peculiar text"


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def log_every_level(x: int) -> None:
    logger = logging.getLogger("tasks.levels")
    logger.debug("debug %d", x)
    logger.info("info %d", x)
    logger.warning("warning %d", x)


def log_exception() -> None:
    try:
        raise ValueError("deliberate")
    except ValueError:
        logging.getLogger("tasks").exception("it %s", "failed")


def log_extra() -> None:
    extra = {
        "plain": {"a": [1, 2.5, None]},
        "odd": Peculiar(),
        "worse": Unspeakable(),
        "deep": [[[[[[1]]]]]],
    }
    logging.getLogger("tasks").warning("100 % sure", extra=extra)


def log_large(size: int) -> None:
    logging.getLogger("tasks").warning("<%s>", "ä" * size, extra={"large": "x" * size})


def log_from_threads(count: int) -> None:
    def log(who: int) -> None:
        for number in range(500):
            logging.getLogger("tasks").warning("%d %d", who, number)

    threads = [threading.Thread(target=log, args=(who,)) for who in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def log_at_start(text: str) -> None:
    """Log a warning. Serves as an initializer."""
    logging.getLogger("tasks.start").warning(text)


def log_as(name: str, text: str) -> int:
    logging.getLogger(name).warning(text)
    return os.getpid()


def log_and_die(text: str) -> NoReturn:
    logging.getLogger("tasks").warning(text)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")
