"""An expiry is signed before anything is deleted, so verification can always tell it from loss."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive.forms import statements_of
from custody.archive.reader import find_audit_tip, find_tip, read_archive
from custody.archive.writer import Entry
from custody.errors import ConfigurationError, TerminalStoreError
from custody.format.layout import Log
from custody.keys import trust_file
from custody.keys.open import open_public
from custody.keys.trust import open_trust
from custody.settings import TierSettings
from custody.store.open import open_store
from custody.store.protocol import S3Options, Store
from custody.tlog.proofs import Proofs
from custody.verify.report import Report
from custody.verify.run import verify
from flows.summaries import audit_summary
from tasks.audit.plan import Request, plan_audit
from tasks.roll.clock import History
from tasks.roll.expire import expire
from tasks.roll.record import Action, record
from tasks.roll.run import roll_all
from tasks.settings import AuditSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.environment import shifted
from tests.helpers.reading import anything
from tests.helpers.sample import Growing
from tests.servers.s3 import SeaweedServer

NOW = datetime.now(UTC)


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """An archive of four statements of ten days ago."""
    made = Growing(tmp_path, begun=NOW - timedelta(days=10), retention_days=1)
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


def test_signed_then_deleted(growing: Growing) -> None:
    """A signed statement calls old evidence expired; its objects are deleted, and the archive still verifies."""
    given = settings(growing)
    actions = list(expire(given, NOW))
    assert actions[0] == Action(
        "expire", "audit.grows/0, statements 0 to 3", "done", "sealed more than 9 days ago; signed"
    )
    assert [(one.what, one.outcome) for one in actions[1:]] == [("delete", "done")] * 4
    assert segments(growing) == []
    report = judged(given, growing)
    assert (report.exit_code, report.logs[0].statements, report.logs[0].expired) == (0, 5, 4)
    day = (NOW - timedelta(days=10)).date()
    assert f"0 events in 1 log, 20 more have expired (sealed from {day} to" in report.verdict
    assert "the last declared expired on" in report.verdict
    assert "every line read" not in report.verdict
    assert list(expire(given, NOW)) == []


def test_without_a_clock_nothing_expires_and_the_roll_fails(growing: Growing) -> None:
    """If there are logs, and no time of a statement is known, that is a failure, and no silence."""
    for confirmed in (False, True):
        (action,) = expire(settings(growing), NOW, clocks=[], confirm_clock=confirmed)
        assert (action.what, action.outcome) == ("expire", "failed")
        assert "no time but the host's is known" in action.why
    assert len(segments(growing)) == 4


def test_who_has_public_keys_alone_believes_it(growing: Growing, tmp_path: Path) -> None:
    """A checkpoint covers the statement that calls objects expired, before they are deleted."""
    given, path = settings(growing), tmp_path / "trust.json"
    store = open_store(given.archive, given.s3)
    trust_file.publish(path, read_archive(store).pin, open_public(f"file:{growing.keyring}"))
    for action in expire(given, NOW):
        if action.what == "delete":
            assert (growing.folder / "checkpoints/audit.grows/0" / f"{5:012}").exists()
    report = verify(store, open_trust([], path), now=datetime.now(UTC), workers=0)
    assert {one.finding for one in report.findings} == {"unchecked-signature"}
    assert report.logs[0].expired == 4


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
    """If a run dies after the signature, the next one continues. The archive verifies at any time."""
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
        original(store, key)

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
    """If the store does not delete one object, the others are deleted, and the next run tries it again."""
    given = settings(growing)
    first = segments(growing)[0].relative_to(growing.folder).as_posix()
    original = type(open_store(given.archive)).remove

    def remove(store: Store, key: str) -> None:
        if key == first:
            raise TerminalStoreError("it may not be deleted")
        original(store, key)

    with monkeypatch.context() as patched:
        patched.setattr(type(open_store(given.archive)), "remove", remove)
        outcomes = [one.outcome for one in expire(given, NOW) if one.what == "delete"]
    assert sorted(outcomes) == ["done", "done", "done", "failed"]
    assert [one.outcome for one in expire(given, NOW)] == ["done"]


def test_after_an_audit(growing: Growing) -> None:
    """The audit records what expired. The next roll begins there, and audits report no missing segments before it."""
    given = settings(growing)
    audit(given)
    list(expire(given, NOW))
    audit(given)
    newest = find_audit_tip(open_store(given.archive), anything).newest
    assert newest
    assert newest.statement.marks[growing.log].expired == 4
    growing.append(0)
    assert list(expire(given, NOW)) == []
    # Nothing was written for days, which is a notice.
    outcome = audit(given, full=True)
    assert {one["finding"] for one in outcome.findings} == {"stale"}
    day = (NOW - timedelta(days=10)).date()
    assert outcome.counts["expired_events"] == 20
    assert f"20 more have expired (sealed from {day} to" in audit_summary(outcome)


def forge(path: Path, change: Callable[[dict[str, Any]], None], place: Path | None = None) -> None:
    """Replace the text of a signed statement and keep its signatures, as an attacker without a key can."""
    line, _, signatures = path.read_bytes().partition(b"\n")
    statement = json.loads(line)
    change(statement)
    path = place or path
    path.unlink(missing_ok=True)
    path.write_bytes(json.dumps(statement, separators=(",", ":")).encode() + b"\n" + signatures)


@pytest.fixture
def young(tmp_path: Path) -> Growing:
    """An archive of four statements sealed two days ago. The days in their objects' keys come from producers."""
    made = Growing(tmp_path, begun=NOW - timedelta(days=2), retention_days=1)
    made.append(4)
    return made


