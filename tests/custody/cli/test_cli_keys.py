"""`custody init` and `custody keys`: what an archive begins with, what auditors get, and how a leaked key ends."""

import base64
import io
import json
import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.archive.checkpoints import put_checkpoint
from custody.archive.forms import statements_of
from custody.archive.reader import read_archive
from custody.archive.trusted import Judge
from custody.errors import escape
from custody.format.archive_file import ArchiveFile
from custody.format.layout import Log
from custody.keys.key import Ed25519Key
from custody.keys.keyring import Keyring
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.settings import Settings
from custody.store.open import open_store
from custody.tlog.head import Head
from tests.helpers.commands import Command
from tests.servers.kms import ED25519_ARN, HMAC_ARN, FakeKms

CANARY = "canary-Zq7-secret"
ARCHIVE = Path("custody-data/archive")
KEYRING, TRUST = Path("keyring.json"), Path("trust.json")
HEADS: dict[str, dict[str, Any]] = {
    "audit/0": {"size": 5, "root": "aa" * 32},
    "audits/0": {"size": 2, "root": "bb" * 32},
}


def archive() -> ArchiveFile:
    return read_archive(open_store(str(ARCHIVE)))


def document(path: Path = TRUST) -> Any:
    return json.loads(path.read_bytes())


def algorithms(path: Path) -> list[str]:
    return [key.algorithm for key in Keyring.load(path).keys]


def secrets_of(ring: Keyring) -> list[str]:
    """Return every form in which a ring's secrets could be printed."""
    raw = [key.secret.reveal() for key in ring.keys]
    return [form for one in raw for form in (one.hex(), base64.b64encode(one).decode(), repr(one))]


# --- init ------------------------------------------------------------------------------------------------------------


def test_init_makes_all_that_an_archive_begins_with(custody: Command) -> None:
    """One command makes a signed archive.json, all three keys and what auditors are given, and says what is next."""
    made = custody("init", "--heartbeat", 60, "--checkpoint", 120, "--retention-days", 30)
    assert made.code == 0, made.err
    assert max(len(line) for line in made.out.splitlines() if line.startswith("  ")) <= 80
    file = archive()
    assert (file.statement.heartbeat, file.statement.checkpoint, file.statement.retention_days) == (60, 120, 30)
    assert algorithms(KEYRING) == ["HMAC-SHA256", "Ed25519", "SHAKE-256"]
    ring = Keyring.load(KEYRING)
    assert [signature.key for signature, _ in file.signatures] == [key.key_id for key in ring.keys[:2]]
    assert open_trust(trust=TRUST).archive == file.pin
    assert [entry["id"] for entry in document()["keys"]] == [key.key_id for key in ring.keys]
    assert stat.S_IMODE(TRUST.stat().st_mode) == 0o644
    assert stat.S_IMODE(KEYRING.stat().st_mode) == 0o600
    for said in (file.id, "trust.json", "auditors", "custody drain", "60 s", "120 s", "30 days"):
        assert said in made.out
    for secret in secrets_of(ring):
        assert secret not in made.out + made.err + TRUST.read_text()


def test_defaults_of_an_archive(custody: Command) -> None:
    """An hour for heartbeats and checkpoints, and seven years."""
    custody("init")
    said = archive().statement
    assert (said.heartbeat, said.checkpoint, said.retention_days) == (3600, 3600, 2555)


def test_init_again_changes_nothing(custody: Command) -> None:
    """A second init keeps the archive's identity, what it promises, the keys and trust.json, and says so."""
    custody("init")
    files = (ARCHIVE / "archive.json", KEYRING, TRUST)
    before = [path.read_bytes() for path in files]
    again = custody("init", "--heartbeat", 7)
    assert again.code == 0, again.err
    assert "existed already" in again.out
    assert "nothing to add" in again.out
    assert "existed already" not in custody("init", "--heartbeat", 3600).out
    assert [path.read_bytes() for path in files] == before


def test_init_goes_on_where_it_was_interrupted(custody: Command) -> None:
    """Whatever of the three is not there yet is made, with the keys that are there."""
    custody("keys", "new")
    assert custody("init").code == 0
    before, document_ = archive().pin, document()
    TRUST.unlink()
    assert custody("init").code == 0
    assert (archive().pin, document()) == (before, document_)
    TRUST.write_text('{"format":"custody/trust/1"}')
    extended = custody("init")
    assert extended.code == 0
    assert "extended by the archive's pin, key hmac-" in extended.out
    assert open_trust(trust=TRUST).archive == before


