"""Reads an archive: its identity, its logs, their entries, and where they end.

A slot without a valid entry stops nothing that a later entry passes over. Anyone who can write into the store can put
something there that looks like an entry. So each function has a parameter `holds`, which decides if an entry is valid
in its slot: see `custody.archive.trusted.Judge`. `search` finds the statement that has an offset or a time.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import takewhile
from typing import Generic, TypeVar

from custody.archive.forms import AUDITS, statements_of
from custody.archive.hints import unmisled
from custody.archive.last_slot import ANYWHERE, before_hole, find_last, parse_valid, valid_entry
from custody.archive.slots import slots_after
from custody.errors import ConfigurationError, FormatError, NoArchive, ObjectMissing
from custody.format import archive_file, layout, limits
from custody.format.archive_file import ArchiveFile
from custody.format.audit import SignedAudit
from custody.format.envelope import Tree, passed_over_message
from custody.format.layout import Log
from custody.format.manifest import Batch, Manifest
from custody.format.members import inflate_batch
from custody.store.protocol import Store
from custody.tlog import checkpoint, merkle
from custody.tlog.checkpoint import Checkpoint, Note
from custody.tlog.head import Head
from custody.tlog.log import Entry, Form
from custody.tlog.signatures import NOWHERE

__all__ = [
    "Tip",
    "choose_logs",
    "find_audit_tip",
    "find_tip",
    "list_logs",
    "read_archive",
    "read_audit",
    "read_manifest",
]

E = TypeVar("E", bound=Entry)
Holds = Callable[[E, int], bool]
"""Returns whether an entry is valid in its slot. Raises if the slot must not be passed over."""

_PIECE = 4 * 1_048_576
_MOST_HASHED = 256 * 1_048_576
_NAMES = 5
"""Names of logs in an error."""
_TO_DO = (
    "find out who wrote them, and remove those after the last valid entry. While they are locked, archive the topic in"
    " another archive"
)


def read_archive(store: Store) -> ArchiveFile:
    """Read `archive.json`.

    Raises:
        NoArchive: there is no archive here.
        FormatError: it is not of this format.
        StoreError: the store does not give it.
    """
    try:
        data = store.read(layout.ARCHIVE, limit=limits.ARCHIVE_FILE_BYTES)
    except ObjectMissing:
        raise NoArchive(store.url) from None
    try:
        return archive_file.parse(data)
    except FormatError as error:
        raise FormatError(
            f"{store.url}/{layout.ARCHIVE} does not follow FORMAT.md: {error}; is this the archive's root?"
        ) from None


def list_logs(store: Store, folder: str = layout.MANIFESTS) -> list[Log]:
    """Return every log that has an object in a folder, in order of topic, partition and epoch. Names prove nothing."""
    names = [
        f"{name}/{partition}" for name in store.level(folder)[0] for partition in store.level(f"{folder}{name}/")[0]
    ]
    return sorted(log for log in map(layout.parse_log_text, names) if log is not None)


def named_logs(store: Store, heads: Iterable[str]) -> list[Log]:
    """Return the logs that have statements or checkpoints, or a known head: a log whose statements are gone, too.

    Args:
        store: the archive.
        heads: names of logs with a known head.
    """
    named = filter(None, map(layout.parse_log_text, heads))
    return sorted({*list_logs(store), *list_logs(store, layout.CHECKPOINTS), *named} - {layout.AUDIT_LOG})


def unknown_log(name: str, logs: Collection[Log]) -> ConfigurationError:
    """Return the error for a log that is not there, with the names that are near, else the first ones."""
    known = [str(log) for log in sorted(logs)]
    within = [str(log) for log in sorted(logs) if re.match(rf"{re.escape(log.name)}[/-]{log.partition}[,:@/ -]", name)]
    if within:
        return ConfigurationError(f"{name[:300]!r} names a part of a log, and a log is wanted: give {within[0]}")
    topics = sorted({log.name for log in logs})
    near = difflib.get_close_matches(name[:300], known, _NAMES) or difflib.get_close_matches(name[:300], topics, _NAMES)
    if not known:
        hint = "it has none yet"
    elif near:
        hint = f"did you mean {', '.join(near)}?"
    else:
        more = ", …" if len(known) > _NAMES else ""
        hint = f"it has {', '.join(known[:_NAMES])}{more}"
    return ConfigurationError(f"the archive has no log {name[:300]!r}; {hint}")


def choose_logs(logs: Collection[Log], wanted: Sequence[str], also: Sequence[Log] = ()) -> list[Log]:
    """Return the named logs, sorted; all logs if none is named.

    Args:
        logs: the archive's logs.
        wanted: `<log>/<partition>`, or `<log>` for all its partitions.
        also: logs that are chosen only if they are named.

    Raises:
        ConfigurationError: there is no log of a name.
    """
    chosen: set[Log] = set()
    for name in wanted:
        named = {log for log in (*logs, *also) if name in {str(log), log.name}}
        if not named:
            raise unknown_log(name, logs)
        chosen |= named
    return sorted(chosen if wanted else logs)


def read_manifest(store: Store, log: Log, sequence: int, holds: Holds[Manifest]) -> Manifest:
    """Read one manifest.

    Args:
        store: the archive.
        log: the log.
        sequence: of the slot.
        holds: whether an entry is valid where it stands.

    Raises:
        ObjectMissing: there is none.
        FormatError: it does not parse, or is not valid there; the message names it.
        StoreError: the store does not give it.
    """
    return read_valid(store, statements_of(log), sequence, holds)


def read_batch(store: Store, key: str, batch: Batch) -> tuple[bytes, bytes]:
    """Return a batch's lines, as its statement states them, and its gzip member as stored.

    Args:
        store: the archive.
        key: of the segment.
        batch: what the statement says of it.

    Raises:
        FormatError: it is not the batch stated, or beyond the limits.
        StoreError: the store does not give it.
    """
    member = store.read(key, limit=limits.MEMBER_BYTES, start=batch.start, size=batch.size)
    return inflate_batch(batch, member), member


def read_audit(store: Store, sequence: int, holds: Holds[SignedAudit]) -> SignedAudit:
    """Read one audit; as `read_manifest`."""
    return read_valid(store, AUDITS, sequence, holds)


def read_valid(store: Store, form: Form[E], sequence: int, holds: Holds[E]) -> E:
    """Read one entry of any form; as `read_manifest`."""
    key = form.key(sequence)
    try:
        entry = form.parse(store.read(key, limit=limits.FILE_BYTES))
    except FormatError as error:
        raise FormatError(f"{key}: {error}") from None
    if not holds(entry, sequence):
        raise FormatError(f"{key} holds no valid {form.noun}")
    return entry


def read_entry(store: Store, form: Form[E], sequence: int, holds: Holds[E]) -> tuple[str, E | None]:
    """Return the SHA-256 in hex of a slot's bytes, and the entry if it is valid.

    Raises:
        ObjectMissing: the slot is empty.
        FormatError: it holds more than is hashed: see `stored_digest`.
        StoreError: the store does not give it.
    """
    key = form.key(sequence)
    try:
        data = store.read(key, limit=limits.FILE_BYTES)
    except FormatError:
        # It is too large for an entry.
        return stored_digest(store, key), None
    return sha256(data).hexdigest(), parse_valid(form, data, sequence, holds)


def stored_digest(store: Store, key: str) -> str:
    """Return the SHA-256 in hex of an object that may be too large for an entry, read piece by piece.

    Raises:
        ObjectMissing: there is none.
        FormatError: it is larger than `_MOST_HASHED`: a sparse file of any size costs who puts it there nothing.
        StoreError: the store does not give it.
    """
    digest, position = sha256(), 0
    while piece := store.read(key, limit=_PIECE, start=position, size=_PIECE):
        digest.update(piece)
        position += len(piece)
        if position > _MOST_HASHED:
            raise FormatError(
                f"{key} is larger than {_MOST_HASHED >> 20} MiB: it is not read, and cannot be passed over;"
                " find out who wrote it, and remove it"
            )
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Tip(Generic[E]):
    """Where a log ends.

    Attributes:
        size: how many slots are taken. The next entry goes into the slot of this number.
        compact_range: of the tree over all of them.
        newest: the newest valid entry, None if there is none.
        head: of the tree up to that entry.
        passed_over: digests of the slots after it, which have no valid entry. The next entry passes over them.
        is_last: whether the search has shown that no later slot has an object.
    """

    size: int = 0
    compact_range: merkle.CompactRange = ()
    newest: E | None = None
    head: Head = NOWHERE
    passed_over: tuple[str, ...] = ()
    is_last: bool = field(default=False, compare=False)

    @property
    def root(self) -> bytes:
        """The root of the tree over all slots, for the next entry."""
        return merkle.range_root(self.compact_range)

    @property
    def tree(self) -> Tree:
        """The tree before the next entry, as that entry states it."""
        return Tree(self.size, self.root.hex(), [node.hex() for node in self.compact_range])

    def behind(self, entry: E) -> "Tip[E]":
        """Return the tip after an entry that was put into the next slot."""
        compact_range = merkle.append(self.size, self.compact_range, merkle.leaf_hash(entry.message))
        return Tip(self.size + 1, compact_range, entry, Head(self.size + 1, merkle.range_root(compact_range)))

    def pass_over(self, digest: str) -> "Tip[E]":
        """Return the tip after the next slot, which has no valid entry. `digest` is the hex SHA-256 of its bytes.

        Raises:
            FormatError: there are more such slots in a row than an entry may pass over.
        """
        if len(self.passed_over) >= limits.PASSED_OVER:
            raise FormatError(
                f"{limits.PASSED_OVER} slots in a row have no valid entry, and no more may be passed over: {_TO_DO}"
            )
        leaf = merkle.leaf_hash(passed_over_message(digest))
        compact_range = merkle.append(self.size, self.compact_range, leaf)
        return replace(self, size=self.size + 1, compact_range=compact_range, passed_over=(*self.passed_over, digest))


def find_tip(store: Store, log: Log, holds: Holds[Manifest], hint: int = 0) -> Tip[Manifest]:
    """Find where a log ends, with O(log n) requests; with a good hint, in five.

    Args:
        store: the archive.
        log: the log.
        holds: whether an entry is valid where it stands.
        hint: the probable size of the log, from who is trusted: see `hints`. A wrong one only costs requests.

    Raises:
        FormatError: the newest manifest's tree is inconsistent, or the slots after it cannot be passed over.
        StoreError: the store does not answer.
    """
    return find_end(store, statements_of(log), holds, hint)


def find_audit_tip(store: Store, holds: Holds[SignedAudit], hint: int = 0) -> Tip[SignedAudit]:
    """Find where the log of audits ends; as `find_tip`."""
    return find_end(store, AUDITS, holds, hint)


def find_end(store: Store, form: Form[E], holds: Holds[E], hint: int = 0) -> Tip[E]:
    """Find where a log of any form ends; as `find_tip`."""

    def search(hint: int) -> Tip[E]:
        tip, before = None, ANYWHERE
        while tip is None:
            tip, before = _tip_or_empty(store, form, holds, hint, before)
            if tip is None:
                # Garbage lies behind the end, and whoever put it may know which slots a search looks at: so again, from
                # an entry that counts.
                valid = before_garbage(store, form, holds)
                hint = valid[0] + 1 if valid else 0
        return tip

    return unmisled(search, hint, lambda tip: tip.newest is not None)


def _tip_or_empty(store: Store, form: Form[E], holds: Holds[E], hint: int, before: int) -> tuple[Tip[E] | None, int]:
    """Return the tip after the last slot that is taken of those before `before`. Garbage there is passed over.

    If it is garbage behind an empty slot, return None and that slot: the log ends before it.
    """
    last, is_last = find_last(store, form, holds, hint, before)
    is_last = is_last and before == ANYWHERE
    if last < 0:
        return Tip(is_last=is_last), last
    entry = valid_entry(store, form, last, holds)
    if entry is not None:
        return replace(tip_behind(form, entry, last), is_last=is_last), last
    empty = _empty_before(store, form, last)
    if empty is not None and not any(valid_entry(store, form, slot, holds) for slot in range(last - 1, empty, -1)):
        return None, empty
    return replace(_behind_garbage(store, form, last, holds), is_last=is_last), last


def _behind_garbage(store: Store, form: Form[E], last: int, holds: Holds[E]) -> Tip[E]:
    """Return the tip after slots that have no valid entry, up to the last one."""
    behind: list[str] = []
    tip: Tip[E] = Tip()
    for sequence in range(last, -1, -1):
        digest, entry = read_entry(store, form, sequence, holds)
        if entry is not None:
            tip = tip_behind(form, entry, sequence)
            break
        behind.append(digest)
        if len(behind) > limits.PASSED_OVER:
            raise FormatError(
                f"{form.key(sequence)} and the {limits.PASSED_OVER} slots after it have no valid entry,"
                f" and no more may be passed over: {_TO_DO}"
            )
    for digest in reversed(behind):
        tip = tip.pass_over(digest)
    return tip


def _empty_before(store: Store, form: Form[E], last: int) -> int | None:
    """Return the nearest empty slot before one, of as many as may be passed over; None if there is none."""
    low = max(last - limits.PASSED_OVER - 1, -1)
    taken = set(takewhile(lambda slot: slot <= last, slots_after(store, form, low)))
    return next((slot for slot in range(last - 1, low, -1) if slot not in taken), None)


def before_garbage(store: Store, form: Form[E], holds: Holds[E]) -> tuple[int, E] | None:
    """Return a valid entry and its sequence: the newest one, or one before a slot that was passed over.

    For a log that `find_end` refuses, since too much garbage follows its end. It takes O(log n) reads.

    Raises:
        StoreError: the store does not answer.
    """
    valid: dict[int, E] = {}

    def is_valid(sequence: int) -> bool:
        entry = valid_entry(store, form, sequence, holds)
        if entry is not None:
            valid[sequence] = entry
        return entry is not None

    last = before_hole(is_valid)
    return (last, valid[last]) if last >= 0 else None


def tip_behind(form: Form[E], entry: E, sequence: int) -> Tip[E]:
    """Return the tip after an entry in its slot, by the tree that it states.

    Raises:
        FormatError: that tree is inconsistent.
    """
    tree = entry.statement.tree
    compact_range = tuple(map(bytes.fromhex, tree.compact_range))
    if (
        tree.size != sequence
        or len(compact_range) != sequence.bit_count()
        or merkle.range_root(compact_range).hex() != tree.root
    ):
        raise FormatError(f"the tree in {form.key(sequence)} is inconsistent; run `custody verify`")
    before: Tip[E] = Tip(sequence, compact_range)
    return before.behind(entry)


def manifests_from(
    store: Store, log: Log, sequence: int, end: int, holds: Holds[Manifest]
) -> Iterator[tuple[int, Manifest]]:
    """Yield the manifests of sequences `[sequence, end)`, without slots that have no valid one.

    Raises:
        StoreError: the store does not give one.
    """
    for number in range(sequence, end):
        try:
            yield number, read_manifest(store, log, number, holds)
        except (ObjectMissing, FormatError):
            continue


def read_checkpoint(store: Store, log: Log, size: int) -> tuple[Note, Checkpoint]:
    """Read the checkpoint of a size.

    Raises:
        ObjectMissing: there is none.
        FormatError: the object is not a checkpoint, or is of another size.
        StoreError: the store does not give it.
    """
    note = checkpoint.parse_note(store.read(layout.checkpoint_key(log, size), limit=limits.NOTE_BYTES))
    parsed = checkpoint.parse_checkpoint(note.text)
    if parsed.size != size:
        raise FormatError(f"{layout.checkpoint_key(log, size)} is of size {parsed.size}")
    return note, parsed


def checkpoint_sizes(store: Store, log: Log, after: int = -1) -> list[int]:
    """Return the sizes above `after` that have an object among a log's checkpoints, sorted."""
    start = layout.checkpoint_key(log, after) if after >= 0 else ""
    parsed = (layout.parse_checkpoint_key(info.key) for info in store.list(layout.checkpoint_prefix(log), after=start))
    return sorted(key[1] for key in parsed if key)


def read_checkpoints(store: Store, log: Log, sizes: Iterable[int]) -> Iterator[tuple[Note, Checkpoint]]:
    """Yield the well-formed checkpoints of these sizes. Raises StoreError if the store does not give one."""
    for size in sizes:
        with suppress(FormatError, ObjectMissing):
            yield read_checkpoint(store, log, size)
