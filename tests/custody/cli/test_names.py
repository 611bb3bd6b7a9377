"""What one command prints as a name, another one takes: a log, a statement, a record, an audit, an object."""

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from custody.cli import names
from custody.errors import ConfigurationError
from custody.findings import finding
from custody.format import layout
from tests.helpers.commands import Command
from tests.helpers.sample import Growing

RECORD, STATEMENT = "audit.x@2/3@12", "audit.x@2/3/7"
PRINTED = {
    "audit.x@2/3": "audit.x@2/3",
    "audit.x@2/3@12": RECORD,
    "audit.x@2/3 12": RECORD,
    "audit.x@2/3, offset 12": RECORD,
    "audit.x@2/3: offset 12": RECORD,
    "offset 12 of audit.x@2/3": RECORD,
    "record at offset 12 of audit.x@2/3,": RECORD,
    "audit.x@2-3-12": RECORD,
    "audit.x@2/3/7": STATEMENT,
    "audit.x@2/3/7:": STATEMENT,
    "audit.x@2/3, sequence 7": STATEMENT,
    "audit.x@2/3 sequence 7": STATEMENT,
    "audit.x@2/3, sequence 7-9": STATEMENT,
    "sequence 7 of audit.x@2/3:": STATEMENT,
    "statement 7 of audit.x@2/3": STATEMENT,
    "audit.x@2/3 8 36a520de4ef1": STATEMENT,
    "Head     audit.x@2/3 8 36a520de4ef1aa": STATEMENT,
    "audits/0 4 36a520de4ef1": "audits/000000000003.json",
    "audit 3": "audits/000000000003.json",
    "audits/0, sequence 3": "audits/000000000003.json",
    "audits/0": "audits/0",
    "events/2026/a.jsonl.gz:": "events/2026/a.jsonl.gz",
}


