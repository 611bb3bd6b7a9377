"""Evidence proves one event to whoever has the public key; whatever of it is changed, it proves nothing."""

import contextlib
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from custody import checkpoints
from custody.cli import app
from custody.errors import ConfigurationError, FormatError, KeyUnavailable, SignatureInvalid
from custody.evidence import FILE_LIMIT, check_evidence, make_evidence
from custody.keys import Keyring, open_signers
from custody.layout import Log
from custody.store import Store, open_store
from custody.trust import Trust, TrustedKey, open_trust
from tests.sample import Growing, Sample, make_archive

LOG = Log("audit.events", 0)


def public(keyring: Path) -> Trust:
    """Return the trust of somebody who has public keys alone."""
    kept = [key for key in Keyring.load(keyring).keys if key.algorithm == "Ed25519"]
    return Trust(keys={key.key_id: TrustedKey(key.key_id, "Ed25519", material=key.public) for key in kept})  # type: ignore[union-attr]


def sealed(sample: Sample) -> Store:
    store = open_store(str(sample.folder))
    signer = checkpoints.find_signer(open_signers(f"file:{sample.keyring}", datetime.now(UTC)))
    assert signer is not None
    checkpoints.write_checkpoint(store, LOG, open_trust([f"file:{sample.keyring}"]), signer)
    return store


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    made = make_archive(tmp_path_factory.mktemp("evidence"))
    sealed(made)
    return made


def test_every_event(sample: Sample) -> None:
    """Each event can be proved, byte for byte, to somebody with the public key alone."""
    store, trust = open_store(str(sample.folder)), public(sample.keyring)
    for offset, event in sample.events.items():
        proven = check_evidence(make_evidence(store, LOG, offset), trust)
        assert (proven.event, proven.offset, proven.log) == (event, offset, "audit.events/0")
        assert proven.size == 4


def test_the_same_bytes(sample: Sample) -> None:
    """Evidence is the same bytes whenever it is made."""
    store = open_store(str(sample.folder))
    assert make_evidence(store, LOG, 1001) == make_evidence(store, LOG, 1001)


def test_any_change_is_noticed(sample: Sample) -> None:
    """A bit changed anywhere but in the README, or in what the zip says of itself, proves nothing."""
    store, trust = open_store(str(sample.folder)), public(sample.keyring)
    members = unpacked(make_evidence(store, LOG, 1050))
    second = members["manifest.json"].index(b"\n")
    for name in ("batch.jsonl.gz", "checkpoint.txt", "proof.json", "manifest.json"):
        # Signatures of the statement are not asked: the checkpoint is over the statement itself.
        end = second if name == "manifest.json" else len(members[name])
        for place in range(0, end, 11):
            changed = bytearray(members[name])
            changed[place] ^= 4
            if name == "proof.json" and chr(members[name][place]).isspace():
                continue
            if name == "batch.jsonl.gz" and place == 9:
                # The operating system that gzip names is in no hash but that of the stored segment.
                continue
            with pytest.raises((FormatError, SignatureInvalid, KeyUnavailable)):
                check_evidence(packed(members | {name: bytes(changed)}), trust)


def test_parts_of_different_evidence(sample: Sample) -> None:
    """Parts that are good in themselves and do not belong together prove nothing."""
    store, trust = open_store(str(sample.folder)), public(sample.keyring)
    one, other = (unpacked(make_evidence(store, LOG, offset)) for offset in (1001, 1101))
    for name in ("batch.jsonl.gz", "manifest.json", "proof.json"):
        with pytest.raises(FormatError):
            check_evidence(packed(one | {name: other[name]}), trust)


def test_another_offset(sample: Sample) -> None:
    """Evidence of one event is none of its neighbour."""
    members = unpacked(make_evidence(open_store(str(sample.folder)), LOG, 1001))
    proof = json.loads(members["proof.json"]) | {"offset": 1002}
    with pytest.raises(FormatError, match="offset 1002"):
        check_evidence(packed(members | {"proof.json": json.dumps(proof).encode()}), public(sample.keyring))


