"""One process writes the scoreboard, another reads it, and a file that is not a scoreboard is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairpool.linux import descriptors
from pairpool.scoreboard import board as board_module
from pairpool.scoreboard.board import (
    BOARD_HEADER_SIZE,
    MAGIC,
    NAME_SIZE,
    NAMES,
    NOTHING,
    SLOT_SIZE,
    SLOT_WORDS,
    TEXT_SIZE,
    VERSION,
    BoardVersionError,
    Scoreboard,
    State,
    Word,
)
from tests.support.scripts import ROOT

BORN = 123_456_789_012_345_678

FIELDS = {name: value for name, value in vars(Word).items() if name.isupper()}

LOOK = """
import os, sys
from pairpool.scoreboard.board import Scoreboard, Word
fd = os.open("/proc/{pid}/fd/{fd}", os.O_RDWR)
board = Scoreboard.attach(fd)
os.close(fd)
print(board.name, board.pid, board.created, board.slots, board.function_name(7))
words = board.slot(1).words
print(words[Word.STATE], words[Word.ITEM])
board.slot(2).words[Word.LIMIT] = 99
words[Word.STATE] = 5
board.close()
"""


@pytest.fixture
def made() -> Iterator[tuple[int, Scoreboard]]:
    """A board of three slots, and its memfd."""
    fd, board = Scoreboard.create(3, "a pool", BORN)
    yield fd, board
    board.close()
    os.close(fd)


@pytest.fixture
def board(made: tuple[int, Scoreboard]) -> Scoreboard:
    return made[1]


@pytest.fixture
def file() -> Iterator[int]:
    """An empty memfd."""
    fd = descriptors.memfd("not-a-board", 0)
    yield fd
    os.close(fd)


# --- what is on it ------------------------------------------------------------------------------------


def test_a_new_scoreboard_names_its_pool_and_process(board: Scoreboard) -> None:
    assert (board.name, board.pid, board.created, board.slots) == ("a pool", os.getpid(), BORN, 3)
    assert board.function_name(1) == ""


def test_a_second_mapping_shows_the_same(made: tuple[int, Scoreboard]) -> None:
    fd, board = made
    other = Scoreboard.attach(fd)
    try:
        assert (other.name, other.pid, other.created, other.slots) == ("a pool", os.getpid(), BORN, 3)
        board.slot(2).words[Word.DONE] = 7
        assert other.slot(2).words[Word.DONE] == 7
        other.name_function(5, "seen from both sides")
        assert board.function_name(5) == "seen from both sides"
    finally:
        other.close()


def test_each_field_of_a_slot_is_one_word(board: Scoreboard) -> None:
    assert len(set(FIELDS.values())) == len(FIELDS)
    assert set(FIELDS.values()) <= set(range(SLOT_WORDS))
    for slot in range(3):
        words = board.slot(slot).words
        for place in FIELDS.values():
            words[place] = slot * 1000 + place
    for slot in range(3):
        words = board.slot(slot).words
        assert [words[place] for place in FIELDS.values()] == [slot * 1000 + place for place in FIELDS.values()]
    assert (board.name, board.function_name(0)) == ("a pool", "")


def test_every_state_has_a_name() -> None:
    numbers = {value for name, value in vars(State).items() if name.isupper() and name != "NAMES"}
    assert numbers == set(range(len(State.NAMES)))


def test_a_new_worker_finds_a_clear_slot(board: Scoreboard) -> None:
    slot = board.slot(1)
    for place in range(SLOT_WORDS):
        slot.words[place] = 5
    board.slot(0).words[Word.DONE] = board.slot(2).words[Word.DONE] = 6
    slot.clear()
    kept = {Word.REPLACED: 5, Word.ITEM: NOTHING, Word.LIMIT: NOTHING}
    assert list(slot.words) == [kept.get(place, 0) for place in range(SLOT_WORDS)]
    assert board.slot(0).words[Word.DONE] == board.slot(2).words[Word.DONE] == 6


def test_a_word_holds_any_index(board: Scoreboard) -> None:
    words = board.slot(0).words
    for value in (0, 1 << 63, NOTHING):
        words[Word.ITEM] = value
        assert words[Word.ITEM] == value


def test_words_are_aligned() -> None:
    """Only aligned stores of 8 bytes are single."""
    assert BOARD_HEADER_SIZE % 8 == 0
    assert SLOT_SIZE == SLOT_WORDS * 8


# --- names --------------------------------------------------------------------------------------------


def test_functions_have_names(board: Scoreboard) -> None:
    board.name_function(1, "first")
    board.name_function(NAMES - 1, "last")
    board.name_function(0, "größer 函数")
    assert [board.function_name(number) for number in (1, NAMES - 1, 0)] == ["first", "last", "größer 函数"]
    board.slot(0).clear()
    assert board.name == "a pool"
    assert board.function_name(NAMES - 1) == "last"


def test_the_oldest_name_is_overwritten(board: Scoreboard) -> None:
    for number in range(NAMES + 2):
        board.name_function(number, f"function {number}")
    for number in range(2, NAMES + 2):
        assert board.function_name(number) == f"function {number}"
    assert board.name == "a pool"
    assert list(board.slot(0).words) == [0] * SLOT_WORDS


def test_a_shorter_name_replaces_all_of_a_longer_one(board: Scoreboard) -> None:
    board.name_function(1, "a very long name")
    board.name_function(1, "short")
    assert board.function_name(1) == "short"


@given(name=st.text(alphabet=st.characters(exclude_characters="\0\ufffd"), max_size=2 * NAME_SIZE))
def test_a_long_name_is_cut_off_between_characters_or_marked(name: str) -> None:
    fd, board = Scoreboard.create(1, name, 0)
    os.close(fd)
    board.name_function(2, "the neighbour")
    board.name_function(1, name)
    found = board.function_name(1)
    assert board.name == found
    assert board.function_name(2) == "the neighbour"
    board.close()
    # what UTF-8 cannot hold at all becomes a question mark
    encodable = name.encode("utf-8", "replace").decode()
    if len(encodable.encode()) < NAME_SIZE:
        assert found == encodable
        return
    begin = found.removesuffix("\ufffd")
    assert "\ufffd" not in begin
    assert encodable.startswith(begin)
    assert NAME_SIZE - 4 <= len(begin.encode()) < NAME_SIZE


@pytest.mark.parametrize("cut", range(5))
def test_a_character_at_the_edge(board: Scoreboard, cut: int) -> None:
    name = "x" * (NAME_SIZE - 1 - cut) + "𝕏" * 5
    board.name_function(1, name)
    found = board.function_name(1)
    fits = cut // 4
    begin = "x" * (NAME_SIZE - 1 - cut) + "𝕏" * fits
    assert found in (begin, begin + "\ufffd")


# --- from another process -----------------------------------------------------------------------------


def test_another_process_finds_the_board_under_proc(made: tuple[int, Scoreboard]) -> None:
    fd, board = made
    board.name_function(7, "fancy")
    words = board.slot(1).words
    words[Word.STATE], words[Word.ITEM] = State.RUNNING, 4711
    looked = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOOK.format(pid=os.getpid(), fd=fd)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert looked.stderr == ""
    assert looked.stdout == f"a pool {os.getpid()} {BORN} 3 fancy\n{State.RUNNING} 4711\n"
    assert (words[Word.STATE], board.slot(2).words[Word.LIMIT]) == (5, 99)


def test_the_memfd_is_found_by_its_name(made: tuple[int, Scoreboard]) -> None:
    assert os.readlink(f"/proc/self/fd/{made[0]}").startswith("/memfd:pairpool-board")
    assert not os.get_inheritable(made[0])


# --- what is no board ---------------------------------------------------------------------------------


def test_a_board_of_another_version_is_refused(made: tuple[int, Scoreboard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "VERSION", VERSION + 7)
    with pytest.raises(BoardVersionError, match=f"of version {VERSION}; .* reads version {VERSION + 7}"):
        Scoreboard.attach(made[0])


@pytest.mark.parametrize(
    "content",
    [b"", b"PAIR", MAGIC, b"x" * 4096, bytes(BOARD_HEADER_SIZE), b"PAIRPOOM".ljust(BOARD_HEADER_SIZE)],
    ids=range(6),
)
def test_other_files_are_refused(file: int, content: bytes) -> None:
    os.write(file, content)
    with pytest.raises(BoardVersionError, match="not a pairpool scoreboard"):
        Scoreboard.attach(file)


@pytest.mark.parametrize("slots", [0, 2, 1000, 1 << 33, 1 << 40, (1 << 64) - 1])
def test_a_board_that_has_another_size_than_it_says_is_refused(made: tuple[int, Scoreboard], slots: int) -> None:
    """`top` looks at files of other processes: it needs one kind of error for all that is no board."""
    fd, _board = made
    os.pwrite(fd, board_module._HEAD.pack(MAGIC, VERSION, slots, os.getpid(), 0), 0)
    with pytest.raises(BoardVersionError, match=f"{slots} workers do not fit"):
        Scoreboard.attach(fd)


def test_a_sparse_board_of_too_many_workers_is_refused() -> None:
    slots = 1 << 33
    fd = descriptors.fixed_memfd("pairpool-board", BOARD_HEADER_SIZE + slots * (SLOT_SIZE + TEXT_SIZE))
    try:
        os.pwrite(fd, board_module._HEAD.pack(MAGIC, VERSION, slots, os.getpid(), 0), 0)
        with pytest.raises(BoardVersionError, match="more than 1048576 are not shown"):
            Scoreboard.attach(fd)
    finally:
        os.close(fd)


def test_a_board_that_can_be_made_shorter_is_refused() -> None:
    """An access beyond the end of a mapped file ends the process by SIGBUS."""
    fd, board = Scoreboard.create(3, "a pool", BORN)
    content = os.pread(fd, os.fstat(fd).st_size, 0)
    board.close()
    os.close(fd)
    forged = descriptors.memfd("pairpool-board", len(content))
    try:
        os.pwrite(forged, content, 0)
        with pytest.raises(BoardVersionError, match="its size can change"):
            Scoreboard.attach(forged)
    finally:
        os.close(forged)


def test_a_board_cannot_be_resized(made: tuple[int, Scoreboard]) -> None:
    fd, board = made
    for size in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    assert board.name == "a pool"


# --- the end ------------------------------------------------------------------------------------------


def test_closing_ends_all_views() -> None:
    fd, board = Scoreboard.create(2, "short-lived", 0)
    os.close(fd)
    slot = board.slot(1)
    slot.words[Word.ITEM] = 3
    board.close()
    with pytest.raises(ValueError, match="released"):
        slot.words[Word.ITEM]
