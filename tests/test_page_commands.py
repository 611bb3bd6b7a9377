"""The commands in the pages run: each block of `sh` as written, in order, with the exit code that the page says.

Rules:
- A page of `SCENES` is run from its first block to its last, in a folder of its own, by one shell. Words in capitals,
  such as TOPIC, are the reader's own: `SCENES` has a value for each.
- A command ends well: with exit code 0, or with 3 if 3 is a success of it too. Or it ends with a code that its comment
  says: `# exit code 13: …`, `# exit code 0 or 1`.
- What cannot be run here is in `NOT_RUN` or `PAGES_NOT_RUN`, with the reason.
- A block of `toml` is a `custody.toml` that the settings take.
- Every command line of custody in any page, run or not, is one that the real command line takes.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from custody.cli.main import app
from flows.operate.sample import invalid_values, sample_events
from tests.helpers.commands import Command, custody
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports
from tests.servers.s3 import SeaweedServer

__all__ = ["custody"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deployments/*.md")])
}
SECONDS = 400

NOTICES_TOO = ("verify", "copy", "audit", "check", "status")
"""Commands with which exit code 3, notices or warnings only, is a success too."""

NOT_RUN = {
    r"aws ": "needs an account in AWS",
    r"kafka-(configs|acls)\.sh ": "a tool of Kafka's own distribution, which this project lacks",
    r"custody up\b": "runs until it is ended; tests/flows/test_up.py does it",
    r"custody accept ": "needs a loss to accept; tests/custody/verify/test_accept.py has them",
}
"""Beginnings of commands that are not run, though others of their page are."""

PAGES_NOT_RUN = {
    "README.md": "tests/test_readme.py runs it",
    "docs/detect.md": "tests/tasks/detect/test_page.py tests its rules, test_backtest.py there the commands",
    "docs/demo.md": "tests/test_readme.py runs it",
    "CONTRIBUTING.md": "runs the tests themselves",
    "docs/figures.md": "benchmarks of many minutes",
    "docs/machines.md": "starts a cluster; tests/flows/test_dask.py runs flows on one",
    "docs/scale.md": "tests/test_scale.py runs the script",
    "docs/sizing.md": "a benchmark; tests/tasks/drain/test_pace.py measures what it says of the sample",
    "docs/releasing.md": "builds a release; tests/custody/test_wheel.py builds and installs the wheel",
    "deployments/README.md": "installs services as root; tests/deployments check the files",
}


@dataclass(frozen=True)
class Reader:
    """Somebody with a folder, a topic and settings, who runs commands."""

    folder: Path
    kafka: KafkaServer
    topic: str
    settings: Mapping[str, str]

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run commands by bash, as a reader would, with this checkout's `custody` first on the path."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CUSTODY_", "PREFECT_", "COLUMNS"))
        }
        return subprocess.run(
            ["bash", "-uc", script],
            cwd=self.folder,
            env={**clean, "PATH": path, "PYTHONPATH": str(ROOT), **self.settings},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def must(self, script: str) -> None:
        """Run commands that all end well."""
        done = self.run(f"set -e; {script}")
        assert done.returncode == 0, done.stdout + done.stderr

    def produce(self, number: int, begin: datetime) -> None:
        """Produce valid events, and some that are not, into both partitions of the topic."""
        producer = self.kafka.producer()
        for index, value in enumerate([*sample_events(number, 1, begin, per_second=100), *invalid_values()]):
            producer.produce(self.topic, value, partition=index % 2)
        assert producer.flush(30) == 0


def nothing(reader: Reader) -> None:
    """Leave everything as it is."""


def flip_a_byte(reader: Reader) -> None:
    """Keep a replica, and change a byte of the first segment."""
    reader.must("cp -r custody-data/archive replica")
    first = min((reader.folder / "custody-data" / "archive" / "events").rglob("*.gz"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)


def create_again(reader: Reader) -> None:
    """Archive a topic, then delete it and create it again with other events."""
    reader.must("custody init; custody drain --once")
    reader.kafka.delete_topic(reader.topic)
    reader.kafka.create_topic(reader.topic, 2)
    reader.produce(50, datetime.now(UTC))


def copy_to_bucket(reader: Reader) -> None:
    """Put the archive into a bucket too, and make a disk for the auditor."""
    reader.must(f"mkdir disk; custody copy custody-data/archive s3://{reader.settings['BUCKET']}/a --quiet")


def remember_heads(reader: Reader) -> None:
    """Make the files of heads and checkpoints that a careful operator keeps, and a keyring with a passphrase."""
    reader.must("custody checkpoint > checkpoints.txt")


def have_a_file_of_events(reader: Reader) -> None:
    """Make a file of events, one a line."""
    events = sample_events(20, 1, datetime(2026, 11, 24, tzinfo=UTC))
    (reader.folder / "events.jsonl").write_bytes(b"\n".join(events) + b"\n")


def make_evidence(reader: Reader) -> None:
    """Put evidence that somebody gave into the folder."""
    reader.must(f"custody evidence {reader.topic}/0 7 -o evidence.zip")


def have_the_shop(reader: Reader) -> None:
    """Put the example into the folder, as the page shows it."""
    shop = (ROOT / "docs" / "examples" / "shop.py").read_text()
    assert f"```python\n{shop}```" in PAGES["docs/first-events.md"]
    (reader.folder / "shop.py").write_text(shop)


@dataclass(frozen=True)
class Scene:
    """What a page's reader has before the first command."""

    words: Mapping[str, str] = field(default_factory=dict)
    """The values of the words in capitals, and of examples, with `{topic}`, `{folder}` and servers of the test."""
    settings: Mapping[str, str] = field(default_factory=dict)
    drained: bool = True
    """Whether an archive is there already: two partitions of the topic are drained, and checkpoints are signed."""
    servers: tuple[str, ...] = ()
    """Which servers are there beside Kafka: `seaweed`, `elastic`."""
    begin: Callable[[Reader], None] = nothing
    """What happened before the first command."""
    prints: tuple[str, ...] = ()
    """Regular expressions for lines that the commands must print, with `{topic}` and so on as in `words`."""


