"""The programs of the guide to servers run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT, python, write_script

GUIDE = (ROOT / "docs" / "guides" / "servers.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)

OUTPUTS = [["b'hello'"], ["b'done'"], ["b'one'", "b'two'"], ["b'ONE'", "b'TWO'"]]


@pytest.mark.parametrize(("program", "output"), [*zip(PROGRAMS, OUTPUTS, strict=True)])
def test_a_program(program: str, output: list[str], tmp_path: Path) -> None:
    done = python(write_script(tmp_path, program))
    assert done.stderr == ""
    assert done.stdout.splitlines() == output
