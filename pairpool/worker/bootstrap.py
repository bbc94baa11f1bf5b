"""What a worker has from its program the way multiprocessing's workers have it.

Scripts ask `multiprocessing.current_process()` for a name, hand locks and queues to initializers, and rely on their
main module being imported (but not run) in a fresh interpreter. The standard library does that work here; this
module puts pairpool's processes in the places where it looks for its own.
"""

from __future__ import annotations

import atexit
import importlib
import io
import itertools
import os
import pickle
import struct
import sys
from typing import TYPE_CHECKING, Any

from pairpool.linux import descriptors
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import PreparationPacket, TextPacket
from pairpool.transport.wire import INLINE_LIMIT, ProtocolError

if TYPE_CHECKING:
    from pairpool.worker.zygote import Body

__all__ = [
    "become_pool_worker",
    "finish_pool_worker",
    "interpreter_flags",
    "pickle_for_child",
    "remember_inherited",
    "run_fresh_zygote",
    "send_preparation",
]


ATEXIT_RUNS = sys.version_info >= (3, 13)
"""From 3.13 on, multiprocessing's children run their own exit functions, though never their parent's."""


def interpreter_flags() -> list[str]:
    """The command line options that make a fresh interpreter behave like this one."""
    from multiprocessing import util

    flags: list[str] = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


def become_pool_worker(serial: int, master: int, *, daemon: bool) -> None:
    """Make `multiprocessing.current_process()` tell what it would in one of multiprocessing's own pool workers.

    Only if multiprocessing was loaded by the program: importing it would cost every worker what few need.

    Args:
        daemon: whether tasks are refused a `multiprocessing.Process`, as they are there.
    """
    if ATEXIT_RUNS:
        atexit._clear()
    pools: Any = sys.modules.get("concurrent.futures.thread")
    if pools is not None:
        pools._threads_queues.clear()  # those threads are the program's; one of them may be what was forked here
    if "multiprocessing.context" not in sys.modules:
        return
    import multiprocessing.context
    import multiprocessing.process as process
    import multiprocessing.util as util

    state: Any = process
    before = state._current_process
    me: Any = multiprocessing.context.ForkProcess(daemon=daemon)
    me._identity = (*before._identity, serial)
    me._name = "ForkPoolWorker-" + ":".join(map(str, me._identity))
    me._parent_pid = master
    state._current_process = me
    try:
        state._parent_process = state._ParentProcess(before.name, master, os.pidfd_open(master))
    except ProcessLookupError:
        os._exit(1)  # the master is gone, and so is all reason to work
    state._process_counter = itertools.count(1)
    state._children = set()
    finalizers: Any = util
    finalizers._finalizer_registry.clear()
    finalizers._run_after_forkers()


def finish_pool_worker() -> None:
    """Run what multiprocessing's objects registered for the end of the process, and wait for non-daemon threads."""
    import threading

    shutdown: Any = threading
    shutdown._shutdown()
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()
    if ATEXIT_RUNS:
        atexit._run_exitfuncs()


class _Spawning:
    """What multiprocessing asks, while it pickles an object for a child, to pass a descriptor along."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(fd)
        return len(self.fds) - 1

    def DupFd(self, place: int) -> Any:  # the name that multiprocessing looks for
        return _InheritedFd(place)


_inherited: list[int] = []


class _InheritedFd:
    """A descriptor by its place in the list of those that the fresh zygote was started with."""

    def __init__(self, place: int) -> None:
        self.place = place

    def detach(self) -> int:
        return os.dup(_inherited[self.place])


def remember_inherited(fds: list[int]) -> None:
    """Tell where the descriptors are that the initializer's arguments need, in the order of `pickle_for_child`."""
    _inherited[:] = fds


def pickle_for_child(thing: Any) -> tuple[bytes, list[int]]:
    """Pickle what goes to a fresh interpreter as it starts; locks, queues and pipes of multiprocessing are allowed.

    Returns the pickle and the descriptors that have to be passed to the child. Functions of `__main__` go by name.
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


def send_preparation(control: Channel, setup: bytes) -> None:
    """Send a fresh zygote what multiprocessing tells its own children, and the worker's setup."""
    import multiprocessing
    from multiprocessing.spawn import get_preparation_data

    data: dict[str, Any] = dict(get_preparation_data("pairpool-zygote"))
    if data.get("start_method") not in multiprocessing.get_all_start_methods():
        data.pop("start_method", None)  # in a worker of loky it is one that only loky knows
    if not os.path.exists(data.get("init_main_from_path") or os.devnull):
        del data["init_main_from_path"]  # a program that came from standard input cannot be imported
    # the children of a process that runs a script by name call its module __mp_main__, and so must this process
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
    message, _no_descriptors = pickle_for_child(data)
    message = struct.pack("<Q", len(message)) + message + setup
    control.send(PreparationPacket(-(-len(message) // INLINE_LIMIT)))
    for at in range(0, len(message), INLINE_LIMIT):
        control.send(TextPacket(), message[at : at + INLINE_LIMIT])


def run_fresh_zygote(control_fd: int, master: int, factory: str, fds: list[int]) -> None:
    """The main program of a fresh zygote: import the program's main module, then serve. Never returns."""
    import multiprocessing.process as process
    import multiprocessing.spawn as spawn

    from pairpool.worker.zygote import default_signals, ignore_interrupts, serve

    state: Any = process
    ignore_interrupts()
    control = Channel.from_fd(control_fd)
    for fd in (control_fd, *fds):
        os.set_inheritable(fd, False)
    try:
        pidfd = descriptors.above_standard(os.pidfd_open(master))
        packet, _payload, _fds = control.receive()
        if not isinstance(packet, PreparationPacket):
            raise ProtocolError(f"the master has sent {packet} to a fresh zygote")
        parts = [bytes(control.receive()[1]) for _ in range(packet.parts)]
    except (ProcessLookupError, Lost):
        os._exit(1)  # the master is gone, or wants no zygote any more: there is no reason to start
    message = b"".join(parts)
    size = struct.unpack_from("<Q", message)[0]
    state.current_process()._inheriting = True
    try:
        spawn.prepare(pickle.loads(message[8 : 8 + size]))
    finally:
        del state.current_process()._inheriting
    state._current_process._name = "MainProcess"
    module, _, function = factory.partition(":")
    body: Body = getattr(importlib.import_module(module), function)(fds, message[8 + size :])
    default_signals()  # which the program's main module may have changed
    main = sys.modules.get("__mp_main__")
    names = "" if main is None else " ".join(name for name, value in vars(main).items() if callable(value))
    os._exit(serve(control, body, pidfd, names.encode()))
