"""The format does not change unnoticed: an archive that lies here is written again byte for byte, and verifies."""

import json
from datetime import UTC, datetime
from pathlib import Path

from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.run import verify
from tests.golden.__main__ import ARCHIVE, build, members, private_keyring
from tests.helpers.reading import read_archive_records, read_folder


def test_written_again(tmp_path: Path) -> None:
    """The same records, clock and keys give the same archive; `python -m tests.golden` follows a change of format."""
    there = read_folder(ARCHIVE)
    build(tmp_path / "again", members(there))
    again = read_folder(tmp_path / "again")
    assert list(again) == list(there)
    for key, data in there.items():
        assert again[key] == data, f"{key} is not what it was"


def test_members_of_this_processor(tmp_path: Path) -> None:
    """What this machine's isal makes of the same batches inflates to the same bytes."""
    build(tmp_path / "fresh", {})
    assert set(members(read_folder(tmp_path / "fresh"))) == set(members(read_folder(ARCHIVE)))


def test_verifies() -> None:
    """Both judges still read what was written then: nothing was tampered with; what is missing or odd shows."""
    with private_keyring() as uri:
        trust = open_trust([uri])
    report = verify(open_store(str(ARCHIVE)), trust, now=datetime(2026, 11, 1, tzinfo=UTC), workers=0)
    expected = {"offset-lost", "offset-unreadable", "passed-over", "new-epoch"}
    assert {one.finding for one in report.findings} == expected
    assert report.exit_code == 11
    found = read_archive_records(ARCHIVE)
    assert {name: len(log.statements) for name, log in found.items()} == {"audit.golden/3": 10, "audit.golden@2/3": 3}
    types = {kind for log in found.values() for one in log.statements for kind in one["types"]}
    assert len(types) == 6


def test_statements_are_compact_and_ascii() -> None:
    """Signed files lie as we promise to write them: compact, in ASCII, fields in order."""
    for key, data in read_folder(ARCHIVE).items():
        if key == "archive.json" or (key.startswith(("manifests/", "audits/")) and data != b"garbage"):
            line, second, _ = data.split(b"\n")
            for part in (line, second):
                assert json.dumps(json.loads(part), separators=(",", ":")).encode() == part
