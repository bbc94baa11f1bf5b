"""The floors of the house: no module imports from a floor above its own, and no circle is allowed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.scripts import ROOT

FLOORS: dict[str, int] = {
    "pairpool.errors": 1,
    "pairpool.output_lines": 1,
    "pairpool.status": 1,
    "pairpool.linux": 1,
    "pairpool.transport": 2,
    "pairpool.scoreboard": 2,
    "pairpool.worker": 3,
    "pairpool.master": 4,
    "pairpool.aio": 5,
    "pairpool.opening": 5,
    "pairpool.options": 5,
    "pairpool.reporting": 5,
    "pairpool.results": 5,
    "pairpool.executor": 5,
    "pairpool.pool": 5,
    "pairpool.cli": 6,
    "pairpool.dask": 6,
    "pairpool.joblib": 6,
    "pairpool.stress": 6,
    "pairpool.__main__": 7,
    "pairpool": 7,
}
"""The floor of each module; a package's is that of all its modules. 7 is the door, from where all is seen."""

APART = "pairpool.view"
"""Status in, pictures out: it sees the floors up to APART_BELOW, and those from APART_ABOVE on see it."""

APART_BELOW = 2
APART_ABOVE = 5


@dataclass(frozen=True)
class Import:
    """One import of a module of this package by another."""

    importer: str
    imported: str
    line: int
    at_start: bool
    """Whether it happens while the importer is loaded, and not later in a function."""

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


# --- reading ------------------------------------------------------------------------------------------


