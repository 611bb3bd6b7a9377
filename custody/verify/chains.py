"""Verifies the chains of several logs at once, in processes, where no object is read.

A worker process follows a log as this one would (`reading.follow`), and sends back what it found. Its rules:

1. It never gets a secret. A signature by a key whose secret is here counts as good there, and is sent here to be
   checked.
2. A log's result and its names count only if each of these signatures is good. Otherwise this process verifies that
   log from the start, and drops what the worker sent. So the result is always that of one process alone.
3. This process also verifies each log that needs more than its own manifests and known heads: one with other epochs, or
   one that ends in a gap. And it verifies what was left by a worker that ended.
4. Memory is bounded: signatures and names come in portions, while the worker goes on. Names wait in a file.
"""

import contextlib
import logging
import multiprocessing
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from tempfile import SpooledTemporaryFile
from typing import Any, NoReturn, Self

from custody.findings import Accepted, Findings
from custody.format import layout
from custody.format.envelope import Algorithm
from custody.keys.kms import KmsKey
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey
from custody.store.protocol import Store
from custody.tlog.head import Head, KnownHead
from custody.tlog.signatures import are_good
from custody.verify.accounting import LogAccount
from custody.verify.archive_file import Promises
from custody.verify.listing import Sequences
from custody.verify.names import DIGEST_BYTES, Names
from custody.verify.protection import UNPROTECTED, Locks
from custody.verify.reading import Hands, Reader, follow
from custody.verify.scope import Part, Span

logger = logging.getLogger(__name__)

LEAST_MANIFESTS = 20_000
"""Below this many manifests no process is started: that would take longer than it saves."""
_PORTION = 2000
"""Signatures, or names, that are sent at a time."""
_NAMES_IN_MEMORY = 1_048_576
"""Bytes of a log's names that wait in memory; more wait in a file."""
_END_SECONDS = 1.0
"""How long a worker that is no longer needed may take to notice it."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A log to follow.

    Attributes:
        log: the log.
        heads: its known heads.
        listed: its manifests that were listed.
        promises: what is promised about it.
        onward: whether to continue after the last one listed.
    """

    log: layout.Log
    heads: Sequence[KnownHead]
    listed: Sequences
    promises: Promises
    onward: bool


@dataclass(frozen=True, slots=True)
class Followed:
    """What a worker process found of a log: the results of its `LogAccount`, and findings."""

    results: dict[str, Any]
    findings: Findings


@dataclass(frozen=True, slots=True)
class Given:
    """What each worker process gets at its start. It has no secret.

    Attributes:
        store: the archive, which is opened again.
        archive: its id.
        keys: the trusted keys, without secrets.
        secret: ids of those whose secret is not given.
        now: the verifier's time.
        accepted: the accepted findings.
        part: decides which statements are counted as outside.
        naming: the key of the digests of names.
    """

    store: Store
    archive: str
    keys: dict[str, TrustedKey]
    secret: frozenset[str]
    now: datetime
    accepted: tuple[Accepted, ...]
    part: Part
    naming: bytes


def can_follow(trust: Trust) -> bool:
    """Return whether worker processes can follow logs with these keys.

    An ended key needs proofs from manifests that are read again, and KMS is called from one process only.
    """
    return all(key.until is None and not isinstance(key.material, KmsKey) for key in trust.keys.values())


def alone(logs: Collection[layout.Log]) -> list[layout.Log]:
    """Return the logs whose partition has no other epoch, in order."""
    epochs = Counter((log.topic, log.partition) for log in logs)
    return sorted(log for log in logs if epochs[log.topic, log.partition] == 1)


class Chains:
    """Worker processes that follow logs."""

    def __init__(self, store: Store, trust: Trust, archive: str, now: datetime, part: Part, names: Names) -> None:
        """Prepare. No process is started yet.

        Args:
            store: the archive.
            trust: keys and accepted findings.
            archive: the archive's id.
            now: the time, with its zone.
            part: decides which statements are counted as outside.
            names: gets the names in statements.
        """
        secret = {id_ for id_, key in trust.keys.items() if isinstance(key.material, Secret)}
        keys = {id_: replace(key, material=None) if id_ in secret else key for id_, key in trust.keys.items()}
        self._trust, self._names = trust, names
        self._given = Given(store, archive, keys, frozenset(secret), now, trust.accepted, part, names.key)
        self._workers: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._workers:
            # A worker ends when it can neither receive nor send.
            connection.close()
        for process in self._workers.values():
            process.join(_END_SECONDS)
            if process.is_alive():
                # It is in the middle of a long log, of which it has nothing to send.
                process.terminate()
                process.join()

    def follow(self, chains: Iterable[Chain], workers: int) -> Iterator[tuple[Chain, Followed | None]]:
        """Yield each log with what was found; with None, if this process has to verify it.

        Args:
            chains: the logs. The next one is taken when a worker is free.
            workers: how many processes.
        """
        waiting = iter(chains)
        busy: dict[Connection, _Pending] = {}
        free = [connection for _ in range(workers) if (connection := self._start()) is not None]
        while True:
            while free and (chain := next(waiting, None)) is not None:
                connection = free.pop()
                busy[connection] = _Pending(chain, self._trust)
                with contextlib.suppress(OSError):
                    # If it has ended, that is noticed when it is read.
                    connection.send(chain)
            if not busy:
                break
            ready = wait(list(busy))
            for connection in [connection for connection in busy if connection in ready]:
                pending = busy[connection]
                try:
                    received = connection.recv()
                except (OSError, EOFError):
                    del busy[connection]
                    pending.names.close()
                    yield pending.chain, None
                    continue
                if isinstance(received, (_Signed, _Named)):
                    pending.take(received)
                    continue
                del busy[connection]
                free.append(connection)
                if isinstance(received, _Failed):
                    logger.debug("%s is verified in this process: a worker had %s", pending.chain.log, received.error)
                counts = isinstance(received, Followed) and pending.good
                if counts:
                    pending.name_in(self._names)
                pending.names.close()
                yield pending.chain, received if counts else None
        for chain in waiting:
            # No worker could be started, or all have ended.
            yield chain, None

    def _start(self) -> Connection | None:
        """Start a worker. Return None if this machine cannot have one."""
        context = multiprocessing.get_context("forkserver")
        try:
            here, other = context.Pipe()
            # Not forked from this process: it has threads.
            process = context.Process(target=_run, args=(other, self._given), daemon=True)
            process.start()
        except (OSError, EOFError):
            return None
        other.close()
        self._workers[here] = process
        return here


