"""Go's own notes and transparency logs, which no one here wrote, agree with what custody writes."""

import json
import shutil
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody import checkpoints
from custody.archive import read_archive
from custody.checkpoint import NoteKey, origin_of, parse_note
from custody.keys import open_signers
from custody.layout import Log, checkpoint_key, manifest_key
from custody.manifest import parse
from custody.proofs import Proofs
from custody.store import open_store
from custody.trust import open_trust
from custody.witness import Witness
from tests.sample import Growing
from tests.servers.require import unavailable

HERE = Path(__file__).parent / "tlog"
LOG = Log("audit.grows", 0)
WITNESSED = datetime(2026, 11, 24, 12, tzinfo=UTC)
Check = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Build the Go program, and return what it says of an input."""
    if shutil.which("go") is None:
        unavailable("Go is not installed: notes and roots are not checked by golang.org/x/mod")
    program = tmp_path_factory.mktemp("go") / "tlog"
    built = subprocess.run(
        ["go", "build", "-mod=readonly", "-o", str(program), "."],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if built.returncode:
        unavailable(f"the Go program could not be built: {built.stderr[-500:]}")

    def run(given: dict[str, Any]) -> str:
        ran = subprocess.run(
            [str(program)], input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == (0 if ran.stdout == "ok\n" else 1)
        return ran.stdout.strip()

    return run


def sealed(root: Path, size: int, index: int, older: int) -> dict[str, Any]:
    """Write an archive of so many statements with a checkpoint, and return what the Go program is to check of it."""
    growing = Growing(root)
    growing.append(size)
    uri = f"file:{growing.keyring}"
    store = open_store(str(growing.folder))
    signer = checkpoints.find_signer(open_signers(uri, datetime.now(UTC)))
    assert signer is not None
    checkpoints.write_checkpoint(store, LOG, open_trust([uri]), signer)
    note = store.read(checkpoint_key(LOG, size), limit=10**6)
    assert parse_note(note).signatures[0].name == signer.key_id
    lines = [parse(store.read(manifest_key(LOG, one), limit=10**6)).line for one in range(size)]
    proofs = Proofs(store, LOG)
    witness = Witness(root / "witness")
    archive = read_archive(store).archive
    (seen,) = witness.watch(store, open_trust([uri]), archive, WITNESSED)
    assert (seen.outcome, seen.size) == ("first", size)
    return {
        "statements": [b64encode(line).decode() for line in lines],
        "note": note.decode(),
        "vkey": NoteKey(signer.key_id, signer.public).vkey,  # type: ignore[attr-defined]
        "origin": origin_of(signer.key_id, archive, LOG),
        "index": index,
        "inclusion": [node.hex() for node in proofs.inclusion(index, size)],
        "older": older,
        "consistency": [node.hex() for node in proofs.consistency(older, size)],
        "cosigned": (root / "witness" / archive / str(LOG) / f"{size:012}").read_text(),
        "witness": witness.key.vkey,
        "time": int(WITNESSED.timestamp()),
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("size", "index", "older"), [(1, 0, 1), (2, 1, 1), (7, 6, 4), (8, 3, 5), (13, 12, 7), (21, 0, 20)]
)
def test_go_agrees(check: Check, tmp_path: Path, size: int, index: int, older: int) -> None:
    """Note, root, inclusion and consistency are what Go computes from the statements, and the cosignature holds."""
    assert check(sealed(tmp_path, size, index, older)) == "ok"


@pytest.mark.timeout(300)
def test_go_refuses(check: Check, tmp_path: Path) -> None:
    """What was changed, Go refuses: so the agreement above says something."""
    good = sealed(tmp_path, 5, 2, 3)
    other = b64encode(b'{"format":"custody/manifest/1"}').decode()
    stranger = Witness(tmp_path / "stranger").key
    lines = good["cosigned"].splitlines(keepends=True)
    assert [line.split(" ")[1] for line in lines[-2:]] == [good["vkey"].split("+")[0], stranger.name]
    cosignature = b64decode(lines[-1].split(" ")[2])
    # The time is signed, too: a second later it is another.
    later = cosignature[:11] + bytes([cosignature[11] ^ 1]) + cosignature[12:]
    plain = NoteKey(stranger.name, b64decode(good["witness"].split("+", 2)[2])[1:])
    changed = {
        "note": good | {"note": good["note"].replace("\n5\n", "\n6\n")},
        "root": good | {"statements": [*good["statements"][:4], other]},
        "inclusion": good | {"index": 3},
        "consistency": good | {"older": 2},
        "cosigned, by nobody": good | {"cosigned": good["note"]},
        "cosigned, by a stranger": good | {"witness": stranger.vkey},
        "cosigned, by a key of another type": good | {"witness": plain.vkey},
        "cosigned, at another time": good | {"time": good["time"] + 1},
        "cosigned, with a time that was changed": good
        | {"cosigned": "".join([*lines[:-1], f"— {stranger.name} {b64encode(later).decode()}\n"])},
        "cosigned, with a text that was changed": good | {"cosigned": good["cosigned"].replace("\n5\n", "\n6\n")},
    }
    for part, given in changed.items():
        assert check(given).startswith(part.split(",")[0]), part
