"""Open files as arguments: what is buffered, where they are, and what they are called."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pairpool import Pool
from tests.support import descriptor_tasks as work


def test_text_that_was_not_flushed_comes_first(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "text"
    with open(path, "w", encoding="latin-1", errors="replace") as file:
        file.write("é one\n")
        assert pool.apply(work.append, (file, "é two\n")) == (
            io.TextIOWrapper,
            str(path),
            "w",
            "latin-1",
            "replace",
        )
        file.write("three\n")
    assert path.read_text("latin-1") == "é one\né two\nthree\n"


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
def test_bytes_are_written(pool: Pool, tmp_path: Path, mode: str, buffering: int) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"")
    with open(path, mode, buffering) as file:
        file.write(b"one")
        kind, name, *_rest = pool.apply(work.append, (file, b"two"))
        assert (kind, name) == (type(file), str(path))
    assert path.read_bytes() == b"onetwo"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig", "shift-jis", None])
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_input_that_was_read_ahead_is_given_back(pool: Pool, tmp_path: Path, encoding: str | None, lines: int) -> None:
    text = "".join(f"zeile {number}: ソース\n" if encoding else f"line {number}\n" for number in range(2000))
    path = tmp_path / "lines"
    data = text.encode(encoding or "utf-8")
    path.write_bytes(data)
    with open(path, "r" if encoding else "rb", encoding=encoding) as file:
        head = [file.readline() for _ in range(lines)]
        whole: Any = text if encoding else data
        assert head == whole.splitlines(keepends=True)[:lines]
        assert pool.apply(work.read_rest, (file,)) == type(whole)().join(whole.splitlines(keepends=True)[lines:])


@pytest.mark.parametrize("mode", ["a+", "a+b"])
def test_a_file_for_appending_is_read_from_where_the_sender_is(pool: Pool, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    with open(path, mode) as file:
        file.seek(0)
        whole: Any = "one\ntwo\n" if mode == "a+" else b"one\ntwo\n"
        assert file.readline() == whole[:4]
        assert pool.apply(work.read_rest, (file,)) == whole[4:]
        file.seek(0)
        pool.apply(work.append, (file, whole[:4]))
    assert path.read_text() == "one\ntwo\none\n"


def test_only_the_sender_deletes_a_temporary_file(pool: Pool) -> None:
    with tempfile.NamedTemporaryFile() as named:
        named.write(b"one")
        assert pool.apply(work.append, (named, b"two"))[1] == named.name
        assert Path(named.name).read_bytes() == b"onetwo"


def test_a_file_that_is_iterated_is_refused_with_a_reason(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("one\ntwo\n")
    with open(path) as file:
        next(file)
        with pytest.raises(OSError, match=r"disabled by next"):
            pool.apply(work.read_rest, (file,))


def test_files_without_a_descriptor_are_pickled_as_usual(pool: Pool) -> None:
    assert pool.apply(work.read_rest, (io.BytesIO(b"in memory"),)) == b"in memory"