def block_of(page: str, begin: str) -> list[str]:
    """Return the lines of the block of a page that begins with a text: what a command prints, shown by the page."""
    (block,) = re.findall(rf"^```\n({re.escape(begin)}.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    return str(block).splitlines()


SCENES = {
    "docs/auditing.md": Scene(words={"ARCHIVE": "custody-data/archive"}, begin=make_evidence),
    "docs/bucket.md": Scene(words={"BUCKET": "{bucket}", "PREFIX": "a"}, drained=False, servers=("seaweed",)),
    "docs/copying.md": Scene(
        words={"FROM": "custody-data/archive", "TO": "copied", "BUCKET": "{bucket}", "PREFIX": "a", "DISK": "disk"},
        servers=("seaweed",),
        begin=copy_to_bucket,
    ),
    "docs/evidence.md": Scene(words={"LOG": "{topic}/0", "OFFSET": "7"}),
    "docs/elasticsearch.md": Scene(words={"URL": "{elastic}", "PREFIX": "{prefix}"}, servers=("elastic",)),
    "docs/ocsf.md": Scene(),
    "docs/first-archive.md": Scene(
        words={"BROKER": "{broker}", "TOPIC": "{topic}", "BUCKET": "{bucket}"},
        drained=False,
        servers=("seaweed",),
        prints=(
            "archive +s3://{bucket}/first +CUSTODY_ARCHIVE",
            "kafka.bootstrap_servers +{broker} +CUSTODY_KAFKA__BOOTSTRAP_SERVERS",
            "kafka.topics +{topic} +CUSTODY_KAFKA__TOPICS",
        ),
    ),
    "docs/first-events.md": Scene(
        words={
            "BROKER": "{broker}",
            "TOPIC": "{topic}",
            "8000": "{port}",
            "LOG": "$(custody query \"SELECT log FROM events WHERE failure_reason = 'unknown key'\" --csv | tail -1)",
            "OFFSET": '$(custody query "SELECT \\"offset\\" FROM events WHERE failure_reason = \'unknown key\'"'
            " --csv | tail -1)",
        },
        drained=False,
        begin=have_the_shop,
        prints=(
            *(" +".join(line.split()) for line in block_of("docs/first-events.md", "source_seq")),
            r"shop/[^/ ]+/[0-9]+-[0-9]+ +7 +0 +0 +\S+Z +\S+Z",
            r"Proved: the event is in {topic}/[01]\. .+",
        ),
    ),
    "docs/kafka.md": Scene(),
    "docs/key-leaked.md": Scene(
        words={
            "STATE": "state.json",
            "CHECKPOINTS": "checkpoints.txt",
            "KEY": "$(custody keys list --json | grep -o 'ed25519-[0-9a-f]*' | head -1)",
        },
        settings={"OLD": "", "NEW": "new passphrase"},
        begin=remember_heads,
    ),
    "docs/key-lost.md": Scene(words={"NEW": "{folder}/new/archive"}),
    "docs/keys.md": Scene(),
    "docs/lag.md": Scene(),
    "docs/move-archive.md": Scene(words={"FROM": "custody-data/archive", "TO": "/{folder}/moved"}),
    "docs/operating.md": Scene(settings={"CUSTODY_METRICS__FILE": "custody.prom"}),
    "docs/region-lost.md": Scene(words={"FROM": "custody-data/archive", "TO": "/{folder}/replica"}),
    # Not `yesterday`: midnight may pass since the events were made.
    "docs/restore.md": Scene(words={"2026-05-03": "2d", "2026-05-04": "now"}),
    "docs/retention.md": Scene(),
    "docs/tampered.md": Scene(
        words={"LOG": "{topic}/0", "SEQUENCE": "1", "KEY": "$(cd replica; find events -name '*.gz' | sort | head -1)"},
        begin=flip_a_byte,
    ),
    "docs/compliance.md": Scene(),
    "docs/events.md": Scene(begin=have_a_file_of_events),
    "docs/querying.md": Scene(),
    "docs/verifying.md": Scene(
        words={
            "ARCHIVE": "custody-data/archive",
            "DIR": "witness",
            "audit.events": "{topic}",
            "2026-05-01": "yesterday",
            "2026-06-01": "now",
        }
    ),
    "docs/topic-recreated.md": Scene(words={"TOPIC": "{topic}"}, drained=False, begin=create_again),
}
"""The pages that are run."""


@dataclass(frozen=True)
class Line:
    """One command of a page."""

    text: str
    codes: frozenset[int]

    @property
    def reason(self) -> str | None:
        """Why it is not run; None if it is."""
        return next((reason for start, reason in NOT_RUN.items() if re.match(start, self.text)), None)


def lines(text: str) -> Iterator[Line]:
    """Yield the commands of a page's blocks of `sh`, each with the exit code that its comment says."""
    for indent, block in re.findall(r"^( *)```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        gathered = ""
        for raw in block.splitlines():
            gathered += raw.removeprefix(indent) + "\n"
            try:
                whole = bool(shlex.split(gathered, comments=True) or not gathered.strip().startswith("#"))
            except ValueError:
                continue  # a quotation goes on
            if gathered.endswith("\\\n"):
                continue
            command, text_of_command = gathered.strip(), re.sub(r"(^|\s)#.*", "", gathered).strip()
            gathered = ""
            if whole and text_of_command:
                said = re.search(r"#.*exit code ([0-9]+(?:(?: or|,) [0-9]+)*)", command)
                well = {0, 3} if re.search(rf"custody ({'|'.join(NOTICES_TOO)})\b", text_of_command) else {0}
                yield Line(text_of_command, frozenset(map(int, re.findall("[0-9]+", said[1])) if said else well))


def custody_lines(command: str) -> Iterator[list[str]]:
    """Yield the words of each command line of custody in a shell's command: in pipes, lists and substitutions too."""
    words = shlex.shlex(command, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    line: list[str] | None = None
    for word in [*words, ";"]:
        if set(word) <= set("|&;<>()"):
            if line is not None:
                yield line
            line = None
        elif line is not None:
            line.append(word)
        elif word == "custody":
            line = []
        if word.startswith("$("):
            yield from custody_lines(word[2:-1])


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield every command line of custody that a page shows: in blocks, and in backticks."""
    for line in lines(text):
        yield from custody_lines(line.text)
    for shown in re.findall(r"`(custody [a-z][^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        yield from custody_lines(re.sub(r"[\[\]]", "", shown.replace("\\|", "|").replace("…", "etc")))


@functools.cache
def command_line() -> Any:
    """Return the command line, which is only looked at."""
    return get_command(app)


def taken(words: list[str]) -> None:
    """Raise a usage error if the command line does not take these words: a command, its options and arguments."""
    command = command_line()
    context = command.make_context("custody", [], resilient_parsing=True)
    while hasattr(command, "get_command") and words and not words[0].startswith("-"):
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, f"no command {name}"
        context = type(context)(command, info_name=name, parent=context)
    if words and words[-1].startswith("-") and not hasattr(command, "get_command"):
        # An option that is only named: what it takes is not shown.
        names = {name: option.is_flag for option in command.params for name in option.opts if name.startswith("-")}
        words = words if names.get(words[-1], True) else [*words, "etc"]
    _, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left or hasattr(command, "get_command"), f"{left} are too many arguments"


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_are_taken(page: str) -> None:
    """Every `custody …` of a page is a command with these options and no more arguments than it takes."""
    for line in command_lines(PAGES[page]):
        try:
            taken(line)
        except Exception as error:
            error.add_note(" ".join(line))
            raise


def test_every_page_with_commands_is_run_or_says_why_not() -> None:
    """A page that shows commands is in one of both lists, and neither list names another page."""
    with_commands = {page for page, text in PAGES.items() if any(lines(text))}
    assert with_commands == SCENES.keys() | PAGES_NOT_RUN.keys()
    assert not SCENES.keys() & PAGES_NOT_RUN.keys()
    run = [line for page in SCENES for line in lines(PAGES[page])]
    for start in NOT_RUN:
        assert any(re.match(start, line.text) for page in PAGES for line in lines(PAGES[page])), start
    assert any(line.reason is None for line in run)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, kafka: KafkaServer) -> Reader:
    """What most pages begin with, made once: each test works in a copy of the folder."""
    topic = kafka.create_topic(kafka.unused_name("audit.docs"), 2)
    settings = {"CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "CUSTODY_KAFKA__TOPICS": topic}
    reader = Reader(tmp_path_factory.mktemp("installation"), kafka, topic, settings)
    reader.produce(400, datetime.now(UTC) - timedelta(days=1))
    reader.must("custody init; custody drain --once; custody checkpoint --write")
    return reader


def reader_of(scene: Scene, installation: Reader, folder: Path, request: pytest.FixtureRequest) -> Reader:
    """Return the reader of a page, with the servers and the archive that the page asks for."""
    kafka, settings, topic = installation.kafka, dict(installation.settings), installation.topic
    if scene.drained:
        shutil.copytree(installation.folder, folder)
    else:
        folder.mkdir()
        topic = settings["CUSTODY_KAFKA__TOPICS"] = kafka.create_topic(kafka.unused_name("audit.docs"), 2)
    if "seaweed" in scene.servers:
        seaweed: SeaweedServer = request.getfixturevalue("seaweed")
        settings |= {**seaweed.environment(), "CUSTODY_S3__ENDPOINT_URL": seaweed.endpoint_url}
        settings["BUCKET"] = seaweed.make_bucket(object_lock=True)
    if "elastic" in scene.servers:
        elastic: ElasticsearchServer = request.getfixturevalue("elastic")
        settings |= {"ELASTIC": elastic.url, "PREFIX": elastic.unused_prefix()}
    reader = Reader(folder, kafka, topic, {**settings, **scene.settings})
    if not scene.drained:
        reader.produce(400, datetime.now(UTC))
    scene.begin(reader)
    return reader


@pytest.mark.timeout(500)
@pytest.mark.parametrize("page", SCENES)
def test_the_commands_of_a_page_run(
    page: str, installation: Reader, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each command of the page runs as written, one after the other, with the exit code that the page says."""
    reader = reader_of(SCENES[page], installation, tmp_path / "reader", request)
    own = {
        "topic": reader.topic,
        "folder": str(reader.folder).lstrip("/"),
        "broker": reader.kafka.bootstrap,
        "bucket": reader.settings.get("BUCKET", ""),
        "elastic": reader.settings.get("ELASTIC", ""),
        "prefix": reader.settings.get("PREFIX", ""),
        "port": str(free_ports(1)[0]),
    }
    words = {word: value.format(**own) for word, value in SCENES[page].words.items()}
    wanted = [line for line in lines(PAGES[page]) if line.reason is None]
    assert wanted
    codes = reader.folder / "codes"
    script = []
    for line in wanted:
        command = re.sub(r"\b[A-Z][A-Z_]+\b|[a-z0-9.-]+", lambda word: words.get(word[0], word[0]), line.text)
        command = command.replace("uv run ", "")
        script += [f"printf '\\n$ %s\\n' {shlex.quote(command)} | tee /dev/stderr", command, f"echo $? >> {codes}"]
    done = reader.run("\n".join(script))
    ended = [int(code) for code in codes.read_text().split()]
    wrong = [
        f"exit code {code}: {line.text}" for line, code in zip(wanted, ended, strict=True) if code not in line.codes
    ]
    assert not wrong, "\n".join([*wrong, done.stdout, done.stderr])
    for line_printed in SCENES[page].prints:
        wanted_line = rf"^ *{line_printed.format(**own)} *$"
        assert re.search(wanted_line, done.stdout, re.MULTILINE), f"{wanted_line}\n{done.stdout}"


def test_the_page_on_lag_quotes_what_a_drain_prints(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever drains by hand while no broker answers finds the words of the message in the page."""
    assert custody("init").code == 0
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("CUSTODY_KAFKA__TOPICS", "audit.events")
    done = custody("drain", "--once")
    (quoted,) = re.findall(r"^\| `([^`]*Kafka[^`]*) …` \|", PAGES["docs/lag.md"], re.MULTILINE)
    assert done.code != 0
    assert f"{quoted} 127.0.0.1:9" in done.err


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```toml" in text])
def test_blocks_of_settings_are_taken(page: str, custody: Command, tmp_path: Path) -> None:
    """Each block of `toml` in a page is a file that `custody config` takes."""
    for block in re.findall(r"^ *```toml\n(.*?)^ *```", PAGES[page], re.DOTALL | re.MULTILINE):
        (tmp_path / "custody.toml").write_text(textwrap.dedent(block))
        done = custody("config")
        assert done.code == 0, done.err