def test_init_of_an_archive_of_others_is_refused(custody: Command) -> None:
    """An archive.json that our keys did not sign is not ours: nothing is made or written, and the reason is said."""
    custody("init")
    before = (ARCHIVE / "archive.json").read_bytes()
    KEYRING.rename("kept.json")
    TRUST.unlink()
    lost = custody("init")
    assert lost.code == 2
    assert "Restore the keyring from your backup" in lost.err
    assert not KEYRING.exists()
    custody("keys", "new")
    other = custody("init")
    assert other.code == 2
    assert "the keys of keyring.json may not be those of this archive" in other.err
    assert not TRUST.exists()
    assert (ARCHIVE / "archive.json").read_bytes() == before


def test_init_with_a_trust_file_of_another_archive(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second archive with the same keys needs a trust.json of its own, which the setting names."""
    custody("init")
    before = TRUST.read_bytes()
    monkeypatch.setenv("CUSTODY_ARCHIVE", "second")
    refused = custody("init")
    assert refused.code == 2
    assert "set `trust` to another file" in refused.err
    assert not Path("second").exists()
    monkeypatch.setenv("CUSTODY_TRUST", "second-trust.json")
    assert custody("init").code == 0
    assert document(Path("second-trust.json"))["archive"]["id"] == read_archive(open_store("second")).id
    assert TRUST.read_bytes() == before


@pytest.mark.parametrize("where", ["CUSTODY_KEYS", "CUSTODY_TRUST", "CUSTODY_CHECKPOINT_KEYS"])
def test_init_puts_no_key_or_trust_into_the_archive(
    custody: Command, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whoever can read an archive must not find keys there, and whoever can write it must not give trust."""
    inside = ARCHIVE / "k.json"
    monkeypatch.setenv(where, str(inside) if where == "CUSTODY_TRUST" else f"file:{inside}")
    refused = custody("init")
    assert refused.code == 2
    assert "lies in the archive" in refused.err
    assert not KEYRING.exists()
    assert not inside.exists()


def test_init_with_two_keyrings(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `checkpoint_keys` names a keyring too, each gets what it is there for."""
    Path("keys").mkdir()
    monkeypatch.setenv("CUSTODY_KEYS", "file:keys/statements.json")
    monkeypatch.setenv("CUSTODY_CHECKPOINT_KEYS", "file:checkpoints.json")
    made = custody("init")
    assert made.code == 0, made.err
    assert algorithms(Path("keys/statements.json")) == ["HMAC-SHA256"]
    assert algorithms(Path("checkpoints.json")) == ["Ed25519", "SHAKE-256"]
    assert [entry["algorithm"] for entry in document(Path("keys/trust.json"))["keys"]] == [
        *("HMAC-SHA256", "Ed25519", "SHAKE-256"),
    ]


def test_init_with_an_hmac_key_in_kms(custody: Command, monkeypatch: pytest.MonkeyPatch, fake_kms: FakeKms) -> None:
    """The Ed25519 key and the leaf secret lie in the keyring of `checkpoint_keys`, made if it is not there."""
    monkeypatch.setenv("CUSTODY_KEYS", "aws-kms:///alias/statements")
    refused = custody("init")
    assert refused.code == 2
    assert "checkpoint_keys" in refused.err
    assert not ARCHIVE.exists()
    monkeypatch.setenv("CUSTODY_CHECKPOINT_KEYS", "file:checkpoints.json")
    made = custody("init")
    assert made.code == 0, made.err
    assert "GenerateMac" in fake_kms.asked
    ring = Keyring.load(Path("checkpoints.json"))
    assert [key.algorithm for key in ring.keys] == ["Ed25519", "SHAKE-256"]
    assert [entry["id"] for entry in document()["keys"]] == [HMAC_ARN, *(key.key_id for key in ring.keys)]
    assert [signature.key for signature, _ in archive().signatures] == [HMAC_ARN, ring.keys[0].key_id]
    assert custody("init").code == 0
    rows = [json.loads(line) for line in custody("keys", "list", "--json").out.splitlines()]
    assert [row["id"] for row in rows] == [HMAC_ARN, *(key.key_id for key in ring.keys)]
    rotated = custody("keys", "rotate")
    assert rotated.code == 0, rotated.err
    assert algorithms(Path("checkpoints.json")) == ["Ed25519", "SHAKE-256"] * 2


def test_init_with_all_keys_in_kms(custody: Command, monkeypatch: pytest.MonkeyPatch, fake_kms: FakeKms) -> None:
    """With the Ed25519 key in KMS as well there is no keyring; trust.json has its public half under its ARN."""
    monkeypatch.setenv("CUSTODY_KEYS", "aws-kms:///alias/statements")
    monkeypatch.setenv("CUSTODY_CHECKPOINT_KEYS", "aws-kms:///alias/checkpoints")
    made = custody("init")
    assert made.code == 0, made.err
    assert sorted(path.name for path in Path().iterdir()) == ["custody-data", "trust.json"]
    assert [signature.key for signature, _ in archive().signatures] == [HMAC_ARN, ED25519_ARN]
    fake_kms.asked.clear()
    trust = open_trust(trust=TRUST)
    assert trust.keys[ED25519_ARN].public == fake_kms.public
    assert not trust.keys[HMAC_ARN].checkable
    assert fake_kms.asked == []
    for command in ("new", "rotate"):
        refused = custody("keys", command)
        assert refused.code == 2
        assert "KMS" in refused.err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--heartbeat", 0),
        ("--heartbeat", 31_622_401),
        ("--checkpoint", 0),
        ("--checkpoint", 31_622_401),
        ("--retention-days", 0),
        ("--retention-days", 36_526),
    ],
)
def test_numbers_out_of_bounds_are_usage_errors(custody: Command, option: str, value: int) -> None:
    """What archive.json may not say is refused before anything is made."""
    assert custody("init", option, value).code == 2
    assert list(Path().iterdir()) == []


# --- new, list, rotate -----------------------------------------------------------------------------------------------


def test_keys_are_encrypted_where_a_passphrase_is_set(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a passphrase no secret is on disk in the clear, and none is printed by any command about keys."""
    monkeypatch.setenv("CUSTODY_KEYRING_PASSPHRASE", CANARY)
    outcomes = [
        custody("keys", "new"),
        custody("init"),
        custody("keys", "list"),
        custody("keys", "rotate"),
        custody("keys", "list", "--json"),
        custody("keys", "export"),
        custody("keys", "export", "-o", "trust.json"),
    ]
    assert [one.code for one in outcomes] == [0] * len(outcomes)
    ring = Keyring.load(KEYRING, CANARY)
    assert b"ciphertext" in KEYRING.read_bytes()
    shown = "".join(one.out + one.err for one in outcomes) + TRUST.read_text() + KEYRING.read_text()
    assert CANARY not in shown
    for secret in secrets_of(ring):
        assert secret not in shown
    monkeypatch.delenv("CUSTODY_KEYRING_PASSPHRASE")
    locked = custody("keys", "list")
    assert locked.code == 2
    assert "CUSTODY_KEYRING_PASSPHRASE" in locked.err


def test_keys_list_shows_which_are_valid_and_the_public_half(custody: Command) -> None:
    """After a rotation the list names every key, and gives an auditor the public half of those that have one."""
    custody("keys", "new")
    custody("keys", "rotate")
    rows = [json.loads(line) for line in custody("keys", "list", "--json").out.splitlines()]
    ring = Keyring.load(KEYRING)
    assert [row["id"] for row in rows] == [key.key_id for key in ring.keys]
    assert {row["algorithm"] for row in rows} == {"HMAC-SHA256", "Ed25519", "SHAKE-256"}
    for row, key in zip(rows, ring.keys, strict=True):
        assert bool(row["public"]) == bool(row["vkey"]) == isinstance(key, Ed25519Key)
    assert all(row["valid"] for row in rows)
    assert all(row["id"] in custody("keys", "list").out for row in rows)


def test_keys_new_never_replaces_a_keyring(custody: Command) -> None:
    """Losing keys takes more than typing a command twice."""
    custody("keys", "new")
    before = KEYRING.read_bytes()
    again = custody("keys", "new")
    assert again.code == 2
    assert "rotate" in again.err
    assert KEYRING.read_bytes() == before


def test_keys_new_beside_an_archive(custody: Command) -> None:
    """New keys for an archive whose keyring is missing could do nothing with it: a warning says so."""
    assert "WARNING" not in custody("keys", "new").err
    custody("init")
    KEYRING.rename("copy.json")
    made = custody("keys", "new")
    assert made.code == 0
    assert "can neither continue it nor verify it" in made.err
    (ARCHIVE / "archive.json").unlink()
    (ARCHIVE / "archive.json").write_bytes(b"garbage")
    KEYRING.unlink()
    assert "can neither continue it nor verify it" in custody("keys", "new").err


def test_files_in_the_wrong_place(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a keyring or a trust.json where another file belongs is called by its name."""
    custody("init")
    for mode in (0o644, 0o600):
        TRUST.chmod(mode)
        given = custody("verify", "--keys", f"file:{TRUST}")
        assert (given.code, "it is a trust.json" in given.err, "--trust" in given.err) == (2, True, True)
        assert "secrets" not in given.err
    given = custody("verify", "--trust", KEYRING)
    assert (given.code, "it is a keyring" in given.err, "--keys" in given.err) == (2, True, True)
    KEYRING.chmod(0o644)
    assert "chmod 600" in custody("verify", "--keys", f"file:{KEYRING}").err
    for option in ("--state", "--trust"):
        given = custody("verify", option, ".")
        assert (given.code, "'.'" in given.err, "is a folder" in given.err, "Posix" in given.err) == (
            2,
            True,
            True,
            False,
        )
    monkeypatch.setenv("CUSTODY_KEYS", "file:.")
    for arguments in (("keys", "new"), ("keys", "list")):
        given = custody(*arguments)
        assert (given.code, "is a folder" in given.err) == (2, True)


# --- export ----------------------------------------------------------------------------------------------------------


def test_export_makes_the_same_file_again(custody: Command) -> None:
    """Whether to stdout or into a file: what `init` wrote."""
    custody("init")
    first = TRUST.read_text()
    assert custody("keys", "export").out == first
    TRUST.unlink()
    written = custody("keys", "export", "-o", "trust.json")
    assert written.out == "trust.json: new\n"
    assert TRUST.read_text() == first


def test_export_extends_after_a_rotation(custody: Command) -> None:
    """The new keys are added and the old ones' ends; what is said is what was done."""
    custody("init")
    custody("keys", "rotate")
    done = custody("keys", "export", "-o", "trust.json")
    assert "extended by the end of key hmac-" in done.out
    assert ", key hmac-" in done.out
    assert len(document()["keys"]) == 6
    assert custody("keys", "export").out != ""
    assert custody("keys", "export", "-o", "trust.json").out == "trust.json: nothing to add\n"


def test_export_pins_no_archive_that_others_signed(custody: Command) -> None:
    """What lies in the archive's place is not handed to auditors as ours before our keys have checked it."""
    missing = custody("keys", "export")
    assert missing.code == 2
    custody("init")
    path = ARCHIVE / "archive.json"
    path.write_bytes(path.read_bytes().replace(b'"heartbeat":3600', b'"heartbeat":9999'))
    for arguments in ((), ("-o", "trust.json")):
        refused = custody("keys", "export", *arguments)
        assert refused.code == 1
        assert "not signed by trusted keys" in refused.err
        assert refused.out == ""
    inside = custody("keys", "export", "-o", ARCHIVE / "trust.json")
    assert inside.code == 2


# --- end -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(custody: Command) -> Command:
    """The command line beside an archive, and a file of heads."""
    assert custody("init").code == 0
    Path("heads.json").write_text(json.dumps(HEADS))
    return custody


def hmac_id() -> str:
    return Keyring.load(KEYRING).keys[0].key_id


def test_a_key_ends_at_the_heads_given(ready: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`until` is in the file for every log; what is left to do is said: the setting, and a key that still signs."""
    done = ready("keys", "end", hmac_id(), "--at", "heads.json")
    assert done.code == 0, done.err
    assert document()["keys"][0]["until"] == HEADS
    assert f"audit/0 5 {'aa' * 32}" in done.out
    assert "CUSTODY_TRUST" in done.out
    assert "custody keys rotate" in done.out
    assert open_trust(trust=TRUST).keys[hmac_id()].until == {
        log: Head(head["size"], bytes.fromhex(head["root"])) for log, head in HEADS.items()
    }
    monkeypatch.setenv("CUSTODY_TRUST", "trust.json")
    assert "CUSTODY_TRUST" not in ready("keys", "end", hmac_id(), "--at", "heads.json").out
    # The writer's own trust holds to it from then on.
    assert Settings().own_trust().keys[hmac_id()].until is not None


def test_heads_come_by_stdin(ready: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The common case is one line: what `verify --json` prints, into `keys end`."""
    lines: list[dict[str, Any]] = [{"kind": "log", "log": "audit/0", "sound": True, "pending": 0} | HEADS["audit/0"]]
    lines.append({"kind": "audits", "log": "audits/0"} | HEADS["audits/0"])
    lines.append({"kind": "verdict", "archive": archive().id, "exit_code": 0})
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    done = ready("keys", "end", hmac_id(), "--at", "-")
    assert done.code == 0, done.err
    assert document()["keys"][0]["until"] == HEADS


def test_heads_come_from_checkpoints(ready: Command) -> None:
    """The checkpoints that the archive has, one after another, are heads too."""
    store, file = open_store(str(ARCHIVE)), archive()
    signer, trust = open_signers("file:keyring.json", datetime.now(UTC)).ed25519(), Settings().own_trust()
    log, head = Log("audit", 0), Head(5, b"\xaa" * 32)
    judge = Judge(store, log, statements_of(log), file.id, trust)
    note = put_checkpoint(store, file.id, log, head, signer, judge)
    assert note is not None
    Path("notes.txt").write_bytes(note.encode())
    done = ready("keys", "end", hmac_id(), "--at", "notes.txt", "--audits", "0")
    assert done.code == 0, done.err
    assert document()["keys"][0]["until"] == {"audit/0": HEADS["audit/0"]}


def test_where_audits_end_has_to_be_said(ready: Command) -> None:
    """A file without the log of audits would end the key for all audits unnoticed: it is asked for."""
    Path("heads.json").write_text(json.dumps({"audit/0": HEADS["audit/0"]}))
    asked = ready("keys", "end", hmac_id(), "--at", "heads.json")
    assert asked.code == 2
    assert "--audits" in asked.err
    assert "until" not in document()["keys"][0]
    for wrong in ("", "1", "1:", "1:zz", f"x:{'bb' * 32}", f"-1:{'bb' * 32}", f"1:{'zz' * 32}"):
        assert ready("keys", "end", hmac_id(), "--at", "heads.json", "--audits", wrong).code == 2
    assert ready("keys", "end", hmac_id(), "--at", "heads.json", "--audits", f"2:{'bb' * 32}").code == 0
    assert document()["keys"][0]["until"] == HEADS
    assert ready("keys", "end", hmac_id(), "--at", "heads.json", "--audits", "0").code == 0
    assert document()["keys"][0]["until"] == {"audit/0": HEADS["audit/0"]}


def test_what_keys_end_refuses(ready: Command, tmp_path: Path) -> None:
    """Unknown keys, heads of another archive, no heads, no trust.json: one clear line, and nothing is written."""
    before = TRUST.read_bytes()
    Path("other.json").write_text(
        json.dumps({"format": "custody/trust/1", "archive": {"id": "0" * 8 + archive().id[8:], "sha256": "00" * 32}})
    )
    Path("noise.json").write_text("noise")
    for arguments, says in (
        (["hmac-unknown", "--at", "heads.json"], "no key 'hmac-unknown'"),
        ([Keyring.load(KEYRING).keys[2].key_id, "--at", "heads.json"], "signs nothing"),
        ([hmac_id(), "--at", "other.json"], "but trust.json is for"),
        ([hmac_id(), "--at", "noise.json"], "has no heads"),
        ([hmac_id(), "--at", "not-there.json"], "cannot be read"),
        ([hmac_id(), "--at", "heads.json", "--trust", tmp_path / "none.json"], "custody keys export"),
    ):
        refused = ready("keys", "end", *arguments)
        assert refused.code == 2, arguments
        assert says in refused.err
        assert refused.err.count("\n") == 1
    assert TRUST.read_bytes() == before


def test_an_auditor_ends_a_key_without_the_writers_keys(ready: Command) -> None:
    """Whoever verifies with trust.json alone can end a key there."""
    key = hmac_id()
    KEYRING.unlink()
    done = ready("keys", "end", key, "--at", "heads.json", "--trust", "trust.json")
    assert done.code == 0, done.err
    assert document()["keys"][0]["until"] == HEADS
    assert "rotate" not in done.out


def test_names_in_files_reach_no_terminal(ready: Command) -> None:
    """A name from a file that was given is escaped in what is said of it."""
    Path("heads.json").write_text(json.dumps({"a\x1b[2Jb/0": HEADS["audit/0"]}))
    refused = ready("keys", "end", hmac_id(), "--at", "heads.json")
    assert refused.code == 2
    assert "\x1b" not in refused.err
    assert escape("\x1b") == "\\x1b"
    assert os.linesep not in refused.err.strip()
