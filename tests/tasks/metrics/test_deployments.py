"""The dashboard, the alert rules and the page read what is exported, all of it, and nothing else."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.metrics import textfile
from tasks.metrics.catalogue import BUCKETS, CATALOGUE
from tasks.metrics.samples import Distribution, Sample, Snapshot
from tests.servers.go import prometheus
from tests.servers.promtool import promtool

ROOT = Path(__file__).parents[3]
DASHBOARD = ROOT / "deployments" / "grafana" / "dashboards" / "custody.json"
RULES = ROOT / "deployments" / "prometheus" / "rules.yml"
PAGE = ROOT / "docs" / "metrics.md"
NAMES = {metric.name for metric in CATALOGUE}
SERIES = NAMES | {
    f"{metric.name}{suffix}"
    for metric in CATALOGUE
    if metric.kind == "histogram"
    for suffix in ("_bucket", "_sum", "_count")
}
"""What a query may name."""
BUILT = pytest.mark.timeout(600)
"""The first time, Go builds the program."""


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    listed: list[dict[str, Any]] = group["rules"]
    return listed


def queries() -> list[str]:
    """Return every query of the dashboard and the rules."""
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    variables = [each["definition"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    return [*panels, *variables, *(rule["expr"] for rule in rules())]


def named(text: str) -> set[str]:
    return set(re.findall(r"\bcustody_[a-z_]+", text))


def test_only_what_is_exported_is_read() -> None:
    """A query that names another metric would show nothing, and alert never."""
    assert {name for query in queries() for name in named(query)} <= SERIES


def test_all_that_is_exported_is_read() -> None:
    """Each metric is in a panel or a rule."""
    read = {name for query in queries() for name in named(query)}
    assert {name for name in NAMES if not read & {name, f"{name}_bucket"}} == set()


def test_queries_name_labels_that_exist() -> None:
    """A label in a query is one of the metrics, or what Prometheus adds."""
    known = {label for metric in CATALOGUE for label in metric.labels} | {"instance", "job", "le"}
    for query in queries():
        groups = re.findall(r"(?:by|on) \(([^)]*)\)", query) + re.findall(r"\{([a-z_]+)=", query)
        assert {label.strip() for group in groups for label in group.split(",")} <= known, query


def test_the_dashboard_is_whole() -> None:
    """Panels have ids and places of their own, and their data source is the variable."""
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"]
    assert [each["name"] for each in dashboard()["templating"]["list"]] == ["datasource", "log"]


def test_each_rule_says_what_to_do() -> None:
    """Each has a severity, a summary, a description, and a section of docs/alerts.md that exists."""
    headings = re.findall(r"^#+ (\S+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (page, anchor in headings) == ("docs/alerts.md", True), rule["alert"]


def test_the_page_names_no_other_metric() -> None:
    """What somebody wrote around the made table of docs/metrics.md names metrics that exist."""
    assert named(PAGE.read_text()) <= SERIES


def parsed(*arguments: object) -> tuple[int, str]:
    """Return the exit code and output of the program of ours that has Prometheus' parsers."""
    ran = subprocess.run([prometheus(), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def check(*arguments: object, folder: Path = ROOT) -> tuple[int, str]:
    ran = subprocess.run(
        [promtool(), *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


@BUILT
def test_prometheus_reads_the_rules(tmp_path: Path) -> None:
    """Prometheus' parser takes them and finds the names that we find, and refuses a query that is broken."""
    code, shown = parsed("rules", RULES)
    assert code == 0, shown
    assert set(json.loads(shown)) == set().union(*(named(rule["expr"]) for rule in rules()))
    (tmp_path / "rules.yml").write_text(RULES.read_text().replace("time() -", "time( -", 1))
    assert parsed("rules", tmp_path / "rules.yml")[0] == 1


def test_prometheus_finds_no_fault_in_the_text() -> None:
    """`promtool check metrics` reads the text of all metrics, and has nothing to say of names, types or help."""
    empty = Distribution((0,) * (len(BUCKETS) + 1), 0.0)
    samples = [Sample(metric, metric.labels, empty if metric.kind == "histogram" else 1.5) for metric in CATALOGUE]
    text = textfile.render(Snapshot("file:///archive", 0.0, 1.0, tuple(samples)))
    for given, is_good in ((text, True), (text.replace(b"_total", b"_sum"), False)):
        ran = subprocess.run(
            [promtool(), "check", "metrics"], input=given, capture_output=True, timeout=60, check=False
        )
        assert ((ran.returncode, ran.stdout + ran.stderr) == (0, b"")) == is_good


@BUILT
def test_prometheus_reads_the_queries() -> None:
    """Prometheus' parser takes each query of the dashboard."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            code, shown = parsed("query", target["expr"].replace("$__rate_interval", "2m"))
            assert code == 0, shown


SERIES_OF_A_DAY = {
    'custody_last_success_timestamp_seconds{flow="drain",instance="a",job="custody"}': "0+60x30 1800x60",
    'custody_audit_ok{instance="a",job="custody"}': "1x40 0x50",
    'custody_audit_age_seconds{instance="a",job="custody"}': "93000+60x90",
    'custody_retention_headroom_seconds{log="a/0",instance="a",job="custody"}': "604800x39 21000x50",
    'custody_lag_seconds{log="a/0",instance="a",job="custody"}': "0x39 10x50",
    'custody_retention_headroom_seconds{log="b/0",instance="a",job="custody"}': "604800x39 64800x50",
    'custody_lag_seconds{log="b/0",instance="a",job="custody"}': "0x39 30000x50",
    'custody_head_age_seconds{log="idle/0",instance="a",job="custody"}': "0+60x90",
    'custody_lag_records{log="idle/0",instance="a",job="custody"}': "0x90",
    'custody_head_age_seconds{log="stuck/0",instance="a",job="custody"}': "0+60x90",
    'custody_lag_records{log="stuck/0",instance="a",job="custody"}': "7x90",
    'custody_quarantined_total{log="a/0",reason="not JSON",instance="a",job="custody"}': "0+1x90",
    'custody_quarantined_total{log="a/0",reason="timestamp",instance="a",job="custody"}': "0x70 1x20",
    'custody_quarantined_total{log="a/0",reason="not known",instance="a",job="custody"}': "0x70 1x20",
    # Half a percent each: together they are too many.
    'custody_quarantined_total{log="c/0",reason="too deep",instance="a",job="custody"}': "0+6x90",
    'custody_quarantined_total{log="c/0",reason="too large",instance="a",job="custody"}': "0+6x90",
    'custody_events_archived_total{log="c/0",event_type="other",instance="a",job="custody"}': "0+1000x90",
    # No event at all, so that there is no series of events either.
    'custody_quarantined_total{log="d/0",reason="not JSON",instance="a",job="custody"}': "0x40 0+5x50",
    # A log that is new, with all that it has.
    'custody_quarantined_total{log="e/0",reason="no value",instance="a",job="custody"}': "_x70 1000x20",
    'custody_quarantined_total{log="e/0",reason="other",instance="a",job="custody"}': "_x70 0x20",
    'custody_events_archived_total{log="a/0",event_type="other",instance="a",job="custody"}': "0+200x90",
    'custody_quarantined_total{log="b/0",reason="not JSON",instance="a",job="custody"}': "0+1x90",
    'custody_events_archived_total{log="b/0",event_type="other",instance="a",job="custody"}': "0+2000x90",
    'custody_index_delay_seconds{log="a/0",instance="a",job="custody"}': "0x39 400x50",
    'custody_detect_position_lag_seconds{log="a/0",instance="a",job="custody"}': "0x39 700x50",
    'custody_detect_position_lag_seconds{log="b/0",instance="a",job="custody"}': "500x90",
    'custody_detect_failures_total{rule="broken",instance="a",job="custody"}': "0x39 0+1x50",
    'custody_detect_failures_total{rule="mended",instance="a",job="custody"}': "3x90",
}
EXPECTED: dict[str, tuple[list[str], list[str]]] = {
    # alert: logs, some with a reason, for which it fires after 30 minutes, and after 80
    "CustodyDrainSilent": ([], [""]),
    "CustodyMetricsAbsent": ([], []),
    "CustodyHeadroomLow": ([], ["a/0", "b/0"]),
    "CustodyAuditFailed": ([], [""]),
    "CustodyAuditLate": ([""], [""]),
    "CustodyHeadStuck": (["stuck/0"], ["stuck/0"]),
    "CustodyQuarantine": (["c/0"], ["c/0", "d/0"]),
    "CustodyQuarantineReason": (
        ["a/0 not JSON", "b/0 not JSON", "c/0 too deep", "c/0 too large"],
        ["a/0 timestamp", "d/0 not JSON", "e/0 no value"],
    ),
    "CustodyIndexLate": ([], ["a/0"]),
    "CustodyDetectLate": ([], ["a/0"]),
    "CustodyRuleFailed": ([], ["rule broken"]),
}


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """`promtool test rules` runs all of them over an hour that goes wrong: each fires for what is wrong, only then."""
    assert set(EXPECTED) == {rule["alert"] for rule in rules()}
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in rules()}
    wanted = [
        {
            "eval_time": f"{minutes}m",
            "alertname": alert,
            "exp_alerts": [
                {
                    "exp_labels": {"severity": severity[alert], "instance": "a", "job": "custody"}
                    | (
                        {"rule": labels.removeprefix("rule ")}
                        if labels.startswith("rule ")
                        else dict(zip(("log", "reason"), filter(None, labels.split(" ", 1)), strict=False))
                    )
                }
                for labels in each
            ],
        }
        for alert, when in EXPECTED.items()
        for minutes, each in zip((30, 80), when, strict=True)
    ]
    stripped = yaml.safe_load(RULES.read_text())
    for rule in stripped["groups"][0]["rules"]:
        # What they say is not compared here.
        del rule["annotations"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(stripped))
    series = [{"series": name, "values": values} for name, values in SERIES_OF_A_DAY.items()]
    nothing = [
        {
            "eval_time": "20m",
            "alertname": "CustodyMetricsAbsent",
            "exp_alerts": [{"exp_labels": {"severity": "page", "flow": "drain"}}],
        }
    ]
    document = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {"interval": "1m", "input_series": series, "alert_rule_test": wanted},
            {"interval": "1m", "input_series": [], "alert_rule_test": nothing},
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(document))
    code, shown = check("test", "rules", "test.yml", folder=tmp_path)
    assert code == 0, shown
