"""trust.json as it is written: nothing secret in it, nothing lost from it, and no contradiction taken in."""

import dataclasses
import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from custody.errors import ConfigurationError
from custody.findings import Accepted
from custody.format.archive_file import Pin
from custody.keys import trust_file
from custody.keys.key import PublicKey
from custody.keys.keyring import Keyring
from custody.keys.open import open_public
from custody.keys.trust import open_trust
from custody.tlog.head import Head

PIN = Pin("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "44" * 32)
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HEADS = {"audit/0": Head(5, b"a" * 32), "audits/0": Head(2, b"b" * 32), "audit/1": Head(0, b"c" * 32)}


@pytest.fixture
def ring() -> Keyring:
    return Keyring.new(NOW)


@pytest.fixture
def keys(ring: Keyring, tmp_path: Path) -> list[PublicKey]:
    """What everybody may know of a writer's keys."""
    return public(ring, tmp_path)


@pytest.fixture
def path(tmp_path: Path, keys: list[PublicKey]) -> Path:
    """A trust.json as `custody init` writes it."""
    path = tmp_path / "trust.json"
    trust_file.publish(path, PIN, keys)
    return path


def public(ring: Keyring, folder: Path) -> list[PublicKey]:
    file = folder / "keyring.json"
    ring.save(file)
    return open_public(f"file:{file}")


def document(path: Path) -> Any:
    return json.loads(path.read_bytes())


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(document(path) | fields, indent=1))


def test_new_file_is_for_everybody_and_holds_no_secret(path: Path, ring: Keyring, keys: list[PublicKey]) -> None:
    """Fields in the order of FORMAT.md, ids of all keys, the public half of one, mode 0644, whatever the umask."""
    assert list(document(path)) == [
        *("format", "archive", "keys", "heads", "witnesses", "quorum", "retention_days", "accepted"),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    trust = open_trust(trust=path)
    assert trust.archive == PIN
    assert [entry["id"] for entry in document(path)["keys"]] == [key.key_id for key in ring.keys]
    assert [(key.id, key.checkable) for key in trust.keys.values()] == [(keys[0].key_id, False), (keys[1].key_id, True)]
    assert trust.leaves == {}
    for entry in document(path)["keys"]:
        assert not entry.keys() & {"secret", "private"}


def test_umask_does_not_matter(tmp_path: Path, keys: list[PublicKey]) -> None:
    """The file can be read by those it is for, even where the operator's umask hides new files."""
    before = os.umask(0o077)
    try:
        trust_file.publish(tmp_path / "trust.json", PIN, keys)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "trust.json").stat().st_mode) == 0o644


def test_publishing_again_writes_nothing(path: Path, keys: list[PublicKey]) -> None:
    """What says all already is not even replaced."""
    before = path.stat().st_ino
    assert trust_file.publish(path, PIN, keys) == "nothing to add"
    assert path.stat().st_ino == before


def test_rotated_keys_are_added_and_all_else_stays(path: Path, ring: Keyring, tmp_path: Path) -> None:
    """After a rotation the new keys are there, the old ones end; what an auditor put in stays, and so does the mode."""
    theirs = {
        "heads": {"audit/0": {"size": 3, "root": "11" * 32}},
        "retention_days": 9000,
        "accepted": [
            {"finding": "unlisted", "key": "x", "reason": "r", "by": "b", "at": "2026-01-01T00:00:00.000000Z"}
        ],
    }
    change(path, **theirs)
    path.chmod(0o600)
    trust_file.end_key(path, ring.keys[0].key_id, HEADS)
    until = document(path)["keys"][0]["until"]
    rotated = ring.rotate(NOW + timedelta(hours=1))
    done = trust_file.publish(path, PIN, public(rotated, tmp_path))
    ends = [f"the end of key {key.key_id}" for key in rotated.keys[:3]]
    assert done == f"extended by {', '.join(ends + [f'key {key.key_id}' for key in rotated.keys[3:]])}"
    after = document(path)
    assert {name: after[name] for name in theirs} == theirs
    assert after["keys"][0]["until"] == until
    assert [entry["to"] for entry in after["keys"]] == ["2026-06-01T13:10:00.000000Z"] * 3 + [None] * 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_span_is_never_made_wider(path: Path, keys: list[PublicKey]) -> None:
    """Where the file ends a key sooner, or begins it later, than the keyring, the file is right."""
    entries = document(path)["keys"]
    entries[0] |= {"from": "2026-07-01T00:00:00.000000Z", "to": "2026-08-01T00:00:00.000000Z"}
    change(path, keys=entries)
    later = [dataclasses.replace(keys[0], to=datetime(2027, 1, 1, tzinfo=UTC)), *keys[1:]]
    assert trust_file.publish(path, PIN, later) == "nothing to add"
    assert document(path)["keys"] == entries


def test_pin_is_added_where_there_is_none(path: Path, keys: list[PublicKey]) -> None:
    """A file from before the first look gets its pin."""
    change(path, archive=None)
    done = trust_file.publish(path, PIN, keys)
    assert document(path)["archive"] == {"id": PIN.id, "sha256": PIN.sha256}
    assert done == "extended by the archive's pin"


