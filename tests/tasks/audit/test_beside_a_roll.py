"""A roll that signs while an audit runs costs that audit nothing; deletions of that roll raise no false alarm."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from custody.archive.writer import append_audit
from custody.errors import Fenced
from custody.format import audit as form
from custody.keys.trust import open_trust
from custody.settings import TierSettings
from custody.store.open import open_store
from custody.verify.run import verify
from tasks.audit import signed
from tasks.audit.conclude import TAKEN_OVER, conclude
from tasks.audit.pieces import PieceResult, verify_pieces
from tasks.audit.plan import Plan, Request, plan_audit
from tasks.roll.expire import expire
from tasks.roll.record import Action, record
from tasks.settings import AuditSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.sample import Growing

T = TypeVar("T")
OLD = datetime.now(UTC) - timedelta(days=60)


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    """An archive that was audited once, and has grown since."""
    growing = Growing(tmp_path, begun=OLD, retention_days=30)
    growing.append(6)
    audit(settings(growing))
    growing.append(5)
    return growing


def settings(growing: Growing) -> Settings:
    return Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(piece_statements=3, reread_days=2, tables=False),
        tiers=TierSettings(life_days=30),
    )


def roll(given: Settings) -> int:
    """Sign what a roll signs that deleted an index."""
    sequence = record(given, [Action("delete", "events-2026-01-01", "done", "older than 90 days")], datetime.now(UTC))
    assert sequence is not None
    return sequence


def begin(given: Settings) -> tuple[Plan, list[PieceResult]]:
    plan = plan_audit(given, Request(), datetime.now(UTC))
    return plan, list(verify_pieces(given, plan, plan.pieces))


def overtake(monkeypatch: pytest.MonkeyPatch, first: Callable[[], T], most: float = math.inf) -> list[T]:
    """Make somebody else write before an audit is appended, so many times at most; return what they wrote."""
    written: list[T] = []

    def late(*arguments: Any) -> Any:
        if len(written) < most:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(signed, "append_audit", append_audit)
                written.append(first())
        return append_audit(*arguments)

    monkeypatch.setattr(signed, "append_audit", late)
    return written


def audit_of(growing: Growing, sequence: int) -> form.Audit:
    return form.parse((growing.folder / f"audits/{sequence:012}.json").read_bytes()).statement


def test_an_audit_is_signed_behind_a_roll(growing: Growing) -> None:
    """It says what it would have said without it, and the next one continues from it."""
    given = settings(growing)
    plan, results = begin(given)
    assert [roll(given), roll(given)] == [1, 2]
    outcome = conclude(given, plan, results)
    made = audit_of(growing, 3)
    assert (outcome.sequence, outcome.counts["statements"]) == (3, 8)
    assert made.heads[growing.log].size == growing.size
    assert [(span.from_, span.to, span.read) for span in made.covered[growing.log]] == [(0, 3, "again"), (6, 11, "new")]
    assert made.marks[growing.log].reread == 3
    assert {each.read for each in plan_audit(given, Request(), datetime.now(UTC)).pieces} == {"again"}
    trust = open_trust([f"file:{growing.keyring}"])
    assert verify(open_store(given.archive), trust, now=datetime.now(UTC), workers=0).exit_code in {0, 3}


def test_a_roll_in_the_last_moment(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that takes the very slot between the last look and the signature is one to sign behind too."""
    given = settings(growing)
    plan, results = begin(given)
    rolls = overtake(monkeypatch, lambda: roll(given), most=2)
    assert conclude(given, plan, results).sequence == 3
    assert rolls == [1, 2]


def test_rolls_without_end(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit that always comes second ends, and does not try for ever."""
    given = settings(growing)
    plan, results = begin(given)
    overtake(monkeypatch, lambda: roll(given))
    with pytest.raises(Fenced):
        conclude(given, plan, results)


def test_an_audit_in_the_last_moment_of_a_roll(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a roll deleted is signed behind the audit that took its slot, and repeats what that audit found."""
    given = settings(growing)
    audits = overtake(monkeypatch, lambda: audit(given).sequence, most=2)
    assert roll(given) == 3
    assert audits == [1, 2]
    made, before = audit_of(growing, 3), audit_of(growing, 2)
    assert made.counts == {"delete done": 1}
    assert (made.heads, made.marks) == (before.heads, before.marks)


def test_audits_without_end(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A roll that always comes second ends, and does not try for ever."""
    given = settings(growing)
    overtake(monkeypatch, lambda: audit(given))
    with pytest.raises(Fenced):
        roll(given)


def test_a_killed_audit_goes_on_behind_a_roll(growing: Growing) -> None:
    """Its pieces have names that a roll does not change, so the next run takes them over."""
    given = settings(growing)
    plan, _ = begin(given)
    roll(given)
    again, results = begin(given)
    assert again.sequence == plan.sequence + 1
    assert conclude(given, again, results).counts[TAKEN_OVER] == len(plan.pieces)
    # The next audit has names of its own: nothing of this one is in its way.
    _, results = begin(given)
    assert {result.audit for result in results} == {3}


def test_another_audit_is_no_roll(growing: Growing) -> None:
    """Behind another audit nothing is signed, also if a roll signed between them or after it."""
    given = settings(growing)
    plan, results = begin(given)
    roll(given)
    audit(given)
    roll(given)
    with pytest.raises(Fenced, match="audit 3 was written"):
        conclude(given, plan, results)


def test_what_a_roll_deletes_meanwhile_is_no_loss(growing: Growing) -> None:
    """An audit that missed objects while a roll deleted some gives no verdict; the next one knows of the expiry."""
    given = settings(growing)
    plan = plan_audit(given, Request(), datetime.now(UTC))
    now = datetime.now(UTC)
    actions = list(expire(given, now))
    assert {action.what for action in actions if action.outcome == "done"} >= {"expire", "delete"}
    results = list(verify_pieces(given, plan, plan.pieces))
    assert any(problem["finding"] == "segment-missing" for result in results for problem in result.findings)
    assert record(given, actions, now) == 1
    with pytest.raises(Fenced, match="of a roll"):
        conclude(given, plan, results)
    again, results = begin(given)
    outcome = conclude(given, again, results)
    assert "segment-missing" not in {found["finding"] for found in outcome.findings}
