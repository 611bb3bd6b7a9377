"""The README and the pages in docs are true: commands run, what they name exists, and no secret leaks on the way."""

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from custody.settings import OPERATORS_SECTIONS
from flows.operate.sample import invalid_values, sample_events
from tasks.settings import Settings
from tests.servers.kafka import KafkaServer
from tests.servers.s3 import SeaweedServer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
DEMO = "pip install uv && uv run custody demo"
SECONDS = 280


def run(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a line of the README by a shell, as a reader would, with this checkout's environment first on the path."""
    # uv finds the project by --project, so that what the commands leave behind lands in the test's folder.
    command = re.sub(r"\buv run\b", f"uv run --no-sync --project '{ROOT}'", command)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "PREFECT_", "COLUMNS"))
    }
    return subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env={**clean, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def fields(settings: object) -> list[str]:
    """Return the names of the settings of one section."""
    if is_dataclass(settings):
        return [field.name for field in dataclass_fields(settings)]
    assert isinstance(settings, BaseModel)
    return list(type(settings).model_fields)


def test_first_block_is_a_clone_and_two_commands(tmp_path: Path) -> None:
    """A newcomer needs a clone and two lines, and no more. The clone is where the other two find the project."""
    clone, *commands = BLOCKS[0].splitlines()
    assert commands == [DEMO, "uv run --group dev pytest"]
    assert clone.count("REPOSITORY") == 1
    done = run(clone.replace("REPOSITORY", f"'{ROOT}'") + " && ls", tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert {"custody", "pyproject.toml", "README.md"} <= set(done.stdout.split())


def test_tutorial_begins_as_the_readme_does() -> None:
    """`docs/demo.md` runs the demo by the README's own lines."""
    (block, *_) = re.findall(r"^```sh\n(.*?)^```", DOCS["demo.md"], re.DOTALL | re.MULTILINE)
    assert block.splitlines() == BLOCKS[0].splitlines()[:2]


def test_test_command_runs_tests(tmp_path: Path) -> None:
    """The test command finds the project's tests and its settings."""
    command = BLOCKS[0].splitlines()[-1]
    done = run(f"cd '{ROOT}' && {command} --collect-only -q -n0 tests/custody/tlog/test_merkle.py", tmp_path, {})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/custody/tlog/test_merkle.py" in done.stdout


@pytest.mark.timeout(800)
def test_demo_does_the_main_job_and_leaks_no_secret(tmp_path: Path) -> None:
    """The demo drains, verifies, proves an event, notices the flipped bit, and runs again into the same archive.

    Each command that it prints runs as printed, with the exit code that it says; README and tutorial show the same.
    What it leaves is verified with public keys alone. No form of the keyring's secrets stands in anything that it
    prints or leaves behind but the keyring itself.
    """
    command = DEMO.removeprefix("pip install uv && ")
    first = run(command, tmp_path, {})
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"events +60,000", first.stdout)
    assert "quarantined" in first.stdout
    assert "verdict" in first.stdout
    assert "drain.event_leaves on" in first.stdout
    assert "this event and no other" in first.stdout
    assert re.search(r"ed25519-[0-9a-f]+ signed a checkpoint over its first \d+ statements", first.stdout)
    assert "segment-hash" in first.stdout
    assert "exit code 13" in first.stdout

    # A table of logs shows each log's whole name, in 80 columns.
    assert all(re.search(rf"^ demo-1/{partition} ", first.stdout, re.MULTILINE) for partition in range(4))
    assert "…" not in re.sub(r"^\{.*", "", first.stdout, flags=re.MULTILINE)
    operator, auditor = first.stdout.index("\nThe operator"), first.stdout.index("\nWith public keys alone")
    assert (
        operator < first.stdout.index("$ custody evidence") < auditor < first.stdout.index("$ custody check-evidence")
    )
    made = (tmp_path / "custody-demo" / "evidence.zip").read_bytes()
    printed = re.split(r"^\$ ", first.stdout, flags=re.MULTILINE)[1:]
    assert len(printed) == 9
    for one in printed:
        line, _, said = one.partition("\n")
        code = re.search(r"^exit code ([0-9]+)$", said, re.MULTILINE)
        again = run(line, tmp_path, {})
        assert again.returncode == (int(code[1]) if code else 0), line + again.stdout + again.stderr
        assert again.stdout
        if line.startswith("custody evidence"):
            assert said.startswith(again.stdout.rpartition("Check it anywhere")[0])
    assert (tmp_path / "custody-demo" / "evidence.zip").read_bytes() == made
    for text, count in ((README, 5), (DOCS["demo.md"], 11)):
        (shown,) = re.findall(r"hortened:\n\n```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = re.findall(
            r"^\$ .*|^The operator.*|^With public.*|^It discloses .*|^exit code 13$", shown, re.MULTILINE
        )
        assert len(lines) == count
        for line in lines:
            assert f"{line}\n" in first.stdout

    # Its own servers are on this machine, so no proxy is asked.
    second = run(f"{command} --events 500", tmp_path, {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "socks5://x:1"})
    assert second.returncode == 0, second.stdout + second.stderr
    checked = run("custody verify custody-demo/archive --keys file:custody-demo/keyring.json --json", tmp_path, {})
    lines = [json.loads(line) for line in checked.stdout.splitlines()]
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len({line["log"].partition("/")[0] for line in lines if line["kind"] == "log"}) == 2

    public = run("custody verify custody-demo/archive --trust custody-demo/trust.json --json", tmp_path, {})
    assert public.returncode in {0, 3}, public.stdout + public.stderr
    found = {json.loads(line).get("finding") for line in public.stdout.splitlines()} - {None}
    assert found <= {"unchecked-signature", "pending-checkpoint"}
    proof = run("custody check-evidence custody-demo/evidence.zip --trust custody-demo/trust.json", tmp_path, {})
    assert proof.returncode == 0, proof.stdout + proof.stderr

    keyring = tmp_path / "custody-demo" / "keyring.json"
    secrets = [
        base64.b64decode(key[name])
        for key in json.loads(keyring.read_bytes())["keys"]
        for name in ("secret", "private")
        if key.get(name)
    ]
    assert secrets
    texts = [done.stdout + done.stderr for done in (first, second, checked, public, proof)]
    places = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != keyring]
    for secret in secrets:
        for form in (secret, base64.b64encode(secret), secret.hex().encode()):
            assert not any(form in place for place in places)
            assert not any(form.decode("latin-1") in text for text in texts)


