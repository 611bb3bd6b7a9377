"""A report that is made from the rows of the index by time is the report that is made from the statements."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive import reader
from custody.archive.assemble import Assembler
from custody.archive.writer import Entry
from custody.format.manifest import LogId, PreviousEpoch
from custody.format.times import format_time
from custody.keys.open import open_public
from custody.keys.trust import Trust, open_trust
from custody.keys.trust_file import encode
from custody.query import statements
from custody.query.statements import span_rows
from custody.report.facts import Facts, gather
from custody.report.page import render
from custody.store.open import open_store
from tests.helpers.alerts import alert_event
from tests.helpers.reporting import NOW, audited, gathered, settings_of
from tests.helpers.sample import Growing, Message, event

HOUR = timedelta(hours=1)
PIECE = 4
NEW = 3
"""Statements at the end that no audit has read."""


class Hourly(Growing):
    """A log of one statement an hour."""

    def sealed_at(self, sequence: int) -> datetime:
        return self.begun + sequence * HOUR

    def content(self, offset: int) -> bytes:
        """Return an event of a day before or of now, an alert of a rule, or no event."""
        if offset % 11 == 7:
            return b"no event"
        if offset % 13 == 5:
            return alert_event(id=f"{offset:032x}")
        moment = self.begun - timedelta(days=offset % 3, minutes=offset)
        return json.dumps(json.loads(event(offset)) | {"timestamp": format_time(moment)}).encode()

    def append_gaps(self) -> None:
        """Append a statement with offsets that were skipped, and of which nobody could decode some."""
        writer = self._open()
        start = writer.next_offset or 0
        made = Assembler(start, batch_events=3, segment_bytes=2**20, level=1, number=writer.next_batch)
        made.lose(start + 4)
        made.add([Message(start + 4, self.content(0))])
        made.skip(start + 9)
        made.admit(start + 11, "bad compression")
        writer.append(made.cut())
        self._statements += 1


def grow(root: Path) -> Hourly:
    """Write two logs, of which one is of a second epoch too, and audit them; then append some more."""
    first = Hourly(root, begun=NOW - 70 * HOUR, retention_days=1)
    second, again = Hourly(root, 1, NOW - 9 * HOUR), Hourly(root)
    first.append(21, first.content)
    first.append_gaps()
    slot = root / "archive/manifests" / first.log / f"{first.size:012}.json"
    slot.write_bytes(b"no manifest")
    first._statements += 1
    first.append(6, first.content)
    first.expire(0, 2)
    first.append(17, first.content)
    second.append(6, second.content, each=2)
    again.begun, again._log_id = NOW - 20 * HOUR, LogId("cluster", "audit.grows", "another-topic-id", 0, 2)
    head = first._open().tip.head
    start = Entry(first_offset=0, next_offset=0, previous_epoch=PreviousEpoch(1, head.size, head.root.hex()))
    again._open().append(start)
    again._statements += 1
    again.append(7, again.content)
    audited(settings_of(first.folder, first.keyring, piece_statements=PIECE, report=False))
    return first


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Hourly:
    made = grow(tmp_path_factory.mktemp("grown"))
    made.append(NEW, made.content)
    return made


def manifest(root: Path, log: str, sequence: int) -> Path:
    return root / "archive/manifests" / log / f"{sequence:012}.json"


def nothing(_: Path) -> None:
    pass


def lose(root: Path) -> None:
    """Delete statements since the audit: of three spans, and the newest of a log."""
    for sequence in (5, 12, 13, 20):
        manifest(root, "audit.grows/0", sequence).unlink()
    manifest(root, "audit.grows/1", 5).unlink()


def damage(root: Path) -> None:
    """Damage a segment, and let an audit find it."""
    path = sorted((root / "archive/events").rglob("*audit.grows-0-*.gz"))[9]
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    assert audit(root, full=True) == "tampered"


def fork(root: Path) -> None:
    """Put statements of another history in the place of some, and let an audit find them."""
    other = grow(root / "other")
    for sequence in (18, 19):
        path = manifest(root, "audit.grows/0", sequence)
        path.unlink()
        shutil.copy(manifest(other.root, "audit.grows/0", sequence), path)
    assert audit(root, full=True) == "tampered"


def audit(root: Path, **more: Any) -> str:
    return audited(
        settings_of(root / "archive", root / "keyring.json", piece_statements=PIECE, report=False), **more
    ).verdict


def spoil(root: Path) -> None:
    """Change half of the files that have rows."""
    for number, path in enumerate(sorted((root / "archive/reports/index/statements").iterdir())):
        path.unlink()
        if number % 2:
            path.write_bytes(b"garbage")


CHANGES: dict[str, Callable[[Path], None]] = {
    "nothing": nothing,
    "statements are gone": lose,
    "a segment is damaged": damage,
    "statements are exchanged": fork,
    "rows are spoiled": spoil,
}
PERIODS: dict[str, dict[str, datetime]] = {
    "all": {},
    "some": {"since": NOW - 57 * HOUR, "until": NOW - 19 * HOUR},
    "the end": {"since": NOW - 25 * HOUR},
}
PAIRS = [
    *(("all keys", period) for period in PERIODS),
    *(("public keys", period) for period in ("all", "some")),
    ("none", "the end"),
]
"""Which keys are at hand, and of which times the report is."""


def trust_of(root: Path, name: str) -> Trust:
    keys = f"file:{root / 'keyring.json'}"
    if name == "public keys":
        (root / "trust.json").write_bytes(encode(None, open_public(keys)))
        return open_trust([], root / "trust.json")
    return open_trust([keys]) if name == "all keys" else Trust()


def facts_of(root: Path, trust: Trust, **more: Any) -> Facts:
    with closing(open_store(str(root / "archive"))) as store:
        return gather(store, trust, NOW, **more)


@pytest.fixture(scope="module", params=CHANGES)
def changed(request: pytest.FixtureRequest, grown: Hourly, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the archive, with a change."""
    root = tmp_path_factory.mktemp("changed") / "copy"
    shutil.copytree(grown.root, root)
    CHANGES[request.param](root)
    return root


