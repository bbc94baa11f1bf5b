"""Properties of the package as a whole."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

from tests.support.scripts import ROOT

IMPORT = """
import json, sys, threading
import pairpool
print(json.dumps([sorted(sys.modules), threading.active_count()]))
"""


def test_the_import_is_light() -> None:
    """The import loads no library that only some users need, and starts no thread."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    modules, threads = json.loads(done.stdout)
    assert threads == 1
    assert not {"rich", "psutil", "cloudpickle", "numpy", "asyncio"}.intersection(modules)


OPEN_FROM = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
OPEN = """
import json, sys
before = set(sys.modules)
import pairpool
with pairpool.Pool(1) as pool:
    assert pool.apply(abs, (-1,)) == 1
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_a_pool_opens_without_modules_that_take_long_to_load() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", OPEN_FROM + OPEN], stdout=subprocess.PIPE, check=True)
    loaded = set(json.loads(done.stdout))
    assert "pairpool.master.engine" in loaded
    assert not {"dataclasses", "inspect", "subprocess", "asyncio", "rich", "psutil"}.intersection(loaded)


def test_the_version_is_the_one_of_the_distribution() -> None:
    import pairpool

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pairpool.__version__ == project["version"]


def test_the_page_on_faults_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    files = set(re.findall(r"`([\w/]*test_\w+\.py)`", page))
    tests = set(re.findall(r"`(test_\w+)`", page))
    assert len(files) > 20
    assert len(tests) > 50
    assert [name for name in files if not any(path.endswith(f"/{name}") for path in sources)] == []
    defined = set(re.findall(r"def (test_\w+)\(", "\n".join(sources.values())))
    assert tests - defined == set()
