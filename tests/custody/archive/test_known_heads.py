"""Heads from what people have at hand: every form gives the same heads, and what is doubtful gives none."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custody.archive.known_heads import State, read_heads, split_notes
from custody.errors import ConfigurationError
from custody.format.archive_file import Pin
from custody.format.layout import AUDIT_LOG, Log
from custody.keys.key import Ed25519Key
from custody.keys.keyring import Keyring
from custody.tlog.checkpoint import parse_note, sign_checkpoint
from custody.tlog.head import Head
from custody.tlog.signatures import NOWHERE

PIN = Pin("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "44" * 32)
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)

HEADS = {"audit/0": Head(5, b"a" * 32), "audit@2/0": Head(3, b"c" * 32), "audits/0": Head(2, b"b" * 32)}
PLAIN = {log: {"size": head.size, "root": head.root.hex()} for log, head in HEADS.items()}
OTHER = Pin("6ba7b810-9dad-41d1-80b4-00c04fd430c9", "44" * 32)
URL = "file:///a"


def report(*, archive: str | None = PIN.id, verdict: bool = True, **changes: Any) -> bytes:
    """What `custody verify --json` prints, as far as it matters here."""
    lines: list[dict[str, Any]] = [
        {"kind": "finding", "finding": "orphan", "log": "audit/0", "size": 9, "message": "m"}
    ]
    lines += [
        {"kind": "log", "log": log, "statements": 1, "events": 3, "sound": True, "pending": 0} | head | changes
        for log, head in PLAIN.items()
        if log != "audits/0"
    ]
    lines.append({"kind": "audits", "log": "audits/0"} | PLAIN["audits/0"])
    if verdict:
        lines.append({"kind": "verdict", "url": URL, "archive": archive, "exit_code": 3})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def checkpoints(archive: str = PIN.id) -> list[bytes]:
    """Checkpoints of the heads, in the order of the logs."""
    signer = Keyring.new(NOW, ("Ed25519",)).keys[0]
    assert isinstance(signer, Ed25519Key)
    logs = {str(log): log for log in (Log("audit", 0), Log("audit", 0, 2), AUDIT_LOG)}
    return [sign_checkpoint(signer, archive, logs[log], head).encode() for log, head in HEADS.items()]


def trust(**fields: Any) -> bytes:
    document = {
        "format": "custody/trust/1",
        "archive": {"id": PIN.id, "sha256": PIN.sha256},
        "keys": [],
        "heads": PLAIN,
    }
    return json.dumps(document | fields, indent=1).encode()


def state(folder: Path, *urls: str, pin: Pin = PIN) -> bytes:
    """A state file of these URLs."""
    remembered = State(folder / "state.json")
    for url in urls:
        remembered.remember(url, pin, HEADS)
    return (folder / "state.json").read_bytes()


def test_every_form_gives_the_same_heads(tmp_path: Path) -> None:
    """A report, checkpoints, a state file, a trust.json and a plain object give the same heads."""
    forms = {
        "report": report(),
        "checkpoints": b"\n".join(checkpoints()),
        "state": state(tmp_path, URL, "file:///b"),
        "trust": trust(),
        "trust without pin": trust(archive=None),
        "plain": json.dumps(PLAIN).encode(),
    }
    for name, data in forms.items():
        for pin in (PIN, None):
            assert read_heads(data, name, pin, URL) == HEADS, name


def test_empty_logs_are_empty() -> None:
    """A log without statements has the head of nothing, which says that it was looked at."""
    assert read_heads(report(size=0, root=None, sound=False), "r")["audit/0"] == NOWHERE


def test_another_archive_is_refused(tmp_path: Path) -> None:
    """Whatever names its archive must name the one that trust.json pins."""
    for data in (report(), b"\n".join(checkpoints()), trust(), report(archive=None)):
        with pytest.raises(ConfigurationError, match=OTHER.id):
            read_heads(data, "the file", OTHER)
    with pytest.raises(ConfigurationError, match="0 of its 1 archives"):
        read_heads(state(tmp_path, URL), "the file", OTHER, URL)


def test_a_state_file_of_several_archives_needs_the_url(tmp_path: Path) -> None:
    """Of copies of one archive the one at the URL is meant; without it, only one may be there."""
    data = state(tmp_path, URL, "file:///b")
    with pytest.raises(ConfigurationError, match="2 of its 2"):
        read_heads(data, "the file", PIN, "file:///c")
    state(tmp_path, "file:///d", pin=OTHER)
    assert read_heads(state(tmp_path, "file:///d", pin=OTHER), "the file", OTHER, "file:///c") == HEADS


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (report(sound=False), "the head of audit/0 was not verified"),
        (report(pending=2), "2 statements of audit/0 wait for a checkpoint"),
        (report(root=None), "was not verified"),
        (report(root="ab"), "was not verified"),
        (report(root="zz"), "line 2"),
        (report(sound="yes"), "line 2"),
        (report(verdict=False), "has no verdict"),
        (b"", "no verdict"),
        (b"noise", "has no heads"),
        (b"[]", "has no heads"),
        (b"1", "has no heads"),
        (b"\xff\xfe", "has no heads"),
        (b"[" * 100_000, "has no heads"),
        (b"{" * 100_000, "has no heads"),
        (json.dumps({"audit": PLAIN["audit/0"]}).encode(), "is not the name of a log"),
        (json.dumps({"audit/0": {"size": 1}}).encode(), "the file"),
        (json.dumps({"audit/0": {"size": -1, "root": "00" * 32}}).encode(), "the file"),
        (json.dumps(PLAIN)[:-1].encode() + b',"audit/0":' + json.dumps(PLAIN["audits/0"]).encode() + b"}", "twice"),
        (trust(heads={"audit/0": 5}), "the file"),
        (b'{"format":"custody/state/1"}', "is not a state file"),
        (b'{"format":"custody/state/2"}', "the file"),
        (b"custody/x\n", "has no heads"),
        (b"\n".join(checkpoints()[:2])[:-8], "has no heads"),
        (b"\n".join(checkpoints()) + b"\nmore\n", "has no heads"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_gives_no_heads(data: bytes, says: str) -> None:
    """A file that is incomplete, unverified or of another form raises one clear error."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        read_heads(data, "the file")
    assert str(caught.value).startswith("the file")


