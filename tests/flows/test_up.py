"""Who may use the server that `custody up` starts, what its processes know, and what stays as people set it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from custody.archive.writer import create_archive
from custody.errors import ConfigurationError, CustodyError
from custody.keys.keyring import new_keyring
from custody.store.folder import FolderStore
from flows.operate.deploy import DEPLOYMENTS, Api, _kept_schedules, deploy, direct
from flows.operate.up import _credentials, _free_port, _make_private, up
from tasks.check import prefect
from tests.flows.installation import Installation, command, ended
from tests.helpers.environment import clear_settings
from tests.servers.ports import free_ports

PASSPHRASE = "canary-of-the-keyring"
SOCKETS = (
    "events/in",
    "events/out",
    "logs/out",
    "task_runs/subscriptions/scheduled",
    "work_pools/custody/workers/connect",
)


class Guarded(Installation):
    """An installation whose environment has a passphrase, and proxies that lead nowhere."""

    def environment(self) -> dict[str, str]:
        """Return the variables for `up`."""
        proxies = {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "socks5://127.0.0.1:1", "no_proxy": "example.com"}
        secrets = {"CUSTODY_KEYRING_PASSPHRASE": PASSPHRASE, "AWS_SECRET_ACCESS_KEY": PASSPHRASE}
        # What an operator has set must not open the server again.
        opened = {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "*", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "false"}
        return super().environment() | proxies | secrets | opened


@pytest.fixture
def installation(tmp_path: Path, prefect_database: Path) -> Iterator[Guarded]:
    """An installation whose processes are gone after the test, whatever became of it."""
    # Without an archive and keys, `up` would start nothing.
    ring = new_keyring(tmp_path / "keyring.json", datetime.now(UTC), PASSPHRASE)
    create_archive(FolderStore(str(tmp_path / "archive")), ring.signers(datetime.now(UTC)).both)
    settings = 'archive = "archive"\nkafka.bootstrap_servers = "127.0.0.1:1"\n'
    made = Guarded(tmp_path, settings, DEPLOYMENTS.read_text(), prefect_database)
    with ended(made):
        yield made


def refused(request: urllib.request.Request) -> int:
    """Return the status with which a request is refused."""
    with pytest.raises(urllib.error.HTTPError) as info:
        urllib.request.urlopen(request, timeout=30)
    info.value.close()
    return info.value.code


async def hears(url: str, protocols: list[Subprotocol] | None, *messages: object) -> bool:
    """Return whether a socket answers to anything but by closing."""
    try:
        async with connect(url, subprotocols=protocols, proxy=None, open_timeout=60) as socket:
            for message in messages:
                await socket.send(json.dumps(message))
            return bool(await asyncio.wait_for(socket.recv(), 60))
    except (WebSocketException, EOFError):
        return False


def check_doors(made: Guarded) -> None:
    """Check that the API is closed to strangers, and to pages of other origins, by http and by websocket."""
    for path, body in (("deployments/filter", b"{}"), ("flows/", b'{"name":"x"}'), ("admin/settings", None)):
        assert refused(urllib.request.Request(f"{made.url}/api/{path}", body)) in {401, 403}
        for wrong in ("Basic Y3VzdG9keTo=", "Basic !", "Bearer x"):
            headers = {"Authorization": wrong}
            assert refused(urllib.request.Request(f"{made.url}/api/{path}", body, headers)) in {401, 403}
    logged_in = made.request("flows/", b'{"name":"x"}')
    logged_in.remove_header("Prefect-csrf-token")
    assert refused(logged_in) == 403
    page = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert refused(urllib.request.Request(f"{made.url}/api/flows/", None, page, method="OPTIONS")) == 400
    asked = made.request("flows/filter", b"{}")
    asked.add_header("Origin", "http://evil.example")
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert "access-control-allow-origin" not in answer.headers
    with urllib.request.urlopen(f"{made.url}/ui-settings", timeout=30) as answer:
        told = json.load(answer)
    # By these Prefect's page asks for the credentials, and sends tokens.
    assert (told["auth"], told["csrf_enabled"]) == ("BASIC", True)
    own = [Subprotocol("prefect")]
    for path in SOCKETS:
        url = f"{made.url.replace('http', 'ws')}/api/{path}"
        forged = {"event": "custody.audit.ended", "resource": {"prefect.resource.id": "custody.audit"}}
        assert not asyncio.run(hears(url, None, forged))
        for token in (None, "", "custody:wrong"):
            assert not asyncio.run(hears(url, own, {"type": "auth", "token": token}))
        assert asyncio.run(hears(url, own, {"type": "auth", "token": made.credentials()}))


def check_secrets(made: Guarded) -> None:
    """Check that secrets are where they are needed, and nowhere else."""
    folder = made.folder / "prefect"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in (folder / "credentials", folder / "up.log", *folder.glob("prefect.db*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    password = made.credentials().partition(":")[2]
    assert password not in made.log.read_text() + (folder / "up.log").read_text()
    for process in made.children():
        line, variables = command(process), _variables(process)
        assert password not in line
        if "server start" in line or "uvicorn" in line:
            assert PASSPHRASE not in variables.values()
            assert _umask(process.pid) == 0o077
        elif "worker start" in line:
            assert variables["CUSTODY_KEYRING_PASSPHRASE"] == PASSPHRASE
            # Its runs write the archive, which others may be meant to read.
            assert _umask(process.pid) == _umask(os.getpid())


def automations_of(made: Guarded) -> dict[str, tuple[str, bool]]:
    """Return id and state of each automation, by name."""
    return {each["name"]: (each["id"], each["enabled"]) for each in made.prefect("automations/filter")}


def check_deploys(made: Guarded, before: dict[str, tuple[str, bool]]) -> None:
    """Check that `custody deploy` deploys what changed or is gone, and that what was switched off stays off."""
    file = made.folder / "deployments.yaml"
    environment = {**made.environment(), "PREFECT_API_URL": f"{made.url}/api"}
    with pytest.raises(CustodyError, match="401"):
        deploy(file, environment)
    environment["PREFECT_API_AUTH_STRING"] = made.credentials()
    with contextlib.chdir(made.folder):
        deploy(file, environment)
        assert automations_of(made) == before
        gone, _ = before["custody-roll-failed"]
        made.send(made.request(f"automations/{gone}", b"", "DELETE"))
        deploy(file, environment)
        again = automations_of(made)
        assert {name: on for name, (_, on) in again.items()} == {name: on for name, (_, on) in before.items()}
        assert again["custody-drain-silent"] != before["custody-drain-silent"]
        file.write_text(file.read_text().replace("Drain Kafka into the archive", "Drain it"))
        deploy(file, environment)
    drain = made.prefect("deployments/name/drain/drain-every-minute")
    assert (drain["description"], [each["active"] for each in drain["schedules"]].count(False)) == ("Drain it", 1)
    assert automations_of(made) == again


def check_runs(made: Guarded) -> None:
    """Check that the run of an alert has no passphrase in its environment, and that of a roll has."""
    wanted: tuple[tuple[str, dict[str, str], str], ...] = (
        ("alert/alert-now", {"title": "a test"}, ""),
        ("roll/roll-daily", {}, PASSPHRASE),
    )
    for deployment, parameters, expected in wanted:
        run = made.start(deployment, **parameters)
        seen: list[str | None] = []

        def started(run: str = run, seen: list[str | None] = seen) -> bool:
            variables = [_variables(process) for process in made.running()]
            seen[:] = [each.get("CUSTODY_KEYRING_PASSPHRASE") for each in variables if run in each.values()]
            return bool(seen)

        made.wait(started, 120, f"a run of {deployment}")
        assert set(seen) == {expected}
        made.finish(run)


def _umask(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Umask:"))
    return int(line.split()[1], 8)


def check_of_prefect(made: Guarded, levels: dict[str, str]) -> None:
    """Check what `custody check` says of the server, with its credentials, and with wrong ones."""
    environment = {"PREFECT_API_URL": f"{made.url}/api", "PREFECT_API_AUTH_STRING": made.credentials()}
    with pytest.MonkeyPatch.context() as patched:
        # What it says of a server that is slow is not asked here.
        patched.setattr(prefect, "REQUEST_SECONDS", 60.0)
        lines = list(prefect.check(DEPLOYMENTS, environment))
        (refusal,) = prefect.check(DEPLOYMENTS, {**environment, "PREFECT_API_AUTH_STRING": "custody:wrong"})
    assert {line.subject: line.level for line in lines} == {"server": "ok", **levels}, lines
    assert (refusal.level, refusal.passing) == ("failed", False)
    assert "PREFECT_API_AUTH_STRING" in refusal.remedy


def test_up_without_an_archive_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What no run could do without is said before anything starts; a broker that is down alone would not stop it."""
    with pytest.MonkeyPatch.context() as patched:
        clear_settings(patched)
        patched.chdir(tmp_path)
        patched.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
        with pytest.raises(CustodyError, match="nothing is started"):
            up(tmp_path / "prefect", 0)
    printed = capsys.readouterr().err
    assert "failed: archive: archive.json: there is no archive at" in printed
    assert "run 'custody init'" in printed
    assert not (tmp_path / "prefect" / "up.log").exists()


