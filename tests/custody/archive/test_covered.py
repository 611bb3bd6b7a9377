"""With public keys alone, a statement is unverified unless a tree that a trusted key signed is shown to hold it."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.archive import reader
from custody.archive.covered import Coverage
from custody.archive.forms import statements_of
from custody.archive.trusted import Judge, unverified
from custody.format.layout import Log, parse_log_text
from custody.keys.trust import Trust, TrustedKey
from custody.store.open import open_store
from custody.tlog.checkpoint import COSIGNATURE, NoteKey
from custody.tlog.head import Head
from tests.helpers.archives import ARCHIVE_ID, KEY_ID, NOTE_NAME, NOTE_PUBLIC, Builder, compact_json

SIZE = 9
PUBLIC = Trust(
    keys={
        KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256"),
        NOTE_NAME: TrustedKey(NOTE_NAME, "Ed25519", material=NOTE_PUBLIC),
    }
)
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    builder = Builder(tmp_path / "archive").init()
    for _ in range(4):
        builder.append(3)
    builder.pass_over()
    for _ in range(SIZE - 5):
        builder.append(3)
    return builder


def uncovered(builder: Builder, trust: Trust = PUBLIC, first: int = 0, end: int = SIZE) -> int:
    """Return how many of the statements in slots `[first, end)` are not covered."""
    log = parse_log_text(builder.name)
    assert log is not None
    form = statements_of(log)
    with closing(open_store(str(builder.root))) as store:
        judge = Judge(store, log, form, ARCHIVE_ID, trust)
        coverage = Coverage(store, log, form, judge, trust)
        holds = partial(judge.may_stand, by_known_keys=KEY_ID in trust.keys)
        for sequence, manifest in reader.manifests_from(store, log, first, end, holds):
            coverage.add(sequence, manifest)
        coverage.end()
    return coverage.uncovered


@pytest.mark.parametrize("size", range(SIZE + 1))
def test_the_newest_checkpoint_covers_what_is_before_it(builder: Builder, size: int) -> None:
    """What lies behind the checkpoint stays unverified: in the slot 4 there is no statement."""
    builder.checkpoint(size)
    assert uncovered(builder) == sum(1 for sequence in range(size, SIZE) if sequence != 4)


@pytest.mark.parametrize("first", range(SIZE))
def test_any_run_is_covered(builder: Builder, first: int) -> None:
    """A part of a log, as a query since a day reads it, is covered by a checkpoint that is behind it."""
    builder.checkpoint()
    assert [uncovered(builder, first=first, end=end) for end in range(first, SIZE + 1)] == [0] * (SIZE + 1 - first)


def test_a_head_from_outside_covers(builder: Builder) -> None:
    """A head in `trust.json` is trusted without a checkpoint; one of another tree is not."""
    size, root = builder.head
    assert uncovered(builder, replace(PUBLIC, heads={builder.name: Head(size, root)})) == 0
    assert uncovered(builder, replace(PUBLIC, heads={builder.name: Head(size, bytes(32))})) == SIZE - 1


def _change(builder: Builder) -> None:
    """Change the statement 6 as somebody without a key can."""
    statement = json.loads(builder.path(6).read_bytes().split(b"\n")[0])
    statement["writer"] = "somebody else"
    builder.put(builder.key(6), builder.sign(compact_json(statement)))


def _rewrite(builder: Builder) -> None:
    """Write all from the statement 6 on again, as another history."""
    builder.go_back(6)
    for _ in range(SIZE - 6):
        builder.append(4)


def _by_a_stranger(builder: Builder) -> None:
    replace(builder, private=STRANGER).checkpoint()


def _of_another_tree(builder: Builder) -> None:
    builder.checkpoint(root=bytes(32))


def _of_another_log(builder: Builder) -> None:
    data = (builder.root / replace(builder, partition=1).checkpoint(SIZE, builder.head[1])).read_bytes()
    builder.put(f"checkpoints/{builder.name}/{SIZE:012}", data)


@pytest.mark.parametrize(
    ("forge", "before", "left"),
    [
        (_change, True, 6),
        (_rewrite, True, SIZE - 1),
        (_by_a_stranger, False, SIZE - 1),
        (_of_another_tree, False, SIZE - 1),
        (_of_another_log, False, SIZE - 1),
    ],
)
def test_forgeries_are_not_covered(builder: Builder, forge: Callable[[Builder], None], before: bool, left: int) -> None:
    """No statement counts as covered that the signed tree does not hold."""
    if before:
        builder.checkpoint()
    forge(builder)
    assert uncovered(builder) == left


def test_an_unknown_key_is_not_covered(builder: Builder) -> None:
    """A checkpoint does not make up for a statement whose key nobody trusts."""
    builder.checkpoint()
    public = replace(PUBLIC, keys={NOTE_NAME: PUBLIC.keys[NOTE_NAME]})
    assert uncovered(builder, public) == SIZE - 1


def test_witnesses_must_have_cosigned(builder: Builder) -> None:
    """Where `trust.json` asks for witnesses, a checkpoint without their cosignatures covers nothing, as in `verify`."""
    builder.checkpoint()
    witness = NoteKey("witness", STRANGER.public_key().public_bytes_raw(), COSIGNATURE)
    assert uncovered(builder, replace(PUBLIC, witnesses=(witness,), quorum=1)) == SIZE - 1


def test_a_missing_statement(builder: Builder) -> None:
    """What is missing is not counted; without it nothing shows that the six before it are in the signed tree."""
    builder.checkpoint()
    builder.path(7).unlink()
    assert uncovered(builder) == 6
    assert uncovered(builder, first=8) == 0


def test_many_logs_are_one_line() -> None:
    """The same thing of many logs is said once, with one of them."""
    counts = {Log("audit", 1): 2, Log("audit", 0): 3, Log("audit", 2): 0}
    assert unverified(PUBLIC, counts) == [
        (None, "2 logs, such as audit/0: 5 signatures could not be checked with the keys at hand")
    ]
    assert unverified(PUBLIC, {Log("audit", 1): 1}) == [
        (Log("audit", 1), "1 signature could not be checked with the keys at hand")
    ]
