"""Every block of code in the README and the documentation runs, and prints the output that the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pairpool
from mkdocs_hooks import loaded_from_elsewhere
from tests.support.docpages import PageError, blocks_of, is_like, run_page
from tests.support.kernel import KERNEL_TELLS_STATUS
from tests.support.scripts import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def page(tmp_path: Path, text: str) -> Path:
    """Write a page with this text, in which `~~~` stands for the fence of a block."""
    path = tmp_path / "page.md"
    path.write_text(text.replace("~~~", "```"))
    return path


@pytest.mark.hang_limit(240)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_of_the_page_runs(path: Path, tmp_path: Path) -> None:
    if not KERNEL_TELLS_STATUS and "ended with" in path.read_text(encoding="utf-8"):
        pytest.skip("the page shows exit statuses of workers, which need Linux 6.15 or later")
    skipped = run_page(path, tmp_path)
    if skipped:
        pytest.skip("; ".join(skipped))


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    blocks = [block for path in PAGES for block in blocks_of(path.read_text(encoding="utf-8"))]
    marked = [block for block in blocks if block.not_run]
    assert all(len(block.not_run) > 10 for block in marked)
    assert len(marked) <= 0.15 * sum(block.language in ("python", "console", "sh") for block in blocks)


def test_the_tests_that_the_documentation_names_exist() -> None:
    there = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if f"def {name}(" not in there] == []


def test_the_reference_has_every_public_name() -> None:
    reference = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^(?:::: |#+ `)pairpool\.(\w+)\b", reference, re.MULTILINE))
    assert sorted(set(pairpool.__all__) - shown) == []


# --- the runner of pages itself, which must be able to fail -------------------------------------------

WORKING = """
~~~python title="tool.py"
def double(x):
    return 2 * x
~~~

~~~python
import tool

if __name__ == "__main__":
    print("a program")
    print(tool.double(4))
~~~

~~~text
a program
8
~~~

Words in between.

~~~python
number = tool.double(21)
print(number, "in 12.5 ms", "pid 17")
~~~

~~~text
42 in 1.7 ms pid 4711
~~~

~~~python
assert number == 42
~~~

~~~console
$ python -c 'print("a", 1 / 3)'
a 0.333...
$ python -c 'import time; print("begun", flush=True); time.sleep(60)' &
begun
$ pairpool --version
pairpool ...
$ exit 3
...
~~~
"""


def test_a_page_with_the_right_output(tmp_path: Path) -> None:
    assert run_page(page(tmp_path, WORKING), tmp_path) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("~~~python\nprint(1)\n~~~\n~~~text\n2\n~~~", "line 1: the page shows\n2\n\nbut it printed\n1"),
        ("~~~python\n1 / 0\n~~~", r"line 1: exit status 1[^Z]*line 2[^Z]*ZeroDivisionError"),
        ("~~~python title='x.py'\nif __name__ == '__main__':\n    raise SystemExit(3)\n~~~", "exit status 3"),
        ("~~~python\nimport warnings\nwarnings.warn('old')\n~~~", "UserWarning: old"),
        ("~~~console\n$ false\n~~~", "exit status 1"),
        ("~~~console\n$ echo a\nb\n~~~", "shows\nb"),
        ("~~~console\n$ echo a; exec sleep 9 &\nb\n~~~", "shows\nb"),
        ("~~~console\na\n~~~", "begins with a command"),
        ("~~~sh\nfalse\ntrue\n~~~", "exit status 1"),
        ("~~~pyhton\nprint(1)\n~~~", "'pyhton' is not one of"),
        ("~~~\nprint(1)\n~~~", "no language"),
        ("\n~~~python\nprint(1)\n", "line 2: this block has no end"),
    ],
)
def test_a_page_with_a_fault(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(PageError, match=complaint):
        run_page(page(tmp_path, text), tmp_path)


def test_a_program_over_its_time_limit_ends_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.docpages.PROGRAM_LIMIT_S", 0.5)
    with pytest.raises(PageError, match=r"sleep 60 \| sleep 60 runs longer than 0.5 s"):
        run_page(page(tmp_path, "~~~sh\nsleep 60 | sleep 60\n~~~"), tmp_path)


def test_a_marked_block_is_not_run(tmp_path: Path) -> None:
    text = "<!-- not run: it would never end -->\n~~~python\n1 / 0\n~~~\n\n~~~python\nprint(2)\n~~~\n~~~text\n2\n~~~"
    assert run_page(page(tmp_path, text), tmp_path) == []


def test_a_block_that_needs_a_missing_module_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.docpages.OPTIONAL", {"no_such_module"})
    text = '~~~python title="x.py"\nfrom no_such_module.sub import thing\n~~~\n~~~console\n$ python x.py\nyes\n~~~'
    reason = "for want of no_such_module"
    assert run_page(page(tmp_path, text), tmp_path) == [f"line 1, {reason}", f"line 4, {reason}"]


def test_the_comparison_ignores_only_varying_parts() -> None:
    assert is_like("worker 1 (pid 1) after 1.5 s", "worker 1 (pid 22) after 27 s\n")
    assert not is_like("worker 1 (pid 1)", "worker 2 (pid 1)")
    assert not is_like("10 items", "11 items")
    assert is_like("usage: a [-b]\n  -b  do", "usage: a\n  [-b]\n  -b\n      do")
    assert not is_like("a b", "a\nb")


# --- the site -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<link href="https://fonts.example" rel="preconnect" crossorigin>',
        "<img src='HTTP://img.example/x.svg'>",
        "<style>@import 'https://x.example/x.css';</style>",
        '<p style="background: url(https://x.example/x.png)">',
    ],
)
def test_a_page_that_loads_something_from_elsewhere_is_noticed(html: str) -> None:
    assert loaded_from_elsewhere(html)


def test_links_load_nothing() -> None:
    html = '<a href="https://docs.python.org">x</a><link rel="canonical" href="https://x.example"><img src="x.svg">'
    assert loaded_from_elsewhere(html) == []
