"""Whole scripts give the same output with `multiprocessing.Pool` and with `pairpool.Pool`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scripts import python, write_script

START_METHODS = ["fork", "forkserver", "direct"]

EVERY_METHOD = """
import functools
import multiprocessing
import os
import sys
import time

{IMPORT}


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __repr__(self):
        return f"Point({self.x}, {self.y})"

    def __eq__(self, other):
        return type(other) is Point and (self.x, self.y) == (other.x, other.y)

    def moved(self, by):
        return Point(self.x + by, self.y + by)


class Trouble(Exception):
    def __init__(self, code, text="trouble"):
        super().__init__(code, text)
        self.code = code


def square(x):
    return x * x


def add(a, b=10, *, c=0):
    return a + b + c


def swap(point):
    assert type(point) is Point
    return Point(point.y, point.x)


def trouble_at_three(x):
    if x == 3:
        raise Trouble(x)
    return x


def key_error(x):
    return {}[x]


def unpicklable(x):
    return (y for y in range(x))


def local_function(x):
    return lambda: x


def initialize(*values):
    global VALUES
    VALUES = values


def get_values(_):
    return VALUES


def counted(queue_name, x):
    return (queue_name, x)


def endless():
    x = 0
    while True:
        yield x
        x += 1


def broken_input(count):
    yield from range(count)
    raise Trouble(99, "in the input")


def show(name, call):
    try:
        value = call()
    except Exception as error:
        cause = error.__cause__
        print(name, "raised", type(error).__module__, type(error).__qualname__, error.args, str(error),
              type(cause).__module__, type(cause).__qualname__)
        if cause is not None:
            print("   ", str(cause).strip().splitlines()[-2])
            print("    names this file:", os.path.basename(__file__) in str(cause))
    else:
        print(name, "=", value)


