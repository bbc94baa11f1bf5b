"""Runs the code of a page of the documentation, and compares what it prints with what the page shows.

What a writer has to know:

    ```python               with `if __name__ == "__main__":`, a program: a file of its own, run as it stands
    ```python title="x.py"  a program as well, in a file of this name, for the page's commands and other programs;
                            if a command of the page runs it, it is run there only
    ```python               anything else belongs to the page's session: all of these in one process, in their order,
                            with what the programs above define
    ```console              commands after `$ `, each with its output below it; one that ends in `&` goes on in the
                            background until the page is over, and the next waits for the output that is shown
    ```sh                   a script, of which only the exit status counts
    ```text                 directly below one of these, what it prints

All of a page runs in one empty directory; its session runs where its first block stands. Output is compared after
pids, durations, sizes and addresses are blanked; `...` stands for anything, on a line of its own for any number of
lines. Help texts are compared word by word, for argparse breaks lines differently from version to version. Warnings are
errors.

A comment directly above a block marks what is not run, or not everywhere:

    <!-- not run: the reason -->
    <!-- warnings: the reason -->     they are ignored
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
"""What may stand behind three backticks; the last three are not run."""

OPTIONAL = {"dask", "distributed", "joblib", "mpire", "sklearn", "uvloop"}
"""Modules that a page may need and that not everybody has who runs the tests; a program without them is skipped."""

PROGRAM_LIMIT_S = 45.0
"""Seconds for a program."""

MARK = "\x1e"
"""What the session prints between two blocks."""

GUARD = re.compile(r"""^if __name__ == ["']__main__["']:""", re.MULTILINE)
_FENCE = re.compile(r"^( *)(`{3,})(\w*)(.*)$")
_DIRECTIVE = re.compile(r"^ *<!-- *(not run|warnings): *(.*?) *-->$")
_TITLE = re.compile(r'title="([^"]+)"')
_VARYING = [
    (re.compile(r"0x[0-9a-f]+"), "0x#"),
    (re.compile(r"\bpid \d+"), "pid #"),
    (re.compile(r"(?<![\w.])\d[\d,.]*(?= ?(?:ns|µs|ms|s)\b|/s\b|[KMG]\b)"), "#"),
    (re.compile(r"\bcpu +\d+%"), "cpu #"),
    (re.compile(r"[▁-█]+"), ""),  # the rates of the last seconds
    (re.compile(r"(?<=\S) {2,}"), "  "),
]


class PageError(AssertionError):
    """A page is not as it promises; the text begins with the page and the line."""


@dataclass
class Block:
    """One fenced block of a page.

    Attributes:
        line: number of its opening fence, from 1.
        language: the word behind the fence.
        title: name of the file that it is; empty if it has none.
        code: its lines, without the fence's own indentation.
        output: what the page shows as its output; None if nothing.
        not_run: why it is not run; empty if it is.
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
        """Optional modules that it imports and that are not installed."""
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
    """The fenced blocks of a page in Markdown, each with the output that is shown below it."""
    found: list[Block] = []
    lines = text.splitlines()
    directives: dict[str, str] = {}
    near = False  # whether only blank lines stand between here and the last block
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
    """Where the fence that opens in line `start` is closed."""
    for number in range(start + 1, len(lines)):
        if lines[number].strip() == fence[2]:
            return number
    raise PageError(f"line {start + 1}: this block has no end")


def commands_of(code: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with its output. A command goes on in lines that begin with `> `."""
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
    """Whether a program printed what the page shows."""
    if shown.startswith("usage:"):
        shown, printed = _words(shown), _words(printed)
    return _pattern(_plain(shown)).fullmatch(_plain(printed) + "\n") is not None


def _words(usage: str) -> str:
    """A help text in one line; options as from Python 3.13 on, which names their argument only once."""
    return re.sub(r"(-\w) (\w+), (--\w+) \2", r"\1, \3 \2", " ".join(usage.split()))


def _plain(text: str) -> str:
    for varying, blank in _VARYING:
        text = varying.sub(blank, text)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _pattern(shown: str) -> re.Pattern[str]:
    """A line that is only `...` stands for any number of lines, and one within a line for any part of it."""
    lines = [
        r"(?:.*\n)*?" if line.strip() == "..." else ".*?".join(map(re.escape, line.split("..."))) + r"\n"
        for line in shown.splitlines()
    ]
    return re.compile("".join(lines))


# --- running ------------------------------------------------------------------------------------------


def run_page(path: Path, scratch: Path) -> list[str]:
    """Run all that a page promises to work, in the empty directory `scratch`.

    Returns:
        what could not be run here, a line each.

    Raises:
        PageError: something failed, or printed something else.
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
        """Commands find a pool in the background by its name, so only one run of the tests may have it at a time."""
        lock = os.open(Path(tempfile.gettempdir()) / f"pairpool-docs-{os.getuid()}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)

    def look_at(self, block: Block) -> None:
        """Before anything is run: a word that is misspelt must not keep a block from being run."""
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
        """All blocks that are no programs, each in the lines that it has on the page, so that tracebacks fit."""
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
        """The command, once it has written the lines that are shown; ended at the end with all that it has started."""
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
        """Run a program to its end; what it has printed, with its standard error where the page shows a console."""
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
    """This one's, with `python` and `pairpool` of this interpreter and checkout first on the path."""
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
    """As much as comes until `count` lines are there, or the end, or nobody's patience lasts."""
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
