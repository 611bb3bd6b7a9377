"""One voice: the same options, help, words and exit codes for all commands, and no traceback for a user's mistake."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from custody.archive.writer import Entry
from custody.cli import common, main, times
from custody.cli.common import EVERY_EXIT_CODE, EXIT_CODES, PANELS, WITHOUT
from custody.cli.operators import COMMANDS
from flows.operate import cli as operating
from tasks.backfill import plan
from tests.helpers.commands import Command
from tests.helpers.sample import Growing, Sample
from tests.servers.s3 import MotoServer

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 5, 3, 14, 30, tzinfo=UTC)


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


EVERY: Mapping[str, Any] = dict([*_commands(get_command(main.app)), *_commands(get_command(operating.app))])


# --- help


def test_help_imports_nothing_that_it_does_not_need() -> None:
    """The help is fast because it loads neither the settings nor a library for tables, nor Prefect and Kafka."""
    heavy = ("pydantic_settings", "rich", "prefect", "duckdb", "boto3", "confluent_kafka")
    code = (
        "import sys\nfrom custody.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "verify" in done.stdout


def test_help_is_in_groups(custody: Command) -> None:
    """Each command is in one of five groups, in the same order everywhere."""
    shown = custody("--help").out
    assert [line[:-1] for line in shown.splitlines() if line[:-1] in PANELS] == list(PANELS)
    for name, command in EVERY.items():
        assert " " in name or command.rich_help_panel in PANELS, name


@pytest.mark.parametrize("name", EVERY)
def test_help_of_each_command(custody: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each help has an example of this command, its exit codes, defaults as they are, and no formats of times."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = custody(*name.split(), "--help")
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= 80
    assert not re.search(r"<bool>|<str>|%Y|default: \(", shown.out)
    assert f"custody {name}" in shown.out.partition("\nExample:\n")[2]
    for code in {*EVERY_EXIT_CODE, *EXIT_CODES.get(name, ())}:
        assert re.search(rf"^  {code} ", shown.out, re.MULTILINE)


def test_choices_are_those_of_the_code(custody: Command) -> None:
    """What the help and the completion offer is what a backfill takes."""
    assert (get_args(operating.Target), get_args(operating.RestoreTier)) == (plan.KINDS, plan.TIERS)
    since = ("--since", "2d", "--until", "now")
    for option in ("--to", "--tier"):
        refused = custody("backfill", *since, option, "nonsense")
        assert refused.code == 2
        assert "'nonsense' is not one of" in refused.err


def test_exit_codes_are_those_of_commands() -> None:
    """No exit code is listed for a command that does not exist."""
    assert set(EXIT_CODES) | set(WITHOUT) <= set(EVERY)


# --- common options


def test_each_command_has_the_common_options() -> None:
    """A command lacks one only if it is listed, and no command has one of its own meaning."""
    for name, command in EVERY.items():
        options = {text for param in command.params for text in param.opts}
        wanted = {"archive", "keys", "config", "quiet"} - WITHOUT.get(name, frozenset())
        assert {f"--{option}" for option in wanted} <= options, name


def test_common_options_hold_for_one_command(custody: Command, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """They win over variables, take plain paths, and are undone when the command has ended."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", "elsewhere")
    given = custody("config", "--json", "--archive", sample.folder, "--keys", sample.keyring)
    document = json.loads(given.out)
    assert (document["archive"], document["keys"]) == (str(sample.folder), f"file:{sample.keyring}")
    after = json.loads(custody("config", "--json").out)
    assert (after["archive"], after["keys"]) == ("elsewhere", "file:keyring.json")
    assert custody("verify", "--archive", sample.folder, "--keys", sample.keyring).code == 0
    assert custody("show", "archive.json", "--archive", sample.folder).code == 0


def test_a_secret_given_as_a_key_is_not_shown(custody: Command) -> None:
    """Only what is plainly a path is taken for one. Anything else may be a secret."""
    refused = custody("keys", "list", "--keys", "Zq7-canary-secret")
    assert refused.code == 2
    assert "Zq7" not in refused.err + refused.out


