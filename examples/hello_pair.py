"""The program that pairpool grew out of: a pair of sockets, a fork, and a word each way.

    python examples/hello_pair.py             the child is forked by a zygote, which ignores SIGCHLD
    python examples/hello_pair.py --direct    the child is forked by this process, which ignores SIGCHLD meanwhile

It prints `I am Father` (the child does) and `I am Child` (the parent does). No pool is involved, only what a pool is
made of: a `Channel` is one end of a SEQPACKET pair, on which a packet arrives whole or not at all; a zygote is where
children come from.
"""

from __future__ import annotations

import argparse
import sys

from pairpool.linux import pidfds
from pairpool.master.direct_zygote import DirectZygote
from pairpool.master.zygotes import ForkedZygote, Zygote
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import TextPacket
from pairpool.transport.spawning import Spawned
from pairpool.worker import zygote as zygote_process


def child(channel: Channel, _slot: int, _serial: int) -> int:
    """What the child runs; its exit status."""
    _packet, words, _descriptors = channel.receive()
    # flushed before the answer leaves, or the parent's line could come first
    print(bytes(words).decode(), flush=True)
    channel.send(TextPacket(), b"I am Child")
    return 0


def have_child(zygote: Zygote) -> Spawned:
    """Ask the zygote for a child, and wait for it."""
    zygote.request(0)
    answer = None
    while answer is None:
        zygote.wait(None)
        answer = zygote.receive()
    if isinstance(answer, Spawned):
        return answer
    raise answer.error


def main() -> int:
    parser = argparse.ArgumentParser(description="A parent and a child say hello over a pair of sockets.")
    parser.add_argument("--direct", action="store_true", help="fork the child here, without a zygote")
    zygote: Zygote = DirectZygote(child) if parser.parse_args().direct else ForkedZygote(zygote_process.serve, child)
    try:
        forked = have_child(zygote)
        # A pool keeps this second handle on the child's end, to take back what the child has not read. Here it is
        # closed: then the child's death is an end of file, and `receive` cannot wait for ever.
        forked.far.close()
        try:
            forked.near.send(TextPacket(), b"I am Father")
            print(bytes(forked.near.receive()[1]).decode(), flush=True)
        except Lost:
            print("the child ended without a word", file=sys.stderr)
            return 1
        finally:
            forked.near.close()
            # No waitpid: where SIGCHLD is ignored the kernel reaps the child, and the pidfd tells when.
            pidfds.wait_ended(forked.pidfd.fileno(), None)
            forked.pidfd.close()
    finally:
        zygote.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
