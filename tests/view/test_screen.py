"""The screen, on an emulated terminal: the frame at the bottom, and all other output above it."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style

from pairpool.output_lines import LINE_BYTES
from pairpool.view.frame import Frame
from pairpool.view.screen import Screen, ScreenStream
from tests.view.terminal import Terminal


class File:
    """A text file on an emulated terminal. As in Python's own streams, the terminal translates line ends."""

    encoding = "utf-8"

    def __init__(self, width: int = 20, height: int = 8) -> None:
        self.terminal = Terminal(width, height)

    def write(self, text: str) -> int:
        self.terminal.feed(text.replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-8", "replace"))
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def console_of(file: Any, **options: Any) -> Console:
    width, height = file.terminal.width, file.terminal.height
    options = {"force_terminal": True, "color_system": "standard", "width": width, "height": height, **options}
    return Console(file=file, **options)


def frame_of(*lines: str, width: int = 20) -> Frame:
    return Frame([[(line, Style(color="green"))] for line in lines], width)


class Stage:
    """Puts `sys.stdout` and `sys.stderr` on a screen, within the test because pytest replaces them earlier."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.screens: list[tuple[Screen, Any]] = []

    def __call__(self) -> tuple[Screen, Any]:
        file: Any = File()
        self._monkeypatch.setattr(sys, "stdout", file)
        self._monkeypatch.setattr(sys, "stderr", file)
        screen = Screen.take(console_of(file))
        assert screen is not None
        self.screens.append((screen, file))
        return screen, file


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(monkeypatch)
    yield stage
    for screen, file in stage.screens:
        screen.close()
        assert not file.terminal.unknown


def test_a_frame_takes_the_place_of_the_last_one(stage: Stage) -> None:
    screen, file = stage()
    screen.draw(frame_of("one", "two", "three"))
    assert file.terminal.screen == ["", "one", "two", "three"]
    assert file.terminal.shows_cursor
    screen.draw(frame_of("four"))
    assert file.terminal.screen == ["", "four"]
    screen.draw(frame_of())
    assert file.terminal.text.strip() == ""


def test_lines_stay_above(stage: Stage) -> None:
    screen, file = stage()
    screen.print_lines(["a", "b"])
    screen.draw(frame_of("one", "two"))
    screen.print_lines(["c" * 45])
    screen.draw(frame_of("one", "three"))
    assert file.terminal.lines == ["a", "b", "c" * 45, "", "one", "three"]


def test_it_scrolls(stage: Stage) -> None:
    screen, file = stage()
    for number in range(50):
        screen.draw(frame_of(f"{number}", "two", "three"))
        screen.print_lines([f"line {number}"])
    assert file.terminal.lines == [*(f"line {number}" for number in range(50)), "", "49", "two", "three"]
    assert len(file.terminal.screen) == 8


def test_frames_as_high_as_the_terminal(stage: Stage) -> None:
    screen, file = stage()
    for number in range(3):
        screen.draw(frame_of(*(f"{number}.{line}" for line in range(7))))
        screen.print_lines([f"line {number}"])
    assert file.terminal.lines == [*(f"line {number}" for number in range(3)), "", *(f"2.{line}" for line in range(7))]


def test_the_last_frame_stays(stage: Stage) -> None:
    screen, file = stage()
    screen.print_lines(["a"])
    screen.draw(frame_of("one", "two"))
    screen.close()
    assert file.terminal.lines == ["a", "", "one", "two", ""]
    assert file.terminal.shows_cursor
    assert [sys.stdout, sys.stderr] == [file, file]
    print("after")
    assert file.terminal.lines == ["a", "", "one", "two", "after", ""]


# --- what the program writes --------------------------------------------------------------------------


def test_prints_come_above_at_once(stage: Stage) -> None:
    screen, file = stage()
    screen.draw(frame_of("one"))
    print("hello")
    assert file.terminal.lines == ["hello", "", "one"]
    print("to stderr", file=sys.stderr)
    print("two\nlines")
    assert file.terminal.lines == ["hello", "to stderr", "two", "lines", "", "one"]


def test_lines_in_pieces(stage: Stage) -> None:
    screen, file = stage()
    screen.draw(frame_of("one"))
    print("a", end="")
    print("b", end="", flush=True)
    assert file.terminal.lines == ["ab", "one"]
    screen.print_lines(["between"])
    assert file.terminal.lines == ["between", "ab", "one"]
    sys.stdout.writelines(["c", "\nd"])
    screen.draw(frame_of("two"))
    assert file.terminal.lines == ["between", "abc", "d", "two"]
    screen.close()
    assert file.terminal.lines == ["between", "abc", "d", "two", ""]


def test_an_unended_line_is_seen_with_the_next_frame(stage: Stage) -> None:
    screen, file = stage()
    sys.stdout.write("Continue? ")
    screen.draw(frame_of("one"))
    assert file.terminal.lines == ["Continue?", "one"]
    file.write("y")  # what is typed then is echoed there
    assert file.terminal.lines[0] == "Continue? y"


def test_progress_bars_write_lines_over(stage: Stage) -> None:
    screen, file = stage()
    screen.draw(frame_of("one"))
    for number in range(0, 101, 10):
        sys.stderr.write(f"\r{number}%")
        sys.stderr.flush()
        assert file.terminal.lines == [f"{number}%", "one"]
    sys.stderr.write("\n")
    assert file.terminal.lines == ["100%", "", "one"]


def test_an_unended_line_keeps_to_its_row(stage: Stage) -> None:
    screen, file = stage()
    sys.stdout.write("\x1b[31m" + "字" * 30)
    for number in range(3):
        screen.draw(frame_of(f"{number}"))
        sys.stdout.write(".")
    assert len(file.terminal.screen) == 2
    sys.stdout.write("\n")
    assert file.terminal.lines == ["字" * 30 + "...", "", "2"]


def test_a_line_without_end_is_cut(stage: Stage) -> None:
    screen, file = stage()
    screen.draw(frame_of("one"))
    for _ in range(LINE_BYTES // 1024 + 1):
        sys.stdout.write("x" * 1024)
    assert len(file.terminal.lines[0]) > LINE_BYTES


def test_threads_do_not_mix_their_lines(stage: Stage) -> None:
    screen, file = stage()

    def work(name: str) -> None:
        for number in range(100):
            print(name, number)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for number in range(50):
        screen.draw(frame_of(f"{number}", "two"))
    for thread in threads:
        thread.join()
    assert sorted(file.terminal.lines[:400]) == sorted(f"{name} {number}" for name in "abcd" for number in range(100))
    assert file.terminal.lines[400:] == ["", "49", "two"]


@settings(max_examples=60)
@given(
    st.lists(st.text(st.one_of(st.characters(), st.sampled_from("\x1b[2Jm\r\n\t\x9b\udc80")), max_size=30), max_size=5)
)
def test_no_text_disturbs_the_frame(texts: list[str]) -> None:
    file: Any = File()
    screen = Screen.take(console_of(file))
    assert screen is not None
    try:
        screen.draw(frame_of("one", "two"))
        for text in texts:
            screen.write(text)
            screen.print_lines([text.replace("\n", "")])
            screen.draw(frame_of("one", "two"))
        assert file.terminal.lines[-2:] == ["one", "two"]
        assert not file.terminal.unknown
    finally:
        screen.close()
    assert not file.terminal.unknown


def test_a_stream_is_like_the_one_that_it_stands_for(stage: Stage) -> None:
    screen, file = stage()
    kept: Any = sys.stdout
    assert isinstance(kept, ScreenStream)
    assert kept.encoding == "utf-8"
    assert kept.isatty()
    assert kept.write("four") == 4
    with pytest.raises(TypeError, match="must be str, not bytes"):
        kept.write(cast(Any, b"bytes"))
    with pytest.raises(AttributeError):
        _ = kept.nothing
    screen.close()
    kept.write("later\n")
    assert "later" in file.terminal.lines


def test_somebody_elses_stream_is_left_in_its_place(stage: Stage) -> None:
    screen, file = stage()
    other: Any = File()
    sys.stdout = other
    screen.close()
    assert sys.stdout is other
    assert sys.stderr is file


def test_other_consoles_of_rich_write_above(stage: Stage) -> None:
    screen, file = stage()
    screen.draw(frame_of("one"))
    Console(width=20).print("[bold]bold[/bold]")
    Console(width=20, stderr=True).print("x")
    assert file.terminal.lines == ["bold", "x", "", "one"]


# --- what others write --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_what_others_write_stays(count: int, stage: Stage) -> None:
    screen, file = stage()
    screen.draw(frame_of("one", "two", "three"))
    raw = [f"from elsewhere {number}" for number in range(count)]
    file.write("".join(f"{line}\n" for line in raw))
    screen.draw(frame_of("one", "two", "three"))
    assert file.terminal.lines == [*raw, "", "one", "two", "three"]
    screen.print_lines(["ours"])
    assert file.terminal.lines[: count + 1] == [*raw, "ours"]


def test_several_lines_at_once_run_over_the_frame_but_stay(stage: Stage) -> None:
    screen, file = stage()
    screen.draw(frame_of("one", "two"))
    file.write("\n\n")
    screen.draw(frame_of("one", "two"))
    assert file.terminal.lines == ["", "one", "", "one", "two"]


@pytest.mark.parametrize("width", [5, 9, 19, 40])
def test_a_frame_is_redrawn_whole_after_a_resize(width: int, stage: Stage) -> None:
    screen, file = stage()
    screen.print_lines(["above"])
    screen.draw(frame_of("first line of it", "and a second line"))
    file.terminal.resize(width, 8)
    screen._console.width = width
    screen.draw(frame_of("1", "2", width=width))
    assert [line for line in file.terminal.lines if line] == ["above", "1", "2"]


# --- one terminal, one screen -------------------------------------------------------------------------


def test_a_terminal_is_taken_once(stage: Stage) -> None:
    screen, file = stage()
    assert Screen.take(Console(stderr=True, force_terminal=True)) is None
    assert Screen.take(console_of(file)) is None
    screen.close()
    other = Screen.take(console_of(file))
    assert other is not None
    other.close()


def test_another_terminal_is_another(stage: Stage) -> None:
    screen, file = stage()
    elsewhere: Any = File()
    other = Screen.take(console_of(elsewhere))
    assert other is not None
    assert (screen.streams, other.streams) == (frozenset({"stdout", "stderr"}), frozenset())
    print("x")
    other.close()
    assert file.terminal.lines[0] == "x"
    assert elsewhere.terminal.lines == ["", ""]


def test_what_is_no_terminal_is_not_taken(tmp_path: Any) -> None:
    with open(tmp_path / "file", "w") as file:
        assert Screen.take(Console(file=file)) is None
        assert Screen.take(Console(file=file, force_terminal=True)) is None  # FORCE_COLOR does the same


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TTY_INTERACTIVE": "0"}])
def test_terminals_that_cannot(variables: dict[str, str]) -> None:
    assert Screen.take(console_of(File(), _environ=variables)) is None


# --- handlers of logging ------------------------------------------------------------------------------


def test_handlers_write_above_and_get_their_streams_back(monkeypatch: pytest.MonkeyPatch) -> None:
    file: Any = File()
    monkeypatch.setattr(sys, "stderr", file)
    logger = logging.getLogger("tests.screen")
    logger.propagate = False
    before, unrelated = logging.StreamHandler(), logging.StreamHandler(File())
    logger.addHandler(before)
    logger.addHandler(unrelated)
    screen = Screen.take(console_of(file))
    assert screen is not None
    meanwhile = logging.StreamHandler()
    try:
        screen.draw(frame_of("one"))
        logger.warning("careful")
        assert file.terminal.lines == ["careful", "", "one"]
        logger.handlers[:] = [meanwhile]
        logger.warning("more")
        assert file.terminal.lines == ["careful", "more", "", "one"]
    finally:
        screen.close()
        logger.warning("after")
        logger.handlers[:] = []
        logger.propagate = True
    assert before.stream == file
    assert file.terminal.lines[-2:] == ["after", ""]


# --- forks --------------------------------------------------------------------------------------------


def test_a_child_has_the_plain_streams(stage: Stage) -> None:
    """The child waits for no lock, although the parent holds the lock of the screen during the fork."""
    screen, file = stage()
    kept: Any = sys.stdout
    kept.write("unended")
    with screen._lock:
        pid = os.fork()
        if pid == 0:
            is_whole = sys.stdout is sys.stderr is file
            kept.write("x")
            kept.flush()
            taken = Screen.take(console_of(file)) is None
            os._exit(0 if is_whole and taken and "x" in file.terminal.lines[-1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert isinstance(sys.stdout, ScreenStream)
