"""`custody status` is one screen: the verdict first, whole numbers, and fewer columns where it is narrow."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, Group

from custody.cli.render import shorten
from flows.operate.status import EXIT_CODES, report
from tasks.health.model import (
    AuditHealth,
    Health,
    LogHealth,
    Problem,
    Recent,
    ServerHealth,
    TopicHealth,
)
from tests.helpers.sample import Growing
from tests.servers.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
NAME = f"audit.{'orders.of.a.shop.' * 3}events"
LAG = Problem("failed", "lag", f"{NAME}/17", "123,456,789 records wait, the oldest for 3.0 h", "run 'custody drain'")
NOBODY = Problem("warning", "alerts-nobody", "alerts", "nobody is alerted", "set alert.urls")
FULL = LogHealth(
    f"{NAME}/17",
    size=1_234_567,
    root="ab" * 32,
    next_offset=987_654_321_012,
    sealed_at="2026-11-28T11:57:00.000000Z",
    head_age_seconds=180.0,
    lag_records=123_456_789,
    lag_seconds=10_800.0,
    headroom_seconds=500_000.0,
    index_delay_seconds=240.0,
    recent=Recent(10, 9_960, 40),
    problems=(LAG,),
)
HEALTH = Health(
    "s3://bucket/audit",
    NOW,
    ServerHealth("kafka:9092", reachable=True),
    ServerHealth("https://search:9200", reachable=True),
    logs=(FULL, LogHealth("audit.b/0", problems=()), LogHealth("audit.c/0", size=3, root="cd" * 32, ended=True)),
    topics_without_log=(TopicHealth("audit.new", 3, 12),),
    audit=AuditHealth(41, "notices", "2026-11-28T02:17:00.000000Z", 35_000.0, 2),
    general=(NOBODY,),
)


def screen(health: Health, width: int) -> list[str]:
    """Return the lines of a screen."""
    console = Console(width=width, file=StringIO(), markup=False, highlight=False)
    for part in report(health):
        console.print(part)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_numbers_are_never_cut(width: int) -> None:
    """Every line fits. The verdict comes first; the lag is whole; of the long name its partition stays."""
    lines = screen(HEALTH, width)
    assert all(len(line) <= width for line in lines)
    assert lines[0] == "1 problem, 1 warning"
    (row,) = (line for line in lines if re.match(r" ?audit\.\S*/17 ", line))
    for cell in ("failed", "3 min", "123,456,789", "3.0 h"):
        assert cell in row
    assert "…" not in row.partition("/17")[2]
    text = "\n".join(lines)
    assert text.index("failed ") < text.index("warning ") < text.index("state")
    for part in ("audit: 41, notices, 2 findings, 9.7 h ago", "alerts: nobody", "topics without a log: audit.new"):
        assert part in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_key_is_never_cut_in_two(width: int) -> None:
    """What a problem names can be copied whole, however long it is; all other lines fit."""
    key = f"events/2026/11/28/{NAME}-0-00000000000000000000-0123456789ab.jsonl.gz"
    problem = Problem(
        "failed", "audit-failed", "audit", f"the worst: segment-hash, {key}: it was changed", "look at it"
    )
    console = Console(width=width, file=StringIO(), markup=False, highlight=False)
    console.print(Group(*report(replace(HEALTH, general=(problem, *[NOBODY] * 30)), whole=True)), crop=False)
    assert isinstance(console.file, StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert all(len(line) <= width or line.split()[-1].startswith((key, NAME)) for line in lines)
    assert f"{key}:" in console.file.getvalue().split()
    assert any(line.startswith("and 12 more problems") for line in lines)


def test_columns_are_left_out_in_order() -> None:
    """The narrower the screen, the fewer columns: the log's end goes first. Those left out are named."""
    order = ["size and root", "next offset", "index", "quarant.", "headroom"]
    shown = []
    for width in range(160, 50, -5):
        (heading,) = (line for line in screen(HEALTH, width) if "state" in line and "lag" in line)
        shown.append([name for name in order if name in heading])
        assert shown[-1] == order[len(order) - len(shown[-1]) :]
        lacking = order[: len(order) - len(shown[-1])]
        caption = f"Left out, to fit the screen: {', '.join(lacking)}; --json has all."
        assert (caption in " ".join(" ".join(screen(HEALTH, width)).split())) == bool(lacking)
    assert shown[0] == order
    assert shown[-1] == []
    assert shown == sorted(shown, key=len, reverse=True)