def key_of(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


@pytest.mark.parametrize("text", [text for text, name in PRINTED.items() if "audit.x@2/3" in text])
def test_where_a_log_is_wanted_each_printed_form_is_its_log(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name of a part stands for the whole log, quoted or not, and a note says so."""
    assert names.logs([text]) == ["audit.x@2/3"]
    noted = capsys.readouterr().err
    assert ("is a part of audit.x@2/3: the whole log is taken" in noted) == (text != "audit.x@2/3")
    assert names.logs(text.split()) == ["audit.x@2/3"]
    assert names.logs(["a/0", text]) == ["a/0", "audit.x@2/3"]


@pytest.mark.parametrize("text", [text for text, name in PRINTED.items() if name == STATEMENT and "36a5" not in text])
def test_a_printed_statement_is_a_log_and_a_sequence(text: str) -> None:
    """`accept --log` takes the place of a finding as it is printed, and no other sequence beside it."""
    assert names.statement(text, None) == names.statement(text, 7) == names.statement("audit.x@2/3", 7)
    with pytest.raises(ConfigurationError, match="names sequence 7, and --sequence is 8"):
        names.statement(text, 8)
    assert names.statement("audit.x@2/3", None) == ("audit.x@2/3", None)


@pytest.mark.parametrize("text", ["audit.x", "audit.x-2-3", "\0", "x" * 5000])
def test_a_topic_stays_a_topic(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What may be a topic's name is never read as another log, and what is nothing is refused where logs are known."""
    assert names.logs([text]) == [text]
    assert (names.logs([text, "b"]), names.logs([]), names.logs(None)) == ([text, "b"], [], None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", PRINTED)
def test_each_printed_form_is_read(text: str) -> None:
    """Each form is the same thing, quoted as one word or not."""
    assert names.canonical([text]) == PRINTED[text]
    assert names.canonical(text.split()) == PRINTED[text]


def test_the_place_of_each_finding_is_read() -> None:
    """Whatever a finding names, its place leads to its record, else to its statement, else to its log."""
    for sequence, through, batch, offset, byte in product((None, 7), (None, 9), (None, 2), (None, 12), (None, 99)):
        made = finding(
            "gzip",
            "",
            log="audit.x@2/3",
            sequence=sequence,
            through=through if sequence else None,
            batch=batch,
            offset=offset,
            byte=byte,
        )
        wanted = RECORD if offset else STATEMENT if sequence else "audit.x@2/3"
        assert names.canonical(made.where.split()) == wanted, made.where


def test_a_path_is_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path as `find` prints it, from any folder, leads to its key; other names stay as they are."""
    root = tmp_path / "a b" / "archive"
    path = root / "checkpoints" / "stray.txt"
    path.parent.mkdir(parents=True)
    path.touch()
    key, url = path.relative_to(root).as_posix(), root.as_uri()
    monkeypatch.chdir(tmp_path)
    assert names.below(url, "a b/archive/checkpoints/stray.txt") == key
    assert names.below(url, str(path)) == names.below(url, str(root / "gone" / ".." / key)) == key
    segment = layout.manifest_key(layout.Log("audit.x", 0), 7)
    assert names.below(url, f"a b/archive/{segment}") == segment
    assert names.below("s3://bucket/x", str(path)) == str(path)
    monkeypatch.chdir(path.parent)
    for name in ("audit.x/0", "audit.x/0/7", str(tmp_path / "other"), "\0", "x" * 5000):
        assert names.below(url, name) == name


@pytest.mark.parametrize(
    "words", [["audit.x/0"], ["audit.x/0", "x"], ["audit.x/0/7"], ["audit.x/0", "-1"], ["5"], [""]]
)
def test_what_is_no_record_is_refused(words: Sequence[str]) -> None:
    """A log, a statement or nonsense is no event to prove."""
    with pytest.raises(ConfigurationError, match="names no record"):
        names.record(words)
    assert names.record(["audit.x", "5"]) == ("audit.x", 5)


def test_what_commands_print_can_be_pasted(custody: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs, statements, records, audits and objects of a damaged archive are taken as they were printed."""
    growing = Growing(tmp_path / "made")
    growing.append(5)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(growing.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    row = json.loads(custody("query", 'FROM events WHERE "offset" = 7', "--json").out)
    assert custody("checkpoint", "--write").code == 0
    assert custody("audit").code in {0, 3}

    def place(*name: object) -> dict[str, object]:
        shown = custody("show", *name, "--place")
        assert (shown.code, shown.err) == (0, ""), name
        return dict(json.loads(shown.out))

    # Rows of a query.
    assert place(row["log"], row["offset"])["offset"] == 7
    assert place(f"{row['log']}/{row['sequence']}")["sequence"] == 1
    assert place(row["log"])["sequence"] == 4
    # The _id of Elasticsearch, and what evidence prints.
    assert place("audit.grows-0-7")["offset"] == 7
    written = custody("evidence", row["log"], row["offset"], "-o", "a.zip")
    assert written.code == 0
    assert custody("evidence", f"{row['log']}@{row['offset']}", "-o", "b.zip").code == 0
    checked = custody("check-evidence", "a.zip", "--keys", growing.keyring).out
    printed = re.search(r"offset 7 of \S+", checked)
    assert printed
    assert place(*printed[0].split())["offset"] == 7
    # Audits.
    assert json.loads(custody("show", "audits/0").out.splitlines()[0])["sequence"] == 0
    assert custody("show", "audit", "0").out == custody("show", "audits/0").out
    # Findings of a verification, and warnings of a query.
    path = next(path for path in (growing.folder / "events").rglob("*-00000000000000000005-*.gz"))
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.unlink()
    path.write_bytes(data)
    verified = custody("verify", "--workers", 0)
    assert verified.code == 13
    (place_of,) = set(re.findall(r"audit\.grows/0, sequence \d+(?:, batch \d+)?", verified.out))
    assert place(*place_of.split())["sequence"] == 1
    for log in set(re.findall(r"audit\.grows\S*/\d+", verified.out)):
        assert place(log)["log"] == row["log"]
    for line in map(json.loads, custody("verify", "--workers", 0, "--json").out.splitlines()):
        if key := line.get("key"):
            assert place(key)["sequence"] == 1
        if (log := line.get("log")) and (sequence := line.get("sequence")) is not None:
            assert place(f"{log}/{sequence}")["sequence"] == sequence
    # The head of a log, and the path of an object.
    head = re.search(r"^Head     (.*)$", custody("verify", "--workers", 0).out, re.MULTILINE)
    assert head
    assert place(head[1])["sequence"] == 4
    assert place(path)["sequence"] == 1
    check_where_a_log_is_wanted(
        custody, row["log"], (place_of, f"{row['log']}@7", head[1], key_of(path, growing.folder))
    )


def check_where_a_log_is_wanted(custody: Command, log: str, parts: Sequence[str]) -> None:
    backfill = ("backfill", "--since", "2d", "--until", "now", "--to", "tables", "--dry-run", "--log")
    plan = custody(*backfill, log)
    assert (plan.code, plan.err) == (0, "")
    refused = custody(*backfill, "audit.grows-0-7")
    assert (refused.code, f"a log is wanted: give {log}" in refused.err) == (2, True)
    for name in parts:
        pasted = custody(*backfill, name)
        assert (pasted.code, pasted.out) == (0, plan.out)
        assert f"is a part of {log}: the whole log is taken" in pasted.err
    note = custody("checkpoint", log)
    assert (note.code, custody("checkpoint", *parts[0].split()).out) == (0, note.out)
    assert custody("verify", "--workers", 0, "--log", parts[0]).code == 13
    assert custody("audit", "--log", parts[0]).code == 13


@pytest.mark.parametrize("slot", [1, 99])
def test_what_nobody_signed_is_no_newer_audit(
    custody: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slot: int
) -> None:
    """`audits/0` is the newest audit that counts, whatever lies in the slots after it."""
    growing = Growing(tmp_path / "made")
    growing.append(1)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(growing.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    assert custody("audit").code in {0, 3}
    (growing.folder / f"audits/{slot:012}.json").write_bytes(b"garbage")
    assert json.loads(custody("show", "audits/0").out.splitlines()[0])["sequence"] == 0
