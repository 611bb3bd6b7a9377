"""`custody accept`: exactly the accepted finding becomes a notice, and nothing else in trust.json changes."""

import json
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.errors import ConfigurationError
from custody.findings import Accepted, Finding, Severity, finding
from custody.format.layout import Log, manifest_key
from custody.keys.files import encode_base64
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify import acceptance
from custody.verify.acceptance import Wanted
from custody.verify.report import Report
from custody.verify.run import verify
from tests.helpers.archives import (
    ARCHIVE_ID,
    KEY_ID,
    NOTE_NAME,
    NOTE_PUBLIC,
    SECRET,
    Builder,
    archive_line,
    good,
    sha,
    two_lines,
)
from tests.helpers.commands import Command

AT = "2026-03-02T00:00:00.000000Z"


@pytest.fixture
def archive(tmp_path: Path) -> Builder:
    return good(tmp_path / "archive")


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    """A trust.json with a secret, and with fields in an order and a spelling of their own."""
    document = {
        "accepted": [],
        "format": "custody/trust/1",
        "archive": {"id": ARCHIVE_ID, "sha256": sha(archive_line())},
        "keys": [
            {
                "from": None,
                "to": None,
                "id": KEY_ID,
                "algorithm": "HMAC-SHA256",
                "secret": encode_base64(SECRET),
            },
            {
                "from": None,
                "to": None,
                "id": NOTE_NAME,
                "algorithm": "Ed25519",
                "public": encode_base64(NOTE_PUBLIC),
            },
        ],
        "heads": {"audit/0": {"size": 1, "root": "0" * 64}},
        "retention_days": 2557,
    }
    document["heads"] = {}
    path = tmp_path / "trust.json"
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


def judge(builder: Builder, trust: Path) -> Report:
    return verify(open_store(str(builder.root)), open_trust(trust=trust), now=builder.clock, workers=0)


def report_of(builder: Builder, trust: Path, to: Path) -> Path:
    to.write_text("".join(json.dumps(line) + "\n" for line in judge(builder, trust).to_dicts()))
    return to


def names(report: Report) -> list[str]:
    return [one.finding for one in report.findings]


def accept(custody: Command, *arguments: object) -> tuple[int, str, str]:
    return custody("accept", "--reason", "the disk was full", "--by", "Ada", *arguments)


