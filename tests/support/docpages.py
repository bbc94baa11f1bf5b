"""Run the code of a page of the documentation, and compare its output with the output on the page.

The rules for writers:

    ```python               With `if __name__ == "__main__":` it is a program, which runs in its own file.
    ```python title="x.py"  A program in a file of this name, for the page's commands and its other programs.
                            If a command of the page runs the file, nothing else runs it.
    ```python               Any other block belongs to the page's session. All blocks of the session run in one process,
                            in order, together with the definitions of the programs above them.
    ```console              Commands after `$ `, each with its output below it. A command that ends in `&` runs until
                            the end of the page, and the next command waits until the output on the page is there.
    ```sh                   A script. Only its exit status counts.
    ```text                 Directly below one of these blocks: its output.

The code of a page runs in one empty directory. The session runs at the place of its first block. Pids, durations,
sizes and addresses are blanked before the comparison. `...` in a line stands for any text, and a line `...` for any
number of lines. Help texts are compared by words, because versions of argparse break lines differently. Warnings are
errors.

A comment directly above a block changes how it runs:

    <!-- not run: the reason -->
    <!-- warnings: the reason -->     warnings are ignored
"""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.scripts import ROOT

__all__ = ["OPTIONAL", "Block", "PageError", "blocks_of", "is_like", "run_page"]

LANGUAGES = {"python", "console", "sh", "text", "diff", "toml", "yaml"}
"""The languages of blocks. Blocks in the last three are not run."""

OPTIONAL = {"dask", "distributed", "joblib", "mpire", "sklearn", "uvloop"}
"""Modules that are not always installed. A program that needs a missing one is skipped."""

PROGRAM_LIMIT_S = 45.0
"""The time limit of a program."""

MARK = "\x1e"
"""The line that the session prints before each block."""

GUARD = re.compile(r"""^if __name__ == ["']__main__["']:""", re.MULTILINE)
_FENCE = re.compile(r"^( *)(`{3,})(\w*)(.*)$")
_DIRECTIVE = re.compile(r"^ *<!-- *(not run|warnings): *(.*?) *-->$")
_TITLE = re.compile(r'title="([^"]+)"')
_VARYING = [
    (re.compile(r"0x[0-9a-f]+"), "0x#"),
    (re.compile(r"\bpid \d+"), "pid #"),
    (re.compile(r"(?<![\w.])\d[\d,.]*(?= ?(?:ns|µs|ms|s)\b|/s\b|[KMG]\b)"), "#"),
    (re.compile(r"\bcpu +\d+%"), "cpu #"),
    (re.compile(r"[▁-█]+"), ""),  # the bars that show the rates of the last seconds
    (re.compile(r"(?<=\S) {2,}"), "  "),
]


class PageError(AssertionError):
    """The code of a page fails, or prints another output. The text begins with the page and the line."""


@dataclass
class Block:
    """One fenced block of a page.

    Attributes:
        line: the line of the opening fence, from 1.
        language: the word behind the fence.
        title: the name of its file, or an empty text.
        code: the lines, without the indentation of the fence.
        output: the output on the page, or None.
        not_run: the reason for which it is not run, or an empty text.
        warns: whether its warnings are ignored.
    """

    line: int
    language: str
    title: str
    code: str
    output: str | None = None
    not_run: str = ""
    warns: bool = False

    @property
    def is_program(self) -> bool:
        return self.language == "python" and bool(self.title or GUARD.search(self.code))

    @property
    def is_console(self) -> bool:
        return self.language == "console"

    @property
    def missing(self) -> set[str]:
        """Return the optional modules that the block imports and that are not installed."""
        if self.language != "python":
            return set()
        names = set()
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
        return {name for name in names & OPTIONAL if importlib.util.find_spec(name) is None}