def test_nobody_is_trusted(sample: Sample) -> None:
    """Without the key that signed it, evidence cannot be checked, and that is not the same as wrong."""
    data = make_evidence(open_store(str(sample.folder)), LOG, 1001)
    with pytest.raises(KeyUnavailable, match="put the vkey"):
        check_evidence(data, Trust())


def test_another_archive(sample: Sample) -> None:
    """Who trusts one archive takes no evidence of another."""
    data = make_evidence(open_store(str(sample.folder)), LOG, 1001)
    trust = public(sample.keyring)
    with pytest.raises(FormatError, match="of the archive"):
        check_evidence(data, Trust("5a0c7a1e-1111-4222-8333-94b1ce1d2f3a", trust.keys))


@pytest.mark.parametrize(
    ("offset", "said"),
    [(1013, "quarantine"), (1027, "Kafka gave no record"), (999, "accounts for"), (1150, "accounts for")],
)
def test_no_event_there(sample: Sample, offset: int, said: str) -> None:
    """Where there is no event, what is there is said."""
    with pytest.raises(ConfigurationError, match=said):
        make_evidence(open_store(str(sample.folder)), LOG, offset)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    """Before a checkpoint covers an event, what to do is said."""
    growing = Growing(tmp_path)
    growing.append(2)
    with pytest.raises(ConfigurationError, match="custody checkpoint --write"):
        make_evidence(open_store(str(growing.folder)), Log("audit.grows", 0), 3)


def test_hostile_files(sample: Sample) -> None:
    """What is no evidence is refused, whatever it is, without being unpacked."""
    trust = public(sample.keyring)
    good = make_evidence(open_store(str(sample.folder)), LOG, 1001)
    members = unpacked(good)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data + bytes(10_000_000) if name == "batch.jsonl.gz" else data)
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as file:
        for name in members:
            file.writestr(name, members[name])
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("proof.json", members["proof.json"])
    hostile = [b"", b"PK", good[:-30], good[:500], bomb.getvalue(), twice.getvalue(), bytes(FILE_LIMIT + 1)]
    hostile += [packed({name: members[name] for name in members if name != missing}) for missing in members]
    hostile += [
        good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :] for place in range(len(good) - 500, len(good))
    ]
    for data in hostile:
        with contextlib.suppress(FormatError):
            check_evidence(data, trust)
    for data in hostile[:7]:
        with pytest.raises(FormatError):
            check_evidence(data, trust)


def test_commands(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody evidence` writes it, `custody check-evidence` prints event and verdict, and ends as FORMAT.md says."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(sample.folder))
    file = tmp_path / "evidence.zip"
    runner = CliRunner()
    assert runner.invoke(app, ["evidence", "audit.events/0", "1003", "-o", str(file)]).exit_code == 0
    checked = runner.invoke(app, ["check-evidence", str(file), "--keys", f"file:{sample.keyring}"])
    assert checked.exit_code == 0
    assert checked.output.startswith(sample.events[1003].decode())
    assert "Not proved:" in checked.output
    shown = runner.invoke(app, ["check-evidence", str(file), "--keys", f"file:{sample.keyring}", "--json"])
    assert json.loads(shown.output)["event"] == sample.events[1003].decode()
    file.write_bytes(file.read_bytes().replace(b"request-", b"reqvest-"))
    members = unpacked(file.read_bytes())
    file.write_bytes(packed(members | {"checkpoint.txt": members["checkpoint.txt"].replace(b"\n4\n", b"\n5\n")}))
    assert runner.invoke(app, ["check-evidence", str(file), "--keys", f"file:{sample.keyring}"]).exit_code == 13
    nobody = tmp_path / "trust.json"
    nobody.write_text('{"format":"custody/trust/1"}')
    nobody.chmod(0o600)
    file.write_bytes(make_evidence(open_store(str(sample.folder)), LOG, 1003))
    assert runner.invoke(app, ["check-evidence", str(file), "--trust", str(nobody)]).exit_code == 12


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return made.getvalue()
