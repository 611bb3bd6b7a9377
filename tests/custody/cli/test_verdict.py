"""What `custody verify` prints for people: first what must be read first, each thing once, and how it was made."""

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from custody.cli import verdict
from custody.findings import finding, joined
from custody.keys.keyring import new_keyring
from tests.helpers.commands import Command
from tests.helpers.sample import Sample


def test_the_output_says_how_it_was_made(custody: Command, sample: Sample) -> None:
    """A pasted output has time, duration, version, keys with their file, and each head in full."""
    shown = custody("verify", sample.folder, "--keys", sample.keyring)
    documents = [
        json.loads(line)
        for line in custody("verify", sample.folder, "--keys", sample.keyring, "--json").out.splitlines()
    ]
    (log,) = (document for document in documents if document["kind"] == "log")
    last = documents[-1]
    assert re.search(
        rf"^Verified 2\d{{3}}-\d\d-\d\dT\d\d:\d\d:\d\dZ, in [0-9.]+ s, by custody {last['version']}$",
        shown.out,
        re.MULTILINE,
    )
    assert f"Head     {sample.log} {log['size']} {log['root']}\n" in shown.out
    assert last["keys"]
    for key in last["keys"]:
        assert key["sources"] == [str(sample.keyring)]
        assert f"Key      {key['id']} ({key['algorithm']}), from {sample.keyring}\n" in shown.out
    assert shown.out.splitlines()[-1].endswith("every hash recomputed, every line read")


def test_keys_of_a_trust_file_name_it(custody: Command, sample: Sample) -> None:
    """An auditor sees that the keys are from trust.json, and which have no secret here."""
    assert custody("keys", "export", "-o", "trust.json", "--archive", sample.folder, "--keys", sample.keyring).code == 0
    shown = custody("verify", sample.folder, "--trust", "trust.json")
    assert re.search(
        r"^Key      hmac-\S+ \(HMAC-SHA256, without its secret\), from trust.json$", shown.out, re.MULTILINE
    )


def test_a_part_says_so(custody: Command, sample: Sample) -> None:
    """The verdict of a part begins with what it is of, in text and in JSON."""
    chosen = ("--log", sample.log, "--since", "2000-01-01", "--until", "2000-01-02", "--keys", sample.keyring)
    shown = custody("verify", sample.folder, *chosen)
    assert shown.code == 3
    part = f"of a part only ({sample.log}, sealed from 2000-01-01T00:00:00Z before 2000-01-02T00:00:00Z)"
    assert part in shown.out.splitlines()[-1]
    document = json.loads(custody("verify", sample.folder, *chosen, "--json").out.splitlines()[-1])
    assert document["part"]["logs"] == [str(sample.log)]
    assert part in document["verdict"]


@pytest.mark.parametrize("arguments", [("--since", "2d", "--until", "3d"), ("--log", "nosuch/0")])
def test_a_wrong_part_is_a_mistake(custody: Command, sample: Sample, arguments: tuple[str, ...]) -> None:
    """A range that ends before it begins, and a log that is not there, are exit code 2."""
    refused = custody("verify", sample.folder, "--keys", sample.keyring, *arguments)
    assert (refused.code, len(refused.err.splitlines()), refused.out) == (2, 1, "")


def test_a_wrong_path_is_asked_about_first(custody: Command, sample: Sample) -> None:
    """The first line is the question, with what is there; the exit code is that of a finding."""
    shutil.copy(sample.keyring, "mine.json")
    keys = ("--keys", "mine.json")
    nothing = custody("verify", "nowhere", *keys)
    assert nothing.code == 12
    assert nothing.out.splitlines()[0].endswith("is this the archive's path? Nothing is there.")
    Path("other/inner").mkdir(parents=True)
    for name in ("other/a.txt", "other/inner/b.txt"):
        Path(name).touch()
    assert custody("verify", "other", *keys).out.splitlines()[0].endswith("There is a.txt, inner/.")
    above = custody("verify", sample.folder.parent, *keys)
    assert f"an archive in {sample.folder.name} below it" in above.out.splitlines()[0]
    right = custody("verify", sample.folder, *keys)
    assert "is this the archive's path" not in right.out


@pytest.mark.parametrize("path", [".", "events", "manifests", "events/2099"])
def test_a_wrong_path_gives_one_finding(custody: Command, altered: Sample, path: str) -> None:
    """Above an archive, in it, or nowhere: one finding says where it is. Nobody is told to move its files away."""
    Path("of").mkdir()
    shutil.move(altered.folder, "of/archive")
    shutil.copy(altered.keyring, "mine.json")
    wrong = Path("of") if path == "." else Path("of/archive", path)
    shown = custody("verify", wrong, "--keys", "mine.json", "--json")
    findings = [line for line in map(json.loads, shown.out.splitlines()) if line["kind"] == "finding"]
    assert (shown.code, [line["finding"] for line in findings]) == (12, ["archive"])
    assert f"Did you mean {Path('of/archive').absolute().as_uri()}?" in findings[0]["message"]
    assert "restore" not in findings[0]["action"]


