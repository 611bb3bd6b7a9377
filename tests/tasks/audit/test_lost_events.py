"""Emitters that end in every way, over a real broker: the audit names exactly the events that never arrived.

The judge is the emitters' own numbers: what they wrote, what lies in a spool when it is deleted, what they dropped.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pytest

import custody
from custody.archive.writer import create_archive
from custody.emit.spool_segment import parse
from custody.keys.keyring import new_keyring
from custody.store.open import open_store
from tasks.audit.conclude import Outcome, conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.drain.run import drain_logs
from tasks.settings import AuditSettings, KafkaSettings, Settings, SourceSettings
from tests.servers.kafka import KafkaServer, KafkaUnavailableError
from tests.servers.require import unavailable

WRITTEN = 40
EMITTER = """
import json, os, signal, sys
from pathlib import Path
from custody.emit.builders import query_executed
from custody.emit.kafka import KafkaWriter
from custody.emit.queue import Limits
from custody.emit.writer import Options

bootstrap, topic, spool = sys.argv[1:4]

def writer(service, **options):
    return KafkaWriter(topic, {"bootstrap.servers": bootstrap}, Options(service=service, **options))

def write(writer, number):
    for each in range(number):
        writer.write(query_executed(
            request_id="r", api_key_id="k", client_ip="10.0.0.1", query_hash="h", complexity=each,
            execution_time=1.0, result_rows=1,
        ))

def say(**facts):
    print(json.dumps(facts), flush=True)
"""
ENDS = {
    "closed": "w.close(30)",
    "at exit": "pass",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "left": "os._exit(0)",
    "raised": "raise SystemExit(3)",
}
"""How a process ends whose events were all delivered. Only the first two, and the last one, say that they stop."""
ENDING = """
w = writer(sys.argv[4], spool=Path(spool))
write(w, {written})
assert w.flush(60) == 0
say(source=w.source)
{end}
"""
FORKING = """
w = writer("forks", spool=Path(spool))
write(w, {written})
assert w.flush(60) == 0
say(source=w.source)
child = os.fork()
write(w, {written})
assert w.flush(60) == 0
if child == 0:
    say(source=w.source)
    w.close(30)
    os._exit(0)
os.waitpid(child, 0)
w.close(30)
"""
LOSING = """
spooling = writer("spools", spool=Path(spool))
dropping = writer("drops", queue=Limits(events=5), on_full="drop")
for step in sys.stdin:
    if step == "write\\n":
        for w in (spooling, dropping):
            write(w, {written})
    elif step == "flush\\n":
        assert [w.flush(90) for w in (spooling, dropping)] == [0, 0]
    counters = [w.counters() for w in (spooling, dropping)]
    say(sources=[spooling.source, dropping.source], dropped=counters[1]["dropped"], spooled=counters[0]["spooled"])
for w in (spooling, dropping):
    w.close(30)
"""


TAIL = """
w = writer("tails")
for step in sys.stdin:
    write(w, {written})
    if step == "flush\\n":
        assert w.flush(90) == 0
    say(source=w.source)
    if step == "die\\n":
        os.kill(os.getpid(), signal.SIGKILL)
"""
"""A process that is killed with events in its memory, behind which no number arrives."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaServer]:
    """A broker that this test stops."""
    try:
        with KafkaServer(tmp_path / "kafka", heap="256m") as server:
            yield server
    except KafkaUnavailableError as error:
        unavailable(str(error))


