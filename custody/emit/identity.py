"""Ids of events and of requests, and the name of the process that emits them.

- Ids of events are UUIDs of version 7 (RFC 9562). In a process each is greater than the one before it, also when the
  clock steps back or does not move.
- Ids of requests are made while a client waits, so they are nothing but random bits, drawn for many at once.
- A source is a process. A child of `fork` is another process, so it gets another source and, with it, its own numbers.
"""

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

from custody.errors import ConfigurationError

SOURCE_BYTES: Final = 255
"""The most bytes of a source: a writer reserves them in each event."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}", re.ASCII)
_COUNTER_BITS = 12
_HALF_COUNTER = 1 << (_COUNTER_BITS - 1)
_DRAWN = struct.Struct(">HQ")
"""Of an id: where the counter begins, and its random bits."""
_DRAWN_IDS = 256
_REQUEST_ID = struct.Struct("32s")
_DRAWN_REQUEST_IDS = 1_024


class _Ids:
    """What ids are made of: the last one's time and counter, and random numbers that no id has had yet.

    Time and counter are one number that only grows: 48 bits of milliseconds and 12 of a counter.
    """

    def __init__(self) -> None:
        # A signal's handler or a destructor that runs inside of `next` may make an id too: it must not wait for itself.
        self._lock = threading.RLock()
        self._last = 0
        self._drawn: Iterator[tuple[int, int]] = iter(())
        os.register_at_fork(after_in_child=self._begin_child)

    def _begin_child(self) -> None:
        # Another thread of the parent may have held the lock at the fork, and would never release it in the child. And
        # the parent uses the bytes that it has drawn.
        self._lock = threading.RLock()
        self._drawn = iter(())

    def next(self) -> tuple[int, int]:
        """Return the next number, and 62 random bits.

        The number has the time in it, or is the last one's successor where time did not pass.
        """
        milliseconds = time.time_ns() // 1_000_000
        with self._lock:
            start, random = next(self._drawn, None) or self._draw()
            # The counter begins in its lower half: 2,048 ids at least fit into a millisecond before the next is used.
            now = milliseconds << _COUNTER_BITS | start % _HALF_COUNTER
            self._last = now if milliseconds > self._last >> _COUNTER_BITS else self._last + 1
            return self._last, random & (1 << 62) - 1

    def _draw(self) -> tuple[int, int]:
        """Draw random numbers for many ids, and return the next one's.

        While the system is asked, other threads run: for each id, a request would wait for the writer's thread. The
        bytes become numbers one by one, so that no id waits for all of them.
        """
        self._drawn = _DRAWN.iter_unpack(os.urandom(_DRAWN.size * _DRAWN_IDS))
        return next(self._drawn)


_ids = _Ids()


def uuid7() -> str:
    """Return a new UUID of version 7 as text, greater than all that this process made before.

    62 bits are random, and drawn from the system, for a few ids at once; a forked process draws its own. So no two
    processes make the same id.
    """
    moment, random = _ids.next()
    # 48 bits of time, the version, 12 bits of counter; the variant, 62 random bits.
    first, second = f"{moment:015x}", f"{1 << 63 | random:016x}"
    return f"{first[:8]}-{first[8:12]}-7{first[12:]}-{second[:4]}-{second[4:]}"


_request_ids: Iterator[tuple[bytes]] = iter(())


def new_request_id() -> str:
    """Return a new id of a request: 128 random bits from the system, as 32 hexadecimal digits."""
    drawn = next(_request_ids, None)
    return (drawn or _draw_request_ids())[0].decode()


def _draw_request_ids() -> tuple[bytes]:
    """Draw ids for many requests, and return the next one's. Two threads may both draw: one's are not used then."""
    global _request_ids
    drawn = _REQUEST_ID.iter_unpack(os.urandom(16 * _DRAWN_REQUEST_IDS).hex().encode())
    _request_ids = drawn
    return next(drawn)


def _forget_request_ids() -> None:
    """Make a child of `fork` draw its own: the parent uses those that it has drawn."""
    global _request_ids
    _request_ids = iter(())


os.register_at_fork(after_in_child=_forget_request_ids)


@dataclass(frozen=True, slots=True, eq=False)
class _Process:
    """A process, and starts for its sources: when it loaded this module or was forked, in µs since 1970, and later."""

    pid: int
    starts: Iterator[int]


def _begin() -> None:
    """Note that this is a process of its own."""
    global _this_process
    _this_process = _Process(os.getpid(), count(time.time_ns() // 1_000))


_this_process = _Process(0, count())
_begin()
os.register_at_fork(after_in_child=_begin)


class Source:
    """The process that emits, as `service/instance/pid-start`.

    `start` is the time in µs since 1970 at which the process loaded this module, or was forked. It tells a process
    from an earlier one with the same pid. A process's second source starts a microsecond later, because each numbers
    its own events. After a fork the child's source is new.
    """

    __slots__ = ("_texts", "instance", "service")

    def __init__(self, service: str, instance: str | None = None) -> None:
        """Name a service, and the instance of it that this process is.

        Args:
            service: the application, such as `orders-api`.
            instance: one of several that run it; the host's name if not given.

        Raises:
            ConfigurationError: a name has other characters than letters, digits, `.`, `_`, `:` and `-`.
        """
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100].lstrip("._-") or "host"
        self.service = _check_name("service", service)
        self.instance = host if instance is None else _check_name("instance", instance)
        self._texts: dict[_Process, str] = {}

    def __str__(self) -> str:
        process = _this_process
        text = self._texts.get(process)
        if text is None:
            # Of threads that ask at once the first decides. A lock could be held at a fork, and never released.
            text = f"{self.service}/{self.instance}/{process.pid}-{next(process.starts)}"
            text = self._texts.setdefault(process, text)
        return text

    def __repr__(self) -> str:
        return f"Source({str(self)!r})"


def _check_name(kind: str, name: str) -> str:
    """Return a name that may be part of a source.

    Raises:
        ConfigurationError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"the {kind} of a source is 1 to 100 letters, digits and `._:-`, and begins with a letter or digit:"
            " choose such a name"
        )
    return name
