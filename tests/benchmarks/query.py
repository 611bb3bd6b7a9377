"""How fast an archive answers: `uv run python -m tests.benchmarks.query`.

Writes an archive of ten million events by the writer's own code, lets an audit make its tables, and asks them as a user
would. Reports; judges nothing.
"""

import argparse
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import custody
from tasks.audit.conclude import conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.settings import AuditSettings, Settings
from tests.benchmarks.verify import SEED, build

QUERIES = {
    "events by type": "SELECT event_type, count(*) FROM events GROUP BY event_type",
    "events by minute and type": "SELECT date_trunc('minute', time), event_type, count(*) FROM events GROUP BY ALL",
    "denials by resource": """SELECT resource_type, count(*) FROM events WHERE NOT permission_granted
                              GROUP BY resource_type""",
    "slowest queries": """SELECT query_hash, quantile_cont(execution_time, 0.99) FROM events
                          WHERE event_type = 'query_executed' GROUP BY query_hash ORDER BY 2 DESC LIMIT 10""",
}


def main() -> None:
    """Write, audit, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = folder / "archive"
        keyring, _ = build(str(archive), folder, events)
        settings = Settings(
            archive=str(archive), keys=f"file:{keyring}", audit=AuditSettings(piece_statements=20, report=False)
        )
        plan = plan_audit(settings, Request(), datetime.now(UTC))
        began = time.process_time()
        outcome = conclude(settings, plan, list(verify_pieces(settings, plan, plan.pieces)))
        seconds = time.process_time() - began
        stored = sum(path.stat().st_size for path in (archive / "tables").rglob("*.parquet"))
        print(f"seed {SEED}; {outcome.counts['events']:,} events: {outcome.verdict}")
        print(f"audit with tables: {events / seconds:,.0f} events per CPU second; {stored / events:.1f} bytes an event")
        print(f"peak memory of the audit: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
        began = time.monotonic()
        connection = custody.connect(str(archive))
        print(f"connect: {time.monotonic() - began:.2f} s")
        for title, sql in QUERIES.items():
            taken = []
            for _ in range(5):
                began = time.monotonic()
                rows = connection.execute(sql).fetchall()
                taken.append(time.monotonic() - began)
            print(f"{title}: {', '.join(f'{one:.2f}' for one in taken)} s, {len(rows)} rows")
        connection.close()


if __name__ == "__main__":
    main()
