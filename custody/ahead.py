"""Verifies a log's statements ahead, in worker processes, where nothing is wrong with them.

A worker reads a piece of a thousand statements in a row, and steps a chain of its own over them, begun at the piece.
The verifier steps its own chain over the first one. A step depends on nothing but a chain's state and the bytes: so if
both chains are in the same state behind the first one, they are behind the last one too, and the verifier's chain goes
on from there. Where the states differ, or the worker met anything out of the ordinary, the verifier's chain steps over
the piece itself. What is found, and in which order, never depends on workers.

No secret leaves the verifier's process: a worker hands back what is to be checked by one. KMS is asked by the verifier
alone, so archives signed by its keys are not read ahead.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Self

from custody import layout
from custody.chain import Chain, Passage
from custody.errors import CustodyError, FormatError, KeyUnavailable, SignatureInvalid
from custody.findings import Finding, Findings
from custody.keys import Secret
from custody.kms import KmsKey
from custody.listing import Sequences
from custody.store import Store
from custody.trust import Trust, TrustedKey

_PIECE = 1024
"""Statements of a piece at most."""
_PIECE_LEAST = 3
"""A shorter one is not worth the way: the verifier steps over the first one in any case."""
_BYTES_LIMIT = 256 * 1024
"""Larger manifests are read by the verifier alone, so that no more than one at a time takes memory."""
_VALUE_BYTES = 32
"""Of an HMAC-SHA256."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a worker saw of statements in a row, all but the first.

    Attributes:
        passage: from where to where its chain went.
        unchecked: what it found, each with its row: signatures that nobody here has a key to check.
        secret: what is to be checked by a secret: key id, message, value of the signature.
        objects: sequences and keys of the objects that the statements name.
    """

    passage: Passage
    unchecked: Sequence[tuple[Finding, str | None]]
    secret: Sequence[tuple[str, bytes, bytes]]
    objects: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class _Task:
    """Statements `[first, end)` of a log."""

    log: layout.Log
    archive: str | None
    heartbeat: timedelta | None
    first: int
    end: int


class Ahead:
    """Hands pieces of logs to worker processes, a few at a time."""

    def __init__(self, store: Store, trust: Trust, now: datetime, workers: int) -> None:
        """Begin; nothing is read ahead until `start`.

        Args:
            store: where the archive lies.
            trust: the keys; secrets stay here.
            now: the time, aware.
            workers: how many processes; with 0 of them nothing is read ahead.
        """
        self._trust = trust
        self._bound = 2 * workers + 1
        self._judged = any(judged.finding == "unchecked-signature" for judged in trust.accepted)
        self._processes: ProcessPoolExecutor | None = None
        self._begun: _Worker | None = None
        self._workers = workers
        if workers and not any(isinstance(key.material, KmsKey) for key in trust.keys.values()):
            secret = frozenset(id_ for id_, key in trust.keys.items() if isinstance(key.material, Secret))
            public = {id_: replace(key, material=None) if id_ in secret else key for id_, key in trust.keys.items()}
            self._begun = _Worker(store, public, secret, now)

    def start(self) -> None:
        """Start the processes, and do not wait for them."""
        if self._begun is None or self._processes is not None:
            return
        # Not forked from this process: it may have threads.
        context = multiprocessing.get_context("forkserver")
        self._processes = ProcessPoolExecutor(
            self._workers, mp_context=context, initializer=_begin, initargs=(self._begun,)
        )
        try:
            for _ in range(self._workers):
                self._processes.submit(_ready)
        except BrokenProcessPool:
            self._processes = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._processes:
            self._processes.shutdown(cancel_futures=True)

    def pieces(
        self, chain: Chain, listed: Sequences, first: int, end: int | None
    ) -> Iterator[tuple[int, int, "Future[Piece | None]"]]:
        """Yield pieces `[first, end)` of what is listed of a log in order, each with what a worker makes of it."""
        cut = _pieces(listed, first, end, chain.remembered)
        ahead: deque[tuple[int, int, Future[Piece | None]]] = deque()
        while self._processes is not None:
            for begin, stop in islice(cut, self._bound - len(ahead)):
                task = _Task(chain.log, chain.archive, chain.heartbeat, begin, stop)
                try:
                    ahead.append((begin, stop, self._processes.submit(_verify, task)))
                except BrokenProcessPool:
                    self._processes = None
                    break
            if not ahead:
                return
            yield ahead.popleft()

    def join(self, chain: Chain, future: "Future[Piece | None]") -> Piece | None:
        """Take a chain that stands behind a piece's first statement to the piece's end, if that is where steps lead.

        Returns:
            What the piece's statements name, None if the chain must step over them itself.
        """
        try:
            piece = future.result()
        except BrokenProcessPool:
            # A worker was killed, or could not be started: the rest is done in this process.
            self._processes = None
            return None
        if piece is None or (piece.unchecked and self._judged) or not chain.passes(piece.passage):
            return None
        try:
            for id_, message, value in piece.secret:
                self._trust.keys[id_].verify(message, value)
        except (SignatureInvalid, KeyUnavailable):
            return None
        for one, row in piece.unchecked:
            chain.findings.add(one, row=row)
        chain.pass_on(piece.passage)
        return piece


def _pieces(
    listed: Sequences, first: int, end: int | None, remembered: Mapping[int, object]
) -> Iterator[tuple[int, int]]:
    """Cut runs of what is listed into pieces. A size that somebody remembers begins one: that is the verifier's own."""
    begin = stop = -1
    sequence = first
    while (following := listed.next(sequence)) is not None and (end is None or following < end):
        if following != stop or stop - begin >= _PIECE or following in remembered:
            if stop - begin >= _PIECE_LEAST:
                yield begin, stop
            begin = following
        stop = sequence = following + 1
    if stop - begin >= _PIECE_LEAST:
        yield begin, stop


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a worker process is given: the store as its URL and options, keys without their secrets."""

    store: Store
    keys: Mapping[str, TrustedKey]
    secret: frozenset[str]
    """Keys whose secrets the verifier has."""
    now: datetime


_worker: _Worker | None = None


def _begin(worker: _Worker) -> None:
    global _worker
    _worker = worker


def _ready() -> None:
    """Do nothing, in a worker that has come up."""


def _verify(task: _Task) -> Piece | None:
    """Step over a piece, in a worker; None if anything is out of the ordinary."""
    if _worker is None:
        raise FormatError("this process was not begun as a worker")
    secret: list[tuple[str, bytes, bytes]] = []
    keys = _worker.secret

    def check(key: TrustedKey, message: bytes, value: bytes) -> None:
        if key.id not in keys:
            key.verify(message, value)
        elif len(value) == _VALUE_BYTES:
            secret.append((key.id, message, value))
        else:
            raise SignatureInvalid(f"the signature of key {key.id!r} is not over this statement")

    chain = Chain(
        task.log,
        task.archive,
        Trust(keys=_worker.keys),
        _worker.now,
        Findings(),
        heartbeat=task.heartbeat,
        begin=task.first,
        check=check,
    )
    objects: list[tuple[int, str]] = []
    try:
        chain.step(task.first, _read(task.log, task.first))
        # The verifier judges the first one. The pass begins behind it.
        chain.findings = Findings()
        secret.clear()
        start = chain.depart()
        if start is None:
            return None
        number: int | None = None
        for sequence in range(task.first + 1, task.end):
            work = chain.step(sequence, _read(task.log, sequence))
            if work is None:
                continue
            if number is None and work.batches:
                number = work.batches[0].number
            objects += [(sequence, ref.key) for ref in (work.segment, work.quarantine) if ref]
    except CustodyError:
        return None
    passage = chain.arrive(start, number)
    unchecked = list(chain.findings.rows())
    if passage is None or chain.findings.dropped or any(one.finding != "unchecked-signature" for one, _ in unchecked):
        return None
    return Piece(passage, unchecked, secret, objects)


def _read(log: layout.Log, sequence: int) -> bytes:
    if _worker is None:
        raise FormatError("this process was not begun as a worker")
    return _worker.store.read(layout.manifest_key(log, sequence), limit=_BYTES_LIMIT)
