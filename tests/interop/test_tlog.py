"""Go's own notes and transparency logs, which no one here wrote, agree with what custody writes."""

import json
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.archive.evidence import unpack
from custody.archive.forms import statements_of
from custody.archive.prove import make_evidence
from custody.archive.witness import Witness
from custody.format.layout import checkpoint_key, manifest_key
from custody.format.manifest import parse
from custody.tlog.checkpoint import NoteKey, origin_of, parse_note
from custody.tlog.head import Head
from custody.tlog.proofs import Proofs
from tests.helpers.leafy import Leafy
from tests.servers.go import build

HERE = Path(__file__).parent / "tlog"
WITNESSED = datetime.now(UTC)
Check = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def check() -> Check:
    """Build the Go program, and return what it says of an input."""
    program = build(HERE, "tlog", 240)

    def run(given: dict[str, Any]) -> str:
        ran = subprocess.run(
            [str(program)], input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == (0 if ran.stdout == "ok\n" else 1)
        return ran.stdout.strip()

    return run


def sealed(root: Path, size: int, index: int, older: int) -> dict[str, Any]:
    """Write an archive of so many statements with a checkpoint, and return what the Go program is to check of it."""
    leafy = Leafy(root / "of")
    for start in range(0, 2 * size, 2):
        leafy.append([start, start + 1])
    leafy.checkpoint()
    signer = leafy.signers.ed25519()
    note = (leafy.folder / checkpoint_key(leafy.log, size)).read_bytes()
    assert parse_note(note).signatures[0].name == signer.key_id
    manifests = [parse((leafy.folder / manifest_key(leafy.log, one)).read_bytes()) for one in range(size)]
    assert {len(one.message) for one in manifests} == {84}
    proofs = Proofs(leafy.store, str(leafy.log), statements_of(leafy.log))
    witness = Witness(root / "witness", WITNESSED)
    (seen,) = witness.watch(leafy.store, leafy.public, WITNESSED)
    assert (seen.outcome, seen.size) == ("first", size)
    assert seen.path is not None
    # The proofs are those that evidence holds.
    auditor = replace(leafy.public, heads={str(leafy.log): Head(older, proofs.root(older))})
    made = make_evidence(leafy.store, leafy.log, 2 * index, leafy.own, WITNESSED, note=seen.path.read_bytes(),
                         auditor=auditor)  # fmt: skip
    members = unpack(made.data)
    proof = json.loads(members["proof.json"])
    assert proof["inclusion"] == [node.hex() for node in proofs.inclusion(index, size)]
    consistency = [one["proof"] for one in proof["consistency"] if one["size"] == older]
    return {
        "statements": [b64encode(one.line).decode() for one in manifests],
        "note": note.decode(),
        "vkey": NoteKey(signer.key_id, signer.public).vkey,
        "origin": origin_of(leafy.id, leafy.log),
        "index": index,
        "inclusion": proof["inclusion"],
        "older": older,
        "consistency": consistency[0] if older < size else [],
        "cosigned": members["checkpoint.txt"].decode(),
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
    stranger = Witness(tmp_path / "stranger", WITNESSED).key
    lines = good["cosigned"].splitlines(keepends=True)
    assert [line.split(" ")[1] for line in lines[-2:]] == [good["vkey"].split("+")[0], good["witness"].split("+")[0]]
    cosignature = b64decode(lines[-1].split(" ")[2])
    # The time is signed, too: a second later it is another.
    later = cosignature[:11] + bytes([cosignature[11] ^ 1]) + cosignature[12:]
    plain = NoteKey(good["witness"].split("+")[0], b64decode(good["witness"].split("+", 2)[2])[1:])
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
        | {"cosigned": "".join([*lines[:-1], f"— {plain.name} {b64encode(later).decode()}\n"])},
        "cosigned, with a text that was changed": good | {"cosigned": good["cosigned"].replace("\n5\n", "\n6\n")},
    }
    for part, given in changed.items():
        assert check(given).startswith(part.split(",")[0]), part
