"""Type checkers infer the right types of the public API: mypy in strict mode, and pyright if it is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scripts import ROOT

HERE = Path(__file__).parent
USER, WRONG = HERE / "user_code.py", HERE / "wrong_code.py"

PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))

MARKED = {number for number, line in enumerate(WRONG.read_text().splitlines(), 1) if line.endswith("# wrong")}
"""The lines that a type checker must report."""


@pytest.fixture(scope="module")
def complaints_of_mypy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[int]]:
    """Return the lines that mypy reports in strict mode, by file, without this project's settings."""
    directory = tmp_path_factory.mktemp("mypy")
    (directory / "mypy.ini").write_text("[mypy]\nstrict = True\nwarn_unreachable = True\n")
    options = ["--config-file", directory / "mypy.ini", "--cache-dir", directory / "cache", "--follow-imports=silent"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, options), str(USER), str(WRONG)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, set[int]] = {USER.name: set(), WRONG.name: set()}
    for name, line in re.findall(r"^tests/typing/(\w+\.py):(\d+): error:", done.stdout, re.MULTILINE):
        found[name].add(int(line))
    return found


def test_mypy_infers_what_users_expect(complaints_of_mypy: dict[str, set[int]]) -> None:
    assert complaints_of_mypy[USER.name] == set()


def test_mypy_sees_what_is_wrong(complaints_of_mypy: dict[str, set[int]]) -> None:
    assert complaints_of_mypy[WRONG.name] == MARKED


PYRIGHT = next(filter(None, (shutil.which(name, path=PATH) for name in ("basedpyright", "pyright"))), None)


@pytest.mark.skipif(PYRIGHT is None, reason="pyright is not installed")
def test_pyright_agrees_with_mypy(tmp_path: Path) -> None:
    assert PYRIGHT is not None
    for file in (USER, WRONG):
        shutil.copy(file, tmp_path)
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [PYRIGHT, "--outputjson", "--project", str(tmp_path), "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found: dict[str, set[int]] = {USER.name: set(), WRONG.name: set()}
    for complaint in json.loads(done.stdout)["generalDiagnostics"]:
        if complaint["severity"] == "error":
            found[Path(complaint["file"]).name].add(complaint["range"]["start"]["line"] + 1)
    assert found == {USER.name: set(), WRONG.name: MARKED}, done.stdout


def test_the_package_declares_that_it_has_types() -> None:
    assert (ROOT / "pairpool" / "py.typed").is_file()