@pytest.mark.timeout(300)
def test_commands_for_a_real_broker_and_s3(tmp_path: Path, kafka: KafkaServer, seaweed: SeaweedServer) -> None:
    """The commands of the second block do what they say on a real Kafka and a real S3 server."""
    topic = kafka.create_topic(kafka.unused_name("audit.readme"), 2)
    producer = kafka.producer()
    for number, value in enumerate([*sample_events(500, 1, datetime(2026, 11, 24, tzinfo=UTC)), *invalid_values()]):
        producer.produce(topic, value, partition=number % 2)
    assert producer.flush(30) == 0
    theirs = {
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "CUSTODY_KAFKA__TOPICS": topic,
        "CUSTODY_ARCHIVE": f"s3://{seaweed.make_bucket()}/audit",
    }
    theirs_s3 = {**seaweed.environment(), "CUSTODY_S3__ENDPOINT_URL": seaweed.endpoint_url}
    exports = [line for line in BLOCKS[1].splitlines() if line.startswith("export ")]
    assert sorted(theirs) == sorted(re.findall(r"export ([A-Z_]+)=", "\n".join(exports)))
    commands = [line.split("#")[0].strip() for line in BLOCKS[1].splitlines() if line.startswith("custody ")]
    steps = ("init", "check", "drain --once", "verify", "status", "up")
    assert commands == [f"custody {step}" for step in steps]
    for command in commands[:-1]:  # `custody up` has tests of its own
        done = run(command, tmp_path, {**theirs, **theirs_s3})
        # A new installation alerts nobody, which is a warning.
        code = 3 if command in {"custody check", "custody status"} else 0
        assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
    assert topic in done.stdout


def test_settings_are_all_listed() -> None:
    """`docs/settings.md` lists every setting once, and names no other; the other pages name none that is not one."""
    settings = Settings()
    sections = ("s3", "tiers", "events", *OPERATORS_SECTIONS)
    nested = {f"{name}.{field}" for name in sections for field in fields(getattr(settings, name))}
    listed = re.findall(r"^\| (.+?) \| .+? \| .+ \|$", DOCS["settings.md"], re.MULTILINE)
    named = re.findall(r"`([a-z0-9_.]+)`", " ".join(listed))
    assert sorted(named) == sorted(nested | set(fields(settings)) - set(sections))
    for page, text in {"README.md": README, **DOCS}.items():
        assert set(re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)`", text)) <= nested | {"archive.json"}, page


def test_commands_are_all_listed() -> None:
    """`docs/commands.md` lists every command that the help lists; the other pages name none that is not one."""
    helped = run("custody --help", ROOT, {"COLUMNS": "80"}).stdout
    named = set(re.findall(r"^  ([a-z][a-z-]+) +[A-Z]", helped, re.MULTILINE))
    assert {"verify", "drain", "keys", "demo"} <= named
    listed = re.findall(
        r"^\| (`custody (?:[^|\\]|\\.)+) \|.*", DOCS["commands.md"].partition("## Exit codes")[0], re.MULTILINE
    )
    assert {re.match(r"`custody ([a-z-]+)", row)[1] for row in listed} == named  # type: ignore[index]
    for page, text in {"README.md": README, **DOCS}.items():
        commands = re.findall(r"custody ([a-z][a-z-]+)", " ".join(re.findall(r"`(custody [^`]+)`", text)))
        assert set(commands) <= named, page
