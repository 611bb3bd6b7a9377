"""systemd's own checks accept the units of deployments/systemd, which are confined and hold no secret."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.operate import up
from tasks.drain.signals import GRACE_SECONDS
from tasks.settings import DrainSettings
from tests.servers.require import unavailable

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deployments" / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
TIMERS = sorted(path.name for path in UNITS.glob("*.timer"))
services = pytest.mark.parametrize("name", SERVICES)


def value(name: str, setting: str) -> str:
    """Return the one value of a setting of a unit."""
    (found,) = re.findall(rf"^{setting}=(.*)$", (UNITS / name).read_text(), re.MULTILINE)
    return str(found)


def analyze(*arguments: object) -> tuple[int, str]:
    """Run systemd-analyze, which needs no running systemd for this."""
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd-analyze is not installed: units are not checked by systemd")
    ran = subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


def copied(folder: Path, change: tuple[str, str] = ("", "")) -> list[Path]:
    """Copy the units. The programs that they start are others, which this machine has."""
    made = []
    for name in (*SERVICES, *TIMERS):
        text = re.sub(r"/opt/custody/\.venv/bin/\w+", "/bin/true", (UNITS / name).read_text())
        (folder / name).write_text(text.replace(*change) if change[0] else text)
        made.append(folder / name)
    return made


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say."""
    assert analyze("verify", *copied(tmp_path)) == (0, "")


def test_systemd_finds_what_is_misspelt(tmp_path: Path) -> None:
    """A setting that does not exist is found: so the silence above says something."""
    _, said = analyze("verify", *copied(tmp_path, ("ProtectSystem=strict", "ProtectSistem=strict")))
    assert said.count("'ProtectSistem'") >= len(SERVICES)


@services
def test_each_service_is_confined(name: str) -> None:
    """Systemd rates the exposure of each service below 2 of 10. Our files are unreadable for others."""
    code, said = analyze("security", "--offline=true", "--no-pager", "--threshold=20", UNITS / name)
    assert code == 0, said
    assert value(name, "UMask") == "0077"
    assert value(name, "ProtectSystem") == "strict"
    assert value(name, "NoNewPrivileges") == "yes"


@services
def test_no_service_holds_a_secret(name: str) -> None:
    """Secrets come from files, and the server, which signs nothing, gets none of custody's."""
    text = (UNITS / name).read_text()
    assert not re.search(r"^Environment=.*(PASS|SECRET|AUTH_STRING|CONNECTION_URL|API_KEY)", text, re.MULTILINE)
    files = re.findall(r"^EnvironmentFile=(.*)$", text, re.MULTILINE)
    own = {"custody-server.service": ["server.env"], "custody-worker.service": ["worker.env", "secrets.env"]}
    assert files == [f"/etc/custody/{file}" for file in own.get(name, ["secrets.env"])]
    if name == "custody-server.service":
        assert "CUSTODY_" not in text
        assert "User=" not in text.replace("DynamicUser=yes", "")


def test_there_is_time_to_end() -> None:
    """Systemd kills nothing before it has had the time that it takes to end by itself."""
    # Runs, then the worker, then the server.
    assert int(value("custody-up.service", "TimeoutStopSec")) > up._FINISH_SECONDS + 2 * up._STOP_SECONDS
    assert value("custody-up.service", "KillMode") == "mixed"
    assert int(value("custody-drain.service", "TimeoutStopSec")) > 2 * GRACE_SECONDS


@pytest.mark.parametrize("name", TIMERS)
def test_no_run_of_a_timer_lasts_for_ever(name: str) -> None:
    """A run that hangs is ended before the next but one is due: while a unit is active, its timer starts nothing."""
    service = name.replace(".timer", ".service")
    assert value(service, "Type") == "oneshot"
    number, unit = re.fullmatch(r"(\d+)(h?)", value(service, "TimeoutStartSec")).groups()  # type: ignore[union-attr]
    longest = int(number) * (3600 if unit else 1)
    every = 60 if value(name, "OnCalendar").startswith("*-*-* *") else 24 * 3600
    assert longest <= 2 * every
    if service == "custody-drain.service":
        assert longest > DrainSettings().seconds + GRACE_SECONDS


def test_timers_start_what_there_is() -> None:
    """Each timer has its service, and runs when prefect.yaml has that flow run."""
    text = (ROOT / "deployments" / "prefect.yaml").read_text()
    crons = dict(zip(re.findall(r"entrypoint: flows\.(\w+)", text), re.findall(r'cron: "(.*)"', text), strict=False))
    for name in TIMERS:
        assert name.replace(".timer", ".service") in SERVICES
        minute, hour, *_ = crons[name.removeprefix("custody-").removesuffix(".timer")].split()
        clock = f"{hour.zfill(2) if hour != '*' else '*'}:{minute.zfill(2) if minute != '*' else '*'}:00"
        assert value(name, "OnCalendar") == f"*-*-* {clock} UTC"
        assert analyze("calendar", value(name, "OnCalendar"))[0] == 0
