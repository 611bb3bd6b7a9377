"""Asking an archive in SQL: a query, an audit that makes tables, and the row that a line becomes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import custody
from custody.format.layout import Log
from custody.format.manifest import Batch
from custody.query import tables
from custody.verify.work import Work
from tasks.audit.conclude import conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.settings import AuditSettings, Settings

BATCH = Batch(
    number=3, first_offset=10, next_offset=11, events=1, start=0, size=0, inflated=0, sha256="", min_time="",
    max_time="", kafka_time=None, leaves=None,
)  # fmt: skip
WORK = Work("audit/0", 5, 10, 11, None, [], {}, None, [], sealed_at="2026-01-01T00:00:00.000000Z")


def ask(archive: Path | str, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    connection = custody.connect(str(archive))
    try:
        rows: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return rows
    finally:
        connection.close()


def audit(folder: Path | str, keyring: Path, pieces: int = 2, **more: Any) -> None:
    """Audit an archive, which makes its tables."""
    given = Settings(archive=str(folder), keys=f"file:{keyring}", audit=AuditSettings(piece_statements=pieces), **more)
    plan = plan_audit(given, Request(), datetime.now(UTC))
    conclude(given, plan, list(verify_pieces(given, plan, plan.pieces)))


def row(line: bytes) -> dict[str, Any]:
    """Return the row that a line becomes."""
    rows = tables.Rows(Log("audit", 0))
    rows.add(WORK, msgspec.structs.replace(BATCH, next_offset=10 + line.count(b"\n") + 1), line + b"\n")
    (found,) = rows.take().to_pylist()
    return dict(found)