def main():
    with Pool(2) as pool:
        show("apply", lambda: pool.apply(add, (1,)))
        show("apply kwds", lambda: pool.apply(add, (1, 2), {"c": 3}))
        show("apply_async", lambda: pool.apply_async(add, (1, 2)).get())
        show("map", lambda: pool.map(square, range(100)))
        show("map chunksize", lambda: pool.map(square, range(100), 7))
        show("map points", lambda: pool.map(swap, [Point(1, 2), Point(3, 4)]))
        show("map types", lambda: [type(p) is Point for p in pool.map(swap, [Point(1, 2)])])
        show("map method", lambda: pool.map(Point(1, 2).moved, [1, 2]))
        show("map unbound method", lambda: pool.starmap(Point.moved, [(Point(1, 2), 5)]))
        show("map class", lambda: pool.starmap(Point, [(1, 2), (3, 4)]))
        show("map partial", lambda: pool.map(functools.partial(add, b=5, c=1), range(3)))
        show("map builtin", lambda: pool.map(abs, [-1, 2]))
        show("map dict", lambda: pool.map(str, {"a": 1, "b": 2}))
        show("map string", lambda: pool.map(ord, "abc"))
        show("map empty", lambda: pool.map(square, []))
        show("map generator", lambda: pool.map(square, (x for x in range(5))))
        show("starmap", lambda: pool.starmap(add, [(1, 2), (3, 4)]))
        show("starmap_async", lambda: pool.starmap_async(add, [(1, 2), (3, 4)]).get())
        show("map_async", lambda: pool.map_async(square, range(10)).get())
        show("imap", lambda: list(pool.imap(square, range(20))))
        show("imap chunksize", lambda: list(pool.imap(square, range(20), 3)))
        show("imap_unordered", lambda: sorted(pool.imap_unordered(square, range(20), chunksize=4)))

        show("error", lambda: pool.map(trouble_at_three, range(6)))
        show("error code", lambda: pool.apply_async(trouble_at_three, (3,)).get())
        show("error in stream", lambda: list(pool.imap(trouble_at_three, range(6))))
        show("key error", lambda: pool.apply(key_error, ("missing",)))
        show("wrong arguments", lambda: pool.apply(square, (1, 2, 3)))
        show("star of no tuple", lambda: pool.starmap(add, [1]))
        show("input error", lambda: pool.map(square, broken_input(4)))
        stream = pool.imap(square, broken_input(4), 1)
        for number in range(5):
            show(f"input error {number}", lambda: next(stream))

        def kind(call):
            try:
                call()
            except Exception as error:
                print(type(error).__module__, type(error).__qualname__, error.value.lstrip("[").partition(" at ")[0])

        kind(lambda: pool.apply(unpicklable, (3,)))
        kind(lambda: pool.apply(local_function, (3,)))
        kind(lambda: pool.map(unpicklable, range(3)))
        kind(lambda: pool.apply_async(unpicklable, (3,)).get())

        stream = pool.imap(trouble_at_three, range(6))
        for number in range(7):
            try:
                print("next", next(stream))
            except Trouble as error:
                print("next raised", error.code)
            except StopIteration:
                print("end")

        called = []
        result = pool.map_async(square, range(3), callback=called.append, error_callback=called.append)
        result.wait()
        print("callback", called, result.ready(), result.successful())
        failed = pool.apply_async(trouble_at_three, (3,), callback=called.append,
                                  error_callback=lambda error: called.append(error.code))
        failed.wait(60)
        print("callback", called, failed.ready(), failed.successful())

        slow = pool.apply_async(time.sleep, (0.3,))
        show("not ready", lambda: str(slow.successful()).replace(hex(id(slow)), "..."))
        show("timeout", lambda: slow.get(timeout=0.01))
        try:
            slow.get(timeout=0)
        except multiprocessing.TimeoutError:
            print("multiprocessing.TimeoutError")
        show("slow", slow.get)
        slow = pool.imap(time.sleep, [0.3, 0])
        show("next timeout", lambda: slow.next(timeout=0.01))
        show("slow", lambda: [slow.next(timeout=60), next(slow)])
        show("chunksize 0", lambda: pool.imap(square, [1], 0))
        show("join too early", pool.join)

    show("use after the end", lambda: pool.map(square, [1]))
    show("use after the end", lambda: pool.imap(square, [1]))
    pool.join()

    pool = Pool(1, initialize, ("a", 1))
    show("initializer", lambda: pool.map(get_values, range(3)))
    late = pool.map_async(square, range(50))
    pool.close()
    show("use after close", lambda: pool.apply(square, (1,)))
    pool.join()
    show("after join", late.get)

    with Pool(processes=1, maxtasksperchild=1) as pool:
        print("processes", len(set(pool.map(getpid, range(4), chunksize=1))))

    with Pool(processes=2) as pool:
        print("here", os.getpid() in pool.map(getpid, range(4)))

    for wrong in (lambda: Pool(0), lambda: Pool(1, initializer=5), lambda: Pool(1, maxtasksperchild=0)):
        show("wrong", wrong)


def getpid(_):
    return os.getpid()


if __name__ == "__main__":
    main()
"""

RESULT = "multiprocessing.pool.ApplyResult"
"""The class of which `multiprocessing.pool.AsyncResult` is another name."""


def without_addresses(text: str) -> list[str]:
    return [line.partition(" object at 0x")[0] for line in text.splitlines()]


@pytest.fixture(scope="module")
def multiprocessing_says(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    source = EVERY_METHOD.replace("{IMPORT}", "from multiprocessing import Pool")
    done = python(write_script(tmp_path_factory.mktemp("theirs"), source))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = without_addresses(done.stdout)
    assert len(lines) > 70
    return lines


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_script_with_the_import_swapped(start_method: str, multiprocessing_says: list[str], tmp_path: Path) -> None:
    swapped = f"""
from pairpool import Pool
if {start_method!r} != "fork":
    Pool = functools.partial(Pool, start_method={start_method!r})
"""
    done = python(write_script(tmp_path, EVERY_METHOD.replace("{IMPORT}", swapped)))
    assert done.stderr == ""
    text = done.stdout.replace("pairpool.results.async_result.AsyncResult", RESULT)
    ours = without_addresses(text.replace("__mp_main__.", ""))  # the main module of spawned workers
    assert ours == multiprocessing_says
    assert done.returncode == 0


# --- definitions in scripts, at any place and time ----------------------------------------------------

DEFINITIONS = """
import functools
import sys
import types

