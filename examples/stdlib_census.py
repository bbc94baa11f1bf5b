"""Take a census of Python's standard library: parse every file with `ast`, with all cores and then with one.

    python examples/stdlib_census.py                 both ways, with the speed-up
    python examples/stdlib_census.py --parallel      only with a pool (--processes N)
    python examples/stdlib_census.py --serial        only in this process, without a pool
    python examples/stdlib_census.py --path DIR      another tree

A worker gets the path of a file and returns a small `FileSummary`. The syntax trees never leave the workers.

Complexity is cyclomatic. A function has complexity 1, and 1 more for each branch:

- `if`, `elif`, a conditional expression, `for`, `while`, `except`
- each `for` and `if` of a comprehension, each `and` and `or`
- each `case` except a bare `case _`

The branches of a nested function count only for the nested function. Those of a lambda count for the function that
contains it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pairpool import Pool

TOP_ROWS = 10
"""Functions and names in each list."""

WIDE_COLUMNS = 150
"""Width of a terminal from which the two lists of functions fit side by side."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function. Its name contains its class or outer function. `length` is in lines, from `def` to the end."""

    name: str
    path: str
    line: int
    length: int
    complexity: int


@dataclass(frozen=True, slots=True)
class FileSummary:
    """The counts of one file. `problem` says why the file does not parse."""

    path: str
    lines: int
    functions: int = 0
    classes: int = 0
    calls: tuple[tuple[str, int], ...] = ()
    longest: tuple[Function, ...] = ()
    knottiest: tuple[Function, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Census:
    """The counts of all files. Lists are sorted completely, so that equal input gives equal output."""

    files: int
    lines: int
    functions: int
    classes: int
    calls: tuple[tuple[str, int], ...]
    longest: tuple[Function, ...]
    knottiest: tuple[Function, ...]
    problems: tuple[tuple[str, str], ...]


@dataclass
class FunctionBody:
    """A function whose nodes are being counted."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    name: str
    complexity: int = 1


# --- one file, in a worker ---------------------------------------------------------------------------


def summarise(file: tuple[str, str]) -> FileSummary:
    """Parse one file, given as a folder and the path below it. No content of a file makes this function raise."""
    root, path = file
    try:
        source = Path(root, path).read_bytes()
    except OSError as error:
        return FileSummary(path, 0, problem=error.strerror or type(error).__name__)
    lines = len(source.splitlines())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes in the parsed files
            tree = ast.parse(source)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        return FileSummary(path, lines, problem=f"{where}{error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return FileSummary(path, lines, problem=str(error) or f"{type(error).__name__}: nested too deeply")
    return measure(path, lines, tree)


def measure(path: str, lines: int, tree: ast.Module) -> FileSummary:
    """Count the nodes of a tree, with an explicit stack, because a deep tree would exhaust the interpreter's stack."""
    calls: Counter[str] = Counter()
    bodies: list[FunctionBody] = []
    classes = 0
    stack: list[tuple[ast.AST, str, FunctionBody | None]] = [(tree, "", None)]
    while stack:
        node, scope, body = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = FunctionBody(node, f"{scope}{node.name}")
            bodies.append(body)
            scope = f"{body.name}."
        elif isinstance(node, ast.ClassDef):
            classes += 1
            scope = f"{scope}{node.name}."
        elif isinstance(node, ast.Call):
            calls.update(called_name(node))
        if body is not None:
            body.complexity += forks(node)
        stack.extend((child, scope, body) for child in ast.iter_child_nodes(node))
    functions = [as_function(body, path) for body in bodies]
    return FileSummary(
        path,
        lines,
        len(functions),
        classes,
        tuple(sorted(calls.items())),
        top(functions, attrgetter("length")),
        top(functions, attrgetter("complexity")),
    )


def called_name(call: ast.Call) -> Iterator[str]:
    """Yield `len` for a plain name, `.append` for an attribute, and nothing for the result of another call."""
    if isinstance(call.func, ast.Name):
        yield call.func.id
    elif isinstance(call.func, ast.Attribute):
        yield f".{call.func.attr}"


def forks(node: ast.AST) -> int:
    """Return by how much a node raises the complexity of its function."""
    match node:
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While() | ast.ExceptHandler():
            return 1
        case ast.comprehension(ifs=conditions):
            return 1 + len(conditions)
        case ast.BoolOp(values=values):
            return len(values) - 1
        case ast.match_case(pattern=ast.MatchAs(pattern=None, name=None), guard=None):
            return 0
        case ast.match_case():
            return 1
    return 0


def as_function(body: FunctionBody, path: str) -> Function:
    node = body.node
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    return Function(body.name, path, node.lineno, length, body.complexity)


def top(functions: Iterable[Function], key: Callable[[Function], int]) -> tuple[Function, ...]:
    """Return the largest functions by `key`. Ties are ordered by path, line and name."""
    return tuple(sorted(functions, key=lambda f: (-key(f), f.path, f.line, f.name))[:TOP_ROWS])


# --- all files ----------------------------------------------------------------------------------------


def find_files(root: Path, limit: int | None) -> list[tuple[str, str]]:
    """Return every .py file below `root`, sorted, without installed packages."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
        found += [os.path.relpath(os.path.join(folder, name), root) for name in names if name.endswith(".py")]
    return [(str(root), path) for path in sorted(found)[:limit]]


def merge(summaries: Iterable[FileSummary]) -> Census:
    """Return the census of some files, which may come in any order."""
    files = sorted(summaries, key=attrgetter("path"))
    calls: Counter[str] = Counter()
    for file in files:
        calls.update(dict(file.calls))
    return Census(
        len(files),
        sum(file.lines for file in files),
        sum(file.functions for file in files),
        sum(file.classes for file in files),
        tuple(sorted(calls.items(), key=lambda item: (-item[1], item[0]))),
        top((f for file in files for f in file.longest), attrgetter("length")),
        top((f for file in files for f in file.knottiest), attrgetter("complexity")),
        tuple((file.path, file.problem) for file in files if file.problem),
    )


Watch = Callable[[Iterable[FileSummary]], Iterable[FileSummary]]


def in_parallel(files: Sequence[tuple[str, str]], processes: int, watch: Watch) -> Census:
    with Pool(processes) as pool:
        return merge(watch(pool.imap_unordered(summarise, files)))


def in_one_process(files: Sequence[tuple[str, str]], watch: Watch) -> Census:
    return merge(watch(map(summarise, files)))


# --- on the screen ------------------------------------------------------------------------------------


@contextmanager
def progress(console: Console, label: str, total: int) -> Iterator[Watch]:
    """Show a progress bar while files are counted, if there is a terminal."""
    if not console.is_terminal:
        yield iter
        return
    columns = TextColumn(f"{label:<18}"), BarColumn(None), MofNCompleteColumn()
    # auto_refresh would start a thread, which would disturb the timing
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(label, total=total)

        def watch(summaries: Iterable[FileSummary]) -> Iterator[FileSummary]:
            for done, summary in enumerate(summaries, 1):
                if done % 50 == 0:
                    bar.update(task, completed=done, refresh=True)
                yield summary

        yield watch


def list_table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None)


def keep_end(text: str, width: int) -> Text:
    """Cut a text on the left, because the ends of names and paths are the most useful."""
    return Text(text if len(text) <= width else f"…{text[1 - width :]}")


def function_table(title: str, functions: Sequence[Function], width: int) -> Table:
    table = list_table(title)
    table.add_column("lines", justify="right", width=5)
    table.add_column("complexity", justify="right", width=10)
    room = width - 5 - 10 - 2 * 4
    name_width = min(room // 2, 48)
    table.add_column("function", width=name_width, no_wrap=True, style="cyan")
    table.add_column("file", width=min(room - name_width, 48), no_wrap=True, style="dim")
    for f in functions:
        where = f"{f.path}:{f.line}"
        table.add_row(
            f"{f.length:,}",
            f"{f.complexity:,}",
            keep_end(f.name, name_width),
            keep_end(where, room - name_width),
        )
    return table


def call_table(calls: Sequence[tuple[str, int]], width: int) -> Table:
    table = list_table("most called")
    table.add_column("name", width=20, no_wrap=True, style="cyan")
    table.add_column("calls", justify="right", width=8)
    table.add_column("", width=width - 20 - 8 - 2 * 3)
    for name, count in calls:
        table.add_row(keep_end(name, 20), f"{count:,}", Bar(calls[0][1], 0, count, color="cyan"))
    return table


def total_table(census: Census) -> Table:
    table = list_table("in all")
    table.show_header = False
    table.add_column("", style="dim", width=14)
    table.add_column("", justify="right", width=10)
    for name in ("files", "lines", "functions", "classes"):
        table.add_row(name, f"{getattr(census, name):,}")
    table.add_row("do not parse", f"{len(census.problems):,}")
    return table


def problem_table(problems: Sequence[tuple[str, str]], width: int) -> Table:
    table = list_table("do not parse")
    path_width = min(max(len(path) for path, _problem in problems), width // 2)
    table.add_column("file", no_wrap=True, style="yellow", width=path_width)
    table.add_column("reason", no_wrap=True, style="dim", width=max(width - path_width - 4, 1))
    for path, problem in problems:
        table.add_row(keep_end(path, path_width), Text(problem))
    return table


def report(census: Census, title: str, width: int) -> RenderableType:
    """Return the census as tables for a terminal of `width` columns."""
    width = min(width, 200)
    each = (width - 2) // 2 if width >= WIDE_COLUMNS else width
    abreast = width >= 72
    tables = [
        *beside(abreast, total_table(census), call_table(census.calls[:TOP_ROWS], min(width - 34 * abreast, 60))),
        *beside(
            width >= WIDE_COLUMNS,
            function_table("longest functions", census.longest, each),
            function_table("most complex functions", census.knottiest, each),
        ),
    ]
    if census.problems:
        tables.append(problem_table(census.problems, width))
    return Group(Text(title, style="bold underline"), *(part for table in tables for part in ("", table)), "")


def beside(abreast: bool, left: Table, right: Table) -> list[Table]:
    """Return two tables side by side as one, or both unchanged."""
    if not abreast:
        return [left, right]
    grid = Table.grid(padding=(0, 2))
    grid.add_row(left, right)
    return [grid]


# --- the program --------------------------------------------------------------------------------------


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Take a census of Python's standard library, in parallel.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--serial", action="store_true", help="only in one process, without a pool")
    which.add_argument("--parallel", action="store_true", help="only in parallel")
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        default=len(os.sched_getaffinity(0)),
        help="(default: %(default)s)",
    )
    parser.add_argument("--path", type=Path, metavar="DIR", help="count this tree instead of the standard library")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N files")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def timed(work: Callable[[], Census]) -> tuple[Census, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def take(
    options: argparse.Namespace, files: Sequence[tuple[str, str]], console: Console
) -> dict[str, tuple[Census, float]]:
    """Take the requested censuses. Return each with its seconds, by `parallel` and `serial`."""
    for root, path in files:  # read all files once, so that both ways find them in the page cache
        try:
            Path(root, path).read_bytes()
        except OSError:
            continue  # the census lists it as a problem
    runs = {}
    if not options.serial:
        with progress(console, f"{options.processes} processes", len(files)) as watch:
            runs["parallel"] = timed(lambda: in_parallel(files, options.processes, watch))
    if not options.parallel:
        with progress(console, "one process", len(files)) as watch:
            runs["serial"] = timed(lambda: in_one_process(files, watch))
    return runs


def time_table(runs: dict[str, tuple[Census, float]], processes: int) -> Table:
    """Return a table of the times, and of the speed-up."""
    table = list_table("time")
    table.show_header = False
    table.add_column("", style="dim")
    table.add_column("", justify="right")
    table.add_column("")
    ways = {
        "parallel": f"{processes} worker process" + "es" * (processes > 1),
        "serial": "one process, no pool",
    }
    for name, (_census, seconds) in runs.items():
        table.add_row(ways[name], f"{seconds:.2f} s")
    if len(runs) == 2:
        gain = runs["serial"][1] / runs["parallel"][1]
        table.add_row("speed-up", f"{gain:.2f} ×", "and both counted the same", style="bold green")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the census and show it. Return 1 if both ways differ, 2 if there are no files."""
    options = parse_arguments(arguments)
    root = options.path or Path(sysconfig.get_path("stdlib"))
    files = find_files(root, options.limit)
    if not files:
        print(f"there are no .py files below {root}", file=sys.stderr)
        return 2
    runs = take(options, files, Console(stderr=True))
    census = next(iter(runs.values()))[0]
    if any(other != census for other, _seconds in runs.values()):
        print("the parallel census and the serial one differ: the pool lost or changed results", file=sys.stderr)
        return 1
    if options.json:
        seconds = {name: round(taken, 3) for name, (_census, taken) in runs.items()}
        print(json.dumps({"processes": options.processes, "seconds": seconds, "census": asdict(census)}, indent=2))
        return 0
    console = Console()
    name = f"all of {root}" if options.path else f"the standard library of Python {platform.python_version()}"
    console.print(report(census, f"A census of {name}", console.width))
    console.print(time_table(runs, options.processes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
