"""Auditors with public keys alone: what checkpoints cover is verified, the rest is `uncovered`, forgery is caught."""

import base64
import hashlib
from dataclasses import replace

import pytest

from custody.trust import Trust, TrustedKey
from tests.archives import ARCHIVE_ID, KEY_ID
from tests.attacks import heads, objects, statements
from tests.attacks.archive import MAIN, ORDERS, PUBLIC_ID, RETENTION_DAYS, SIGNED, Scene, public, two_lines
from tests.attacks.registry import rebuilt
from tests.attacks.targets import Folder, judge, names


def vkey(name: str = PUBLIC_ID) -> str:
    """Return a key as C2SP's signed-note writes it."""
    key = b"\x01" + public(name)
    digest = hashlib.sha256(name.encode() + b"\n" + key).hexdigest()[:8]
    return f"{name}+{digest}+{base64.b64encode(key).decode()}"


HMAC = TrustedKey(KEY_ID, "HMAC-SHA256")
PUBLIC = TrustedKey(PUBLIC_ID, "Ed25519", material=public())


@pytest.fixture(params=["public key", "vkey"])
def auditor(scene: Scene, request: pytest.FixtureRequest) -> Scene:
    """An auditor who knows the HMAC key's name and not its secret."""
    trust = Trust(archive=ARCHIVE_ID, keys={KEY_ID: HMAC, PUBLIC_ID: PUBLIC}, retention_days=RETENTION_DAYS)
    if request.param == "vkey":
        trust = replace(trust, checkpoint=(vkey(),))
    scene.trust = trust
    return scene


def uncovered(scene: Scene) -> list[tuple[str | None, int | None, int | None]]:
    return [
        (one.log, one.sequence, one.through) for one in judge(scene, Folder()).findings if one.finding == "uncovered"
    ]


def test_what_no_checkpoint_covers(auditor: Scene) -> None:
    """One statement came after the last checkpoint: that one is uncovered, all others are verified."""
    report = judge(auditor, Folder())
    assert set(names(report)) == {"uncovered", "unchecked-signature"}
    assert report.findings[0].finding == "uncovered"
    assert report.exit_code == 12
    assert uncovered(auditor) == [(MAIN, 11, 11)]
    unchecked = [one for one in report.findings if one.finding == "unchecked-signature"]
    assert len({one.log for one in unchecked}) == len(unchecked), "one notice a log"


def test_all_covered(auditor: Scene) -> None:
    """Once a checkpoint covers everything, only notices are left."""
    auditor.checkpoint(auditor.main)
    report = judge(auditor, Folder())
    assert set(names(report)) == {"unchecked-signature"}
    assert report.exit_code == 3
    assert sum(log.events for log in report.logs) == 199


def test_nothing_covered(auditor: Scene) -> None:
    """Without checkpoints only what is signed by a public key counts."""
    auditor.delete(*auditor.listed("checkpoints/"))
    assert {one[0] for one in uncovered(auditor)} == {MAIN, ORDERS, "old/0"}
    assert SIGNED not in {one[0] for one in uncovered(auditor)}


def test_vkey_alone(scene: Scene) -> None:
    """A vkey alone, with no key of the statements known, cannot make the statements' keys known."""
    scene.trust = Trust(archive=ARCHIVE_ID, checkpoint=(vkey(),))
    report = judge(scene, Folder())
    assert report.findings[0].finding == "key-unknown"
    assert report.exit_code == 12
    assert "checkpoint" not in names(report)


def test_no_key(scene: Scene) -> None:
    """With no key at all the archive is unverifiable, and no checkpoint is called wrong."""
    scene.trust = Trust(archive=ARCHIVE_ID)
    report = judge(scene, Folder())
    assert set(names(report)) == {"key-unknown", "unchecked-signature"}
    assert report.findings[0].finding == "key-unknown"
    assert report.exit_code == 12


def test_hidden_silence(auditor: Scene) -> None:
    """An auditor without the secret knows the signed heartbeat by Ed25519 alone; where no audit has it, by nothing."""
    statements.silence_hidden(auditor)
    assert {"archive", "stale"} <= set(names(judge(auditor, Folder())))
    for sequence, line in enumerate(auditor.audits):
        auditor.put(f"audits/{sequence:012}.json", two_lines(line, "custody/audit/1"))
    assert not {"archive", "stale"} & set(names(judge(auditor, Folder())))


def test_rewritten_history(auditor: Scene) -> None:
    """Who holds the HMAC key cannot rewrite what a checkpoint covers, for an auditor who does not hold it."""
    auditor.delete(*auditor.listed("audits/"), *auditor.listed("checkpoints/audits/"))
    rebuilt(auditor, MAIN, 3, heads.other_writer)
    report = judge(auditor, Folder())
    assert report.findings[0].finding == "checkpoint"
    assert report.exit_code == 13


def test_forged_and_covered_by_ones_own_key(auditor: Scene) -> None:
    """A checkpoint by a key that the auditor does not know covers nothing."""
    auditor.main.append(5)
    auditor.checkpoint(auditor.main, name="ed25519-other")
    report = judge(auditor, Folder())
    assert "checkpoint" in names(report)
    assert report.exit_code == 13
    assert uncovered(auditor) in ([], [(MAIN, 11, 12)])


@pytest.mark.parametrize(
    "attack",
    [
        one
        for one in [*objects.ATTACKS, *statements.ATTACKS]
        if one.row in {1, 2, 3, 7, 8, 14, 15, 21} and not one.variant
    ],
    ids=lambda one: one.id,
)
def test_objects_and_order_need_no_secret(auditor: Scene, attack: object) -> None:
    """What is not a matter of the HMAC is found without its secret, first or right after what is uncovered."""
    attack.apply(auditor)  # type: ignore[attr-defined]
    report = judge(auditor, Folder())
    own = [name for name in names(report) if name not in {"uncovered", "unchecked-signature"}]
    assert own == list(attack.findings), [str(one) for one in report.findings]  # type: ignore[attr-defined]
