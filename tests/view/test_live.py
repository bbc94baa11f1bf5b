"""The live view of real pools, in programs on real terminals, and without a terminal."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pairpool import OutputLine, Pool
from pairpool.view import live
from pairpool.view.live import LiveView
from tests.support import tasks
from tests.support.gates import Gate
from tests.support.scripts import environment
from tests.support.waiting import PATIENCE
from tests.view.statuses import make_status
from tests.view.terminal import Program, Terminal, in_terminal, read_until_closed

PREAMBLE = """
import logging, multiprocessing, os, signal, subprocess, sys, threading, time, warnings
from pairpool import Pool

def say(number):
    print(f"line {number} of {os.getpid()}")
    return number

def wait(number):  # until the program has read a line from the terminal
    while not os.path.exists(sys.argv[0] + ".go"):
        time.sleep(0.01)
    return number

def go():
    sys.stdin.readline()
    open(sys.argv[0] + ".go", "w").close()

if __name__ == "__main__":
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a script of the preamble and a source."""

    def make(source: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(PREAMBLE + textwrap.indent(textwrap.dedent(source), "    "))
        return path

    return make


Script = Callable[[str], Path]

OVER = r"pool-1  ended after \S+  pid \d+  fork"


def final_frame(terminal: Terminal) -> list[str]:
    """Return the last frame and the lines below it. Check that there is no other frame, and no part of one."""
    heads = [number for number, line in enumerate(terminal.lines) if re.fullmatch(OVER, line)]
    assert len(heads) == 1, terminal.text
    assert "busy" not in terminal.text, terminal.text
    assert "up " not in terminal.text, terminal.text
    return terminal.lines[heads[0] :]


def check_end(program: Program, status: int = 0) -> list[str]:
    """Check that the program has ended and the terminal is restored. Return the lines above the last frame."""
    assert program.wait() == status, program.terminal.text
    terminal = program.terminal
    assert terminal.shows_cursor
    assert not terminal.unknown
    frame = final_frame(terminal)
    return [line for line in terminal.lines[: -len(frame)] if line]


# --- frames and lines ---------------------------------------------------------------------------------


def test_frames_and_lines(script: Script) -> None:
    source = """
        with Pool(2, live=True) as pool:
            result = pool.map_async(wait, range(100))
            go()
            result.get()
            pool.map(say, range(300), chunksize=7)
        print("after")
    """
    with in_terminal(script(source)) as program:
        program.until_screen("map wait")
        program.until_screen("2 busy")
        program.until_screen("wait[1]")
        program.type("\n")
        lines = check_end(program)
    assert sorted(int(line.split()[2]) for line in lines) == list(range(300))
    assert all(re.fullmatch(r"\[[01]\] line \d+ of \d+", line) for line in lines)
    tail = final_frame(program.terminal)
    assert tail[1].startswith("tasks    400 done  0 failed  0 pending")
    assert tail[2:] == ["after", ""]


def test_lines_come_whole_whatever_is_in_them(script: Script) -> None:
    source = r"""
        def shout(number):
            print("x" * 200, number)
            print("\x1b[31mred\x1b[0m \x1b[2J\x1b[Hhome\x1bc \x07bell", number)
            print("字" * 60, number)
            os.write(1, b"\xff\xfe not text %d\n" % number)
            print("error", number, file=sys.stderr)
            print("unended", number, end="", flush=True)
            os._exit(1)

        with Pool(2, live=True) as pool:
            pool.map(shout, range(4), return_exceptions=True, chunksize=1)
    """
    with in_terminal(script(source), (60, 20)) as program:
        lines = [re.sub(r"^\[\d+\] ", "", line) for line in check_end(program)]
    for number in range(4):
        for text in ("x" * 200, "red home bell", "字" * 60, "�� not text", "error", "unended"):
            assert f"{text} {number}" in lines
    assert not [line for line in lines if line[-1] not in "0123"]


def test_all_lines_that_are_written_just_before_the_end(script: Script) -> None:
    source = """
        for _ in range(5):
            with Pool(2, live=True) as pool:
                pool.map(say, range(20))
    """
    with in_terminal(script(source)) as program:
        assert program.wait() == 0
    text = program.terminal.text
    assert len(re.findall(r"\] line \d+ of", text)) == 100
    assert len(re.findall(r"ended after", text)) == 5
    assert program.terminal.shows_cursor


# --- ends ---------------------------------------------------------------------------------------------

ENDS = {
    "normal": ("with Pool(2, live=True) as pool: pool.map(wait, range(2))", 0),
    "close": ("pool = Pool(2, live=True); pool.map(wait, range(2)); pool.close(); pool.join()", 0),
    "terminate": ("pool = Pool(2, live=True); pool.map(wait, range(2)); pool.terminate()", 0),
    "exception": ("with Pool(2, live=True) as pool: pool.map(wait, range(2)); 1 / 0", 1),
    "exit": ("with Pool(2, live=True) as pool: pool.map(wait, range(2)); sys.exit(3)", 3),
    "no stop": ("pool = Pool(2, live=True); pool.map(wait, range(2))", 0),
    "dropped": ("pool = Pool(2, live=True); pool.map(wait, range(2)); del pool; sys.stdin.readline()", 0),
    "the view's": ("with Pool(2) as pool, pool.live(): pool.map(wait, range(2))", 0),
}
STILL_OPEN = ("no stop", "the view's")
"""The place in the pool after the last frame is drawn."""


@pytest.mark.parametrize("end", ENDS)
def test_the_terminal_is_whole_at_the_end(end: str, script: Script) -> None:
    source, status = ENDS[end]
    source = f"threading.Thread(target=go, daemon=True).start()\n{source}\n"
    with in_terminal(script(source), options=()) as program:
        program.until_screen("2 busy")
        program.type("\n\n")
        assert program.wait() == status
    terminal = program.terminal
    assert terminal.shows_cursor
    assert not terminal.unknown
    (at,) = [number for number, line in enumerate(terminal.lines) if line.startswith("pool-1  ")]
    assert ("ended after" in terminal.lines[at]) == (end not in STILL_OPEN)
    assert terminal.lines[at + 1 + (end in STILL_OPEN)].startswith("tasks    2 done")
    assert ("Traceback" in terminal.text) == (end == "exception")
    assert terminal.lines[-1] == ""


def test_an_interrupt(script: Script) -> None:
    source = """
        with Pool(2, live=True) as pool:
            pool.map(wait, range(2))
    """
    with in_terminal(script(source)) as program:
        program.until_screen("2 busy")
        program.until(lambda terminal: terminal.below[:1] > ["pool-1"])  # what is on its way, an interrupt throws away
        program.type("\x03")
        lines = check_end(program, -signal.SIGINT)
    assert set(lines) <= {"^C"}
    assert program.terminal.lines[-2] == "KeyboardInterrupt"


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "signal.raise_signal(15)", "os._exit(3)"])
def test_a_master_that_puts_nothing_back(end: str, script: Script) -> None:
    """The last frame stays. The next program on the terminal has a visible cursor and wrapped lines."""
    source = f"""
        pool = Pool(2, live=True)
        result = pool.map_async(wait, range(2))
        sys.stdin.readline()
        {end}
    """
    with in_terminal(script(source)) as program:
        program.until_screen("2 busy")
        program.type("\n")
        assert program.wait() != 0
    assert program.terminal.shows_cursor
    assert program.terminal.wraps
    assert "ended after" not in program.terminal.text


def test_a_worker_is_killed_while_the_view_is_on(script: Script) -> None:
    source = """
        def fall(number):
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return say(number)

        with Pool(2, live=True) as pool:
            result = pool.map_async(fall, range(40), chunksize=1)
            try:
                result.get()
            except Exception as error:
                print(type(error).__name__)
            pool.map(wait, range(2))
    """
    path = script(source)
    with in_terminal(path) as program:
        program.until_screen("2 busy")
        program.until_screen("✗")
        screen = "\n".join(program.terminal.screen)
        assert "1 failed" in screen
        assert "fall[5]" in screen
        assert "repl" in screen
        (path.parent / "script.py.go").touch()
        lines = check_end(program)
    assert "WorkerDied" in lines
    assert len([line for line in lines if "line" in line]) == 39


def test_stop_again_and_views_one_after_the_other(script: Script) -> None:
    source = """
        with Pool(2) as pool:
            for number in range(3):
                view = pool.live()
                pool.map(say, range(5))
                view.stop()
                view.stop()
                print("stopped", number)
        view.stop()
    """
    with in_terminal(script(source)) as program:
        assert program.wait() == 0
    lines = program.terminal.lines
    assert [line for line in lines if line.startswith("stopped")] == ["stopped 0", "stopped 1", "stopped 2"]
    assert len([line for line in lines if line.startswith("pool-1  up")]) == 3
    assert len([line for line in lines if re.match(r"\[[01]\] line", line)]) == 15
    assert program.terminal.shows_cursor


def test_a_later_view_of_a_pool_captures_from_then_on(script: Script) -> None:
    source = """
        with Pool(2) as pool:
            os.write(1, b"begin\\n")
            pool.map(say, range(5))
            with pool.live():
                pool.map(say, range(5, 10))
            pool.map(say, range(10, 15))
    """
    with in_terminal(script(source)) as program:
        assert program.wait() == 0
    lines = program.terminal.lines
    for number in range(15):
        (line,) = [line for line in lines if f"line {number} of" in line]
        assert bool(re.match(r"\[[01]\] line", line)) == (5 <= number < 10)


# --- sizes --------------------------------------------------------------------------------------------


def test_resizing(script: Script) -> None:
    """Change width and height while tasks print. At the end the frame is visible, and no line is lost."""
    source = """
        def slow(number):
            say(number)
            time.sleep(0.02)

        with Pool(2, live=True) as pool:
            result = pool.map_async(wait, range(1))
            for start in range(0, 200, 40):
                sys.stdin.readline()
                pool.map(slow, range(start, start + 40), chunksize=1)
            go()
            result.get()
    """
    with in_terminal(script(source), (100, 24)) as program:
        program.until_screen("map wait")
        for number, (width, height) in enumerate([(60, 24), (40, 10), (120, 40), (41, 12), (80, 24)]):
            program.type("\n")
            program.until_text(f"line {40 * number + 5} of")
            program.resize(width, height)
            program.until_text(f"line {40 * number + 39} of")
        program.until_screen("1 busy")
        program.type("\n")
        assert program.wait() == 0
    terminal = program.terminal
    assert terminal.shows_cursor
    assert not terminal.unknown
    found = [int(number) for number in re.findall(r"^\[[01]\] line (\d+) of \d+$", terminal.text, re.M)]
    assert sorted(found) == list(range(200)), terminal.text
    assert re.search(OVER, "\n".join(terminal.screen))


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_in_tmux(script: Script, tmp_path: Path) -> None:
    """Make a tmux terminal narrower and wider."""
    path = script("""
        with Pool(2, live=True) as pool:
            pool.map(say, range(10))
            result = pool.map_async(wait, range(2))
            for line in sys.stdin:
                print("read", line.strip())
                if line.strip() == "stop":
                    break
            open(sys.argv[0] + ".go", "w").close()
            result.get()
        print("over")
    """)
    socket = str(tmp_path / "tmux")

    def tmux(*arguments: str) -> str:
        env = {**environment(), "TERM": "xterm-256color"}
        command = ["tmux", "-f", os.devnull, "-S", socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout

    def until(text: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while text not in (shown := tmux("capture-pane", "-p", "-J", "-S", "-", "-t", "t")):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        return shown

    shell = f"stty -echo; {sys.executable} -W error {path}; echo status $?; exec sleep 100"
    tmux("new-session", "-d", "-s", "t", "-x", "90", "-y", "20", shell)
    try:
        until("2 busy")
        for number, (width, height) in enumerate([(50, 20), (40, 18), (120, 30), (60, 20)]):
            tmux("resize-window", "-t", "t", "-x", str(width), "-y", str(height))
            tmux("send-keys", "-t", "t", f"line{number}", "Enter")
            until(f"read line{number}")
        until("2 busy")
        tmux("send-keys", "-t", "t", "stop", "Enter")
        shown = until("status 0")
        assert tmux("display-message", "-p", "-t", "t", "#{cursor_flag}").strip() == "1"
    finally:
        tmux("kill-server")
    assert len(re.findall(r"^\[[01]\] line \d of \d+$", shown, re.M)) == 10
    assert re.findall(r"read .*", shown) == ["read line0", "read line1", "read line2", "read line3", "read stop"]
    assert len(re.findall(r"pool-1  ", shown)) == len(re.findall(OVER, shown)) == 1
    assert re.search(r"pending.*\nover\nstatus 0", shown)


# --- others that write --------------------------------------------------------------------------------


def test_two_pools_at_once(script: Script) -> None:
    """The first view is drawn. The second one writes a line above it at its end."""
    source = """
        with Pool(2, live=True) as first:
            result = first.map_async(wait, range(2))
            with Pool(2, live=True, name="other") as second:
                second.map(say, range(20))
            go()
            result.get()
    """
    with in_terminal(script(source)) as program:
        program.until_screen("2 busy")
        program.until_text("other: ended after")
        program.type("\n")
        lines = check_end(program)
    assert len([line for line in lines if re.fullmatch(r"\[worker [01]\] line \d+ of \d+", line)]) == 20
    (line,) = [line for line in lines if "line" not in line]
    assert re.fullmatch(r"other: ended after \S+; tasks: 20 done, 0 failed", line)


FORKS = {
    "fork": """
        pid = os.fork()
        if not pid:
            print("child")
            print("child again", file=sys.stderr)
            os._exit(0)
        os.waitpid(pid, 0)
    """,
    "exit": """
        pid = os.fork()
        if not pid:
            print("child")
            logging.warning("child again")
            sys.exit()
        os.waitpid(pid, 0)
    """,
    "multiprocessing": """
        def child():
            print("child")
            logging.warning("child again")

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
    """,
    "subprocess": """
        subprocess.run(["sh", "-c", "echo child; echo child again >&2"])
    """,
    "os.system": """
        os.system("echo child; echo child again")
    """,
}


@pytest.mark.parametrize("how", FORKS)
def test_children_neither_tear_nor_hang(how: str, script: Script) -> None:
    source = f"""
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks of threaded programs
        logging.basicConfig(format="%(message)s")
        pool = Pool(2, live=True)
        result = pool.map_async(wait, range(2))
        sys.stdin.readline()
        {textwrap.indent(textwrap.dedent(FORKS[how]), "        ").strip()}
        print("parent")
        go()
        result.get()
        pool.terminate()
    """
    with in_terminal(script(source)) as program:
        program.until_screen("2 busy")
        program.type("\n")
        program.until_text("parent")
        program.until_screen("2 busy")
        program.type("\n")
        assert program.wait() == 0, program.terminal.text
    lines = program.terminal.lines
    assert [line for line in lines if line.startswith("child") and "again" not in line]
    assert [line for line in lines if line.startswith("child again")]
    assert lines.count("parent") == 1
    assert len([line for line in lines if re.fullmatch(OVER, line)]) == 1
    assert program.terminal.shows_cursor


def test_many_forks_in_the_midst_of_frames(script: Script) -> None:
    source = """
        from pairpool.view import live

        warnings.simplefilter("ignore", DeprecationWarning)
        live.FRAME_EVERY_S = live.DRAWING_CORE_SHARE = 0.0001
        live.DRAWING_CORE_SHARE = 1000
        with Pool(2, live=True) as pool:
            result = pool.map_async(wait, range(2))
            for number in range(150):
                pid = os.fork()
                if not pid:
                    print(f"child {number}")
                    sys.stderr.write("")
                    os._exit(0)
                os.waitpid(pid, 0)
            open(sys.argv[0] + ".go", "w").close()
            result.get()
    """
    with in_terminal(script(source), (200, 24)) as program:
        assert program.wait() == 0
    for number in range(150):
        assert f"child {number}" in program.terminal.text


@pytest.mark.parametrize("method", ["fork", "forkserver", "direct"])
def test_pools_made_while_a_view_is_on(method: str, script: Script) -> None:
    source = f"""
        from tests.support import tasks

        with Pool(2, live=True) as first:
            result = first.map_async(wait, range(2))
            sys.stdin.readline()
            for _ in range(3):
                with Pool(2, start_method={method!r}, capture=True) as pool:
                    assert pool.map(tasks.square, range(50)) == [number * number for number in range(50)]
            for _ in range(2):
                with Pool(2, start_method={method!r}, live=True) as pool:
                    pool.map(print, ["hello"] * 10)
            go()
            result.get()
    """
    with in_terminal(script(source)) as program:
        program.until_screen("2 busy")
        program.type("\n\n")
        lines = check_end(program)
    assert len([line for line in lines if re.fullmatch(r"\[worker [01]\] hello", line)]) == 20


def test_logging_of_the_program(script: Script) -> None:
    source = """
        logging.basicConfig(format="%(levelname)s %(message)s")
        handler = logging.getLogger().handlers[0]
        before = handler.stream
        with Pool(2, live=True) as pool:
            result = pool.map_async(wait, range(2))
            for number in range(50):
                logging.warning("number %d", number)
                time.sleep(0.01)
            go()
            result.get()
        assert handler.stream is before is sys.stderr
        logging.warning("after")
    """
    with in_terminal(script(source)) as program:
        program.until_text("number 49")
        program.type("\n")
        lines = check_end(program)
    assert lines == [f"WARNING number {number}" for number in range(50)]
    assert program.terminal.lines[-2] == "WARNING after"


def test_prints_and_questions_of_the_program(script: Script) -> None:
    source = """
        with Pool(2, live=True) as pool:
            result = pool.map_async(wait, range(2))
            for number in range(100):
                print("number", number)
            answer = input("Go on? ")
            print("answer:", answer)
            open(sys.argv[0] + ".go", "w").close()
            result.get()
    """
    with in_terminal(script(source)) as program:
        program.until(lambda terminal: "Go on?" in terminal.screen and "2 busy" in "\n".join(terminal.screen))
        frames = program.terminal.frames
        program.until(lambda terminal: terminal.frames > frames + 3)
        assert program.terminal.screen.count("Go on?") == 1  # it stays
        program.type("yes\n")
        lines = check_end(program)
    assert lines == [*(f"number {number}" for number in range(100)), "Go on?", "answer: yes"]


def test_a_question_is_not_written_over_by_tasks(script: Script) -> None:
    """Python writes the prompt to the terminal itself, and leaves the cursor behind it."""
    source = """
        def shout(number):
            wait(number)
            for line in range(40):
                print("line", line)

        with Pool(1, live=True) as pool:
            result = pool.map_async(shout, range(1))
            answer = input("Go on? ")
            open(sys.argv[0] + ".go", "w").close()
            input("Really? ")
            result.get()
            print("answer:", answer)
    """
    with in_terminal(script(source)) as program:
        program.until_screen("Go on?")
        program.type("yes\n")
        program.until_text("Really?")
        program.until_text("line 39")
        program.type("yes\n")
        lines = check_end(program)
    asked = "Go on? Really?"  # what is typed is not echoed here, the end of the line neither
    assert [line for line in lines if not line.startswith("[")] == [asked, "answer: yes"]
    assert [line for line in lines if line.startswith("[")] == [f"[0] line {line}" for line in range(40)]


def test_results_go_to_a_file(script: Script, tmp_path: Path) -> None:
    """Output of the program and of tasks on stdout goes only to the target of stdout."""
    source = """
        def both(number):
            print("to stdout", number)
            print("to stderr", number, file=sys.stderr)

        with Pool(2, live=True) as pool:
            print("begin")
            pool.map(both, range(10))
            result = pool.map_async(wait, range(2))
            go()
            result.get()
            print("end")
    """
    with open(tmp_path / "out", "w+") as out, in_terminal(script(source), stdout=out) as program:
        program.until_screen("2 busy")
        program.type("\n")
        lines = check_end(program)
    assert len([line for line in lines if re.fullmatch(r"\[[01]\] to stderr \d", line)]) == len(lines) == 10
    written = (tmp_path / "out").read_text().splitlines()
    assert len([line for line in written if re.fullmatch(r"\[worker [01]\] to stdout \d", line)]) == 10
    assert (set(written) >= {"begin", "end"}, len(written)) == (True, 12)


# --- terminals that are slow, or gone -----------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "direct"])
def test_a_terminal_that_takes_nothing_holds_up_no_pool(method: str, script: Script) -> None:
    """Forks and the replacement of workers go on too. Only prints of the program wait."""
    source = f"""
        def quit(number):
            if number % 20 == 7:
                os._exit(1)

        warnings.simplefilter("ignore", DeprecationWarning)
        with Pool(2, live=True, start_method={method!r}) as pool:
            sys.stdin.readline()
            for number in range(100):
                sys.__stderr__.flush()
                os.set_blocking(2, False)
                try:
                    while os.write(2, b"." * 1000):  # until it is full
                        pass
                except BlockingIOError:
                    break
                finally:
                    os.set_blocking(2, True)
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                pool.map(quit, range(100), chunksize=1, return_exceptions=True)
                pid = os.fork()
                if not pid:
                    os._exit(0)
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    pass  # "direct" has the kernel reap them
            os.write(1, b"done\\n")
    """
    out, inner = os.pipe()
    try:
        with in_terminal(script(source), stdout=inner) as program:
            os.close(inner)
            program.until_screen("idle")
            program.pause()
            program.type("\n")
            assert os.read(out, 100) == b"done\n"
            assert program.process.poll() is None
            program.go_on()
            assert program.wait() == 0
            assert program.terminal.shows_cursor
    finally:
        os.close(out)


def test_a_terminal_that_is_closed(script: Script, tmp_path: Path) -> None:
    source = """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Pool(2, live=True) as pool:
            pool.map(wait, range(2))
            time.sleep(0.6)
            assert pool.map(abs, range(100)) == list(range(100))
            assert sys.stderr is sys.__stderr__
        print("done")
    """
    path = script(source)
    with open(tmp_path / "out", "w+") as out, in_terminal(path, stdout=out) as program:
        program.until_screen("2 busy")
        program.hang_up()
        (path.parent / "script.py.go").touch()
        assert program.process.wait(PATIENCE) == 0
    assert (tmp_path / "out").read_text() == "done\n"


# --- no terminal --------------------------------------------------------------------------------------


def run(path: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Without a terminal."""
    env = {**environment(), **variables}
    command = [sys.executable, "-W", "error", *options, str(path)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=40, stdin=subprocess.DEVNULL)


