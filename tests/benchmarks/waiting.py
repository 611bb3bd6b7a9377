"""What commands wait for a bucket: `uv run python -m tests.benchmarks.waiting`.

Makes an archive of some logs, audits it, and lets it grow by as many statements as a drain of each minute seals in some
hours. Then it puts all of that into a real S3 server (SeaweedFS), and runs the commands that read what is new, each in
a process of its own. Each answer of the server comes some milliseconds later, as from a bucket in the same region.
Prints the requests of each command, the seconds that it took, start included, and the seconds that its requests would
take one after the other. Judges nothing.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.helpers.aged import Requests
from tests.helpers.sample import Growing
from tests.servers.s3 import SeaweedServer

SECONDS = 900
YEARS = ("--since", "2026-01-01T00:00Z", "--until", "2027-01-01T00:00Z")
COUNT = ("query", "SELECT count(*) FROM events")


def steps(folder: Path, archive: str, trust: Path) -> Sequence[tuple[str, ...]]:
    """Return the commands in the order in which they run. From the audit on, nothing is new.

    With --trust, a command has public keys alone.
    """
    return (
        COUNT,
        (*COUNT, "--since", "1h"),
        (*COUNT, "--trust", str(trust)),
        ("verify",),
        ("verify", "--chain-only"),
        ("detect", "run"),
        ("export", "--ocsf", *YEARS, "--output", str(folder / "exported")),
        ("report", "--output", str(folder / "report.html")),
        ("backfill", *YEARS, "--to", "folder", "--folder", str(folder / "copied")),
        ("copy", archive, str(folder / "copy"), "--no-verify"),
        ("audit",),
        COUNT,
        ("audit",),
        ("checkpoint",),
        ("checkpoint", "--write"),
        ("roll",),
        ("roll",),
    )


def run(command: Sequence[str], environment: Mapping[str, str], journal: Path, delay: float) -> tuple[int, float]:
    """Run a command; return its requests, and its seconds."""
    journal.unlink(missing_ok=True)
    counted = [sys.executable, "-m", "tests.benchmarks.counted", str(journal), *command]
    if "--trust" in command:
        environment = {name: value for name, value in environment.items() if name != "CUSTODY_KEYS"}
    begin = time.perf_counter()
    done = subprocess.run(
        counted,
        env={**os.environ, **environment, "COUNTED_DELAY": str(delay)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    if done.returncode not in {0, 3}:
        raise SystemExit(f"custody {' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return sum(Requests.of_journal(journal).by_kind.values()), time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=2)
    parser.add_argument("--statements", type=int, default=300, help="of each log, since the audit")
    parser.add_argument("--audited", type=int, default=60, help="of each log, before the audit")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds by which each answer comes later")
    options = parser.parse_args()
    console = Console(highlight=False, width=160)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="custody-waiting-") as name:
        folder = Path(name)
        begun = datetime.now(UTC) - timedelta(minutes=options.audited + options.statements + 5)
        logs = [Growing(folder / "site", partition, begun) for partition in range(options.logs)]
        for log in logs:
            log.append(options.audited)
        keys = {"CUSTODY_KEYS": f"file:{logs[0].keyring}"}
        run(("audit",), {**keys, "CUSTODY_ARCHIVE": str(logs[0].folder)}, folder / "requests", 0)
        for log in logs:
            log.append(options.statements)
        trust = logs[0].publish()
        with SeaweedServer(folder / "seaweed") as server:
            bucket, client = server.make_bucket(), server.client()
            for path in logs[0].folder.rglob("*"):
                if path.is_file():
                    key = f"archive/{path.relative_to(logs[0].folder).as_posix()}"
                    client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
            client.close()
            at = {"CUSTODY_ARCHIVE": f"s3://{bucket}/archive", "CUSTODY_S3__ENDPOINT_URL": server.endpoint_url}
            environment = {**keys, **at, **server.environment()}
            took = [
                (command, *run(command, environment, folder / "requests", options.delay))
                for command in steps(folder, at["CUSTODY_ARCHIVE"], trust)
            ]
    title = f"{options.logs} logs, {options.statements} new statements each, {options.delay * 1000:.0f} ms an answer"
    table = Table(title, "requests", "seconds", "one after the other")
    for command, requests, seconds in took:
        label = " ".join(part for part in command if not part.startswith("/"))
        table.add_row(label, f"{requests:,}", f"{seconds:.1f}", f"{requests * options.delay:.0f}")
    console.print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load_before:.1f} before")
    console.print(table)


if __name__ == "__main__":
    main()
