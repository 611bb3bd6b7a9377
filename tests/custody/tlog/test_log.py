"""A signed log, told of its slots one by one: what it reports, where it stands, and which heads it takes.

Entries are written by `tests/helpers/archives.py`, which shares nothing with custody.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from custody.archive.forms import statements_of
from custody.errors import KeyUnavailable
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.keys.secret import Secret
from custody.keys.trust import TrustedKey
from custody.tlog import merkle
from custody.tlog.head import Head, KnownHead
from custody.tlog.log import Fault, SignedLog
from tests.helpers.archives import KEY_ID, SECRET, START, Builder, Edit, tree_hash, with_signatures

NEWER, NEWER_SECRET = "key-2027", b"7" * 32
KEY = TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET))
KEYS = {KEY_ID: KEY, NEWER: TrustedKey(NEWER, "HMAC-SHA256", from_=START, material=Secret(NEWER_SECRET))}
UNCHECKED = {KEY_ID: replace(KEY, material=None)}
SIZE = 7


@dataclass
class Told:
    """A signed log, and what it reported."""

    builder: Builder
    known: tuple[KnownHead, ...] = ()
    keys: dict[str, TrustedKey] = field(default_factory=lambda: KEYS)
    begin: int = 0
    accepted: frozenset[str] = frozenset()
    within: Callable[[int, bytes, Head], bool] = lambda _size, _root, _head: False
    unreadable: set[int] = field(default_factory=set)
    reports: list[tuple[str, int]] = field(default_factory=list)
    fields: list[dict[str, Any]] = field(default_factory=list)
    looked: list[int] = field(default_factory=list)
    verified: int = 0
    """Entries whose signatures count."""
    log: SignedLog[Manifest] = field(init=False)

    def __post_init__(self) -> None:
        self.log = SignedLog(
            self.builder.name,
            statements_of(Log("audit", 0)),
            self.keys,
            self._report,
            self._belongs,
            self.known,
            self.begin,
            self._following,
            self.within,
        )

    def _report(self, name: str, message: str, **where: Any) -> bool:
        assert message
        self.reports.append((name, where["sequence"]))
        self.fields.append({"what": message, **where})
        return name in self.accepted

    def _belongs(self, manifest: Manifest) -> Fault | None:
        return None if manifest.statement.log.partition == 0 else Fault("identity", "of another partition")

    def data(self, sequence: int) -> bytes | None:
        path = self.builder.path(sequence)
        return path.read_bytes() if path.exists() else None

    def _following(self, first: int) -> Iterator[tuple[int, bytes]]:
        for sequence in range(first, len(self.builder.entries)):
            if (data := self.data(sequence)) is not None:
                self.looked.append(sequence)
                yield sequence, data

    def run(self, end: int | None = None, *, whole: bool = True) -> "Told":
        """Pass each slot to the log, as the verifier does."""
        for sequence in range(self.begin, len(self.builder.entries) if end is None else end):
            data = self.data(sequence)
            if data is None:
                continue
            if sequence > self.log.size:
                self.log.gap(self.log.size, sequence)
            if sequence in self.unreadable:
                self.log.unreadable(sequence)
            elif self.log.step(sequence, data) is not None and self.log.signers:
                self.verified += 1
        self.log.end(whole=whole)
        return self

    @property
    def head(self) -> tuple[int, bytes | None]:
        return self.log.size, self.log.root


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    made = Builder(tmp_path / "archive")
    for _ in range(SIZE):
        made.append(3)
    return made


def known(builder: Builder, size: int, **more: Any) -> KnownHead:
    return KnownHead(size, tree_hash(builder.entries[:size]), "somebody", **more)


def test_a_good_log(builder: Builder) -> None:
    """A good log gives no report, and its head is the one of RFC 6962."""
    told = Told(builder).run()
    assert told.reports == []
    assert told.head == builder.head
    assert (told.verified, told.log.sound, told.log.signers) == (SIZE, True, (KEY_ID,))
    assert (told.log.unverified, told.log.pending, told.log.covered) == (None, None, 0)
    assert told.looked == [], "nothing is looked at ahead where nothing is wrong"


def test_an_empty_log(tmp_path: Path) -> None:
    """A log without an entry has the empty tree, and no head."""
    told = Told(Builder(tmp_path)).run()
    assert told.reports == []
    assert told.head == (0, merkle.EMPTY_ROOT)


# --- holes


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 3), (2, 3), (2, 5), (1, 6)])
def test_a_gap(builder: Builder, first: int, end: int) -> None:
    """Behind entries that are missing the tree is taken up again, and leads to the same root."""
    for sequence in range(first, end):
        builder.path(sequence).unlink()
    told = Told(builder)
    assert told.log.gap(first, end) == (first, end) if not first else True
    told = Told(builder).run()
    assert told.reports == []
    assert told.head == builder.head
    assert told.verified == SIZE - (end - first)


def test_a_gap_is_told_once(builder: Builder) -> None:
    """A gap is what nothing passes over, and the log is lost until the next entry."""
    log = Told(builder).log
    assert log.gap(0, 2) == (0, 2)
    assert (log.size, log.lost, log.compact_range) == (2, True, None)
    log.step(2, builder.path(2).read_bytes())
    assert (log.size, log.lost) == (3, False)
    assert log.root == tree_hash(builder.entries[:3])


def test_behind_a_gap_another_history(builder: Builder) -> None:
    """An entry behind a gap whose compact range does not extend what is known is another history."""
    other = builder.copy(builder.root.parent / "other")
    other.go_back(1)
    for _ in range(SIZE):
        other.append(2)
    for sequence in (5, 6):
        builder.path(sequence).write_bytes(other.path(sequence).read_bytes())
    builder.path(4).unlink()
    told = Told(builder).run()
    assert told.reports == [("tree", 5)]
    assert not told.log.sound


def test_unreadable(builder: Builder) -> None:
    """An entry that cannot be read loses the tree until the next one; its owner reports it."""
    told = Told(builder)
    told.log.unreadable(0)
    assert (told.log.size, told.log.lost, told.log.root) == (1, True, None)
    told.begin = 1
    told.run()
    assert told.reports == []
    assert told.head == builder.head


@pytest.mark.parametrize("data", [b"", b"noise", b"{}\n{}\n", b"a\nb\nc\n"])
def test_malformed(builder: Builder, data: bytes) -> None:
    """Bytes that are no entry are reported once, by their digest, and the log goes on behind them."""
    builder.path(3).write_bytes(data)
    told = Told(builder).run()
    assert told.reports == [("statement", 3)]
    assert told.fields[0]["sha256"] == sha256(data).hexdigest()
    assert told.fields[0]["key"] == "manifests/audit/0/000000000003.json"
    assert told.head == builder.head
    assert not told.log.sound


def test_what_was_accepted_keeps_the_log_sound(builder: Builder) -> None:
    """A finding that somebody judged does not keep the head from being remembered."""
    builder.path(3).write_bytes(b"noise")
    assert Told(builder, accepted=frozenset({"statement"})).run().log.sound


# --- line 2


@pytest.mark.parametrize("second", [b"", b"noise\n", b'{"signatures":[{}]}\n', b'{"signatures":[]} \n'])
def test_a_broken_line_2(builder: Builder, second: bytes) -> None:
    """Line 1 is read although line 2 is broken or empty: its tree, and that nobody signed it."""
    path = builder.path(3)
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n" + second)
    told = Told(builder).run()
    assert told.reports == [("signature", 3)]
    assert told.head == builder.head
    assert (told.verified, told.log.sound, told.log.unverified) == (SIZE - 1, False, None)


def test_wrong_signatures_are_one_row(builder: Builder) -> None:
    """A signature that does not hold is reported for each entry, joined by the key."""
    told = Told(builder, keys={KEY_ID: replace(KEY, material=Secret(b"0" * 32))}).run()
    assert told.reports == [("signature", sequence) for sequence in range(SIZE)]
    assert {one["group"] for one in told.fields} == {KEY_ID}
    assert told.verified == 0
    assert told.log.signers == ()


def test_an_unknown_key(builder: Builder) -> None:
    """Entries by a key that nobody knows are unverified by a finding of their own, and wait for no checkpoint."""
    told = Told(builder, keys={}).run()
    assert {name for name, _ in told.reports} == {"key-unknown"}
    assert (told.log.unverified, told.log.pending, told.log.sound) == (None, None, False)


def test_an_older_key(builder: Builder) -> None:
    """An older key that signs after a newer one is tampering; what it signed does not count."""
    builder.key_id, builder.secret = NEWER, NEWER_SECRET
    builder.append(1)
    builder.key_id, builder.secret = KEY_ID, SECRET
    builder.append(1)
    told = Told(builder).run()
    assert told.reports == [("key-span", SIZE + 1)]
    assert told.fields[0]["tampered"] is True
    assert told.verified == SIZE + 1
    assert not told.log.sound


def test_outside_its_span(builder: Builder) -> None:
    """A key outside its span is policy: the entry counts, and the head is remembered."""
    told = Told(builder, keys={KEY_ID: replace(KEY, to=START)}).run()
    assert {name for name, _ in told.reports} == {"key-span"}
    assert not any(one.get("tampered") for one in told.fields)
    assert (told.verified, told.log.sound) == (SIZE, True)


# --- ended keys


def ended(builder: Builder, size: int, root: bytes | None = None) -> dict[str, TrustedKey]:
    head = Head(size, tree_hash(builder.entries[:size]) if root is None else root)
    return {KEY_ID: replace(KEY, until={builder.name: head})}


def test_beyond_the_end_of_a_key(builder: Builder) -> None:
    """Each entry at or beyond the head at which its key ended is tampering, and does not count."""
    told = Told(builder, keys=ended(builder, 5)).run()
    assert told.reports == [("key-span", 5), ("key-span", 6)]
    assert told.verified == 5
    assert not told.log.sound


def test_within_the_end_of_a_key(builder: Builder) -> None:
    """Entries before the head at which their key ended count if the tree leads there."""
    told = Told(builder, keys=ended(builder, SIZE)).run()
    assert told.reports == []
    assert told.verified == SIZE
    assert told.log.broken == set()


def test_another_tree_than_at_the_end_of_a_key(builder: Builder) -> None:
    """If the tree has another root there, nothing of what the key signed counts."""
    keys, root = ended(builder, 5, b"\1" * 32), b"\1" * 32
    told = Told(builder, known=(KnownHead(5, root, "the end of the key"),), keys=keys).run()
    assert told.reports == [("key-span", 5), ("head-fork", 4), ("key-span", 6)]
    assert told.log.broken == {KEY_ID}


@pytest.mark.parametrize("shown", [True, False])
def test_a_part_before_the_end_of_a_key(builder: Builder, *, shown: bool) -> None:
    """A part that ends before that head counts only if its tree is shown to be a prefix of it."""
    asked = []

    def within(size: int, root: bytes, head: Head) -> bool:
        asked.append((size, root, head.size))
        return shown

    told = Told(builder, keys=ended(builder, 6), within=within).run(4, whole=False)
    assert asked == [(4, tree_hash(builder.entries[:4]), 6)]
    assert told.reports == ([] if shown else [("key-span", 3)])
    assert told.log.broken == (set() if shown else {KEY_ID})
    assert told.log.sound is shown


def test_a_key_that_began_behind_a_gap(builder: Builder) -> None:
    """What another key signed before a gap says nothing against an ended key that has signed since."""
    builder.path(1).unlink()
    newer = replace(KEY, id="newer", material=Secret(b"n" * 32), until={builder.name: Head(SIZE, bytes(32))})
    first = builder.path(0).read_bytes()
    builder.key_id, builder.secret = "newer", b"n" * 32
    for sequence in range(2, SIZE):
        builder.path(sequence).write_bytes(builder.sign(builder.lines[sequence]))
    assert builder.path(0).read_bytes() == first
    told = Told(builder, keys={KEY_ID: KEY, "newer": newer}).run()
    assert told.log.broken == set()
    assert told.verified == SIZE - 1


def test_an_ended_key_before_a_gap_right_at_the_start(builder: Builder) -> None:
    """The first entry is in doubt too."""
    builder.path(1).unlink()
    assert Told(builder, keys=ended(builder, SIZE)).run().reports[-1] == ("key-span", 0)


def test_rows(builder: Builder) -> None:
    """Findings of one kind and key are joined: outside a span, beyond an end, and not over the bytes are three."""
    span = Told(builder, keys={KEY_ID: replace(KEY, to=START)}).run()
    assert {fields["group"] for fields in span.fields} == {f"span {KEY_ID}"}
    assert span.reports == [("key-span", sequence) for sequence in range(SIZE)]
    beyond = Told(builder, keys=ended(builder, 5)).run()
    assert {fields["group"] for fields in beyond.fields} == {f"ended {KEY_ID}"}
    builder.secret = b"0" * 32
    builder.resign(SIZE - 1, lambda _: None)
    wrong = Told(builder).run()
    assert [fields["group"] for fields in wrong.fields] == [KEY_ID]
    assert wrong.fields[0]["what"] == f"the signature of key {KEY_ID!r} is not over this statement"


def test_a_second_signature(builder: Builder) -> None:
    """One signature too many: nothing counts, and each is told of, whatever the one before it was."""
    line, second = builder.path(SIZE - 1).read_bytes().split(b"\n")[:2]
    listed = json.loads(second)["signatures"]
    builder.path(SIZE - 1).write_bytes(with_signatures(line, [*listed, {**listed[0], "key": "who"}]))
    told = Told(builder).run()
    assert told.reports == [("signature", SIZE - 1), ("key-unknown", SIZE - 1)]
    assert told.log.signers == ()
    told = Told(builder, keys=UNCHECKED).run()
    assert [name for name, _ in told.reports][-3:] == ["signature", "unchecked-signature", "key-unknown"]


def test_a_line_too_many(builder: Builder) -> None:
    """What has three lines is no entry with a broken second one."""
    builder.path(3).write_bytes(builder.path(3).read_bytes() + b"\n")
    assert Told(builder).run().reports == [("statement", 3)]


def test_where_a_log_is_behind_each_slot(builder: Builder) -> None:
    """It goes on at the next slot, whatever this one held."""
    other = builder.copy(builder.root.parent / "other")
    other.append(5, edit=lambda statement: statement["log"].update(partition=1))
    foreign = other.path(SIZE).read_bytes()
    builder.pass_over(b"noise")
    builder.append(2)
    told = Told(builder)
    for sequence in range(SIZE):
        told.log.step(sequence, foreign if sequence == 3 else builder.path(sequence).read_bytes())
        assert told.log.size == sequence + 1
    told.log.step(SIZE, b"noise")
    assert told.log.size == SIZE + 1
    told.log.end()


# --- places


def test_swapped(builder: Builder) -> None:
    """Two entries that were swapped are both out of order."""
    first, second = builder.path(2), builder.path(4)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    told = Told(builder).run()
    assert told.reports == [("tree", 2), ("tree", 4)]
    assert told.head == builder.head


def test_replayed(builder: Builder) -> None:
    """An older entry in the place of a later one is not that one."""
    builder.path(5).write_bytes(builder.path(2).read_bytes())
    told = Told(builder).run()
    assert told.reports == [("identity", 5)]
    assert (told.fields[0]["expected"], told.fields[0]["found"]) == ("sequence 5", "sequence 2")


def test_of_another_log(builder: Builder) -> None:
    """An entry of another log is reported by what its owner says of it, and lost."""
    other = Builder(builder.root.parent / "other", partition=1)
    for _ in range(4):
        other.append()
    builder.path(3).write_bytes(other.path(3).read_bytes())
    told = Told(builder).run()
    assert told.reports == [("identity", 3)]
    assert told.head == builder.head


# --- the tree


def test_a_changed_entry_shows_in_the_next(builder: Builder) -> None:
    """An entry that was changed and signed again is reported once, by its successor."""
    builder.resign(3, lambda statement: statement.update(writer="somebody else"))
    told = Told(builder).run()
    assert told.reports == [("tree", 4)]
    assert not told.log.sound
    assert told.head == builder.head, "later trees agree with what was there before"


@pytest.mark.parametrize(
    "edit",
    [
        lambda tree: tree.update(root="0" * 64),
        lambda tree: tree.update(size=tree["size"] + 1),
        lambda tree: tree["compact_range"].pop(),
        lambda tree: tree["compact_range"].reverse(),
    ],
    ids=["root", "size", "short", "order"],
)
def test_a_tree_that_does_not_hold_together(builder: Builder, edit: Edit) -> None:
    """A stated tree whose parts contradict each other is reported, and what was recomputed goes on."""
    builder.resign(3, lambda statement: edit(statement["tree"]))
    told = Told(builder).run()
    assert told.reports == [("tree", 3), ("tree", 4)]
    assert "does not follow from its compact range" in told.fields[0]["what"]


def test_nothing_known_and_no_tree(builder: Builder) -> None:
    """Behind a gap, an entry whose tree contradicts itself is reported, and its root is still compared with heads."""
    builder.path(2).unlink()
    builder.resign(3, lambda statement: statement["tree"].update(compact_range=["0" * 64] * 2))
    told = Told(builder, known=(KnownHead(3, b"\1" * 32, "somebody"),)).run()
    assert told.reports == [("tree", 3), ("head-fork", 2)]


# --- known heads


@pytest.mark.parametrize("size", range(1, SIZE + 1))
def test_known_heads_that_agree(builder: Builder, size: int) -> None:
    """A trusted head covers what is before it, and remembers its root."""
    told = Told(builder, known=(known(builder, size, trusted=True),)).run()
    assert told.reports == []
    assert (told.log.covered, told.log.covered_root) == (size, tree_hash(builder.entries[:size]))


def test_known_heads_that_are_not_trusted(builder: Builder) -> None:
    """A head that only somebody remembers is compared, and covers nothing."""
    assert Told(builder, known=(known(builder, 4),)).run().log.covered == 0


@pytest.mark.parametrize("size", [1, 4, SIZE])
@pytest.mark.parametrize("checkpoint", [None, "checkpoints/audit/0/x"])
def test_a_fork(builder: Builder, size: int, checkpoint: str | None) -> None:
    """Another root at a known size is a fork; where a checkpoint signs it, the finding names that."""
    head = KnownHead(size, b"\1" * 32, "somebody", trusted=True, checkpoint=checkpoint, evidence="signed text")
    told = Told(builder, known=(head,)).run()
    assert told.reports == [("checkpoint" if checkpoint else "head-fork", size - 1)]
    (shown,) = told.fields
    assert shown["evidence"] == ("signed text", builder.path(min(size, SIZE - 1)).read_text())
    assert (b"\1" * 32).hex() in shown["expected"]
    assert tree_hash(builder.entries[:size]).hex() in shown["found"]
    assert shown["loss"] == (builder.name, shown["expected"], shown["found"])
    assert (told.log.covered, told.log.sound) == (0, False)


def test_a_size_without_a_root(builder: Builder) -> None:
    """Where only a size is known, it is enough that the log reaches it."""
    assert Told(builder, known=(KnownHead(4, None, "somebody"),)).run().reports == []
    assert Told(builder, known=(KnownHead(9, None, "somebody"),)).run().reports == [("head-rollback", SIZE)]


def test_the_log_went_back(builder: Builder) -> None:
    """A head beyond the end is a rollback, told once by the largest; a part of a log says nothing of it."""
    heads = (KnownHead(9, b"\1" * 32, "this one"), KnownHead(12, b"\2" * 32, "that one", evidence="text"))
    told = Told(builder, known=heads).run()
    assert told.reports == [("head-rollback", SIZE)]
    (shown,) = told.fields
    assert "that one" in shown["what"]
    assert (shown["through"], shown["evidence"]) == (11, ("text",))
    assert shown["expected"] == f"size 12, root {(b'2' * 0 + bytes([2]) * 32).hex()}"
    assert shown["found"] == f"size {SIZE}, root {builder.head[1].hex()}"
    assert Told(builder, known=heads).run(whole=False).reports == []


def test_a_head_behind_a_loss_covers_nothing(builder: Builder) -> None:
    """Behind a gap a stated root that a trusted head agrees with does not vouch for what is missing."""
    builder.path(3).unlink()
    assert Told(builder, known=(known(builder, 4, trusted=True),)).run().log.covered == 0


@pytest.mark.parametrize("how", ["gone", "unreadable", "no manifest"])
def test_a_gap_hides_no_fork_before_it(builder: Builder, how: str) -> None:
    """A head that is known where a gap begins is compared there: what was changed before it shows."""
    known_there = (known(builder, 5, trusted=True),)
    lose(builder, 5, how)
    lost = Told(builder, known=known_there, unreadable={5} if how == "unreadable" else set()).run()
    assert ("head-fork", 4) not in lost.reports
    assert lost.log.covered == 5
    builder.resign(4, lambda statement: statement.update(writer="somebody else"))
    told = Told(builder, known=known_there, unreadable={5} if how == "unreadable" else set()).run()
    assert ("head-fork", 4) in told.reports
    assert told.log.covered == 0


def lose(builder: Builder, sequence: int, how: str) -> None:
    if how == "gone":
        builder.path(sequence).unlink()
    elif how == "no manifest":
        builder.path(sequence).write_bytes(b"garbage")


@pytest.mark.parametrize(("gone", "unlinked"), [(1, (0, 1)), (2, None), (3, (0, 3)), (4, None), (5, (4, 5)), (6, None)])
def test_what_no_later_tree_leads_to_is_covered_by_nothing(
    builder: Builder, gone: int, unlinked: tuple[int, int] | None
) -> None:
    """Behind a gap the tree leads to the subtrees that both sides have in common, and to nothing else before it."""
    builder.append(3)
    builder.path(gone).unlink()
    keyless = {KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256")}
    told = Told(builder, known=(known(builder, SIZE + 1, trusted=True),), keys=keyless).run()
    assert told.log.unlinked == ([unlinked] if unlinked else [])
    assert told.log.covered == SIZE + 1
    for sequence in range(SIZE + 3):
        linked = unlinked is None or not unlinked[0] <= sequence < unlinked[1]
        assert told.log.covers(sequence) is (linked and sequence < SIZE + 1)
    assert told.log.pending is None
    # Without any head what is linked goes on waiting, and so does what follows the gap.
    assert Told(builder, keys=keyless).run().log.pending == {1: 2, 3: 4}.get(gone, 0)
    # With a trusted head right where the gap begins, that one leads to them.
    there = (known(builder, SIZE + 1, trusted=True), known(builder, gone, trusted=True))
    assert Told(builder, known=there, keys=keyless).run().log.unlinked == []


def test_what_lies_before_a_gap_at_the_end(builder: Builder) -> None:
    """Where nothing follows a gap, entries before it are covered by heads of before it alone."""
    keyless = {KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256")}
    builder.path(SIZE - 1).write_bytes(b"garbage")
    told = Told(builder, known=(known(builder, 4, trusted=True),), keys=keyless).run()
    assert told.log.unlinked == [(4, SIZE - 1)]
    assert [told.log.covers(sequence) for sequence in (3, 4)] == [True, False]
    assert Told(builder, keys=keyless).run().log.unlinked == [(0, SIZE - 1)]


@pytest.mark.parametrize("shown", [True, False])
def test_what_an_ended_key_signed_before_a_gap(builder: Builder, *, shown: bool) -> None:
    """What an ended key signed counts only if it is shown to lie within its end, whatever was removed behind it."""
    keys = ended(builder, SIZE)
    told = Told(builder, keys=keys, within=lambda *_: shown).run()
    assert told.log.broken == set()
    builder.path(5).unlink()
    asked = []

    def within(size: int, root: bytes, head: Head) -> bool:
        asked.append((size, root, head.size))
        return shown

    told = Told(builder, keys=keys, within=within).run()
    assert told.log.broken == (set() if shown else {KEY_ID})
    assert asked == [(5, tree_hash(builder.entries[:5]), SIZE)]
    if not shown:
        assert told.reports[-1] == ("key-span", 4)
        assert told.fields[-1]["tampered"] is True
        fields = told.fields[-1]
        assert (fields["loss"], fields["group"]) == ((builder.name, KEY_ID, "5"), f"until {KEY_ID}")
        assert fields["what"].endswith("are not shown to lie within that head")


def test_the_key_of_a_checkpoint_ended_before(builder: Builder) -> None:
    """A checkpoint of entries that were sealed after the span of its key is policy."""
    sealed = builder.statements[3]["sealed_at"]
    moment = START + timedelta(hours=1) + 3 * timedelta(seconds=15)
    for ends, expected in ((moment, [("key-span", 3)]), (moment + timedelta(microseconds=1), [])):
        head = known(builder, 4, trusted=True, checkpoint="x", ends=ends)
        told = Told(builder, known=(head,)).run()
        assert told.reports == expected
        assert told.log.covered == 4
        if expected:
            wanted = {
                "key": "x",
                "group": "checkpoints",
                "found": sealed,
                "expected": f"sealed before {moment:%Y-%m-%dT%H:%M:%SZ}",
            }
            assert told.fields[0].items() >= wanted.items()
            assert told.fields[0]["what"] == "the key of the checkpoint signs entries that were sealed after its span"


# --- without the secret


@pytest.mark.parametrize("covered", [0, 3, SIZE])
def test_pending(builder: Builder, covered: int) -> None:
    """What nobody here can check waits for a trusted head from the first entry on that none covers."""
    heads = (known(builder, covered, trusted=True),) if covered else ()
    told = Told(builder, keys=UNCHECKED, known=heads).run()
    log = told.log
    assert log.unverified == (0, SIZE)
    assert told.verified == 0
    if covered == SIZE:
        assert (log.pending, log.sound) == (None, True)
    else:
        assert log.pending == covered
        assert log.pending_since == builder.statements[covered]["sealed_at"]


# --- slots that are passed over


@pytest.mark.parametrize("data", [b"", b"noise", b"a\nb\n"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("gone", [False, True])
def test_passed_over(builder: Builder, data: bytes, count: int, *, gone: bool) -> None:
    """A slot that the next entry passes over is a leaf of its own, and a notice, also if it is empty now."""
    for number in range(count):
        builder.pass_over(data + bytes([48 + number]))
    builder.append(2)
    builder.append(2)
    if gone:
        for number in range(count):
            builder.path(SIZE + number).unlink()
    told = Told(builder, known=(known(builder, SIZE + count + 1, trusted=True),)).run()
    assert told.reports == [("passed-over", SIZE + number) for number in range(count)]
    assert told.head == builder.head
    assert (told.log.sound, told.log.covered, told.verified) == (True, SIZE + count + 1, SIZE + 2)
    assert told.looked[0] == SIZE + (count if gone else 1)
    assert len(told.looked) == len(set(told.looked)), "each slot is looked at ahead once"


def test_some_gone_before_what_is_passed_over(builder: Builder) -> None:
    """Of a gap only the slots that a later entry passes over are excused."""
    builder.pass_over()
    builder.append(2)
    for sequence in (SIZE - 2, SIZE - 1, SIZE):
        builder.path(sequence).unlink()
    told = Told(builder)
    for sequence in range(SIZE - 2):
        told.log.step(sequence, builder.path(sequence).read_bytes())
    assert told.log.gap(SIZE - 2, SIZE + 1) == (SIZE - 2, SIZE)
    told.log.step(SIZE + 1, builder.path(SIZE + 1).read_bytes())
    assert told.reports == [("passed-over", SIZE)]
    assert told.head == builder.head


def test_other_bytes_than_were_passed_over(builder: Builder) -> None:
    """A slot that holds other bytes than those that were passed over is tampering."""
    builder.pass_over(b"noise")
    builder.append(2)
    builder.path(SIZE).write_bytes(b"other")
    told = Told(builder).run()
    assert told.reports == [("statement", SIZE)]
    assert told.fields[0]["expected"] == sha256(b"noise").hexdigest()
    assert told.fields[0]["found"] == sha256(b"other").hexdigest()
    assert told.fields[0]["what"] == "the slot was passed over, and holds other bytes now"
    assert told.head == builder.head
    assert not told.log.sound


@pytest.mark.parametrize("secret", [b"0" * 32, None], ids=["wrong secret", "no signature"])
def test_a_forged_entry_is_passed_over(builder: Builder, secret: bytes | None) -> None:
    """An entry that no trusted key signed is passed over as noise is."""
    other = builder.copy(builder.root.parent / "other")
    other.secret = secret or SECRET
    other.append(5)
    data = other.path(SIZE).read_bytes()
    data = data if secret else data.split(b"\n")[0] + b'\n{"signatures":[]}\n'
    builder.pass_over(data)
    builder.append(2)
    told = Told(builder).run()
    assert told.reports == [("passed-over", SIZE)]
    assert told.fields[0]["sha256"] == digest(builder, SIZE)
    assert told.head == builder.head
    # Nor does one keep the noise before it from being passed over.
    copy = builder.copy(builder.root.parent / "third")
    copy.go_back(SIZE)
    copy.passed.clear()
    copy.pass_over(b"noise")
    copy.pass_over(data.replace(b'"sequence":%d' % SIZE, b'"sequence":%d' % (SIZE + 1)))
    copy.append(2)
    assert Told(copy).run().reports == [("passed-over", SIZE), ("passed-over", SIZE + 1)]


@pytest.mark.parametrize("keys", [KEYS, UNCHECKED], ids=["with the secret", "without"])
def test_an_entry_by_an_unknown_key_is_passed_over(builder: Builder, keys: dict[str, TrustedKey]) -> None:
    """What an unknown key signed is passed over where a trusted key says so, by those too who cannot check it."""
    other = builder.copy(builder.root.parent / "other")
    other.key_id = "who"
    other.append(5)
    builder.pass_over(other.path(SIZE).read_bytes())
    builder.append(2)
    told = Told(builder, keys=keys).run()
    assert ("passed-over", SIZE) in told.reports
    assert {name for name, _ in told.reports} <= {"passed-over", "unchecked-signature"}
    assert told.head == builder.head


def test_a_good_entry_passed_over_is_a_fork(builder: Builder) -> None:
    """A slot that holds an entry with a good signature cannot be passed over: two histories were signed."""
    other = builder.copy(builder.root.parent / "other")
    other.append(5)
    builder.pass_over(other.path(SIZE).read_bytes())
    builder.append(2)
    builder.append(2)
    told = Told(builder).run()
    assert told.reports == [("head-fork", SIZE)]
    assert told.fields[0]["through"] == SIZE
    assert told.head == builder.head
    assert not told.log.sound


def test_an_unsigned_entry_passes_nothing_over(builder: Builder) -> None:
    """Who has no key cannot make another entry one that was passed over."""
    builder.path(3).write_bytes(b"noise")
    other = builder.copy(builder.root.parent / "other")
    other.go_back(3)
    other.pass_over(b"noise")
    for name, key_id, secret in (("unknown", "who", SECRET), ("forged", KEY_ID, b"0" * 32)):
        copy = other.copy(builder.root.parent / name)
        copy.key_id, copy.secret = key_id, secret
        copy.append(3)
        builder.path(4).write_bytes(copy.path(4).read_bytes())
        told = Told(builder).run()
        assert ("statement", 3) in told.reports
        assert "passed-over" not in dict(told.reports)


@pytest.mark.parametrize("kind", ["of another log", "of another slot", "without a good line 2"])
def test_what_is_no_entry_of_the_place_passes_nothing_over(builder: Builder, kind: str) -> None:
    """Only an entry of this log and its own slot, with both lines, says that a slot was passed over."""
    builder.path(3).write_bytes(b"noise")
    other = builder.copy(builder.root.parent / "other")
    other.go_back(3)
    other.pass_over(b"noise")
    if kind == "of another log":
        other.append(3, edit=lambda statement: statement["log"].update(partition=1))
    else:
        other.append(3)
    data = other.path(4).read_bytes()
    if kind == "without a good line 2":
        data = data.split(b"\n")[0] + b"\nnoise\n"
    at = 5 if kind == "of another slot" else 4
    builder.path(at).write_bytes(data)
    told = Told(builder).run()
    assert ("statement", 3) in told.reports
    assert "passed-over" not in dict(told.reports)


def test_noise_before_what_passes_over(builder: Builder) -> None:
    """Of several slots in a row that hold nothing valid each is looked past, whatever it holds."""
    other = builder.copy(builder.root.parent / "other")
    other.append(2, edit=lambda statement: statement["log"].update(partition=1))
    foreign = other.path(SIZE).read_bytes()
    builder.pass_over(b"noise")
    builder.pass_over(foreign)
    builder.append(2)
    told = Told(builder).run()
    assert told.reports == [("passed-over", SIZE), ("passed-over", SIZE + 1)]
    assert [fields["group"] for fields in told.fields] == [f"there before {SIZE + 2}"] * 2
    assert not any("empty now" in fields["what"] for fields in told.fields)
    builder.path(SIZE).unlink()
    told = Told(builder).run()
    assert [fields["group"] for fields in told.fields] == [f"gone before {SIZE + 2}", f"there before {SIZE + 2}"]
    assert told.fields[0]["what"].endswith("passed over it, and is empty now")


def test_a_gap_that_was_passed_over_whole(builder: Builder) -> None:
    """Nothing is missing where a later entry passes over all of it, and the tree goes on."""
    builder.pass_over()
    builder.append(2)
    builder.path(SIZE).unlink()
    told = Told(builder)
    for sequence in range(SIZE):
        told.log.step(sequence, builder.path(sequence).read_bytes())
    assert told.log.gap(SIZE, SIZE + 1) is None
    assert not told.log.lost
    assert told.log.root == tree_hash(builder.entries[: SIZE + 1])


def test_noise_at_the_end(builder: Builder) -> None:
    """What nothing passes over yet is no entry."""
    builder.pass_over()
    told = Told(builder).run()
    assert told.reports == [("statement", SIZE)]


def test_a_span_that_begins_within(builder: Builder) -> None:
    """A span that begins with a slot that was passed over goes on behind it."""
    builder.pass_over(b"one")
    builder.pass_over(b"two")
    builder.append(2)
    builder.append(2)
    told = Told(builder, begin=SIZE + 1).run()
    assert told.reports == [("passed-over", SIZE + 1)]
    assert told.head == builder.head


def test_looking_ahead_is_bounded(builder: Builder) -> None:
    """However many slots hold noise, each is looked at ahead once, and no more than a thousand at a time."""
    for number in range(1200):
        builder.pass_over(str(number).encode())
    told = Told(builder).run()
    assert len(told.reports) == 1200
    assert len(told.looked) <= 2 * 1200
    assert told.log.size == SIZE + 1200


def test_what_was_read_is_not_read_again(builder: Builder) -> None:
    """The object behind the one in hand is taken from who read it already."""
    builder.pass_over()
    builder.append(2)
    told = Told(builder)
    for sequence in range(SIZE):
        told.log.step(sequence, builder.path(sequence).read_bytes())
    told.log.peek = SIZE + 1, builder.path(SIZE + 1).read_bytes()
    assert told.log.step(SIZE, builder.path(SIZE).read_bytes()) is None
    assert told.looked == []
    assert told.log.step(*told.log.peek) is not None
    assert told.head == builder.head


# --- parts


@pytest.mark.parametrize("cut", range(1, SIZE))
def test_parts_add_up(builder: Builder, cut: int) -> None:
    """Parts that cover a log lead to its head, and meet at their seam."""
    first, second = Told(builder).run(cut, whole=False), Told(builder, begin=cut).run()
    first.log.seam(builder.path(cut).read_bytes())
    assert first.reports == second.reports == []
    assert first.head == (cut, tree_hash(builder.entries[:cut]))
    assert second.head == builder.head


def test_a_seam_that_does_not_meet(builder: Builder) -> None:
    """Where the next entry's tree is not the one that a part led to, the part reports it."""
    builder.resign(3, lambda statement: statement.update(writer="somebody else"))
    told = Told(builder).run(4, whole=False)
    told.log.seam(builder.path(4).read_bytes())
    assert told.reports == [("tree", 4)]
    assert told.fields[0]["sha256"] == digest(builder, 4)
    assert told.fields[0]["what"] == "the tree signed here is not that of the statements before"
    size, root = told.head
    assert root
    assert told.fields[0]["expected"] == f"size {size}, root {root.hex()}"
    assert told.fields[0]["found"] == f"size 4, root {tree_hash(builder.entries[:4]).hex()}"
    assert not told.log.sound
    noise = Told(builder).run(4, whole=False)
    noise.log.seam(b"noise")
    assert noise.reports == [], "what is no entry is reported by the span that it is in"


