"""Fork without CPython's warning, and tell a process from its forked copies."""

from __future__ import annotations

import os
import sys

__all__ = ["Identity", "fork", "require_owner"]


def fork() -> int:
    """`os.fork`, without the DeprecationWarning of CPython 3.12 for programs with threads.

    The warning is for forks that run the program on; ours runs only pairpool's own loop in the child, and whoever
    has threads that hold locks of their own chooses `start_method="forkserver"`.
    """
    if sys.version_info >= (3, 12) and len(os.listdir("/proc/self/task")) > 1:
        import warnings

        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"pairpool\.linux\.forking$")
    return os.fork()


class Identity:
    """The process that made an object, to tell its forked copies from it."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()

    def is_here(self) -> bool:
        return os.getpid() == self.pid


def require_owner(identity: Identity) -> None:
    """Raise `PoolInherited` in a process that was forked off the pool's owner."""
    if not identity.is_here():
        from pairpool.errors import PoolInherited

        raise PoolInherited(
            f"this pool belongs to process {identity.pid}; its copy in the forked process {os.getpid()} is inert: "
            "open a pool of its own here"
        )
