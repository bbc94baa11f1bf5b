"""The structure of the package: layers, cycles, sizes, and names with one meaning.

`tests/support/house.py` measures. This module holds the layers, the limits and the exceptions with their reasons.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.house import (
    Module,
    forbidden_imports,
    foreign_writes,
    import_cycles,
    imports_of,
    long_files,
    long_functions,
    long_signatures,
    modules_without_layer,
    private_names,
    read_package,
    repeated_classes,
    repeated_constants,
    upward_imports,
    words_in_use,
)
from tests.support.scripts import ROOT, write_script

LAYERS = (
    ("pairpool", "pairpool.__main__", "pairpool.cli"),
    ("pairpool.stress",),  # a campaign against the public faces
    (
        "pairpool.pool",
        "pairpool.pool_calls",
        "pairpool.pool_streams",
        "pairpool.pool_processes",
        "pairpool.executor",
        "pairpool.executor_exit",
        "pairpool.executor_pool",
        "pairpool.aio",
        "pairpool.joblib",
        "pairpool.joblib_arrays",
        "pairpool.joblib_calls",
        "pairpool.joblib_pools",
        "pairpool.dask",
    ),
    ("pairpool.opening", "pairpool.reporting"),
    ("pairpool.options",),
    ("pairpool.results",),
    ("pairpool.view",),
    ("pairpool.master",),
    ("pairpool.worker",),
    ("pairpool.transport",),
    ("pairpool.scoreboard",),
    ("pairpool.linux",),
    ("pairpool.errors", "pairpool.status", "pairpool.output_lines", "pairpool.trace_events"),
)
"""From top to bottom. A module imports only from its own layer and from lower layers."""

WALLS = (
    ("pairpool.master", "pairpool.worker"),  # the parent side never imports the child's code
    ("pairpool.view", "pairpool.master"),  # a view takes a status and returns a picture
    ("pairpool.view", "pairpool.worker"),
    ("pairpool.view", "pairpool.transport"),
)
"""Imports that are forbidden although they point downwards: (importer, imported)."""

USED_BY_FACES = {
    "asyncio_driver": "drives an engine from asyncio",
    "call_errors": "the errors of calls that ended early",
    "engine": "the API",
    "engine_core": "a constant of the API",
    "engine_settings": "arguments of `Engine`",
    "functions": "tells callables with state",
    "jobs.base": "a type that `Engine` returns",
    "jobs.call_options": "the options of calls",
    "jobs.intake": "reads inputs, which `Engine` takes",
    "jobs.stream": "a type that `Engine` takes and returns",
    "outcome": "rebuilds the exception of a task on a cluster",
    "output": "the sinks of captured output",
    "output_sinks": "the sinks of captured output",
    "statistics": "the counts behind a report",
    "zygotes": "arguments of `Engine`",
    "direct_zygote": "arguments of `Engine`",
    "fresh_zygote": "arguments of `Engine`",
}
"""The modules of `pairpool.master` that modules above it may import, each with the reason."""

FACES = (
    "pairpool.pool",
    "pairpool.pool_calls",
    "pairpool.pool_streams",
    "pairpool.executor",
    "pairpool.aio",
    "pairpool.dask",
)
"""The public faces, whose calls take as many options as users need."""

OLD_NAMES = re.compile(
    r"\b(Accounts|Tally|Shares|Books|Traffic|Pace|Singles|Passage)\b"
    r"|(?<![A-Za-z])(?i:nursery|dealer|crew|overseer|attendant|agenda|doom|stillborn|acquit|condemned|culprit|torn"
    r"|hurry|hurried|starved|movers|glance|slip_in|stand_in|codec)(?![A-Za-z])"
)
"""Names that were replaced by the standard terms of the field, as identifiers and as words."""

FOREIGN_WRITES: dict[str, str] = {
    "pairpool/errors.py: error.__cause__": "with_cause, the only place that sets a cause",
    "pairpool/linux/children.py: sys.stdin": "documented; multiprocessing replaces it in the same way",
    "pairpool/pool.py: setattr(method, '__qualname__', f'Pool.{name}')": "error texts name `Pool`",
    "pairpool/transport/capture.py: setattr(sys, name, stream)": "streams of a worker",
    "pairpool/stress/hostile/round.py: sys.excepthook": "documented; it shows errors that no call gets",
    "pairpool/transport/log_records.py: logger.propagate": "the documented way to set it",
    "pairpool/view/screen.py: setattr(sys, name, stream)": "streams that share the terminal with the live view",
    "pairpool/joblib.py: func.items": "the batch belongs to joblib, which calls whatever its field `items` contains",
}
"""Fields that another object than their own writes, as `path: expression`, each with the reason."""

PRIVATE_NAMES = {
    "os._exit": "documented",
    "sys._getframe": "documented",
    "argparse._SubParsersAction": "the only name of the type of add_subparsers()",
    "_typeshed": "exists for type checkers only",
    "_asdict": "the documented method of every NamedTuple",
    "_dynamic_class_reduce": "the hook of cloudpickle for classes",
}
"""Private names of other projects that may stand in any module. All others belong to linux/cpython_private.py."""

CONSTANTS: dict[str, str] = {}
"""Constants that more than one module defines, each with the reason."""

MODULES = read_package(ROOT)
IMPORTS = imports_of(MODULES)
OUTSIDE_CPYTHON_PRIVATE = [module for module in MODULES if module.name != "pairpool.linux.cpython_private"]

MEASURES: dict[str, tuple[int, Callable[[], list[str]]]] = {
    "upward imports": (0, lambda: upward_imports(IMPORTS, LAYERS)),
    "imports across a wall": (0, lambda: forbidden_imports(IMPORTS, WALLS)),
    "import cycles": (0, lambda: import_cycles(IMPORTS)),
    "files of more than 400 lines": (0, lambda: long_files(MODULES, 400)),
    "functions of more than 40 lines": (0, lambda: long_functions(MODULES, 40)),
    "functions with more than 6 parameters": (6, lambda: long_signatures(MODULES, 6, FACES)),
    "writes to fields of other objects": (0, lambda: foreign_writes(MODULES, FOREIGN_WRITES)),
    "class names used twice": (0, lambda: repeated_classes(MODULES)),
    "constants defined twice": (0, lambda: repeated_constants(MODULES, CONSTANTS)),
    "old names": (0, lambda: words_in_use(MODULES, OLD_NAMES)),
    "private names of other projects": (0, lambda: private_names(OUTSIDE_CPYTHON_PRIVATE, PRIVATE_NAMES)),
}
"""The limit of each measure, and how it is taken."""


def test_every_module_has_a_layer() -> None:
    assert len(MODULES) > 100
    assert modules_without_layer(MODULES, LAYERS) == [], "add it to LAYERS, and to the table in docs/design.md"


@pytest.mark.parametrize("measure", MEASURES)
def test_the_package_is_within_its_limits(measure: str) -> None:
    limit, find = MEASURES[measure]
    found = find()
    assert len(found) <= limit, f"{measure}: {len(found)}, and the limit is {limit}:\n" + "\n".join(found)


def test_faces_import_the_engine_and_what_its_methods_take() -> None:
    found = {
        one.imported.removeprefix("pairpool.master.")
        for one in IMPORTS
        if one.imported.startswith("pairpool.master.") and not one.importer.startswith("pairpool.master")
    }
    assert "engine" in found
    assert found - set(USED_BY_FACES) == set()


def test_the_tests_mirror_the_package() -> None:
    there = {module.name.partition(".")[2].partition(".")[0] for module in MODULES}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert folders - there == {"examples", "faults", "hostile", "support", "typing", "values"}
    assert files - there == {"benchmarks", "docs", "house", "leftovers", "project", "swap"}


def test_few_writes_to_fields_of_other_objects_are_excused() -> None:
    assert len(FOREIGN_WRITES) <= 10
    found = {" ".join(one.split(" ")[1:]) for one in foreign_writes(MODULES)}
    assert {excused.partition(": ")[2] for excused in FOREIGN_WRITES} <= found, "an excuse that nothing needs"


# --- the measures themselves, which must be able to fail ----------------------------------------------

SMALL_LAYERS = (("pairpool", "pairpool.cli"), ("pairpool.pool",), ("pairpool.transport",), ("pairpool.linux",))

FAULTY = {
    "__init__.py": "def __getattr__(name):\n    from .pool import Pool\n",
    "cli.py": "import argparse\n\nclass Row: pass\n",
    "extra.py": "",
    "pool.py": """
        import os, typing as t
        if t.TYPE_CHECKING:
            import pairpool.cli

        _LIMIT: int = 1
        lower_case = os._exit
        CODEC = "codecs and decoders"

        class Row:
            __slots__ = ("_own", "seen")

            def __init__(self, a, b, *, c):
                self.seen = a

            def write(self, other):
                '''Docstrings do not count.

                Not even long ones.
                '''
                other.seen, self.seen[0] = 1, 2
                other.items[0] = 3
                object.__setattr__(self, "_own", other._own)
                setattr(other, "seen", 4)
        """,
    "transport/__init__.py": "from .. import linux\n",
    "transport/channel.py": "from . import serializer\nLIMIT = 2\n",
    "transport/serializer.py": "def f():\n    from .channel import LIMIT\n",
    "linux.py": """
        try:
            from pairpool import transport
            import _signal, os
            from threading import _active
        except OSError:
            _active.clear()
            os._foo(1)
        """,
}
"""A small package with at least one fault of each kind, beside code that looks like a fault and is none."""


@pytest.fixture
def faulty(tmp_path: Path) -> list[Module]:
    for name, source in FAULTY.items():
        (tmp_path / "pairpool" / name).parent.mkdir(parents=True, exist_ok=True)
        write_script(tmp_path / "pairpool", source, name)
    return read_package(tmp_path)


def test_imports_are_found_wherever_they_stand(faulty: list[Module]) -> None:
    assert {str(one).replace("pairpool.", "") for one in imports_of(faulty)} == {
        "pairpool, line 2, imports pool",
        "pool, line 4, imports cli",
        "transport, line 1, imports linux",
        "transport.channel, line 1, imports transport.serializer",
        "transport.serializer, line 2, imports transport.channel",
        "linux, line 3, imports transport",
    }


def test_faults_of_layers_are_found(faulty: list[Module]) -> None:
    assert modules_without_layer(faulty, SMALL_LAYERS) == ["pairpool.extra"]
    imports = imports_of(faulty)
    assert upward_imports(imports, SMALL_LAYERS) == [
        "pairpool.linux, line 3, imports pairpool.transport",
        "pairpool.pool, line 4, imports pairpool.cli",
    ]
    assert forbidden_imports(imports, [("pairpool.transport", "pairpool.linux"), ("pairpool.linux", "pairpool.x")]) == [
        "pairpool.transport, line 1, imports pairpool.linux",
    ]
    assert import_cycles(imports) == [
        "pairpool.linux <-> pairpool.transport",
        "pairpool.transport.channel <-> pairpool.transport.serializer",
    ]
    assert import_cycles(imports[:2]) == []


def test_faults_of_size_are_found(faulty: list[Module]) -> None:
    assert long_files(faulty, 23) == ["pairpool/pool.py: 24 lines"]
    assert long_functions(faulty, 4) == ["pairpool/pool.py:16 write: 5 lines"]
    assert long_functions(faulty, 5) == []
    assert long_signatures(faulty, 2) == ["pairpool/pool.py:13 __init__: 3 parameters"]
    assert long_signatures(faulty, 2, ("pairpool.pool",)) == []


def test_writes_to_other_objects_are_found(faulty: list[Module]) -> None:
    found = ["pairpool/pool.py:24 setattr(other, 'seen', 4)", "pairpool/pool.py:21 other.seen"]
    assert sorted(foreign_writes(faulty)) == sorted(found)
    assert foreign_writes(faulty, ["pairpool/pool.py: other.seen"]) == found[:1]


def test_faults_of_names_are_found(faulty: list[Module]) -> None:
    assert repeated_classes(faulty) == ["Row: pairpool/cli.py:3, pairpool/pool.py:10"]
    assert repeated_classes(faulty, ["Row"]) == []
    assert repeated_constants(faulty) == ["LIMIT: pairpool/pool.py:6, pairpool/transport/channel.py:2"]
    assert repeated_constants(faulty, ["LIMIT"]) == []
    assert words_in_use(faulty, OLD_NAMES) == ["pairpool/pool.py:8 CODEC"]
    assert private_names(faulty, ["os._exit"]) == [
        "pairpool/linux.py:4 import _signal, os",
        "pairpool/linux.py:5 from threading import _active",
        "pairpool/linux.py:8 os._foo",
    ]