from pairpool import Pool


class Named:
    def __init__(self, x):
        self.x = x

    def plus(self, y):
        return self.x + y

    @classmethod
    def make(cls, x):
        assert cls is Named
        return cls(x)

    @staticmethod
    def double(x):
        return 2 * x

    class Inner:
        pass


class Colour(__import__("enum").Enum):
    RED = 1


def identity(x):
    return x


def is_named(x):
    return isinstance(x, Named) and type(x) is Named


def redefined(x):
    return "old"


if __name__ == "__main__":
    start_method = sys.argv[1]

    offset = 100

    def under_main(x):
        return x + offset

    def make_closure(n):
        def closure(x):
            return x + n
        return closure

    class LocalToMain:
        def __init__(self, x):
            self.x = x

        def times(self, y):
            return self.x * y

    with Pool(2, start_method=start_method) as pool:
        # classes of __main__ keep their identity, there and back
        (back,) = pool.map(identity, [Named(5)])
        print("identity", type(back) is Named, back.x, pool.map(is_named, [Named(1), 2]))
        print("identity", pool.map(identity, [Named, Named.Inner]) == [Named, Named.Inner])
        print("identity", pool.map(identity, [Colour.RED])[0] is Colour.RED)
        print("identity", type(pool.apply(Named.make, (3,))) is Named, pool.map(Named, [1])[0].x)

        print("under main", pool.map(under_main, [1, 2]))
        print("lambda", pool.map(lambda x: x + offset, [1, 2]))
        print("closure", pool.map(make_closure(7), [1, 2]))
        print("partial", pool.map(functools.partial(under_main), [1]), pool.map(functools.partial(pow, 2), [3]))
        print("bound", pool.map(Named(5).plus, [1]), pool.map(LocalToMain(5).times, [2]), pool.map([4, 5].index, [5]))
        print("static", pool.map(Named.double, [4]))
        (back,) = pool.map(identity, [LocalToMain(5)])
        print("local class", type(back) is LocalToMain, back.x, pool.map(LocalToMain, [1])[0].x)
        print("callable", pool.map(type("C", (), {"__call__": lambda self, x: -x})(), [1]))
        print("recursive", pool.map(lambda n: (lambda f: f(f, n))(lambda f, k: 1 if k < 2 else k * f(f, k - 1)), [5]))
        print("default", pool.map(lambda x, y=offset: x + y, [1]))

        # defined or redefined since the pool was opened
        def defined_later(x):
            return helper_defined_later(x) + 1

        def helper_defined_later(x):
            return 10 * x

        print("later", pool.map(defined_later, [1, 2]))

        def redefined(x):
            return "new"

        print("redefined", pool.map(redefined, [1]), pool.apply(redefined, (1,)))

        class DefinedLater:
            def __init__(self, x):
                self.x = x

            def __eq__(self, other):
                return type(other) is type(self) and other.x == self.x

            __hash__ = None

        (back,) = pool.map(identity, [DefinedLater(3)])
        print("later class", type(back) is DefinedLater, back == DefinedLater(3), pool.map(DefinedLater, [4])[0].x)
        print("later class", pool.map(lambda x: DefinedLater(x) == DefinedLater(1), [1, 2]))

        # in a module
        import helpers

        print("module", pool.map(helpers.version, [1]))

        def newer(x):
            return "newer"

        newer.__module__, newer.__qualname__, newer.__name__ = "helpers", "version", "version"
        helpers.version = newer
        print("module redefined", pool.map(helpers.version, [1]))
        exec("def added(x): return version(x) + '!'", vars(helpers))
        print("module added", pool.map(helpers.added, [1]))

        made = types.ModuleType("made")
        sys.modules["made"] = made
        exec("def f(x): return x + 1", vars(made))
        print("module made", pool.map(made.f, [1]))

    with Pool(1, start_method=start_method) as pool:
        print("second pool", pool.map(defined_later, [1]), pool.map(lambda x: defined_later(x), [1]))
        if start_method != "forkserver":  # workers of a forkserver load modules from disk, like spawned ones
            assert pool.map(redefined, [1]) == ["new"]
            assert pool.map(helpers.version, [1]) == ["newer"]