def modules_below(root: Path) -> dict[str, Path]:
    """Every module of the package under `root`, by its dotted name."""
    found = {}
    for path in sorted((root / "pairpool").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _import_statements(body: ast.AST, at_start: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All that are executed, and whether while the module is loaded."""
    for node in ast.iter_child_nodes(body):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, at_start
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for other in node.orelse:
                yield from _import_statements(ast.Module([other], []), at_start)
        else:
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _import_statements(node, at_start and not is_function)


def _targets(node: ast.Import | ast.ImportFrom, importer: str, is_package: bool, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = importer.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        base = ".".join([*parts, base] if base else parts)
    for alias in node.names:
        name = f"{base}.{alias.name}"
        yield name if name in known else base


def imports_of(modules: dict[str, Path]) -> list[Import]:
    """Every import of one module of the package by another."""
    known = set(modules)
    found = []
    for importer, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for node, at_start in _import_statements(tree, at_start=True):
            for target in _targets(node, importer, path.name == "__init__.py", known):
                if target.partition(".")[0] == "pairpool" and target != importer:
                    found.append(Import(importer, target, node.lineno, at_start))
    return found


# --- judging ------------------------------------------------------------------------------------------


def floor_of(module: str) -> int | None:
    """A module's floor, or that of the nearest package around it; None if neither is in the table."""
    if module in FLOORS:
        return FLOORS[module]
    package = module.rpartition(".")[0]
    return floor_of(package) if package and package != "pairpool" else None


def is_apart(module: str) -> bool:
    return module == APART or module.startswith(f"{APART}.")


def homeless(modules: dict[str, Path]) -> list[str]:
    return [module for module in modules if floor_of(module) is None and not is_apart(module)]


def climbs(imports: list[Import]) -> list[str]:
    """The imports from a floor above the importer's own, and those across the wall of what is apart."""
    found = []
    for one in imports:
        lower, upper = floor_of(one.imported), floor_of(one.importer)
        if is_apart(one.importer):
            if not is_apart(one.imported) and lower is not None and lower > APART_BELOW:
                found.append(f"{one} (floor {lower}), but {APART} is apart and sees floors 1 to {APART_BELOW}")
        elif is_apart(one.imported):
            if upper is not None and upper < APART_ABOVE:
                found.append(f"{one}, which is apart: only floors from {APART_ABOVE} on see it, and this is {upper}")
        elif lower is not None and upper is not None and lower > upper:
            found.append(f"{one}: from floor {upper} up to floor {lower}")
    return found


def circle(imports: list[Import]) -> list[str]:
    """A circle of modules that import each other while they are loaded; empty if there is none."""
    graph: dict[str, list[str]] = {}
    for one in imports:
        if one.at_start:
            graph.setdefault(one.importer, []).append(one.imported)
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for imported in graph.get(module, ()):
                found = search(imported, [*path, module])
                if found:
                    return found
            done.add(module)
        return []

    for module in graph:
        found = search(module, [])
        if found:
            return found
    return []


# --- the house ----------------------------------------------------------------------------------------

MODULES = modules_below(ROOT)


def test_every_module_has_a_floor() -> None:
    assert {
        "pairpool",
        "pairpool.linux.pidfds",
        "pairpool.transport.channel",
        "pairpool.master.jobs.batch_size",
    } <= set(MODULES)
    found = homeless(MODULES)
    assert not found, (
        f"no floor is known for {', '.join(found)}: add it to FLOORS in tests/test_house.py, "
        "with its floor in the table of docs/design.md, where the house is described"
    )


def test_no_module_imports_from_a_floor_above() -> None:
    assert climbs(imports_of(MODULES)) == []


def test_no_circle_of_imports() -> None:
    assert circle(imports_of(MODULES)) == []


# --- and a look at the looking ------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small house with faults, beside things that look like some."""
    files = {
        "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pairpool.pool import Pool\n",
        "linux.py": "import os\nif 1:\n    try:\n        import pairpool.transport.channel\n    except OSError: ...\n",
        "errors.py": "def f():\n    from pairpool import pool, linux\n",
        "transport/__init__.py": "",
        "transport/channel.py": "from . import serializer\nfrom .. import linux\n",
        "transport/serializer.py": "from .channel import Channel\n",
        "worker.py": "import typing as t\nif t.TYPE_CHECKING:\n    import pairpool.cli\nelse:\n  import pairpool.pool",
        "pool.py": "from pairpool.transport import channel as c, x\n"
        "class Pool:\n    from pairpool.view.table import x\n",
        "view/table.py": "from pairpool.status import PoolStatus\nfrom pairpool import pool\n",
        "new.py": "",
    }
    for name, source in files.items():
        path = tmp_path / "pairpool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path


def test_all_imports_are_found(house: Path) -> None:
    found = {(one.importer[9:], one.imported[9:], one.at_start) for one in imports_of(modules_below(house))}
    assert found == {
        ("linux", "transport.channel", True),
        ("errors", "pool", False),
        ("errors", "linux", False),
        ("transport.channel", "transport.serializer", True),
        ("transport.channel", "linux", True),
        ("transport.serializer", "transport.channel", True),
        ("worker", "pool", True),
        ("pool", "transport.channel", True),
        ("pool", "transport", True),
        ("pool", "view.table", True),
        ("view.table", "status", True),
        ("view.table", "pool", True),
    }


def test_all_faults_are_found(house: Path) -> None:
    modules = modules_below(house)
    assert homeless(modules) == ["pairpool.new"]
    imports = imports_of(modules)
    assert {fault.partition(" (")[0].partition(":")[0] for fault in climbs(imports)} == {
        "pairpool.linux, line 4, imports pairpool.transport.channel",
        "pairpool.errors, line 2, imports pairpool.pool",
        "pairpool.worker, line 5, imports pairpool.pool",
        "pairpool.view.table, line 2, imports pairpool.pool",
    }
    found = circle(imports)
    assert found[0] == found[-1]
    assert len(found) > 2
    assert circle([one for one in imports if "serializer" not in one.imported and "linux" not in one.imported]) == [
        "pairpool.pool",
        "pairpool.view.table",
        "pairpool.pool",
    ]
    assert circle([one for one in imports if one.importer in ("pairpool.errors", "pairpool.worker")]) == []


def test_what_is_apart_is_known_upstairs_only() -> None:
    def judge(importer: str) -> list[str]:
        return climbs([Import(importer, "pairpool.view.live", 1, True)])

    assert judge("pairpool.pool") == judge("pairpool.cli") == judge("pairpool.view.top") == []
    assert len(judge("pairpool.master.event_loop")) == len(judge("pairpool.linux")) == 1