def test_an_audit_that_nobody_signed_ends_nothing(young: Growing) -> None:
    """A forged audit that calls statements expired deletes nothing, and our key does not sign its claims again."""
    given = settings(young)
    audit(given)
    audits = young.folder / "audits"

    def lie(one: dict[str, Any]) -> None:
        one["sequence"] = one["tree"]["size"] = 1
        one["tree"]["compact_range"] = ["00" * 32]
        one["marks"][young.log]["expired"] = 4
        one["heads"][young.log]["size"] = 10**9

    forge(audits / f"{0:012}.json", lie, audits / f"{1:012}.json")
    assert list(expire(given, NOW)) == []
    assert len(segments(young)) == 4
    assert record(given, [Action("delete", "an index", "refused", "for a test")], NOW) == 2
    newest = find_audit_tip(open_store(given.archive), anything).newest
    assert newest
    # The forged one is passed over, and what the true one before it says is handed on.
    assert len(newest.statement.passed_over) == 1
    assert newest.statement.marks[young.log].expired == 0
    assert newest.statement.heads[young.log].size == 4


def test_what_was_signed_for_a_shorter_life(young: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the retention was made longer since an expiry was signed, younger objects are not deleted."""
    short, later = settings(young, days=1), NOW + timedelta(hours=1)
    with monkeypatch.context() as patched:
        patched.setattr("tasks.roll.expire._delete", lambda *_, **__: iter(()))
        assert [one.outcome for one in expire(short, later)] == ["done"]
    assert list(expire(settings(young), NOW)) == []
    assert len(segments(young)) == 4
    assert [one.what for one in expire(short, later)] == ["delete"] * 4


@pytest.mark.parametrize("place", [3, 4], ids=["the newest", "one more"])
def test_a_statement_that_nobody_signed_ends_nothing(young: Growing, place: int) -> None:
    """A forged statement that carries `expired` is passed over, no audit signs it, and nothing is deleted."""
    manifests = young.folder / "manifests" / young.log

    def lie(one: dict[str, Any]) -> None:
        one.update(sequence=place, expired=[0, 3], segment=None, batches=[], types={}, first_offset=one["next_offset"])
        one["sealed_at"] = "2020" + one["sealed_at"][4:]
        one["tree"].update(size=place, compact_range=["00" * 32] * place.bit_count())

    forge(manifests / f"{3:012}.json", lie, manifests / f"{place:012}.json")
    assert list(expire(settings(young), NOW)) == []
    assert len(segments(young)) == 4
    given = settings(young)
    audit(given)
    newest = find_audit_tip(open_store(given.archive), anything).newest
    assert newest
    assert newest.statement.marks[young.log].expired == 0
    assert newest.statement.verdict == "tampered"


def test_an_age_that_nobody_signed_ends_nothing(young: Growing) -> None:
    """Statements whose time was changed without a key are refused, because the age must be signed."""
    manifests = young.folder / "manifests" / young.log
    for sequence in range(3):
        forge(
            manifests / f"{sequence:012}.json",
            lambda one: one.update(sealed_at="2020" + one["sealed_at"][4:]),
        )
    (refused,) = expire(settings(young), NOW)
    assert (refused.outcome, "no trusted key signed" in refused.why) == ("failed", True)
    assert len(segments(young)) == 4


def test_recorded(growing: Growing) -> None:
    """A signed audit records what expired and what was deleted. The nightly audits continue after it."""
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
    """In a bucket with versions and locks, locked objects stay, and of deleted ones no version is left."""
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
    assert store.capabilities.versions
    assert not store.capabilities.versions.has_history(gone)
    assert judged(given, growing).exit_code in {0, 3}
    later = NOW + timedelta(days=2)
    (refused,) = expire(given, later)
    assert (refused.outcome, "the host's clock says" in refused.why) == ("failed", True)
    # The lock has a day to go by the server's clock, whatever all others say.
    monkeypatch.setattr("tasks.roll.expire._other_clocks", lambda *_: [later])
    assert [(one.what, one.outcome) for one in expire(given, later)] == [("delete", "failed")]


def test_a_clock_that_is_ahead_ends_nothing(growing: Growing) -> None:
    """A host whose clock is years ahead signs and deletes nothing, because store and audits have other times."""
    given = settings(growing, days=2555)
    audit(given)
    before = sorted(growing.folder.rglob("*"))
    (refused,) = expire(given, NOW + timedelta(days=2600))
    assert (refused.what, refused.outcome) == ("expire", "failed")
    assert "the host's clock says" in refused.why
    assert sorted(growing.folder.rglob("*")) == before


AHEAD = timedelta(days=2600)
"""How far ahead a wrong clock is: more than the retention."""


def signed_ahead(growing: Growing, given: Settings, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roll, audit, or write a heartbeat with a clock that is ahead. The archive is a folder."""
    before = set(growing.folder.rglob("*"))
    with monkeypatch.context() as patched:
        for module in ("tasks.roll.record", "tasks.audit.conclude"):
            patched.setattr(f"{module}.datetime", shifted(AHEAD))
        if kind == "roll":
            roll_all(given, datetime.now(UTC) + AHEAD)
        elif kind == "audit":
            audit(given, datetime.now(UTC) + AHEAD)
        else:
            growing.heartbeat(datetime.now(UTC) + AHEAD)
    for path in set(growing.folder.rglob("*")) - before:
        os.utime(path, ((NOW + AHEAD).timestamp(),) * 2)


@pytest.mark.parametrize("audited", [False, True])
@pytest.mark.parametrize(
    "steps",
    ["roll", "roll roll", "heartbeat", "audit", "roll heartbeat", "audit heartbeat", "heartbeat audit roll heartbeat"],
)
def test_signing_makes_no_clock_right(
    growing: Growing, monkeypatch: pytest.MonkeyPatch, steps: str, *, audited: bool
) -> None:
    """Whatever a host with a clock far ahead signs, its next rolls delete nothing.

    Once its clock is right, evidence expires again without an operator, and no young evidence does.
    """
    given = settings(growing, days=2555)
    if audited:
        audit(given)
    for step in steps.split():
        signed_ahead(growing, given, step, monkeypatch)
    for _ in range(2):
        assert {one.outcome for one in roll_all(given, datetime.now(UTC) + AHEAD)} == {"failed"}
        assert len(segments(growing)) == 4
    assert list(expire(given, NOW)) == []
    actions = list(expire(settings(growing), NOW))
    assert [(one.what, one.outcome) for one in actions] == [("expire", "done")] + [("delete", "done")] * 4


@pytest.mark.parametrize("signed", [0, 1])
def test_a_confirmed_clock_is_believed_later(growing: Growing, monkeypatch: pytest.MonkeyPatch, signed: int) -> None:
    """After a long silence an operator confirms the clock once. Later rolls believe what is signed from then on."""
    given = settings(growing)
    audit(given)
    for _ in range(signed):
        signed_ahead(growing, given, "heartbeat", monkeypatch)
    later = NOW + AHEAD
    with monkeypatch.context() as patched:
        for module in ("tasks.roll.record", "tasks.audit.conclude"):
            patched.setattr(f"{module}.datetime", shifted(AHEAD))
        assert {one.outcome for one in roll_all(given, later)} == {"failed"}
        roll_all(given, later, confirm_clock=True)
        assert segments(growing) == []
        growing.heartbeat(later + timedelta(hours=1))
        audit(given, later + timedelta(hours=1))
        growing.append(1)
        os.utime(max((growing.folder / "manifests").rglob("*.json")), ((later + AHEAD).timestamp(),) * 2)
        # The expiry itself is old by now.
        assert {one.outcome for one in roll_all(given, later + timedelta(hours=2))} <= {"done"}


def test_audits_that_failed_for_days(tmp_path: Path) -> None:
    """Days without an audit are no jump, if statements were written meanwhile."""
    made = clocked(tmp_path)
    append_at(made, NOW - timedelta(days=10))
    given = settings(made, days=9)
    audit(given)
    for hours in range(24 * 4, -1, -12):
        made.heartbeat(NOW + timedelta(days=4) - timedelta(hours=hours))
    store, trust = open_store(given.archive), given.own_trust()
    log = Log("audit.grows", 0)
    history = History(store, read_archive(store), trust, {log: find_tip(store, log, anything)})
    history.follow(1, NOW + timedelta(days=4))
    assert history.believes(NOW + timedelta(days=4))
    assert not history.believes(NOW + timedelta(days=6))


def test_the_earliest_clock_counts(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence expires only if it is old enough by every clock, not by the host's alone."""
    given = settings(growing, days=9)
    early = NOW - timedelta(days=1, hours=2)
    monkeypatch.setattr("tasks.roll.expire._other_clocks", lambda *_: [NOW, early])
    assert list(expire(given, NOW)) == []
    monkeypatch.setattr("tasks.roll.expire._other_clocks", lambda *_: [NOW, NOW - timedelta(hours=2)])
    assert next(expire(given, NOW)).outcome == "done"


def clocked(root: Path) -> Growing:
    """Return an empty archive whose keys may sign at any time of the last years."""
    return Growing(root, begun=datetime(2014, 1, 1, tzinfo=UTC), retention_days=1)


def append_at(growing: Growing, *moments: datetime) -> None:
    """Append statements that are sealed at these times."""
    for moment in moments:
        growing.begun = moment - (growing.sealed_at(growing.size) - growing.begun)
        growing.append(1)


def test_a_clock_that_was_behind_makes_nothing_old(tmp_path: Path) -> None:
    """A statement sealed in 2015 by a wrong clock makes no other statement old."""
    made = clocked(tmp_path)
    young, wrong = NOW - timedelta(minutes=10), datetime(2015, 1, 1, tzinfo=UTC)
    append_at(made, young, wrong, wrong, young, wrong)
    assert list(expire(settings(made), NOW)) == []
    assert len(segments(made)) == 5


def test_a_clock_that_was_ahead_keeps_what_follows(tmp_path: Path) -> None:
    """Statements after one that was sealed late do not expire before it, as the age counts from the latest time."""
    made = clocked(tmp_path)
    old = NOW - timedelta(days=20)
    append_at(made, old, NOW - timedelta(days=3), old, old)
    given = settings(made)
    actions = list(expire(given, NOW))
    assert actions[0].target == f"{made.log}, statements 0 to 0"
    assert len(segments(made)) == 3
    assert "retention" not in {one.finding for one in judged(given, made).findings}


@pytest.mark.parametrize("where", ["archive.json", "trust.json"])
def test_the_longest_retention_counts(tmp_path: Path, where: str) -> None:
    """A setting may make the retention longer than the archive's and the trust's. A shorter one is refused."""
    made = Growing(tmp_path, begun=NOW - timedelta(days=10), retention_days=11 if where == "archive.json" else 1)
    made.append(3)
    trust = None
    if where == "trust.json":
        trust = tmp_path / "trust.json"
        trust.write_text('{"format":"custody/trust/1","retention_days":11}')
    given = settings(made, days=1, trust=trust)
    with pytest.raises(ConfigurationError, match=rf"tiers.life_days is 1, but retention_days in {where} is 11"):
        list(expire(given, NOW))
    assert len(segments(made)) == 3
    unset = given.model_copy(update={"tiers": TierSettings()})
    assert list(expire(unset, NOW)) == []
    assert len(segments(made)) == 3


def test_a_silence_that_an_operator_confirms(growing: Growing) -> None:
    """After a long silence nothing expires until an operator confirms the clock. That is signed, and says so."""
    given, later = settings(growing, days=2555), NOW + timedelta(days=2600)
    (refused,) = expire(given, later)
    assert (refused.outcome, "--confirm-clock" in refused.why) == ("failed", True)
    confirmed, signed, *deleted = expire(given, later, confirm_clock=True)
    assert (confirmed.outcome, "--confirm-clock says that the host's clock is right" in confirmed.why) == ("done", True)
    assert (signed.what, signed.outcome, len(deleted)) == ("expire", "done", 4)


@pytest.mark.parametrize("days", [0, 2600])
def test_no_operator_overrules_the_stores_clock(
    growing: Growing, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """A clock that a bucket contradicts cannot be confirmed. One that the bucket agrees with can."""
    seaweed.use(monkeypatch)
    url, options = f"s3://{seaweed.make_bucket()}/archive", S3Options(endpoint_url=seaweed.endpoint_url)
    store = open_store(url, options)
    for path in filter(Path.is_file, growing.folder.rglob("*")):
        store.create(path.relative_to(growing.folder).as_posix(), path.read_bytes())
    given, wrong = settings(growing, url, days=2555, s3=options), timedelta(days=days)
    monkeypatch.setattr("custody.store.s3_client.datetime", shifted(wrong))
    if days:
        with pytest.raises(ConfigurationError, match=r"2600 days, .* ahead of the clock of s3://.*set the clock"):
            roll_all(given, NOW + wrong, confirm_clock=True)
    else:
        assert "failed" not in {action.outcome for action in roll_all(given, NOW, confirm_clock=True)}
    assert len(list(store.list("events/"))) == 4


def test_a_confirmed_clock_keeps_the_retention(growing: Growing) -> None:
    """Who confirms the clock does not shorten the retention, and without a need to confirm nothing is said."""
    (confirmed,) = expire(settings(growing, days=2555), NOW + timedelta(days=2000), confirm_clock=True)
    assert "The retention stays 2555 days" in confirmed.why
    assert len(segments(growing)) == 4
    assert list(expire(settings(growing, days=2555), NOW, confirm_clock=True)) == []


def test_an_expiry_before_its_time_deletes_nothing(growing: Growing) -> None:
    """A range that our key called expired too early stays, and later expiries do not include it."""
    growing.expire(0, 2)
    given = settings(growing, days=5)
    # Sealed a few minutes after what it calls expired.
    actions = list(expire(given, NOW))
    assert actions[0].target == f"{growing.log}, statements 2 to 4"
    assert len(actions) == 1
    assert len(segments(growing)) == 4
    found = [one for one in judged(given, growing).findings if one.finding == "retention"]
    assert [one.sequence for one in found] == [4]
    audit(given)
    newest = find_audit_tip(open_store(given.archive), anything).newest
    assert newest
    assert newest.statement.marks[growing.log].expired == 0
    assert [one.what for one in expire(given, NOW)] == []
    assert len(segments(growing)) == 4


def test_slots_that_were_passed_over(growing: Growing) -> None:
    """An object that somebody without a key put into a slot does not stop the expiry, once it is passed over."""
    manifests = growing.folder / "manifests" / growing.log
    (manifests / f"{4:012}.json").write_bytes(b"no manifest")
    growing.append(1)
    given = settings(growing)
    actions = list(expire(given, NOW))
    assert actions[0].target == f"{growing.log}, statements 0 to 5"
    assert [(one.what, one.outcome) for one in actions[1:]] == [("delete", "done")] * 5
    report = judged(given, growing)
    assert [one.finding for one in report.findings] == ["passed-over"]
    assert report.logs[0].expired == 6
    audit(given)
    assert list(expire(given, NOW)) == []


def test_a_slot_that_nothing_passes_over(growing: Growing) -> None:
    """If a statement was replaced by garbage, that is reported, and nothing of the log is deleted."""
    path = growing.folder / "manifests" / growing.log / f"{1:012}.json"
    path.unlink()
    path.write_bytes(b"no manifest")
    (refused,) = expire(settings(growing), NOW)
    assert (refused.outcome, "no trusted key signed" in refused.why) == ("failed", True)
    assert len(segments(growing)) == 4


def test_a_key_that_has_ended(growing: Growing, tmp_path: Path) -> None:
    """A statement that a leaked key signed after its end makes nothing expire, and causes no deletion."""
    (key,) = (one for one in open_trust([f"file:{growing.keyring}"]).keys.values() if one.algorithm == "HMAC-SHA256")
    tip = find_tip(open_store(str(growing.folder)), Log("audit.grows", 0), anything)
    root = Proofs(open_store(str(growing.folder)), growing.log, statements_of(Log("audit.grows", 0))).root(2)
    assert tip.head.size == 4
    entry = {"id": key.id, "algorithm": key.algorithm, "from": None, "to": None}
    trust = tmp_path / "trust.json"
    until = {growing.log: {"size": 2, "root": root.hex()}}
    trust.write_text(json.dumps({"format": "custody/trust/1", "keys": [{**entry, "until": until}]}))
    (refused,) = expire(settings(growing, trust=trust), NOW)
    assert (refused.outcome, "ended at this log's size 2" in refused.why) == ("failed", True)
    assert len(segments(growing)) == 4


def test_a_day_far_ahead(growing: Growing) -> None:
    """Objects whose keys name a day in the year 9999, from a producer, are deleted with their statements."""

    def late(entry: Entry) -> Entry:
        return replace(entry, first_record_ms=253_370_764_800_000)

    growing.append(2, edit=late)
    assert any("events/9999" in str(path) for path in segments(growing))
    list(expire(settings(growing), NOW))
    assert segments(growing) == []
