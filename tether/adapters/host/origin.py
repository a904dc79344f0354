"""The origin of the helper processes: it has imported what they need, and forks one for each verb.

To import os-brick takes longer than what most verbs do, so it is done once. The origin does nothing else: it
has one thread, no connection and no secret, so that a fork of it is as good as a new process.

A helper is forked twice over, the process between ending at once: so its parent is tether, the subreaper of
all that it starts. Tether waits for it as for a child of its own making, and its id names no other process
until then. Nor does it end with the origin.

Run as ``python -m tether.adapters.host.origin`` in a session of its own, by :mod:`tether.adapters.host.process`.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
import sys
from contextlib import suppress
from io import FileIO

from tether.adapters.host import brick_calls, helper

#: The orders. A fork brings three streams for the helper: standard input, output and error.
LOAD, FORK = b"load", b"fork"
STREAMS = 3
#: The origin's own files: the socket of the orders, and tether's process (a pidfd), readable once it has ended.
ORDERS, TETHER = 0, 3


def serve(orders: socket.socket) -> None:
    """Carry out orders until tether ends; return in each helper, with its streams in place."""
    waiting = select.poll()
    waiting.register(orders, select.POLLIN)
    waiting.register(TETHER, select.POLLIN)
    while True:
        if TETHER in dict(waiting.poll()):
            raise SystemExit
        order, streams, _, _ = socket.recv_fds(orders, len(FORK), STREAMS, socket.MSG_CMSG_CLOEXEC)
        if order == LOAD:
            # What is missing (oslo.service says ValueError then) is told by the verb that needs it.
            with suppress(ImportError, ValueError):
                brick_calls.load()
            gc.freeze()
        elif order != FORK:
            raise SystemExit
        elif _fork():
            os.setsid()
            orders.detach()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return
        for stream in streams:
            os.close(stream)


def _fork() -> bool:
    """Return True in a new process whose parent is tether, False in the origin."""
    sys.stdout.flush()
    if between := os.fork():
        os.waitpid(between, 0)
        return False
    ends = os.pidfd_open(os.getpid())
    if os.fork():
        os._exit(0)
    # Readable once this process has gone over to tether.
    select.select([ends], [], [])
    os.close(ends)
    return True


if __name__ == "__main__":
    # What tether had open and did not mark as its own.
    os.closerange(TETHER + 1, os.sysconf("SC_OPEN_MAX"))
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    serve(socket.socket(fileno=ORDERS))
    # From here on a helper. os-brick's commands may write to standard output: the answer goes through a copy of it.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        channel.write(f"{os.getpid()}\n")
        channel.flush()
        helper.main(FileIO(0, closefd=False), channel, TETHER)
    # All is said. To take down an interpreter with os-brick in it takes longer than what most verbs do.
    sys.stdout.flush()
    os._exit(0)
