"""The README is true: its commands run, what it names exists, and no secret leaks on the way."""

import base64
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from custody.settings import OPERATORS_SECTIONS
from flows.operate.sample import invalid_values, sample_events
from tasks.settings import Settings
from tests.servers.kafka import KafkaServer
from tests.servers.s3 import SeaweedServer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
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


def test_first_block_is_the_two_commands() -> None:
    """A newcomer needs two lines and no more."""
    first, second = BLOCKS[0].splitlines()
    assert first == "pip install uv && uv run custody demo"
    assert second == "uv run pytest"


def test_test_command_runs_tests(tmp_path: Path) -> None:
    """`uv run pytest` finds the project's tests and its settings."""
    command = BLOCKS[0].splitlines()[1]
    done = run(f"cd '{ROOT}' && {command} --collect-only -q -n0 tests/custody/tlog/test_merkle.py", tmp_path, {})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/custody/tlog/test_merkle.py" in done.stdout


@pytest.mark.timeout(300)
def test_demo_does_the_main_job_and_leaks_no_secret(tmp_path: Path) -> None:
    """The demo drains, verifies, proves an event, notices the flipped bit, and runs again into the same archive.

    Each command that it prints runs as printed, with the exit code that it says; the README shows the same. What it
    leaves is verified with public keys alone. No form of the keyring's secrets stands in anything that it prints or
    leaves behind but the keyring itself.
    """
    command = BLOCKS[0].splitlines()[0].removeprefix("pip install uv && ")
    first = run(command, tmp_path, {})
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"events +60,000", first.stdout)
    assert "quarantined" in first.stdout
    assert "verdict" in first.stdout
    assert "drain.event_leaves on" in first.stdout
    assert "this event and no other" in first.stdout
    assert re.search(r"Proved: it is in the log whose first \d+ statements ed25519-[0-9a-f]+ signed", first.stdout)
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
    assert len(printed) == 6
    for one in printed:
        line, _, said = one.partition("\n")
        code = re.search(r"^exit code ([0-9]+)$", said, re.MULTILINE)
        again = run(line, tmp_path, {})
        assert again.returncode == (int(code[1]) if code else 0), line + again.stdout + again.stderr
        assert again.stdout
        if line.startswith("custody evidence"):
            assert said.startswith(again.stdout.rpartition("Check it anywhere")[0])
    assert (tmp_path / "custody-demo" / "evidence.zip").read_bytes() == made
    shown = README.partition("What the demo prints, shortened:\n\n```\n")[2].partition("```")[0]
    lines = re.findall(r"^\$ .*|^The operator.*|^With public.*|^It holds .*", shown, re.MULTILINE)
    assert len(lines) == 7
    for line in lines:
        assert f"{line}\n" in first.stdout

    second = run(f"{command} --events 500", tmp_path, {})
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
    assert commands == ["custody init", "custody drain --once", "custody verify", "custody status", "custody up"]
    for command in commands[:-1]:  # `custody up` has tests of its own
        done = run(command, tmp_path, {**theirs, **theirs_s3})
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert topic in done.stdout


def test_named_settings_and_commands_exist() -> None:
    """Every setting and command that the README names is one."""
    sections = ("s3", *OPERATORS_SECTIONS)
    named = set(re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)`", README))
    assert {name.partition(".")[0] for name in named} == set(sections)
    for name in named:
        section, _, field = name.partition(".")
        assert hasattr(getattr(Settings(), section), field), name
    helped = run("custody --help", ROOT, {}).stdout
    for command in set(re.findall(r"custody ([a-z][a-z-]+)", " ".join(re.findall(r"`[^`]+`", README)))):
        assert re.search(rf"\b{command}\b", helped), command
