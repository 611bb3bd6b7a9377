"""A witness: keeps the heads that an archive signed, checks that each is consistent with the last one, and cosigns it.

Two organisations that watch one archive this way cannot be shown two histories. A witness has its own folder:

- `keyring.json`: a keyring with its one Ed25519 key. Its vkey, of type 4, goes into the `witnesses` of others' trust;
- `state.json`: the pin of the `archive.json` at each URL (`custody.archive.known_heads`);
- `notes/<archive id>/<log>/<partition>/<size>`: each checkpoint that it cosigned (C2SP `tlog-cosignature`), for
  `custody evidence --checkpoint`.

Rules:

1. A URL is pinned to the first `archive.json` there, if that is trusted. Another one is refused at every run, until the
   first is restored, or the other is accepted by its exact digest in `trust.json` (finding `archive`, as in `custody
   verify`). A refused archive gets no state of its own.
2. Cosigned heads are kept by the archive and log that the note itself names. Wherever a log of that name is shown, a
   witness cosigns only one history of it.
3. For each log, the newest valid checkpoint is used. An invalid one is an alarm, but hides nothing: an attacker
   without a key cannot stop a witness.
4. A head is cosigned only if a consistency proof leads to it from the last cosigned head. A log that was rolled back,
   forked or is gone is refused at every run, until the missing statements are restored, or exactly this loss is
   accepted (`custody.archive.losses`). Then the witness continues from the log's present head. Its earlier cosigned
   checkpoints stay in its folder under another name, and no longer count as known heads: nothing is deleted.
5. Every refusal says how to end it: what to restore, or the command that accepts it.

It is one module because each rule reads and changes the same state: the cosigned heads, and the pin of each URL.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

from custody.archive import losses
from custody.archive.forms import form_of
from custody.archive.known_heads import State
from custody.archive.losses import Loss
from custody.archive.reader import checkpoint_sizes, find_end, read_checkpoint
from custody.archive.trusted import Judge, check_archive_signatures
from custody.errors import ConfigurationError, FormatError, ObjectMissing, StoreError
from custody.findings import loss_digest
from custody.format import archive_file, layout, limits
from custody.format.archive_file import Pin
from custody.format.layout import Log
from custody.keys.files import write
from custody.keys.key import Ed25519Key
from custody.keys.keyring import Keyring, new_keyring
from custody.keys.trust import Trust
from custody.store.durable import make_folders
from custody.store.protocol import Store
from custody.tlog import checkpoint
from custody.tlog.checkpoint import COSIGNATURE, Checkpoint, Note, NoteKey, NoteSignature
from custody.tlog.head import Head
from custody.tlog.signatures import check_checkpoint

__all__ = ["Seen", "Witness"]

_KEYRING = "keyring.json"
_STATE = "state.json"
_NOTES = "notes"
_RESTORE = "restore what is missing or was changed from a replica or backup"
_ALARMS = 10
"""The most invalid checkpoints of a log that are reported."""

Outcome = Literal["first", "grown", "unchanged", "unsigned", "refused", "resumed"]


@dataclass(frozen=True, slots=True)
class Seen:
    """The result for a log's newest checkpoint, or for `archive.json`.

    Attributes:
        log: `<log>/<partition>`, or `archive.json`.
        outcome: cosigned for the first time, cosigned after growth, unchanged, not signed by a trusted key, refused, or
            resumed: its refusal was accepted, and the witness continues from the present head.
        size: how many statements the newest checkpoint covers.
        problem: why it was refused, and how to end that.
        remark: what was accepted.
        notes: if it was refused, the complete known checkpoint and the new one.
        alarms: invalid objects among the checkpoints.
        path: where the cosigned checkpoint is kept.
    """

    log: str
    outcome: Outcome
    size: int
    problem: str | None = None
    notes: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    path: Path | None = None
    remark: str | None = None


@dataclass(frozen=True, slots=True)
class _Cosigned:
    """The last cosigned checkpoint of a log."""

    checkpoint: Checkpoint
    note: Note

    @property
    def head(self) -> Head:
        return Head(self.checkpoint.size, self.checkpoint.root)


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is wrong with a head.

    Attributes:
        what: the problem.
        remedy: how to end it without an acceptance.
        loss: what can be accepted; None if it cannot be identified exactly enough.
        note: the checkpoint that it is about.
        size: of that checkpoint.
    """

    what: str
    remedy: str
    loss: Loss | None = None
    note: Note | None = None
    size: int = 0

    def __str__(self) -> str:
        accept = f"; or, after review, accept it: {self.loss.command}" if self.loss else ""
        return f"{self.what}. To end this alarm, {self.remedy}{accept}"