def test_states_of_logs() -> None:
    """A log of which nothing is known is not called ok, and an epoch that ended is called so."""
    lines = screen(HEALTH, 160)
    states = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("audit.b", "audit.c", " audit."))}
    assert (states["audit.b/0"], states["audit.c/0"]) == ("?", "ended")


def test_healthy_is_said() -> None:
    """A healthy installation is one word, and exit code 0; only warnings are 3, a failure is 1."""
    healthy = Health("archive", NOW, ServerHealth("kafka:9092", reachable=True), alerts=("slack",))
    lines = screen(healthy, 80)
    assert lines[0] == "healthy"
    assert "alerts: slack" in lines
    assert EXIT_CODES == {"ok": 0, "warning": 3, "failed": 1}


def test_nobody_is_said_once() -> None:
    """That nobody is alerted is a problem with its remedy, and needs no line of its own."""
    lines = screen(replace(HEALTH, logs=()), 80)
    assert [line.partition("alerts: ")[2][:6] for line in lines if "alerts: " in line] == ["nobody"]


def test_many_problems_are_cut_to_a_screen() -> None:
    """The worst problems are shown, and how many more there are."""
    many = tuple(Problem("warning", "lost", f"log/{number}", "lost", "read") for number in range(50))
    lines = screen(Health("archive", NOW, ServerHealth("kafka", reachable=True), general=(*many, LAG)), 80)
    assert lines[3].startswith("failed")
    assert any("and 31 more" in line for line in lines)


def test_names_are_shortened_in_the_middle() -> None:
    """The beginning and the partition stay, and a name that fits is whole."""
    assert shorten("audit.events/3", 14) == "audit.events/3"
    assert shorten("audit.orders.events/17", 14) == "audit.…ents/17"
    assert len(shorten("x" * 300, 20)) == 20


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_watch_ends_by_ctrl_c(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """In a pipe each time is a block, or a line of JSON. Ctrl-C ends it with 130, and without a traceback."""
    growing = Growing(tmp_path)
    growing.append(2)
    (port,) = free_ports(1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUSTODY_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "CUSTODY_ARCHIVE": "archive",
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
    }
    with (tmp_path / "out").open("w") as out:
        watch = subprocess.Popen(
            [sys.executable, "-m", "custody", "status", "--watch", "--every", "0.2", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
        until, block = time.monotonic() + 100, '{"level"' if arguments else "1 problem"
        while (tmp_path / "out").read_text().count(block) < 2:
            assert watch.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        watch.send_signal(signal.SIGINT)
        _, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (130, "")


def test_what_is_not_known_is_not_claimed() -> None:
    """Logs that cannot be listed are not said to be none, and an audit of the future has no age."""
    refused = Problem("failed", "log-unknown", "archive", "its logs cannot be listed: refused", "allow it")
    audit = AuditHealth(41, "verified", "2036-11-28T02:17:00.000000Z", None, 0)
    text = "\n".join(screen(Health("archive", NOW, ServerHealth("kafka", reachable=True), audit=audit), 80))
    assert "The archive has no logs yet." in text
    assert "audit: 41, verified, 0 findings, - ago" not in text
    assert "audit: 41, verified, 0 findings, of the future" in text
    text = "\n".join(screen(Health("archive", NOW, ServerHealth("kafka", reachable=True), general=(refused,)), 80))
    assert "no logs yet" not in text


def test_what_was_not_looked_at_is_not_none() -> None:
    """With keys of others the audits are not known. A server that does not answer is still named."""
    kafka, search = ServerHealth("broker:9092", reachable=False), ServerHealth("https://search", reachable=False)
    wrong = Problem("failed", "archive-untrusted", "archive", "archive: other keys signed it.", "run 'custody verify'")
    lines = screen(Health("archive", NOW, kafka, search=search, general=(wrong,)), 120)
    assert {"audit: not known", "kafka: broker:9092, does not answer"} <= set(lines)
    assert "index: https://search, does not answer" in lines
    # Its subject stands once, and one full stop at the end.
    assert "archive: other keys signed it. → run 'custody verify'" in "\n".join(lines)
    assert "audit: none yet" in screen(Health("archive", NOW, kafka), 120)
