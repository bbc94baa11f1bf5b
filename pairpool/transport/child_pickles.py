"""Pickles for an interpreter that starts: locks, queues and pipes of multiprocessing can be in them.

    caller: pickle_for_child ─► pickle and descriptors ─► fresh zygote: remember_inherited, then pickle.loads

multiprocessing pickles a descriptor only while it spawns a process of its own. Then it asks an object that it calls the
"spawning popen" to pass the descriptor along. `_Spawning` takes the place of that object.
"""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

__all__ = ["pickle_for_child", "remember_inherited"]


class _Spawning:
    """Takes the descriptors that multiprocessing passes along while it pickles an object for a child."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(fd)
        return len(self.fds) - 1

    def DupFd(self, place: int) -> Any:  # multiprocessing looks for this name
        return _InheritedFd(place)


_inherited: list[int] = []


class _InheritedFd:
    """A descriptor, by its place in the list of the descriptors that the fresh zygote was started with."""

    def __init__(self, place: int) -> None:
        self.place = place

    def detach(self) -> int:
        return os.dup(_inherited[self.place])


def remember_inherited(fds: list[int]) -> None:
    """Note the descriptors that the pickles name, in the order of `pickle_for_child`."""
    _inherited[:] = fds


def pickle_for_child(thing: Any) -> tuple[bytes, list[int]]:
    """Return the pickle of an object, and the descriptors that the child must inherit.

    Functions of `__main__` travel by name.
    """
    from multiprocessing import context
    from multiprocessing.reduction import ForkingPickler

    spawning = _Spawning()
    file = io.BytesIO()
    hooks: Any = context
    hooks.set_spawning_popen(spawning)
    try:
        ForkingPickler(file, pickle.HIGHEST_PROTOCOL).dump(thing)
    finally:
        hooks.set_spawning_popen(None)
    return file.getvalue(), spawning.fds
