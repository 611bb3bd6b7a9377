"""A witness co-signs heads that grow out of those it saw, and no other."""

import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from custody import checkpoint, checkpoints
from custody.archive import read_archive
from custody.checkpoint import NoteKey, parse_checkpoint, parse_note
from custody.cli import app
from custody.errors import ConfigurationError
from custody.keys import new_keyring, open_signers
from custody.layout import Log, checkpoint_key, manifest_key
from custody.settings import Settings
from custody.store import open_store
from custody.trust import Trust, open_trust
from custody.witness import Seen, Witness
from tests.sample import Growing

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LOG = Log("audit.grows", 0)


def seal(growing: Growing) -> None:
    uri = f"file:{growing.keyring}"
    signer = checkpoints.find_signer(open_signers(uri, datetime.now(UTC)))
    assert signer is not None
    checkpoints.write_checkpoint(open_store(str(growing.folder)), LOG, open_trust([uri]), signer)


def watch(growing: Growing, folder: Path, trust: Trust | None = None) -> list[Seen]:
    store = open_store(str(growing.folder))
    trusted = open_trust([f"file:{growing.keyring}"]) if trust is None else trust
    return list(Witness(folder).watch(store, trusted, read_archive(store).archive, NOW))


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    made = Growing(tmp_path / "of")
    made.append(3)
    seal(made)
    return made


def test_growth_is_cosigned(growing: Growing, tmp_path: Path) -> None:
    """Heads that grow are co-signed one after another; each co-signature holds over the time and the note."""
    folder = tmp_path / "witness"
    assert [(one.outcome, one.size) for one in watch(growing, folder)] == [("first", 3)]
    assert [one.outcome for one in watch(growing, folder)] == ["unchanged"]
    growing.append(5)
    seal(growing)
    assert [(one.outcome, one.size) for one in watch(growing, folder)] == [("grown", 8)]
    key = Witness(folder).key
    kept = sorted(path for path in folder.rglob("0*") if path.is_file())
    assert [parse_checkpoint(parse_note(path.read_bytes()).text).size for path in kept] == [3, 8]
    note = parse_note(kept[1].read_bytes())
    assert [one.name for one in note.signatures][-1] == key.name
    assert NoteKey.parse(key.vkey).verify(note.text, note.signatures[-1].signature) == NOW.timestamp()
    trusted = checkpoint.checkpoint_keys(open_trust([f"file:{growing.keyring}"]))
    assert checkpoint.verify_note(note, trusted)


def test_another_history_is_refused(growing: Growing, tmp_path: Path) -> None:
    """A head that does not grow out of the one seen is refused, and both signed heads are shown whole."""
    folder = tmp_path / "witness"
    fork = growing.copy(tmp_path / "fork")
    growing.append(2)
    seal(growing)
    watch(growing, folder)
    fork.append(6)
    seal(fork)
    (refused,) = watch(fork, folder)
    assert refused.outcome == "refused"
    assert "another history" in (refused.problem or "")
    assert [parse_checkpoint(parse_note(note.encode()).text).size for note in refused.notes] == [5, 9]
    assert not list(folder.rglob(f"{9:012}"))


def test_two_heads_of_one_size(growing: Growing, tmp_path: Path) -> None:
    """Two roots signed for one size are refused."""
    folder = tmp_path / "witness"
    fork = growing.copy(tmp_path / "fork")
    growing.append(2)
    seal(growing)
    watch(growing, folder)
    fork.append(2)
    seal(fork)
    (refused,) = watch(fork, folder)
    assert refused.problem == "two roots were signed for one size"
    assert len(refused.notes) == 2


def test_a_log_that_went_back(growing: Growing, tmp_path: Path) -> None:
    """A checkpoint that is gone, and a whole log that is gone, are refused."""
    folder = tmp_path / "witness"
    watch(growing, folder)
    (growing.folder / checkpoint_key(LOG, 3)).unlink()
    (refused,) = watch(growing, folder)
    assert "went back" in (refused.problem or "")
    assert [parse_checkpoint(parse_note(note.encode()).text).size for note in refused.notes] == [3]


def test_what_the_archive_shows_instead(growing: Growing, tmp_path: Path) -> None:
    """Of a log that went back, the checkpoint remembered and the largest one that is left are shown."""
    folder = tmp_path / "witness"
    growing.append(2)
    seal(growing)
    watch(growing, folder)
    (growing.folder / checkpoint_key(LOG, 5)).unlink()
    (refused,) = watch(growing, folder)
    assert [parse_checkpoint(parse_note(note.encode()).text).size for note in refused.notes] == [5, 3]