@dataclass(frozen=True, slots=True)
class _Signed:
    """Signatures that were not checked: the key's id, what is signed, and the signature."""

    signatures: Sequence[tuple[str, bytes, bytes]]


@dataclass(frozen=True, slots=True)
class _Named:
    """Digests of names in statements, one after another."""

    digests: bytes


@dataclass(frozen=True, slots=True)
class _Failed:
    """A log could not be followed, because of an error: its type."""

    error: str


class _Pending:
    """A log that a worker follows, as far as it was received."""

    def __init__(self, chain: Chain, trust: Trust) -> None:
        self.chain, self._trust = chain, trust
        self.good = True
        """Whether all signatures are good so far."""
        self.names = SpooledTemporaryFile(_NAMES_IN_MEMORY)  # noqa: SIM115 - it is closed when the log has ended
        """Names of its statements. A statement that does not count names nothing."""

    def take(self, received: _Signed | _Named) -> None:
        if not self.good:
            return
        if isinstance(received, _Named):
            self.names.write(received.digests)
        else:
            self.good = are_good(received.signatures, self._trust.keys)

    def name_in(self, names: Names) -> None:
        """Add the names, now that each statement counts."""
        self.names.seek(0)
        while digests := self.names.read(_PORTION * DIGEST_BYTES):
            names.take_named(digests)


class _NeedsMoreError(Exception):
    """The log cannot be verified by its own manifests alone."""


def _needs_more(*_: object) -> NoReturn:
    raise _NeedsMoreError


class _Unchecked:
    """A trusted key whose secret is in another process: its signatures count as good, and are kept to be checked."""

    checkable = True

    def __init__(self, key: TrustedKey, keep: Callable[[tuple[str, bytes, bytes]], None]) -> None:
        self.id, self.algorithm, self.public = key.id, key.algorithm, key.public
        self.began, self.ended, self.holds = key.began, key.ended, key.holds
        self._keep = keep

    id: str
    algorithm: Algorithm
    public: bytes | None
    began: datetime
    ended: datetime | None
    holds: Callable[[datetime], bool]
    until: dict[str, Head] | None = None

    def verify(self, message: bytes, value: bytes) -> None:
        """Keep a signature."""
        self._keep((self.id, message, value))


@dataclass(slots=True)
class _Portions:
    """Sends signatures and names in portions."""

    connection: Connection
    signatures: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)

    def keep(self, signature: tuple[str, bytes, bytes]) -> None:
        self.signatures.append(signature)
        if len(self.signatures) >= _PORTION:
            self.send()

    def name(self, digest: bytes) -> None:
        self.digests += digest
        if len(self.digests) >= _PORTION * DIGEST_BYTES:
            self.send()

    def send(self) -> None:
        if self.signatures:
            self.connection.send(_Signed(self.signatures))
            self.signatures = []
        if self.digests:
            self.connection.send(_Named(bytes(self.digests)))
            self.digests.clear()


class _Naming(Names):
    """Sends the digests of names, instead of keeping them."""

    def __init__(self, key: bytes, send: Callable[[bytes], None]) -> None:
        super().__init__(key)
        self._send = send

    def name(self, key: str) -> None:
        self._send(self.digest(key))


def _run(connection: Connection, given: Given) -> None:
    # An interrupt reaches the whole process group. The verifier closes the connection then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work(connection, given)


def _work(connection: Connection, given: Given) -> None:
    """Follow one log after another, until nobody receives anymore."""
    with contextlib.suppress(OSError, EOFError), Reader(given.store) as reader:
        while True:
            chain = connection.recv()
            portions = _Portions(connection)
            try:
                followed = _follow(chain, given, reader, portions)
                portions.send()
                result = pickle.dumps(followed)
            except (OSError, EOFError):
                raise
            except Exception as error:  # noqa: BLE001 - the verifier does it again, and shows what it is
                result = pickle.dumps(_Failed(type(error).__name__))
            connection.send_bytes(result)


def _follow(chain: Chain, given: Given, reader: Reader, portions: _Portions) -> Followed | None:
    """Follow a log. Return None if the verifier has to do it."""
    findings = Findings(given.accepted)
    names = _Naming(given.naming, portions.name)
    hands = Hands(reader, None, names, Locks(given.store, UNPROTECTED, findings), given.part)
    account = LogAccount(
        chain.log,
        given.archive,
        {id_: _Unchecked(key, portions.keep) if id_ in given.secret else key for id_, key in given.keys.items()},
        given.now,
        findings,
        chain.heads,
        (),
        chain.promises,
        0,
        partial(reader.following, partial(layout.manifest_key, chain.log), chain.listed),
        _needs_more,
        given.part,
    )
    follow(account, Span(), chain.listed, hands, onward=chain.onward)
    # Whether a gap at the end hides something depends on the findings about all logs.
    return None if account.signed.lost else Followed(account.results(), findings)
