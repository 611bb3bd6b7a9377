"""The command line: what it prints, what it refuses, its exit codes, and that no secret or control code gets out."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from custody.archive.reader import read_archive
from custody.cli import render, terminal
from custody.errors import CustodyError, TransientStoreError
from custody.keys import trust_file
from custody.keys.key import Ed25519Key
from custody.keys.keyring import Keyring
from custody.keys.open import open_public
from custody.store.open import open_store
from custody.tlog.checkpoint import sign_checkpoint
from custody.tlog.head import Head
from tests.helpers.commands import Command, Result
from tests.helpers.sample import Sample, make_archive

CANARY = "canary-Zq7-secret"
ROOT = Path(__file__).parents[3]


def test_an_interrupt_while_the_command_line_is_read_in() -> None:
    """The command ends as it would later, without a traceback."""
    line = (
        "import builtins\n"
        "real = builtins.__import__\n"
        "def read(name, *more, **named):\n"
        "    if name == 'custody.cli.main':\n"
        "        raise KeyboardInterrupt\n"
        "    return real(name, *more, **named)\n"
        "builtins.__import__ = read\n"
        "from custody.__main__ import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


# --- config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [(), ("--json",), ("--sources",), ("--sources", "--json")])
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


def test_an_option_is_named_as_the_source(custody: Command) -> None:
    """What an option sets comes from the option, also in an error, and not from a variable that nobody set."""
    sources = custody("config", "--sources", "--archive", "elsewhere", "--keys", "other.json").out
    assert "--archive" in sources
    assert "--keys" in sources
    assert not {"CUSTODY_ARCHIVE", "CUSTODY_KEYS"} & set(sources.split())
    assert "archive in --archive: " in custody("config", "--archive", "").err
    checked = custody("check", "--archive", "elsewhere").out
    assert "--archive" in checked
    assert "CUSTODY_ARCHIVE" not in checked
    # The next command of the process has no options.
    assert "--archive" not in custody("config", "--sources").out


def test_wrong_setting_is_one_line_and_exit_code_2(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever command meets it, a wrong setting is a line that names it, and no traceback."""
    commands = [("config",), ("init",), ("verify",), ("show", "archive.json"), ("keys", "list")]
    for variable, judged_by in (("CUSTODY_S3__LEGAL_HOLD", commands), ("CUSTODY_DRAIN__LEVEL", [("config",)])):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "11")
            for command in judged_by:
                refused = custody(*command)
                assert refused.code == 2
                assert refused.out == ""
                assert refused.err.startswith("custody: ")
                assert f" in {variable}: " in refused.err
                assert refused.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [("verify", "--wrong"), ("verify", "--workers", "-1"), ("nonsense",), ("show",), ("keys", "end", "hmac-1")],
)
def test_usage_errors_exit_with_2(custody: Command, arguments: tuple[str, ...]) -> None:
    """A wrong option or command is told from every verdict by its exit code."""
    assert custody(*arguments).code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TransientStoreError("it \x1b[31mfailed\nhere", "and here"), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 1),
    ],
)
def test_failures_become_one_clean_line(
    custody: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """An error of ours, Ctrl-C and a closed pipe end the command without a traceback or a terminal's control codes."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("custody.archive.show.show", fail)
    ended = custody("show", "archive.json", "--archive", "somewhere")
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert "\x1b" not in ended.err
    if isinstance(error, CustodyError):
        assert ended.err == "custody: it \\x1b[31mfailed\\nhere\ncustody: and here\n"


def test_bugs_keep_their_traceback_without_locals(tmp_path: Path) -> None:
    """An error that is not ours can be reported, and shows no variable's value."""
    script = (
        "import sys, custody.archive.show\nfrom custody.cli.main import main\n"
        f"def fail(*_):\n    passphrase = {CANARY[:6]!r} + {CANARY[6:]!r}\n    raise LookupError('a bug')\n"
        "custody.archive.show.show = fail\nmain(['show', 'archive.json', '--archive', 'somewhere'])"
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
    assert skipped.code == 2
    assert "no event" in skipped.err
    beyond = custody("show", f"{sample.log}@{max(sample.events) + 1}", "--archive", sample.folder)
    assert beyond.code == 2
    assert "no statement" in beyond.err


def test_show_gives_manifests_and_their_events(custody: Command, sample: Sample) -> None:
    """A log shows its head, a sequence its manifest, and --events all of a statement's events as JSON lines."""
    head = json.loads(custody("show", sample.log, "--archive", sample.folder).out)
    assert head["statement"]["sequence"] == sample.tip.size - 1
    shown: list[bytes] = []
    for sequence in range(sample.tip.size):
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
    for what, code in (
        ("other/0", 2),
        (f"{sample.log}/77", 1),
        ("other/0@5", 2),
        ("checkpoints/other/0/000000000001", 1),
    ):
        missing = custody("show", what, "--archive", sample.folder)
        assert missing.code == code
        assert missing.err.count("\n") == 1


def test_control_codes_of_an_archive_never_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a person looks on, bytes that a terminal obeys become escapes; into a pipe they go as they are."""
    hostile = '{"a":"\x1b]0;x\x07\x9b31m\u202e","b":"ü"}\n'.encode() + b"\xff\n"
    for tty in (False, True):
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="utf-8")
        monkeypatch.setattr(out, "isatty", lambda tty=tty: tty)
        monkeypatch.setattr(sys, "stdout", out)
        # In pieces that split characters.
        terminal.write(iter([hostile[i : i + 1] for i in range(len(hostile))]))
        written = raw.getvalue()
        if tty:
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
    assert (log["log"], log["size"], log["root"]) == (str(sample.log), sample.tip.size, sample.tip.head.root.hex())
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
    assert (people.code, "foreign" in people.out) == (10, True)
    assert people.out.replace("\n", "").isprintable()
    if "[red]" in hostile:
        assert "[red]" in people.out


def test_keys_and_trust_are_never_taken_from_the_archive(
    custody: Command, altered: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came with the archive is refused, named or found: whoever forged the archive could have put it there."""
    inside = altered.folder / "keyring.json"
    shutil.copy(altered.keyring, inside)
    for archive in (altered.folder, altered.folder.as_uri()):
        named = custody("verify", archive, "--keys", f"file:{inside}")
        assert named.code == 2
        assert "lies in the archive" in named.err
    monkeypatch.chdir(altered.folder)
    assert custody("verify", ".").code == 2
    assert custody("verify", ".", "--trust", "trust.json").code == 2


@pytest.mark.parametrize("what", ["trust", "state", "checkpoint_keys", "link out", "link in"])
def test_no_file_that_steers_a_verification_lies_in_the_archive(
    custody: Command, altered: Sample, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    """Nor are trust.json, the state and `checkpoint_keys` taken from there, by whichever way a link leads."""
    inside = altered.folder / "reports" / "own.json"
    inside.parent.mkdir()
    outside = publish(altered, tmp_path / "trust.json")
    arguments: list[object] = ["verify", altered.folder]
    if what == "checkpoint_keys":
        # As a custody.toml says in the archive's folder, where an auditor stands.
        shutil.copy(altered.keyring, inside)
        (altered.folder / "reports" / "custody.toml").write_text('checkpoint_keys = "file:own.json"')
        monkeypatch.chdir(inside.parent)
        arguments += ["--trust", outside]
    elif what == "state":
        arguments += ["--trust", outside, "--state", inside]
    elif what == "link out":
        inside.symlink_to(outside)
        arguments += ["--trust", inside]
    else:
        shutil.copy(outside, inside)
        link = tmp_path / "link.json"
        link.symlink_to(inside)
        arguments += ["--trust", link if what == "link in" else inside]
    refused = custody(*arguments)
    assert refused.code == 2
    assert "lies in the archive" in refused.err
    assert what != "state" or not inside.exists()


@pytest.mark.parametrize("what", ["keys", "trust", "for", "memory"])
def test_no_file_that_steers_evidence_lies_in_the_archive(
    custody: Command, altered: Sample, tmp_path: Path, what: str
) -> None:
    """The same holds for the commands whose results others check."""
    inside = altered.folder / "reports" / "own.json"
    inside.parent.mkdir()
    outside = publish(altered, tmp_path / "trust.json")
    shutil.copy(altered.keyring if what == "keys" else outside, inside)
    made = ["evidence", altered.log, 0, "-o", tmp_path / "made.zip"]
    watched = ["witness", altered.folder, "--state", tmp_path / "seen.json", "--trust", outside]
    archive = ["--archive", altered.folder]
    commands = {
        "keys": [[*made, *archive, "--keys", f"file:{inside}"]],
        "trust": [[*made, *archive, "--trust", inside], [*watched[:-1], inside]],
        "for": [[*made, *archive, "--keys", f"file:{altered.keyring}", "--for", inside]],
        "memory": [["witness", altered.folder, "--state", inside.parent, "--trust", outside]],
    }
    for arguments in commands[what]:
        refused = custody(*arguments)
        assert (refused.code, "lies in the archive" in refused.err) == (2, True), refused
    assert not (tmp_path / "made.zip").exists()


def publish(sample: Sample, path: Path) -> Path:
    """Write what the sample's auditor is given."""
    trust_file.publish(path, read_archive(open_store(str(sample.folder))).pin, open_public(f"file:{sample.keyring}"))
    return path


def test_verify_with_public_keys_alone(custody: Command, sample: Sample, tmp_path: Path) -> None:
    """With trust.json nobody is asked for a keyring: what no checkpoint covers yet is pending, and no more is wrong."""
    trust = publish(sample, tmp_path / "trust.json")
    checked = custody("verify", sample.folder, "--trust", trust, "--live", "--json")
    assert checked.code == 3, checked.out + checked.err
    assert set(findings_of(checked)) <= {"unchecked-signature", "pending-checkpoint"}
    (log,) = lines_of(checked, "log")
    assert log["pending"] == sample.tip.size


def test_verify_covered_by_a_checkpoint_that_was_kept(custody: Command, sample: Sample, tmp_path: Path) -> None:
    """A checkpoint given by --checkpoint covers what it is of; one with another root, in the same file, is a fork."""
    trust = publish(sample, tmp_path / "trust.json")
    archive = read_archive(open_store(str(sample.folder))).id
    signer = Keyring.load(sample.keyring).keys[1]
    assert isinstance(signer, Ed25519Key)
    head = sample.tip.head
    good = sign_checkpoint(signer, archive, sample.log, head).encode()
    wrong = sign_checkpoint(signer, archive, sample.log, Head(head.size, bytes(32))).encode()
    Path("good.txt").write_bytes(good)
    Path("both.txt").write_bytes(good + b"\n" + wrong)
    covered = custody("verify", sample.folder, "--trust", trust, "--checkpoint", "good.txt", "--json")
    assert covered.code == 3, covered.out
    assert findings_of(covered) == ["unchecked-signature"]
    (log,) = lines_of(covered, "log")
    assert log["pending"] == 0
    assert custody("verify", sample.folder, "--trust", trust, "--checkpoint", "both.txt").code == 13
    missing = custody("verify", sample.folder, "--trust", trust, "--checkpoint", "none.txt")
    assert missing.code == 2
    assert "none.txt" in missing.err
    Path("empty.txt").touch()
    for path in ("empty.txt", trust):
        refused = custody("verify", sample.folder, "--trust", trust, "--checkpoint", path)
        assert (refused.code, "has no checkpoint" in refused.err) == (2, True)
    # One that is broken, among others, is judged by verification.
    Path("broken.txt").write_bytes(good + b"\n" + good.replace(b"custody/", b"other/", 1))
    assert custody("verify", sample.folder, "--trust", trust, "--checkpoint", "broken.txt").code == 10


def test_verify_of_another_archive_than_the_one_pinned(custody: Command, sample: Sample, tmp_path: Path) -> None:
    """trust.json is for one archive: a whole other one in its place, of the same keys too, is tampering."""
    (tmp_path / "other").mkdir()
    other = make_archive(tmp_path / "other")
    trust = publish(other, tmp_path / "trust.json")
    checked = custody("verify", sample.folder, "--trust", trust, "--keys", f"file:{sample.keyring}", "--json")
    assert checked.code == 13
    assert "archive" in findings_of(checked)


def test_what_verify_prints_ends_a_key(custody: Command, sample: Sample, tmp_path: Path) -> None:
    """`custody verify --json | custody keys end ID --at -`: the heads are those that were verified."""
    trust = publish(sample, tmp_path / "trust.json")
    report = custody("verify", sample.folder, "--keys", f"file:{sample.keyring}", "--chain-only", "--json")
    assert report.code == 0, report.out
    Path("report.jsonl").write_text(report.out)
    key = Keyring.load(sample.keyring).keys[0].key_id
    ended = custody("keys", "end", key, "--at", "report.jsonl", "--audits", "0", "--trust", trust)
    assert ended.code == 0, ended.err
    until = {str(sample.log): {"size": sample.tip.size, "root": sample.tip.head.root.hex()}}
    assert json.loads(trust.read_bytes())["keys"][0]["until"] == until
    arguments = ("verify", sample.folder, "--trust", trust, "--keys", f"file:{sample.keyring}")
    assert custody(*arguments).code == 0
    custody("keys", "end", key, "--at", "report.jsonl", "--audits", "0", "--trust", trust)
    shorter = json.loads(trust.read_bytes())
    shorter["keys"][0]["until"] = {}
    trust.write_text(json.dumps(shorter))
    assert custody(*arguments).code == 13


def test_progress_and_colours_are_for_terminals_only(sample: Sample, tmp_path: Path) -> None:
    """On a terminal the verdict has a colour; into a pipe there is text alone."""
    command = [sys.executable, "-c", "from custody.cli.main import main; main()", "verify", str(sample.folder)]
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
