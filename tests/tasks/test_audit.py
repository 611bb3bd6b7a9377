"""An audit verifies what is new and in turn what is old, remembers what it has done, and signs what it found."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from custody import acceptance, manifest, merkle
from custody import audit as form
from custody.errors import ConfigurationError, Fenced
from custody.settings import AuditSettings, Settings
from custody.store import open_store
from custody.trust import accept, open_trust
from custody.verify import Report, verify
from tasks import audit as engine
from tasks.audit import Outcome, Piece, Request, conclude, plan_audit, verify_pieces
from tasks.roll import Action, record
from tests.sample import Growing

NOW = datetime.now(UTC)
ALL = Request()


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    return Growing(tmp_path)


def settings(growing: Growing, trust: Path | None = None, **more: Any) -> Settings:
    return Settings(
        archive=str(growing.folder),
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
    """A later audit reads what is new, and of the old as much as its turn asks."""
    growing.append(30)
    run(growing)
    growing.append(4)
    run(growing, reread_days=10)
    assert spans(growing, 1) == [(0, 3, "again"), (30, 34, "new")]
    run(growing, reread_days=10)
    assert spans(growing, 2) == [(3, 9, "again")]
    assert judged(growing).exit_code == 0


def test_everything_is_read_again_in_time(growing: Growing) -> None:
    """After so many nightly audits as `reread_days` says each statement has been read again, however the log grew."""
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
    """Audits that read nothing of a log between two of its turns, a roll's or one of other logs, delay none of it."""
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
    with pytest.raises(ConfigurationError, match=r"no log 'nothing/0'.*custody status"):
        run(growing, Request(logs=("nothing/0",)))


def test_nothing_new(growing: Growing) -> None:
    """An audit of an archive that did not grow is one all the same."""
    growing.append(1)
    run(growing)
    assert run(growing).verdict == "verified"
    assert judged(growing).exit_code == 0


