"""A witness: remembers the heads that an archive signed, checks that each grows out of the last one, and signs it too.

Two organisations that watch one archive this way cannot be shown two histories. The state is a folder of the witness's
own: its key, and each checkpoint that it co-signed (C2SP `tlog-cosignature`), under `<archive>/<log>/<partition>/`. A
head that does not grow out of the one remembered is never co-signed, and both are shown whole.
"""

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody import checkpoint, layout, merkle
from custody.checkpoint import COSIGNATURE, Checkpoint, Note, NoteKey, NoteSignature
from custody.checkpoints import newest_checkpoint
from custody.errors import ConfigurationError, FormatError, ObjectMissing, SignatureInvalid, StoreError
from custody.layout import Log
from custody.proofs import Proofs
from custody.store import Store
from custody.trust import Trust

_KEY = "witness.json"
_NAME = "custody-witness"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a witness made of a log's newest checkpoint.

    Attributes:
        log: `<log>/<partition>`.
        outcome: co-signed for the first time, co-signed as grown, as before, or refused.
        size: statements that the newest checkpoint covers.
        problem: why it was refused.
        notes: of one that was refused, the checkpoint remembered and the new one, whole.
    """

    log: str
    outcome: Literal["first", "grown", "unchanged", "refused"]
    size: int
    problem: str | None = None
    notes: tuple[str, ...] = ()


class Witness:
    """A witness with its folder."""

    def __init__(self, folder: Path) -> None:
        """Open the folder; a new one gets a key.

        Raises:
            ConfigurationError: the folder or the key cannot be used.
        """
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / _KEY
            if not path.exists():
                secret = base64.b64encode(os.urandom(32)).decode()
                _write(path, json.dumps({"name": _NAME, "private": secret}).encode() + b"\n", mode=0o600)
            if path.stat().st_mode & 0o077:
                raise ConfigurationError(f"others can read the witness's key {path}: chmod 600 it")
            found = json.loads(path.read_bytes())
            self._private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(found["private"], validate=True))
            name = found["name"]
        except OSError as error:
            raise ConfigurationError(f"the witness's folder {folder} cannot be used: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{folder / _KEY} is no witness's key; restore it, or name a new folder") from None
        self.key = NoteKey(name, self._private.public_key().public_bytes_raw(), COSIGNATURE)

    def __repr__(self) -> str:
        return f"<Witness {self.key.vkey}>"

    def watch(self, store: Store, trust: Trust, archive: str, now: datetime) -> Iterator[Seen]:
        """Look at each log's newest checkpoint, and co-sign those that hold.

        Args:
            store: the archive.
            trust: whose signatures of checkpoints count.
            archive: its id, as known from elsewhere or read from it.
            now: the time, aware: co-signatures carry it.

        Raises:
            StoreError: the archive cannot be listed.
        """
        keys = checkpoint.checkpoint_keys(trust)
        for log in sorted({*self._logs(archive), *_logs_of(store)}):
            yield self._watch(store, keys, archive, log, now)

    def _watch(self, store: Store, keys: checkpoint.NoteKeys, archive: str, log: Log, now: datetime) -> Seen:
        before = self._last(archive, log)
        after = layout.checkpoint_key(log, before[0].size) if before else ""
        sizes = [parsed[1] for info in store.list(layout.checkpoint_prefix(log), after=after)
                 if (parsed := layout.parse_checkpoint_key(info.key))]  # fmt: skip
        size = max(sizes, default=before[0].size if before else 0)
        try:
            data = store.read(layout.checkpoint_key(log, size), limit=checkpoint.NOTE_LIMIT)
        except ObjectMissing:
            what = "the checkpoint that was co-signed is gone: the log went back"
            return self._refuse(log, size, what, before, _newest(store, log))
        except StoreError as error:
            return self._refuse(log, size, f"the checkpoint cannot be read: {error}", before, None)
        except FormatError as error:
            return self._refuse(log, size, f"it is no checkpoint: {error}", before, None)
        try:
            note = checkpoint.parse_note(data)
            head = checkpoint.parse_checkpoint(note.text)
            checkpoint.verify_note(note, keys)
        except (FormatError, SignatureInvalid) as error:
            return self._refuse(log, size, f"the checkpoint does not hold: {error}", before, data)
        if head.size != size or not head.origin.endswith(f"/{archive}/{log}"):
            problem = f"the checkpoint is of {head.origin[:200]!r} and size {head.size}, and not of this place"
            return self._refuse(log, size, problem, before, data)
        if before is not None and head.size == before[0].size and head.root != before[0].root:
            return self._refuse(log, size, "two roots were signed for one size", before, data)
        grown = before is not None and head.size > before[0].size
        wrong = _growth_problem(store, log, before[0], head) if before and grown else _root_problem(store, log, head)
        if wrong is not None:
            return self._refuse(log, size, wrong, before, data)
        if before is not None and not grown:
            return Seen(str(log), "unchanged", size)
        self._cosign(archive, log, head, note, now)
        return Seen(str(log), "grown" if before else "first", size)

    def _refuse(
        self, log: Log, size: int, problem: str, before: tuple[Checkpoint, bytes] | None, data: bytes | None
    ) -> Seen:
        notes = [before[1]] if before else []
        notes += [data] if data is not None else []
        return Seen(str(log), "refused", size, problem, tuple(note.decode(errors="replace") for note in notes))

    def _cosign(self, archive: str, log: Log, head: Checkpoint, note: Note, now: datetime) -> None:
        time = int(now.timestamp())
        signature = time.to_bytes(8, "big") + self._private.sign(checkpoint.cosigned(note.text, time))
        signed = checkpoint.with_signature(note, NoteSignature(self.key.name, self.key.key_hash, signature))
        path = self._place(archive, log) / f"{head.size:012}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, signed.encode(), mode=0o644)
        except OSError as error:
            raise ConfigurationError(f"the co-signed checkpoint {path} cannot be written: {error.strerror}") from None

    def _place(self, archive: str, log: Log) -> Path:
        return self._folder / archive / log.name / str(log.partition)

    def _last(self, archive: str, log: Log) -> tuple[Checkpoint, bytes] | None:
        """Return the largest checkpoint that was co-signed of a log.

        Raises:
            ConfigurationError: what lies there is none of ours.
        """
        place = self._place(archive, log)
        sizes = [path.name for path in place.iterdir() if path.name.isdecimal()] if place.is_dir() else []
        if not sizes:
            return None
        path = place / max(sizes)
        try:
            data = path.read_bytes()
            note = checkpoint.parse_note(data)
            checkpoint.verify_note(note, {(self.key.name, self.key.key_hash): self.key})
            return checkpoint.parse_checkpoint(note.text), data
        except (OSError, FormatError, SignatureInvalid) as error:
            raise ConfigurationError(f"{path} is no checkpoint that this witness co-signed: {error}") from None

    def _logs(self, archive: str) -> Iterator[Log]:
        folder = self._folder / archive
        for place in folder.glob("*/*") if folder.is_dir() else ():
            log = layout.parse_log_text(f"{place.parent.name}/{place.name}")
            if log is not None:
                yield log


def _logs_of(store: Store) -> Iterator[Log]:
    for name in store.names(layout.CHECKPOINTS):
        for partition in store.names(f"{layout.CHECKPOINTS}{name}/"):
            log = layout.parse_log_text(f"{name}/{partition}")
            # Audits are a log, too; their statements lie elsewhere.
            if log is not None and log != layout.AUDIT_LOG:
                yield log


def _newest(store: Store, log: Log) -> bytes | None:
    """Return the largest checkpoint that the archive has of a log, None where it gives none."""
    try:
        note = newest_checkpoint(store, log)
    except (StoreError, FormatError):
        return None
    return note.encode() if note else None


def _growth_problem(store: Store, log: Log, before: Checkpoint, head: Checkpoint) -> str | None:
    """Return why a head does not grow out of the one before, None if it does."""
    try:
        proof = Proofs(store, log).consistency(before.size, head.size)
        old, new = merkle.roots_from_consistency(before.size, head.size, before.root, proof)
    except (FormatError, StoreError) as error:
        return f"its growth cannot be proved: {error}"
    if (old, new) != (before.root, head.root):
        return "it does not grow out of the checkpoint that was co-signed: another history"
    return None


def _root_problem(store: Store, log: Log, head: Checkpoint) -> str | None:
    """Return why a first head is not that of the statements in the archive, None if it is."""
    try:
        found = Proofs(store, log).root(head.size)
    except (FormatError, StoreError) as error:
        return f"its statements cannot be read: {error}"
    return None if found == head.root else "its root is not that of the statements in the archive"


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Put a file in place, whole and synced."""
    descriptor, staged = tempfile.mkstemp(prefix=".", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    Path(staged).replace(path)
