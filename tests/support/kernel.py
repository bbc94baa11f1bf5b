"""The release of the running kernel, and what depends on it."""

from __future__ import annotations

import os
import re

__all__ = ["KERNEL_RELEASE", "KERNEL_TELLS_STATUS"]

KERNEL_RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
"""Major and minor number."""

KERNEL_TELLS_STATUS = KERNEL_RELEASE >= (6, 15)
"""Whether the kernel keeps the exit status of a process that has no parent waiting for it."""
