"""The command line: what it prints, what it refuses, its exit codes, and that no secret or control code gets out."""

import base64
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody import cli, render
from custody.archive import read_archive
from custody.errors import CustodyError, TransientStoreError
from custody.keys import Ed25519Key, HmacKey, Keyring
from custody.store import open_store
from tests.environment import clear_settings
from tests.sample import Sample, make_archive

CANARY = "canary-Zq7-secret"
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def custody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Return the command line, run in an empty folder without a variable of ours."""
    clear_settings(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Result(int(ended.value.code or 0), out.decode(), err.decode())

    return run


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Write an archive that tests only read."""
    return make_archive(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def altered(sample: Sample, tmp_path: Path) -> Sample:
    """Copy the archive, for a test that changes it."""
    folder = tmp_path / "altered"
    shutil.copytree(sample.folder, folder)
    return Sample(folder, sample.keyring, sample.log, sample.head, sample.events, sample.quarantined, sample.skipped)


# --- init, keys, config ----------------------------------------------------------------------------------------------


def test_init_makes_archive_and_keyring_and_says_what_is_next(custody: Command) -> None:
    """One command makes what a drain needs, in the folder where the settings say."""
    made = custody("init", "--heartbeat", 60)
    assert made.code == 0, made.err
    info = read_archive(open_store("custody-data/archive"))
    assert info.heartbeat == 60
    assert info.archive in made.out
    assert "custody drain" in made.out
    assert Keyring.load(Path("keyring.json")).signers(datetime.now(UTC))


def test_init_again_changes_nothing(custody: Command) -> None:
    """A second init keeps the archive's identity, its heartbeat and the keys."""
    custody("init")
    before = Path("custody-data/archive/archive.json").read_bytes(), Path("keyring.json").read_bytes()
    again = custody("init", "--heartbeat", 7)
    assert again.code == 0
    assert "there already" in again.out
    assert (Path("custody-data/archive/archive.json").read_bytes(), Path("keyring.json").read_bytes()) == before


def test_keys_are_encrypted_where_a_passphrase_is_set(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a passphrase no secret is on disk in the clear, and none is printed by any command about keys."""
    monkeypatch.setenv("CUSTODY_KEYRING_PASSPHRASE", CANARY)
    outcomes = [
        custody("keys", "new"),
        custody("keys", "list"),
        custody("keys", "rotate"),
        custody("keys", "list", "--json"),
    ]
    assert [one.code for one in outcomes] == [0, 0, 0, 0]
    ring = Keyring.load(Path("keyring.json"), CANARY)
    assert b"sealed" in Path("keyring.json").read_bytes()
    shown = "".join(one.out + one.err for one in outcomes)
    assert CANARY not in shown
    for secret in secrets_of(ring):
        assert secret not in shown
    monkeypatch.delenv("CUSTODY_KEYRING_PASSPHRASE")
    locked = custody("keys", "list")
    assert locked.code == 2
    assert "CUSTODY_KEYRING_PASSPHRASE" in locked.err


def secrets_of(ring: Keyring) -> list[str]:
    """Return every form in which a ring's secrets could be printed."""
    raw = [key.secret.reveal() if isinstance(key, HmacKey) else key.private.reveal() for key in ring.keys]
    return [form for one in raw for form in (one.hex(), base64.b64encode(one).decode(), repr(one))]


def test_keys_list_shows_which_sign_and_the_public_half(custody: Command) -> None:
    """After a rotation the list names every key, and gives an auditor the public half of those that have one."""
    custody("keys", "new")
    custody("keys", "rotate")
    rows = [json.loads(line) for line in custody("keys", "list", "--json").out.splitlines()]
    ring = Keyring.load(Path("keyring.json"))
    assert [row["id"] for row in rows] == [key.key_id for key in ring.keys]
    for row, key in zip(rows, ring.keys, strict=True):
        assert bool(row["public"]) == isinstance(key, Ed25519Key)
    assert all(row["id"] in custody("keys", "list").out for row in rows)


def test_keys_new_never_replaces_a_keyring(custody: Command) -> None:
    """Losing keys takes more than typing a command twice."""
    custody("keys", "new")
    before = Path("keyring.json").read_bytes()
    again = custody("keys", "new")
    assert again.code == 2
    assert "rotate" in again.err
    assert Path("keyring.json").read_bytes() == before


def test_keys_in_a_kms_are_not_made_here(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in AWS KMS is made and rotated there, and the command says so."""
    monkeypatch.setenv("CUSTODY_KEYS", "aws-kms:///alias/custody")
    for command in ("new", "rotate"):
        refused = custody("keys", command)
        assert refused.code == 2
        assert "KMS" in refused.err


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_config_shows_everything_but_secrets(
    custody: Command, monkeypatch: pytest.MonkeyPatch, form: tuple[str]
) -> None:
    """Every setting is there with its value, and every secret is said to be set and hidden."""
    monkeypatch.setenv("CUSTODY_KEYRING_PASSPHRASE", CANARY)
    monkeypatch.setenv("CUSTODY_KAFKA__GROUP", "the-group")
    monkeypatch.setenv("CUSTODY_S3__REGION", "the-region")
    Path("custody.toml").write_text(
        f'[kafka.client]\nsasl.password = "{CANARY}"\nssl.key.pem = "{CANARY}"\nsecurity.protocol = "SASL_SSL"\n'
    )
    shown = custody("config", *form)
    assert shown.code == 0
    assert CANARY not in shown.out + shown.err
    for visible in ("the-group", "the-region", "SASL_SSL", "sasl.password", "ssl.key.pem", "segment_bytes"):
        assert visible in shown.out
    assert shown.out.count("(hidden)") == 3


def test_wrong_setting_is_one_line_and_exit_code_2(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever command meets it, a wrong setting is a line that names it, and no traceback."""
    monkeypatch.setenv("CUSTODY_DRAIN__LEVEL", "11")
    for command in (("config",), ("init",), ("verify",), ("show", "archive.json"), ("keys", "list")):
        refused = custody(*command)
        assert refused.code == 2
        assert refused.out == ""
        assert refused.err.startswith("custody: CUSTODY_DRAIN__LEVEL")
        assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [("verify", "--wrong"), ("verify", "--workers", "-1"), ("nonsense",), ("show",), ("init", "--heartbeat", "0")],
)
def test_usage_errors_exit_with_2(custody: Command, arguments: tuple[str, ...]) -> None:
    """A wrong option or command is told from every verdict by its exit code."""
    assert custody(*arguments).code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [(TransientStoreError("it \x1b[31mfailed\nhere"), 1), (KeyboardInterrupt(), 130), (BrokenPipeError(), 1)],
)
def test_failures_become_one_clean_line(
    custody: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """An error of ours, Ctrl-C and a closed pipe end the command without a traceback or a terminal's control codes."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("custody.show.show", fail)
    ended = custody("show", "archive.json", "--archive", "somewhere")
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert "\x1b" not in ended.err
    if isinstance(error, CustodyError):
        assert ended.err == "custody: it \\x1b[31mfailed\ncustody: here\n"


def test_bugs_keep_their_traceback_without_locals(tmp_path: Path) -> None:
    """An error that is not ours can be reported, and shows no variable's value."""
    script = (
        "import sys, custody.show\nfrom custody.cli import main\n"
        f"def fail(*_):\n    passphrase = {CANARY[:6]!r} + {CANARY[6:]!r}\n    raise LookupError('a bug')\n"
        "custody.show.show = fail\nmain(['show', 'archive.json', '--archive', 'somewhere'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 1
    assert "LookupError: a bug" in run.stderr
    assert CANARY not in run.stderr


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_gives_each_record_by_its_offset(custody: Command, sample: Sample) -> None:
    """An event comes back byte for byte by its log and offset, whatever was skipped or quarantined before it."""
    for offset in [*list(sample.events)[::7], sample.skipped + 1, sample.quarantined + 1]:
        shown = custody("show", f"{sample.log}@{offset}", "--archive", sample.folder)
        assert shown.code == 0, shown.err
        assert shown.out.encode() == sample.events[offset] + b"\n"


def test_show_of_offsets_without_an_event(custody: Command, sample: Sample) -> None:
    """A quarantined record is shown as such; a skipped offset and one beyond the head say what they are."""
    quarantined = custody("show", f"{sample.log}@{sample.quarantined}", "--archive", sample.folder)
    assert json.loads(quarantined.out)["offset"] == sample.quarantined
    skipped = custody("show", f"{sample.log}@{sample.skipped}", "--archive", sample.folder)
    assert skipped.code == 1
    assert "skips" in skipped.err
    beyond = custody("show", f"{sample.log}@{max(sample.events) + 1}", "--archive", sample.folder)
    assert beyond.code == 1
    assert "no statement" in beyond.err


def test_show_gives_manifests_and_their_events(custody: Command, sample: Sample) -> None:
    """A log shows its head, a sequence its manifest, and --events all of a statement's events as JSON lines."""
    head = json.loads(custody("show", sample.log, "--archive", sample.folder).out)
    assert head["statement"]["sequence"] == sample.head.size - 1
    shown: list[bytes] = []
    for sequence in range(sample.head.size):
        one = json.loads(custody("show", f"{sample.log}/{sequence}", "--archive", sample.folder).out)
        assert one["statement"]["sequence"] == sequence
        shown += custody("show", one["key"], "--events", "--archive", sample.folder).out.encode().splitlines()
    assert shown == list(sample.events.values())


def test_show_gives_objects_and_their_place_in_the_chain(custody: Command, sample: Sample) -> None:
    """Every object of an archive can be shown by its key, and says which statement accounts for it."""
    for path in sorted(sample.folder.rglob("*.gz")):
        key = path.relative_to(sample.folder).as_posix()
        place = json.loads(custody("show", key, "--place", "--archive", sample.folder).out)
        manifest = json.loads(custody("show", place["manifest"], "--archive", sample.folder).out)
        kind = "segment" if key.startswith("events/") else "quarantine"
        assert manifest["statement"][kind]["key"] == key
        for line in custody("show", key, "--archive", sample.folder).out.splitlines():
            assert isinstance(json.loads(line), dict)
    assert custody("show", "archive.json", "--archive", sample.folder).code == 0


def test_show_takes_what_verify_prints(custody: Command, sample: Sample) -> None:
    """A key may be given as the object's whole URL."""
    url = open_store(str(sample.folder)).url
    assert custody("show", f"{url}/archive.json", "--archive", sample.folder).code == 0


def test_show_of_an_object_that_no_manifest_names(custody: Command, altered: Sample) -> None:
    """What a writer that died left behind can be looked at, and belongs to no manifest."""
    named = next(altered.folder.glob("events/**/*.gz"))
    stray = named.with_name(re.sub(r"[0-9a-f]{16}\.jsonl", "0" * 16 + ".jsonl", named.name))
    shutil.copy(named, stray)
    key = stray.relative_to(altered.folder).as_posix()
    assert json.loads(custody("show", key, "--place", "--archive", altered.folder).out)["manifest"] is None
    assert custody("show", key, "--archive", altered.folder).code == 0
    assert custody("show", key, "--events", "--archive", altered.folder).code == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "add", "empty"])
def test_show_of_a_damaged_object_says_so(custody: Command, altered: Sample, damage: str) -> None:
    """Bytes that are not what was signed are never shown without a word about it and a failing exit code."""
    path = next(altered.folder.glob("events/**/*.gz"))
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-6] ^= 1
    path.write_bytes({"flip": bytes(flipped), "cut": data[:-3], "add": data + data, "empty": b""}[damage])
    shown = custody("show", path.relative_to(altered.folder), "--archive", altered.folder)
    assert shown.code == 1
    assert "custody verify" in shown.err


