"""The demo: the real flow drains an embedded Kafka into a folder, which is verified; then a copy is tampered with.

It also makes evidence of one event, as the operator, and checks the archive and that evidence with public keys only, as
an auditor. At the end it audits the archive and writes the report. Each printed command that begins with `$` can be run
as it is, in the folder in which the demo ran.

The Kafka is librdkafka's mock cluster. It runs in this process and keeps only a few MiB a partition, so events are
produced in rounds, and each round is drained before the next. Prefect uses a temporary database. The archive, its
keyring, its trust.json, the evidence and the tampered copy stay in the folder; a second run adds another topic and
another copy.
"""

import itertools
import os
import random
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from custody.archive.reader import list_logs
from custody.archive.writer import create_archive
from custody.cli import render
from custody.cli.main import main
from custody.errors import ConfigurationError, CustodyError, TransientSourceError, counted
from custody.format.layout import Log
from custody.keys import trust_file
from custody.keys.keyring import new_keyring
from custody.keys.open import open_public, open_signers
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.report import Report
from custody.verify.run import verify
from flows.operate import deploy, up
from flows.operate.sample import invalid_values, sample_events
from flows.summaries import drain_table
from tasks.drain.clients import make_producer
from tasks.drain.log_run import LogResult

PARTITIONS = 4
"""Partitions that the mock cluster gives a topic when it is created by producing to it."""
ROUND = 60_000
"""Events in a round; the mock cluster keeps twice as many."""
INVALID_EVERY = 500
_SEED = 1
_DEMO = re.compile(r"demo-([1-9][0-9]{0,8})")
"""Names of its topics."""
_COPY = "tampered-"
"""Prefix of the names of tampered copies; the topic follows."""

_SUMS = ("events", "quarantined", "skipped", "lost", "segments", "statements", "bytes_in", "bytes_out")
"""Fields of a log's result that are summed, over the rounds and over the logs."""


