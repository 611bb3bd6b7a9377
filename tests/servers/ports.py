"""Ports of the loopback interface for servers under test."""

import contextlib
import random
import socket

_BELOW_EPHEMERAL = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on.

    They lie below those that the kernel gives to outgoing connections, so that a server that was killed finds its port
    free when it is started again.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.SystemRandom().sample(_BELOW_EPHEMERAL, 1000):
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"no {count} free ports between {_BELOW_EPHEMERAL.start} and {_BELOW_EPHEMERAL.stop}")
