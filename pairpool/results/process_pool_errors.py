"""The classes that `Executor` raises in place of `BrokenProcessPool`; `except BrokenProcessPool` catches them.

This module is imported when the first such error is raised, because the import of `concurrent.futures.process` takes
longer than a pool takes to open.

The classes are made by a call of `type`. Each has the name of the class of `pairpool.errors` that it derives from, so
that users see that name in tracebacks. Pickle finds them by that name in this module.
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pairpool import errors

__all__ = ["as_broken_process_pool"]


def _derive(base: type[BaseException]) -> Any:
    """Return a subclass of `base` and of `BrokenProcessPool`, with the name of `base`."""
    doc = f"`pairpool.{base.__name__}` that is also a `concurrent.futures.process.BrokenProcessPool`."
    return type(base.__name__, (base, BrokenProcessPool), {"__doc__": doc, "__module__": __name__})


WorkerDied = _derive(errors.WorkerDied)
InitializerFailed = _derive(errors.InitializerFailed)


def as_broken_process_pool(error: BaseException) -> BaseException:
    """Return the same error as an instance of one of the classes above, if one of them derives from its class."""
    for kind in (WorkerDied, InitializerFailed):
        if type(error) is kind.__bases__[0]:
            broken: BaseException = kind(*error.args)
            broken.__dict__.update(error.__dict__)
            return errors.with_cause(broken, error.__cause__)
    return error