def test_least_file_is_extended(tmp_path: Path, keys: list[PublicKey]) -> None:
    """A trust.json that says nothing yet says all of it afterwards."""
    path = tmp_path / "trust.json"
    path.write_text('{"format":"custody/trust/1"}')
    done = trust_file.publish(path, PIN, keys)
    assert done == f"extended by the archive's pin, {', '.join(f'key {key.key_id}' for key in keys)}"
    assert open_trust(trust=path).archive == PIN


@pytest.mark.parametrize("pin", [Pin("6ba7b810-9dad-41d1-80b4-00c04fd430c9", "44" * 32), Pin(PIN.id, "45" * 32)])
def test_another_archive_is_refused(path: Path, keys: list[PublicKey], pin: Pin) -> None:
    """A file for another archive, or for another archive.json of the same id, is left as it is."""
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="for the archive"):
        trust_file.publish(path, pin, keys)
    with pytest.raises(ConfigurationError, match="for the archive"):
        trust_file.check_pin(path, pin)
    with pytest.raises(ConfigurationError, match=r"no archive\.json yet"):
        trust_file.check_pin(path, None)
    trust_file.check_pin(path, PIN)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [
        lambda keys: [keys[0], dataclasses.replace(keys[1], public=bytes(32))],
        lambda keys: [dataclasses.replace(keys[1], key_id=keys[0].key_id)],
        lambda keys: [dataclasses.replace(keys[0], key_id=keys[2].key_id)],
    ],
    ids=["public", "algorithm", "leaves"],
)
def test_another_key_of_one_id_is_refused(
    path: Path, keys: list[PublicKey], other: Callable[[list[PublicKey]], list[PublicKey]]
) -> None:
    """An id names one key for ever, so a file that calls another key by it is not extended."""
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="is another key here"):
        trust_file.publish(path, PIN, other(keys))
    assert path.read_bytes() == before


# --- ending a key


def test_end_is_written_for_each_log(path: Path, keys: list[PublicKey]) -> None:
    """A key that ended counts up to the heads given; a log of size 0 is not listed, and so ended at 0."""
    until = trust_file.end_key(path, keys[1].key_id, HEADS)
    assert until == {"audit/0": HEADS["audit/0"], "audits/0": HEADS["audits/0"]}
    trust = open_trust(trust=path)
    assert trust.keys[keys[1].key_id].until == until
    assert trust.keys[keys[0].key_id].until is None


def test_ended_twice_the_smaller_head_counts(path: Path, keys: list[PublicKey]) -> None:
    """Of each log the smaller head; a log that one end does not name ended at size 0. It never becomes more."""
    trust_file.end_key(path, keys[0].key_id, HEADS)
    second = {"audit/0": Head(9, b"d" * 32), "audits/0": Head(1, b"e" * 32), "new/0": Head(4, b"f" * 32)}
    wanted = {"audit/0": HEADS["audit/0"], "audits/0": second["audits/0"]}
    assert trust_file.end_key(path, keys[0].key_id, second) == wanted
    assert trust_file.end_key(path, keys[0].key_id, HEADS) == wanted
    assert trust_file.end_key(path, keys[0].key_id, {}) == {}
    assert document(path)["keys"][0]["until"] == {}
    assert trust_file.end_key(path, keys[0].key_id, HEADS) == {}


def test_contradicting_ends_are_refused(path: Path, keys: list[PublicKey]) -> None:
    """Another root of the same size is another history: nothing is written before somebody says which is right."""
    trust_file.end_key(path, keys[0].key_id, HEADS)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="two different heads of audit/0"):
        trust_file.end_key(path, keys[0].key_id, HEADS | {"audit/0": Head(5, b"x" * 32)})
    assert path.read_bytes() == before
    change(path, heads={"audit/0": {"size": 5, "root": "11" * 32}})
    with pytest.raises(ConfigurationError, match="another head of audit/0 at size 5"):
        trust_file.end_key(path, keys[1].key_id, HEADS)


def test_what_cannot_be_ended(path: Path, keys: list[PublicKey]) -> None:
    """A key that the file does not know, and the leaf secret, which signs nothing."""
    with pytest.raises(ConfigurationError, match=rf"it has no key 'hmac-x'; it has {keys[0].key_id}, "):
        trust_file.end_key(path, "hmac-x", HEADS)
    with pytest.raises(ConfigurationError, match="signs nothing"):
        trust_file.end_key(path, keys[2].key_id, HEADS)
    with pytest.raises(ConfigurationError, match="is not the name of a log"):
        trust_file.end_key(path, keys[0].key_id, {"audit": Head(1, bytes(32))})


def test_every_change_is_one_that_a_verifier_reads(path: Path) -> None:
    """What would make the file unreadable is refused, and the file stays."""
    before = path.read_bytes()
    wrong = Accepted("unlisted", "why", "who", "yesterday", key="x")
    with pytest.raises(ConfigurationError):
        trust_file.accept(path, [wrong])
    with pytest.raises(ConfigurationError, match="Unicode"):
        trust_file.accept(path, [msgspec.structs.replace(wrong, at="2026-01-01T00:00:00.000000Z", by="\ud800")])
    assert path.read_bytes() == before
