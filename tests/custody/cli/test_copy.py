"""`custody copy`: copies, verifies by the heads of the first, and says by its exit code how both went."""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from custody.errors import TransientStoreError
from custody.store.folder import FolderStore
from tests.helpers.archives import Builder
from tests.helpers.commands import Command, Result
from tests.helpers.reading import read_folder
from tests.helpers.sample import Growing, Sample, make_archive

ROOT = Path(__file__).resolve().parents[3]


def lines_of(result: Result, kind: str) -> list[dict[str, Any]]:
    """Return the JSON lines of one kind."""
    return [line for line in map(json.loads, result.out.splitlines()) if line["kind"] == kind]


def test_a_copy_is_verified(custody: Command, sample: Sample) -> None:
    """The copy is the first, byte for byte, and verified by its heads; the second run has nothing to do."""
    command = ("copy", sample.folder, "copy", "--keys", f"file:{sample.keyring}")
    first = custody(*command)
    assert (first.code, first.err) == (0, "")
    assert read_folder(Path("copy")) == read_folder(sample.folder)
    count = len(read_folder(sample.folder))
    assert f"Copied {count:,} objects" in first.out
    assert "verified: 148 events in 1 log" in first.out
    assert "signed heads of 1 log" in first.out
    again = custody(*command, "--json")
    assert again.code == 0
    (copied,) = lines_of(again, "copied")
    assert (copied["objects"], copied["present"], copied["refused"]) == (0, count, {})
    assert lines_of(again, "heads") == [{"kind": "heads", "logs": [str(sample.log)], "unsigned": []}]
    (verdict,) = lines_of(again, "verdict")
    assert (verdict["exit_code"], verdict["url"]) == (0, Path("copy").resolve().as_uri())


def test_a_copy_without_verification(custody: Command, sample: Sample) -> None:
    """Without keys the command says what to give it, and writes nothing; --no-verify copies, and says what is left."""
    refused = custody("copy", sample.folder, "copy")
    assert refused.code == 2
    assert "--no-verify" in refused.err
    assert not Path("copy").exists()
    copied = custody("copy", sample.folder, "copy", "--no-verify")
    assert copied.code == 0
    assert "Not verified: run `custody verify file:///" in copied.out
    assert read_folder(Path("copy")) == read_folder(sample.folder)


