"""The examples run, and the census counts correctly."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import textwrap
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripts import ROOT

CENSUS = ROOT / "examples" / "stdlib_census.py"

KNOTTY = """
class Thing:
    def method(self, items):
        if items and len(items) > 2 or not items:      # if, and, or
            return [x for x in items if x]             # for, if
        elif items:                                    # elif
            pass
        def inner(x):
            return 1 if x else 2
        match items:
            case [1]:                                  # case
                inner(1)
            case _:
                self.method([]).append(inner(2))
        try:
            while True:                                # while
                break
        except ValueError:                             # except
            pass
        return lambda x: x or 1                        # or

async def waits(things):
    async for thing in things:
        thing()
"""

BROKEN = {
    "broken.py": b"def (:\n",
    "bytes.py": b"# -*- coding: utf-8 -*-\nname = '\xff\xfe'\n",
    "coding.py": b"# -*- coding: no-such-encoding -*-\n",
    "deep_brackets.py": b"(" * 5000 + b")" * 5000,
    "deep_minus.py": b"-" * 100_000 + b"1\n",
    "null.py": b"x = 1\n\0\n",
}


def census(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", CENSUS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )


def counted(*arguments: object) -> dict[str, Any]:
    done = census("--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)["census"]
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "knotty.py").write_text(textwrap.dedent(KNOTTY))
    (tmp_path / "sub" / "noisy.py").write_text("'\\d' is 1\n")
    (tmp_path / "empty.py").touch()
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "installed_later.py").touch()
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_census_counts(tree: Path) -> None:
    found = counted("--serial", "--path", tree)
    assert (found["files"], found["functions"], found["classes"]) == (3 + len(BROKEN), 3, 1)
    by_name = {f["name"]: (f["path"], f["line"], f["length"], f["complexity"]) for f in found["knottiest"]}
    assert by_name == {
        "Thing.method": ("sub/knotty.py", 3, 18, 1 + 3 + 2 + 1 + 1 + 1 + 1 + 1),
        "Thing.method.inner": ("sub/knotty.py", 8, 2, 2),
        "waits": ("sub/knotty.py", 22, 3, 2),
    }
    assert dict(found["calls"]) == {"inner": 2, "len": 1, ".method": 1, ".append": 1, "thing": 1}


def test_the_census_lists_files_that_do_not_parse(tree: Path) -> None:
    problems = dict(counted("--serial", "--path", tree)["problems"])
    assert sorted(problems) == sorted(BROKEN)
    assert all(problems.values())


def test_the_census_is_the_same_in_parallel(tree: Path) -> None:
    options = ("--path", tree, "--processes", 2)
    assert counted("--parallel", *options) == counted("--serial", *options) == counted(*options)


def test_the_demo_shows_tables_and_the_speed_up() -> None:
    done = census("--limit", 40)
    assert done.returncode == 0, done.stderr
    for words in ("standard library of Python", "most called", "longest functions", "speed-up"):
        assert words in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_census_of_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    done = census("--path", tmp_path)
    assert done.returncode == 2
    assert "no .py files" in done.stderr


def test_pages_are_fetched_and_parsed() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", ROOT / "examples" / "async_fetch.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if not re.match("Executing <.* took ", line)]
    assert (done.returncode, said) == (0, [])  # except the warnings of asyncio in this mode on a slow machine
    assert done.stdout.startswith("200 pages, 60,000 links, 300,000 words in ")


# --- examples with a live view ------------------------------------------------------------------------


def example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )


def test_watch_me_ends_with_a_report() -> None:
    """Run it with and without a view at the same time, because its tasks mostly wait."""
    with ThreadPoolExecutor(2) as threads:
        options = [("--seconds", 0.5, "--workers", 4, *more) for more in ([], ["--quiet"])]
        runs = list(threads.map(lambda given: example("watch_me.py", *given), options))
    for done in runs:
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Tasks by function") == 1
        for function in ("brew", "dig", "stumble"):
            assert f"\n{function} " in done.stdout
    assert ["watch-me: ended after" in done.stderr for done in runs] == [True, False]


def test_the_mandelbrot_picture_is_complete(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    file = tmp_path / "set.png"
    done = example("live_mandelbrot.py", "-o", file, "--width", 300, "--height", 210)
    assert done.returncode == 0, done.stderr
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (300, 210)
    rows = zlib.decompress(content[content.index(b"IDAT") + 4 : content.rindex(b"IEND") - 8])
    assert len(rows) == 210 * (1 + 3 * 300)
    middle = rows[105 * 901 + 1 :][:900]
    assert middle[3 * 200 : 3 * 201] != middle[:3]  # a point of the set, and a point far from it