def test_killed_audit_goes_on(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an audit that was killed has read is not read again, and the result is the same."""
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


def test_a_planted_piece_is_not_believed(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result of a piece that somebody else put there, or took from another place, is read again."""
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
    """A damaged segment is one finding of the audit that reads it, with its class, and the head still moves on."""
    growing.append(5)
    damage(growing)
    outcome = run(growing)
    assert [one["finding"] for one in outcome.findings] == ["segment-hash"]
    assert (outcome.verdict, outcome.exit_code) == ("tampered", 13)
    findings = audit_of(growing, 0).findings
    assert isinstance(findings, list)
    assert findings[0]["finding"] == "segment-hash"


def test_rollback_is_found(growing: Growing, tmp_path: Path) -> None:
    """An archive that went back to before the last audit is found out by it, and the audit's head stays."""
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


def test_a_heartbeat_that_none_may_have_is_not_signed(growing: Growing) -> None:
    """What archive.json says out of all bounds is found, and no audit of ours signs it or hands it on."""
    growing.append(1)
    path = growing.folder / "archive.json"
    info = path.read_bytes()
    for seconds in (0, 2**62):
        path.unlink()
        path.write_text(json.dumps(json.loads(info) | {"heartbeat": seconds}))
        assert "archive" in {one["finding"] for one in run(growing).findings}
        path.unlink()
        path.write_bytes(info)
    assert "heartbeat" not in audit_of(growing, 0).counts
    assert run(growing).findings == ()
    assert audit_of(growing, 2).counts["heartbeat"] == json.loads(info)["heartbeat"]


def test_heartbeat_is_signed(growing: Growing) -> None:
    """The first audit signs the archive's heartbeat: raised later, it is found, and the true one is handed on."""
    growing.append(3)
    run(growing)
    before = audit_of(growing, 0).counts["heartbeat"]
    path = growing.folder / "archive.json"
    info = json.loads(path.read_bytes())
    assert info["heartbeat"] == before
    path.unlink()
    path.write_text(json.dumps(info | {"heartbeat": 1000 * before}))
    later = datetime.now(UTC) + timedelta(seconds=3 * before)
    outcome = run(growing, now=later)
    assert [one["finding"] for one in outcome.findings] == ["archive", "stale"]
    assert outcome.verdict == "tampered"
    assert audit_of(growing, 1).counts["heartbeat"] == before
    assert [one.finding for one in judged(growing).findings] == ["archive"]


def test_rollback_that_was_accepted(growing: Growing, tmp_path: Path) -> None:
    """An audit judges a log that went back as `custody verify` does: what was accepted of one is a notice in both."""
    growing.append(7)
    run(growing)
    for sequence in (5, 6):
        (growing.folder / f"manifests/{growing.log}/{sequence:012}.json").unlink()
    (found,) = (one for one in judged(growing).findings if one.finding == "head-rollback")
    trust = tmp_path / "trust.json"
    trust.write_text('{"format":"custody/trust/1"}')
    accept(trust, acceptance.entries(found, "a drill", "Ada", manifest.format_time(datetime.now(UTC))))
    outcome = run(growing, trust=trust)
    (one,) = (one for one in outcome.findings if one["finding"] == "head-rollback")
    assert (one["sha256"], one["class"]) == (found.sha256, "notice")
    assert outcome.exit_code == 3
    (growing.folder / f"manifests/{growing.log}/{4:012}.json").unlink()
    assert run(growing, trust=trust).exit_code == 13


def test_a_log_that_is_gone_is_missed(growing: Growing) -> None:
    """A log of which nothing is left is missed as long as an audit remembers it."""
    growing.append(3)
    run(growing)
    for folder in ("manifests", "events", "checkpoints"):
        shutil.rmtree(growing.folder / folder / (growing.log.split("/")[0] if folder != "events" else ""))
    assert "head-rollback" in {one["finding"] for one in run(growing).findings}


def test_fork_shows_both_heads(growing: Growing, tmp_path: Path) -> None:
    """A second history behind the audited head is found out, and both signed heads are shown."""
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
    """Findings too many for the audit lie in an object that it names by digest; an auditor finds all of them there."""
    monkeypatch.setattr(form, "FINDINGS_INLINE", 1)
    growing.append(4)
    damage(growing, 3)
    outcome = run(growing)
    held = audit_of(growing, 0).findings
    assert isinstance(held, form.FindingsRef)
    lines = (growing.folder / held.key).read_bytes().splitlines()
    assert [json.loads(line)["finding"] for line in lines] == ["segment-hash"] * 3
    assert outcome.whole.endswith(held.key)


def test_two_audits_at_once(growing: Growing) -> None:
    """Of two audits at the same time one is written, and the other ends."""
    growing.append(2)
    given = settings(growing)
    plans = [plan_audit(given, Request(), datetime.now(UTC)) for _ in range(2)]
    results = [list(verify_pieces(given, plan, plan.pieces)) for plan in plans]
    conclude(given, plans[0], results[0])
    with pytest.raises(Fenced):
        conclude(given, plans[1], results[1])
    assert judged(growing).exit_code == 0


def test_an_audit_nobody_signed_is_nothing_to_go_on_from(growing: Growing) -> None:
    """Where the newest audit was changed, it is a finding, and everything is new again."""
    growing.append(4)
    run(growing)
    path = growing.folder / "audits" / f"{0:012}.json"
    overwrite(path, path.read_bytes().replace(b'"verdict":"verified"', b'"verdict":"notices" '))
    outcome = run(growing)
    assert outcome.findings[0]["finding"] == "audit"
    assert spans(growing, 1) == [(0, 4, "new")]


@pytest.mark.parametrize(
    "ended",
    [{"to": "2020-01-01T00:00:00.000000Z"}, {"until": {"audits/0": {"size": 0, "root": merkle.EMPTY_ROOT.hex()}}}],
    ids=["by its span", "by a head of the audits"],
)
def test_an_audit_by_a_key_that_had_ended(growing: Growing, tmp_path: Path, ended: dict[str, Any]) -> None:
    """What a leaked key signs after its end is nothing to go on from, however well it is signed."""
    growing.append(4)
    run(growing)
    (key,) = (one for one in open_trust([f"file:{growing.keyring}"]).keys.values() if one.algorithm == "HMAC-SHA256")
    entries = [{"id": key.id, "algorithm": key.algorithm, "from": None, "to": None, **ended}]
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps({"format": "custody/trust/1", "keys": entries}))
    given = settings(growing).model_copy(update={"trust": trust})
    assert [piece.read for piece in plan_audit(given, ALL, datetime.now(UTC)).pieces] == ["new", "new"]
    assert [piece.read for piece in plan_audit(settings(growing), ALL, datetime.now(UTC)).pieces] != ["new", "new"]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Piece]:
    """Note which pieces are read from now on."""
    read: list[Piece] = []
    original = engine._verify_piece

    def counted(*given: Any) -> Any:
        read.append(given[-1])
        return original(*given)

    monkeypatch.setattr(engine, "_verify_piece", counted)
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
    """Statements that are read for the first time become tables, those that are read again do not."""
    growing.append(5)
    run(growing)
    made = sorted((growing.folder / "tables").rglob("*.parquet"))
    assert len(made) == 2
    run(growing, Request(full=True))
    assert sorted((growing.folder / "tables").rglob("*.parquet")) == made


def test_changed_table(growing: Growing) -> None:
    """A table that was changed is a finding of the audit whose turn it is, whatever it is called then."""
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
    assert "no key that is trusted" in found.findings[0]["message"]


def test_without_tables(growing: Growing) -> None:
    """Tables can be switched off."""
    growing.append(1)
    run(growing, tables=False)
    assert not (growing.folder / "tables").exists()
