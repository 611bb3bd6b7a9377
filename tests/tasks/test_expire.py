"""The end of life is signed before anything is deleted, and verification tells it from loss for ever."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive import find_audits
from custody.errors import TerminalStoreError
from custody.settings import AuditSettings, Settings, TierSettings
from custody.store import S3Options, Store, open_store
from custody.trust import open_trust
from custody.verify import Report, verify
from tasks.audit import EXPIRED, Request, conclude, plan_audit, verify_pieces
from tasks.expire import expire
from tasks.roll import Action, record
from tests.sample import Growing
from tests.servers.s3 import SeaweedServer

NOW = datetime.now(UTC)


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """An archive of four statements of ten days ago."""
    made = Growing(tmp_path, begun=NOW - timedelta(days=10))
    made.append(4)
    return made


def settings(growing: Growing, archive: str | None = None, days: int = 9, **more: Any) -> Settings:
    return Settings(
        archive=archive or str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(tables=False),
        tiers=TierSettings(life_days=days),
        **more,
    )


def judged(given: Settings, growing: Growing) -> Report:
    trust = open_trust([f"file:{growing.keyring}"])
    return verify(open_store(given.archive, given.s3), trust, now=datetime.now(UTC), workers=0)


def segments(growing: Growing) -> list[Path]:
    return sorted((growing.folder / "events").rglob("*.gz"))


def audit(given: Settings) -> None:
    plan = plan_audit(given, Request(), datetime.now(UTC))
    conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))


def test_signed_then_deleted(growing: Growing) -> None:
    """What is old enough is called expired by a signed statement, and is gone; the archive verifies."""
    given = settings(growing)
    actions = list(expire(given, NOW))
    assert actions[0] == Action(
        "expire", "audit.grows/0, statements 0 to 3", "done", "sealed more than 9 days ago; signed"
    )
    assert [(one.what, one.outcome) for one in actions[1:]] == [("delete", "done")] * 4
    assert segments(growing) == []
    report = judged(given, growing)
    assert (report.exit_code, report.logs[0].statements, report.logs[0].expired) == (0, 5, 4)
    assert list(expire(given, NOW)) == []


def test_only_what_is_old(growing: Growing) -> None:
    """Younger statements keep their objects."""
    growing.begun = NOW - timedelta(days=1)
    growing.append(2)
    given = settings(growing)
    list(expire(given, NOW))
    assert len(segments(growing)) == 2
    assert judged(given, growing).exit_code == 0


def test_dry_run(growing: Growing) -> None:
    """A dry run says what would expire, and changes nothing."""
    before = sorted(growing.folder.rglob("*"))
    assert {one.outcome for one in expire(settings(growing), NOW, dry_run=True)} == {"planned"}
    assert sorted(growing.folder.rglob("*")) == before


@pytest.mark.parametrize("done", range(4))
def test_killed_while_deleting(growing: Growing, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    """A run that dies after the signature goes on where it was; verification is content at any time."""
    given = settings(growing)
    left = done

    class Killed(BaseException):
        pass

    original = type(open_store(given.archive)).remove

    def remove(store: Store, key: str) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        original(store, key)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(type(open_store(given.archive)), "remove", remove)
        with pytest.raises(Killed):
            list(expire(given, NOW))
    assert len(segments(growing)) == 4 - done
    assert judged(given, growing).exit_code in {0, 3}
    actions = list(expire(given, NOW))
    assert [(one.what, one.outcome) for one in actions] == [("delete", "done")] * (4 - done)
    assert judged(given, growing).exit_code == 0


def test_an_object_that_cannot_be_deleted(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object that the store does not delete stops no other, and is tried again the next time."""
    given = settings(growing)
    first = segments(growing)[0].relative_to(growing.folder).as_posix()
    original = type(open_store(given.archive)).remove

    def remove(store: Store, key: str) -> None:
        if key == first:
            raise TerminalStoreError("it may not be deleted")
        original(store, key)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(type(open_store(given.archive)), "remove", remove)
        outcomes = [one.outcome for one in expire(given, NOW) if one.what == "delete"]
    assert sorted(outcomes) == ["done", "done", "done", "failed"]
    assert [one.outcome for one in expire(given, NOW)] == ["done"]


def test_after_an_audit(growing: Growing) -> None:
    """The audit remembers what expired: the next roll begins there, and audits of what is gone find nothing."""
    given = settings(growing)
    audit(given)
    list(expire(given, NOW))
    audit(given)
    newest = find_audits(open_store(given.archive)).newest
    assert newest
    assert newest.statement.counts[f"{EXPIRED}{growing.log}"] == 4
    growing.append(0)
    assert list(expire(given, NOW)) == []
    plan = plan_audit(given, Request(full=True), datetime.now(UTC))
    # Nothing was written for days, which is a notice.
    outcome = conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))
    assert {one["finding"] for one in outcome.findings} == {"stale"}


def forge(path: Path, change: Callable[[dict[str, Any]], None], place: Path | None = None) -> None:
    """Write a signed statement again with other words and the signatures that it had, as who holds no key can."""
    line, _, signatures = path.read_bytes().partition(b"\n")
    statement = json.loads(line)
    change(statement)
    path = place or path
    path.unlink(missing_ok=True)
    path.write_bytes(json.dumps(statement, separators=(",", ":")).encode() + b"\n" + signatures)


