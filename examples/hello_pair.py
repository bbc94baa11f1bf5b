"""The origin of pairpool: a pair of sockets, a fork, and one message in each direction.

    python examples/hello_pair.py             a zygote forks the child, and ignores SIGCHLD
    python examples/hello_pair.py --direct    this process forks the child, and ignores SIGCHLD meanwhile

The child prints `I am Father`, and the parent prints `I am Child`. There is no pool, only the parts of a pool. A
`Channel` is one end of a SEQPACKET pair, on which a packet arrives whole or not at all. A zygote forks the children.
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
    """Print the parent's message and answer it. Return the exit status. Runs in the child."""
    _packet, words, _descriptors = channel.receive()
    # flush before the answer leaves, because otherwise the parent's line could come first
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
        # A pool keeps this second handle on the child's end, to read back the packets that the child has not read.
        # Here it is closed. So the child's death is an end of file, and `receive` cannot wait for ever.
        forked.far.close()
        try:
            forked.near.send(TextPacket(), b"I am Father")
            print(bytes(forked.near.receive()[1]).decode(), flush=True)
        except Lost:
            print("the child ended without a word", file=sys.stderr)
            return 1
        finally:
            forked.near.close()
            # No waitpid: SIGCHLD is ignored, so the kernel reaps the child. The pidfd becomes readable then.
            pidfds.wait_ended(forked.pidfd.fileno(), None)
            forked.pidfd.close()
    finally:
        zygote.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