@dataclass(slots=True)
class _Look:
    """What was read of a log.

    Attributes:
        newest: the largest valid checkpoint above the cosigned one, if its root is that of the statements.
        problem: what is wrong with the largest valid checkpoint, unless it was accepted.
        skipped: heads of checkpoints that are skipped, because their problems were accepted.
        alarms: invalid objects among the checkpoints.
    """

    newest: tuple[Note, Checkpoint] | None = None
    problem: _Problem | None = None
    skipped: list[Head] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


class Witness:
    """A witness with its folder."""

    def __init__(self, folder: Path, now: datetime, passphrase: str | None = None) -> None:
        """Open the folder. A new folder gets a key.

        Args:
            folder: the witness's own folder.
            now: the time, with its zone: the key must be valid.
            passphrase: opens an encrypted keyring, and encrypts a new one.

        Raises:
            ConfigurationError: the folder, the key or the state cannot be used.
        """
        self._folder = folder.absolute()
        _make_folders(self._folder)
        path = self._folder / _KEYRING
        if not path.exists():
            if (self._folder / _NOTES).exists():
                raise ConfigurationError(
                    f"{path} is missing, but this witness has cosigned before; restore it, or name a new folder"
                )
            new_keyring(path, now, passphrase, ["Ed25519"])
        ring = Keyring.load(path, passphrase)
        key = ring.newest("Ed25519", now)
        if not isinstance(key, Ed25519Key):
            raise ConfigurationError(f"keyring {path}: no Ed25519 key in it is valid now; a witness needs one to sign")
        self._signer = key
        self._keys = [NoteKey(one.key_id, one.public, COSIGNATURE) for one in ring.keys if isinstance(one, Ed25519Key)]
        self._state = State(self._folder / _STATE)
        self.key = NoteKey(key.key_id, key.public, COSIGNATURE)

    def __repr__(self) -> str:
        return f"<Witness {self.key.vkey}>"

    def watch(self, store: Store, trust: Trust, now: datetime) -> Iterator[Seen]:
        """Check the newest checkpoint of each log, and cosign the valid ones.

        Args:
            store: the archive, at the URL that the user gave.
            trust: the keys whose checkpoints count, and what was accepted.
            now: the time, with its zone: it goes into the cosignatures.

        Raises:
            ObjectMissing: there is no archive at this URL, and there was none before.
            StoreError: the archive cannot be listed.
            ConfigurationError: the witness's folder cannot be used.
        """
        identity = self._identify(store, trust)
        if isinstance(identity, str):
            yield Seen(layout.ARCHIVE, "refused", 0, identity, tuple(self._remembered_notes(store)))
            return
        pin, remark = identity
        if remark is not None:
            yield Seen(layout.ARCHIVE, "resumed", 0, remark=remark)
        if self._state.pin(store.url) != pin:
            self._state.remember(store.url, pin, {})
        for log in sorted({*self._logs(pin.id), *_logs_of(store)}):
            watched = _Watched(store, log, Judge(store, log, form_of(log), pin.id, trust), trust, pin.id)
            seen = self._watch(watched, now)
            if seen is not None:
                yield seen

    # --- which archive it is

    def _identify(self, store: Store, trust: Trust) -> tuple[Pin, str | None] | str:
        """Return the archive's pin and what was accepted about it, or why it is not the archive of this URL."""
        known = self._state.pin(store.url)
        pins = [("trust.json", trust.archive), ("this witness", known)]
        pinned = [(origin, pin) for origin, pin in pins if pin is not None]
        restore = f"restore its {layout.ARCHIVE} from a replica or backup"
        try:
            data = store.read(layout.ARCHIVE, limit=limits.ARCHIVE_FILE_BYTES)
        except StoreError as error:
            if known is None:
                if isinstance(error, ObjectMissing):
                    raise ObjectMissing(
                        f"there is no archive at {store.url}, and this witness never saw one there: check the URL"
                    ) from None
                raise
            return f"it cannot be read: {error}. To end this alarm, {restore}"
        loss = Loss("archive", sha256(data).hexdigest(), key=layout.ARCHIVE)
        accepted = loss.is_accepted(trust)
        remark = "accepted in trust.json, by the digest of the stored object"
        try:
            file = archive_file.parse(data)
        except FormatError as error:
            if accepted and pinned:
                return pinned[-1][1], remark
            return str(_Problem(f"it cannot be read: {error}", restore, loss if pinned else None))
        others = [(origin, pin) for origin, pin in pinned if pin != file.pin]
        verdict = check_archive_signatures(file, trust, pinned=any(pin == file.pin for _, pin in pinned))
        wrong = [one.what for one in verdict.problems if not one.open and one.kind != "key-unknown"]
        if others:
            origins, pin = " and ".join(origin for origin, _ in others), others[0][1]
            message = (
                f"there is another archive at {store.url}: {file.id} with SHA-256 {file.pin.sha256}; {origins}"
                f" pin{'s' if len(others) == 1 else ''} {pin.id} with {pin.sha256}"
            )
            return (file.pin, remark) if accepted else str(_Problem(message, restore, loss))
        if wrong:
            message = f"the signatures of {layout.ARCHIVE} are not valid: {'; '.join(wrong)}"
            return (file.pin, remark) if accepted else str(_Problem(message, restore, loss))
        if not pinned and not verdict.counts:
            message = f"archive.json is not signed by trusted keys: {verdict.reason}"
            return str(_Problem(message, "give the keys that signed it (--keys, --trust), or pin it in trust.json"))
        return file.pin, None

    def _remembered_notes(self, store: Store) -> Iterator[str]:
        pin = self._state.pin(store.url)
        for log in sorted(self._logs(pin.id)) if pin else ():
            last = self._last(pin.id, log) if pin else None
            if last is not None:
                yield last.note.encode().decode()

    # --- one log

    def _watch(self, of: "_Watched", now: datetime) -> Seen | None:
        before = self._last(of.archive, of.log)
        look = of.look(before.head.size if before else 0)
        if look.problem is not None:
            return _refused(of.log, look.problem, before, look)
        if before is None:
            if look.newest is None:
                return Seen(str(of.log), "unsigned", 0, alarms=tuple(look.alarms)) if look.alarms else None
            return self._seen(of, look, look.newest, "first", now)
        problem = of.growth(before, look.newest) if look.newest else of.loss(before)
        if problem is not None:
            if not of.is_accepted(problem, [before.head, *look.skipped]):
                return _refused(of.log, problem, before, look)
            return self._resume(of, look, problem, now)
        if look.newest is not None:
            return self._seen(of, look, look.newest, "grown", now)
        # The statements are consistent with the cosigned checkpoint. Check that it still exists.
        problem = of.stored(before)
        remark = None
        if problem is not None:
            if problem.loss is None or not problem.loss.is_accepted(of.trust):
                return _refused(of.log, problem, before, look)
            remark = f"accepted in trust.json: {problem.what}"
        return Seen(str(of.log), "unchanged", before.head.size, alarms=tuple(look.alarms), remark=remark)

    def _resume(self, of: "_Watched", look: _Look, problem: _Problem, now: datetime) -> Seen:
        """Continue from the present head of a log whose loss was accepted."""
        if look.newest is None:
            look = of.look(0)
            if look.problem is not None:
                return _refused(of.log, look.problem, self._last(of.archive, of.log), look)
        remark = f"accepted in trust.json: {problem.what}; this witness continues from here"
        if look.newest is None:
            self._set_aside(of.archive, of.log, 0)
            remark += ", and no checkpoint is left"
            return Seen(str(of.log), "resumed", 0, alarms=tuple(look.alarms), remark=remark)
        self._set_aside(of.archive, of.log, look.newest[1].size, keep=True)
        seen = self._seen(of, look, look.newest, "resumed", now)
        self._set_aside(of.archive, of.log, look.newest[1].size + 1)
        return replace(seen, remark=remark)

    def _seen(
        self, of: "_Watched", look: _Look, newest: tuple[Note, Checkpoint], outcome: Outcome, now: datetime
    ) -> Seen:
        note, found = newest
        path = self._cosign(of.archive, of.log, found, note, now)
        return Seen(str(of.log), outcome, found.size, alarms=tuple(look.alarms), path=path)

    # --- its known heads

    def _cosign(self, archive: str, log: Log, head: Checkpoint, note: Note, now: datetime) -> Path:
        time = int(now.timestamp())
        signature = time.to_bytes(8, "big") + self._signer.sign(checkpoint.cosigned(note.text, time))
        signed = checkpoint.with_signature(note, NoteSignature(self.key.name, self.key.key_hash, signature))
        path = self._place(archive, log) / f"{head.size:012}"
        _make_folders(path.parent)
        write(path, signed.encode(), create=False, what="cosigned checkpoint", mode=0o644)
        return path

    def _set_aside(self, archive: str, log: Log, size: int, *, keep: bool = False) -> None:
        """Rename the cosigned checkpoints from a size on, the largest last, so that they are no longer known heads.

        Args:
            archive: the archive's id.
            log: the log.
            size: the first size to rename.
            keep: only add the other name: if the process is killed then, they are still known heads.
        """
        place = self._place(archive, log)
        try:
            for path in sorted(path for path in place.iterdir() if path.name.isdecimal() and int(path.name) >= size):
                other = path.with_name(f"{path.name}.{sha256(path.read_bytes()).hexdigest()[:16]}")
                with contextlib.suppress(FileExistsError):
                    other.hardlink_to(path)
                if not keep:
                    path.unlink()
        except OSError as error:
            raise ConfigurationError(f"the witness's folder {place} cannot be written: {error.strerror}") from None

    def _place(self, archive: str, log: Log) -> Path:
        return self._folder / _NOTES / archive / log.name / str(log.partition)

    def _last(self, archive: str, log: Log) -> _Cosigned | None:
        """Return the largest cosigned checkpoint of a log.

        Raises:
            ConfigurationError: a file there is not one of ours.
        """
        place = self._place(archive, log)
        try:
            sizes = [path.name for path in place.iterdir() if path.name.isdecimal()] if place.is_dir() else []
            if not sizes:
                return None
            path = place / max(sizes)
            note = checkpoint.parse_note(path.read_bytes())
            head = checkpoint.parse_checkpoint(note.text)
        except OSError as error:
            raise ConfigurationError(f"the witness's folder {place} cannot be read: {error.strerror}") from None
        except FormatError as error:
            raise ConfigurationError(f"{path} is not a checkpoint that this witness cosigned: {error}") from None
        own = check_checkpoint(note, head, str(log), {}, within=lambda _: False, witnesses=self._keys)
        origin = checkpoint.origin_of(archive, log)
        if not own.witnessed or own.problems or (head.origin, f"{head.size:012}") != (origin, path.name):
            raise ConfigurationError(f"{path} is not a checkpoint that this witness cosigned; restore the folder")
        return _Cosigned(head, note)

    def _logs(self, archive: str) -> Iterator[Log]:
        """Yield the logs of an archive that have cosigned checkpoints."""
        folder = self._folder / _NOTES / archive
        for place in folder.glob("*/*") if folder.is_dir() else ():
            log = layout.parse_log_text(f"{place.parent.name}/{place.name}")
            if log is not None:
                yield log


