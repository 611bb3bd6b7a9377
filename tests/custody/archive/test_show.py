"""`custody show` finds one thing in an archive, says where it stands, and shows no damaged bytes without a word."""

import json
from base64 import b64decode
from pathlib import Path

import pytest
from typer.testing import CliRunner

from custody.archive.reader import read_archive, read_manifest
from custody.archive.show import events, show
from custody.cli.main import app
from custody.errors import ConfigurationError, FormatError, ObjectMissing
from custody.format.layout import AUDIT_LOG, audit_key, checkpoint_key, manifest_key
from custody.format.manifest import Unreadable
from custody.keys.trust import Trust, open_trust
from custody.store.open import open_store
from custody.tlog import merkle
from tests.helpers.leafy import Leafy, event, forged, plant
from tests.helpers.querying import audit
from tests.helpers.reading import anything
from tests.helpers.sample import make_archive


@pytest.fixture
def leafy(tmp_path: Path) -> Leafy:
    made = Leafy(tmp_path / "of")
    made.append(range(10))
    unreadable = [Unreadable(14, 15, "of no known codec")]
    made.append([10, 13, 15], skipped=[(11, 12)], quarantined=[(12, 13)], unreadable=unreadable)
    made.append([20, 21], lost=(16, 20))
    return made


def content(of: Leafy, what: str) -> bytes:
    return b"".join(show(of.store, what, of.own).content)


def test_every_event(leafy: Leafy) -> None:
    """Each event is found by its offset, with its position."""
    for offset, line in leafy.events.items():
        shown = show(leafy.store, f"{leafy.log}@{offset}", leafy.own)
        assert b"".join(shown.content) == line + b"\n"
        assert (shown.position["offset"], shown.manifest is not None) == (offset, True)


