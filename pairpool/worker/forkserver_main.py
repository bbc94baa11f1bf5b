"""The main program of a fresh zygote, for `start_method="forkserver"`."""

from __future__ import annotations

import importlib
import os
import pickle
import struct
import sys

from pairpool.linux import children, cpython_private, descriptors
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import PreparationPacket
from pairpool.transport.spawning import Body
from pairpool.transport.wire import ProtocolError
from pairpool.worker.zygote import serve

__all__ = ["run_fresh_zygote"]


def run_fresh_zygote(control_fd: int, master: int, factory: str, fds: list[int]) -> None:
    """Import the program's main module, then serve as a zygote. This function never returns.

    Args:
        control_fd: the zygote's end of the control pair.
        master: the pid of the master.
        factory: importable name `module:function` of what makes the workers' body from `fds` and the setup.
        fds: descriptors that the body needs.
    """
    from multiprocessing import spawn

    children.ignore_interrupts()
    control = Channel.from_fd(control_fd)
    for fd in (control_fd, *fds):
        os.set_inheritable(fd, False)
    try:
        pidfd = descriptors.above_standard(os.pidfd_open(master))
        message = _receive_setup(control)
    except (ProcessLookupError, Lost):
        os._exit(1)  # the master is gone, or needs no zygote any more
    size = struct.unpack_from("<Q", message)[0]
    with cpython_private.importing_main():
        spawn.prepare(pickle.loads(message[8 : 8 + size]))
    cpython_private.name_main_process()
    module, _, function = factory.partition(":")
    body: Body = getattr(importlib.import_module(module), function)(fds, message[8 + size :])
    children.reset_signals()  # the program's main module may have changed them
    main = sys.modules.get("__mp_main__")
    names = "" if main is None else " ".join(name for name, value in vars(main).items() if callable(value))
    os._exit(serve(control, body, pidfd, names.encode()))


def _receive_setup(control: Channel) -> bytes:
    packet, _payload, _fds = control.receive()
    if not isinstance(packet, PreparationPacket):
        raise ProtocolError(f"the master has sent {packet} to a fresh zygote")
    return b"".join([bytes(control.receive()[1]) for _ in range(packet.parts)])