def test_loss_is_accepted_and_the_next_is_not(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """An accepted loss is a notice that says who accepted it, when and why. Another loss still gives exit code 11."""
    archive.append(10, lose=7)
    assert judge(archive, trust).exit_code == 11
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    code, out, err = accept(custody, "--from", report, "--finding", "offset-lost", "--log", "audit/0", "--trust", trust)
    assert (code, err) == (0, "")
    assert "audit/0, sequence 9" in out
    found = judge(archive, trust)
    assert (names(found), found.exit_code) == (["offset-lost"], 3)
    assert "Ada" in str(found.findings[0])
    assert "the disk was full" in str(found.findings[0])
    archive.append(10, lose=2)
    assert judge(archive, trust).exit_code == 11


def test_all_else_in_the_file_stays(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """Fields, their order, the secret and the mode are as they were; the file is replaced in one step."""
    archive.append(10, lose=7)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    before, inode = json.loads(trust.read_bytes()), trust.stat().st_ino
    arguments = ["--from", report, "--finding", "offset-lost", "--trust", trust]
    assert accept(custody, *arguments, "--dry-run")[0] == 0
    assert (json.loads(trust.read_bytes()), trust.stat().st_ino) == (before, inode)
    _, out, err = accept(custody, *arguments)
    after = json.loads(trust.read_bytes())
    (entry,) = after.pop("accepted")
    assert before.pop("accepted") == []
    assert list(after.items()) == list(before.items())
    assert list(entry) == ["finding", "reason", "by", "at", "log", "sequence", "sha256"]
    assert stat.S_IMODE(trust.stat().st_mode) == 0o600
    assert trust.stat().st_ino != inode
    assert list(trust.parent.glob(".trust*")) == []
    assert encode_base64(SECRET) not in out + err


def test_link_and_mode_of_a_file_without_secrets_stay(custody: Command, trust: Path, tmp_path: Path) -> None:
    """A trust.json behind a symbolic link, readable by others, keeps the link and its mode."""
    real = tmp_path / "elsewhere.json"
    real.write_text('{"format":"custody/trust/1"}')
    real.chmod(0o644)
    trust.unlink()
    trust.symlink_to(real)
    fields = ["--finding", "offset-lost", "--log", "audit/0", "--sequence", 9]
    assert accept(custody, *fields, "--trust", trust)[0] == 0
    assert trust.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o644
    (entry,) = open_trust(trust=trust).accepted
    assert (entry.finding, entry.log, entry.sequence, entry.sha256) == ("offset-lost", "audit/0", 9, None)
    _, out, _ = accept(custody, *fields, "--trust", trust)
    assert "1 were there already" in out
    assert len(open_trust(trust=trust).accepted) == 1


def test_tampering_by_its_exact_digest(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """Tampering is accepted by its exact digest: the next change of the same object is reported."""
    path = archive.segment(1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    assert accept(custody, "--from", report, "--finding", "segment-hash", "--trust", trust)[0] == 0
    assert judge(archive, trust).exit_code == 3
    path.write_bytes(path.read_bytes()[:-1] + b"y")
    assert judge(archive, trust).exit_code == 13


def test_tampering_without_a_digest_is_refused(custody: Command, trust: Path) -> None:
    """Tampering without a digest is not accepted, and the error says what to do."""
    code, _, err = accept(custody, "--finding", "segment-hash", "--key", "events/x", "--trust", trust)
    assert code == 2
    assert "sha256" in err


@pytest.mark.parametrize(
    ("key", "finding", "code"),
    [
        ("notes.txt", "foreign", 10),
        ("events/notes.txt", "foreign", 10),
        (f"events/2026/01/01/00/00/00-none-0-{0:020}-{0:020}-{'0' * 16}.jsonl.gz", "unlisted", 13),
        (f"events/2026/01/01/00/00/00-audit-0-{0:020}-{0:020}-{'0' * 16}.jsonl.gz", "unlisted", 13),
        ("checkpoints/audit/0/000000000007", "checkpoint", 10),
        ("archive.json", "archive", 13),
    ],
)
def test_what_a_lock_keeps_for_years(
    custody: Command, archive: Builder, trust: Path, tmp_path: Path, key: str, finding: str, code: int
) -> None:
    """An object that a lock protects from deletion is accepted by its digest. Other bytes under its key are not."""
    path = archive.root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"planted")
    found = judge(archive, trust)
    assert (names(found), found.exit_code) == ([finding], code)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    done, _, err = accept(custody, "--from", report, "--finding", finding, "--key", key, "--trust", trust)
    assert (done, err) == (0, "")
    found = judge(archive, trust)
    assert (names(found), found.exit_code) == ([finding], 3)
    path.write_bytes(b"something else")
    assert judge(archive, trust).exit_code == code


@pytest.mark.parametrize("fields", [{"archive": f"0{ARCHIVE_ID[1:]}"}, {"heartbeat": 7}], ids=["id", "heartbeat"])
def test_another_archive_file_by_its_digest(
    custody: Command, archive: Builder, trust: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """An archive.json that differs from the pin is accepted by its digest, whatever its id. The next one is not."""

    def put(**more: Any) -> None:
        archive.put(
            "archive.json", two_lines(archive_line(**{"archive": ARCHIVE_ID} | fields | more), "custody/archive/1")
        )

    put()
    found = judge(archive, trust)
    assert ("archive" in names(found), found.exit_code) == (True, 13)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    arguments = ["--from", report, "--finding", "archive", "--key", "archive.json", "--trust", trust]
    done, _, err = accept(custody, *arguments)
    assert (done, err) == (0, "")
    (accepted,) = open_trust(trust=trust).accepted
    assert (accepted.finding, accepted.key, accepted.sha256) == (
        *("archive", "archive.json"),
        sha(archive.root.joinpath("archive.json").read_bytes()),
    )
    found = judge(archive, trust)
    (one,) = [one for one in found.findings if one.key == "archive.json"]
    assert one.accepted is not None
    put(retention_days=9)
    assert judge(archive, trust).exit_code == 13


def test_a_log_that_went_back(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """A rollback is accepted for its two heads. If the log shrinks or grows after that, it is reported again."""
    size, root = archive.head
    document = json.loads(trust.read_bytes())
    document["heads"] = {"audit/0": {"size": size, "root": root.hex()}}
    trust.write_text(json.dumps(document))
    kept = {sequence: archive.path(sequence).read_bytes() for sequence in range(size - 4, size)}

    def leave(end: int) -> Report:
        for sequence, data in kept.items():
            if sequence < end:
                archive.path(sequence).write_bytes(data)
            else:
                archive.path(sequence).unlink(missing_ok=True)
        return judge(archive, trust)

    found = leave(size - 2)
    assert (names(found), found.exit_code) == (["head-rollback"], 13)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    assert accept(custody, "--from", report, "--finding", "head-rollback", "--trust", trust)[0] == 0
    found = leave(size - 2)
    assert (names(found), found.exit_code) == (["head-rollback"], 3)
    assert leave(size - 3).exit_code == 13
    assert leave(size - 1).exit_code == 13
    assert leave(size - 2).exit_code == 3
    document = json.loads(trust.read_bytes())
    document["heads"] = {"audit/0": {"size": size + 1, "root": root.hex()}}
    trust.write_text(json.dumps(document))
    assert judge(archive, trust).exit_code == 13


def test_a_judged_log_is_remembered_again(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """Once a broken signature is accepted, new heads are saved again, so later removals are reported."""
    state = tmp_path / "state.json"

    def look() -> Report:
        opened = open_trust(trust=trust)
        return verify(open_store(str(archive.root)), opened, now=archive.clock, state=state, workers=0)

    path = archive.path(3)
    line, signatures, _ = path.read_bytes().split(b"\n")
    value = json.loads(signatures)["signatures"][0]["value"]
    path.write_bytes(line + b"\n" + signatures.replace(value.encode(), encode_base64(b"x" * 32).encode()) + b"\n")
    assert [(names(found := look()), found.exit_code, found.logs[0].sound)] == [(["signature"], 13, False)]
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    assert accept(custody, "--from", report, "--finding", "signature", "--trust", trust)[0] == 0
    assert [(names(found := look()), found.exit_code, found.logs[0].sound)] == [(["signature"], 3, True)]
    archive.path(len(archive.lines) - 1).unlink()
    assert (sorted(names(found := look())), found.exit_code) == (["head-rollback", "signature"], 13)


def test_what_was_accepted_hides_no_unsigned_statement(
    custody: Command, archive: Builder, trust: Path, tmp_path: Path
) -> None:
    """Without the secret, accepting one changed statement does not hide that no checkpoint covers the statements."""
    document = json.loads(trust.read_bytes())
    del document["keys"][0]["secret"]
    trust.write_text(json.dumps(document))
    # Longer than statements may wait for a checkpoint.
    archive.clock += timedelta(hours=5)
    archive.append(5)
    assert sorted(names(judge(archive, trust))) == ["unchecked-signature", "uncovered"]
    archive.resign(4, lambda statement: statement.update(writer="another"))
    assert sorted(names(judge(archive, trust))) == ["tree", "unchecked-signature"]
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    assert accept(custody, "--from", report, "--finding", "tree", "--trust", trust)[0] == 0
    found = judge(archive, trust)
    assert (sorted(names(found)), found.exit_code) == (["tree", "unchecked-signature", "uncovered"], 12)
    assert not found.logs[0].sound


@pytest.mark.parametrize("memory", ["trust", "checkpoint"])
def test_another_history_by_both_heads(
    custody: Command, archive: Builder, trust: Path, tmp_path: Path, memory: str
) -> None:
    """A log that continued from a backup is a fork at every run. It is accepted for both roots, and no third one."""
    size = len(archive.lines)
    document = json.loads(trust.read_bytes())
    if memory == "trust":
        name = "head-fork"
        document["heads"] = {"audit/0": {"size": size, "root": "ab" * 32}}
    else:
        name = "checkpoint"
        archive.checkpoint(size, b"\xab" * 32)
    trust.write_text(json.dumps(document))
    found = judge(archive, trust)
    assert (names(found), found.exit_code, found.logs[0].sound) == ([name], 13, False)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    assert accept(custody, "--from", report, "--finding", name, "--trust", trust)[0] == 0
    found = judge(archive, trust)
    assert (names(found), found.exit_code, found.logs[0].sound) == ([name], 3, True)
    document = json.loads(trust.read_bytes())
    document["heads"] = {"audit/0": {"size": size, "root": "cd" * 32}}
    trust.write_text(json.dumps(document))
    assert judge(archive, trust).exit_code == 13


def test_missing_manifests_one_by_one(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """A gap that was accepted does not hide that it grows, to either side."""
    for sequence in (3, 4):
        archive.path(sequence).unlink()
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    assert accept(custody, "--from", report, "--finding", "sequence-gap", "--trust", trust)[0] == 0
    assert [(one.log, one.sequence) for one in open_trust(trust=trust).accepted] == [("audit/0", 3), ("audit/0", 4)]
    assert judge(archive, trust).exit_code == 3
    kept = archive.path(5).read_bytes()
    archive.path(5).unlink()
    assert judge(archive, trust).exit_code == 11
    archive.path(5).write_bytes(kept)
    assert judge(archive, trust).exit_code == 3
    archive.path(2).unlink()
    assert judge(archive, trust).exit_code == 11


def test_missing_object_by_its_key(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """An accepted missing segment does not hide that the quarantine of the same statement goes missing."""
    archive.segment(2).unlink()
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    assert accept(custody, "--from", report, "--finding", "segment-missing", "--trust", trust)[0] == 0
    assert judge(archive, trust).exit_code == 3
    (archive.root / archive.statements[2]["quarantine"]["key"]).unlink()
    assert judge(archive, trust).exit_code == 11


def test_rows_of_statements(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """A finding about several statements is accepted for each of them, and not for the next statement."""
    document = json.loads(trust.read_bytes())
    document["keys"][0]["to"] = "2026-03-01T12:00:00.000000Z"
    trust.write_text(json.dumps(document))
    assert (judge(archive, trust).exit_code, judge(archive, trust).findings[0].count) == (10, 9)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    assert accept(custody, "--from", report, "--finding", "key-span", "--trust", trust)[0] == 0
    assert judge(archive, trust).exit_code == 3
    archive.append(5)
    found = judge(archive, trust)
    assert found.exit_code == 10
    assert found.findings[0].sequence == 9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--finding", "offset-gap"], "no finding offset-gap"),
        (["--finding", "offset-lost"], "2 findings offset-lost; choose one"),
        (["--finding", "offset-lost", "--sequence", 3], "with that name it has audit/0, sequence 9"),
        (["--finding", "offset-lost", "--log", "audit/7"], "no finding offset-lost, log audit/7"),
        (["--finding", "offset-lost", "--sequence", 9, "--sha256", "0" * 64], "no finding"),
    ],
    ids=str,
)
def test_what_is_not_found_is_refused(
    custody: Command, archive: Builder, trust: Path, tmp_path: Path, arguments: list[object], says: str
) -> None:
    """Exactly one finding of the report is accepted. Otherwise nothing is written."""
    archive.append(10, lose=7)
    archive.append(10, lose=7)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    before = trust.read_bytes()
    code, _, err = accept(custody, "--from", report, "--trust", trust, *arguments)
    assert code == 2
    assert says in err
    assert trust.read_bytes() == before


def test_accepted_already_and_notices(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """A notice cannot be accepted: it needs no acceptance."""
    archive.append(10, lose=7)
    archive.append(5, edit=lambda statement: statement.update(sealed_at="2026-03-01T12:00:00.000000Z"))
    arguments = ["--from", report_of(archive, trust, tmp_path / "report.jsonl"), "--trust", trust, "--finding"]
    assert accept(custody, *arguments, "offset-lost")[0] == 0
    report_of(archive, trust, tmp_path / "report.jsonl")
    assert "accepted already" in accept(custody, *arguments, "offset-lost")[2]
    assert "is only a notice" in accept(custody, *arguments, "clock")[2]


def test_report_of_another_archive(custody: Command, archive: Builder, trust: Path, tmp_path: Path) -> None:
    """The report must be about the archive that trust.json pins."""
    archive.append(10, lose=7)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    report.write_text(report.read_text().replace(ARCHIVE_ID, "0" * 8 + ARCHIVE_ID[8:]))
    code, _, err = accept(custody, "--from", report, "--finding", "offset-lost", "--trust", trust)
    assert code == 2
    assert "another" not in err
    assert ARCHIVE_ID in err


@pytest.mark.parametrize(
    "report",
    [
        b"",
        b"noise\n",
        b"[]\n",
        b'{"kind":"finding"}\n',
        b'{"kind":"finding","finding":"x","severity":"awful","message":"","count":1}\n',
        b'{"kind":"finding","finding":"x","severity":"policy","message":"","count":1,"sequence":"1"}\n',
        b'{"kind":"log"}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=["empty", "noise", "array", "finding", "severity", "sequence", "cut off", "deep"],
)
def test_what_is_no_report(custody: Command, trust: Path, tmp_path: Path, report: bytes) -> None:
    """An invalid or incomplete report gives one clear error line."""
    path = tmp_path / "report.jsonl"
    path.write_bytes(report)
    code, _, err = accept(custody, "--from", path, "--finding", "offset-lost", "--trust", trust)
    assert code == 2
    assert err.count("\n") == 1
    assert "report" in err


@pytest.mark.parametrize("where", ["nothing", "not there", "broken", "open", "no trust"])
def test_trust_that_cannot_be_used(custody: Command, trust: Path, where: str) -> None:
    """A missing or broken file, or one whose secrets others can read, gives a clear error. Nothing is written."""
    if where == "broken":
        trust.write_text('{"format":"custody/trust/1","accepted":null}')
    elif where == "no trust":
        trust.write_text("{}")
    elif where == "open":
        trust.chmod(0o644)
    elif where == "nothing":
        trust = trust.rename(trust.with_name("elsewhere.json"))
    before = trust.read_bytes()
    named = {"nothing": [], "not there": ["--trust", trust.with_name("other.json")]}.get(where, ["--trust", trust])
    code, _, err = accept(custody, "--finding", "offset-lost", "--log", "audit/0", "--sequence", 9, *named)
    assert code == 2
    assert "trust" in err
    assert trust.read_bytes() == before


def test_the_trust_beside_the_keyring(
    custody: Command, trust: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --trust and the setting, the file beside the keyring is used, as by `keys end`. The output says so."""
    (tmp_path / "keys").mkdir()
    beside = trust.rename(tmp_path / "keys" / "trust.json")
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{tmp_path}/keys/keyring.json")
    code, out, _ = accept(custody, "--finding", "offset-lost", "--log", "audit/0, sequence 9")
    assert code == 0
    assert f"Verify with --trust {beside}" in out
    assert [one["finding"] for one in json.loads(beside.read_bytes())["accepted"]] == ["offset-lost"]
    assert (
        "Verify with"
        not in accept(custody, "--finding", "offset-lost", "--log", "audit/0", "--sequence", 8, "--trust", beside)[1]
    )


def test_a_reason_and_a_name_are_asked_for(custody: Command, trust: Path) -> None:
    """Nobody accepts anonymously, or without saying why."""
    fields = ["--finding", "offset-lost", "--log", "audit/0", "--sequence", 9, "--trust", trust]
    assert custody("accept", *fields, "--by", "Ada")[0] == 2
    assert "--reason" in custody("accept", *fields, "--reason", " ", "--by", "Ada")[2]


def test_piped_from_verify(archive: Builder, trust: Path, tmp_path: Path) -> None:
    """The report may come from the verification itself."""
    archive.append(10, lose=7)
    report = report_of(archive, trust, tmp_path / "report.jsonl")
    arguments = ["accept", "--from", "-", "--trust", trust, "--finding", "offset-lost", "--reason", "a", "--by", "b"]
    with report.open("rb") as piped:
        done = subprocess.run(
            [sys.executable, "-c", "from custody.cli.main import main; main()", *map(str, arguments)],
            stdin=piped,
            capture_output=True,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert len(open_trust(trust=trust).accepted) == 1


# --- pure


def entry(**fields: Any) -> list[Accepted]:
    judged = finding(fields.pop("name", "offset-lost"), "x", **fields)
    return acceptance.entries(judged, "why", "who", AT)


def test_entries_name_what_they_can() -> None:
    """An entry has the object's key, or else the log and sequence; and the digest if there is one."""
    place: dict[str, Any] = {"log": "a/0", "sequence": 3}
    assert entry(name="segment-missing", key="events/x", **place) == [
        Accepted("segment-missing", "why", "who", AT, key="events/x")
    ]
    assert entry(sha256="0" * 64, **place) == [
        Accepted("offset-lost", "why", "who", AT, log="a/0", sequence=3, sha256="0" * 64)
    ]
    gap = manifest_key(Log("a", 0), 3)
    assert [one.sequence for one in entry(name="sequence-gap", key=gap, through=5, **place)] == [3, 4, 5]
    assert [one.sequence for one in entry(name="sequence-gap", key=gap, through=3, **place)] == [3]


def test_entries_that_cannot_be() -> None:
    """Refused: too many statements, some statements of a group, and findings about neither object nor statement."""
    for fields in (
        {"log": "a/0", "sequence": 0, "through": acceptance.ENTRIES_LIMIT},
        {"log": "a/0", "sequence": 0, "through": 9, "count": 3},
        {"log": "a/0"},
        {},
    ):
        with pytest.raises(ConfigurationError):
            entry(**fields)
    with pytest.raises(ConfigurationError, match="give --from REPORT"):
        acceptance.named(Wanted("offset-lost", log="a/0"))
    with pytest.raises(ConfigurationError, match="no finding"):
        acceptance.named(Wanted("offset-found", key="x"))


def test_row_of_tampering_is_accepted_one_by_one() -> None:
    """The digest of a group is that of its first statement, so only this statement is accepted."""
    row = replace(finding("signature", "x", log="a/0", sequence=3, sha256="0" * 64), through=7, count=5)
    assert isinstance(row, Finding)
    assert row.severity is Severity.TAMPERED
    assert [one.sequence for one in acceptance.entries(row, "why", "who", AT)] == [3]
