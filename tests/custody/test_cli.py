"""The command line: what it prints, what it refuses, its exit codes, and that no secret or control code gets out."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from custody import cli, render
from custody.archive import read_archive
from custody.errors import CustodyError, TransientStoreError
from custody.keys import Ed25519Key, HmacKey, Keyring
from custody.store import open_store
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
    for name in list(os.environ):
        if name.upper().startswith("CUSTODY_"):
            monkeypatch.delenv(name)
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
    import base64

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
    [("verify", "--wrong"), ("verify", "--workers", "0"), ("nonsense",), ("show",), ("init", "--heartbeat", "0")],
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