# --- what is told of each fault


def digest(builder: Builder, sequence: int) -> str:
    return sha256(builder.path(sequence).read_bytes()).hexdigest()


def test_a_signature_is_told_whole(builder: Builder) -> None:
    """Who signed what, by which object, and how findings of one kind are joined."""
    second = builder.path(3).read_bytes().split(b"\n")[1]
    builder.path(3).write_bytes(builder.path(3).read_bytes().split(b"\n")[0] + b"\nnoise\n")
    told = Told(builder).run()
    assert told.reports == [("signature", 3)]
    assert set(told.fields[0]) == {"what", "sequence", "sha256", "group"}
    assert (told.fields[0]["sha256"], told.fields[0]["group"]) == (digest(builder, 3), "line 2")
    builder.path(3).write_bytes(
        builder.path(3).read_bytes().split(b"\n")[0] + b"\n" + second.replace(b"HMAC-SHA256", b"Ed25519") + b"\n"
    )
    told = Told(builder).run()
    assert [name for name, _ in told.reports] == ["signature", "signature", "key-algorithm"]
    fields = told.fields[2]
    assert (fields["expected"], fields["found"], fields["sha256"]) == ("HMAC-SHA256", "Ed25519", digest(builder, 3))
    assert (fields["group"], fields["tampered"], fields["sequence"]) == (KEY_ID, False, 3)
    assert told.log.signers == Told(builder).run(3, whole=False).log.signers == (KEY_ID,)
    assert told.verified == SIZE - 1


