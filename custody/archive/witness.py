"""A witness: keeps the heads that an archive signed, checks that each is consistent with the last one, and cosigns it.

Two organisations that watch one archive this way cannot be shown two histories. A witness has its own folder:

- `keyring.json`: a keyring with its one Ed25519 key. Its vkey, of type 4, goes into the `witnesses` of others' trust;
- `state.json`: the pin of the `archive.json` at each URL (`custody.archive.known_heads`);
- `notes/<archive id>/<log>/<partition>/<size>`: each checkpoint that it cosigned (C2SP `tlog-cosignature`), for
  `custody evidence --checkpoint`.

It is one module because each rule reads and changes the same state: the cosigned heads, and the pin of each URL.

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
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

from custody.archive import losses
from custody.archive.forms import form_of
from custody.archive.known_heads import State
from custody.archive.losses import Loss
from custody.archive.reader import checkpoint_sizes, find_end, list_logs, read_checkpoint, stored_digest
from custody.archive.trusted import Judge, check_archive_signatures, check_keys
from custody.errors import ConfigurationError, FormatError, NoArchive, ObjectMissing, StoreError
from custody.findings import loss_digest
from custody.format import archive_file, layout, limits
from custody.format.archive_file import ArchiveFile, Pin
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
_WITNESS = "this witness"
_NOTES = "notes"
_RESTORE = "restore what is missing or was changed from a replica or backup"
_ALARMS = 10
"""The most invalid checkpoints of a log that are reported."""

Outcome = Literal["first", "grown", "unchanged", "unsigned", "refused", "resumed"]
Signed = tuple[Note, Checkpoint]


@dataclass(frozen=True, slots=True)
class Seen:
    """The result for a log's newest checkpoint, or for `archive.json`.

    Attributes:
        log: `<log>/<partition>`, or `archive.json`.
        outcome: cosigned for the first time, cosigned after growth, unchanged, not signed by a trusted key, refused, or
            resumed: its refusal was accepted, and the witness continues from the present head.
        size: how many statements the newest checkpoint covers.
        problem: why it was refused, and how to end that.
        notes: if it was refused, the complete known checkpoint and the new one.
        alarms: invalid objects among the checkpoints.
        path: where the cosigned checkpoint is kept.
        remark: what was accepted.
    """

    log: str
    outcome: Outcome
    size: int = 0
    problem: str | None = None
    notes: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    path: Path | None = None
    remark: str | None = None


class _Refused(Exception):
    """A head, or an `archive.json`, that is not cosigned.

    Attributes:
        problem: what is wrong with it.
        loss: what can be accepted; None if it cannot be identified exactly enough.
        note: the checkpoint that it is about.
        size: of that checkpoint.
    """

    def __init__(
        self, problem: str, loss: Loss | None, note: Note | None = None, size: int = 0, *, remedy: str = _RESTORE
    ) -> None:
        accept = f"; or, after review, accept it: {loss.command}" if loss else ""
        super().__init__(f"{problem}. To end this alarm, {remedy}{accept}")
        self.problem, self.loss, self.note, self.size = problem, loss, note, size


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
        self._keys = [NoteKey(own.key_id, own.public, COSIGNATURE) for own in ring.keys if isinstance(own, Ed25519Key)]
        self._state = State(self._folder / "state.json")
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
            NoArchive: there is no archive at this URL, and there was none before.
            StoreError: the archive cannot be listed.
            ConfigurationError: the witness's folder cannot be used, or the keys are those of another archive.
        """
        known = self._state.pin(store.url)
        try:
            pin, remark = _identify(store, trust, known)
        except _Refused as refused:
            last = [self._last(known.id, log) for log in self._logs(known.id)] if known else []
            notes = tuple(signed[0].encode().decode() for signed in last if signed is not None)
            yield Seen(layout.ARCHIVE, "refused", problem=str(refused), notes=notes)
            return
        if remark is not None:
            yield Seen(layout.ARCHIVE, "resumed", remark=remark)
        if known != pin:
            self._state.remember(store.url, pin, {})
        for log in sorted({*self._logs(pin.id), *list_logs(store, layout.CHECKPOINTS)}):
            seen = self._watch(_Watched(store, log, pin.id, trust), now)
            if seen is not None:
                yield seen

    def _watch(self, watched: "_Watched", now: datetime) -> Seen | None:
        log, archive = watched.log, watched.archive
        last = self._last(archive, log)
        try:
            outcome, newest, remark = watched.check(last)
        except _Refused as refused:
            shown = [note for note in (last[0] if last else None, refused.note) if note is not None]
            notes = tuple(note.encode().decode() for note in shown)
            return Seen(str(log), "refused", refused.size, str(refused), notes, tuple(watched.alarms))
        if outcome == "unsigned" and not watched.alarms:
            return None
        if outcome == "resumed":
            self._set_aside(archive, log, newest[1].size if newest else 0, keep=newest is not None)
        path = self._cosign(archive, log, newest, now) if newest else None
        if outcome == "resumed" and newest:
            self._set_aside(archive, log, newest[1].size + 1)
        head = newest or (last if outcome == "unchanged" else None)
        size = head[1].size if head else 0
        return Seen(str(log), outcome, size, alarms=tuple(watched.alarms), path=path, remark=remark)

    # --- its known heads

    def _cosign(self, archive: str, log: Log, newest: Signed, now: datetime) -> Path:
        note, head = newest
        time = int(now.timestamp())
        signature = time.to_bytes(8, "big") + self._signer.sign(checkpoint.cosigned(note.text, time))
        signed = checkpoint.with_signature(note, NoteSignature(self.key.name, self.key.key_hash, signature))
        path = self._notes(archive, log) / f"{head.size:012}"
        _make_folders(path.parent)
        write(path, signed.encode(), create=False, subject="cosigned checkpoint", mode=0o644)
        return path

    def _set_aside(self, archive: str, log: Log, size: int, *, keep: bool = False) -> None:
        """Rename the cosigned checkpoints from a size on, the largest last, so that they are no longer known heads.

        Args:
            archive: the archive's id.
            log: the log.
            size: the first size to rename.
            keep: only add the other name: if the process is killed then, they are still known heads.
        """
        folder = self._notes(archive, log)
        try:
            for path in sorted(path for path in folder.iterdir() if path.name.isdecimal() and int(path.name) >= size):
                other = path.with_name(f"{path.name}.{sha256(path.read_bytes()).hexdigest()[:16]}")
                with contextlib.suppress(FileExistsError):
                    other.hardlink_to(path)
                if not keep:
                    path.unlink()
        except OSError as error:
            raise ConfigurationError(f"the witness's folder {folder} cannot be written: {error.strerror}") from None

    def _notes(self, archive: str, log: Log) -> Path:
        return self._folder / _NOTES / archive / log.name / str(log.partition)

    def _last(self, archive: str, log: Log) -> Signed | None:
        """Return the largest cosigned checkpoint of a log.

        Raises:
            ConfigurationError: a file there is not one of ours.
        """
        folder = self._notes(archive, log)
        try:
            sizes = [path.name for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
            if not sizes:
                return None
            path = folder / max(sizes)
            note = checkpoint.parse_note(path.read_bytes())
            head = checkpoint.parse_checkpoint(note.text)
        except OSError as error:
            raise ConfigurationError(f"the witness's folder {folder} cannot be read: {error.strerror}") from None
        except FormatError as error:
            raise ConfigurationError(f"{path} is not a checkpoint that this witness cosigned: {error}") from None
        own = check_checkpoint(note, head, str(log), {}, within=lambda _: False, witnesses=self._keys)
        origin = checkpoint.origin_of(archive, log)
        if not own.witnessed or own.problems or (head.origin, f"{head.size:012}") != (origin, path.name):
            raise ConfigurationError(f"{path} is not a checkpoint that this witness cosigned; restore the folder")
        return note, head

    def _logs(self, archive: str) -> list[Log]:
        """Return the logs of an archive that have cosigned checkpoints, sorted."""
        names = (f"{path.parent.name}/{path.name}" for path in (self._folder / _NOTES / archive).glob("*/*"))
        return sorted(log for log in map(layout.parse_log_text, names) if log is not None)


def _identify(store: Store, trust: Trust, known: Pin | None) -> tuple[Pin, str | None]:
    """Return the archive's pin, and what was accepted about it.

    Raises:
        _Refused: it is not the archive of this URL.
    """
    pinned = {name: pin for name, pin in (("trust.json", trust.archive), (_WITNESS, known)) if pin is not None}
    remedy = f"restore its {layout.ARCHIVE} from a replica or backup"
    try:
        data = store.read(layout.ARCHIVE, limit=limits.ARCHIVE_FILE_BYTES)
    except StoreError as error:
        if known is not None:
            raise _Refused(f"it cannot be read: {error}", None, remedy=remedy) from None
        if isinstance(error, ObjectMissing):
            raise NoArchive(store.url) from None
        raise
    loss = Loss("archive", sha256(data).hexdigest(), key=layout.ARCHIVE)
    problem: str | None
    try:
        file = archive_file.parse(data)
    except FormatError as error:
        if not pinned:
            raise _Refused(f"it cannot be read: {error}", None, remedy=remedy) from None
        pin, problem = [*pinned.values()][-1], f"it cannot be read: {error}"
    else:
        pin, problem = file.pin, _archive_problem(store, file, trust, pinned)
    if problem is None:
        return pin, None
    if loss.is_accepted(trust):
        return pin, "accepted in trust.json, by the digest of the stored object"
    raise _Refused(problem, loss, remedy=remedy)


def _archive_problem(store: Store, file: ArchiveFile, trust: Trust, pinned: dict[str, Pin]) -> str | None:
    """Return why an `archive.json` is not the pinned one, None if it is.

    Raises:
        _Refused: none is pinned, and this one is not signed by trusted keys.
        ConfigurationError: the keys are those of another archive.
    """
    others = {name: pin for name, pin in pinned.items() if pin != file.pin}
    if _WITNESS not in pinned:
        # Nobody has seen this archive before: with keys of another one, the settings are wrong.
        check_keys(store, file, trust)
    if others:
        pin = next(iter(others.values()))
        return (
            f"there is another archive at {store.url}: {file.id} with SHA-256 {file.pin.sha256}; {' and '.join(others)}"
            f" pin{'s' if len(others) == 1 else ''} {pin.id} with {pin.sha256}"
        )
    verdict = check_archive_signatures(file, trust, pinned=bool(pinned))
    wrong = [problem.message for problem in verdict.problems if not problem.open and problem.kind != "key-unknown"]
    if wrong:
        return f"the signatures of {layout.ARCHIVE} are not valid: {'; '.join(wrong)}"
    if not pinned and not verdict.counts:
        raise _Refused(
            f"archive.json is not signed by trusted keys: {verdict.reason}",
            None,
            remedy="give the keys that signed it (--keys, --trust), or pin it in trust.json",
        )
    return None


class _Watched:
    """A log in the archive. Its checks raise `_Refused`."""

    def __init__(self, store: Store, log: Log, archive: str, trust: Trust) -> None:
        self.store, self.log, self.archive, self.trust = store, log, archive, trust
        self.judge = Judge(store, log, form_of(log), archive, trust)
        self.alarms: list[str] = []
        """Invalid objects among the checkpoints."""

    def check(self, last: Signed | None) -> tuple[Outcome, Signed | None, str | None]:
        """Check the log since the checkpoint that was cosigned last.

        Returns:
            The outcome, the checkpoint to cosign, and what was accepted.
        """
        newest, skipped = self._find_newest(last[1].size if last else 0)
        if last is None:
            return ("first" if newest else "unsigned"), newest, None
        known = last[1].head
        try:
            if newest is not None:
                self._check_growth(known, *newest)
            else:
                self._check_statements(known)
        except _Refused as refused:
            if not self._is_accepted(refused, [known, *skipped]):
                raise
            if newest is None:
                self.alarms.clear()
                newest, _ = self._find_newest(0)
            ended = "" if newest else ", and no checkpoint is left"
            remark = f"accepted in trust.json: {refused.problem}; this witness continues from here{ended}"
            return "resumed", newest, remark
        if newest is not None:
            return "grown", newest, None
        try:
            self._check_stored(known)
        except _Refused as refused:
            if refused.loss is None or not refused.loss.is_accepted(self.trust):
                raise
            return "unchanged", None, f"accepted in trust.json: {refused.problem}"
        return "unchanged", None, None

    def _find_newest(self, after: int) -> tuple[Signed | None, list[Head]]:
        """Find the largest valid checkpoint above a size, whose root is that of the statements.

        Returns:
            The checkpoint, and the heads of those that are skipped, because their problems were accepted.
        """
        skipped: list[Head] = []
        most = None
        for size in reversed(checkpoint_sizes(self.store, self.log, after)):
            if most is not None and size > most:
                continue
            key = layout.checkpoint_key(self.log, size)
            try:
                note, parsed = read_checkpoint(self.store, self.log, size)
                refusal = self.judge.refusal(note, parsed)
            except (FormatError, ObjectMissing) as error:
                refusal = str(error)
            if refusal is not None:
                if len(self.alarms) < _ALARMS and not self._is_accepted_object(key):
                    self.alarms.append(f"{key} does not count: {refusal}")
                continue
            try:
                self._check_foundation(note, parsed.head)
            except _Refused as refused:
                if not self._is_accepted(refused, [parsed.head]):
                    raise
                skipped.append(parsed.head)
                with contextlib.suppress(FormatError, StoreError):
                    most = self._tip().size
            else:
                return (note, parsed), skipped
        return None, skipped

    def _check_foundation(self, note: Note, head: Head) -> None:
        """Check that a checkpoint matches the statements in the archive."""
        try:
            root = self.judge.proofs.root(head.size)
        except (FormatError, StoreError) as error:
            loss = None
            with contextlib.suppress(FormatError, StoreError):
                tip = self._tip()
                loss = losses.rollback(self.log, head, tip) if tip.size < head.size else None
            raise _Refused(f"its statements cannot be read: {error}", loss, note, head.size) from None
        if root != head.root:
            loss = losses.wrong_checkpoint(self.log, head, Head(head.size, root))
            raise _Refused("its root is not that of the statements in the archive", loss, note, head.size)

    def _check_growth(self, known: Head, note: Note, parsed: Checkpoint) -> None:
        """Check that a head is consistent with the one that was cosigned before."""
        head = parsed.head
        try:
            self.judge.proofs.consistency(known.size, head.size)
            root = self.judge.proofs.root(known.size)
        except (FormatError, StoreError) as error:
            loss = losses.fork(self.log, known, head)
            raise _Refused(f"its consistency cannot be proved: {error}", loss, note, head.size) from None
        if not self.judge.proofs.leads_to(known.size, known.root, head):
            loss = losses.fork(self.log, known, Head(known.size, root) if root != known.root else head)
            problem = "it is not consistent with the cosigned checkpoint: another history"
            raise _Refused(problem, loss, note, head.size)

    def _check_statements(self, known: Head) -> None:
        """Check that the statements are consistent with the cosigned head."""
        try:
            tip = self._tip()
            root = self.judge.proofs.root(known.size) if tip.size >= known.size else b""
        except (FormatError, StoreError) as error:
            left = self._largest_below(known)
            raise _Refused(f"its statements cannot be read: {error}", None, left, known.size) from None
        if root == known.root:
            return
        if tip.size < known.size:
            problem = f"the log was rolled back, from {known.size} statements to {tip.size}"
            raise _Refused(problem, losses.rollback(self.log, known, tip), self._largest_below(known), known.size)
        problem, note = "its statements are not the cosigned ones: another history", self._largest_below(known)
        signed = self._first([known.size])
        if signed is not None and signed[1].root != known.root:
            problem, note = "two roots were signed for one size", signed[0]
        raise _Refused(problem, losses.fork(self.log, known, Head(known.size, root)), note, known.size)

    def _check_stored(self, known: Head) -> None:
        """Check that the cosigned checkpoint is unchanged."""
        key = layout.checkpoint_key(self.log, known.size)
        loss = Loss("checkpoint", loss_digest(str(self.log), key, known.root.hex(), "gone"), key=key)
        note: Note | None
        try:
            data = self.store.read(key, limit=limits.NOTE_BYTES)
            loss = Loss("checkpoint", sha256(data).hexdigest(), key=key)
            note = checkpoint.parse_note(data)
            parsed = checkpoint.parse_checkpoint(note.text)
        except ObjectMissing:
            problem, note = "the cosigned checkpoint is gone: the log was rolled back", self._largest_below(known)
        except FormatError as error:
            problem, note = f"the cosigned checkpoint was overwritten: {error}", self._largest_below(known)
        except StoreError as error:
            problem = f"the checkpoint cannot be read: {error}"
            raise _Refused(problem, None, size=known.size, remedy="check the store") from None
        else:
            refusal = self.judge.refusal(note, parsed)
            if refusal is None and parsed.head == known:
                return
            problem = f"the cosigned checkpoint was replaced by one that does not count: {refusal}"
            if refusal is None:
                problem = "two roots were signed for one size"
                if parsed.size == known.size:
                    loss = losses.wrong_checkpoint(self.log, parsed.head, known)
        remedy = f"restore {key}, or have the log's head signed again (`custody checkpoint --write {self.log}`)"
        raise _Refused(problem, loss, note, known.size, remedy=remedy)

    def _is_accepted(self, refused: _Refused, known: Sequence[Head]) -> bool:
        """Return whether a problem was accepted, or the rollback to the head from which the log continues."""
        if refused.loss is not None and refused.loss.is_accepted(self.trust):
            return True
        # With several known heads, a loss in `custody verify` names the largest. A smaller one is not about ours.
        given = self.trust.heads.get(str(self.log))
        larger = [given] if given is not None and all(given.size > head.size for head in known) else []
        return losses.is_continued(self.log, [*known, *larger], self.judge.proofs, self.trust)

    def _is_accepted_object(self, key: str) -> bool:
        """Return whether the object under a checkpoint's key was accepted, by its digest or without one."""
        digests = {
            accepted.sha256
            for accepted in self.trust.accepted
            if (accepted.finding, accepted.key) == ("checkpoint", key)
        }
        try:
            return None in digests or (bool(digests) and stored_digest(self.store, key) in digests)
        except (FormatError, StoreError):
            return False

    def _tip(self) -> Head:
        """Return the head up to the newest statement that may be valid, by the available keys."""
        valid = self.judge.is_valid
        return find_end(self.store, form_of(self.log), lambda entry, sequence: valid(entry, sequence) is not False).head

    def _largest_below(self, head: Head) -> Note | None:
        """Return the largest valid checkpoint below a head."""
        signed = self._first(size for size in reversed(checkpoint_sizes(self.store, self.log)) if size < head.size)
        return signed[0] if signed else None

    def _first(self, sizes: Iterable[int]) -> Signed | None:
        """Return the first valid checkpoint of these sizes."""
        with contextlib.suppress(StoreError):
            return next(self.judge.checkpoints(sizes), None)
        return None


def _make_folders(folder: Path) -> None:
    """Make a folder and its missing parents, and sync each entry.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        make_folders(str(folder))
    except OSError as error:
        raise ConfigurationError(f"the witness's folder {folder} cannot be made: {error.strerror}") from None