def test_a_lost_archive_file_hides_no_foreign_object(custody: Command, altered: Sample) -> None:
    """Where statements are, the archive is here: what is missing and what is foreign are findings as ever."""
    (altered.folder / "archive.json").unlink()
    (altered.folder / "stray").touch()
    shown = custody("verify", altered.folder, "--keys", altered.keyring, "--json")
    findings = {line["finding"]: line for line in map(json.loads, shown.out.splitlines()) if line["kind"] == "finding"}
    assert (shown.code, set(findings)) == (12, {"archive", "foreign"})
    assert "restore archive.json" in findings["archive"]["action"]


def test_nothing_is_never_called_verified(custody: Command, sample: Sample) -> None:
    """A new archive, and a part without a statement, have nothing to verify. Both stay notices."""
    assert custody("init", "--archive", "new", "--keys", "new.json").code == 0
    shown = custody("verify", "new", "--keys", "new.json")
    assert shown.code == 3
    assert shown.out.splitlines()[-1].endswith(": nothing to verify, with 1 notice: 0 events in 0 logs")
    part = custody("verify", sample.folder, "--keys", sample.keyring, "--until", "2000-01-01")
    assert (part.code, "nothing to verify, with 1 notice" in part.out.splitlines()[-1]) == (3, True)


def test_notices_are_no_findings_of_the_verdict(custody: Command, altered: Sample) -> None:
    """A verdict counts notices apart from what is wrong. Where all batches are damaged, none is called intact."""
    assert (
        custody("keys", "export", "-o", "trust.json", "--archive", altered.folder, "--keys", altered.keyring).code == 0
    )
    for damaged in (altered.folder / "events").rglob("*.gz"):
        damaged.chmod(0o600)
        damaged.write_bytes(bytes(damaged.stat().st_size))
    shown = custody("verify", altered.folder, "--trust", "trust.json")
    assert shown.code == 13
    assert re.search(r": TAMPERED: 3 findings, 2 notices; ", shown.out.splitlines()[-1])
    assert re.search(r"damaged: (\d+) of \1 batches \(number", shown.out)
    assert "others are intact" not in shown.out


def test_no_credentials_are_said_once(custody: Command, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request fails for one reason: it is one line, the first one, with what to do."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    shown = custody("verify", "s3://no-such-bucket/audit", "--keys", sample.keyring)
    assert (shown.code, shown.out.count("Unable to locate credentials")) == (12, 1)
    assert shown.out.splitlines()[0].startswith("Nothing can be read: ")
    assert "AWS_ACCESS_KEY_ID" in shown.out.splitlines()[0]


def test_a_wrong_key_is_said_once(custody: Command, sample: Sample) -> None:
    """The text names each unknown key once for all logs, and the file of the key that was used."""
    new_keyring(Path("other.json"), datetime.now(UTC))
    shown = custody("verify", sample.folder, "--keys", "other.json")
    assert shown.code == 12
    assert shown.out.count("custody explain key-unknown") == 1
    assert "from other.json" in shown.out


def test_the_same_for_many_logs_is_said_once() -> None:
    """Findings of one message are joined, with a count and some logs; findings about objects stay apart."""
    many = [finding("key-unknown", "the key 'x' is not trusted", log=f"a/{n}", sequence=0, count=2) for n in range(200)]
    (one,) = joined(many)
    assert (one.count, one.where) == (400, "a/0, a/1, a/2 and 197 more logs")
    for count, named in ((4, "a/0, a/1, a/2 and a/3"), (2, "a/0 and a/1"), (5, "a/0, a/1, a/2 and 2 more logs")):
        (few,) = joined(many[:count])
        assert few.where == named
    unchecked = [finding("unchecked-signature", "no secret", log=f"a/{n}", sequence=0) for n in range(3)]
    audits = finding("unchecked-signature", "no secret", log="audits/0", sequence=0, key="audits/000000000000.json")
    (all_logs,) = joined([*unchecked, audits])
    assert (all_logs.where, all_logs.key, all_logs.count) == ("a/0, a/1, a/2 and audits/0", None, 4)
    apart = [finding("segment-hash", "it differs", log=f"a/{n}", sequence=1, key=f"events/{n}") for n in range(3)]
    assert joined(apart) == apart
    same_log = [finding("event", "wrong", log="a/0", sequence=n) for n in range(3)]
    assert joined(same_log) == same_log
    accepted = [finding("stale", "silent", log="a/0"), finding("stale", "silent", log="a/1", accepted="by x")]
    assert joined(accepted) == accepted
    error = "cannot list s3://b/{}: AccessDenied: no"
    causes = [finding("unreadable", f"it cannot be listed: {error.format(n)}") for n in range(3)]
    (cause,) = joined(causes)
    assert cause.message == f"it cannot be listed: {error.format(0)} (and 2 more requests, for this reason)"


def test_each_explanation_is_named_once() -> None:
    """The lines below the table name each finding once, and no more than a person reads."""
    found = [finding("tree", "x", log="a/0"), finding("tree", "y", log="a/1"), finding("clock", "x")]
    assert list(verdict.explained(found)) == ["`custody explain tree` says more", "`custody explain clock` says more"]