"""

DEFINED = """\
identity True 5 [True, False]
identity True
identity True
identity True 1
under main [101, 102]
lambda [101, 102]
closure [8, 9]
partial [101] [8]
bound [6] [10] [1]
static [8]
local class True 5 1
callable [-1]
recursive [120]
default [101]
later [11, 21]
redefined ['new'] new
later class True True 4
later class [True, False]
module ['old']
module redefined ['newer']
module added ['newer!']
module made [2]
second pool [11] [11]
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("start_method", START_METHODS)
def test_anything_defined_anywhere_at_any_time(start_method: str, when: str, tmp_path: Path) -> None:
    """The script imports the helper module before or after it opens the pool."""
    write_script(tmp_path, 'def version(x):\n    return "old"\n', "helpers.py")
    source = DEFINITIONS if when == "after" else f"import helpers\n{DEFINITIONS}"
    done = python(write_script(tmp_path, source), start_method)
    assert done.stderr == ""
    assert done.stdout == DEFINED
    assert done.returncode == 0


WITHOUT_A_FILE = """
import sys
from pairpool import Pool

class Named:
    def __init__(self, x):
        self.x = x

def square(x):
    return Named(x * x)

with Pool(2, start_method=sys.argv[1]) as pool:
    found = pool.map(square, range(5))
    print([one.x for one in found], {type(one) for one in found} == {Named})
    print(pool.map(lambda x: x + 1, range(5)))
    print([one.x for one in pool.imap(square, range(5))])
"""


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("way", ["-c", "stdin"])
def test_a_script_without_a_file(start_method: str, way: str) -> None:
    if way == "-c":
        done = python("-c", WITHOUT_A_FILE, start_method)
    else:
        done = python("-", start_method, stdin=WITHOUT_A_FILE)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[0, 1, 4, 9, 16] True", "[1, 2, 3, 4, 5]", "[0, 1, 4, 9, 16]"]
    assert done.returncode == 0


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_package_run_as_a_module(start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "stranger"
    package.mkdir()
    write_script(package, "def square(x):\n    return x * x\n", "__init__.py")
    write_script(
        package,
        """
        import sys
        from pairpool import Pool
        from . import square

        class Mine:
            pass

        def make(x):
            return Mine()

        if __name__ == "__main__":
            with Pool(2, start_method=sys.argv[1]) as pool:
                print(pool.map(square, range(3)), type(pool.apply(make, (1,))) is Mine)
        """,
        "__main__.py",
    )
    monkeypatch.chdir(tmp_path)
    done = python("-m", "stranger", start_method)
    assert done.stderr == ""
    assert done.stdout == "[0, 1, 4] True\n"


SHARED = """
import multiprocessing, sys
from pairpool import Pool

def initialize(lock, value, array, queue, event, connection):
    global shared
    shared = lock, value, array, queue, event, connection

def work(x):
    lock, value, array, queue, event, connection = shared
    event.wait()
    with lock:
        value.value += x
        array[x % 4] += 1
        connection.send(x)
    queue.put(x)
    return x

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn" if sys.argv[1] == "forkserver" else "fork")
    receiver, sender = context.Pipe(duplex=False)
    things = (context.Lock(), context.Value("q", 0), context.Array("i", 4), context.SimpleQueue(), context.Event(),
              sender)
    with Pool(2, initialize, things, start_method=sys.argv[1]) as pool:
        result = pool.map_async(work, range(40))
        print(result.ready())
        things[4].set()
        print(result.get(30) == list(range(40)))
        print(things[1].value, list(things[2]))
        print(sorted(things[3].get() for _ in range(40)) == list(range(40)))
        print(sorted(receiver.recv() for _ in range(40)) == list(range(40)))
"""


@pytest.mark.parametrize("start_method", START_METHODS)
def test_objects_of_multiprocessing_are_shared_through_the_initializer(start_method: str, tmp_path: Path) -> None:
    done = python(write_script(tmp_path, SHARED), start_method, timeout=20)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["False", "True", "780 [10, 10, 10, 10]", "True", "True"]
