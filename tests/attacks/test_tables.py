"""Row 37: tables that differ from the archive are found, and are no tampering: they can be made again."""

import hmac
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from custody.findings import Finding, Severity
from custody.format.envelope import Algorithm
from custody.format.layout import Log
from custody.query import tables
from custody.query.tables import list_tables
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.verify.run import verify
from custody.verify.scope import Scope, Span
from tasks.audit.tables import TableWriter, check_tables
from tests.attacks.registry import end_key, with_key
from tests.attacks.stores import refusing
from tests.helpers.archives import (
    ARCHIVE_ID,
    KEY_ID,
    NOTE_KEY,
    NOTE_NAME,
    SECRET,
    message,
    signature,
    two_lines,
    with_signatures,
)
from tests.helpers.scene import Scene

LOG = Log("audit", 0)


@dataclass(frozen=True)
class Hmac:
    """Signs with a secret."""

    secret: bytes = SECRET
    key_id: str = KEY_ID
    algorithm: Algorithm = "HMAC-SHA256"

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(self.secret, message, "sha256")


@dataclass(frozen=True)
class Ed25519:
    """Signs with the key of checkpoints."""

    key_id: str = NOTE_NAME
    algorithm: Algorithm = "Ed25519"

    def sign(self, message: bytes) -> bytes:
        return NOTE_KEY.sign(message)


FORM = "custody/tables/1"


@pytest.fixture
def tabled(scene: Scene) -> Scene:
    """The good archive with tables of its main log."""
    scene.delete(*scene.listed("tables/"))
    store = open_store(str(scene.root))
    end = len(scene.main.lines)
    with TableWriter(store, LOG, 0, end, archive=ARCHIVE_ID, signers=(Hmac(), Ed25519())) as writer:
        verify(store, scene.trust, now=scene.now, sink=writer, scope=Scope({LOG: (Span(0, end),)}, listing=False))
        assert writer.finish() == 136
    return scene


def checked(scene: Scene, store: Store) -> list[Finding]:
    return list(check_tables(store, list_tables(store), ARCHIVE_ID, LOG, 0, len(scene.main.lines), scene.trust))


def found(scene: Scene) -> list[str]:
    findings = checked(scene, open_store(str(scene.root)))
    assert {one.severity for one in findings} <= {Severity.POLICY}
    return [one.finding for one in findings]


def parquet(scene: Scene) -> list[str]:
    return [key for key in scene.listed("tables/") if key.endswith(".parquet")]


def put_as(scene: Scene, data: bytes, day: str, end: int) -> None:
    """Put a table under the key that its bytes have."""
    scene.put(tables.table_key(LOG, day, 0, end, 1, 1, data), data)


def edited(data: bytes, change: Callable[[Any], Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(data))), out)
    return out.getvalue()


def changed(scene: Scene, key: str) -> None:
    scene.put(key, edited(scene.read(key), lambda table: table.slice(1)))


def truncated(scene: Scene, key: str) -> None:
    scene.put(key, scene.read(key)[:-100])


def noise(scene: Scene, key: str) -> None:
    scene.put(key, b"no table")


def a_row_less_under_its_own_key(scene: Scene, key: str) -> None:
    data = edited(scene.read(key), lambda table: table.slice(1))
    scene.delete(key)
    put_as(scene, data, key.split("/")[1].removeprefix("day="), len(scene.main.lines))


def of_statements_that_are_not_there(scene: Scene, key: str) -> None:
    """Plant a table whose range hides the true one: who reads tables would see what it says."""
    data = edited(scene.read(key), lambda table: table.filter(pc.field("event_type") != "auth_attempt"))
    put_as(scene, data, key.split("/")[1].removeprefix("day="), 10**11)


def edited_under_its_own_key(scene: Scene, key: str) -> None:
    """Change what an event says, keep the number of rows, and give the file the name that its bytes have."""

    def change(table: Any) -> Any:
        place = table.schema.get_field_index("api_key_id")
        return table.set_column(place, "api_key_id", pa.array(["somebody-else"] * table.num_rows, pa.string()))

    data = edited(scene.read(key), change)
    scene.delete(key)
    put_as(scene, data, key.split("/")[1].removeprefix("day="), len(scene.main.lines))


def the_list(scene: Scene) -> str:
    (key,) = scene.listed("tables/signed/")
    return key


def by_both(line: bytes) -> bytes:
    return two_lines(line, FORM)


def by_one(signer: Hmac | Ed25519) -> Callable[[bytes], bytes]:
    """Sign as manifests are, with one key."""

    def sign(line: bytes) -> bytes:
        one = signature(signer.key_id, signer.algorithm, signer.sign(message(line, FORM)))
        return with_signatures(line, [one])

    return sign


def listed_by(sign: Callable[[bytes], bytes], rows: int = 136, **changes: Any) -> Callable[[Scene, str], None]:
    """Name an edited table in a list of one's own, in the place of the true one."""

    def apply(scene: Scene, key: str) -> None:
        edited_under_its_own_key(scene, key)
        (new,) = parquet(scene)
        made = json.loads(scene.read(the_list(scene)).split(b"\n")[0])
        (ref,) = made["files"]
        ref.update(key=new, sha256=sha256(scene.read(new)).hexdigest(), rows=rows)
        scene.delete(the_list(scene))
        data = sign(json.dumps(made | changes).encode())
        scene.put(tables.list_key(LOG, 0, len(scene.main.lines), data), data)

    return apply


