"""The flow and the command that roll: what people see of what was done, was not, and could not be."""

import re
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from prefect.client.orchestration import get_client

from custody.cli.main import main
from flows.operate.render import usage_chart
from flows.roll import roll
from tasks.roll.tiers import Usage
from tasks.settings import Settings
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Growing
from tests.servers.ports import free_ports


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    """An archive of ten days ago, that the settings name, and whose life lasts nine."""
    growing = Growing(tmp_path / "old", begun=datetime.now(UTC) - timedelta(days=10), retention_days=1)
    growing.append(3)
    clear_settings(monkeypatch)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(growing.folder))
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{growing.keyring}")
    monkeypatch.setenv("CUSTODY_TIERS__LIFE_DAYS", "9")
    monkeypatch.chdir(tmp_path)
    return growing


def segments(growing: Growing) -> list[Path]:
    return list((growing.folder / "events").rglob("*.gz"))


def chart(markdown: str) -> str:
    """Return the picture that a Markdown image brings along, which a browser would have nothing to fetch for."""
    found = re.fullmatch(r"!\[[^]]+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found
    picture = b64decode(found[1]).decode()
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - it is our own
    assert not re.search(r"(href|src)=\"(?!#)", picture)
    return picture


def test_the_chart() -> None:
    """The usage report is a chart too: each class and part by name, with its bytes, and what a class costs."""
    found = [
        Usage("events/", "STANDARD", 9, 3 * 2**30, 0, 0.069),
        Usage("events/", "DEEP_ARCHIVE", 90, 90 * 2**30, 0, 0.0891),
        Usage("manifests/", "STANDARD", 99, 2**30, 0, 0.023),
        Usage("tables/", "ODD", 1, 2**20, 0, None),
    ]
    picture = chart(usage_chart(found))
    for text in ("STANDARD", "DEEP_ARCHIVE", "ODD", "events/", "manifests/", "4.0 GiB", "90.0 GiB", "1.0 MiB", "0.09"):
        assert f">{text}<" in picture
    assert ">no price<" in picture
    assert usage_chart(found) == usage_chart(found)
    assert "dollars" not in chart(usage_chart(found[-1:]))


def artifacts() -> dict[str | None, Any]:
    with get_client(sync_client=True) as client:
        return {one.key: one for one in client.read_artifacts()}


@pytest.mark.usefixtures("server")
def test_the_flow(old: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run changes nothing; a run ends lives, signs what it did, and shows it and what lies where.

    An Elasticsearch that is down fails the run, and keeps nothing else from being done.
    """
    dry = roll(dry_run=True, return_state=True)
    assert (dry.is_completed(), len(segments(old))) == (True, 3)
    assert "4 planned" in str(dry.message)
    assert "expire" in str(artifacts()["roll"].data)
    assert "events/" in str(artifacts()["tiers"].data)
    assert "events/" in chart(artifacts()["tiers-chart"].data)

    (port,) = free_ports(1)
    with monkeypatch.context() as patched:
        patched.setenv("CUSTODY_SEARCH__URL", f"http://127.0.0.1:{port}")
        failed = roll(return_state=True)
    assert failed.is_failed()
    assert f"{port} does not answer" in str(failed.message)
    assert segments(old) == []
    assert (old.folder / "audits" / f"{0:012}.json").exists()

    again = roll(return_state=True)
    assert (again.is_completed(), again.message) == (True, "Roll: 0 done.")
    assert not (old.folder / "audits" / f"{1:012}.json").exists()


def test_the_command(old: Growing, capsys: pytest.CaptureFixture[str]) -> None:
    """`custody roll` does the same here and now."""
    for arguments, left, said in ((["--dry-run"], 3, "planned"), ([], 0, "done"), ([], 0, "Nothing was to be done")):
        with pytest.raises(SystemExit) as ended:
            main(["roll", *arguments])
        assert not ended.value.code
        assert len(segments(old)) == left
        assert said in capsys.readouterr().out
    assert Settings().tiers.life_days == 9


def test_the_command_without_elasticsearch(
    old: Growing, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Elasticsearch that is down fails the command, and keeps nothing from expiring and from being signed."""
    (port,) = free_ports(1)
    monkeypatch.setenv("CUSTODY_SEARCH__URL", f"http://127.0.0.1:{port}")
    with pytest.raises(SystemExit) as ended:
        main(["roll"])
    assert ended.value.code == 1
    assert f"{port} does not answer" in capsys.readouterr().err
    assert segments(old) == []
    assert (old.folder / "audits" / f"{0:012}.json").exists()
