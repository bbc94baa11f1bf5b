"""What `Executor` raises in place of `BrokenProcessPool`, in a form that `except BrokenProcessPool` catches.

Imported only when there is one to raise: `concurrent.futures.process` takes longer to import than a pool to open.
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from pairpool import errors

__all__ = ["InitializerFailed", "WorkerDied", "as_broken_process_pool"]


class WorkerDied(errors.WorkerDied, BrokenProcessPool):
    """`pairpool.WorkerDied` that is a `concurrent.futures.process.BrokenProcessPool`, too."""


class InitializerFailed(errors.InitializerFailed, BrokenProcessPool):
    """`pairpool.InitializerFailed` that is a `concurrent.futures.process.BrokenProcessPool`, too."""


def as_broken_process_pool(error: BaseException) -> BaseException:
    """The same error, as one of the classes above if there is one for it."""
    for kind in (WorkerDied, InitializerFailed):
        if type(error) is kind.__bases__[0]:
            broken = kind(*error.args)
            broken.__dict__.update(error.__dict__)
            broken.__cause__ = error.__cause__
            return broken
    return error