@pytest.mark.parametrize(
    "what",
    ["", "nonsense", "../../etc/passwd", "events/../../x", "a/b/c/d", "a@1/0", "a/99999999999", "/", "archive.json/"],
)
def test_show_of_nonsense_is_a_usage_error(custody: Command, sample: Sample, what: str) -> None:
    """What no archive can hold is refused with the forms that it can be asked for."""
    refused = custody("show", what, "--archive", sample.folder)
    assert refused.code == 2
    assert "LOG/PARTITION" in refused.err


def test_show_of_what_is_not_there(custody: Command, sample: Sample) -> None:
    """A log, manifest or object that the archive lacks is an error of one line."""
    for what in ("other/0", f"{sample.log}/77", "other/0@5", "checkpoints/other/0/000000000001"):
        missing = custody("show", what, "--archive", sample.folder)
        assert missing.code == 1
        assert missing.err.count("\n") == 1


def test_control_codes_of_an_archive_never_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a person looks on, bytes that a terminal obeys become escapes; into a pipe they go as they are."""
    hostile = '{"a":"\x1b]0;x\x07\x9b31m\u202e","b":"ü"}\n'.encode() + b"\xff\n"
    for terminal in (False, True):
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        monkeypatch.setattr(out, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stdout", out)
        # In pieces that split characters.
        render.write(iter([hostile[i : i + 1] for i in range(len(hostile))]))
        written = out.buffer.getvalue()  # type: ignore[attr-defined]
        if terminal:
            assert written.decode().replace("\n", "").isprintable()
            assert "ü" in written.decode()
            assert "\\u001b" in written.decode()
        else:
            assert written == hostile
    assert render.safe("a\x1b[2Jb\n[red]").plain == "a\\x1b[2Jb\\n[red]"


def test_a_reader_that_stops_early_is_no_error(sample: Sample) -> None:
    """`custody show … | head -1` prints a line and nothing on stderr."""
    command = f"custody show {sample.log}/1 --events --archive {sample.folder} | head -c 1"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.stdout == "{"
    assert run.stderr == ""


# --- verify ----------------------------------------------------------------------------------------------------------


def lines_of(result: Result, kind: str) -> list[dict[str, Any]]:
    """Return the JSON lines of one kind: finding, log or verdict."""
    return [line for line in map(json.loads, result.out.splitlines()) if line["kind"] == kind]


def findings_of(result: Result) -> list[str]:
    """Return the names of the findings, in order."""
    return [line["finding"] for line in lines_of(result, "finding")]


def test_verify_of_a_good_archive(custody: Command, sample: Sample) -> None:
    """All is verified: exit code 0, every event counted, each head named, nothing on stderr but on a terminal."""
    keys = ("--keys", f"file:{sample.keyring}")
    lines = custody("verify", sample.folder, *keys, "--json")
    assert lines.code == 0, lines.out + lines.err
    assert findings_of(lines) == []
    (verdict,) = lines_of(lines, "verdict")
    assert verdict["exit_code"] == 0
    (log,) = lines_of(lines, "log")
    assert (log["log"], log["size"], log["root"]) == (str(sample.log), sample.head.size, sample.head.root)
    assert (log["events"], log["quarantined"], log["skipped"], log["lost"]) == (len(sample.events), 1, 1, 0)
    people = custody("verify", sample.folder, *keys)
    assert people.code == 0
    assert str(sample.log) in people.out
    assert f"{len(sample.events):,}" in people.out
    assert people.err == lines.err == ""


def test_verify_takes_archive_keys_trust_and_state_from_settings(
    custody: Command, sample: Sample, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is no argument is a setting, so that a nightly job needs no arguments."""
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(sample.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{sample.keyring}")
    monkeypatch.setenv("CUSTODY_STATE", str(tmp_path / "state.json"))
    assert custody("verify").code == 0
    assert (tmp_path / "state.json").exists()


def test_verify_says_what_was_changed(custody: Command, altered: Sample) -> None:
    """A changed byte is tampering: exit code 13, and the finding with its object for people and programs."""
    path = next(altered.folder.glob("events/**/*.gz"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    keys = ("--keys", f"file:{altered.keyring}")
    lines = custody("verify", altered.folder, *keys, "--json")
    assert lines.code == 13
    assert findings_of(lines)[0] == "segment-hash"
    assert json.loads(lines.out.splitlines()[0])["key"] == path.relative_to(altered.folder).as_posix()
    people = custody("verify", altered.folder, *keys)
    assert people.code == 13
    assert "segment-hash" in people.out
    assert "TAMPERED" in people.out


def test_verify_tells_incomplete_from_tampered(custody: Command, altered: Sample) -> None:
    """A segment that is gone is exit code 11."""
    next(altered.folder.glob("events/**/*.gz")).unlink()
    assert custody("verify", altered.folder, "--keys", f"file:{altered.keyring}").code == 11


def test_verify_remembers_heads_and_notices_one_that_went_back(
    custody: Command, altered: Sample, tmp_path: Path
) -> None:
    """With --state an archive that lost its newest statements no longer passes, though what is left is whole."""
    state = tmp_path / "seen.json"
    command = ("verify", altered.folder, "--keys", f"file:{altered.keyring}", "--state", state, "--json")
    assert custody(*command).code == 0
    for path in (max((altered.folder / "manifests").rglob("*.json")), max(altered.folder.glob("events/**/*.gz"))):
        path.unlink()
    back = custody(*command)
    assert back.code == 13
    assert "head-rollback" in findings_of(back)


def test_verify_without_the_key_is_not_success(custody: Command, sample: Sample, tmp_path: Path) -> None:
    """Another keyring than the writer's verifies nothing: exit code 12."""
    (tmp_path / "other").mkdir()
    other = make_archive(tmp_path / "other")
    assert custody("verify", sample.folder, "--keys", f"file:{other.keyring}").code == 12


def test_verify_wants_keys_or_trust(custody: Command, sample: Sample) -> None:
    """With nothing to check signatures by, the command says what to give it, and passes no verdict."""
    refused = custody("verify", sample.folder)
    assert refused.code == 2
    assert "--keys" in refused.err
    assert "--trust" in refused.err


def test_verify_of_an_archive_that_is_not_there(custody: Command, sample: Sample) -> None:
    """An empty or wrong folder is never verified."""
    missing = custody("verify", "no-such-folder", "--keys", f"file:{sample.keyring}")
    assert missing.code in {2, 12}
    assert not Path("no-such-folder").exists()
    Path("empty").mkdir()
    assert custody("verify", "empty", "--keys", f"file:{sample.keyring}").code == 12
    assert custody("verify", "", "--keys", f"file:{sample.keyring}").code == 2


@pytest.mark.parametrize("hostile", ["\x1b[2Jgone", "[red]markup", "a\nb", "\u202egnp"])
def test_names_in_a_hostile_archive_are_shown_harmless(custody: Command, altered: Sample, hostile: str) -> None:
    """A file's name in an archive neither clears an auditor's terminal nor styles it nor adds a line to the table."""
    (altered.folder / "events" / hostile).write_bytes(b"x")
    people = custody("verify", altered.folder, "--keys", f"file:{altered.keyring}")
    assert people.code == 13
    assert people.out.replace("\n", "").isprintable()
    if "[red]" in hostile:
        assert "[red]" in people.out


def test_keys_and_trust_are_never_taken_from_the_archive(
    custody: Command, altered: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keyring or trust that came with the archive is refused, named or found: a forger could have put it there."""
    inside = altered.folder / "keyring.json"
    shutil.copy(altered.keyring, inside)
    for archive in (altered.folder, altered.folder.as_uri()):
        named = custody("verify", archive, "--keys", f"file:{inside}")
        assert named.code == 2
        assert "lies in the archive" in named.err
    monkeypatch.chdir(altered.folder)
    assert custody("verify", ".").code == 2
    assert custody("verify", ".", "--trust", "trust.json").code == 2


def test_verify_with_a_trust_file_alone(custody: Command, sample: Sample) -> None:
    """With the public key of trust.json nobody is asked for a keyring, and no signature is called wrong."""
    ring = Keyring.load(sample.keyring)
    rows = [
        {"id": key.key_id, "algorithm": key.algorithm, "from": None, "to": None}
        | ({"public": base64.b64encode(key.public).decode()} if isinstance(key, Ed25519Key) else {})
        for key in ring.keys
    ]
    Path("trust.json").write_text(json.dumps({"format": "custody/trust/1", "keys": rows}))
    checked = custody("verify", sample.folder, "--trust", "trust.json", "--json")
    assert checked.code in {0, 3, 12}, checked.err
    assert not {"signature", "key-unknown"} & set(findings_of(checked))


def test_progress_and_colours_are_for_terminals_only(sample: Sample, tmp_path: Path) -> None:
    """On a terminal the verdict has a colour; into a pipe there is text alone."""
    command = [sys.executable, "-c", "from custody.cli import main; main()", "verify", str(sample.folder)]
    command += ["--keys", f"file:{sample.keyring}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUSTODY_")}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60)
    assert piped.returncode == 0
    assert b"\x1b" not in piped.stdout + piped.stderr
    parent, child = pty.openpty()
    try:
        shown = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=child, stderr=child, check=False, timeout=60
        )
        assert shown.returncode == 0
        assert b"\x1b[" in os.read(parent, 65_536)
    finally:
        os.close(parent)
        os.close(child)