def _variables(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.mark.timeout(600)
def test_only_its_owner_uses_the_server(installation: Guarded) -> None:
    """Without the credentials nobody uses the API; secrets reach signers alone; what was switched off stays off."""
    installation.up()
    # A broker that is down is said, and does not keep `up` from starting.
    assert "failed: kafka: login: no answer from Kafka at 127.0.0.1:1" in installation.log.read_text()
    check_doors(installation)
    check_secrets(installation)
    check_of_prefect(installation, {"deployments": "ok", "schedules": "ok", "automations": "ok", "worker": "ok"})
    drain = installation.prefect("deployments/name/drain/drain-every-minute")
    (schedule,) = drain["schedules"]
    path = f"deployments/{drain['id']}/schedules/{schedule['id']}"
    installation.send(installation.request(path, b'{"active":false}', "PATCH"))
    # Somebody drains more slowly: ours stays off, and theirs stays.
    slower = json.dumps([{"schedule": {"interval": 86400, "timezone": "Europe/Berlin"}, "active": True}]).encode()
    path = f"deployments/{drain['id']}/schedules"
    installation.send(installation.request(path, slower, "POST"))
    installation.pause("audit/audit-nightly")
    silent = next(made for made in installation.prefect("automations/filter") if made["name"] == "custody-audit-silent")
    path = f"automations/{silent['id']}"
    installation.send(installation.request(path, b'{"enabled":false}', "PATCH"))
    password = installation.credentials()
    before = automations_of(installation)
    assert installation.end() == 0
    installation.up()
    assert installation.credentials() == password
    # They are the same ones: so a restart does not begin their times of silence again.
    assert automations_of(installation) == before
    assert (
        "left so: schedule of drain-every-minute, audit-nightly, custody-audit-silent\n" in installation.log.read_text()
    )
    made = {each["name"]: each for each in installation.prefect("deployments/filter")}
    kept = {
        each["schedule"].get("cron") or each["schedule"]["interval"]: each
        for each in made["drain-every-minute"]["schedules"]
    }
    assert {name: each["active"] for name, each in kept.items()} == {"* * * * *": False, 86400: True}
    assert kept[86400]["schedule"]["timezone"] == "Europe/Berlin"
    assert [each["active"] for each in made["roll-daily"]["schedules"]] == [True]
    assert made["audit-nightly"]["paused"]
    enabled = {each["name"]: each["enabled"] for each in installation.prefect("automations/filter")}
    assert [name for name, on in enabled.items() if not on] == ["custody-audit-silent"]
    check_deploys(installation, before)
    check_runs(installation)
    check_of_prefect(
        installation, {"deployments": "ok", "schedules": "warning", "automations": "warning", "worker": "ok"}
    )
    assert installation.end() == 0


@pytest.mark.timeout(600)
def test_up_says_what_it_waits_for(installation: Guarded) -> None:
    """Each step that takes long has a line before it. After Ctrl-C during the start it never says that it is up."""
    installation.begin()
    assert installation.process is not None
    installation.wait(lambda: "deploying" in installation.log.read_text(), 240, "custody up to deploy")
    installation.process.send_signal(signal.SIGINT)
    assert installation.process.wait(120) == 0
    said = [line.partition(":")[0] for line in installation.log.read_text().splitlines()]
    steps = ["check", "starting Prefect's server, half a minute …", "starting the worker …", "deploying …"]
    assert [line for line in said if line in {*steps, "ending", "custody is up"}] == [*steps, "ending"]


def test_schedules_that_people_set_stay() -> None:
    """While ours is on the server, all stay as they are there. One of another version is replaced, and stays off."""
    ours: dict[str, object] = {"cron": "* * * * *", "timezone": "UTC"}
    slower: dict[str, object] = {"cron": "0 * * * *", "timezone": "UTC", "day_or": True}
    known = ours | {"day_or": True}
    off, on = {"schedule": known, "active": False}, {"schedule": known, "active": True}
    theirs = {"schedule": slower, "active": True}
    assert _kept_schedules([ours], [theirs, off]) == [slower | {"active": True}, known | {"active": False}]
    assert _kept_schedules([ours], [on]) == [known | {"active": True}]
    assert _kept_schedules([ours], [theirs]) == [ours]
    assert _kept_schedules([ours], [theirs | {"active": False}]) == [ours | {"active": False}]
    assert _kept_schedules([ours], []) == [ours | {"active": False}]


def test_the_folder_is_private(tmp_path: Path) -> None:
    """A new or earlier folder of `up` becomes private. One that others use is refused, and keeps its rights."""
    _make_private(tmp_path / "deep/new")
    assert stat.S_IMODE((tmp_path / "deep/new").stat().st_mode) == 0o700
    earlier = tmp_path / "earlier"
    earlier.mkdir(mode=0o755)
    for name in ("up.lock", "prefect.db", "prefect.db-wal"):
        (earlier / name).touch(0o644)
    _make_private(earlier)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (earlier, *sorted(earlier.glob("p*")))]
    assert modes == [0o700, 0o600, 0o600]
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "of-others").touch()
    with pytest.raises(ConfigurationError, match="others can look into"):
        _make_private(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755


def test_any_port_is_a_free_one() -> None:
    """0 is any port that nobody has. Another one is taken as it is, and refused if somebody has it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        _, port = taken.getsockname()
        assert _free_port(0) not in {0, port}
        with pytest.raises(ConfigurationError, match="is in use: choose another port, or 0 for any free port"):
            _free_port(port)
    (port,) = free_ports(1)
    assert _free_port(port) == port


@pytest.mark.parametrize("content", ["", "custody:short", "custody:" + "ü" * 43, "somebody:" + "x" * 43])
def test_damaged_credentials_are_made_again(tmp_path: Path, content: str) -> None:
    """A file that does not hold credentials of ours is replaced, and never opens the server."""
    path = tmp_path / "credentials"
    path.write_text(content)
    made = _credentials(path)
    assert len(made) == len("custody:") + 43
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (made, 0o600)
    path.chmod(0o644)
    assert _credentials(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_proxies_are_not_for_this_machine() -> None:
    """Other proxies stay, loopback goes without, and a SOCKS proxy, at which Prefect's client fails, is left out."""
    given = {"HTTPS_PROXY": "http://proxy:1", "all_proxy": "SOCKS5h://proxy:1", "NO_PROXY": "internal"}
    assert direct(given) == {"HTTPS_PROXY": "http://proxy:1"} | dict.fromkeys(
        ("NO_PROXY", "no_proxy"), "internal,127.0.0.1,localhost"
    )
    assert direct({})["no_proxy"] == "127.0.0.1,localhost"


def test_a_server_that_refuses_is_said_in_words() -> None:
    """The reason is a sentence, and not the text of a library's error."""
    (port,) = free_ports(1)
    with pytest.raises(CustodyError, match=r": Connection refused\. Check PREFECT_API_URL") as caught:
        deploy(DEPLOYMENTS, {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"})
    assert "urlopen" not in str(caught.value)


def test_a_server_that_is_slow_is_not_called_a_wrong_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `prefect deploy` has not ended in time, the deployments need no correction."""
    monkeypatch.setattr(Api, "ask", lambda *_: [])
    monkeypatch.setattr("flows.operate.deploy._DEPLOY_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with pytest.raises(CustodyError, match=r"not all created: the server or this machine is slow\. Run") as caught:
            deploy(DEPLOYMENTS, {"PREFECT_API_URL": api})
    assert caught.value.args[1] == "'prefect deploy' took more than 1 s"


def test_a_deploy_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One document has what was deployed, and what stays off. Nothing else is printed."""
    known = {"name": "drain-every-minute", "entrypoint": "flows.drain.drain", "paused": True, "schedules": []}
    answers = {"deployments/filter": [{**known, "version": "another"}], "automations/filter": []}
    monkeypatch.setattr(Api, "ask", lambda _, path, __: answers[path])
    monkeypatch.setattr("flows.operate.deploy._create", lambda *_: None)
    deploy(DEPLOYMENTS, {"PREFECT_API_URL": "http://127.0.0.1:1/api"}, as_json=True)
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert {"drain-every-minute", "audit-nightly"} <= set(document["deployed"])
    assert (document["left_off"][0], printed.err) == ("drain-every-minute", "")
