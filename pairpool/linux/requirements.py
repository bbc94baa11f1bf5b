"""Check that the platform and the limits of this process suffice for pairpool."""

from __future__ import annotations

import errno
import os
import resource
import sys

__all__ = ["NEEDS", "require_descriptors", "require_linux"]

NEEDS = "pairpool needs Linux 5.4 or later with pidfd_open and memfd_create"


def require_linux() -> None:
    """Raise `OSError` with one sentence if this platform lacks something that pairpool needs."""
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, f"{NEEDS}; this platform is {sys.platform}")
    if not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, f"{NEEDS}; this Python was built without them")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            raise OSError(error.errno, f"{NEEDS}; this kernel refuses pidfd_open ({error.strerror})") from None
        raise


def require_descriptors(count: int, purpose: str) -> None:
    """Raise `OSError` (EMFILE) that names the limit if the process may not open `count` more descriptors."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    if used + count > soft:
        raise OSError(
            errno.EMFILE,
            f"{purpose} needs about {count} descriptors, but RLIMIT_NOFILE allows {soft} and {used} are open; "
            f"raise it (ulimit -n {used + count + 64}) or ask for fewer processes",
        )