class Away:
    """A key whose KMS does not answer."""

    def __init__(self, key: TrustedKey) -> None:
        self._key = key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._key, name)

    def verify(self, _message: bytes, _value: bytes) -> None:
        raise KeyUnavailable("KMS does not answer")


def test_what_cannot_be_checked_now_is_told_of_each(builder: Builder) -> None:
    """A KMS that does not answer leaves a log without a trusted head."""
    away: Any = Away(KEY)
    told = Told(builder, keys={KEY_ID: away}).run()
    assert told.reports == [("unreadable", sequence) for sequence in range(SIZE)]
    assert set(told.fields[0]) == {"what", "sequence", "expected", "found", "group"}
    assert told.fields[0]["what"] == "a signature could not be checked: KMS does not answer"
    assert told.fields[0]["group"] == KEY_ID
    assert not told.log.sound
    quiet = Told(builder, keys=UNCHECKED).run()
    assert quiet.reports == [("unchecked-signature", sequence) for sequence in range(SIZE)]
    assert quiet.fields[0]["group"] == KEY_ID
    assert quiet.log.sound


def test_a_place_is_told_whole(builder: Builder) -> None:
    """Entries that were swapped, and one that was replayed, are told apart."""
    first, second, third = (builder.path(sequence).read_bytes() for sequence in (2, 4, 1))
    builder.path(2).write_bytes(second)
    builder.path(4).write_bytes(first)
    told = Told(builder).run()
    assert [fields["what"] for fields in told.fields[:2]] == ["the statements are out of order"] * 2
    assert set(told.fields[0]) == {"what", "sequence", "expected", "found", "key", "sha256"}
    assert (told.fields[0]["expected"], told.fields[0]["found"]) == ("sequence 2", "sequence 4")
    assert (told.fields[0]["key"], told.fields[0]["sha256"]) == (told.log.form.key(2), digest(builder, 2))
    builder.path(2).write_bytes(third)
    builder.path(4).write_bytes(second)
    told = Told(builder).run()
    assert told.fields[0]["what"] == "an older statement stands in the place of this one"


