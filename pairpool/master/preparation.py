"""Send a fresh zygote what it needs to become like the program: multiprocessing's preparation data, and a setup.

PREPARATION, with the number of parts ─► TEXT ─► TEXT ...    together: length, pickled preparation data, setup
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any

from pairpool.transport.channel import Channel
from pairpool.transport.child_pickles import pickle_for_child
from pairpool.transport.protocol import PreparationPacket, TextPacket
from pairpool.transport.wire import INLINE_LIMIT

__all__ = ["send_preparation"]


def send_preparation(control: Channel, setup: bytes) -> None:
    """Send what multiprocessing tells its own children, and the workers' setup."""
    import multiprocessing
    from multiprocessing.spawn import get_preparation_data

    data: dict[str, Any] = dict(get_preparation_data("pairpool-zygote"))
    if data.get("start_method") not in multiprocessing.get_all_start_methods():
        data.pop("start_method", None)  # in a worker of loky it is a method that only loky knows
    if not os.path.exists(data.get("init_main_from_path") or os.devnull):
        del data["init_main_from_path"]  # a program that came from standard input cannot be imported
    # The children of a process that runs a script call its module __mp_main__, and so must this process.
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
    message, _no_descriptors = pickle_for_child(data)
    message = struct.pack("<Q", len(message)) + message + setup
    control.send(PreparationPacket(-(-len(message) // INLINE_LIMIT)))
    for at in range(0, len(message), INLINE_LIMIT):
        control.send(TextPacket(), message[at : at + INLINE_LIMIT])