def _logs_of(store: Store) -> Iterator[Log]:
    """Yield the logs that have checkpoints, also the log of audits. Names prove nothing."""
    for name in store.level(layout.CHECKPOINTS)[0]:
        for partition in store.level(f"{layout.CHECKPOINTS}{name}/")[0]:
            log = layout.parse_log_text(f"{name}/{partition}")
            if log is not None:
                yield log


def _refused(log: Log, problem: _Problem, before: _Cosigned | None, look: _Look) -> Seen:
    notes = [one.encode().decode() for one in (before.note if before else None, problem.note) if one is not None]
    return Seen(str(log), "refused", problem.size, str(problem), tuple(notes), tuple(look.alarms))


@dataclass(frozen=True, slots=True)
class _Watched:
    """A log in the archive."""

    store: Store
    log: Log
    judge: Judge
    trust: Trust
    archive: str

    def look(self, after: int) -> _Look:
        """Find the largest valid checkpoint above a size."""
        look = _Look()
        most = None
        for size in reversed(checkpoint_sizes(self.store, self.log, after)):
            if most is not None and size > most:
                continue
            key = layout.checkpoint_key(self.log, size)
            try:
                note, found = read_checkpoint(self.store, self.log, size)
                refusal = self.judge.refusal(note, found)
            except (FormatError, ObjectMissing) as error:
                refusal = str(error)
            else:
                if refusal is None:
                    problem = self._foundation(note, found)
                    if problem is None:
                        look.newest = note, found
                        return look
                    head = Head(found.size, found.root)
                    if not self.is_accepted(problem, [head]):
                        look.problem = problem
                        return look
                    look.skipped.append(head)
                    with contextlib.suppress(FormatError, StoreError):
                        most = self._tip().size
                    continue
            if len(look.alarms) < _ALARMS and not self._is_judged(key):
                look.alarms.append(f"{key} does not count: {refusal}")
        return look

    def growth(self, before: _Cosigned, newest: tuple[Note, Checkpoint]) -> _Problem | None:
        """Return why a head is not consistent with the one cosigned before, None if it is."""
        note, found = newest
        known, head = before.head, Head(found.size, found.root)
        try:
            self.judge.proofs.consistency(known.size, head.size)
            root = self.judge.proofs.root(known.size)
        except (FormatError, StoreError) as error:
            message = f"its consistency cannot be proved: {error}"
            return _Problem(message, _RESTORE, losses.fork(self.log, known, head), note, head.size)
        if self.judge.proofs.leads_to(known.size, known.root, head):
            return None
        message = "it is not consistent with the cosigned checkpoint: another history"
        loss = losses.fork(self.log, known, Head(known.size, root) if root != known.root else head)
        return _Problem(message, _RESTORE, loss, note, head.size)

    def loss(self, before: _Cosigned) -> _Problem | None:
        """Return why the statements are not consistent with the cosigned head, None if they are."""
        known = before.head
        note = self._left(known)
        try:
            tip = self._tip()
            if tip.size < known.size:
                message = f"the log was rolled back, from {known.size} statements to {tip.size}"
                return _Problem(message, _RESTORE, losses.rollback(self.log, known, tip), note, known.size)
            root = self.judge.proofs.root(known.size)
        except (FormatError, StoreError) as error:
            return _Problem(f"its statements cannot be read: {error}", _RESTORE, None, note, known.size)
        if root == known.root:
            return None
        loss = losses.fork(self.log, known, Head(known.size, root))
        other = self._other(known)
        if other is not None:
            return _Problem("two roots were signed for one size", _RESTORE, loss, other, known.size)
        message = "its statements are not the cosigned ones: another history"
        return _Problem(message, _RESTORE, loss, note, known.size)

    def stored(self, before: _Cosigned) -> _Problem | None:
        """Return what happened to the cosigned checkpoint, None if it is unchanged."""
        known = before.head
        key = layout.checkpoint_key(self.log, known.size)
        remedy = f"restore {key}, or have the log's head signed again (`custody checkpoint --write {self.log}`)"
        loss = Loss("checkpoint", loss_digest(str(self.log), key, known.root.hex(), "gone"), key=key)
        try:
            data = self.store.read(key, limit=limits.NOTE_BYTES)
            loss = Loss("checkpoint", sha256(data).hexdigest(), key=key)
            note = checkpoint.parse_note(data)
            found = checkpoint.parse_checkpoint(note.text)
        except ObjectMissing:
            message = "the cosigned checkpoint is gone: the log was rolled back"
            return _Problem(message, remedy, loss, self._left(known), known.size)
        except FormatError as error:
            message = f"the cosigned checkpoint was overwritten: {error}"
            return _Problem(message, remedy, loss, self._left(known), known.size)
        except StoreError as error:
            return _Problem(f"the checkpoint cannot be read: {error}", "check the store", size=known.size)
        refusal = self.judge.refusal(note, found)
        if refusal is not None:
            message = f"the cosigned checkpoint was replaced by one that does not count: {refusal}"
            return _Problem(message, remedy, loss, note, known.size)
        if (found.size, found.root) == (known.size, known.root):
            return None
        if found.size == known.size:
            loss = losses.wrong_checkpoint(self.log, Head(found.size, found.root), known)
        return _Problem("two roots were signed for one size", remedy, loss, note, known.size)

    def is_accepted(self, problem: _Problem, known: Sequence[Head]) -> bool:
        """Return whether a problem was accepted, or the rollback to the head from which the log continues."""
        if problem.loss is not None and problem.loss.is_accepted(self.trust):
            return True
        # With several known heads, a loss in `custody verify` names the largest. A smaller one is not about ours.
        given = self.trust.heads.get(str(self.log))
        larger = [given] if given is not None and all(given.size > head.size for head in known) else []
        return losses.is_continued(self.log, [*known, *larger], self.judge.proofs, self.trust)

    def _foundation(self, note: Note, found: Checkpoint) -> _Problem | None:
        """Return why a checkpoint does not match the statements in the archive, None if it does."""
        head = Head(found.size, found.root)
        try:
            root = self.judge.proofs.root(head.size)
        except (FormatError, StoreError) as error:
            message = f"its statements cannot be read: {error}"
            try:
                tip = self._tip()
            except (FormatError, StoreError):
                return _Problem(message, _RESTORE, None, note, head.size)
            loss = losses.rollback(self.log, head, tip) if tip.size < head.size else None
            return _Problem(message, _RESTORE, loss, note, head.size)
        if root == head.root:
            return None
        message = "its root is not that of the statements in the archive"
        loss = losses.wrong_checkpoint(self.log, head, Head(head.size, root))
        return _Problem(message, _RESTORE, loss, note, head.size)

    def _tip(self) -> Head:
        """Return the head up to the newest statement that may be valid, by the available keys."""
        valid = self.judge.is_valid
        return find_end(self.store, form_of(self.log), lambda one, at: valid(one, at) is not False).head

    def _left(self, below: Head) -> Note | None:
        """Return the largest valid checkpoint below a head."""
        for size in reversed(checkpoint_sizes(self.store, self.log)):
            if size >= below.size:
                continue
            try:
                note, found = read_checkpoint(self.store, self.log, size)
            except (FormatError, StoreError):
                continue
            if self.judge.counts_checkpoint(note, found):
                return note
        return None

    def _other(self, known: Head) -> Note | None:
        """Return a valid checkpoint with another root at a head's size, None if there is none."""
        try:
            note, found = read_checkpoint(self.store, self.log, known.size)
        except (FormatError, StoreError):
            return None
        return note if found.root != known.root and self.judge.counts_checkpoint(note, found) else None

    def _is_judged(self, key: str) -> bool:
        """Return whether the object under a checkpoint's key was accepted."""
        judged = [one.sha256 for one in self.trust.accepted if (one.finding, one.key) == ("checkpoint", key)]
        if not judged or None in judged:
            return bool(judged)
        try:
            return sha256(self.store.read(key, limit=limits.NOTE_BYTES)).hexdigest() in judged
        except (FormatError, StoreError):
            return False


def _make_folders(folder: Path) -> None:
    """Make a folder and its missing parents, and sync each entry.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        make_folders(str(folder))
    except OSError as error:
        raise ConfigurationError(f"the witness's folder {folder} cannot be made: {error.strerror}") from None