def test_statements_that_are_gone(growing: Growing, tmp_path: Path) -> None:
    """A checkpoint that stays where it was is not enough: the statements that it covers must be there, too."""
    folder = tmp_path / "witness"
    watch(growing, folder)
    (growing.folder / manifest_key(LOG, 2)).unlink()
    (refused,) = watch(growing, folder)
    assert "statements cannot be read" in (refused.problem or "")


def test_a_checkpoint_of_nobody(growing: Growing, tmp_path: Path) -> None:
    """A checkpoint that no trusted key signed, or that was changed, is not co-signed."""
    (refused,) = watch(growing, tmp_path / "witness", Trust())
    assert "none of its signatures" in (refused.problem or "")
    path = growing.folder / checkpoint_key(LOG, 3)
    data = path.read_bytes().replace(b"\n3\n", b"\n4\n")
    path.unlink()
    path.write_bytes(data)
    (refused,) = watch(growing, tmp_path / "witness")
    assert refused.outcome == "refused"


def test_a_root_of_other_statements(growing: Growing, tmp_path: Path) -> None:
    """A first checkpoint whose root is not that of the archive's statements is not co-signed."""
    signer = checkpoints.find_signer(open_signers(f"file:{growing.keyring}", datetime.now(UTC)))
    assert signer is not None
    store = open_store(str(growing.folder))
    path = growing.folder / checkpoint_key(LOG, 3)
    path.unlink()
    path.write_bytes(checkpoint.sign_checkpoint(signer, read_archive(store).archive, LOG, 3, bytes(32)).encode())
    (refused,) = watch(growing, tmp_path / "witness")
    assert "not that of the statements" in (refused.problem or "")


def test_the_folder_is_its_own(tmp_path: Path) -> None:
    """The key is the owner's alone and stays; a folder that others read, or that holds something else, is refused."""
    folder = tmp_path / "witness"
    key = Witness(folder).key
    assert Witness(folder).key == key
    path = folder / "witness.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "private" not in repr(Witness(folder))
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Witness(folder)
    path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="no witness's key"):
        Witness(folder)


def test_commands(growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody checkpoint` prints and writes signed heads; `custody witness` says what it made of each log."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(growing.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    runner = CliRunner()
    printed = runner.invoke(app, ["checkpoint"])
    assert parse_checkpoint(parse_note(printed.output.encode()).text).size == 3
    growing.append(1)
    written = runner.invoke(app, ["checkpoint", "--write", "audit.grows/0"])
    assert parse_checkpoint(parse_note(written.output.encode()).text).size == 4
    shown = runner.invoke(app, ["witness", "--state", str(tmp_path / "witness")])
    assert shown.exit_code == 0
    assert "audit.grows/0: first, size 4" in shown.output
    (growing.folder / checkpoint_key(LOG, 4)).unlink()
    refused = runner.invoke(app, ["witness", "--state", str(tmp_path / "witness")])
    assert refused.exit_code == 13
    assert f"{read_archive(open_store(str(growing.folder))).archive}/audit.grows/0" in refused.output


def test_a_keyring_for_checkpoints_alone(growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints by the setting's own keyring hold; its keys are trusted for nothing else."""
    ring = tmp_path / "checkpoints.json"
    new_keyring(ring, datetime(2026, 1, 1, tzinfo=UTC), ed25519=True)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(growing.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    monkeypatch.setenv("CUSTODY_CHECKPOINT_KEYS", f"file:{ring}")
    (growing.folder / checkpoint_key(LOG, 3)).unlink()
    runner = CliRunner()
    assert runner.invoke(app, ["checkpoint", "--write"]).exit_code == 0
    assert runner.invoke(app, ["verify"]).exit_code == 0
    monkeypatch.delenv("CUSTODY_CHECKPOINT_KEYS")
    assert runner.invoke(app, ["verify"]).exit_code == 13
    trust = checkpoints.trust_own(open_trust([f"file:{growing.keyring}"]), Settings(checkpoint_keys=f"file:{ring}"))
    assert set(trust.keys) == set(open_trust([f"file:{growing.keyring}"]).keys)


def test_a_redirected_checkpoint(growing: Growing) -> None:
    """What a pipe gets is the note byte for byte, so that it can be checked by others."""
    done = subprocess.run(
        [Path(sys.executable).with_name("custody"), "checkpoint", str(LOG), "--archive", growing.folder],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    assert done.stdout == (growing.folder / checkpoint_key(LOG, 3)).read_bytes()