def demo(folder: Path, events: int) -> None:
    """Run the demo.

    Args:
        folder: folder of the archive and the keyring; they may be there already.
        events: number of events to produce; some invalid records are added.

    Raises:
        CustodyError: a result is not the promised one; the message says which.
    """
    console = render.console()
    begin = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {folder} cannot be made: {error.strerror}; name another one with --dir"
        ) from None
    archive, keyring, trust = folder / "archive", folder / "keyring.json", folder / "trust.json"
    _refuse_used(folder, archive, keyring, trust)
    _init(archive, keyring, trust)
    topic = new_topic(folder)
    # The mock cluster logs a warning when it starts, and whenever a client disconnects.
    embedded = {"bootstrap.servers": "embedded", "test.mock.num.brokers": 1, "log_level": 0}
    producer = make_producer({**embedded, "compression.type": "zstd", "linger.ms": 20})
    servers = ",".join(f"{broker.host}:{broker.port}" for broker in producer.list_topics(timeout=10).brokers.values())
    drain_variables = {
        "CUSTODY_ARCHIVE": str(archive.resolve()),
        "CUSTODY_KEYS": f"file:{keyring.resolve()}",
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": servers,
        "CUSTODY_KAFKA__TOPICS": topic,
        # So that evidence of one event shows no other event.
        "CUSTODY_DRAIN__EVENT_LEAVES": "true",
        **up.server_variables(f"custody:{secrets.token_urlsafe(32)}", 0),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    with _environment(drain_variables):
        results, produced, seconds = _rounds(console, producer, topic, events)
    with console.status("Verifying: every signature, every hash, every line …"):
        report = verify(open_store(str(archive)), open_trust([f"file:{keyring}"]), now=datetime.now(UTC))
    console.print(drain_table(results))
    total = _sum(results)
    console.print(_summary(total, seconds, report))
    _check(total, produced, report, archive, topic)
    with _environment({}):
        _audit(console, folder, Log(topic, 0))
        _tamper(console, folder, Log(topic, 0))
        _report(console, folder)
    _print_next_steps(console, folder, time.monotonic() - begin)


def _refuse_used(folder: Path, archive: Path, keyring: Path, trust: Path) -> None:
    """Refuse a folder that has keys or an archive, unless an earlier demo made them.

    Raises:
        ConfigurationError: they are somebody's own.
    """
    there = [path.name for path in (archive, keyring, trust) if path.exists()]
    if not there:
        return
    logs = list_logs(open_store(str(archive)))
    if not logs or not all(_DEMO.fullmatch(log.topic) for log in logs):
        raise ConfigurationError(
            f"the folder {folder} has {' and '.join(there)}, which may not be a demo's: name another one with --dir"
        )


def _init(archive: Path, keyring: Path, trust: Path) -> None:
    """Create the keys, the archive and trust.json, as `custody init` does, unless they exist."""
    now = datetime.now(UTC)
    if not keyring.exists():
        new_keyring(keyring, now)
    uri = f"file:{keyring}"
    file = create_archive(open_store(str(archive)), open_signers(uri, now).both)
    trust_file.publish(trust, file.pin, open_public(uri))


def new_topic(folder: Path) -> str:
    """Return a name for a topic that neither the archive nor a tampered copy uses yet.

    It is short, so that a table of logs fits into 80 columns.
    """
    taken = [log.topic for log in list_logs(open_store(str(folder / "archive")))]
    taken += [path.name.removeprefix(_COPY) for path in folder.glob(f"{_COPY}*")]
    names = [_DEMO.fullmatch(name) for name in taken]
    return f"demo-{max((int(name[1]) for name in names if name), default=0) + 1}"


def _command(*words: object) -> str:
    """Return a command line, quoted for a shell."""
    return f"$ {shlex.join(['custody', *map(str, words)])}"


def _run(console: Console, codes: set[int], *words: object) -> None:
    """Print a command and run it.

    Raises:
        CustodyError: its exit code is not one of `codes`.
    """
    console.print(_command(*words), soft_wrap=True)
    try:
        main([str(word) for word in words])
    except SystemExit as ended:
        console.print(f"exit code {ended.code}")
        if ended.code not in codes:
            raise CustodyError(
                f"the exit code of {_command(*words)[2:]} is {ended.code}, not {min(codes)}: this is a bug, please"
                " report it"
            ) from None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables, and unset the user's own settings of custody and Prefect, until the block ends."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="custody-demo-", ignore_cleanup_errors=True) as name:
        config = Path(name) / "custody.toml"
        config.touch()
        for variable in list(os.environ):
            if variable.upper().startswith(("CUSTODY_", "PREFECT_")):
                del os.environ[variable]
        ours = {"CUSTODY_CONFIG": str(config), "PREFECT_HOME": name, **variables}
        try:
            settled = deploy.direct(os.environ) | ours
            os.environ.clear()
            os.environ.update(settled)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _rounds(console: Console, producer: Producer, topic: str, events: int) -> tuple[list[LogResult], int, float]:
    """Produce and drain in turn, so that the embedded Kafka never drops records that are not drained yet.

    Returns:
        The result of each log over all rounds, the number of records produced, and the seconds that the drains took.
    """
    logs: dict[str, LogResult] = {}
    values, left = sample_events(events, _SEED, datetime.now(UTC)), events
    produced, seconds = 0, 0.0
    with console.status("Starting Prefect …") as status:
        # Prefect reads its environment when it is imported.
        from flows.drain import drain

        while left:
            now = min(ROUND, left)
            status.update(f"Producing {counted(now, 'event')} of six types to the embedded Kafka …")
            produced += _produce(producer, topic, [next(values) for _ in range(now)])
            status.update(
                f"Draining with the Prefect flow … ({events - left:,} of {counted(events, 'event')} archived)"
            )
            left -= now
            state: Any = drain(once=True, return_state=True)
            if not state.is_completed():
                raise CustodyError(f"the drain did not complete: {state.message}")
            run = state.result()
            seconds += run.seconds
            for result in run.results:
                logs[result.log] = _sum([result, logs.get(result.log, LogResult(result.log))])
            total = _sum(logs.values())
            console.print(
                f"Drained {counted(total.events, 'event')}, and {counted(total.quarantined, 'invalid record')} to"
                f" quarantine, in {seconds:.1f} s."
            )
    return [logs[name] for name in sorted(logs)], produced, seconds


def _sum(results: Collection[LogResult]) -> LogResult:
    """Return the first result, with the sums over all of them."""
    sums = {name: sum(getattr(result, name) for result in results) for name in _SUMS}
    return replace(next(iter(results)), **sums)


def _produce(producer: Producer, topic: str, values: list[bytes]) -> int:
    """Produce events to all partitions, with an invalid record now and then, and return the number of records."""
    bad, produced = itertools.cycle(invalid_values()), 0
    for number, value in enumerate(values, 1):
        for record in [value, next(bad)] if number % INVALID_EVERY == 0 else [value]:
            producer.produce(topic, record, partition=produced % PARTITIONS)
            produced += 1
        if number % 1000 == 0:
            producer.poll(0)
    if producer.flush(30):
        raise TransientSourceError("the embedded Kafka did not take all events within 30 s: is the machine very busy?")
    return produced


def _audit(console: Console, folder: Path, log: Log) -> None:
    """Show how the operator makes evidence, and how an auditor checks it with trust.json: public keys, no secret."""
    archive, trust, file = folder / "archive", folder / "trust.json", folder / "evidence.zip"
    console.print(
        "\nThe operator makes evidence of one event, with the keyring. It shows that event alone because this drain ran"
        " with drain.event_leaves on (it is off by default):"
    )
    keys = ("--keys", f"file:{folder / 'keyring.json'}")
    _run(console, {0}, "evidence", log, 0, "--archive", archive, *keys, "--for", trust, "-o", file)
    console.print("\nWith public keys alone, as an auditor has them in trust.json:")
    _run(console, {0, 3}, "verify", archive, "--trust", trust)
    _run(console, {0}, "check-evidence", file, "--trust", trust)


def _summary(total: LogResult, seconds: float, report: Report) -> Table:
    table = render.table("!", "")
    table.show_header = False
    for name, value in (
        ("events", f"{total.events:,}"),
        ("quarantined", f"{total.quarantined:,}"),
        ("segments", f"{total.segments:,}"),
        ("bytes in", decimal(total.bytes_in)),
        ("bytes out", decimal(total.bytes_out)),
        ("ratio", f"{total.bytes_in / max(1, total.bytes_out):.2f}"),
        ("events/s", f"{total.events / seconds:,.0f}"),
        ("verdict", report.verdict),
    ):
        table.add_row(name, value)
    return table


def _check(total: LogResult, produced: int, report: Report, archive: Path, topic: str) -> None:
    """Check that the verifier read as many records as were produced."""
    if total.lost:
        raise CustodyError(
            f"the embedded Kafka dropped {counted(total.lost, 'record')} before the drain: the machine is too slow for"
            " so many events; run the demo with fewer --events"
        )
    archived = sum(log.events + log.quarantined for log in report.logs if log.log.startswith(f"{topic}/"))
    if report.exit_code not in {0, 3} or archived != produced:
        raise CustodyError(
            f"{counted(produced, 'record was', 'records were')} produced and {archived:,} archived; verification says:"
            f" {report.verdict}. This is a bug: please report it with the folder {archive}"
        )


def _tamper(console: Console, folder: Path, log: Log) -> None:
    """Copy the archive, flip one bit in a segment of the copy, and show what verification says."""
    copy = folder / f"{_COPY}{log.topic}"
    shutil.copytree(folder / "archive", copy)
    path = min((copy / "events").rglob(f"*-{log.topic}-{log.partition}-*.gz"))
    data = bytearray(path.read_bytes())
    at = random.Random(_SEED).randrange(len(data))  # noqa: S311 - any byte will do
    data[at] ^= 0x01
    path.write_bytes(data)
    console.print(f"\nNow one bit is flipped in a copy: byte {at:,} of {path.relative_to(copy)}", soft_wrap=True)
    keys = ("--keys", f"file:{folder / 'keyring.json'}")
    _run(console, {13}, "verify", copy, *keys)
    _run(console, {0}, "explain", "segment-hash")


def _report(console: Console, folder: Path) -> None:
    """Audit the archive, as happens every night, and write the report that people read."""
    report = folder / "report.html"
    where = ("--archive", folder / "archive", "--keys", f"file:{folder / 'keyring.json'}")
    console.print("\nWhat `custody up` does every night: an audit, which signs its result, and a report for people:")
    _run(console, {0}, "audit", *where)
    _run(console, {0}, "report", *where, "--output", report)
    console.print(f"Open it in a browser: {report.resolve().as_uri()}", soft_wrap=True)


def _print_next_steps(console: Console, folder: Path, seconds: float) -> None:
    """Print commands to try next."""
    archive, keys = folder / "archive", f"file:{folder / 'keyring.json'}"
    events = shlex.quote(str(archive / "events"))
    console.print(
        f"\nDone in {seconds:.0f} s. The archive, its keyring, its trust.json and the tampered copy are in {folder}/."
        " Lines that begin with $ can be run again. In a checkout, put `uv run` before `custody`. Try:"
    )
    console.print(
        f"""\
{_command("verify", archive, "--keys", keys)}
$ zcat "$(find {events} -name '*.gz' | head -n 1)" | head -n 3

Point it at a real broker and at S3:
  export CUSTODY_KAFKA__BOOTSTRAP_SERVERS=broker:9092 CUSTODY_KAFKA__TOPICS=audit.events
  export CUSTODY_ARCHIVE=s3://BUCKET/PREFIX
  custody init && custody drain --once && custody verify
Then 'custody up' drains every minute.""",
        soft_wrap=True,
    )