def test_a_tree_is_told_whole(builder: Builder) -> None:
    """What is known, what is stated, and the object that states it."""
    builder.resign(3, lambda statement: statement.update(writer="somebody else"))
    told = Told(builder).run()
    fields = told.fields[0]
    assert set(fields) == {"what", "sequence", "expected", "found", "sha256"}
    assert fields["what"] == "the tree signed here is not that of the statements before"
    assert fields["expected"].startswith("size 4, root ")
    assert fields["found"] == f"size 4, root {tree_hash(builder.entries[:4]).hex()}"
    assert fields["sha256"] == digest(builder, 4)
    builder.resign(4, lambda statement: statement["tree"].update(root="0" * 64))
    builder.path(3).unlink()
    told = Told(builder).run()
    (fields,) = (one for (name, _), one in zip(told.reports, told.fields, strict=True) if name == "tree")
    assert fields["what"].endswith("before, and its root does not follow from its compact range")
    assert fields["expected"] == "size 4, a compact range that extends the last one known"


def test_a_head_is_told_whole(builder: Builder) -> None:
    """Both heads, what tells this loss from the next one, and what shows it."""
    other = known(builder, 3)
    assert other.root
    forked = replace(other, root=b"\1" * 32, evidence="a note")
    told = Told(builder, known=(forked,)).run()
    expected, found = f"size 3, root {'01' * 32}", f"size 3, root {other.root.hex()}"
    fields = told.fields[0]
    assert set(fields) == {"what", "sequence", "expected", "found", "evidence", "loss", "group"}
    assert (fields["expected"], fields["found"], fields["loss"]) == (expected, found, (builder.name, expected, found))
    assert fields["evidence"] == ("a note", builder.path(3).read_bytes().decode())
    assert fields["group"] == f"3 {other.root.hex()}"
    told = Told(builder, known=(replace(forked, checkpoint="checkpoints/x"),)).run()
    assert (told.reports[0], told.fields[0]["key"]) == (("checkpoint", 2), "checkpoints/x")
    what = "the root that was signed here is not that of the statements that it covers"
    assert told.fields[0]["what"] == what
    # Each head is looked at, whatever the one before it showed.
    both = (replace(other, root=None), forked, replace(forked, root=b"\2" * 32), replace(other, trusted=True))
    told = Told(builder, known=both).run()
    assert told.reports == [("head-fork", 2)] * 2
    assert told.log.covered == 3