# --- reading ------------------------------------------------------------------------------------------


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page in Markdown, each with the output below it."""
    found: list[Block] = []
    lines = text.splitlines()
    directives: dict[str, str] = {}
    near = False  # whether only blank lines follow the last block
    number = 0
    while number < len(lines):
        line = lines[number]
        fence = _FENCE.match(line)
        if fence is None:
            directive = _DIRECTIVE.match(line)
            if directive:
                directives[directive[1]] = directive[2]
            elif line.strip():
                directives, near = {}, False
            number += 1
            continue
        start, end = number, _closing(lines, number, fence)
        code = textwrap.dedent("".join(f"{one}\n" for one in lines[start + 1 : end]))
        language = fence[3]
        if language == "text" and near and found[-1].language in ("python", "sh") and found[-1].output is None:
            found[-1].output = code
        else:
            title = _TITLE.search(fence[4])
            block = Block(start + 1, language, title[1] if title else "", code)
            block.not_run, block.warns = directives.get("not run", ""), "warnings" in directives
            found.append(block)
        directives, near = {}, True
        number = end + 1
    return found


def _closing(lines: list[str], start: int, fence: re.Match[str]) -> int:
    """Return the line that closes the fence of line `start`."""
    for number in range(start + 1, len(lines)):
        if lines[number].strip() == fence[2]:
            return number
    raise PageError(f"line {start + 1}: this block has no end")


def commands_of(code: str) -> list[tuple[str, str]]:
    """Return the commands of a console block with their outputs. A line that begins with `> ` continues a command."""
    found: list[tuple[str, str]] = []
    for line in code.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif not found:
            raise ValueError("a console block begins with a command, `$ ...`")
        elif line.startswith("> ") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", "")
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


# --- comparing ----------------------------------------------------------------------------------------


def is_like(shown: str, printed: str) -> bool:
    """Return whether the output of a program is like the output on the page."""
    if shown.startswith("usage:"):
        shown, printed = _words(shown), _words(printed)
    return _pattern(_plain(shown)).fullmatch(_plain(printed) + "\n") is not None


def _words(usage: str) -> str:
    """Join a help text into one line. Options name their argument once, as in Python 3.13 and later."""
    return re.sub(r"(-\w) (\w+), (--\w+) \2", r"\1, \3 \2", " ".join(usage.split()))


def _plain(text: str) -> str:
    for varying, blank in _VARYING:
        text = varying.sub(blank, text)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _pattern(shown: str) -> re.Pattern[str]:
    """Return a pattern in which a line `...` matches any number of lines, and `...` in a line matches any text."""
    lines = [
        r"(?:.*\n)*?" if line.strip() == "..." else ".*?".join(map(re.escape, line.split("..."))) + r"\n"
        for line in shown.splitlines()
    ]
    return re.compile("".join(lines))


# --- running ------------------------------------------------------------------------------------------


def run_page(path: Path, scratch: Path) -> list[str]:
    """Run the code of a page in the empty directory `scratch`.

    Returns:
        one line per block that cannot run here.

    Raises:
        PageError: a block failed, or its output differs from the output on the page.
    """
    with _Runner(path, scratch) as runner:
        return runner.run()


@dataclass
class _Runner(ExitStack):
    path: Path
    scratch: Path
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.environment = _environment(self.scratch)
        self.home = self.scratch / "page"
        self.home.mkdir()
        self.blocks = blocks_of(self.path.read_text(encoding="utf-8"))

    def run(self) -> list[str]:
        for block in self.blocks:
            self.look_at(block)
        commands = "\n".join(block.code for block in self.blocks if block.is_console and not block.not_run)
        if " &\n" in commands:
            self.wait_for_other_runs()
        had_session = False
        for block in self.blocks:
            if block.title:
                (self.home / block.title).write_text(block.code, encoding="utf-8")
            if block.not_run or (block.title and block.title in commands):
                continue
            if block.is_program:
                self.run_program(block)
            elif block.language == "python" and not had_session:
                had_session = True
                self.run_session()
            elif block.is_console:
                self.run_console(block)
            elif block.language == "sh":
                self.compare(block, block.output, self.execute(block, ["bash", "-ec", block.code]))
        return self.skipped

    def wait_for_other_runs(self) -> None:
        """Lock out other runs of the tests, because commands find the pool of a background command by its name."""
        lock = os.open(Path(tempfile.gettempdir()) / f"pairpool-docs-{os.getuid()}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)

    def look_at(self, block: Block) -> None:
        """Check a block before any block runs. A misspelt language must not keep a block from running."""
        if block.language not in LANGUAGES:
            language = repr(block.language) if block.language else "no language"
            self.fail(block, f"{language} is not one of {', '.join(sorted(LANGUAGES))}")
        files = [one for one in self.blocks if one.title and one.title in block.code] if block.is_console else [block]
        missing = {name for one in files for name in one.missing}
        if missing and not block.not_run:
            block.not_run = f"for want of {', '.join(sorted(missing))}"
            self.skipped.append(f"line {block.line}, {block.not_run}")

    def run_program(self, block: Block) -> None:
        file = self.home / (block.title or f"line_{block.line}.py")
        file.write_text(block.code, encoding="utf-8")
        self.compare(block, block.output, self.execute(block, [sys.executable, file.name]))

    def run_session(self) -> None:
        """Run all blocks that are no programs as one program, with the line numbers of the page."""
        lines = [""] * (self.path.read_text(encoding="utf-8").count("\n") + 2)
        members = []
        for block in self.blocks:
            if block.language != "python" or block.not_run or block.title:
                continue
            code = GUARD.sub("if False:", block.code).splitlines()
            lines[block.line - 1] = f'print("{MARK}", flush=True)'
            lines[block.line : block.line + len(code)] = code
            members.append(block)
        file = self.home / "session.py"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        printed = self.execute(members[0], [sys.executable, file.name]).split(f"{MARK}\n")[1:]
        for block, text in zip(members, printed, strict=True):
            if not block.is_program:
                self.compare(block, block.output, text)

    def run_console(self, block: Block) -> None:
        try:
            commands = commands_of(block.code)
        except ValueError as error:
            self.fail(block, str(error))
        for command, output in commands:
            if command.endswith("&"):
                self.enter_context(self.background(block, command[:-1], output))
            else:
                printed = self.execute(block, ["bash", "-c", command], any_status=bool(output))
                self.compare(block, output or None, printed)

    @contextmanager
    def background(self, block: Block, command: str, output: str) -> Iterator[None]:
        """Start a command, and wait for its lines of output. At the end, kill its process group."""
        with subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            try:
                printed = _read_lines(process.stdout.fileno(), output.count("\n"))
                self.compare(block, output or None, printed)
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)

    def execute(self, block: Block, command: list[str], *, any_status: bool = False) -> str:
        """Run a program to its end, and return its output, with standard error if the block is a console."""
        warns = {"PYTHONWARNINGS": "ignore"} if block.warns else {}
        with subprocess.Popen(
            command,
            cwd=self.home,
            env=self.environment | warns,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if block.is_console else subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=PROGRAM_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                self.fail(block, f"{command[-1].strip()} runs longer than {PROGRAM_LIMIT_S:g} s")
        if process.returncode and not any_status:
            self.fail(block, f"exit status {process.returncode}\n{out}{err or ''}")
        return out

    def compare(self, block: Block, shown: str | None, printed: str) -> None:
        if shown is not None and not is_like(shown, printed):
            self.fail(block, f"the page shows\n{shown}\nbut it printed\n{printed}")

    def fail(self, block: Block, reason: str) -> None:
        raise PageError(f"{self.path.name}, line {block.line}: {reason}")


def _environment(scratch: Path) -> dict[str, str]:
    """Return this process's environment, with `python` and `pairpool` of this interpreter and checkout on the path."""
    tools = scratch / "bin"
    tools.mkdir()
    for name, what in (("python", ""), ("pairpool", "-m pairpool ")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {what}"$@"\n')
        (tools / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        "COLUMNS": "80",
        "NO_COLOR": "1",
    }


def _read_lines(fd: int, count: int) -> str:
    """Read until `count` lines, the end of the file, or the time limit."""
    deadline = time.monotonic() + PROGRAM_LIMIT_S
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while data.count(b"\n") < count and selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(fd, 65536)
            if not piece:
                break
            data += piece
    return data.decode("utf-8", "replace")
