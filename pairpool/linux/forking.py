"""Fork without CPython's warning, and distinguish a process from its forked copies."""

from __future__ import annotations

import os
import sys

__all__ = ["Identity", "fork", "require_owner"]


def fork() -> int:
    """Fork, without the DeprecationWarning of CPython 3.12 for programs with threads.

    The warning is about children that continue the program. These children run only pairpool's own loop. A program with
    threads that hold locks can choose `start_method="forkserver"`.
    """
    if sys.version_info >= (3, 12) and len(os.listdir("/proc/self/task")) > 1:
        import warnings

        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"pairpool\.linux\.forking$")
    return os.fork()


class Identity:
    """Remembers the process that made an object, to recognize copies in forked processes."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()

    def is_here(self) -> bool:
        """Tell whether this process made the object."""
        return os.getpid() == self.pid


def require_owner(identity: Identity) -> None:
    """Raise `PoolInherited` in a process that was forked from the pool's owner."""
    if not identity.is_here():
        from pairpool.errors import PoolInherited

        raise PoolInherited(
            f"this pool belongs to process {identity.pid}; its copy in the forked process {os.getpid()} is inert: "
            "open a pool of its own here"
        )