@pytest.mark.parametrize("of", ["audit.leafy/0", "audits/0"])
def test_what_lies_behind_the_newest(leafy: Leafy, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """Garbage in the slots after a log's end, or behind an empty one, is not shown, but said."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(leafy.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{leafy.keyring}")
    audit(leafy.folder, leafy.keyring)
    good = CliRunner().invoke(app, ["show", of])
    assert (good.exit_code, good.stderr) == (0, "")
    log, size = (AUDIT_LOG, 1) if of == "audits/0" else (leafy.log, 3)
    for count, slot in enumerate((size, size + 1, size + 3), 1):
        key = audit_key(slot) if log == AUDIT_LOG else manifest_key(log, slot)
        (leafy.folder / key).write_bytes(b"garbage")
        shown = CliRunner().invoke(app, ["show", of])
        assert (shown.exit_code, shown.stdout) == (0, good.stdout)
        objects = f"{count} objects lie" if count > 1 else "1 object lies"
        assert shown.stderr == f"{of} ends here, but {objects} behind its end; run `custody verify`.\n"


def test_what_lies_behind_a_statement_that_is_missing(leafy: Leafy) -> None:
    """Where the log ends before it, as seen from an audit, statements behind it are counted."""
    audit(leafy.folder, leafy.keyring)
    for offset in (22, 23):
        leafy.append([offset])
    (leafy.folder / manifest_key(leafy.log, 3)).unlink()
    shown = show(leafy.store, str(leafy.log), leafy.own)
    assert (shown.position["sequence"], shown.behind) == (2, 1)


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        (11, "a read-committed consumer gets no record"),
        (14, "no client could decode it: of no known codec"),
        (18, "the statement admits the loss"),
    ],
)
def test_no_record_there(leafy: Leafy, offset: int, said: str) -> None:
    """An offset without a record raises an error that gives the reason."""
    with pytest.raises(ConfigurationError, match=said):
        show(leafy.store, f"{leafy.log}@{offset}", leafy.own)


def test_an_offset_of_no_statement(leafy: Leafy) -> None:
    """An offset that no statement accounts for is a wrong argument, as it is for evidence."""
    with pytest.raises(ConfigurationError, match=r"offset 22; `custody show audit\.leafy/0` shows its head"):
        show(leafy.store, f"{leafy.log}@22", leafy.own)
    with pytest.raises(ConfigurationError, match=r"has no log 'audit\.other/0'"):
        show(leafy.store, "audit.other/0@22", leafy.own)


def test_statements_and_objects(leafy: Leafy) -> None:
    """A head, a statement and a segment are shown with their leaf, whose entry is the signed message."""
    head = json.loads(content(leafy, str(leafy.log)))
    assert head["key"] == manifest_key(leafy.log, 2)
    found = read_manifest(leafy.store, leafy.log, 2, anything)
    assert head["leaf"] == merkle.leaf_hash(found.message).hex()
    assert json.loads(content(leafy, f"{leafy.log}/2")) == head
    assert found.statement.segment is not None
    assert content(leafy, found.statement.segment.key) == event(20) + b"\n" + event(21) + b"\n"
    assert b"".join(events(leafy.store, found.statement)) == event(20) + b"\n" + event(21) + b"\n"
    assert json.loads(content(leafy, "archive.json").split(b"\n")[0])["archive"] == read_archive(leafy.store).id
    leafy.checkpoint()
    assert content(leafy, checkpoint_key(leafy.log, 3)).startswith(b"custody/")
    for what in ("nonsense", "a/b/c/d", "audit.leafy/x"):
        with pytest.raises(ConfigurationError):
            show(leafy.store, what, leafy.own)
    with pytest.raises(ConfigurationError, match=r"has no log 'audit\.other/0'; did you mean audit\.leafy/0"):
        show(leafy.store, "audit.other/0", leafy.own)


def test_slots_that_were_passed_over(leafy: Leafy) -> None:
    """A slot with garbage hides no later event, and is not shown as the head."""
    plant(leafy, 3, b"garbage")
    leafy.append([22, 23])
    plant(leafy, 5, b"garbage")
    assert content(leafy, f"{leafy.log}@23") == event(23) + b"\n"
    assert json.loads(content(leafy, str(leafy.log)))["key"] == manifest_key(leafy.log, 4)


@pytest.mark.parametrize("place", [12, 40, -6, -1])
def test_what_was_damaged(leafy: Leafy, place: int) -> None:
    """Bytes that were not signed are never shown without an error after them."""
    segment = read_manifest(leafy.store, leafy.log, 2, anything).statement.segment
    assert segment is not None
    path = leafy.folder / segment.key
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    for what in (segment.key, f"{leafy.log}@20"):
        with pytest.raises(FormatError, match="custody verify"):
            content(leafy, what)
    path.write_bytes(data[:50])
    with pytest.raises(FormatError, match="is damaged"):
        content(leafy, segment.key)
    path.unlink()
    with pytest.raises(ObjectMissing):
        content(leafy, segment.key)


def test_events_end_before_a_damaged_batch(leafy: Leafy) -> None:
    """The events before a damaged batch are shown, no byte of it, and the error names what is left out."""
    statement = read_manifest(leafy.store, leafy.log, 0, anything).statement
    assert statement.segment is not None
    path, second = leafy.folder / statement.segment.key, statement.batches[1]
    data = path.read_bytes()
    path.chmod(0o600)
    # In the first and the second half of a batch, and its last byte.
    for place in (second.size // 3, second.size // 2, second.size - 1):
        damaged = bytearray(data)
        damaged[second.start + place] ^= 1
        path.write_bytes(damaged)
        shown: list[bytes] = []
        with pytest.raises(FormatError, match="batches 1 to 2 are left out, from offset 4 to 9; run custody verify"):
            shown.extend(events(leafy.store, statement))
        assert b"".join(shown) == b"".join(event(offset) + b"\n" for offset in range(4))
    path.write_bytes(data + b"more")
    with pytest.raises(FormatError, match="is not what was signed, although its events are"):
        list(events(leafy.store, statement))


def test_a_quarantined_record_can_be_read(tmp_path: Path) -> None:
    """Key and value are base64, as stored, and text beside it where they are UTF-8."""
    sample = make_archive(tmp_path)
    trust = open_trust([f"file:{sample.keyring}"])
    shown = show(open_store(str(sample.folder)), f"{sample.log}@{sample.quarantined}", trust)
    record = json.loads(b"".join(shown.content))
    assert (b64decode(record["value"]), record["text"]) == (b"no event", {"key": "key", "value": "no event"})


def test_an_object_that_no_manifest_names(leafy: Leafy) -> None:
    """An orphan is shown, without a manifest."""
    segment = read_manifest(leafy.store, leafy.log, 2, anything).statement.segment
    assert segment is not None
    orphan = segment.key.replace(segment.sha256[:16], "0" * 16)
    (leafy.folder / orphan).write_bytes((leafy.folder / segment.key).read_bytes())
    shown = show(leafy.store, orphan, leafy.own)
    assert shown.position["manifest"] is None
    assert b"".join(shown.content) == event(20) + b"\n" + event(21) + b"\n"


def test_a_forged_head(leafy: Leafy) -> None:
    """An entry that no trusted key signed is not the head. Without keys, it is shown."""
    plant(leafy, 3, forged(leafy, 3))
    assert json.loads(content(leafy, str(leafy.log)))["statement"]["sequence"] == 2
    shown = show(leafy.store, str(leafy.log), Trust())
    assert json.loads(b"".join(shown.content))["statement"]["next_offset"] == 10**9
