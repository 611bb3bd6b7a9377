"""An audit verifies new statements and a share of the old, and signs what it has read and found."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from custody.errors import ConfigurationError, Fenced, HeadRollback, NoArchive
from custody.format import audit as form
from custody.format.times import format_time, parse_time
from custody.keys.trust import open_trust
from custody.keys.trust_file import accept
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.tlog import merkle
from custody.verify import acceptance
from custody.verify.report import Report
from custody.verify.run import verify
from tasks.audit import objects, pieces
from tasks.audit.conclude import TAKEN_OVER, Outcome, conclude
from tasks.audit.objects import put_report
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Piece, Request, plan_audit
from tasks.roll.record import Action, record
from tasks.settings import AuditSettings, Settings
from tests.helpers.environment import shifted
from tests.helpers.remote import URL, pass_for_a_bucket
from tests.helpers.sample import Growing
from tests.servers.s3 import SeaweedServer

NOW = datetime.now(UTC)
ALL = Request()


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    return Growing(tmp_path)


def settings(growing: Growing, trust: Path | None = None, archive: str | None = None, **more: Any) -> Settings:
    return Settings(
        archive=archive or str(growing.folder),
        keys=f"file:{growing.keyring}",
        trust=trust,
        audit=AuditSettings(piece_statements=3, **more),
    )


def run(growing: Growing, request: Request = ALL, now: datetime | None = None, **more: Any) -> Outcome:
    given = settings(growing, **more)
    plan = plan_audit(given, request, now or datetime.now(UTC))
    return conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))


def audit_of(growing: Growing, sequence: int) -> form.Audit:
    return form.parse((growing.folder / f"audits/{sequence:012}.json").read_bytes()).statement


def judged(growing: Growing) -> Report:
    trust = open_trust([f"file:{growing.keyring}"])
    return verify(open_store(str(growing.folder)), trust, now=datetime.now(UTC), workers=0)


def spans(growing: Growing, sequence: int) -> list[tuple[int, int, str]]:
    covered = audit_of(growing, sequence).covered
    return [(one.from_, one.to, one.read) for one in covered.get(growing.log, [])]


def test_first_audit_reads_all(growing: Growing) -> None:
    """The first audit reads everything; it is signed, chained, followed by checkpoints, and verifies."""
    growing.append(7)
    outcome = run(growing)
    assert (outcome.verdict, outcome.exit_code, outcome.sequence) == ("verified", 0, 0)
    assert outcome.counts["statements"] == 7
    assert outcome.counts["events"] == growing.events
    assert spans(growing, 0) == [(0, 7, "new")]
    assert audit_of(growing, 0).heads[growing.log].size == 7
    assert (growing.folder / f"checkpoints/{growing.log}/{7:012}").is_file()
    assert (growing.folder / f"checkpoints/audits/0/{1:012}").is_file()
    assert judged(growing).exit_code == 0


def test_only_what_is_new_and_a_share(growing: Growing) -> None:
    """A later audit reads the new statements, and the share of the old whose turn it is."""
    growing.append(30)
    run(growing)
    growing.append(4)
    run(growing, reread_days=10)
    assert spans(growing, 1) == [(0, 3, "again"), (30, 34, "new")]
    run(growing, reread_days=10)
    assert spans(growing, 2) == [(3, 9, "again")]
    assert judged(growing).exit_code == 0


def test_everything_is_read_again_in_time(growing: Growing) -> None:
    """Within `reread_days`, nightly audits read each statement again, however the log grows."""
    growing.append(20)
    run(growing, now=NOW)
    seen: set[int] = set()
    for night in range(1, 6):
        growing.append(2)
        run(growing, now=NOW + timedelta(days=night), reread_days=5)
        seen |= {n for first, end, read in spans(growing, night) if read == "again" for n in range(first, end)}
    assert seen >= set(range(20))


def test_a_missed_night_is_made_up_for(growing: Growing) -> None:
    """After nights without an audit the share of the old is larger."""
    growing.append(30)
    run(growing, now=NOW)
    run(growing, now=NOW + timedelta(days=4), reread_days=10)
    assert spans(growing, 1) == [(0, 12, "again")]


def test_only_a_turn_of_its_own_counts(growing: Growing) -> None:
    """Audits of other logs, or a roll's, between two turns of a log do not delay its next turn."""
    growing.append(30)
    other = Growing(growing.root, partition=1)
    other.append(3)
    run(growing, now=NOW, reread_days=10)
    for days in (1, 2):
        assert record(settings(growing), [Action("delete", "an index", "done")], NOW + timedelta(days=days)) == days
    run(growing, Request(logs=(other.log,)), NOW + timedelta(days=3), reread_days=10)
    assert run(growing, now=NOW + timedelta(days=4), reread_days=10).sequence == 4
    assert spans(growing, 4) == [(0, 12, "again")]