def test_only_the_chain_is_verified(custody: Command, altered: Sample) -> None:
    """With --chain-only no segment is read, so one that differs from its statement is not found."""
    path = next(altered.folder.glob("events/**/*.gz"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    keys = ("--keys", f"file:{altered.keyring}")
    chain = custody("copy", altered.folder, "chain", *keys, "--chain-only")
    assert (chain.code, "no segment was read" in chain.out) == (0, True)
    whole = custody("copy", altered.folder, "whole", *keys)
    assert (whole.code, "segment-hash" in whole.out) == (13, True)


def test_an_altered_copy_is_found(custody: Command, sample: Sample) -> None:
    """What was changed in the copy, with its size kept, is found by the verification after the next run."""
    command = ("copy", sample.folder, "copy", "--keys", f"file:{sample.keyring}", "--json")
    assert custody(*command).code == 0
    path = next(Path("copy").glob("events/**/*.gz"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = custody(*command)
    assert (found.code, [line["finding"] for line in lines_of(found, "finding")]) == (13, ["segment-hash"])


def test_a_first_that_went_back_is_found_by_the_state(custody: Command, altered: Sample, tmp_path: Path) -> None:
    """With --state the heads that the first once had must be in the copy too: an older first is no good one."""
    state, keys = tmp_path / "heads.json", ("--keys", f"file:{altered.keyring}")
    assert custody("verify", altered.folder, *keys, "--state", state).code == 0
    for path in (max((altered.folder / "manifests").rglob("*.json")), max(altered.folder.glob("events/**/*.gz"))):
        path.unlink()
    shutil.rmtree(altered.folder / "checkpoints", ignore_errors=True)
    assert custody("copy", altered.folder, "silent", *keys).code == 0
    found = custody("copy", altered.folder, "copy", *keys, "--state", state, "--json")
    assert found.code == 13
    (back,) = lines_of(found, "finding")
    assert back["finding"] == "head-rollback"
    assert altered.folder.as_uri() in json.dumps(back)


def test_what_is_refused(custody: Command, sample: Sample, tmp_path: Path) -> None:
    """What differs is named for people and programs, and the exit code is that of the worst, verified or not."""
    keys = ("--keys", f"file:{sample.keyring}")
    assert custody("copy", sample.folder, "copy", *keys).code == 0
    path = next(Path("copy").glob("manifests/**/*0001.json"))
    path.write_bytes(path.read_bytes() + b"\n")
    for more in ((), ("--no-verify",)):
        people = custody("copy", sample.folder, "copy", *keys, *more)
        assert people.code == 13
        assert path.relative_to("copy").as_posix() in people.out
        programs = custody("copy", sample.folder, "copy", *keys, *more, "--json")
        (line,) = lines_of(programs, "refused")
        assert (line["reason"], line["severity"]) == ("differs", "tampered")
        assert sample.folder.as_uri() in line["message"]
        assert (tmp_path / "copy").as_uri() in line["message"]


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("{0}", "{0}", "one is inside the other"),
        ("{0}", "{0}/copy", "one is inside the other"),
        ("{0}", "other", "another archive"),
        ("nowhere", "copy", "no archive"),
        ("ftp://host/x", "copy", "cannot be kept in ftp"),
    ],
)
def test_wrong_arguments(custody: Command, sample: Sample, source: str, target: str, why: str) -> None:
    """Each wrong pair is one line and exit code 2, and nothing is written."""
    Builder(Path("other").absolute()).init()
    before = read_folder(sample.folder), read_folder(Path("other"))
    for more in (("--no-verify",), ("--keys", f"file:{sample.keyring}")):
        refused = custody("copy", source.format(sample.folder), target.format(sample.folder), *more)
        assert refused.code == 2, refused
        assert len(refused.err.splitlines()) == 1
        assert why in refused.err or (why == "no archive" and "there is no" in refused.err)
    assert (read_folder(sample.folder), read_folder(Path("other"))) == before
    assert not Path("copy").exists()


@pytest.mark.parametrize("at", ["first", "copy"])
def test_keys_and_trust_are_never_taken_from_either_archive(
    custody: Command, altered: Sample, tmp_path: Path, at: str
) -> None:
    """A keyring or a trust.json in the first or in the copy is refused: who can write there could have put it."""
    folder = altered.folder if at == "first" else tmp_path / "copy"
    folder.mkdir(exist_ok=True)
    shutil.copy(altered.keyring, folder / "keyring.json")
    refused = custody("copy", altered.folder, tmp_path / "copy", "--keys", f"file:{folder / 'keyring.json'}")
    assert (refused.code, "cannot be trusted" in refused.err) == (2, True)


def test_an_outage_says_how_to_go_on(custody: Command, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is exit code 1: what was copied stays, and the same command goes on."""
    create = FolderStore.create

    def fail(self: FolderStore, key: str, data: bytes) -> None:
        if key.endswith("2.json"):
            raise TransientStoreError("503")
        create(self, key, data)

    command = ("copy", sample.folder, "copy", "--keys", f"file:{sample.keyring}")
    with monkeypatch.context() as patched:
        patched.setattr(FolderStore, "create", fail)
        failed = custody(*command)
    assert failed.code == 1
    assert "Run the same command again" in failed.err
    assert "503" in failed.err
    assert custody(*command).code == 0


SLOW = """
import sys, time
from custody.store.folder import FolderStore
create = FolderStore.create
def slow(self, key, data):
    if key.startswith("events/"):
        print("putting", file=sys.stderr, flush=True)
        time.sleep(120)
    create(self, key, data)
FolderStore.create = slow
from custody.cli.main import main
main()
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
def test_a_signal_ends_it_at_once(custody: Command, sample: Sample, tmp_path: Path, kind: signal.Signals) -> None:
    """A signal ends a copy within seconds though a store does not answer, by that signal; the next run completes it."""
    arguments = ["copy", str(sample.folder), str(tmp_path / "copy"), "--keys", f"file:{sample.keyring}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUSTODY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert process.stderr.readline() == "putting\n"
    process.send_signal(kind)
    # The store would take two minutes.
    _, err = process.communicate(timeout=60)
    assert process.returncode == -kind
    assert "ended by a signal. " in err
    assert "Run the same command again to go on." in err
    assert custody(*arguments).code == 0
    assert read_folder(tmp_path / "copy") == read_folder(sample.folder)


SHOW_AT_ONCE = "from custody.cli import main, render; render.PROGRESS_AFTER = 0; main.main()"
"""The command line, which otherwise shows progress only of what takes longer than a second."""


def test_progress_is_for_terminals_only(sample: Sample, tmp_path: Path) -> None:
    """On a terminal a bar shows how far the copy is; into a pipe there is text alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUSTODY_")}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    command = [sys.executable, "-c", SHOW_AT_ONCE, "copy", str(sample.folder)]
    keys = ["--keys", f"file:{sample.keyring}"]
    piped = subprocess.run(
        [*command, "piped", *keys], cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=60
    )
    assert (piped.returncode, piped.stderr, b"\x1b" in piped.stdout) == (0, b"", False)
    parent, child = pty.openpty()
    try:
        shown = subprocess.run(
            [*command, "shown", *keys], cwd=tmp_path, env=environment, stderr=child, check=False, timeout=60
        )
        assert shown.returncode == 0
        # A terminal gives some thousand bytes at a time.
        written = b""
        while select.select([parent], [], [], 0.5)[0]:
            written += os.read(parent, 65_536)
        assert b"copying" in written
        quiet = subprocess.run(
            [*command, "shown", *keys, "--quiet"], cwd=tmp_path, env=environment, stderr=child, check=False, timeout=60
        )
        assert quiet.returncode == 0
        assert select.select([parent], [], [], 0)[0] == []
    finally:
        os.close(parent)
        os.close(child)


def test_a_promoted_copy_goes_on_and_the_first_is_not_mixed_in(custody: Command, tmp_path: Path) -> None:
    """A writer goes on in the copy. If the first went on too, the next run names the log, and changes nothing."""
    growing = Growing(tmp_path)
    growing.append(2)
    keys = ("--keys", f"file:{growing.keyring}")
    assert custody("copy", growing.folder, "replica", *keys).code == 0
    first, growing.folder = growing.folder, tmp_path / "replica"
    growing.append(2)
    assert custody("verify", "replica", *keys).code == 0
    behind = custody("copy", first, "replica", *keys, "--json")
    assert ([line["reason"] for line in lines_of(behind, "refused")], behind.code) == (["ahead"], 11)
    growing.folder, growing.writer = first, "another"
    growing.append(2)
    before = read_folder(tmp_path / "replica")
    forked = custody("copy", first, "replica", *keys, "--json")
    assert ([line["reason"] for line in lines_of(forked, "refused")], forked.code) == (["fork"], 13)
    assert {line["finding"] for line in lines_of(forked, "finding")} == {"head-fork"}
    assert read_folder(tmp_path / "replica") == before


def test_a_log_without_a_signed_head_is_named(custody: Command, altered: Sample, tmp_path: Path) -> None:
    """Where no trusted key signed a head in the first, the command says that its end may be missing."""
    (tmp_path / "other").mkdir()
    other = make_archive(tmp_path / "other")
    shutil.copytree(other.folder / "manifests/audit.events", altered.folder / "manifests/audit.others")
    done = custody("copy", altered.folder, "copy", "--keys", f"file:{altered.keyring}")
    assert done.code == 10
    assert "audit.others/0 has no head there" in done.out


def test_the_cron_of_a_replica(custody: Command, tmp_path: Path) -> None:
    """With keys, --no-verify too leaves what nobody signed behind, and the next run takes what was signed there."""
    growing = Growing(tmp_path)
    growing.append(2)
    command = ("copy", growing.folder, "replica", "--no-verify", "--keys", f"file:{growing.keyring}", "--json")
    slot = growing.folder / f"manifests/{growing.log}/000000000002.json"
    slot.write_bytes(b"x")
    left = custody(*command)
    assert ([line["reason"] for line in lines_of(left, "refused")], left.code) == (["unsigned"], 10)
    assert lines_of(left, "verdict") == []
    slot.unlink()
    growing.append(2)
    assert custody(*command).code == 0
    assert read_folder(Path("replica")) == read_folder(growing.folder)


def test_folders_have_no_endpoint(custody: Command, sample: Sample) -> None:
    """An endpoint makes no folder another one: an archive is not copied into itself."""
    before = read_folder(sample.folder)
    refused = custody(
        "copy", sample.folder, sample.folder / "sub", "--from-endpoint", "https://x.invalid", "--no-verify"
    )
    assert (refused.code, "inside the other" in refused.err) == (2, True)
    assert read_folder(sample.folder) == before