def test_two_archives_are_a_conflict(custody: Command, sample: Sample) -> None:
    """The argument and the option may name the same archive, and not two."""
    for command in ("verify", "witness", "bucket"):
        refused = custody(command, sample.folder, "--archive", "other")
        assert (refused.code, "give only one of them" in refused.err) == (2, True)
    twice = custody("verify", sample.folder, "--archive", sample.folder, "--keys", sample.keyring)
    assert twice.code == 0


def test_config_and_quiet(custody: Command, sample: Sample, tmp_path: Path) -> None:
    """`--config` names the file of the settings. `--quiet` drops notes, and no error, result or exit code."""
    Path("custody.toml").write_text(f'archive = "{sample.folder}"\n')
    assert "settings are read from" in custody("config").err
    quiet = custody("config", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    assert str(sample.folder) in quiet.out
    mine = tmp_path / "mine.toml"
    mine.write_text('archive = "mine"\n')
    named = custody("config", "--json", "--config", mine)
    assert (json.loads(named.out)["archive"], named.err) == ("mine", "")
    missing = custody("config", "--config", "none.toml", "-q")
    assert (missing.code, "does not exist" in missing.err) == (2, True)


# --- users' mistakes

ON_AN_ARCHIVE: Mapping[str, tuple[str, ...]] = {
    "witness": (),
    "copy": ("{archive}", "copy"),
    "checkpoint": (),
    "checkpoint --write": (),
    "evidence": ("a/0", "1", "-o", "out.zip"),
    "show": ("a/0",),
    "query": ("SELECT 1",),
    "export": ("--ocsf", "-o", "exported"),
    "report": (),
    "keys export": (),
    "index": (),
    "audit": (),
    "backfill": ("--since", "2d", "--until", "now"),
    "status": (),
    "drain": ("--once",),
    "roll": (),
    "new-epoch": ("a",),
    "metrics": (),
    "detect run": (),
    "detect rebuild": (),
    "detect backtest": ("--since", "2d", "--until", "now"),
    "detect explain": ("0123456789abcdef0123456789abcdef",),
}
"""Commands that read one archive, with arguments. `verify` is not one: that there is none is its finding."""
WITHOUT_AN_ARCHIVE = {
    *(
        "verify",
        "check",
        "init",
        "config",
        "bucket",
        "check-evidence",
        "check-events",
        "explain",
        "accept",
        "demo",
        "up",
        "deploy",
        "alert",
        "detect lint",
    ),
    *("keys new", "keys list", "keys rotate", "keys end"),
}
"""The other commands: they report what is there, or need no archive."""


def _on(name: str, archive: object) -> list[object]:
    """Return the words of a command on an archive."""
    words = [word.format(archive=archive) for word in ON_AN_ARCHIVE[name]]
    return [*name.split(), *words, *(() if "{archive}" in ON_AN_ARCHIVE[name] else ("--archive", archive))]


def test_each_command_is_on_an_archive_or_not() -> None:
    """No command is left out of the tests below."""
    assert {name.partition(" --")[0] for name in ON_AN_ARCHIVE} | WITHOUT_AN_ARCHIVE == set(EVERY)


@pytest.mark.parametrize("keys", [True, False], ids=["with keys", "without keys"])
@pytest.mark.parametrize("name", ON_AN_ARCHIVE)
def test_no_archive_has_one_wording_and_one_code(
    custody: Command, monkeypatch: pytest.MonkeyPatch, name: str, *, keys: bool
) -> None:
    """Whichever command meets it, with keys or not, the line asks if the path is right, and the exit code is 2."""
    monkeypatch.setenv("CUSTODY_SEARCH__URL", "http://127.0.0.1:9")
    if keys:
        assert custody("keys", "new").code == 0
    refused = custody(*_on(name, "nowhere"))
    expected = f"custody: there is no archive at {Path('nowhere').absolute().as_uri()}: is this the right place?"
    assert refused.err.splitlines()[-1] == f"{expected} 'custody init' makes one"
    assert (refused.code, "Traceback" in refused.err) == (2, False)


SIGNING = ("drain", "audit", "roll", "new-epoch", "checkpoint --write", "evidence")
"""Commands that need the keys that sign."""


@pytest.mark.parametrize("name", SIGNING)
def test_a_keyring_that_the_archives_trust_does_not_know(
    custody: Command, sample: Sample, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With the archive's trust.json and another keyring, nothing is signed or written: one line, exit code 2."""
    monkeypatch.setenv("CUSTODY_SEARCH__URL", "http://127.0.0.1:9")
    before = {path: path.read_bytes() for path in sample.folder.rglob("*") if path.is_file()}
    own = ("--archive", sample.folder, "--keys", f"file:{sample.keyring}")
    assert custody("keys", "export", *own, "-o", "trust.json").code == 0
    assert custody("keys", "new", "--keys", "other.json").code == 0
    monkeypatch.setenv("CUSTODY_TRUST", "trust.json")
    monkeypatch.setenv("CUSTODY_KEYS", "file:other.json")
    refused = custody(*_on(name, sample.folder))
    assert refused.code == 2, refused
    assert refused.err.count("\n") == 1
    assert "trust.json lists no key of other.json" in refused.err
    assert before == {path: path.read_bytes() for path in sample.folder.rglob("*") if path.is_file()}
    checked = custody("check", "--archive", sample.folder)
    assert checked.code == 1
    assert "trust.json lists no key of other.json" in " ".join(checked.out.split())
    assert "keys export" not in checked.out


@pytest.mark.parametrize("by", ["keys", "trust"])
@pytest.mark.parametrize("name", sorted(set(ON_AN_ARCHIVE) - {"show", "status"} | {"init"}))
def test_keys_of_another_archive(
    custody: Command, sample: Sample, monkeypatch: pytest.MonkeyPatch, name: str, by: str
) -> None:
    """One line names the keyring, asks whether it is the archive's, and is exit code 2. Nothing is called tampering."""
    monkeypatch.setenv("CUSTODY_SEARCH__URL", "http://127.0.0.1:9")
    assert custody("init", "--archive", "another", "--keys", "other.json").code == 0
    monkeypatch.setenv("CUSTODY_KEYS", "file:other.json")
    if by == "trust":
        # Its pin is of the other archive, too.
        monkeypatch.setenv("CUSTODY_TRUST", "trust.json")
    refused = custody(*(_on(name, sample.folder) if name != "init" else ("init", "--archive", sample.folder)))
    assert refused.code == 2, refused
    line = refused.err.splitlines()[-1]
    assert f"custody: {sample.folder.as_uri()}: archive.json is not" in line
    assert line.endswith("correct `keys` and `trust`, or `archive`")
    # A witness takes trust.json alone.
    assert f"the keys of {'trust.json' if (name, by) == ('witness', 'trust') else 'other.json'}" in line
    assert "may not be those of this archive" in line


@pytest.mark.parametrize("name", ["audit", "drain", "roll", "checkpoint --write", "keys export", "backfill"])
def test_an_archive_file_of_others_over_our_logs(
    custody: Command, altered: Sample, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where trusted keys signed the logs, nobody is told to correct the keys: archive.json was replaced."""
    monkeypatch.setenv("CUSTODY_SEARCH__URL", "http://127.0.0.1:9")
    assert custody("init", "--archive", "another", "--keys", "other.json").code == 0
    (altered.folder / "archive.json").write_bytes(Path("another/archive.json").read_bytes())
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{altered.keyring}")
    refused = custody(*_on(name, altered.folder))
    assert refused.code == 1, refused
    assert f"trusted keys signed the log {altered.log}, but other keys signed archive.json" in refused.err


def test_no_archive_is_a_finding_of_verify(custody: Command) -> None:
    """Scripts get exit code 12, and people the question."""
    assert custody("keys", "new").code == 0
    shown = custody("verify", "nowhere", "--keys", "keyring.json")
    assert (shown.code, "is this the right place?" in shown.out) == (12, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("checkpoint", "audit.event/0"),
        ("evidence", "audit.event/0", "1", "-o", "x"),
        ("show", "audit.event/0"),
        ("audit", "--log", "audit.event/0"),
        ("backfill", "--since", "2d", "--until", "now", "--log", "audit.event/0", "--to", "tables"),
    ],
)
def test_an_unknown_log_has_one_wording_and_one_code(
    custody: Command, sample: Sample, arguments: tuple[str, ...]
) -> None:
    """The line names the logs that are near, and the exit code is 2."""
    refused = custody(*arguments, "--archive", sample.folder, "--keys", sample.keyring)
    expected = f"the archive has no log 'audit.event/0'; did you mean {sample.log}?"
    assert (refused.code, expected in refused.err) == (2, True), refused.err


@pytest.mark.parametrize("kind", ["skipped", "lost", "in quarantine", "later", "earlier"])
def test_an_offset_without_an_event_has_one_wording_and_one_code(
    custody: Command, sample: Sample, tmp_path: Path, kind: str
) -> None:
    """`show` and `evidence` say the same of an offset, with exit code 2. `show` prints what is in quarantine."""
    folder, keyring, log = sample.folder, sample.keyring, str(sample.log)
    offset, reason = {
        "skipped": (sample.skipped, "a read-committed consumer gets no record there"),
        "lost": (3, "the broker deleted it before it was read"),
        "in quarantine": (sample.quarantined, "the record is no event, and is in quarantine"),
        "later": (999_999, "no statement of {log} accounts for offset 999999"),
        "earlier": (2, "no statement of {log} accounts for offset 2"),
    }[kind]
    if kind == "lost":
        growing = Growing(tmp_path / "lost")
        growing.append(1, edit=lambda entry: Entry(first_offset=0, next_offset=entry.next_offset, lost=(0, 5)))
        folder, keyring, log = growing.folder, growing.keyring, growing.log
    common = ("--archive", folder, "--keys", keyring)
    shown = custody("show", f"{log}@{offset}", *common)
    refused = custody("evidence", log, offset, "-o", "evidence.zip", *common)
    assert (refused.code, reason.format(log=log) in refused.err) == (2, True), refused
    assert shown.code == (0 if kind == "in quarantine" else 2)
    assert shown.err == ("" if kind == "in quarantine" else refused.err)


@pytest.mark.parametrize("name", [*ON_AN_ARCHIVE, "init", "bucket"])
def test_no_bucket_has_one_wording_and_one_code(
    custody: Command, moto: MotoServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whichever command meets it, the last line names the bucket, and the exit code is 2."""
    moto.use(monkeypatch)
    monkeypatch.setenv("CUSTODY_S3__ENDPOINT_URL", moto.endpoint_url)
    monkeypatch.setenv("CUSTODY_SEARCH__URL", "http://127.0.0.1:9")
    assert custody("keys", "new").code == 0
    url = "s3://there-is-no-such-bucket/audit"
    refused = custody(*(_on(name, url) if name in ON_AN_ARCHIVE else (name, "--archive", url)))
    expected = "custody: there is no such bucket: s3://there-is-no-such-bucket; create it, or correct the archive's URL"
    assert (refused.code, refused.err.splitlines()[-1]) == (2, expected)


WRONG = {"a folder": None, "no JSON": b"{", "other JSON": b"[1]", "binary": b"\x00\xff\xfe", "empty": b""}
FILES = (
    ("check-evidence", "{file}", "--keys", "{keys}"),
    ("verify", "{archive}", "--trust", "{file}"),
    ("verify", "{archive}", "--keys", "{file}"),
    ("verify", "{archive}", "--keys", "{keys}", "--checkpoint", "{file}"),
    ("witness", "{archive}", "--trust", "{file}"),
    ("keys", "list", "--keys", "{file}"),
    ("keys", "end", "hmac-1", "--at", "{file}", "--trust", "trust.json", "--keys", "{keys}"),
    ("accept", "--finding", "offset-lost", "--reason", "x", "--by", "y", "--from", "{file}", "--trust", "trust.json"),
    ("config", "--config", "{file}"),
)


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_has_one_code(custody: Command, sample: Sample, kind: str) -> None:
    """A file that is not what it should be is exit code 2 and lines without a traceback, whichever command reads it."""
    file, data = Path("wrong.json"), WRONG[kind]
    if data is None:
        file.mkdir()
    else:
        file.write_bytes(data)
    keys = ("--archive", sample.folder, "--keys", sample.keyring)
    assert custody("keys", "export", "-o", "trust.json", *keys).code == 0
    for words in FILES:
        if kind == "empty" and words[0] == "config":
            continue
        line = [word.format(file=file, archive=sample.folder, keys=sample.keyring) for word in words]
        refused = custody(*line)
        assert (refused.code, "Traceback" in refused.err) == (2, False), (line, refused)


MADE_BY_US = {
    "keyring.json": "it is a keyring",
    "trust.json": "it is a trust.json",
    "heads.json": "it is a state file",
    "archive.json": "it is an archive.json",
    "manifest.json": "it is a manifest",
    "custody.toml": "it is a file of settings",
    "a folder": "is a folder, and not a regular file: name the",
    "empty": "it is empty",
    "other.json": "it is not a",
    "text": "it is not a",
}
"""Files that are given by mistake, and how each is called."""
GIVEN = {
    "keyring": (("keys", "list", "--keys", "{file}"), "keyring.json", "keyring", "`custody keys new` makes one"),
    "trust": (("verify", "{archive}", "--trust", "{file}"), "trust.json", "trust.json", "`custody keys export"),
    "state": (("verify", "{archive}", "--state", "{file}"), "heads.json", "state file", "name a new file"),
}
"""Where a file is given: the command, the file that is right, what it is called, and the remedy for an unknown one."""


@pytest.mark.parametrize("where", GIVEN)
def test_a_file_of_ours_in_the_wrong_place(custody: Command, sample: Sample, where: str) -> None:
    """The line says what the file is, which one is wanted and what to do, and nothing of a parser."""
    keys = ("--archive", sample.folder, "--keys", sample.keyring)
    assert custody("keys", "export", "-o", "trust.json", *keys).code == 0
    assert custody("verify", sample.folder, "--keys", sample.keyring, "--state", "heads.json", "-q").code == 0
    shutil.copy(sample.keyring, "keyring.json")
    shutil.copy(sample.folder / "archive.json", "archive.json")
    shutil.copy(next((sample.folder / "manifests").rglob("*.json")), "manifest.json")
    Path("custody.toml").write_text('archive = "elsewhere"\n')
    Path("a folder").mkdir()
    Path("empty").touch()
    Path("other.json").write_text('{"format": "custody/keyring/9", "secret": "Zq7-canary"}')
    Path("text").write_text("Zq7-canary: no JSON")
    words, right, wanted, remedy = GIVEN[where]
    for name, kind in MADE_BY_US.items():
        if name == right or (where == "state" and name in {"a folder", "other.json", "text"}):
            continue
        file = Path(name).absolute()
        line = [word.format(file=file, archive=sample.folder) for word in words]
        refused = custody(*line, *(("--keys", sample.keyring) if where == "state" else ()))
        said = refused.err.splitlines()[-1]
        assert (refused.code, kind in said) == (2, True), refused
        assert wanted in said
        assert "$" not in said
        assert "Zq7" not in said
        assert re.search(r"give it with --|it is a part of|it says what|name the|makes one|name a new file", said), said
        if kind == "it is not a":
            assert remedy in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", ""),
        ("verify", "\udcff"),
        ("show", "\udcff", "--archive", "x"),
        ("show", "a/99999999999999999999", "--archive", "{archive}"),
        ("show", "a/0@" + "9" * 30, "--archive", "{archive}"),
        ("evidence", "a/0", "9" * 40, "-o", "x"),
        ("evidence", "{log}", "9" * 18, "-o", "x", "--archive", "{archive}", "--keys", "{keys}"),
        ("init", "--heartbeat", "9" * 30),
        ("init", "--archive", "keyring.json/inside"),
        ("keys", "new", "--keys", "/proc/nope/keyring.json"),
        ("keys", "export", "-o", "/proc/nope", "--archive", "{archive}", "--keys", "{keys}"),
        ("query", "", "--archive", "{archive}"),
        ("query", "SELECT 1", "--since", "9999-99-99"),
        ("query", "SELECT 1", "--since", "999999w", "--until", "\udcff"),
        ("witness", "{archive}", "--keys", "{keys}", "--state", "/proc/nope"),
        ("demo", "--dir", "/proc/nope"),
        ("demo", "--dir", "{keys}/inside"),
        ("verify", "--archive", "\0"),
        ("config", "--config", "\0"),
        ("config", "--keys", "\0/x"),
        ("accept", "--finding", "\udcff", "--reason", "", "--by", "", "--trust", "/proc/nope"),
        ("checkpoint", "\udcff", "--archive", "{archive}"),
        ("copy", "{archive}", "/proc/nope", "--keys", "{keys}"),
    ],
)
def test_no_mistake_of_a_user_is_a_traceback(custody: Command, sample: Sample, arguments: tuple[str, ...]) -> None:
    """Folders that cannot be written, empty arguments, odd bytes and huge numbers are a few lines that say so."""
    words = {"archive": sample.folder, "keys": sample.keyring, "log": sample.log}
    Path("keyring.json").touch()
    refused = custody(*(word.format(**words) if "{" in word else word for word in arguments))
    assert refused.code in {1, 2, 12}
    assert "Traceback" not in refused.err
    assert len(refused.err.splitlines()) <= 4


def test_an_error_in_sql_points_at_its_place(custody: Command, sample: Sample) -> None:
    """DuckDB's message keeps its lines, so that its caret stands below the word that is wrong."""
    refused = custody("query", "SELECT nope FROM events", "--archive", str(sample.folder))
    assert refused.code == 1
    *_, statement, caret = refused.err.rstrip().splitlines()
    assert "SELECT nope FROM events" in statement
    assert statement[caret.index("^") :].startswith("nope")
    assert "\\n" not in refused.err


def test_init_leaves_nothing_behind(custody: Command) -> None:
    """Where the archive cannot be written, no new keyring is left that belongs to nothing."""
    Path("file").touch()
    refused = custody("init", "--archive", "/proc/nope", "--keys", "keyring.json")
    assert refused.code in {1, 2}
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_operators_commands_are_one_list() -> None:
    """What the wheel lacks is what the checkout adds."""
    assert set(COMMANDS) == set(get_command(operating.app).commands)  # type: ignore[attr-defined]


# --- times


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-05-01", datetime(2026, 5, 1, tzinfo=UTC)),
        ("2026-05-01T14:00", datetime(2026, 5, 1, 14, tzinfo=UTC)),
        ("2026-05-01 14:00:05.5Z", datetime(2026, 5, 1, 14, 0, 5, 500_000, tzinfo=UTC)),
        ("2026-05-01T14:00+01:00", datetime(2026, 5, 1, 13, tzinfo=UTC)),
        ("2026-05-01T14:00-0130", datetime(2026, 5, 1, 15, 30, tzinfo=UTC)),
        ("now", NOW),
        ("today", datetime(2026, 5, 3, tzinfo=UTC)),
        ("yesterday", datetime(2026, 5, 2, tzinfo=UTC)),
        ("2d", NOW - timedelta(days=2)),
        ("90min", NOW - timedelta(minutes=90)),
        ("999999w", datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_times(text: str, moment: datetime) -> None:
    """A time is a date, a time with or without an offset, a word or an age."""
    assert times.parse_moment(text, NOW) == moment


@pytest.mark.parametrize(
    "text", ["", "2d ago", "-2d", "1y", "2026-13-01", "2026-05-01T24:30", "0001-01-01T00:00+14:00", "٢d", "20260501"]
)
def test_other_times(text: str) -> None:
    """Anything else is refused, with examples."""
    with pytest.raises(ValueError, match="is not a time; write it as 2026-05-03"):
        times.parse_moment(text, NOW)


@pytest.mark.parametrize("name", ["query", "audit", "backfill", "verify"])
def test_all_commands_take_the_same_times(name: str) -> None:
    """One parser serves each option that takes a time."""
    options = {param.name: param for param in EVERY[name].params}
    for option in ("since", "until"):
        info = options[option].type_descriptor.parameter_info
        assert (info.parser, info.metavar) == (times.parse_option, "TIME")


def test_key_uris() -> None:
    """A path becomes a URI, a URI stays, and anything else is left to the settings to refuse."""
    given = ["keyring.json", "a/b", "file:x", "aws-kms:///alias/a", "secret"]
    assert [common.key_uri(text) for text in given] == ["file:keyring.json", "file:a/b", *given[2:]]