def test_full(growing: Growing) -> None:
    """A full audit reads all again; the head moves on with it."""
    growing.append(8)
    run(growing)
    growing.append(2)
    run(growing, Request(full=True))
    assert spans(growing, 1) == [(0, 8, "again"), (8, 10, "new")]
    assert audit_of(growing, 1).heads[growing.log].size == 10


def test_time_range(growing: Growing) -> None:
    """An audit of a time range reads the statements sealed in it, and moves neither head nor turn."""
    growing.append(9)
    run(growing)
    growing.append(3)
    run(growing, Request(since=growing.sealed_at(4), until=growing.sealed_at(6)))
    assert spans(growing, 1) == [(4, 6, "again")]
    assert audit_of(growing, 1).heads[growing.log].size == 9
    run(growing)
    assert spans(growing, 2)[-1] == (9, 12, "new")


def test_an_empty_range_says_so(growing: Growing) -> None:
    """An audit that reads nothing signs that, with its range and logs, and no word of the whole archive."""
    growing.append(2)
    run(growing)
    later = datetime.now(UTC) + timedelta(days=30)
    for logs, words in (((), "no statement was sealed"), ((growing.log,), f"no statement of {growing.log} was sealed")):
        outcome = run(growing, Request(logs=logs, since=later))
        (problem,) = outcome.findings
        assert (problem["finding"], outcome.counts.get("statements", 0)) == ("empty", 0)
        assert problem["message"] == f"nothing was audited: {words} from {later} on and before now"
        assert audit_of(growing, outcome.sequence).covered == {}