def list_of_a_key_that_ended(key_id: str) -> Callable[[Scene, str], None]:
    """Sign a list with a key that leaked: when it was made nobody can tell."""

    def apply(scene: Scene, key: str) -> None:
        listed_by(by_both)(scene, key)
        end_key(scene, key_id)

    return apply


def list_outside_a_span(scene: Scene, key: str) -> None:
    """Sign a list when the key might not sign any more."""
    listed_by(by_both)(scene, key)
    with_key(scene, NOTE_NAME, to=scene.now - timedelta(days=10_000))


def list_edited(scene: Scene, key: str) -> None:
    edited_under_its_own_key(scene, key)
    (new,) = parquet(scene)
    place = the_list(scene)
    made = scene.read(place).replace(key.encode(), new.encode())
    scene.put(place, made)


def list_removed(scene: Scene, _: str) -> None:
    scene.delete(the_list(scene))


def list_that_is_noise(scene: Scene, _: str) -> None:
    scene.put(the_list(scene), b"\xff\n{}\n")


ATTACKS = {
    "changed": changed,
    "truncated": truncated,
    "noise": noise,
    "a row less under its own key": a_row_less_under_its_own_key,
    "edited under its own key": edited_under_its_own_key,
    "of statements that are not there": of_statements_that_are_not_there,
    "list edited": list_edited,
    "list removed": list_removed,
    "list that is noise": list_that_is_noise,
    "list by an unknown key": listed_by(partial(two_lines, form=FORM, secret=b"x" * 32, key_id="who")),
    "list by a wrong secret": listed_by(partial(two_lines, form=FORM, secret=b"x" * 32)),
    "list by the HMAC key alone": listed_by(by_one(Hmac())),
    "list by the Ed25519 key alone": listed_by(by_one(Ed25519())),
    "list by an HMAC key that ended": list_of_a_key_that_ended(KEY_ID),
    "list by an Ed25519 key that ended": list_of_a_key_that_ended(NOTE_NAME),
    "list outside a span": list_outside_a_span,
    "list of another archive": listed_by(by_both, archive="0" * 8 + ARCHIVE_ID[8:]),
    "list of another log": listed_by(by_both, log="audit/1"),
    "list of nothing": listed_by(by_both, files=[]),
    "list of a row less": listed_by(by_both, rows=135),
}


def test_tables_as_they_were_made(tabled: Scene) -> None:
    """Tables that nobody touched are no finding."""
    assert found(tabled) == []
    (key,) = parquet(tabled)
    assert tables.parse_table_key(key)
    assert sha256(tabled.read(key)).hexdigest()[:16] in key
    assert tables.parse_list_key(the_list(tabled)) == (LOG, 0, len(tabled.main.lines))


@pytest.mark.parametrize("attack", ATTACKS)
def test_tables_that_differ(tabled: Scene, attack: str) -> None:
    """Tables that say other than the archive are found, and removing them is all that is to do (row 37)."""
    (key,) = parquet(tabled)
    ATTACKS[attack](tabled, key)
    assert set(found(tabled)) == {"tables"}
    tabled.delete(*tabled.listed("tables/"))
    assert found(tabled) == []


@pytest.mark.parametrize("part", [tables.SIGNED, ".parquet"])
def test_a_store_that_does_not_answer_says_nothing_against_tables(tabled: Scene, part: str) -> None:
    """Where a list, or a table, is not given for now, no advice is to remove one; what could not be read is said."""
    (one,) = checked(tabled, refusing(part)(open_store(str(tabled.root))))
    assert (one.finding, one.severity) == ("unreadable", Severity.UNVERIFIABLE)
    assert "cannot be checked: 503 for tables/" in one.message


def test_a_key_that_does_not_answer_says_nothing_against_tables(tabled: Scene) -> None:
    """So it is where neither signature of the list can be checked, and a wrong table is found once one can."""
    (key,) = parquet(tabled)
    changed(tabled, key)
    trusted = tabled.trust
    with_key(tabled, material=None)
    assert found(tabled) == ["tables"]
    with_key(tabled, NOTE_NAME, material=None)
    (one,) = checked(tabled, open_store(str(tabled.root)))
    assert (one.finding, one.log, one.sequence) == ("unreadable", "audit/0", None)
    tabled.trust = trusted
    assert found(tabled) == ["tables"]


def test_tables_are_listed_once(tabled: Scene) -> None:
    """However many logs and ranges are checked, their tables are listed once, and each range knows its own lists."""
    store = open_store(str(tabled.root))
    listed = list_tables(store)
    tabled.delete(*tabled.listed("tables/"))
    end = len(tabled.main.lines)
    assert set(listed.lists) == {(LOG, 0, end)}
    assert len(list(check_tables(store, listed, ARCHIVE_ID, LOG, 0, end, tabled.trust))) == 1
    assert list(check_tables(store, listed, ARCHIVE_ID, LOG, 1, end, tabled.trust)) == []
    assert list(check_tables(store, listed, ARCHIVE_ID, Log("orders", 0), 0, end, tabled.trust)) == []