@pytest.fixture
def young(tmp_path: Path) -> Growing:
    """An archive of four statements of yesterday; by their keys they are old, for Kafka's times are a producer's."""
    made = Growing(tmp_path, begun=NOW - timedelta(days=1))
    made.append(4)
    return made


def test_an_audit_that_nobody_signed_ends_nothing(young: Growing) -> None:
    """A forged audit that calls statements expired deletes none of them, and our own key repeats nothing of it."""
    given = settings(young)
    audit(given)
    audits = young.folder / "audits"

    def lie(one: dict[str, Any]) -> None:
        one["sequence"] = one["tree"]["size"] = 1
        one["tree"]["edge"] = ["00" * 32]
        one["counts"][f"{EXPIRED}{young.log}"] = 4
        one["heads"][young.log]["size"] = 10**9

    forge(audits / f"{0:012}.json", lie, audits / f"{1:012}.json")
    assert list(expire(given, NOW)) == []
    assert len(segments(young)) == 4
    assert record(given, [Action("delete", "an index", "refused", "for a test")], NOW) == 2
    newest = find_audits(open_store(given.archive)).newest
    assert newest
    assert f"{EXPIRED}{young.log}" not in newest.statement.counts
    assert newest.statement.heads == {}


def test_what_was_signed_for_a_shorter_life(young: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was called expired, and was sealed since the end of the life that is set now, is not deleted."""
    short, later = settings(young, days=1), NOW + timedelta(hours=1)
    with monkeypatch.context() as patched:
        patched.setattr("tasks.expire._delete", lambda *_, **__: iter(()))
        assert [one.outcome for one in expire(short, later)] == ["done"]
    assert list(expire(settings(young), NOW)) == []
    assert len(segments(young)) == 4
    assert [one.what for one in expire(short, later)] == ["delete"] * 4


@pytest.mark.parametrize("place", [3, 4], ids=["the newest", "one more"])
def test_a_statement_that_nobody_signed_ends_nothing(young: Growing, place: int) -> None:
    """A forged statement that carries `expired` is refused, no audit signs it, and nothing of its log is deleted."""
    manifests = young.folder / "manifests" / young.log

    def lie(one: dict[str, Any]) -> None:
        one.update(sequence=place, expired=[0, 3], segment=None, batches=[], types={}, first_offset=one["next_offset"])
        one["sealed_at"] = one["sealed_at"].replace(str(NOW.year), "2020")
        one["tree"].update(size=place, edge=["00" * 32] * place.bit_count())

    forge(manifests / f"{3:012}.json", lie, manifests / f"{place:012}.json")
    (refused,) = expire(settings(young), NOW)
    assert (refused.what, refused.target, refused.outcome) == ("expire", young.log, "refused")
    assert "no trusted key signed" in refused.why
    assert len(segments(young)) == 4
    given = settings(young)
    plan = plan_audit(given, Request(), datetime.now(UTC))
    outcome = conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))
    assert f"{EXPIRED}{young.log}" not in outcome.counts
    assert outcome.verdict == "tampered"


def test_an_age_that_nobody_signed_ends_nothing(young: Growing) -> None:
    """Statements that were made old without a key are refused: the age of what is deleted is signed."""
    manifests = young.folder / "manifests" / young.log
    for sequence in range(3):
        forge(
            manifests / f"{sequence:012}.json",
            lambda one: one.update(sealed_at=one["sealed_at"].replace(str(NOW.year), "2020")),
        )
    (refused,) = expire(settings(young), NOW)
    assert (refused.outcome, "no trusted key signed" in refused.why) == ("refused", True)
    assert len(segments(young)) == 4


def test_recorded(growing: Growing) -> None:
    """What expired and what was deleted stands in a signed audit, behind which the nightly ones go on."""
    given = settings(growing)
    audit(given)
    actions = list(expire(given, NOW))
    assert record(given, actions, NOW) == 1
    assert record(given, [], NOW) is None
    report = judged(given, growing)
    assert report.exit_code == 0
    plan = plan_audit(given, Request(), datetime.now(UTC))
    assert plan.sequence == 2
    assert [(one.first, one.read) for one in plan.pieces if one.read == "new"] == [(4, "new")]


def test_versions_and_locks(growing: Growing, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bucket with versions and locks, what is locked stays, and what is deleted leaves no version behind."""
    seaweed.use(monkeypatch)
    url = f"s3://{seaweed.make_bucket(versioned=True, object_lock=True)}/archive"
    options = S3Options(endpoint_url=seaweed.endpoint_url)
    locked = S3Options(endpoint_url=seaweed.endpoint_url, retention_mode="GOVERNANCE", retention_days=1)
    store = open_store(url, options)
    paths = [path for path in growing.folder.rglob("*") if path.is_file()]
    first = segments(growing)[0]
    for path in paths:
        key = path.relative_to(growing.folder).as_posix()
        (open_store(url, locked) if path == first else store).create(key, path.read_bytes())
    given = settings(growing, url, s3=options)
    deleted = [one for one in expire(given, NOW) if one.what == "delete"]
    assert [one.outcome for one in deleted] == ["refused", "done", "done", "done"]
    assert "locked until" in deleted[0].why
    gone = deleted[1].target
    assert not store.exists(gone)
    assert not store.has_history(gone)
    assert judged(given, growing).exit_code in {0, 3}
    later = [one for one in expire(given, NOW + timedelta(days=2)) if one.what == "delete"]
    # The lock has a day to go by the server's clock, whatever ours says.
    assert [one.outcome for one in later] == ["failed"]