@pytest.mark.parametrize("root", [True, False])
def test_a_rollback_is_told_whole(builder: Builder, *, root: bool) -> None:
    """How far the log went, how far it was remembered, and what shows it."""
    head = KnownHead(9, b"\1" * 32 if root else None, "somebody", evidence="a note" if root else None)
    told = Told(builder, known=(head,))
    told.run(whole=False)
    assert told.fields == []
    told.log.end()
    expected = "size 9" + (f", root {'01' * 32}" if root else "")
    found = f"size {SIZE}, root {builder.head[1].hex()}"
    assert told.fields == [
        {
            "what": "the log went back: somebody remembers more statements than there are",
            "sequence": SIZE,
            "through": 8,
            "evidence": ("a note",) if root else (),
            "expected": expected,
            "found": found,
            "loss": (builder.name, expected, found),
            "group": "rollback",
        }
    ]
    builder.path(SIZE - 1).write_bytes(b"noise")
    assert Told(builder, known=(head,)).run().fields[-1]["found"] == f"size {SIZE}"


def test_what_was_passed_over_is_told_whole(builder: Builder) -> None:
    """The slot, what it holds, and what was passed over."""
    other = builder.copy(builder.root.parent / "other")
    other.append(5)
    builder.pass_over(b"noise")
    builder.append(2)
    told = Told(builder).run()
    assert set(told.fields[0]) == {"what", "sequence", "key", "sha256", "group"}
    assert told.fields[0]["what"] == "the slot held no valid statement, and the writer passed over it"
    assert (told.fields[0]["key"], told.fields[0]["sha256"]) == (told.log.form.key(SIZE), sha256(b"noise").hexdigest())
    assert told.log.size == SIZE + 2
    builder.path(SIZE).write_bytes(b"other")
    told = Told(builder).run()
    assert (told.reports, told.fields[0]["sequence"]) == ([("statement", SIZE)], SIZE)
    builder.path(SIZE).write_bytes(other.path(SIZE).read_bytes())
    told = Told(builder).run()
    assert told.reports == [("head-fork", SIZE)]
    assert (told.fields[0]["sha256"], told.fields[0]["group"]) == (digest(builder, SIZE + 1), f"passed {SIZE + 1}")
