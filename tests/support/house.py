"""Measure the structure of a package from its source, without importing it.

    read_package ──► modules ──► imports_of ──► upward_imports, forbidden_imports, import_cycles
                        └──────► long_files, long_functions, long_signatures, foreign_writes, repeated_classes,
                                 repeated_constants, words_in_use, private_names

Each measure returns one line of text per finding, so that a test that fails shows the places.
`tests/test_house.py` holds the limits, and tests of these measures on a small made-up package.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Import",
    "Module",
    "foreign_writes",
    "forbidden_imports",
    "import_cycles",
    "imports_of",
    "long_files",
    "long_functions",
    "long_signatures",
    "modules_without_layer",
    "private_names",
    "read_package",
    "repeated_classes",
    "repeated_constants",
    "upward_imports",
    "words_in_use",
]

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        name: the dotted name; that of the package for `__init__.py`.
        path: the path below the checkout.
        source: the text.
        tree: the parsed text.
    """

    name: str
    path: str
    source: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{self.path}:{node.lineno}"


@dataclass(frozen=True)
class Import:
    """One import of a module of the package by another, wherever in the importer it stands."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def read_package(root: Path, package: str = "pairpool") -> list[Module]:
    """Read every module of the package in the directory `root`."""
    found = []
    for file in sorted((root / package).rglob("*.py")):
        path = file.relative_to(root)
        parts = path.with_suffix("").parts
        source = file.read_text(encoding="utf-8")
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, str(path), source, ast.parse(source, str(path))))
    return found


# --- imports ------------------------------------------------------------------------------------------


def _targets(node: ast.Import | ast.ImportFrom, module: Module, known: set[str]) -> Iterator[str]:
    """Yield the modules that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = module.name.split(".")
        parts = parts[: len(parts) - node.level + module.is_package]
        base = ".".join([*parts, base] if base else parts)
    for alias in node.names:
        name = f"{base}.{alias.name}"
        yield name if name in known else base


def imports_of(modules: Sequence[Module]) -> list[Import]:
    """Return every import inside the package, those in functions and for type checking included."""
    known = {module.name for module in modules}
    package = modules[0].name.partition(".")[0]
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for target in _targets(node, module, known):
                    if target.partition(".")[0] == package and target != module.name:
                        found.append(Import(module.name, target, node.lineno))
    return found


def _layer_of(module: str, layers: Sequence[Sequence[str]]) -> int | None:
    """Return the index of the layer that names the module or the nearest package around it."""
    package = module.partition(".")[0]
    while module:
        for index, names in enumerate(layers):
            if module in names:
                return index
        module = module.rpartition(".")[0]
        if module == package:
            return None
    return None


def modules_without_layer(modules: Iterable[Module], layers: Sequence[Sequence[str]]) -> list[str]:
    return [module.name for module in modules if _layer_of(module.name, layers) is None]


def upward_imports(imports: Iterable[Import], layers: Sequence[Sequence[str]]) -> list[str]:
    """Return the imports of a module in a higher layer. The first layer is the highest."""
    found = []
    for one in imports:
        upper, lower = _layer_of(one.importer, layers), _layer_of(one.imported, layers)
        if upper is not None and lower is not None and lower < upper:
            found.append(str(one))
    return found