PLAIN = """
    from pairpool.view import live

    written = threading.Semaphore(0)
    write_line = live.LiveView._write_line

    def write_and_tell(view):
        write_line(view)
        written.release()

    live.LiveView._write_line = write_and_tell
    live.LINE_EVERY_S = 0.1
    with Pool(2, live=True, name="é") as pool:
        pool.map(say, range(20))
        for _ in range(3):
            written.acquire()
    print("after")
"""

LINE = re.compile(
    r"(é|\?): (up \S+; workers: \d busy, \d idle(, \d starting)?; tasks: .* pending; .*/s|ended after .*)"
)


@pytest.mark.parametrize(
    "variables", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_plain_lines_where_there_is_no_terminal(variables: dict[str, str], script: Script) -> None:
    ran = run(script(PLAIN), **variables)
    assert ran.returncode == 0, ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr
    assert "\r" not in ran.stdout + ran.stderr
    lines = ran.stderr.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert len(lines) > 3
    assert ["ended after" in line for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(re.findall(r"^\[worker [01]\] line \d+ of \d+$", ran.stdout, re.M)) == 20
    assert ran.stdout.endswith("after\n")


def test_a_dumb_terminal_gets_plain_lines(script: Script) -> None:
    with in_terminal(script(PLAIN), variables={"TERM": "dumb"}) as program:
        assert program.wait() == 0
    lines = [line for line in program.terminal.lines if line]
    assert len([line for line in lines if LINE.fullmatch(line)]) + 20 + 1 == len(lines)


def test_no_colours(script: Script) -> None:
    source = r"""
        def colour(number):
            print(f"\x1b[31mred\x1b[0m {number}")

        with Pool(2, live=True) as pool:
            pool.map(colour, range(4))
    """
    path = script(source)
    shown = {}
    for variables in ({}, {"NO_COLOR": "1"}):
        with in_terminal(path, variables=variables) as program:
            assert len(check_end(program)) == 4
            shown[bool(variables)] = program.terminal.colours
    assert 31 in shown[False]
    assert not shown[True]


def test_ascii_terminals(script: Script) -> None:
    source = """
        with Pool(2, live=True) as pool:
            print("é")
            result = pool.map_async(wait, range(2))
            go()
            result.get()
    """
    with in_terminal(script(source), variables={"PYTHONIOENCODING": "ascii"}) as program:
        program.until_screen("2 busy")
        program.until_screen("--")
        assert program.terminal.text.isascii()
        program.type("\n")
        assert check_end(program) == ["?"]


def test_output_that_is_closed_early(script: Script) -> None:
    """The pipe closes as with `2>&1 | head -1`. The program runs to its end, without a message."""
    path = script("""
        from pairpool.view import live

        live.LINE_EVERY_S = 0.05
        with Pool(2, live=True) as pool:
            time.sleep(0.5)
            assert pool.map(abs, range(100)) == list(range(100))
        open(sys.argv[0] + ".done", "w").close()
    """)
    out, inner = os.pipe()
    command = [sys.executable, "-W", "error", str(path)]
    with subprocess.Popen(command, env=environment(), stdout=inner, stderr=inner) as process:
        os.close(inner)
        first = os.read(out, 65536)
        os.close(out)
        assert process.wait(PATIENCE) == 0
    assert first.startswith(b"pool-1: up ")
    assert (path.parent / "script.py.done").exists()


def test_stderr_alone_is_closed_early(script: Script) -> None:
    """Results on stdout are not lost."""
    path = script("""
        from pairpool.view import live

        live.LINE_EVERY_S = 0.05
        with Pool(2, live=True) as pool:
            time.sleep(0.5)
            pool.map(say, range(10))
        print("done")
    """)
    (out, inner), (err, inner_err) = os.pipe(), os.pipe()
    command = [sys.executable, "-W", "error", str(path)]
    with subprocess.Popen(command, env=environment(), stdout=inner, stderr=inner_err) as process:
        os.close(inner)
        os.close(inner_err)
        os.close(err)
        text = read_until_closed(out).decode()
        os.close(out)
        assert process.wait(PATIENCE) == 0
    assert len(re.findall(r"\[worker \d\] line", text)) == 10
    assert text.endswith("done\n")


# --- in this process ----------------------------------------------------------------------------------


class Stream(io.StringIO):
    """Replaces a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def console() -> Console:
    return Console(file=Stream(), force_terminal=True, width=80, height=24, color_system=None)


def shown(console: Console) -> Terminal:
    terminal = Terminal(80, 24)
    assert isinstance(console.file, Stream)
    terminal.feed(console.file.getvalue().encode())
    assert not terminal.unknown
    return terminal


def test_nothing_is_left(make_pool: Callable[..., Pool], start_method: str, console: Console) -> None:
    for _ in range(3):
        pool = make_pool(2)
        with pool.live(console):
            assert pool.map(tasks.square, range(10)) == [number * number for number in range(10)]
        view = pool.live(console)
        pool.terminate()
        pool.join()
        view.stop()
    assert shown(console).shows_cursor
    assert shown(console).text.count("ended after") == 3


def test_a_pool_that_is_dropped_ends_its_view(console: Console) -> None:
    pool = Pool(2)
    pool.live(console)
    with pytest.warns(ResourceWarning, match="unclosed running"):
        del pool
    assert "ended after" in shown(console).text


def test_an_exception_of_the_one_who_is_asked(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def read() -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError("no status")
        return make_status(2)

    ended: list[bool] = []
    view = LiveView(read, console, at_end=lambda: ended.append(True))
    view.start()
    assert view._thread is not None
    view._thread.join(PATIENCE)
    assert [(record.getMessage(), str(record.exc_info[1])) for record in caplog.records if record.exc_info] == [
        ("the live view has ended", "no status")
    ]
    assert ended == [True]
    terminal = shown(console)
    assert "2 busy" in terminal.text
    assert terminal.shows_cursor
    view.show([OutputLine(3, 1, "stdout", "later")])
    assert "[3] later" in shown(console).text
    view.stop()


def test_who_has_too_many_lines_waits(console: Console, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.setattr(live, "MAX_QUEUED_LINES", 10)
    count = 0

    def read() -> Any:
        nonlocal count
        count += 1
        if count == 2:
            tasks.wait_for(gate.path)
        return make_status(2)

    with LiveView(read, console) as view:
        for number in range(200):
            if number == 5:
                gate.let()
            view.show([OutputLine(0, 1, "stdout", f"line {number}")])
            assert len(view._queue) <= 10
    lines = [line for line in shown(console).lines if line.startswith("[0]")]
    assert lines == [f"[0] line {number}" for number in range(200)]


def test_frames_are_rarer_when_they_are_dear(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    spent = 0.0

    class Stopping:
        def is_set(self) -> bool:
            return len(waits) == 3

        def set(self) -> None: ...

        def wait(self, seconds: float) -> None:
            waits.append(seconds)

    cost = 0.0

    def thread_time() -> float:
        nonlocal spent
        spent += cost
        return spent

    monkeypatch.setattr("time.thread_time", thread_time)
    for one, expected in ((0.0, live.FRAME_EVERY_S), (0.01, 0.01 / live.DRAWING_CORE_SHARE)):
        cost = one
        waits.clear()
        view = LiveView(lambda: make_status(2), console)
        monkeypatch.setattr(view, "_stopping", Stopping())
        with view:
            pass
        assert waits == pytest.approx([expected] * 3)


def test_a_sink_of_ones_own_keeps_the_lines(console: Console) -> None:
    lines: list[OutputLine] = []
    with Pool(2, capture=lines.append) as pool:
        with pool.live(console):
            pool.map(print, ["hello"])
        pool.map(print, ["again"])
    assert [line.text for line in lines] == ["hello", "again"]
    assert "hello" not in shown(console).text


def test_an_ended_pool_has_no_view(console: Console) -> None:
    pool = Pool(1)
    pool.terminate()
    with pytest.raises(ValueError, match="not running"):
        pool.live(console)


def test_a_view_that_cannot_begin_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_view: LiveView) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(LiveView, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        Pool(2, live=True)