class Emitter:
    """A process that emits."""

    def __init__(self, code: str, broker: KafkaServer, topic: str, spool: Path, *more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", EMITTER + code, broker.bootstrap, topic, str(spool), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, step: str) -> dict[str, Any]:
        """Make it take a step, and return what it says."""
        stdin: IO[str] | None = self.process.stdin
        assert stdin is not None
        stdin.write(f"{step}\n")
        stdin.flush()
        return self.heard()

    def heard(self) -> dict[str, Any]:
        """Return the next thing that it says."""
        assert self.process.stdout is not None
        facts: dict[str, Any] = json.loads(self.process.stdout.readline())
        return facts

    def end(self) -> list[dict[str, Any]]:
        """Wait for its end, and return what it said."""
        output, _ = self.process.communicate(timeout=120)
        return [json.loads(line) for line in output.splitlines()]


def archived(broker: KafkaServer, topic: str, root: Path) -> Settings:
    """Drain a topic into a new archive, and return the settings for its audit."""
    keyring, archive = root / "keyring.json", root / "archive"
    ring = new_keyring(keyring, datetime.now(UTC))
    create_archive(open_store(str(archive)), ring.signers(datetime.now(UTC)).both)
    settings = Settings(
        archive=str(archive),
        keys=f"file:{keyring}",
        kafka=KafkaSettings(bootstrap_servers=broker.bootstrap, topics=[topic], group="losses"),
        sources=SourceSettings(settle=0, silent=0, expected=["spools", "tails"]),
        audit=AuditSettings(report=False),
    )
    drain_logs(settings, once=True)
    return settings


def audit(settings: Settings) -> Outcome:
    plan = plan_audit(settings, Request(), datetime.now(UTC))
    return conclude(settings, plan, list(verify_pieces(settings, plan, plan.pieces)))


def numbers_in(spool: Path) -> list[int]:
    """Return the numbers of the lines in a spool's files."""
    lines = [line for path in sorted(spool.rglob("*.segment")) for line in parse(path.read_bytes()).lines]
    return [json.loads(line)["source_seq"] for line in lines]


def said(outcome: Outcome, name: str) -> dict[str, str]:
    """Return the messages of an audit's findings of one name, with their severities."""
    return {each["message"]: each["severity"] for each in outcome.findings if each["finding"] == name}


def view_of(archive: str) -> dict[str, tuple[Any, ...]]:
    """Return the view `sources`, by source."""
    connection = custody.connect(archive)
    query = "SELECT source, missing, first, last, started, stopped, silent_since FROM sources"
    rows = connection.execute(query).fetchall()
    connection.close()
    return {row[0]: row[1:] for row in rows}


def spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return numbers as first and last ones of runs."""
    made: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if made and made[-1][1] == number - 1:
            made[-1] = made[-1][0], number
        else:
            made.append((number, number))
    return made


def test_the_audit_names_exactly_what_never_arrived(broker: KafkaServer, tmp_path: Path) -> None:
    """However a process ends, what was delivered is no gap; a lost spool and dropped events are, to the number.

    A tail that was lost has no number: it is a notice that the source fell silent, with its last number.
    """
    topic, spool = broker.create_topic("audit.emitted", 2), tmp_path / "spool"
    losing = Emitter(LOSING.format(written=WRITTEN), broker, topic, tmp_path / "lost")
    losing.tell("write")
    losing.tell("flush")
    tail = Emitter(TAIL.format(written=WRITTEN), broker, topic, spool)
    cut = tail.tell("flush")["source"]
    ending = [
        Emitter(ENDING.format(written=WRITTEN, end=end), broker, topic, spool, name.replace(" ", "-"))
        for name, end in ENDS.items()
    ]
    forking = Emitter(FORKING.format(written=WRITTEN), broker, topic, spool)
    whole = {facts["source"] for each in [*ending, forking] for facts in each.end()}
    assert len(whole) == len(ENDS) + 2
    assert [each.process.returncode for each in ending] == [0, 0, -signal.SIGTERM, -signal.SIGKILL, 0, 3]

    broker.stop()
    tail.tell("die")
    tail.end()
    assert tail.process.returncode == -signal.SIGKILL
    facts = losing.tell("write")
    while facts["spooled"] == 0:
        facts = losing.tell("look")
    lost = numbers_in(tmp_path / "lost")
    for folder in (tmp_path / "lost").iterdir():
        shutil.rmtree(folder)
    broker.start()
    losing.tell("flush")
    losing.tell("write")
    facts = losing.tell("flush")
    spooling, dropping = facts["sources"]
    losing.end()
    assert lost
    assert facts["dropped"] > 0

    settings = archived(broker, topic, tmp_path)
    outcome = audit(settings)
    gaps = said(outcome, "source-gap")
    assert len(gaps) == 2
    runs = [f"numbers {first} to {last} (" if last > first else f"number {first} (" for first, last in spans(lost)]
    assert all(run in "".join(gaps) for run in runs[:5])
    (silent, severity), *others = said(outcome, "source-silent").items()
    assert (severity, others) == ("notice", [])
    assert "1 source of the service 'tails' sent nothing for 0 minutes" in silent
    assert f"'{cut}' (number {WRITTEN + 1}, archived at " in silent

    by_source = view_of(settings.archive)
    assert set(by_source) == {*whole, spooling, dropping, cut}
    assert by_source[cut][:3] == (0, 1, WRITTEN + 1)
    assert by_source[cut][5] is not None
    assert {name: row[0] for name, row in by_source.items() if row[0]} == {
        spooling: len(lost),
        dropping: facts["dropped"],
    }
    stopped = {name.split("/")[0] for name, row in by_source.items() if row[4] is not None}
    assert stopped == {"closed", "at-exit", "raised", "forks", "spools", "drops"}
    assert all(row[1] == 1 and row[3] is not None for row in by_source.values())
    assert all(by_source[name][2] >= WRITTEN + 1 for name in whole)
    assert numbers_in(spool) == []
