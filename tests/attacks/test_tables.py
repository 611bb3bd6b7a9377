"""Row 37: tables that differ from the archive are found, and are no tampering: they can be made again."""

import io
from collections.abc import Callable
from hashlib import sha256

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from custody import tables
from custody.findings import Severity
from custody.layout import Log
from custody.store import open_store
from custody.verify import Scope, Span, verify
from tasks.report import TableWriter, check_tables
from tests.attacks.archive import Scene

LOG = Log("audit", 0)


@pytest.fixture
def tabled(scene: Scene) -> Scene:
    """The good archive with tables of its main log."""
    scene.delete(*scene.listed("tables/"))
    store = open_store(str(scene.root))
    end = len(scene.main.lines)
    with TableWriter(store, LOG, 0, end) as writer:
        verify(store, scene.trust, now=scene.now, sink=writer, scope=Scope({LOG: (Span(0, end),)}, listing=False))
        assert writer.finish() == 136
    return scene


def found(scene: Scene) -> list[str]:
    findings = check_tables(open_store(str(scene.root)), LOG, 0, len(scene.main.lines))
    assert {one.severity for one in findings} <= {Severity.POLICY}
    return [one.finding for one in findings]


def put_as(scene: Scene, data: bytes, day: str, end: int) -> None:
    """Put a table under the key that its bytes have."""
    scene.put(tables.table_key(LOG, day, 0, end, 1, 1, data), data)


def edited(data: bytes, change: Callable[[object], object]) -> bytes:
    out = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(data))), out)
    return out.getvalue()


def changed(scene: Scene, key: str) -> None:
    scene.put(key, edited(scene.read(key), lambda table: table.slice(1)))  # type: ignore[attr-defined]


def truncated(scene: Scene, key: str) -> None:
    scene.put(key, scene.read(key)[:-100])


def noise(scene: Scene, key: str) -> None:
    scene.put(key, b"no table")


def a_row_less_under_its_own_key(scene: Scene, key: str) -> None:
    data = edited(scene.read(key), lambda table: table.slice(1))  # type: ignore[attr-defined]
    scene.delete(key)
    put_as(scene, data, key.split("/")[1].removeprefix("day="), len(scene.main.lines))


def of_statements_that_are_not_there(scene: Scene, key: str) -> None:
    """Plant a table whose range hides the true one: who reads tables would see what it says."""
    data = edited(scene.read(key), lambda table: table.filter(pc.field("event_type") != "auth_attempt"))  # type: ignore[attr-defined]
    put_as(scene, data, key.split("/")[1].removeprefix("day="), 10**11)


ATTACKS = [changed, truncated, noise, a_row_less_under_its_own_key, of_statements_that_are_not_there]


def test_tables_as_they_were_made(tabled: Scene) -> None:
    """Tables that nobody touched are no finding."""
    assert found(tabled) == []
    (key,) = tabled.listed("tables/")
    assert tables.parse_table_key(key)
    assert sha256(tabled.read(key)).hexdigest()[:16] in key


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.__name__)
def test_tables_that_differ(tabled: Scene, attack: Callable[[Scene, str], None]) -> None:
    """Tables that say other than the archive are found, and removing them is all that is to do (row 37)."""
    (key,) = tabled.listed("tables/")
    attack(tabled, key)
    assert set(found(tabled)) == {"tables"}
    tabled.delete(*tabled.listed("tables/"))
    assert found(tabled) == []