def test_two_heads_of_one_log_are_refused() -> None:
    """Whoever gives two checkpoints of one log has to say which."""
    older = sign(Head(4, b"z" * 32))
    with pytest.raises(ConfigurationError, match="two heads of audit/0"):
        read_heads(b"\n".join([*checkpoints(), older]), "the file")
    assert read_heads(b"\n".join([checkpoints()[0]] * 2), "the file") == {"audit/0": HEADS["audit/0"]}


def sign(head: Head, origin_log: Log = Log("audit", 0)) -> bytes:  # noqa: B008 - a frozen value
    signer = Keyring.new(NOW, ("Ed25519",)).keys[0]
    assert isinstance(signer, Ed25519Key)
    return sign_checkpoint(signer, PIN.id, origin_log, head).encode()


def test_notes_are_split_as_they_were() -> None:
    """Notes come back byte for byte, one or several, with newlines behind them or not."""
    notes = checkpoints()
    assert split_notes(notes[0]) == notes[:1]
    assert split_notes(b"\n".join(notes)) == notes
    assert split_notes(b"\n".join(notes) + b"\n") == notes
    assert [parse_note(note).encode() for note in split_notes(b"\n".join(notes))] == notes


@given(st.binary() | st.sampled_from([report(), trust(), b"\n".join(checkpoints())]).flatmap(
    lambda data: st.builds(
        lambda at, more: data[:at] + more + data[at + len(more) :], st.integers(0, len(data)), st.binary(max_size=6)
    )
))  # fmt: skip
@settings(max_examples=400)
def test_any_bytes(data: bytes) -> None:
    """Whatever bytes are given, the outcome is heads or a ConfigurationError."""
    try:
        heads = read_heads(data, "the file", PIN, URL)
    except ConfigurationError:
        return
    assert all(len(head.root) == 32 for head in heads.values())