def test_an_audit_of_a_bucket_without_pieces(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is signed, whether nothing was sealed in a range, or all statements were deleted, which is a finding."""
    growing.append(2)
    run(growing)
    pass_for_a_bucket(monkeypatch, growing.folder)
    empty = run(growing, Request(since=datetime.now(UTC) + timedelta(days=30)), archive=URL)
    assert [problem["finding"] for problem in empty.findings] == ["empty"]
    shutil.rmtree(growing.folder / "manifests")
    gone = run(growing, archive=URL)
    assert "head-rollback" in {problem["finding"] for problem in gone.findings}
    assert audit_of(growing, gone.sequence).verdict == gone.verdict == "tampered"


@pytest.mark.parametrize("minutes", [-10, 0, 10])
def test_a_wrong_clock_is_noticed(
    growing: Growing,
    seaweed: SeaweedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    minutes: int,
) -> None:
    """An audit of a bucket says by how much the host's clock is wrong. A folder tells no time."""
    seaweed.use(monkeypatch)
    growing.append(1)
    monkeypatch.setattr("custody.store.s3_client.datetime", shifted(timedelta(minutes=minutes)))
    options = S3Options(endpoint_url=seaweed.endpoint_url)
    store = open_store(f"s3://{seaweed.make_bucket()}/a", options)
    for path in filter(Path.is_file, growing.folder.rglob("*")):
        store.create(path.relative_to(growing.folder).as_posix(), path.read_bytes())
    given = Settings(archive=store.url, keys=f"file:{growing.keyring}", s3=options)
    clock = plan_audit(given, ALL, datetime.now(UTC)).clock
    assert (clock and round(clock / 60)) == (minutes or None)
    assert ("this host's clock is" in caplog.text) == bool(minutes)
    assert plan_audit(settings(growing), ALL, datetime.now(UTC)).clock is None


def test_one_log(growing: Growing) -> None:
    """An audit of some logs keeps the others' heads; one that does not exist is named."""
    other = Growing(growing.root, partition=1)
    growing.append(4)
    other.append(4)
    run(growing)
    growing.append(1)
    other.append(1)
    run(growing, Request(logs=(other.log,)))
    heads = audit_of(growing, 1).heads
    assert (heads[growing.log].size, heads[other.log].size) == (4, 5)
    with pytest.raises(ConfigurationError, match=r"no log 'nothing/0'; it has audit.grows/0, audit.grows/1"):
        run(growing, Request(logs=("nothing/0",)))


def test_nothing_new(growing: Growing) -> None:
    """An audit of an archive that did not grow is one all the same."""
    growing.append(1)
    run(growing)
    assert run(growing).verdict == "verified"
    assert judged(growing).exit_code == 0


def test_killed_audit_goes_on(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that a killed audit has read are not read again, and the result is the same."""
    growing.append(10)
    given = settings(growing)
    plan = plan_audit(given, Request(), datetime.now(UTC))
    first = next(verify_pieces(given, plan, plan.pieces))
    again = plan_audit(given, Request(), datetime.now(UTC))
    read = count_reads(monkeypatch)
    results = list(verify_pieces(given, again, again.pieces))
    assert results[0] == first
    assert [piece.first for piece in read] == [3, 6, 9]
    assert conclude(given, again, results).counts["events"] == growing.events


def test_what_is_taken_over_is_said(growing: Growing) -> None:
    """An audit that resumes states when the earliest reading began, and how many pieces it took over."""
    growing.append(6)
    given = settings(growing)
    begun = datetime.now(UTC)
    plan = plan_audit(given, ALL, begun)
    list(verify_pieces(given, plan, plan.pieces[:1], lambda: begun))
    later = begun + timedelta(minutes=90)
    again = plan_audit(given, ALL, later)
    outcome = conclude(given, again, list(verify_pieces(given, again, again.pieces, lambda: later)))
    made = audit_of(growing, 0)
    assert outcome.counts[TAKEN_OVER] == made.counts[TAKEN_OVER] == 1
    assert parse_time(made.started_at) == begun
    assert run(growing).counts[TAKEN_OVER] == 0


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_pieces_of_objects_that_changed_are_read_again(growing: Growing, how: str) -> None:
    """A segment that was changed or deleted after a killed audit had read it is found by the audit that resumes."""
    growing.append(6)
    given = settings(growing)
    plan = plan_audit(given, ALL, datetime.now(UTC))
    list(verify_pieces(given, plan, plan.pieces))
    if how == "changed":
        damage(growing)
    else:
        min((growing.folder / "events").rglob("*.gz")).unlink()
    again = plan_audit(given, ALL, datetime.now(UTC))
    found = conclude(given, again, list(verify_pieces(given, again, again.pieces)))
    assert [one["finding"] for one in found.findings] == ["segment-hash" if how == "changed" else "segment-missing"]
    assert found.counts[TAKEN_OVER] == len(plan.pieces) - 1


@pytest.mark.parametrize("minutes", [-10, 0, 10])
def test_a_change_is_seen_whatever_the_hosts_clock(
    growing: Growing, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """A segment that changed in a bucket after a piece was read is read again, also if the host's clock is wrong."""
    seaweed.use(monkeypatch)
    by = timedelta(minutes=minutes)
    monkeypatch.setattr("custody.store.s3_client.datetime", shifted(by))
    growing.append(6)
    name, client = seaweed.make_bucket(), seaweed.client()
    for path in filter(Path.is_file, growing.folder.rglob("*")):
        client.put_object(Bucket=name, Key=f"a/{path.relative_to(growing.folder)}", Body=path.read_bytes())
    given = Settings(
        archive=f"s3://{name}/a",
        keys=f"file:{growing.keyring}",
        s3=S3Options(endpoint_url=seaweed.endpoint_url),
        audit=AuditSettings(piece_statements=3, tables=False),
    )
    host = datetime.now(UTC) + by
    plan = plan_audit(given, ALL, host)
    read, unread = plan.pieces[:1], plan.pieces[1:]
    list(verify_pieces(given, plan, read, lambda: host))
    # As if this piece had been read long after its objects were put.
    others = list(verify_pieces(given, plan, unread, lambda: host + timedelta(minutes=1)))
    damage(growing)
    changed = min((growing.folder / "events").rglob("*.gz"))
    client.put_object(Bucket=name, Key=f"a/{changed.relative_to(growing.folder)}", Body=changed.read_bytes())
    again = list(verify_pieces(given, plan, plan.pieces, lambda: host + timedelta(minutes=2)))
    assert [problem["finding"] for problem in again[0].findings] == ["segment-hash"]
    assert again[1:] == others


@pytest.mark.parametrize("planted", [b"no audit", b"{}\n{}\n", None], ids=["garbage", "two lines", "a forged audit"])
def test_pieces_of_another_night_are_not_signed(growing: Growing, planted: bytes | None) -> None:
    """What was read a night before is read again: a segment may have been changed since, and is found.

    Somebody without a key keeps the first night from signing, and takes the obstacle away before the second.
    """
    growing.append(6)
    given = settings(growing)
    night = datetime.now(UTC)
    plan = plan_audit(given, ALL, night)
    results = list(verify_pieces(given, plan, plan.pieces))
    slot = growing.folder / "audits" / f"{0:012}.json"
    slot.parent.mkdir(exist_ok=True)
    if planted is None:
        other = growing.copy(growing.root / "other")
        run(other)
        planted = (other.folder / "audits" / slot.name).read_bytes().replace(b'"notices"', b'"notices" ')
        planted = planted.replace(b'"verified"', b'"tampered"')
    slot.write_bytes(planted)
    # The first night is not stopped by it: it signs behind it.
    assert conclude(given, plan, results).sequence == 1
    assert audit_of(growing, 1).passed_over == [sha256(planted).hexdigest()]
    for path in sorted((growing.folder / "audits").iterdir()):
        path.unlink()
    shutil.rmtree(growing.folder / "checkpoints")
    damage(growing)
    later = night + timedelta(days=1)
    again = plan_audit(given, ALL, later)
    assert again.sequence == plan.sequence
    found = conclude(given, again, list(verify_pieces(given, again, again.pieces, lambda: later)))
    assert (found.verdict, found.counts[TAKEN_OVER]) == ("tampered", 0)


def test_a_planted_piece_is_not_believed(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece is read again if its result was forged, or was copied from another piece."""
    growing.append(6)
    given = settings(growing)
    plan = plan_audit(given, Request(), datetime.now(UTC))
    list(verify_pieces(given, plan, plan.pieces))
    kept = sorted((growing.folder / "reports").rglob("*.json"))
    line, _, signatures = kept[0].read_bytes().partition(b"\n")
    overwrite(kept[0], line.replace(b'"findings":[', b'"findings": [') + b"\n" + signatures)
    overwrite(kept[1], kept[0].read_bytes())
    read = count_reads(monkeypatch)
    list(verify_pieces(given, plan, plan.pieces))
    assert [piece.first for piece in read] == [0, 3]


def test_damage_is_found_once(growing: Growing) -> None:
    """A damaged segment is one finding, with its severity, and the audited head still moves on."""
    growing.append(5)
    damage(growing)
    outcome = run(growing)
    assert [one["finding"] for one in outcome.findings] == ["segment-hash"]
    assert (outcome.verdict, outcome.exit_code) == ("tampered", 13)
    findings = audit_of(growing, 0).findings
    assert isinstance(findings, list)
    assert findings[0]["finding"] == "segment-hash"


def test_rollback_is_found(growing: Growing, tmp_path: Path) -> None:
    """An archive that went back behind the last audit is a finding, and the audited head stays."""
    growing.append(5)
    old = tmp_path / "old"
    shutil.copytree(growing.folder / "manifests", old)
    growing.append(2)
    run(growing)
    shutil.rmtree(growing.folder / "manifests")
    shutil.copytree(old, growing.folder / "manifests")
    outcome = run(growing)
    assert outcome.findings[0]["finding"] == "head-rollback"
    assert audit_of(growing, 1).heads[growing.log].size == 7


def test_another_archive_file_ends_the_audit(growing: Growing) -> None:
    """If our keys did not sign archive.json, no audit is signed."""
    growing.append(3)
    run(growing)
    path = growing.folder / "archive.json"
    line, _, signatures = path.read_bytes().partition(b"\n")
    changed = json.loads(line) | {"heartbeat": 31_622_400}
    overwrite(path, json.dumps(changed, separators=(",", ":")).encode() + b"\n" + signatures)
    with pytest.raises(HeadRollback, match=r"archive\.json is not signed by trusted keys"):
        run(growing)
    assert not (growing.folder / "audits" / f"{1:012}.json").exists()


def test_rollback_that_was_accepted(growing: Growing, tmp_path: Path) -> None:
    """An audit reports a log that went back as `custody verify` does. If accepted, it is a notice in both."""
    growing.append(7)
    run(growing)
    for sequence in (5, 6):
        (growing.folder / f"manifests/{growing.log}/{sequence:012}.json").unlink()
    (found,) = (one for one in judged(growing).findings if one.finding == "head-rollback")
    trust = tmp_path / "trust.json"
    trust.write_text('{"format":"custody/trust/1"}')
    accept(trust, acceptance.entries(found, "a drill", "Ada", format_time(datetime.now(UTC))))
    outcome = run(growing, trust=trust)
    (one,) = (one for one in outcome.findings if one["finding"] == "head-rollback")
    assert (one["sha256"], one["severity"]) == (found.sha256, "notice")
    assert outcome.exit_code == 3
    (growing.folder / f"manifests/{growing.log}/{4:012}.json").unlink()
    assert run(growing, trust=trust).exit_code == 13


def test_a_log_that_is_gone_is_missed(growing: Growing) -> None:
    """A log whose objects are all gone is reported as long as an audit names it."""
    growing.append(3)
    run(growing)
    for folder in ("manifests", "events", "checkpoints"):
        shutil.rmtree(growing.folder / folder / (growing.log.split("/")[0] if folder != "events" else ""))
    assert "head-rollback" in {one["finding"] for one in run(growing).findings}


def test_fork_shows_both_heads(growing: Growing, tmp_path: Path) -> None:
    """A second history after the audited head is a finding that shows both signed heads."""
    growing.append(3)
    fork = growing.copy(tmp_path / "fork")
    growing.append(2)
    run(growing)
    fork.append(2)
    for folder in ("manifests", "events"):
        shutil.rmtree(growing.folder / folder)
        shutil.copytree(fork.folder / folder, growing.folder / folder)
    found = run(growing).findings
    fork_found = next(one for one in found if one["finding"] in {"head-fork", "checkpoint"})
    assert len(fork_found["evidence"]) == 2


def test_many_findings_have_an_object(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there are too many findings for the audit, it names by digest an object that has all of them."""
    monkeypatch.setattr(form, "FINDINGS_INLINE", 1)
    growing.append(4)
    damage(growing, 3)
    outcome = run(growing)
    held = audit_of(growing, 0).findings
    assert isinstance(held, form.ObjectRef)
    assert held.key == f"audits/objects/{held.sha256}"
    lines = (growing.folder / held.key).read_bytes().splitlines()
    assert [json.loads(line)["finding"] for line in lines] == ["segment-hash"] * 3
    assert outcome.whole.endswith(held.key)
    assert {one.finding for one in judged(growing).findings} == {"segment-hash"}


def test_what_was_made_is_referred_to(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit refers to the tables made for it, what it knows of sources, its index, and the report before it."""
    growing.append(4)
    run(growing)
    lists = {path.relative_to(growing.folder).as_posix() for path in (growing.folder / "tables/signed").iterdir()}
    sources = {path.relative_to(growing.folder).as_posix() for path in (growing.folder / "reports/sources").iterdir()}
    index = {path.relative_to(growing.folder).as_posix() for path in (growing.folder / "reports/index").glob("*-map-*")}
    index |= {path.relative_to(growing.folder).as_posix() for path in (growing.folder / "reports/turns").iterdir()}
    assert {ref.key for ref in audit_of(growing, 0).objects} == lists | sources | index
    page = put_report(settings(growing), 0, b"<p>all is well</p>")
    run(growing)
    ref, *_ = audit_of(growing, 1).objects
    data = (growing.folder / ref.key).read_bytes()
    assert ref == form.ObjectRef(f"audits/objects/{ref.sha256}", len(data), sha256(data).hexdigest())
    assert Path(page.removeprefix("file://")).read_bytes() == data == b"<p>all is well</p>"
    growing.append(6)
    monkeypatch.setattr(objects, "OBJECTS_INLINE", 1)
    run(growing)
    (ref,) = audit_of(growing, 2).objects
    assert ref.key == f"audits/objects/{ref.sha256}"
    listed = [json.loads(line) for line in (growing.folder / ref.key).read_bytes().splitlines()]
    assert {one["key"].split("/")[1] for one in listed} == {"signed", "sources", "index", "turns"}
    assert judged(growing).exit_code == 0


@pytest.mark.parametrize("what", ["note", "page"])
def test_a_report_that_nobody_signed_is_not_referred_to(growing: Growing, what: str) -> None:
    """No audit refers to a report that was put or changed by somebody without a key."""
    growing.append(1)
    run(growing, tables=False)
    page = put_report(settings(growing), 0, b"<p>all is well</p>")
    if what == "note":
        note = growing.folder / "reports/audits" / f"{0:012}" / "report.json"
        line, _, signatures = note.read_bytes().partition(b"\n")
        forged = json.loads(line) | {"sha256": sha256(b"<p>all is lost</p>").hexdigest()}
        overwrite(note, json.dumps(forged, separators=(",", ":")).encode() + b"\n" + signatures)
    else:
        overwrite(Path(page.removeprefix("file://")), b"<p>all is lost</p>")
    run(growing)
    assert [ref.key.rpartition("/")[0] for ref in audit_of(growing, 1).objects] == [
        *("reports/sources", "reports/index", "reports/turns")
    ]


def test_two_audits_at_once(growing: Growing) -> None:
    """Of two audits at the same time, one is written, and the other ends."""
    growing.append(2)
    given = settings(growing)
    plans = [plan_audit(given, Request(), datetime.now(UTC)) for _ in range(2)]
    results = [list(verify_pieces(given, plan, plan.pieces)) for plan in plans]
    conclude(given, plans[0], results[0])
    with pytest.raises(Fenced):
        conclude(given, plans[1], results[1])
    assert judged(growing).exit_code == 0


def test_an_audit_nobody_signed_is_nothing_to_go_on_from(growing: Growing) -> None:
    """If the newest audit was changed before a checkpoint covered it, that is a finding, and all is read as new."""
    growing.append(4)
    run(growing)
    (growing.folder / "checkpoints/audits/0" / f"{1:012}").unlink()
    path = growing.folder / "audits" / f"{0:012}.json"
    overwrite(path, path.read_bytes().replace(b'"verdict":"verified"', b'"verdict":"notices" '))
    outcome = run(growing)
    assert outcome.findings[0]["finding"] == "audit"
    assert spans(growing, 1) == [(0, 4, "new")]


@pytest.mark.parametrize("how", ["deleted", "changed", "a hole"])
def test_audits_that_went_back(growing: Growing, how: str) -> None:
    """No audit is signed if a signed checkpoint or a later audit proves that audits are missing."""
    growing.append(4)
    given = settings(growing)
    for _ in range(2):
        run(growing, tables=False)
    path = growing.folder / "audits" / f"{0 if how == 'a hole' else 1:012}.json"
    if how == "a hole":
        for checkpoint in (growing.folder / "checkpoints/audits/0").iterdir():
            checkpoint.unlink()
    kept = path.read_bytes()
    path.unlink()
    if how == "changed":
        path.write_bytes(kept.replace(b'"verdict":"verified"', b'"verdict":"notices" '))
    before = sorted((growing.folder / "audits").iterdir())
    with pytest.raises(HeadRollback, match=r"audits/0: .*(exists|but there is a checkpoint .*)\. Nothing is appended"):
        plan_audit(given, ALL, datetime.now(UTC))
    assert sorted((growing.folder / "audits").iterdir()) == before
    overwrite(path, kept) if path.exists() else path.write_bytes(kept)
    run(growing, tables=False)
    assert judged(growing).exit_code == 0


def test_audits_that_went_back_meanwhile(growing: Growing) -> None:
    """Audits that vanish while an audit reads stop it too."""
    growing.append(4)
    given = settings(growing)
    run(growing, tables=False)
    plan = plan_audit(given, ALL, datetime.now(UTC))
    results = list(verify_pieces(given, plan, plan.pieces))
    (growing.folder / "checkpoints/audits/0" / f"{1:012}").unlink()
    (growing.folder / "audits" / f"{0:012}.json").unlink()
    with pytest.raises(HeadRollback, match="size 0, but the head known from the plan of this audit has size 1"):
        conclude(given, plan, results)


def ended(growing: Growing, path: Path, **more: Any) -> Settings:
    """Return settings whose trust says that our HMAC key has ended."""
    (key,) = (one for one in open_trust([f"file:{growing.keyring}"]).keys.values() if one.algorithm == "HMAC-SHA256")
    entries = [{"id": key.id, "algorithm": key.algorithm, "from": None, "to": None, **more}]
    path.write_text(json.dumps({"format": "custody/trust/1", "keys": entries}))
    return settings(growing, trust=path)


def test_an_audit_signed_outside_a_span(growing: Growing, tmp_path: Path) -> None:
    """If the newest audit was signed outside its key's span, everything is read as new."""
    growing.append(4)
    run(growing)
    given = ended(growing, tmp_path / "trust.json", to="2020-01-01T00:00:00.000000Z")
    assert [piece.read for piece in plan_audit(given, ALL, datetime.now(UTC)).pieces] == ["new", "new"]


def test_an_audit_by_a_key_that_had_ended(growing: Growing, tmp_path: Path) -> None:
    """An audit that a leaked key signed after its end stops the next audit. Before its end it counts."""
    growing.append(4)
    run(growing)
    until = {"audits/0": {"size": 0, "root": merkle.EMPTY_ROOT.hex()}}
    with pytest.raises(HeadRollback, match=r"audits/0{12}\.json does not count: the key .* ended at .* size 0"):
        plan_audit(ended(growing, tmp_path / "trust.json", until=until), ALL, datetime.now(UTC))
    signed = (growing.folder / "audits" / f"{0:012}.json").read_bytes()
    root = merkle.leaf_hash(form.parse(signed).message)
    name = growing.log
    head = audit_of(growing, 0).heads[name]
    until = {"audits/0": {"size": 1, "root": root.hex()}, name: {"size": head.size, "root": head.root}}
    given = ended(growing, tmp_path / "other.json", until=until)
    assert plan_audit(given, ALL, datetime.now(UTC)).pieces[-1].read == "again"
    until["audits/0"]["root"] = "11" * 32
    with pytest.raises(HeadRollback, match="not shown to lie within that head"):
        plan_audit(ended(growing, tmp_path / "third.json", until=until), ALL, datetime.now(UTC))


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Piece]:
    """Note which pieces are read from now on."""
    read: list[Piece] = []
    original = pieces._verify_piece

    def counted(*given: Any) -> Any:
        read.extend(one for one in given if isinstance(one, Piece))
        return original(*given)

    monkeypatch.setattr(pieces, "_verify_piece", counted)
    return read


def damage(growing: Growing, many: int = 1) -> None:
    """Flip a bit in some segments."""
    for path in sorted((growing.folder / "events").rglob("*.gz"))[:many]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        overwrite(path, bytes(data))


def overwrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_tables_are_made_once(growing: Growing) -> None:
    """Statements become tables when they are read for the first time, not when they are read again."""
    growing.append(5)
    run(growing)
    made = sorted((growing.folder / "tables").rglob("*.parquet"))
    assert len(made) == 2
    run(growing, Request(full=True))
    assert sorted((growing.folder / "tables").rglob("*.parquet")) == made


def test_changed_table(growing: Growing) -> None:
    """A changed table is a finding of the audit whose turn it is, whatever its new name."""
    growing.append(3)
    run(growing)
    (path,) = (growing.folder / "tables").rglob("*.parquet")
    table = pq.read_table(path, partitioning=None).slice(1)
    path.unlink()
    pq.write_table(table, path)
    found = run(growing, Request(full=True))
    assert [one["finding"] for one in found.findings] == ["tables"]
    assert found.verdict == "policy"
    digest = sha256(path.read_bytes()).hexdigest()[:16]
    path.rename(path.with_name(f"{path.name.rpartition('-')[0]}-{digest}.parquet"))
    found = run(growing, Request(full=True))
    assert [one["finding"] for one in found.findings] == ["tables"]
    assert "in no list signed by a trusted key" in found.findings[0]["message"]


def test_without_tables(growing: Growing) -> None:
    """Tables can be switched off."""
    growing.append(1)
    run(growing, tables=False)
    assert not (growing.folder / "tables").exists()


def test_no_archive_is_reported_before_missing_keys(tmp_path: Path) -> None:
    """Without an archive and keys, the error names the archive: its advice makes both."""
    settings = Settings(archive=str(tmp_path / "none"), keys=f"file:{tmp_path / 'keyring.json'}")
    with pytest.raises(NoArchive):
        plan_audit(settings, Request(), datetime.now(UTC))