def _is_inside(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def forbidden_imports(imports: Iterable[Import], walls: Iterable[tuple[str, str]]) -> list[str]:
    """Return the imports across a wall: a pair (importer, imported) of packages or modules."""
    walls = tuple(walls)
    return [
        str(one)
        for one in imports
        if any(_is_inside(one.importer, above) and _is_inside(one.imported, below) for above, below in walls)
    ]


def import_cycles(imports: Iterable[Import]) -> list[str]:
    """Return the groups of modules that import each other, directly or through other modules."""
    graph: dict[str, set[str]] = defaultdict(set)
    for one in imports:
        graph[one.importer].add(one.imported)
    reached = {module: _reachable(graph, module) for module in list(graph)}
    groups = {
        tuple(sorted(other for other in others if module in reached.get(other, ())))
        for module, others in reached.items()
        if module in others
    }
    return [" <-> ".join(group) for group in sorted(groups)]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += graph.get(module, ())
    return found


# --- sizes --------------------------------------------------------------------------------------------


def long_files(modules: Iterable[Module], limit: int) -> list[str]:
    return [f"{one.path}: {lines} lines" for one in modules if (lines := one.source.count("\n")) > limit]


def _functions(module: Module) -> Iterator[Function]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            yield node


def _length(function: Function) -> int:
    """Return the number of lines of a function, without its docstring, and with one line for its signature."""
    docstring = ast.get_docstring(function, clean=False)
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    signature = function.body[0].lineno - function.lineno
    return lines - (docstring.count("\n") + 1 if docstring else 0) - max(0, signature - 1)


def long_functions(modules: Iterable[Module], limit: int) -> list[str]:
    return [
        f"{module.at(one)} {one.name}: {length} lines"
        for module in modules
        for one in _functions(module)
        if (length := _length(one)) > limit
    ]


def long_signatures(modules: Iterable[Module], limit: int, faces: tuple[str, ...] = ()) -> list[str]:
    """Return the functions with more parameters than `limit`, beside `self` and `cls`.

    Overloads do not count, because they repeat a signature. Neither do the modules and packages `faces`.
    """
    found = []
    for module in modules:
        if any(_is_inside(module.name, face) for face in faces):
            continue
        for one in _functions(module):
            count = sum(
                argument.arg not in ("self", "cls")
                for argument in (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs)
            )
            if count > limit and not any("overload" in ast.dump(each) for each in one.decorator_list):
                found.append(f"{module.at(one)} {one.name}: {count} parameters")
    return found


# --- state --------------------------------------------------------------------------------------------


def _is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _foreign_targets(node: ast.AST) -> Iterator[str]:
    """Yield the attributes of other objects that a statement assigns."""
    if (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not _is_own(node.value)) or (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("setattr", "object.__setattr__")
        and not _is_own(node.args[0])
    ):
        yield ast.unparse(node)


def foreign_writes(modules: Iterable[Module], excused: Iterable[str] = ()) -> list[str]:
    """Return the places that write a field of another object than `self` or `cls`.

    Args:
        excused: places that are not returned, as `path: expression`.
    """
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            for target in _foreign_targets(node):
                if f"{module.path}: {target}" not in excused:
                    assert isinstance(node, ast.expr)
                    found.append(f"{module.at(node)} {target}")
    return found


# --- names --------------------------------------------------------------------------------------------


def repeated_classes(modules: Iterable[Module], excused: Iterable[str] = ()) -> list[str]:
    """Return the names that more than one class has."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module.at(node))
    return [f"{name}: {', '.join(at)}" for name, at in places.items() if len(at) > 1 and name not in excused]


def _constants(module: Module) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the names in capitals that a module defines at its top level, without leading underscores."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id.isupper() and len(target.id.strip("_")) > 1:
                    yield target.id.lstrip("_"), node


def repeated_constants(modules: Iterable[Module], excused: Iterable[str] = ()) -> list[str]:
    """Return the constants that more than one module defines: a name with two meanings, or one value written twice."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for name, node in _constants(module):
            places[name].append(module.at(node))
    return [f"{name}: {', '.join(at)}" for name, at in places.items() if len(at) > 1 and name not in excused]


def words_in_use(modules: Iterable[Module], words: re.Pattern[str]) -> list[str]:
    """Return the lines, comments and docstrings included, in which one of the words stands."""
    return [
        f"{module.path}:{number} {match[0]}"
        for module in modules
        for number, line in enumerate(module.source.splitlines(), 1)
        for match in words.finditer(line)
    ]


def _defined_names(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
            yield node.attr
        elif isinstance(node, ast.Assign) and any(ast.unparse(target) == "__slots__" for target in node.targets):
            yield from (str(each.value) for each in ast.walk(node.value) if isinstance(each, ast.Constant))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(modules: Sequence[Module], allowed: Iterable[str] = ()) -> list[str]:
    """Return the uses of private names that the package does not define, so that they belong to other projects.

    Args:
        allowed: expressions and modules that are not returned, such as `os._exit`, which is documented.
    """
    own = {name for module in modules for name in _defined_names(module)}
    allowed = set(allowed)
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute):
                names = [] if node.attr in own or _is_own(node.value) else [node.attr]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported = [*node.module.split("."), *(alias.name for alias in node.names)]
                names = [name for name in imported if name not in own]
            else:
                continue
            if any(map(_is_private, names)) and allowed.isdisjoint((*names, ast.unparse(node))):
                found.append(f"{module.at(node)} {ast.unparse(node)}")
    return found