@pytest.mark.parametrize(("keys", "period"), PAIRS)
def test_the_page_is_the_same(changed: Path, keys: str, period: str) -> None:
    """Byte by byte: figures, states, alerts, what is missing, what is unverified, whatever happened to the archive."""
    trust = trust_of(changed, keys)
    pages = [render(facts_of(changed, trust, rows=rows, **PERIODS[period])) for rows in (span_rows, None)]
    if keys == "public keys" and b"no valid statement in the slots 5 to 5" in pages[0]:
        # The audit's signature shows statements between holes too, which no checkpoint can be compared with any more.
        pages = [re.sub(rb"[0-9]+ signatures could", b"signatures could", page) for page in pages]
    assert pages[0] == pages[1]


def test_it_has_all_of_this(grown: Hourly) -> None:
    """The archive of these tests has what may be in one."""
    facts = facts_of(grown.root, trust_of(grown.root, "all keys"), rows=span_rows)
    total = facts.figures.total
    assert all((total.events, total.quarantined, total.skipped, total.lost, total.unreadable, total.stored))
    assert all((total.verified, total.pending, total.expired))
    assert [log.name for log in facts.logs] == ["audit.grows/0", "audit.grows/1", "audit.grows@2/0"]
    assert len(facts.figures.types) == 6
    assert facts.detections.rows


def test_what_is_covered_is_not_read_again(grown: Hourly, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of statements in the index, those that may have alerts are read, and those at the ends of logs."""
    real, reads = reader.read_manifest, list[int]()

    def counted(*given: Any) -> Any:
        reads.append(given[2])
        return real(*given)

    monkeypatch.setattr(reader, "read_manifest", counted)
    monkeypatch.setattr("custody.report.detections.TYPE", "no such type")
    facts_of(grown.root, trust_of(grown.root, "all keys"), rows=span_rows)
    assert len(reads) <= NEW + 1


def test_rows_of_an_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without types are not used. Audits that read their statements again make new ones, without a finding."""
    with monkeypatch.context() as older:
        older.setitem(statements.SCHEMAS, "manifests", statements.SCHEMAS["manifests"].remove(20))
        older.setattr(statements, "file_row", lambda row: row[:-1])
        growing = grow(tmp_path)
    trust = trust_of(tmp_path, "all keys")
    asked: list[bool] = []

    def rows(store: Any, span: Any) -> Any:
        made = span_rows(store, span)
        asked.append(made is not None)
        return made

    expected = render(facts_of(tmp_path, trust, rows=None))
    assert render(facts_of(tmp_path, trust, rows=rows)) == expected
    assert asked
    assert not any(asked)
    settings = settings_of(growing.folder, growing.keyring, piece_statements=PIECE, report=False, reread_days=1)
    outcomes = [audited(settings) for _ in range(3)]
    assert [
        each["finding"] for outcome in outcomes for each in outcome.findings if each["finding"] == "time-index"
    ] == []
    asked.clear()
    gathered(settings, rows=rows)
    assert all(asked)
    assert asked
